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

static float query[BATCH][PIXELS][WIDTH], key[BATCH][TOKENS][WIDTH], value[BATCH][TOKENS][WIDTH];
static float out[BATCH][PIXELS][WIDTH], map_sum[BATCH][PIXELS][TOKENS], wanted[PIXELS][WIDTH];
static int64_t source_row[BATCH] = {0, 0};
static float token_map[BATCH][TOKENS][TOKENS], own_weight[BATCH][TOKENS], spatial_weight[BATCH][TOKENS];
static float spatial_map[BATCH][PIXELS];

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
                double blended = source[token] + own_weight[1][token] * (own[token] - source[token]);
                sum += blended * value[1][token][d];
            }
            wanted[pixel][d] = (float)sum;
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
    fill(&value[0][0][0], sizeof value / sizeof(float));
    for (int row = 0; row < BATCH; row++)
        for (int token = 0; token < TOKENS; token++) {
            token_map[row][token][token] = 1.0f;
            own_weight[row][token] = token < TOKENS / 2 ? 0.0f : 1.0f;
        }

    struct {
        void *host;
        size_t bytes;
        void *device;
    } tensors[] = {
        {query, sizeof query, NULL},           {key, sizeof key, NULL},
        {value, sizeof value, NULL},           {out, sizeof out, NULL},
        {source_row, sizeof source_row, NULL}, {token_map, sizeof token_map, NULL},
        {own_weight, sizeof own_weight, NULL}, {spatial_weight, sizeof spatial_weight, NULL},
        {spatial_map, sizeof spatial_map, NULL}, {map_sum, sizeof map_sum, NULL},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (example_cuda_to_device(&tensors[i].device, tensors[i].host, tensors[i].bytes) != 0) return 1;
    adapedit_edited_attention_args args = {
        .dtype = ADAPEDIT_KERNELS_FLOAT32,
        .batch = BATCH, .heads = 1, .pixels = PIXELS, .tokens = TOKENS, .width = WIDTH,
        .query = tensors[0].device, .key = tensors[1].device, .value = tensors[2].device, .out = tensors[3].device,
        .query_strides = {PIXELS * WIDTH, PIXELS * WIDTH, WIDTH},
        .key_strides = {TOKENS * WIDTH, TOKENS * WIDTH, WIDTH},
        .value_strides = {TOKENS * WIDTH, TOKENS * WIDTH, WIDTH},
        .out_strides = {PIXELS * WIDTH, PIXELS * WIDTH, WIDTH},
        .source_row = tensors[4].device, .token_map = tensors[5].device, .own_weight = tensors[6].device,
        .spatial_weight = tensors[7].device, .spatial_map = tensors[8].device,
        .map_sum = tensors[9].device, .map_weight = 1.0f,
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
