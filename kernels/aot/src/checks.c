#include "internal.h"

#include <inttypes.h>

const char *adapedit_dtype_name(adapedit_kernels_dtype dtype)
{
    switch (dtype) {
    case ADAPEDIT_KERNELS_FLOAT16: return "float16";
    case ADAPEDIT_KERNELS_BFLOAT16: return "bfloat16";
    case ADAPEDIT_KERNELS_FLOAT32: return "float32";
    }
    return NULL;
}

int adapedit_dtype_size(adapedit_kernels_dtype dtype)
{
    return dtype == ADAPEDIT_KERNELS_FLOAT32 ? 4 : 2;
}

adapedit_kernels_status adapedit_check_dtype(adapedit_kernels *handle, const char *operation,
                                             adapedit_kernels_dtype dtype)
{
    if (adapedit_dtype_name(dtype) != NULL) return ADAPEDIT_KERNELS_OK;
    return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_DTYPE,
                         "%s: dtype is %d, wanted 1 (float16), 2 (bfloat16) or 3 (float32)", operation, (int)dtype);
}

adapedit_kernels_status adapedit_check_pointer(adapedit_kernels *handle, const char *operation, const char *name,
                                               const void *pointer, unsigned alignment)
{
    if (pointer == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT, "%s: %s is null, wanted device memory",
                             operation, name);
    if ((uintptr_t)pointer % alignment != 0)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_STRIDE,
                             "%s: %s starts at %p, wanted a multiple of %u bytes; copy it to an address that is one",
                             operation, name, pointer, alignment);
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_check_size(adapedit_kernels *handle, const char *operation, const char *name,
                                            int64_t value, int64_t most)
{
    if (value >= 1 && value <= most) return ADAPEDIT_KERNELS_OK;
    return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                         "%s: %s is %" PRId64 ", wanted 1 to %" PRId64, operation, name, value, most);
}

adapedit_kernels_status adapedit_check_stride(adapedit_kernels *handle, const char *operation, const char *name,
                                              int axis, int64_t stride, int64_t size, int unit)
{
    if (stride < 0 || stride % unit != 0)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_STRIDE,
                             "%s: stride %d of %s is %" PRId64 ", wanted a multiple of %d, 0 or more", operation, axis,
                             name, stride, unit);
    /* Offsets within a row are 32 bit wide in the kernels. */
    if (stride > INT32_MAX / size)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_STRIDE,
                             "%s: stride %d of %s is %" PRId64 " for %" PRId64 " steps, wanted less than 2^31 in all; "
                             "split the call",
                             operation, axis, name, stride, size);
    return ADAPEDIT_KERNELS_OK;
}
