#include "adapedit_kernels_parameters.h"
#include "internal.h"

#include <stdio.h>

static const char *const OPERATION = "guided_step";
enum { MAX_GRID = 65535 };

typedef adapedit_guided_step_args args_t;

/* Both or neither of two arguments that go together. */
static adapedit_kernels_status check_pair(adapedit_kernels *handle, const char *first_name, const void *first,
                                          unsigned first_unit, const char *second_name, const void *second,
                                          unsigned second_unit)
{
    if (first == NULL && second == NULL) return ADAPEDIT_KERNELS_OK;
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, first_name, first, first_unit));
    return adapedit_check_pointer(handle, OPERATION, second_name, second, second_unit);
}

static adapedit_kernels_status check(adapedit_kernels *handle, const args_t *args)
{
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: args is null", OPERATION);
    ADAPEDIT_TRY(adapedit_check_dtype(handle, OPERATION, args->dtype));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "rows", args->rows, INT32_MAX));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "tracks", args->tracks, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "guidance", args->guidance, INT32_MAX));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "channels", args->channels, 1 << 15));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "height", args->height, 1 << 15));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "width", args->width, 1 << 15));
    int64_t size = (int64_t)args->channels * args->height * args->width;
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "channels height width", size, INT32_MAX - 512));
    unsigned unit = (unsigned)adapedit_dtype_size(args->dtype);
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "noise_pred", args->noise_pred, unit));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "latents", args->latents, unit));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "guidance_rows", args->guidance_rows, 8));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "guidance_weights", args->guidance_weights, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "sample_weight", args->sample_weight, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "output_weight", args->output_weight, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "out", args->out, unit));
    const int32_t sizes[] = {1, args->channels, args->height, args->width};
    for (int axis = 0; axis < 4; axis++)
        ADAPEDIT_TRY(adapedit_check_stride(handle, OPERATION, "noise_pred", axis, args->noise_pred_strides[axis],
                                           sizes[axis], 1));
    ADAPEDIT_TRY(check_pair(handle, "noise", args->noise, unit, "noise_weight", args->noise_weight, 4));
    ADAPEDIT_TRY(check_pair(handle, "blend_mask", args->blend_mask, 4, "blend_source", args->blend_source, 8));
    if (args->blend_mask != NULL && args->out == args->latents)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                             "%s: out is latents and a blend reads other tracks' latents; give memory of its own",
                             OPERATION);
    return ADAPEDIT_KERNELS_OK;
}

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

adapedit_kernels_status adapedit_kernels_guided_step(adapedit_kernels *handle, const args_t *args,
                                                     adapedit_kernels_stream stream)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    ADAPEDIT_TRY(check(handle, args));
    char name[64];
    snprintf(name, sizeof name, "guided_step.%s%s%s", adapedit_dtype_name(args->dtype),
             args->noise != NULL ? ".noise" : "", args->blend_mask != NULL ? ".blend" : "");
    const struct adapedit_binary *binary = NULL;
    ADAPEDIT_TRY(adapedit_find(handle, name, 0, &binary));
    struct guided_step_kernel_parameters parameters = {
        .noise_pred = address(args->noise_pred),
        .latents = address(args->latents),
        .guidance_rows = address(args->guidance_rows),
        .guidance_weights = address(args->guidance_weights),
        .sample_weight = address(args->sample_weight),
        .output_weight = address(args->output_weight),
        .noise = address(args->noise),
        .noise_weight = address(args->noise_weight),
        .blend_mask = address(args->blend_mask),
        .blend_source = address(args->blend_source),
        .out = address(args->out),
        .rows = args->rows,
        .tracks = args->tracks,
        .guidance = args->guidance,
        .channels = args->channels,
        .height = args->height,
        .width = args->width,
        .pred_row_stride = (int32_t)args->noise_pred_strides[0],
        .pred_channel_stride = (int32_t)args->noise_pred_strides[1],
        .pred_height_stride = (int32_t)args->noise_pred_strides[2],
        .pred_width_stride = (int32_t)args->noise_pred_strides[3],
    };
    void *pointers[] = guided_step_kernel_pointers(&parameters);
    int64_t size = (int64_t)args->channels * args->height * args->width;
    adapedit_grid grid = {(unsigned)((size + binary->block - 1) / binary->block), (unsigned)args->tracks, 1};
    return adapedit_launch(handle, binary, grid, pointers, stream);
}
