#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace vr::cuda {

// The compute capability of the current device, in nvcc's words: sm_90.
std::string device_architecture();

// A sentence for people, and CUDA's own name and number of the error.
std::string explanation(cudaError_t error);

// Throws std::runtime_error with the explanation of anything but success.
void check(cudaError_t error);

}  // namespace vr::cuda
