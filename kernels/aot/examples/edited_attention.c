/*
 * Edited attention from C: row 1 takes its map from row 0 for the first half of the tokens. Checked against plain C.
 * Without a CUDA driver it says so and leaves with 0.
 */
#include <adapedit_kernels.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda.h"

enum { BATCH = 2, PIXELS = 16, TOKENS = 5, WIDTH = 40 };

static float query[BATCH][PIXELS][WIDTH], key[BATCH][TOKENS][WIDTH], value[TOKENS][WIDTH];
static float out[BATCH][PIXELS][WIDTH];
static int64_t edited_row[1] = {1}, source_row[1] = {0};
static float own_weight[TOKENS], spatial_weight[TOKENS], spatial_map[1][PIXELS];
static float prepared[2][1][2][TOKENS][WIDTH];

static void fill(float *to, size_t count)
{
    for (size_t i = 0; i < count; i++) to[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

static void attention_map(int row, int pixel, double *map)
{
    double total = 0.0;
    for (int token = 0; token < TOKENS; token++) {
        double logit = 0.0;
        for (int d = 0; d < WIDTH; d++) logit += (double)query[row][pixel][d] * key[row][token][d];
        total += map[token] = exp(logit / sqrt((double)WIDTH));
    }
    for (int token = 0; token < TOKENS; token++) map[token] /= total;
}

/* The values of two plain attentions that make the edited one; the token map is the identity. */
static void prepare(void)
{
    for (int token = 0; token < TOKENS; token++)
        for (int d = 0; d < WIDTH; d++) {
            float own = own_weight[token] * value[token][d], spatial = spatial_weight[token] * value[token][d];
            prepared[0][0][0][token][d] = value[token][d] - own;
            prepared[0][0][1][token][d] = -spatial;
            prepared[1][0][0][token][d] = own;
            prepared[1][0][1][token][d] = spatial;
        }
}

/* What row 1 must give: the token map is the identity, so R is row 0's own map. */
static double largest_difference(void)
{
    double largest = 0.0;
    for (int pixel = 0; pixel < PIXELS; pixel++) {
        double source[TOKENS], own[TOKENS];
        attention_map(0, pixel, source);
        attention_map(1, pixel, own);
        for (int d = 0; d < WIDTH; d++) {
            double sum = 0.0;
            for (int token = 0; token < TOKENS; token++) {
                double weight = own_weight[token] + (double)spatial_weight[token] * spatial_map[0][pixel];
                sum += (source[token] + weight * (own[token] - source[token])) * value[token][d];
            }
            largest = fmax(largest, fabs(sum - out[1][pixel][d]));
        }
    }
    return largest;
}

int main(void)
{
    adapedit_kernels *handle = NULL;
    if (adapedit_kernels_create(&handle) != ADAPEDIT_KERNELS_OK) return 1;
    int started = example_cuda_start();
    adapedit_kernels_status status = adapedit_kernels_load(handle);
    if (status == ADAPEDIT_KERNELS_NO_DRIVER || started != 0) {
        printf("%s: %s\n", adapedit_kernels_error_message(status), adapedit_kernels_last_error(handle));
        adapedit_kernels_destroy(handle);
        return 0;
    }
    fill(&query[0][0][0], sizeof query / sizeof(float));
    fill(&key[0][0][0], sizeof key / sizeof(float));
    fill(&value[0][0], sizeof value / sizeof(float));
    fill(&spatial_map[0][0], sizeof spatial_map / sizeof(float));
    for (int token = 0; token < TOKENS; token++) {
        own_weight[token] = token < TOKENS / 2 ? 0.0f : 1.0f;
        spatial_weight[token] = 1.0f - own_weight[token];
    }
    prepare();

    struct {
        void *host;
        size_t bytes;
        void *device;
    } tensors[] = {
        {query, sizeof query, NULL},           {key, sizeof key, NULL},
        {prepared, sizeof prepared, NULL},     {out, sizeof out, NULL},
        {edited_row, sizeof edited_row, NULL}, {source_row, sizeof source_row, NULL},
        {spatial_map, sizeof spatial_map, NULL},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (example_cuda_to_device(&tensors[i].device, tensors[i].host, tensors[i].bytes) != 0) return 1;
    adapedit_edited_attention_args args = {
        .dtype = ADAPEDIT_KERNELS_FLOAT32,
        .batch = BATCH, .edits = 1, .heads = 1, .pixels = PIXELS, .tokens = TOKENS, .width = WIDTH,
        .query = tensors[0].device, .key = tensors[1].device, .prepared = tensors[2].device, .out = tensors[3].device,
        .query_strides = {PIXELS * WIDTH, WIDTH},
        .key_strides = {TOKENS * WIDTH, WIDTH},
        .out_strides = {PIXELS * WIDTH, WIDTH},
        .edited_row = tensors[4].device, .source_row = tensors[5].device, .spatial_map = tensors[6].device,
        .scale = 1.0f / sqrtf((float)WIDTH),
    };
    status = adapedit_kernels_edited_attention(handle, &args, NULL);
    if (status == ADAPEDIT_KERNELS_OK && example_cuda_to_host(out, args.out, sizeof out) != 0) return 1;
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) example_cuda_free(tensors[i].device);
    if (status != ADAPEDIT_KERNELS_OK) {
        fprintf(stderr, "%s: %s\n", adapedit_kernels_error_message(status), adapedit_kernels_last_error(handle));
        adapedit_kernels_destroy(handle);
        return 1;
    }
    double difference = largest_difference();
    printf("largest difference from plain C: %.2e\n", difference);
    adapedit_kernels_destroy(handle);
    return difference < 1e-5 ? 0 : 1;
}
