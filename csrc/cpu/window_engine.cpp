#include "window_engine.h"

#include "isa.h"
#include "tile_engine.h"
#include "vector_engine.h"

namespace vr::cpu {

const WindowMath& window_math() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kAvx512Math;
  if (current_isa() == Isa::avx2) return kAvx2Math;
#endif
  return kBaselineMath;
}

std::unique_ptr<WindowEngine> make_window_engine(const LocalAttention& problem, Scratch& scratch) {
#if defined(__x86_64__)
  if (current_isa() == Isa::amx && TileEngine::serves(problem)) {
    return std::make_unique<TileEngine>(problem, window_math(), scratch);
  }
#endif
  return std::make_unique<VectorEngine>(problem, window_math(), scratch);
}

}  // namespace vr::cpu
