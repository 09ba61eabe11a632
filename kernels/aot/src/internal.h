/* What the library's own files share. */
#ifndef ADAPEDIT_KERNELS_INTERNAL_H
#define ADAPEDIT_KERNELS_INTERNAL_H

#include "adapedit_kernels.h"

/* Symbols of the generated table and of the blob stay inside the library. */
#pragma GCC visibility push(hidden)

struct adapedit_binary {
    const char *name;  /* variant */
    const char *entry; /* kernel's name in the binary */
    int target, pixels_from, block, num_warps, shared, registers, spilled;
    size_t cubin_offset, cubin_size, ptx_offset, ptx_size;
};

extern const unsigned char adapedit_kernels_blob[];
extern const struct adapedit_binary adapedit_kernels_table[];
extern const size_t adapedit_kernels_table_size;
extern const int adapedit_kernels_target_list[];
extern const size_t adapedit_kernels_target_total;

/* Every kernel ends in two pointers to memory that Triton may ask for; none here does. */
extern uint64_t adapedit_no_scratch;

typedef struct adapedit_grid {
    unsigned x, y, z;
} adapedit_grid;

#define ADAPEDIT_FAIL(handle, status, ...) adapedit_fail(handle, status, __VA_ARGS__)

adapedit_kernels_status adapedit_fail(adapedit_kernels *handle, adapedit_kernels_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void adapedit_clear(adapedit_kernels *handle);

/* The binary of a variant for the loaded target; loads the driver where that was not done. */
adapedit_kernels_status adapedit_find(adapedit_kernels *handle, const char *name, int pixels,
                                      const struct adapedit_binary **binary);
adapedit_kernels_status adapedit_launch(adapedit_kernels *handle, const struct adapedit_binary *binary,
                                        adapedit_grid grid, void **parameters, adapedit_kernels_stream stream);

const char *adapedit_dtype_name(adapedit_kernels_dtype dtype); /* NULL for a value that is none */
int adapedit_dtype_size(adapedit_kernels_dtype dtype);

/* Checks that write the handle's message; `operation` opens it. */
adapedit_kernels_status adapedit_check_dtype(adapedit_kernels *handle, const char *operation,
                                             adapedit_kernels_dtype dtype);
adapedit_kernels_status adapedit_check_pointer(adapedit_kernels *handle, const char *operation, const char *name,
                                               const void *pointer, unsigned alignment);
adapedit_kernels_status adapedit_check_size(adapedit_kernels *handle, const char *operation, const char *name,
                                            int64_t value, int64_t most);
adapedit_kernels_status adapedit_check_stride(adapedit_kernels *handle, const char *operation, const char *name,
                                              int axis, int64_t stride, int64_t size, int unit);

#define ADAPEDIT_TRY(call)                                \
    do {                                                  \
        adapedit_kernels_status tried = (call);           \
        if (tried != ADAPEDIT_KERNELS_OK) return tried;   \
    } while (0)

#pragma GCC visibility pop
#endif
