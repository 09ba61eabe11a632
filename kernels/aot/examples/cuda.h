/* The little of the CUDA driver that the example needs, found at run time; a program would include <cuda.h>. */
#ifndef EXAMPLE_CUDA_H
#define EXAMPLE_CUDA_H

#include <stddef.h>

/* All return 0, or a driver's error; start makes the first device's primary context current. */
int example_cuda_start(void);
int example_cuda_to_device(void **device, const void *host, size_t bytes);
int example_cuda_to_host(void *host, const void *device, size_t bytes);
int example_cuda_free(void *device);

#endif
