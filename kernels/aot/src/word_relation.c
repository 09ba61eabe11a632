#include "adapedit_kernels_parameters.h"
#include "internal.h"

static const char *const OPERATION = "word_relation";
enum { MAX_TOKENS = 128, MAX_GRID = 65535, MAX_PIXELS = 1 << 20, MAX_CHANNELS = 1 << 20 };

typedef adapedit_word_relation_args args_t;

static size_t embedding_bytes(const args_t *args)
{
    return sizeof(float) * (size_t)args->batch * (size_t)args->tokens * (size_t)args->channels;
}

size_t adapedit_kernels_word_relation_workspace(const args_t *args)
{
    if (args == NULL || args->batch < 1 || args->tokens < 1 || args->channels < 1) return 0;
    return embedding_bytes(args) + sizeof(float) * (size_t)args->batch * (size_t)args->tokens;
}

static adapedit_kernels_status check(adapedit_kernels *handle, const args_t *args)
{
    if (args == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: args is null", OPERATION);
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "batch", args->batch, MAX_GRID));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "pixels", args->pixels, MAX_PIXELS));
    ADAPEDIT_TRY(adapedit_check_size(handle, OPERATION, "channels", args->channels, MAX_CHANNELS));
    if (args->tokens < 1 || args->tokens > MAX_TOKENS)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE, "%s: %d tokens, wanted 1 to %d", OPERATION,
                             args->tokens, MAX_TOKENS);
    const struct {
        const char *name;
        const void *pointer;
        unsigned unit;
    } tensors[] = {
        {"maps", args->maps, 4},
        {"features", args->features, 4},
        {"key_tokens", args->key_tokens, 1},
        {"word_of_token", args->word_of_token, 8},
        {"lambda_tau", args->lambda_tau, 4},
        {"threshold", args->threshold, 4},
        {"relative", args->relative, 1},
        {"temperature", args->temperature, 4},
        {"centre", args->centre, 1},
        {"released", args->released, 1},
        {"relation", args->relation, 4},
        {"word_steps", args->word_steps, 4},
        {"key_embedding", args->key_embedding, 4},
        {"default_steps", args->default_steps, 4},
        {"workspace", args->workspace, 4},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ADAPEDIT_TRY(adapedit_check_pointer(handle, OPERATION, tensors[i].name, tensors[i].pointer, tensors[i].unit));
    const int64_t map_sizes[] = {1, args->pixels}, sizes[] = {1, args->pixels, args->channels};
    for (int axis = 0; axis < 2; axis++)
        ADAPEDIT_TRY(
            adapedit_check_stride(handle, OPERATION, "maps", axis, args->maps_strides[axis], map_sizes[axis], 1));
    for (int axis = 0; axis < 3; axis++)
        ADAPEDIT_TRY(
            adapedit_check_stride(handle, OPERATION, "features", axis, args->features_strides[axis], sizes[axis], 1));
    return ADAPEDIT_KERNELS_OK;
}

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

static adapedit_kernels_status embed(adapedit_kernels *handle, const args_t *args, const struct adapedit_binary *binary,
                                     adapedit_kernels_stream stream)
{
    struct embed_kernel_parameters parameters = {
        .maps = address(args->maps),
        .features = address(args->features),
        .threshold = address(args->threshold),
        .relative = address(args->relative),
        .temperature = address(args->temperature),
        .centre = address(args->centre),
        .embedding = address(args->workspace),
        .pixels = args->pixels,
        .tokens = args->tokens,
        .channels = args->channels,
        .map_batch_stride = (int32_t)args->maps_strides[0],
        .map_pixel_stride = (int32_t)args->maps_strides[1],
        .batch_stride = (int32_t)args->features_strides[0],
        .pixel_stride = (int32_t)args->features_strides[1],
        .channel_stride = (int32_t)args->features_strides[2],
    };
    void *pointers[] = embed_kernel_pointers(&parameters);
    unsigned blocks = (unsigned)((args->channels + binary->block - 1) / binary->block);
    return adapedit_launch(handle, binary, (adapedit_grid){blocks, (unsigned)args->batch, 1}, pointers, stream);
}

static adapedit_kernels_status relate(adapedit_kernels *handle, const args_t *args, const struct adapedit_binary *binary,
                                      adapedit_kernels_stream stream)
{
    struct relate_kernel_parameters parameters = {
        .embedding = address(args->workspace),
        .key_tokens = address(args->key_tokens),
        .word_of_token = address(args->word_of_token),
        .lambda_tau = address(args->lambda_tau),
        .released = address(args->released),
        .relation = address(args->relation),
        .word_steps = address(args->word_steps),
        .word_share = address(args->workspace) + embedding_bytes(args),
        .key_embedding = address(args->key_embedding),
        .tokens = args->tokens,
        .channels = args->channels,
    };
    void *pointers[] = relate_kernel_pointers(&parameters);
    adapedit_grid grid = {(unsigned)args->tokens, (unsigned)args->batch, 1};
    return adapedit_launch(handle, binary, grid, pointers, stream);
}

static adapedit_kernels_status finish(adapedit_kernels *handle, const args_t *args, const struct adapedit_binary *binary,
                                      adapedit_kernels_stream stream)
{
    struct finish_kernel_parameters parameters = {
        .key_tokens = address(args->key_tokens),
        .word_of_token = address(args->word_of_token),
        .word_share = address(args->workspace) + embedding_bytes(args),
        .word_steps = address(args->word_steps),
        .default_steps = address(args->default_steps),
        .tokens = args->tokens,
    };
    void *pointers[] = finish_kernel_pointers(&parameters);
    return adapedit_launch(handle, binary, (adapedit_grid){(unsigned)args->batch, 1, 1}, pointers, stream);
}

adapedit_kernels_status adapedit_kernels_word_relation(adapedit_kernels *handle, const args_t *args,
                                                       adapedit_kernels_stream stream)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    ADAPEDIT_TRY(check(handle, args));
    const struct adapedit_binary *embedding = NULL, *relation = NULL, *last = NULL;
    ADAPEDIT_TRY(adapedit_find(handle, "embed", 0, &embedding));
    ADAPEDIT_TRY(adapedit_find(handle, "relate", 0, &relation));
    ADAPEDIT_TRY(adapedit_find(handle, "finish", 0, &last));
    ADAPEDIT_TRY(embed(handle, args, embedding, stream));
    ADAPEDIT_TRY(relate(handle, args, relation, stream));
    return finish(handle, args, last, stream);
}
