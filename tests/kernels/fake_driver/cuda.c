/*
 * Stands in for libcuda.so.1 where there is no GPU: says it is the device of FAKE_CAPABILITY and prints, for each
 * launch, the kernel, the kind of binary and the grid. Memory is the host's; kernels do nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const unsigned char *image;
static char entry[64];

static int capability(void)
{
    const char *text = getenv("FAKE_CAPABILITY");
    return text == NULL ? 90 : atoi(text);
}

static int failing(const char *name)
{
    const char *text = getenv("FAKE_FAILURE");
    return text != NULL && strcmp(text, name) == 0 ? 218 : 0;
}

int cuInit(unsigned flags) { return flags == 0 ? failing("cuInit") : 1; }
int cuCtxGetCurrent(void **context) { return *context = getenv("FAKE_NO_CONTEXT") == NULL ? &image : NULL, 0; }
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &image, device; }
int cuCtxSetCurrent(void *context) { return context == NULL; }
int cuMemAlloc_v2(unsigned long long *address, size_t bytes)
{
    *address = (unsigned long long)(size_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    return 0;
}
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t bytes)
{
    return memcpy((void *)(size_t)to, from, bytes) == NULL;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t bytes)
{
    return memcpy(to, (const void *)(size_t)from, bytes) == NULL;
}
int cuMemFree_v2(unsigned long long address) { return free((void *)(size_t)address), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? capability() / 10 : capability() % 10;
    return device;
}
int cuModuleLoadData(void **module, const void *data)
{
    image = data;
    *module = &image;
    return failing("cuModuleLoadData");
}
int cuModuleUnload(void *module) { return module == NULL; }
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    snprintf(entry, sizeof entry, "%s", name);
    *function = module;
    return failing("cuModuleGetFunction");
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return function == NULL || attribute != 8 || value < 0; }
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **parameters, void **extra)
{
    const char *kind = memcmp(image, "\177ELF", 4) == 0 ? "cubin" : "ptx";
    const char *target = memcmp(image, "\177ELF", 4) == 0 ? "" : strstr((const char *)image, ".target ") + 8;
    printf("launch %s %s%.*s grid %u %u %u threads %u shared %u first %llx\n", entry, kind, *target ? 5 : 0, target, x, y,
           z, threads * ty * tz, shared, *(unsigned long long *)parameters[0]);
    return function == NULL || extra != NULL || stream == (void *)1;
}
int cuGetErrorString(int error, const char **text) { return *text = error ? "made up" : "no error", 0; }
