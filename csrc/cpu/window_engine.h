// The two products that windowed attention is made of, for the windows that one thread takes one after another.
#pragma once

#include <memory>

#include "scratch.h"
#include "stage.h"
#include "staged_rows.h"

namespace vr::cpu {

// Scores and weights of a window are (heads, padded slots) float32; weights are zero in the padding.
constexpr int64_t kSlotUnit = 32;

inline int64_t padded_slots(const LocalAttention& problem) { return round_up(problem.slots, kSlotUnit); }

// The rows, in the query's dtype, of those heads that share the kv head at hand; the stride counts elements.
struct HeadRows {
  void* data;
  int64_t stride;
};

class WindowEngine {
 public:
  virtual ~WindowEngine() = default;

  // Turns to the feature rows of another window or kv head; they are read when a product first needs them.
  virtual void open(const int64_t* rows, int64_t kv_head) = 0;

  // scores[g][k] = queries[g] . features[k]
  virtual void dot(Operand operand, HeadRows queries, float* scores) = 0;

  // out[g] = sum_k weights[g][k] features[k]. `upcoming` are the rows that the next dot() reads: they come from memory
  // while the processor computes.
  virtual void mix(Operand operand, const float* weights, HeadRows out, HeadRows upcoming) = 0;
};

// The arithmetic of the current instruction set in float32.
const WindowMath& window_math();

// The fastest engine that the current instruction set has for the problem's dtypes.
std::unique_ptr<WindowEngine> make_window_engine(const LocalAttention& problem, Scratch& scratch);

}  // namespace vr::cpu
