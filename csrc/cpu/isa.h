// Which instruction set the kernels use: the best that this processor has, unless something lower is asked for.
#pragma once

#include <string>
#include <vector>

namespace vr::cpu {

// In rising order; each includes those before it.
enum class Isa { baseline, avx2, avx512, amx };

const char* name_of(Isa isa);
std::vector<Isa> available_isas();

Isa current_isa();

// Throws std::invalid_argument, in words, for a name that is unknown or that this processor does not have.
void set_isa(const std::string& name);

// Takes the instruction set from VR_KERNELS_CPU_ISA, where that is set; throws as set_isa does.
void set_isa_from_environment();

struct CpuFeature {
  const char* name;
  bool present;
};

std::vector<CpuFeature> cpu_features();

}  // namespace vr::cpu
