/* The functions of the CUDA driver that are used, found at run time; declared here so that no toolkit is needed. */
#ifndef ADAPEDIT_KERNELS_DRIVER_H
#define ADAPEDIT_KERNELS_DRIVER_H

#include "internal.h"

typedef int cu_result; /* 0 is success */
typedef struct CUctx_st *cu_context;
typedef struct CUmod_st *cu_module;
typedef struct CUfunc_st *cu_function;

enum {
    CU_ATTRIBUTE_MAJOR = 75,
    CU_ATTRIBUTE_MINOR = 76,
    CU_FUNC_MAX_DYNAMIC_SHARED = 8,
};

struct adapedit_driver {
    void *library;
    cu_result (*init)(unsigned);
    cu_result (*context)(cu_context *);
    cu_result (*device)(int *);
    cu_result (*attribute)(int *, int, int);
    cu_result (*load)(cu_module *, const void *);
    cu_result (*unload)(cu_module);
    cu_result (*function)(cu_function *, cu_module, const char *);
    cu_result (*set_function)(cu_function, int, int);
    cu_result (*launch)(cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        adapedit_kernels_stream, void **, void **);
    cu_result (*error_string)(cu_result, const char **);
};

#pragma GCC visibility push(hidden)
/* NO_DRIVER with a message where the library or one of its functions is missing. */
adapedit_kernels_status adapedit_open_driver(adapedit_kernels *handle, struct adapedit_driver *driver);
adapedit_kernels_status adapedit_driver_result(adapedit_kernels *handle, const struct adapedit_driver *driver,
                                               const char *what, cu_result result);
#pragma GCC visibility pop
#endif
