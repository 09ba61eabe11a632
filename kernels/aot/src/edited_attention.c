#include "adapedit_kernels_parameters.h"
#include "internal.h"

#include <math.h>
#include <stdio.h>

static const char *const OPERATION = "edited_attention";
static const int WIDTHS[] = {40, 64, 80, 160};
enum { MAX_TOKENS = 128, STRIDE_UNIT = 8, ADDRESS_UNIT = 16, MAX_GRID = 65535, MAX_PIXELS = 1 << 20 };

typedef adapedit_edited_attention_args args_t;

static adapedit_kernels_status check_shape(adapedit_kernels *handle, const args_t *args)
{
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "batch", args->batch, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "heads", args->heads, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "pixels", args->pixels, MAX_PIXELS));
    if (args->tokens < 1 || args->tokens > MAX_TOKENS)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE, "%s: %d tokens, wanted 1 to %d", OPERATION,
                             args->tokens, MAX_TOKENS);
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++)
        if (args->width == WIDTHS[i]) return ADAPEDIT_KERNELS_OK;
    return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE, "%s: heads are %d wide, wanted 40, 64, 80 or 160",
                         OPERATION, args->width);
}

static adapedit_kernels_status check_tensor(adapedit_kernels *handle, const char *name, const void *pointer,
                                            const int64_t *strides, const args_t *args, int32_t places)
{
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, name, pointer, ADDRESS_UNIT));
    const int32_t sizes[] = {1, args->heads, places}; /* the kernel steps from row to row in 64 bit */
    for (int axis = 0; axis < 3; axis++)
        ADAPEDIT_TRY(adapedit_check_stride(handle, OPERATION, name, axis, strides[axis], sizes[axis], STRIDE_UNIT));
    return ADAPEDIT_KERNELS_OK;
}

static adapedit_kernels_status check_controls(adapedit_kernels *handle, const args_t *args, int *edited)
{
    const struct {
        const char *name;
        const void *pointer;
        unsigned alignment;
    } controls[] = {
        {"source_row", args->source_row, 8},         {"token_map", args->token_map, 4},
        {"own_weight", args->own_weight, 4},         {"spatial_weight", args->spatial_weight, 4},
        {"spatial_map", args->spatial_map, 4},
    };
    *edited = 0;
    for (size_t i = 0; i < sizeof controls / sizeof controls[0]; i++) *edited |= controls[i].pointer != NULL;
    if (*edited)
        for (size_t i = 0; i < sizeof controls / sizeof controls[0]; i++)
            ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, controls[i].name, controls[i].pointer,
                                                controls[i].alignment));
    if (args->map_sum == NULL) return ADAPEDIT_KERNELS_OK;
    if (!*edited)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                             "%s: map_sum is given without controls; give them, with source_row 0, 1, 2 ... to edit "
                             "nothing",
                             OPERATION);
    return adapedit_check_pointer(handle, OPERATION, "map_sum", args->map_sum, 4);
}

static adapedit_kernels_status check(adapedit_kernels *handle, const args_t *args, int *edited)
{
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: args is null", OPERATION);
    ADAPEDIT_TRY(adapedit_check_dtype(handle, OPERATION, args->dtype));
    ADAPEDIT_TRY(check_shape(handle, args));
    ADAPEDIT_TRY(check_tensor(handle, "query", args->query, args->query_strides, args, args->pixels));
    ADAPEDIT_TRY(check_tensor(handle, "key", args->key, args->key_strides, args, args->tokens));
    ADAPEDIT_TRY(check_tensor(handle, "value", args->value, args->value_strides, args, args->tokens));
    ADAPEDIT_TRY(check_tensor(handle, "out", args->out, args->out_strides, args, args->pixels));
    if (!isfinite(args->scale) || args->scale == 0.0f)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                             "%s: scale is %g, wanted a finite number other than 0; usual is 1 / sqrt(width)", OPERATION,
                             (double)args->scale);
    return check_controls(handle, args, edited);
}

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

static int32_t units(int64_t stride)
{
    return (int32_t)(stride / STRIDE_UNIT);
}

adapedit_kernels_status adapedit_kernels_edited_attention(adapedit_kernels *handle, const args_t *args,
                                                          adapedit_kernels_stream stream)
{
    int edited = 0;
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    ADAPEDIT_TRY(check(handle, args, &edited));
    char name[96];
    snprintf(name, sizeof name, "edited_attention.%s.w%d.%s%s", adapedit_dtype_name(args->dtype), args->width,
             edited ? "edited" : "plain", args->map_sum != NULL ? ".maps" : "");
    const struct adapedit_binary *binary = NULL;
    ADAPEDIT_TRY(adapedit_find(handle, name, args->pixels, &binary));
    struct edited_attention_kernel_parameters parameters = {
        .query = address(args->query),
        .key = address(args->key),
        .value = address(args->value),
        .out = address(args->out),
        .source_row = address(args->source_row),
        .token_map = address(args->token_map),
        .own_weight = address(args->own_weight),
        .spatial_weight = address(args->spatial_weight),
        .spatial_map = address(args->spatial_map),
        .map_sum = address(args->map_sum),
        .exponent_scale = args->scale * 1.4426950408889634f, /* the kernel's exponential has base 2 */
        .map_scale = args->map_weight / (float)args->heads,
        .batch = args->batch,
        .heads = args->heads,
        .pixels = args->pixels,
        .tokens = args->tokens,
        .query_batch_stride = units(args->query_strides[0]),
        .query_head_stride = units(args->query_strides[1]),
        .query_pixel_stride = units(args->query_strides[2]),
        .key_batch_stride = units(args->key_strides[0]),
        .key_head_stride = units(args->key_strides[1]),
        .key_token_stride = units(args->key_strides[2]),
        .value_batch_stride = units(args->value_strides[0]),
        .value_head_stride = units(args->value_strides[1]),
        .value_token_stride = units(args->value_strides[2]),
        .out_batch_stride = units(args->out_strides[0]),
        .out_head_stride = units(args->out_strides[1]),
        .out_pixel_stride = units(args->out_strides[2]),
        .token_map_batch_stride = args->tokens * args->tokens,
        .token_map_stride = args->tokens,
        .own_weight_stride = args->tokens,
        .spatial_weight_stride = args->tokens,
        .spatial_map_stride = args->pixels,
        .map_batch_stride = args->pixels * args->tokens,
        .map_pixel_stride = args->tokens,
    };
    void *pointers[] = edited_attention_kernel_pointers(&parameters);
    unsigned blocks = (unsigned)((args->pixels + binary->block - 1) / binary->block);
    adapedit_grid grid = {blocks, args->map_sum != NULL ? 1u : (unsigned)args->heads, (unsigned)args->batch};
    return adapedit_launch(handle, binary, grid, pointers, stream);
}
