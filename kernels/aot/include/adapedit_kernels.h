/*
 * AdapEdit's kernels for C and C++: edited attention, attention maps, the word relation, the spatial similarity and the
 * guided step.
 *
 * The library carries the kernels as binaries and finds the CUDA driver when a handle is loaded, so it can be linked
 * and opened on machines that have none. Pointers are device pointers of the context that was current when the handle
 * was loaded, unless said otherwise. Strides count elements. Functions return a status; adapedit_kernels_last_error
 * says in a line what was got and what was wanted. Arguments are checked before anything is launched, but values in
 * device memory are not read: the kernels clamp row numbers into the batch.
 *
 * A handle belongs to one context and is used by one thread at a time. A kernel is loaded by the first call that needs
 * it; make that call before a stream is captured into a graph.
 */
#ifndef ADAPEDIT_KERNELS_H
#define ADAPEDIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ADAPEDIT_KERNELS_API __attribute__((visibility("default")))
#else
#define ADAPEDIT_KERNELS_API
#endif

#define ADAPEDIT_KERNELS_VERSION_MAJOR 0
#define ADAPEDIT_KERNELS_VERSION_MINOR 1

typedef enum adapedit_kernels_status {
    ADAPEDIT_KERNELS_OK = 0,
    ADAPEDIT_KERNELS_INVALID_ARGUMENT = 1,   /* a null pointer, a size below 1, arguments that exclude each other */
    ADAPEDIT_KERNELS_UNSUPPORTED_DTYPE = 2,
    ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE = 3,  /* a head width or a number of tokens that no kernel takes */
    ADAPEDIT_KERNELS_UNSUPPORTED_STRIDE = 4, /* a stride or an address that no kernel takes */
    ADAPEDIT_KERNELS_NO_DRIVER = 5,          /* no libcuda.so.1, or one that lacks a function */
    ADAPEDIT_KERNELS_NO_CONTEXT = 6,         /* no current context, or another than the handle's */
    ADAPEDIT_KERNELS_UNSUPPORTED_DEVICE = 7, /* older than every target of this build */
    ADAPEDIT_KERNELS_NO_BINARY = 8,          /* this build leaves the kernel out */
    ADAPEDIT_KERNELS_DRIVER_ERROR = 9,       /* the driver refused; the message has its words */
    ADAPEDIT_KERNELS_OUT_OF_MEMORY = 10
} adapedit_kernels_status;

typedef enum adapedit_kernels_dtype {
    ADAPEDIT_KERNELS_FLOAT16 = 1,
    ADAPEDIT_KERNELS_BFLOAT16 = 2,
    ADAPEDIT_KERNELS_FLOAT32 = 3
} adapedit_kernels_dtype;

typedef struct adapedit_kernels adapedit_kernels;

/* CUstream and cudaStream_t are this type; NULL is the default stream. */
struct CUstream_st;
typedef struct CUstream_st *adapedit_kernels_stream;

/* A binary of this build. Sizes in bytes. */
typedef struct adapedit_kernels_binary_info {
    const char *name;
    int target;      /* 90 is compute capability 9.0 */
    int pixels_from; /* taken for calls with at least as many pixels */
    int num_warps;
    int registers; /* a thread */
    int spilled;
    int shared; /* a program */
    size_t cubin_size;
    size_t ptx_size; /* 0: no PTX is carried for this target */
} adapedit_kernels_binary_info;

/* What the build is: none of these needs a handle or a driver. */
ADAPEDIT_KERNELS_API const char *adapedit_kernels_version(void);
ADAPEDIT_KERNELS_API size_t adapedit_kernels_targets(const int **targets);
ADAPEDIT_KERNELS_API size_t adapedit_kernels_binary_count(void);
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_describe_binary(size_t index,
                                                                              adapedit_kernels_binary_info *info);
ADAPEDIT_KERNELS_API const char *adapedit_kernels_error_message(adapedit_kernels_status status);

/* Make a handle: needs no driver. Free it with destroy, which takes NULL too. */
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_create(adapedit_kernels **handle);
/* Unloads the kernels; the handle's context must still exist. */
ADAPEDIT_KERNELS_API void adapedit_kernels_destroy(adapedit_kernels *handle);
/* Find the driver and what fits the current context's device. Launches do it too where it was not done. */
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_load(adapedit_kernels *handle);
/* The target that serves the device, and whether its PTX is compiled by the driver: a loaded handle only. */
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_loaded_target(adapedit_kernels *handle, int *target,
                                                                            int *from_ptx);
/* One line about the last call on this handle that failed; "" where none did. Valid until the next call on it. */
ADAPEDIT_KERNELS_API const char *adapedit_kernels_last_error(const adapedit_kernels *handle);

/*
 * Attention of the edited rows of a call, written in the place of what their rows of `out` hold; the other rows are not
 * touched, and any fused attention computes them. M^ V with M^ = R + W (M - R), R = M[source] A, W = u + v S and
 * M = softmax(scale Q K^T) is attention with values prepared once a prompt or a step: of the edited row's V
 *
 *     V_a = A diag(1 - u) V    V_b = -A diag(v) V    V_c = diag(u) V    V_d = diag(v) V
 *     out = M[source] V_a + M V_c + S (M[source] V_b + M V_d)
 *
 * Heads lie side by side, 40, 64, 80 or 160 wide each. query, key, prepared and out start at multiples of 16 bytes, and
 * the strides given are multiples of 8. An entry whose source is the row itself is left alone. All but query, key and
 * out are contiguous.
 */
typedef struct adapedit_edited_attention_args {
    adapedit_kernels_dtype dtype; /* of query, key, prepared and out */
    int32_t batch, edits, heads, pixels, tokens, width;
    const void *query;    /* [B, P, H D] */
    const void *key;      /* [B, N, H D] */
    const void *prepared; /* [2, E, 2, N, H D]: (V_a, V_b), (V_c, V_d) */
    void *out;            /* [B, P, H D] */
    int64_t query_strides[2], key_strides[2], out_strides[2]; /* row, pixel or token */
    const int64_t *edited_row; /* [E], each row once */
    const int64_t *source_row; /* [E] */
    const float *spatial_map;  /* S [E, P] */
    float scale;               /* usually 1 / sqrt(width) */
} adapedit_edited_attention_args;

ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_edited_attention(
    adapedit_kernels *handle, const adapedit_edited_attention_args *args, adapedit_kernels_stream stream);

/*
 * map_sum += map_weight times the mean over heads of softmax(scale Q K^T), for the rows in map_row. Heads and strides as
 * above, tokens 1 to 128.
 */
typedef struct adapedit_attention_maps_args {
    adapedit_kernels_dtype dtype; /* of query and key */
    int32_t batch, maps, heads, pixels, tokens, width;
    const void *query; /* [B, P, H D] */
    const void *key;   /* [B, N, H D] */
    int64_t query_strides[2], key_strides[2];
    const int64_t *map_row; /* [M] */
    float *map_sum;         /* [M, P, N] */
    float map_weight;
    float scale;
    void *workspace; /* of the size below */
} adapedit_attention_maps_args;

ADAPEDIT_KERNELS_API size_t adapedit_kernels_attention_maps_workspace(const adapedit_attention_maps_args *args);
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_attention_maps(adapedit_kernels *handle,
                                                                             const adapedit_attention_maps_args *args,
                                                                             adapedit_kernels_stream stream);

/*
 * out_k = a_k x_k + b_k sum_g w_kg eps[row_kg] + c_k n_k; where a mask is given, out_k = out_s + mask (out_k - out_s)
 * with s = blend_source[k]. All but noise_pred contiguous. noise comes with noise_weight, blend_mask with blend_source,
 * or both are NULL. out may be latents only where nothing is blended.
 */
typedef struct adapedit_guided_step_args {
    adapedit_kernels_dtype dtype; /* of noise_pred, latents, noise and out */
    int32_t rows, tracks, guidance, channels, height, width;
    const void *noise_pred; /* [B, C, h, w] */
    int64_t noise_pred_strides[4];
    const void *latents;           /* [K, C, h, w] */
    const int64_t *guidance_rows;  /* [K, G], rows of noise_pred */
    const float *guidance_weights; /* w [K, G] */
    const float *sample_weight;    /* a [K] */
    const float *output_weight;    /* b [K] */
    const void *noise;             /* n [K, C, h, w] */
    const float *noise_weight;     /* c [K] */
    const float *blend_mask;       /* [K, 1, h, w] */
    const int64_t *blend_source;   /* [K] */
    void *out;                     /* [K, C, h, w] */
} adapedit_guided_step_args;

ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_guided_step(adapedit_kernels *handle,
                                                                          const adapedit_guided_step_args *args,
                                                                          adapedit_kernels_stream stream);

/* S = lambda clip(cos(features, key), 0, 1), features less their mean where centre is 1. All but features contiguous. */
typedef struct adapedit_spatial_similarity_args {
    adapedit_kernels_dtype dtype; /* of features */
    int32_t batch, pixels, channels;
    const void *features; /* [B, P, V] */
    int64_t features_strides[3];
    const float *key_embedding;  /* [B, V] */
    const float *lambda_spatial; /* [B] */
    const uint8_t *centre;       /* [B], 0 or 1 */
    float *out;                  /* [B, P] */
    void *workspace;             /* of adapedit_kernels_spatial_similarity_workspace bytes */
} adapedit_spatial_similarity_args;

ADAPEDIT_KERNELS_API size_t
adapedit_kernels_spatial_similarity_workspace(const adapedit_spatial_similarity_args *args);
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_spatial_similarity(
    adapedit_kernels *handle, const adapedit_spatial_similarity_args *args, adapedit_kernels_stream stream);

/* Relation of every token's word to the edited words, and the share of the trajectory for which its map is held. */
typedef struct adapedit_word_relation_args {
    int32_t batch, pixels, tokens, channels;
    const float *maps; /* [B, P, N], tokens side by side */
    int64_t maps_strides[2];
    const float *features; /* [B, P, V] */
    int64_t features_strides[3];
    const uint8_t *key_tokens;    /* [B, N], 0 or 1 */
    const int64_t *word_of_token; /* [B, N], -1 for none */
    const float *lambda_tau;      /* [B], factor on the shares */
    const float *threshold;       /* [B], values of maps below it become 0 */
    const uint8_t *relative;      /* [B], 1: the threshold is a share of a token's highest value */
    const float *temperature;     /* [B], of a softmax of the masked values; 0: weights are the masked values */
    const uint8_t *centre;        /* [B], 1: features less their mean over the pixels */
    const uint8_t *released;      /* [B], 1: the released formula, not the paper's */
    float *relation;      /* [B, N] */
    float *word_steps;    /* [B, N] */
    float *key_embedding; /* [B, V] */
    float *default_steps; /* [B] */
    void *workspace;      /* of adapedit_kernels_word_relation_workspace bytes */
} adapedit_word_relation_args;

ADAPEDIT_KERNELS_API size_t adapedit_kernels_word_relation_workspace(const adapedit_word_relation_args *args);
ADAPEDIT_KERNELS_API adapedit_kernels_status adapedit_kernels_word_relation(adapedit_kernels *handle,
                                                                            const adapedit_word_relation_args *args,
                                                                            adapedit_kernels_stream stream);

#ifdef __cplusplus
}
#endif
#endif
