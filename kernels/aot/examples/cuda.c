#include "cuda.h"

#include <dlfcn.h>
#include <string.h>

typedef unsigned long long address_t;

static int (*allocate)(address_t *, size_t);
static int (*copy_in)(address_t, const void *, size_t);
static int (*copy_out)(void *, address_t, size_t);
static int (*release)(address_t);

static int find(void *library, const char *name, void *to)
{
    void *symbol = dlsym(library, name);
    memcpy(to, &symbol, sizeof symbol);
    return symbol == NULL;
}

int example_cuda_start(void)
{
    int (*init)(unsigned), (*retain)(void **, int), (*set_current)(void *);
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL;
    if (library == NULL) return -1;
    int missing = find(library, "cuInit", &init) | find(library, "cuDevicePrimaryCtxRetain", &retain) |
                  find(library, "cuCtxSetCurrent", &set_current) | find(library, "cuMemAlloc_v2", &allocate) |
                  find(library, "cuMemcpyHtoD_v2", &copy_in) | find(library, "cuMemcpyDtoH_v2", &copy_out) |
                  find(library, "cuMemFree_v2", &release);
    if (missing) return -1;
    int result = init(0);
    if (result == 0) result = retain(&context, 0);
    return result == 0 ? set_current(context) : result;
}

int example_cuda_to_device(void **device, const void *host, size_t bytes)
{
    address_t address = 0;
    int result = allocate(&address, bytes);
    *device = (void *)(size_t)address;
    return result == 0 ? copy_in(address, host, bytes) : result;
}

int example_cuda_to_host(void *host, const void *device, size_t bytes)
{
    return copy_out(host, (address_t)(size_t)device, bytes); /* waits for the default stream */
}

int example_cuda_free(void *device)
{
    return release((address_t)(size_t)device);
}
