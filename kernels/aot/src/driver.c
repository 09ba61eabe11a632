#include "driver.h"

#include <dlfcn.h>
#include <string.h>

static int find(void *library, const char *name, void *to)
{
    void *symbol = dlsym(library, name);
    memcpy(to, &symbol, sizeof symbol); /* C has no cast from an object pointer to a function pointer */
    return symbol != NULL;
}

adapedit_kernels_status adapedit_open_driver(adapedit_kernels *handle, struct adapedit_driver *driver)
{
    struct adapedit_driver found = {0};
    found.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (found.library == NULL) {
        const char *reason = dlerror();
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_NO_DRIVER,
                             "load: no CUDA driver (%s); install NVIDIA's driver, or start the container with its GPUs",
                             reason != NULL ? reason : "libcuda.so.1 does not open");
    }
    const struct {
        const char *name;
        void *to;
    } wanted[] = {
        {"cuInit", &found.init},
        {"cuCtxGetCurrent", &found.context},
        {"cuCtxGetDevice", &found.device},
        {"cuDeviceGetAttribute", &found.attribute},
        {"cuModuleLoadData", &found.load},
        {"cuModuleUnload", &found.unload},
        {"cuModuleGetFunction", &found.function},
        {"cuFuncSetAttribute", &found.set_function},
        {"cuLaunchKernel", &found.launch},
        {"cuGetErrorString", &found.error_string},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (!find(found.library, wanted[i].name, wanted[i].to)) {
            dlclose(found.library);
            return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_NO_DRIVER,
                                 "load: libcuda.so.1 has no %s; it is older than CUDA 9, update the driver",
                                 wanted[i].name);
        }
    }
    cu_result result = found.init(0);
    if (result != 0) {
        adapedit_kernels_status status = adapedit_driver_result(handle, &found, "load: cuInit", result);
        dlclose(found.library);
        return status;
    }
    *driver = found;
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_driver_result(adapedit_kernels *handle, const struct adapedit_driver *driver,
                                               const char *what, cu_result result)
{
    if (result == 0) return ADAPEDIT_KERNELS_OK;
    const char *text = NULL;
    if (driver->error_string(result, &text) != 0 || text == NULL) text = "unknown error";
    return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_DRIVER_ERROR, "%s: the driver says %d, %s", what, result, text);
}
