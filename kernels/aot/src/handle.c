#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(x) #x
#define DOTTED(a, b) TEXT(a) "." TEXT(b) ".0"

struct loaded {
    cu_module module;
    cu_function function;
};

struct adapedit_kernels {
    struct adapedit_driver driver;
    cu_context context;
    int target;
    int from_ptx;
    struct loaded *loaded; /* one for each line of the table, empty until a launch needs it */
    char message[512];
};

uint64_t adapedit_no_scratch = 0;

const char *adapedit_kernels_version(void)
{
    return DOTTED(ADAPEDIT_KERNELS_VERSION_MAJOR, ADAPEDIT_KERNELS_VERSION_MINOR);
}

size_t adapedit_kernels_targets(const int **targets)
{
    if (targets != NULL) *targets = adapedit_kernels_target_list;
    return adapedit_kernels_target_total;
}

size_t adapedit_kernels_binary_count(void)
{
    return adapedit_kernels_table_size;
}

adapedit_kernels_status adapedit_kernels_describe_binary(size_t index, adapedit_kernels_binary_info *info)
{
    if (info == NULL || index >= adapedit_kernels_table_size) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    const struct adapedit_binary *binary = &adapedit_kernels_table[index];
    *info = (adapedit_kernels_binary_info){
        .name = binary->name,
        .target = binary->target,
        .pixels_from = binary->pixels_from,
        .num_warps = binary->num_warps,
        .registers = binary->registers,
        .spilled = binary->spilled,
        .shared = binary->shared,
        .cubin_size = binary->cubin_size,
        .ptx_size = binary->ptx_size,
    };
    return ADAPEDIT_KERNELS_OK;
}

const char *adapedit_kernels_error_message(adapedit_kernels_status status)
{
    switch (status) {
    case ADAPEDIT_KERNELS_OK: return "no error";
    case ADAPEDIT_KERNELS_INVALID_ARGUMENT: return "an argument is null, out of range or excludes another";
    case ADAPEDIT_KERNELS_UNSUPPORTED_DTYPE: return "no kernel takes this dtype";
    case ADAPEDIT_KERNELS_UNSUPPORTED_SHAPE: return "no kernel takes this shape";
    case ADAPEDIT_KERNELS_UNSUPPORTED_STRIDE: return "no kernel takes this stride or address";
    case ADAPEDIT_KERNELS_NO_DRIVER: return "no CUDA driver was found";
    case ADAPEDIT_KERNELS_NO_CONTEXT: return "the handle's CUDA context is not current";
    case ADAPEDIT_KERNELS_UNSUPPORTED_DEVICE: return "this build has nothing for the device";
    case ADAPEDIT_KERNELS_NO_BINARY: return "this build leaves the kernel out";
    case ADAPEDIT_KERNELS_DRIVER_ERROR: return "the CUDA driver refused a call";
    case ADAPEDIT_KERNELS_OUT_OF_MEMORY: return "out of host memory";
    }
    return "unknown status";
}

adapedit_kernels_status adapedit_kernels_create(adapedit_kernels **handle)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    *handle = NULL;
    adapedit_kernels *made = calloc(1, sizeof *made);
    if (made == NULL) return ADAPEDIT_KERNELS_OUT_OF_MEMORY;
    made->loaded = calloc(adapedit_kernels_table_size, sizeof *made->loaded);
    if (made->loaded == NULL) {
        free(made);
        return ADAPEDIT_KERNELS_OUT_OF_MEMORY;
    }
    *handle = made;
    return ADAPEDIT_KERNELS_OK;
}

void adapedit_kernels_destroy(adapedit_kernels *handle)
{
    if (handle == NULL) return;
    for (size_t i = 0; i < adapedit_kernels_table_size; i++)
        if (handle->loaded[i].module != NULL) handle->driver.unload(handle->loaded[i].module);
    /* The driver itself stays open: others in the process use it, and it does not like to be closed. */
    free(handle->loaded);
    free(handle);
}

const char *adapedit_kernels_last_error(const adapedit_kernels *handle)
{
    return handle == NULL ? "no handle was given" : handle->message;
}

adapedit_kernels_status adapedit_fail(adapedit_kernels *handle, adapedit_kernels_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(handle->message, sizeof handle->message, format, arguments);
    va_end(arguments);
    return status;
}

void adapedit_clear(adapedit_kernels *handle)
{
    handle->message[0] = '\0';
}

/* The device's own target where the build has it, else the nearest lower one with PTX for the driver to compile. */
static adapedit_kernels_status choose_target(adapedit_kernels *handle, int capability)
{
    int best = 0, from_ptx = 0;
    for (size_t i = 0; i < adapedit_kernels_table_size; i++) {
        const struct adapedit_binary *binary = &adapedit_kernels_table[i];
        if (binary->target == capability) {
            best = capability;
            from_ptx = 0;
            break;
        }
        if (binary->ptx_size > 0 && binary->target < capability && binary->target > best) {
            best = binary->target;
            from_ptx = 1;
        }
    }
    if (best == 0)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_UNSUPPORTED_DEVICE,
                             "load: the device has compute capability %d.%d and this build has nothing for it or below; "
                             "build the library with that target",
                             capability / 10, capability % 10);
    handle->target = best;
    handle->from_ptx = from_ptx;
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_kernels_load(adapedit_kernels *handle)
{
    if (handle == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    adapedit_clear(handle);
    struct adapedit_driver *driver = &handle->driver;
    if (driver->library == NULL) ADAPEDIT_TRY(adapedit_open_driver(handle, driver));
    cu_context current = NULL;
    ADAPEDIT_TRY(adapedit_driver_result(handle, driver, "load: cuCtxGetCurrent", driver->context(&current)));
    if (current == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_NO_CONTEXT,
                             "load: no CUDA context is current; call cuCtxSetCurrent, or cudaFree(0) of the runtime");
    if (handle->target != 0) {
        if (current == handle->context) return ADAPEDIT_KERNELS_OK;
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_NO_CONTEXT,
                             "the handle was loaded in another context than the current one; make a handle a context");
    }
    int device = 0, major = 0, minor = 0;
    ADAPEDIT_TRY(adapedit_driver_result(handle, driver, "load: cuCtxGetDevice", driver->device(&device)));
    ADAPEDIT_TRY(adapedit_driver_result(handle, driver, "load: cuDeviceGetAttribute",
                                        driver->attribute(&major, CU_ATTRIBUTE_MAJOR, device)));
    ADAPEDIT_TRY(adapedit_driver_result(handle, driver, "load: cuDeviceGetAttribute",
                                        driver->attribute(&minor, CU_ATTRIBUTE_MINOR, device)));
    ADAPEDIT_TRY(choose_target(handle, major * 10 + minor));
    handle->context = current;
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_kernels_loaded_target(adapedit_kernels *handle, int *target, int *from_ptx)
{
    if (handle == NULL || target == NULL || from_ptx == NULL) return ADAPEDIT_KERNELS_INVALID_ARGUMENT;
    if (handle->target == 0)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_INVALID_ARGUMENT,
                             "loaded_target: the handle is not loaded; call adapedit_kernels_load");
    *target = handle->target;
    *from_ptx = handle->from_ptx;
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_find(adapedit_kernels *handle, const char *name, int pixels,
                                      const struct adapedit_binary **binary)
{
    ADAPEDIT_TRY(adapedit_kernels_load(handle)); /* also sees that the context is the handle's */
    const struct adapedit_binary *best = NULL;
    for (size_t i = 0; i < adapedit_kernels_table_size; i++) {
        const struct adapedit_binary *candidate = &adapedit_kernels_table[i];
        if (candidate->target != handle->target || strcmp(candidate->name, name) != 0) continue;
        int fits = candidate->pixels_from <= pixels, best_fits = best != NULL && best->pixels_from <= pixels;
        /* The largest tile meant for so many pixels; any tile is right, so a build with one takes that. */
        if (best == NULL || (fits && (!best_fits || candidate->pixels_from > best->pixels_from))) best = candidate;
    }
    if (best == NULL)
        return ADAPEDIT_FAIL(handle, ADAPEDIT_KERNELS_NO_BINARY,
                             "this build has no kernel %s for sm_%d; build the library with the set \"all\"", name,
                             handle->target);
    *binary = best;
    return ADAPEDIT_KERNELS_OK;
}

static adapedit_kernels_status load_binary(adapedit_kernels *handle, const struct adapedit_binary *binary,
                                           struct loaded *loaded)
{
    const struct adapedit_driver *driver = &handle->driver;
    size_t offset = handle->from_ptx ? binary->ptx_offset : binary->cubin_offset;
    cu_module module = NULL;
    cu_function function = NULL;
    ADAPEDIT_TRY(
        adapedit_driver_result(handle, driver, binary->name, driver->load(&module, adapedit_kernels_blob + offset)));
    cu_result result = driver->function(&function, module, binary->entry);
    if (result == 0 && binary->shared > 48 * 1024) /* more has to be asked for */
        result = driver->set_function(function, CU_FUNC_MAX_DYNAMIC_SHARED, binary->shared);
    if (result != 0) {
        driver->unload(module);
        return adapedit_driver_result(handle, driver, binary->name, result);
    }
    loaded->module = module;
    loaded->function = function;
    return ADAPEDIT_KERNELS_OK;
}

adapedit_kernels_status adapedit_launch(adapedit_kernels *handle, const struct adapedit_binary *binary,
                                        adapedit_grid grid, void **parameters, adapedit_kernels_stream stream)
{
    struct loaded *loaded = &handle->loaded[binary - adapedit_kernels_table];
    if (loaded->function == NULL) ADAPEDIT_TRY(load_binary(handle, binary, loaded));
    cu_result result = handle->driver.launch(loaded->function, grid.x, grid.y, grid.z, 32u * (unsigned)binary->num_warps,
                                             1, 1, (unsigned)binary->shared, stream, parameters, NULL);
    return adapedit_driver_result(handle, &handle->driver, binary->name, result);
}
