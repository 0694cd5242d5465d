#include <cuda_runtime.h>

#include "cuda/append_kv.h"
#include "cuda/launch.h"

namespace specedge {
namespace {

__global__ void append_kv_kernel(AppendKv arguments) {
  append_kv_thread(arguments, blockIdx.x, threadIdx.x, blockDim.x);
}

}  // namespace

const char* launch_append_kv(const AppendKv& arguments, int64_t rows, void* stream) {
  if (rows > 0) {
    append_kv_kernel<<<static_cast<unsigned>(rows), kAppendThreads, 0,
                       static_cast<cudaStream_t>(stream)>>>(arguments);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace specedge
