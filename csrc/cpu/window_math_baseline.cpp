// Compiled for the compiler's default instruction set: 16 registers of 4 floats on x86 hold the tiles and their
// operands.
#include "window_math.h"

#if defined(__F16C__)  // the whole library is being compiled for a newer processor
#include <immintrin.h>
#endif

namespace vr::cpu {
namespace {

constexpr int kLanes = 4;
constexpr int kDotHeads = 3, kDotSlots = 3, kMixHeads = 4;

#include "window_math.inl"

}  // namespace

const WindowMath kBaselineMath = {load, store, normalize, add, dot_rows, mix_rows};

}  // namespace vr::cpu
