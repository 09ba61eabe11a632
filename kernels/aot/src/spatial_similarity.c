#include "adapedit_kernels_parameters.h"
#include "internal.h"

#include <stdio.h>

static const char *const OPERATION = "spatial_similarity";
enum { MAX_GRID = 65535, MAX_PIXELS = 1 << 20 };

typedef adapedit_spatial_similarity_args args_t;

size_t adapedit_kernels_spatial_similarity_workspace(const args_t *args)
{
    if (args == NULL || args->batch < 1 || args->channels < 1) return 0;
    return sizeof(float) * (size_t)args->batch * (size_t)args->channels; /* the features' mean */
}

static adapedit_kernels_status check(adapedit_kernels *handle, const args_t *args)
{
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: args is null", OPERATION);
    ADAPEDIT_TRY(adapedit_check_dtype(handle, OPERATION, args->dtype));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "batch", args->batch, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "channels", args->channels, 1 << 20));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "pixels", args->pixels, MAX_PIXELS));
    unsigned unit = (unsigned)adapedit_dtype_size(args->dtype);
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "features", args->features, unit));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "key_embedding", args->key_embedding, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "lambda_spatial", args->lambda_spatial, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "centre", args->centre, 1));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "out", args->out, 4));
    ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, "workspace", args->workspace, 4));
    const int64_t sizes[] = {1, args->pixels, args->channels};
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
    snprintf(similarity_name, sizeof similarity_name, "similarity.%s", dtype);
    const struct adapedit_binary *mean = NULL, *similarity = NULL;
    ADAPEDIT_TRY(adapedit_find(handle, mean_name, 0, &mean));
    ADAPEDIT_TRY(adapedit_find(handle, similarity_name, 0, &similarity));
    struct mean_kernel_parameters mean_parameters = {
        .features = address(args->features),
        .mean = address(args->workspace),
        .pixels = args->pixels,
        .channels = args->channels,
        .batch_stride = (int32_t)args->features_strides[0],
        .pixel_stride = (int32_t)args->features_strides[1],
        .channel_stride = (int32_t)args->features_strides[2],
    };
    void *mean_pointers[] = mean_kernel_pointers(&mean_parameters);
    adapedit_grid grid = {blocks(args->channels, mean), (unsigned)args->batch, 1};
    ADAPEDIT_TRY(adapedit_launch(handle, mean, grid, mean_pointers, stream));
    struct similarity_kernel_parameters parameters = {
        .features = address(args->features),
        .mean = address(args->workspace),
        .key_embedding = address(args->key_embedding),
        .lambda_spatial = address(args->lambda_spatial),
        .centre = address(args->centre),
        .out = address(args->out),
        .pixels = args->pixels,
        .channels = args->channels,
        .batch_stride = (int32_t)args->features_strides[0],
        .pixel_stride = (int32_t)args->features_strides[1],
        .channel_stride = (int32_t)args->features_strides[2],
    };
    void *pointers[] = similarity_kernel_pointers(&parameters);
    grid.x = blocks(args->pixels, similarity);
    return adapedit_launch(handle, similarity, grid, pointers, stream);
}
