/* Another project's program: prints what the library carries and what loading it says, and leaves with that status. */
#include <adapedit_kernels.h>

#include <stdio.h>

int main(void)
{
    adapedit_kernels *handle = NULL;
    const int *targets = NULL;
    size_t count = adapedit_kernels_targets(&targets);
    printf("version %s, %zu binaries, targets", adapedit_kernels_version(), adapedit_kernels_binary_count());
    for (size_t i = 0; i < count; i++) printf(" %d", targets[i]);
    printf("\n");
    if (adapedit_kernels_create(&handle) != ADAPEDIT_KERNELS_OK) return 100;
    adapedit_kernels_status status = adapedit_kernels_load(handle);
    printf("%s\n%s\n", adapedit_kernels_error_message(status), adapedit_kernels_last_error(handle));
    adapedit_kernels_destroy(handle);
    return status;
}
