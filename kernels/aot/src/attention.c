/* Edited attention and attention maps: two operations on the same queries and keys. */
#include "adapedit_kernels_parameters.h"
#include "internal.h"

#include <math.h>
#include <stdio.h>

static const int WIDTHS[] = {40, 64, 80, 160};
static const float LOG2_E = 1.4426950408889634f; /* the kernels' exponential has base 2 */
enum { STRIDE_UNIT = 8, ADDRESS_UNIT = 16, MAX_GRID = 65535, MAX_PIXELS = 1 << 20 };
enum { MAX_TOKENS = 1 << 20, MAX_MAP_TOKENS = 128, WHOLE_BLOCK = 64, SHORT_BLOCK = 16 };

/* What both operations are given. */
struct call {
    const char *operation, *entries_name;
    adapedit_kernels_dtype dtype;
    int32_t batch, entries, heads, pixels, tokens, most_tokens, width;
    const void *query, *key;
    const int64_t *query_strides, *key_strides;
    float scale;
};

static adapedit_kernels_status check_strided(adapedit_kernels *handle, const struct call *call, const char *name,
                                             const void *pointer, const int64_t *strides, int32_t places)
{
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call->operation, name, pointer, ADDRESS_UNIT));
    /* The kernels step from row to row in 64 bit. */
    ADAPEDIT_TRY(adapedit_check_stride(handle, call->operation, name, 0, strides[0], 1, STRIDE_UNIT));
    return adapedit_check_stride(handle, call->operation, name, 1, strides[1], places, STRIDE_UNIT);
}

static adapedit_kernels_status check_call(adapedit_kernels *handle, const struct call *call)
{
    const char *operation = call->operation;
    ADAPEDIT_TRY(adapedit_check_dtype(handle, operation, call->dtype));
    ADAPEDIT_TRY(adapedit_check_size(handle, operation, "batch", call->batch, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, operation, call->entries_name, call->entries, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, operation, "heads", call->heads, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, operation, "pixels", call->pixels, MAX_PIXELS));
    if (call->tokens < 1 || call->tokens > call->most_tokens)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE, "%s: %d tokens, wanted 1 to %d", operation,
                             call->tokens, call->most_tokens);
    int known = 0;
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++) known |= call->width == WIDTHS[i];
    if (!known)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE,
                             "%s: heads are %d wide, wanted 40, 64, 80 or 160", operation, call->width);
    ADAPEDIT_TRY(check_strided(handle, call, "query", call->query, call->query_strides, call->pixels));
    ADAPEDIT_TRY(check_strided(handle, call, "key", call->key, call->key_strides, call->tokens));
    if (!isfinite(call->scale) || call->scale == 0.0f)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                             "%s: scale is %g, wanted a finite number other than 0; usual is 1 / sqrt(width)", operation,
                             (double)call->scale);
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

static adapedit_kernels_status find(adapedit_kernels *handle, const struct call *call, int usual,
                                    const struct adapedit_binary **binary)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s.w%d%s", call->operation, adapedit_dtype_name(call->dtype), call->width,
             usual ? ".usual" : "");
    return adapedit_find(handle, name, call->pixels, binary);
}

adapedit_kernels_status adapedit_kernels_edited_attention(adapedit_kernels *handle,
                                                          const adapedit_edited_attention_args *args,
                                                          adapedit_kernels_stream stream)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "edited_attention: args is null");
    const struct call call = {"edited_attention", "edits",      args->dtype,         args->batch, args->edits,
                              args->heads,        args->pixels, args->tokens,        MAX_TOKENS,  args->width,
                              args->query,        args->key,    args->query_strides, args->key_strides, args->scale};
    ADAPEDIT_TRY(check_call(handle, &call));
    ADAPEDIT_TRY(check_strided(handle, &call, "out", args->out, args->out_strides, args->pixels));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "prepared", args->prepared, ADDRESS_UNIT));
    int64_t channels = (int64_t)args->heads * args->width, part = args->tokens * channels;
    if (part > INT32_MAX / 4 || args->edits > INT32_MAX / (2 * part))
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE,
                             "%s: prepared has more than 2^31 values; split the call", call.operation);
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "edited_row", args->edited_row, 8));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "source_row", args->source_row, 8));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "spatial_map", args->spatial_map, 4));
    int left = args->tokens % WHOLE_BLOCK;
    int usual = args->dtype != ADAPEDIT_KERNELS_FLOAT32 && left > 0 && left <= SHORT_BLOCK;
    const struct adapedit_binary *binary = NULL;
    ADAPEDIT_TRY(find(handle, &call, usual, &binary));
    struct edited_attention_kernel_parameters parameters = {
        .query = address(args->query),
        .key = address(args->key),
        .values = address(args->prepared),
        .out = address(args->out),
        .edited_row = address(args->edited_row),
        .source_row = address(args->source_row),
        .spatial_map = address(args->spatial_map),
        .exponent_scale = args->scale * LOG2_E,
        .batch = args->batch,
        .heads = args->heads,
        .pixels = args->pixels,
        .tokens = args->tokens,
        .query_batch_stride = (int32_t)args->query_strides[0],
        .query_pixel_stride = (int32_t)args->query_strides[1],
        .key_batch_stride = (int32_t)args->key_strides[0],
        .key_token_stride = (int32_t)args->key_strides[1],
        .value_half_stride = (int32_t)(args->edits * 2 * part),
        .value_edit_stride = (int32_t)(2 * part),
        .value_part_stride = (int32_t)part,
        .value_token_stride = (int32_t)channels,
        .out_batch_stride = (int32_t)args->out_strides[0],
        .out_pixel_stride = (int32_t)args->out_strides[1],
        .spatial_map_stride = args->pixels,
    };
    void *pointers[] = edited_attention_kernel_pointers(&parameters);
    adapedit_grid grid = {blocks(args->pixels, binary), (unsigned)args->heads, (unsigned)args->edits};
    return adapedit_launch(handle, binary, grid, pointers, stream);
}

size_t adapedit_kernels_attention_maps_workspace(const adapedit_attention_maps_args *args)
{
    if (args == NULL || args->maps < 1 || args->heads < 1 || args->pixels < 1 || args->tokens < 1) return 0;
    /* What each head adds. */
    return sizeof(float) * (size_t)args->maps * (size_t)args->heads * (size_t)args->pixels * (size_t)args->tokens;
}

adapedit_kernels_status adapedit_kernels_attention_maps(adapedit_kernels *handle,
                                                        const adapedit_attention_maps_args *args,
                                                        adapedit_kernels_stream stream)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "attention_maps: args is null");
    const struct call call = {"attention_maps", "maps",       args->dtype,         args->batch,    args->maps,
                              args->heads,      args->pixels, args->tokens,        MAX_MAP_TOKENS, args->width,
                              args->query,      args->key,    args->query_strides, args->key_strides, args->scale};
    ADAPEDIT_TRY(check_call(handle, &call));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "map_row", args->map_row, 8));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "map_sum", args->map_sum, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, call.operation, "workspace", args->workspace, 4));
    int usual = args->tokens > WHOLE_BLOCK && args->tokens <= WHOLE_BLOCK + SHORT_BLOCK;
    const struct adapedit_binary *maps = NULL, *sum = NULL;
    ADAPEDIT_TRY(find(handle, &call, usual, &maps));
    ADAPEDIT_TRY(adapedit_find(handle, "map_sum", 0, &sum));
    struct map_kernel_parameters parameters = {
        .query = address(args->query),
        .key = address(args->key),
        .map_row = address(args->map_row),
        .partial = address(args->workspace),
        .exponent_scale = args->scale * LOG2_E,
        .batch = args->batch,
        .heads = args->heads,
        .pixels = args->pixels,
        .tokens = args->tokens,
        .query_batch_stride = (int32_t)args->query_strides[0],
        .query_pixel_stride = (int32_t)args->query_strides[1],
        .key_batch_stride = (int32_t)args->key_strides[0],
        .key_token_stride = (int32_t)args->key_strides[1],
    };
    void *pointers[] = map_kernel_pointers(&parameters);
    adapedit_grid grid = {blocks(args->pixels, maps), (unsigned)args->heads, (unsigned)args->maps};
    ADAPEDIT_TRY(adapedit_launch(handle, maps, grid, pointers, stream));
    int32_t values = args->pixels * args->tokens;
    struct map_sum_kernel_parameters sum_parameters = {
        .partial = address(args->workspace),
        .map_sum = address(args->map_sum),
        .map_scale = args->map_weight / (float)args->heads,
        .heads = args->heads,
        .values = values,
        .map_batch_stride = values,
    };
    void *sum_pointers[] = map_sum_kernel_pointers(&sum_parameters);
    adapedit_grid sum_grid = {blocks(values, sum), (unsigned)args->maps, 1};
    return adapedit_launch(handle, sum, sum_grid, sum_pointers, stream);
}
