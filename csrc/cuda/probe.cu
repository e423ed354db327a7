#include <cstdio>

#include "cuda/error.h"
#include "cuda/probe.h"

namespace vr::cuda {
namespace {

constexpr int kAnswer = 42;

__global__ void write_answer(int* answer) { *answer = kAnswer; }

// The answer is read back, because a launch that succeeds has only been queued.
cudaError_t run_kernel() {
  int* device_answer = nullptr;
  cudaError_t error = cudaMalloc(&device_answer, sizeof(int));
  if (error != cudaSuccess) return error;

  int answer = 0;
  write_answer<<<1, 1>>>(device_answer);
  error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaMemcpy(&answer, device_answer, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(device_answer);
  if (error == cudaSuccess && answer != kAnswer) return cudaErrorUnknown;
  return error;
}

}  // namespace

int probe(char* message, size_t size) {
  const cudaError_t error = run_kernel();
  if (error == cudaSuccess) {
    std::snprintf(message, size, "the device, %s, runs this build's kernels", device_architecture().c_str());
  } else {
    cudaGetLastError();  // forgets it, or the next launch that succeeds would be told of it
    std::snprintf(message, size, "%s", explanation(error).c_str());
  }
  return error;
}

}  // namespace vr::cuda
