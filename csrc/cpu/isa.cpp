#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vr::cpu {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx};

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;

  Leaf(unsigned number, unsigned part) {
    if (!__get_cpuid_count(number, part, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

constexpr bool bit(unsigned word, int position) { return (word >> position) & 1u; }

// What the compiler may emit under -march=x86-64-v3 and -v4. __builtin_cpu_supports also asks whether the system saves
// the registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && bit(Leaf(1, 0).ecx, 29) /* f16c */ && bit(Leaf(1, 0).ecx, 22) /* movbe */ &&
         bit(Leaf(0x80000001u, 0).ecx, 5) /* lzcnt */;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && bit(Leaf(7, 1).eax, 5); }

bool has_amx_bf16() { return bit(Leaf(7, 0).edx, 22) && bit(Leaf(7, 0).edx, 24) /* amx-tile */; }

// Linux keeps the tile registers from a process until it asks for them.
bool request_tile_registers() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  if (!has_avx2()) return Isa::baseline;
  if (!has_avx512()) return Isa::avx2;
  return has_avx512_bf16() && has_amx_bf16() && request_tile_registers() ? Isa::amx : Isa::avx512;
}

#else

Isa detect() { return Isa::baseline; }

#endif

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> chosen{best_isa()};
  return chosen;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> available;
  for (Isa isa : kAll) {
    if (isa <= best_isa()) available.push_back(isa);
  }
  return available;
}

Isa current_isa() { return chosen_isa(); }

void set_isa(const std::string& name) {
  std::string known, available;
  for (Isa isa : kAll) {
    known += (known.empty() ? "" : ", ") + std::string(name_of(isa));
    if (isa <= best_isa()) available = known;
  }
  for (Isa isa : kAll) {
    if (name != name_of(isa)) continue;
    if (isa > best_isa()) {
      throw std::invalid_argument("instruction set '" + name + "' is not available on this processor, which has " +
                                  available);
    }
    chosen_isa() = isa;
    return;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; it may be " + known);
}

void set_isa_from_environment() {
  const char* name = std::getenv("VR_KERNELS_CPU_ISA");
  if (name == nullptr || *name == '\0') return;
  try {
    set_isa(name);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("VR_KERNELS_CPU_ISA: ") + error.what());
  }
}

std::vector<CpuFeature> cpu_features() {
#if defined(__x86_64__)
  return {
      {"avx2", has_avx2()}, {"avx512", has_avx512()}, {"avx512_bf16", has_avx512_bf16()}, {"amx_bf16", has_amx_bf16()}};
#else
  return {};
#endif
}

}  // namespace vr::cpu
