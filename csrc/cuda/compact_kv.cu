#include <cuda_runtime.h>

#include "cuda/compact_kv.h"
#include "cuda/launch.h"

namespace specedge {
namespace {

__global__ void compact_kv_kernel(CompactKv arguments) {
  compact_kv_thread(arguments, blockIdx.x, blockIdx.y, threadIdx.x, blockDim.x);
}

}  // namespace

const char* launch_compact_kv(const CompactKv& arguments, int64_t planes, int64_t batch,
                              void* stream) {
  if (planes > 0 && batch > 0) {
    const dim3 blocks(static_cast<unsigned>(planes), static_cast<unsigned>(batch));
    compact_kv_kernel<<<blocks, kCompactThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace specedge
