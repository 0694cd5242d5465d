#include <cuda_runtime.h>

#include "cuda/launch.h"
#include "cuda/rope_append_kv.h"

namespace specedge {
namespace {

__global__ void rope_append_kv_kernel(RopeAppendKv arguments) {
  const int64_t head = blockIdx.y * kHeadsPerBlock + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (head >= arguments.heads()) return;
  float squares = square_sum_lane(arguments, blockIdx.x, head, lane);
  for (int other = kWarp / 2; other > 0; other /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, other);
  }
  rope_append_lane(arguments, blockIdx.x, head, lane, squares);
}

}  // namespace

const char* launch_rope_append_kv(const RopeAppendKv& arguments, int64_t rows, void* stream) {
  if (rows > 0) {
    const int64_t groups = (arguments.heads() + kHeadsPerBlock - 1) / kHeadsPerBlock;
    const dim3 blocks(static_cast<unsigned>(rows), static_cast<unsigned>(groups));
    rope_append_kv_kernel<<<blocks, kWarp * kHeadsPerBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        arguments);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace specedge
