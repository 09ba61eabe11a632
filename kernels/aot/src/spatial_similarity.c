#include "adapedit_kernels_parameters.h"
#include "internal.h"

#include <stdio.h>

static const char *const OPERATION = "spatial_similarity";
enum { MAX_GRID = 65535, MAX_SIDE = 1 << 15 };

typedef adapedit_spatial_similarity_args args_t;

static int resizes(const args_t *args)
{
    return args->height != args->map_height || args->width != args->map_width;
}

static size_t mean_bytes(const args_t *args)
{
    return args->centre ? sizeof(float) * (size_t)args->batch * (size_t)args->channels : 0;
}

size_t adapedit_kernels_spatial_similarity_workspace(const args_t *args)
{
    if (args == NULL || args->batch < 1 || args->channels < 1 || args->map_height < 1 || args->map_width < 1) return 0;
    size_t pixels = (size_t)args->map_height * (size_t)args->map_width;
    return mean_bytes(args) + (resizes(args) ? sizeof(float) * (size_t)args->batch * pixels : 0);
}

static adapedit_kernels_status check(adapedit_kernels *handle, const args_t *args)
{
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: args is null", OPERATION);
    ADAPEDIT_TRY(adapedit_check_dtype(handle, OPERATION, args->dtype));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "batch", args->batch, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "channels", args->channels, 1 << 20));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "map_height", args->map_height, MAX_SIDE));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "map_width", args->map_width, MAX_SIDE));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "height", args->height, MAX_SIDE));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "width", args->width, MAX_SIDE));
    unsigned unit = (unsigned)adapedit_dtype_size(args->dtype);
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "features", args->features, unit));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "key_embedding", args->key_embedding, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "lambda_spatial", args->lambda_spatial, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "out", args->out, 4));
    if (adapedit_kernels_spatial_similarity_workspace(args) > 0)
        ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "workspace", args->workspace, 4));
    const int64_t sizes[] = {1, (int64_t)args->map_height * args->map_width, args->channels};
    for (int axis = 0; axis < 3; axis++)
        ADAPEDIT_TRY(adapedit_check_stride(handle, OPERATION, "features", axis, args->features_strides[axis],
                                           sizes[axis], 1));
    return ADAPEDIT_KERNELS_OK;
}

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

static unsigned blocks(int64_t size, const struct adapedit_binary *binary)
{
    return (unsigned)((size + binary->block - 1) / binary->block);
}

adapedit_kernels_status adapedit_kernels_spatial_similarity(adapedit_kernels *handle, const args_t *args,
                                                            adapedit_kernels_stream stream)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    ADAPEDIT_TRY(check(handle, args));
    const char *dtype = adapedit_dtype_name(args->dtype);
    char mean_name[48], similarity_name[48];
    snprintf(mean_name, sizeof mean_name, "mean.%s", dtype);
    snprintf(similarity_name, sizeof similarity_name, "similarity.%s%s", dtype, args->centre ? ".centre" : "");
    const struct adapedit_binary *mean = NULL, *similarity = NULL, *resize = NULL;
    if (args->centre) ADAPEDIT_TRY(adapedit_find(handle, mean_name, 0, &mean));
    ADAPEDIT_TRY(adapedit_find(handle, similarity_name, 0, &similarity));
    if (resizes(args)) ADAPEDIT_TRY(adapedit_find(handle, "resize", 0, &resize));

    const int32_t pixels = args->map_height * args->map_width;
    const uint64_t mean_at = address(args->workspace);
    const uint64_t small_at = resize == NULL ? address(args->out) : mean_at + mean_bytes(args);
    if (mean != NULL) {
        struct mean_kernel_parameters parameters = {
            .features = address(args->features),
            .mean = mean_at,
            .pixels = pixels,
            .channels = args->channels,
            .batch_stride = (int32_t)args->features_strides[0],
            .pixel_stride = (int32_t)args->features_strides[1],
            .channel_stride = (int32_t)args->features_strides[2],
        };
        void *pointers[] = mean_kernel_pointers(&parameters);
        adapedit_grid grid = {blocks(args->channels, mean), (unsigned)args->batch, 1};
        ADAPEDIT_TRY(adapedit_launch(handle, mean, grid, pointers, stream));
    }
    struct similarity_kernel_parameters parameters = {
        .features = address(args->features),
        .mean = mean != NULL ? mean_at : 0,
        .key_embedding = address(args->key_embedding),
        .lambda_spatial = address(args->lambda_spatial),
        .out = small_at,
        .pixels = pixels,
        .channels = args->channels,
        .batch_stride = (int32_t)args->features_strides[0],
        .pixel_stride = (int32_t)args->features_strides[1],
        .channel_stride = (int32_t)args->features_strides[2],
    };
    void *pointers[] = similarity_kernel_pointers(&parameters);
    adapedit_grid grid = {blocks(pixels, similarity), (unsigned)args->batch, 1};
    ADAPEDIT_TRY(adapedit_launch(handle, similarity, grid, pointers, stream));
    if (resize == NULL) return ADAPEDIT_KERNELS_OK;
    struct resize_kernel_parameters resized = {
        .small = small_at,
        .out = address(args->out),
        .height = args->map_height,
        .width = args->map_width,
        .wanted_height = args->height,
        .wanted_width = args->width,
    };
    void *resize_pointers[] = resize_kernel_pointers(&resized);
    grid.x = blocks((int64_t)args->height * args->width, resize);
    return adapedit_launch(handle, resize, grid, resize_pointers, stream);
}
