"""The kernels compiled without a GPU, for the C library: which ones, how, and what they take of a device.

``python -m adapedit_kernels.aot --out FOLDER`` compiles, prints registers, spills and shared memory, and writes the
sources that CMake builds into ``libadapedit_kernels``. Nothing here is imported by the operations.
"""
