#include <adapedit_kernels.h>

int main()
{
    adapedit_kernels *handle = nullptr;
    adapedit_kernels_status status = adapedit_kernels_create(&handle);
    adapedit_kernels_destroy(handle);
    return status;
}
