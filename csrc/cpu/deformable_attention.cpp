#include "deformable_attention.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "parallel.h"
#include "sample_math.h"
#include "scratch.h"

namespace vr::cpu {
namespace {

const SampleMath& sample_math() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kAvx512SampleMath;
  if (current_isa() == Isa::avx2) return kAvx2SampleMath;
#endif
  return kBaselineSampleMath;
}

void require(bool condition, const char* words) {
  if (!condition) throw std::invalid_argument(std::string("DeformableAttention: ") + words);
}

// What a caller may pass is checked in Python; this keeps a mistake there from becoming a wild read.
void validate(const DeformableAttention& problem) {
  require(problem.batch >= 0 && problem.queries >= 0 && problem.heads >= 0, "a size is negative");
  require(problem.channels > 0 && problem.points >= 0, "channels must be positive, points not negative");
  require(problem.threads > 0, "threads must be positive");
  const bool samples = problem.batch * problem.queries * problem.heads * problem.points > 0;
  require(!samples || (problem.locations != nullptr && problem.weights != nullptr),
          "there are no locations or weights");
  for (const SampledLevel& level : problem.levels) {
    require(level.height >= 0 && level.width >= 0, "a level has a negative size");
    require(!samples || level.value != nullptr || level.height * level.width == 0, "a level has no data");
  }
}

// One sampling point. Corners are top left, top right, bottom left, bottom right; corner k is feature (row, column).
struct Sample {
  float right, below;  // how far the point stands to the right of and below the top left corner, 0 to 1
  int64_t row, column;
  bool inside[4];

  // A level's edges stand half a feature outside its outermost features (align_corners=False). In double, lest a point
  // beside a feature change cells by rounding. A place that is no number is outside.
  Sample(const SampledLevel& level, const float* location) {
    const double x = static_cast<double>(location[0]) * static_cast<double>(level.width) - 0.5;
    const double y = static_cast<double>(location[1]) * static_cast<double>(level.height) - 0.5;
    const bool near =
        x > -1.0 && y > -1.0 && x < static_cast<double>(level.width) && y < static_cast<double>(level.height);
    const double left = near ? std::floor(x) : -2.0, top = near ? std::floor(y) : -2.0;
    right = near ? static_cast<float>(x - left) : 0.0f;
    below = near ? static_cast<float>(y - top) : 0.0f;
    column = static_cast<int64_t>(left);
    row = static_cast<int64_t>(top);
    for (int k = 0; k < 4; ++k) inside[k] = holds(level, row + k / 2, column + k % 2);
  }

  float share(int k) const { return (k / 2 ? below : 1.0f - below) * (k % 2 ? right : 1.0f - right); }

 private:
  static bool holds(const SampledLevel& level, int64_t y, int64_t x) {
    return y >= 0 && y < level.height && x >= 0 && x < level.width;
  }
};

// One head of one query of one image.
struct Head {
  int64_t image, query, head;

  int64_t number(const DeformableAttention& problem) const {
    return (image * problem.queries + query) * problem.heads + head;
  }
};

// The corners that a head reads, of all its samples one after another: those that lie inside their level.
struct Corners {
  const DeformableAttention& problem;
  const int64_t samples;          // of one head
  const int64_t capacity;         // corners
  int64_t count = 0, wanted = 0;  // wanted: those of levels whose gradient is asked for
  const void** values;
  float* weights;
  float** gradients;
  float* gradient_weights;

  Corners(const DeformableAttention& of, Scratch& scratch)
      : problem(of),
        samples(static_cast<int64_t>(of.levels.size()) * of.points),
        capacity(4 * samples),
        values(scratch.take<const void*>(capacity)),
        weights(scratch.take<float>(capacity)),
        gradients(scratch.take<float*>(capacity)),
        gradient_weights(scratch.take<float>(capacity)) {}

  void find(const Head& at) {
    count = wanted = 0;
    const int64_t first = at.number(problem) * samples;
    for (int64_t i = 0; i < samples; ++i) {
      const SampledLevel& level = problem.levels[i / problem.points];
      add(level, Sample(level, problem.locations + 2 * (first + i)), at, problem.weights[first + i]);
    }
  }

  void add(const SampledLevel& level, const Sample& sample, const Head& at, float weight) {
    for (int k = 0; k < 4; ++k) {
      if (!sample.inside[k]) continue;
      const int64_t y = sample.row + k / 2, x = sample.column + k % 2;
      const int64_t offset =
          at.image * level.stride_batch + y * level.stride_row + x * level.stride_column + at.head * level.stride_head;
      values[count] = static_cast<const char*>(level.value) + offset * size_of(problem.dtype);
      weights[count++] = weight * sample.share(k);
      if (level.gradient == nullptr) continue;
      const int64_t feature = (at.image * level.height + y) * level.width + x;
      gradients[wanted] = level.gradient + (feature * problem.heads + at.head) * problem.channels;
      gradient_weights[wanted++] = weights[count - 1];
    }
  }

  // grad_locations and grad_weights, from each corner's product with the output's gradient. Either may be null.
  void differentiate(const Head& at, const float* products, float* grad_locations, float* grad_weights) const {
    const int64_t first = at.number(problem) * samples;
    for (int64_t i = first; i < first + samples; ++i) {
      const SampledLevel& level = problem.levels[(i - first) / problem.points];
      const Sample sample(level, problem.locations + 2 * i);
      float product[4], value = 0.0f;
      for (int k = 0; k < 4; ++k) {
        product[k] = sample.inside[k] ? *products++ : 0.0f;
        value += sample.share(k) * product[k];
      }
      if (grad_weights != nullptr) grad_weights[i] = value;
      if (grad_locations == nullptr) continue;
      const float slope_x =
          (1.0f - sample.below) * (product[1] - product[0]) + sample.below * (product[3] - product[2]);
      const float slope_y =
          (1.0f - sample.right) * (product[2] - product[0]) + sample.right * (product[3] - product[1]);
      grad_locations[2 * i] = problem.weights[i] * static_cast<float>(level.width) * slope_x;
      grad_locations[2 * i + 1] = problem.weights[i] * static_cast<float>(level.height) * slope_y;
    }
  }
};

int threads_for(const DeformableAttention& problem, int64_t tasks) {
  return static_cast<int>(std::min<int64_t>(problem.threads, tasks));
}

}  // namespace

void deformable_attention_forward(const DeformableAttention& problem, void* out) {
  validate(problem);
  const int64_t queries = problem.batch * problem.queries, channels = problem.channels;
  if (queries * problem.heads == 0) return;
  const SampleMath& math = sample_math();
  parallel(threads_for(problem, queries), [&](int thread, int threads) {
    Scratch scratch;
    Corners corners(problem, scratch);
    float* mixed = scratch.take<float>(channels);
    for (int64_t i = queries * thread / threads; i < queries * (thread + 1) / threads; ++i) {
      for (int64_t h = 0; h < problem.heads; ++h) {
        const Head at{i / problem.queries, i % problem.queries, h};
        corners.find(at);
        math.mix(problem.dtype, corners.values, corners.weights, corners.count, channels, mixed);
        char* target = static_cast<char*>(out) + at.number(problem) * channels * size_of(problem.dtype);
        math.store(problem.dtype, mixed, channels, target);
      }
    }
  });
}

void deformable_attention_backward(const DeformableAttention& problem, const void* grad_out, float* grad_locations,
                                   float* grad_weights) {
  validate(problem);
  const int64_t owned = problem.batch * problem.heads, channels = problem.channels;
  if (owned * problem.queries == 0) return;
  const bool wants_places = grad_locations != nullptr || grad_weights != nullptr;
  const SampleMath& math = sample_math();
  parallel(threads_for(problem, owned), [&](int thread, int threads) {
    Scratch scratch;
    Corners corners(problem, scratch);
    float* products = scratch.take<float>(corners.capacity);
    float* gradient = scratch.take<float>(channels);
    for (int64_t i = owned * thread / threads; i < owned * (thread + 1) / threads; ++i) {
      for (int64_t q = 0; q < problem.queries; ++q) {
        const Head at{i / problem.heads, q, i % problem.heads};
        corners.find(at);
        const char* source = static_cast<const char*>(grad_out);
        math.load(problem.dtype, source + at.number(problem) * channels * size_of(problem.dtype), 1, channels,
                  gradient);
        if (wants_places) {
          math.dot(problem.dtype, corners.values, gradient, corners.count, channels, products);
          corners.differentiate(at, products, grad_locations, grad_weights);
        }
        math.spread(corners.gradients, corners.gradient_weights, gradient, corners.wanted, channels);
      }
    }
  });
}

}  // namespace vr::cpu
