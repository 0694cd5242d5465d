// Marks functions that CUDA kernels and the tests on a CPU compile from the same source.
#pragma once

#if defined(__CUDACC__)
#define SPECEDGE_HOST_DEVICE __host__ __device__
#else
#define SPECEDGE_HOST_DEVICE
#endif
