// The one source of every ImportanceMath table. A file includes it inside an unnamed namespace, after choosing kLanes,
// the floats in a register. No template or inline function of std may be used here: the linker keeps one instance of it
// for the whole library, and could keep the one with AVX-512 instructions.

#include "lanes.inl"

typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

constexpr float kInfinity = __builtin_inff();

// The elements that one register takes: all of it, or the last few of a row.
struct Whole {
  Vector load(const float* source, float) const { return load_vector(source); }
  void store(float* target, Vector vector) const { store_vector(target, vector); }
};

struct Part {
  int64_t count;

  Vector load(const float* source, float rest) const {
    float elements[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) elements[i] = i < count ? source[i] : rest;
    return load_vector(elements);
  }
  void store(float* target, Vector vector) const {
    float elements[kLanes];
    store_vector(elements, vector);
    for (int64_t i = 0; i < count; ++i) target[i] = elements[i];
  }
};

template <typename Body>
inline void for_each_register(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Whole{});
  if (i < count) body(i, Part{count - i});
}

inline Vector all(float value) { return Vector{} + value; }

// To about one unit in the last place. Below 2^-125 it is zero.
inline Vector exponential(Vector x) {
  constexpr float kLowest = -86.6f, kHighest = 88.7f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // of few bits: n * kLn2High is exact
  const Vector clamped = x < kLowest ? all(kLowest) : (x > kHighest ? all(kHighest) : x);
  const Vector rounded = clamped * 1.44269504f + kRound;
  const Vector n = rounded - kRound;
  const Vector r = clamped - n * kLn2High - n * kLn2Low;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Integers bits, power;  // the low bits of `rounded` are n
  __builtin_memcpy(&bits, &p, sizeof(bits));
  __builtin_memcpy(&power, &rounded, sizeof(power));
  bits += power << 23;
  Vector result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  result = x < kLowest ? Vector{} : result;
  result = x > kHighest ? all(kInfinity) : result;
  return x == x ? result : x;
}

inline Vector load_vector(const uint16_t* source) { return load_bfloat16(source); }

// At most kLanes elements as float32, where they are or in `staging`.
inline const float* as_floats(const float* source, int64_t, float*) { return source; }

inline const float* as_floats(const uint16_t* source, int64_t count, float* staging) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = uint32_t{source[i]} << 16;
    __builtin_memcpy(staging + i, &word, sizeof(word));
  }
  return staging;
}

// What a register of kWidth leaves over the next smaller one takes.
template <int kWidth>
inline float dot_rest(const float* a, const float* b, int64_t count) {
  float total = 0.0f;
  if (count >= kWidth) {
    typename Lanes<kWidth>::Type left, right;
    __builtin_memcpy(&left, a, sizeof(left));
    __builtin_memcpy(&right, b, sizeof(right));
    total = Lanes<kWidth>::sum(left * right);
    a += kWidth, b += kWidth, count -= kWidth;
  }
  if constexpr (kWidth > 1) total += dot_rest<kWidth / 2>(a, b, count);
  return total;
}

template <typename Key>
inline float dot(const float* query, const Key* key, int64_t count) {
  Vector sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load_vector(query + i) * load_vector(key + i);
  const float total = Lanes<kLanes>::sum(sum);
  if (i == count) return total;
  float staging[kLanes];
  return total + dot_rest<kLanes / 2>(query + i, as_floats(key + i, count - i, staging), count - i);
}

template <typename Key>
inline void dot_heads_as(const float* queries, int64_t group, const Key* key, int64_t key_stride, int64_t kv_heads,
                         int64_t width, float* scores, int64_t score_stride) {
  for (int64_t k = 0; k < kv_heads; ++k) {
    for (int64_t g = 0; g < group; ++g) {
      *scores = dot(queries, key, width);
      queries += width;
      scores += score_stride;
    }
    key += key_stride;
  }
}

void dot_heads(const float* queries, int64_t group, DType dtype, const void* key, int64_t key_stride, int64_t kv_heads,
               int64_t width, float* scores, int64_t score_stride) {
  if (dtype == DType::bfloat16) {
    const uint16_t* halves = static_cast<const uint16_t*>(key);
    return dot_heads_as(queries, group, halves, key_stride, kv_heads, width, scores, score_stride);
  }
  dot_heads_as(queries, group, static_cast<const float*>(key), key_stride, kv_heads, width, scores, score_stride);
}

float largest(const float* row, int64_t count) {
  Vector most = all(-kInfinity);
  for_each_register(count, [&](int64_t i, auto part) {
    const Vector x = part.load(row + i, -kInfinity);
    most = x > most ? x : most;
  });
  float result = -kInfinity, lanes[kLanes];
  store_vector(lanes, most);
  for (float lane : lanes) result = lane > result ? lane : result;
  return result;
}

inline double sum_lanes(Vector vector) {
  float lanes[kLanes];
  store_vector(lanes, vector);
  double total = 0.0;
  for (float lane : lanes) total += lane;
  return total;
}

double exp_and_sum(float* row, int64_t count, float shift) {
  Vector sums = {};
  for_each_register(count, [&](int64_t i, auto part) {
    const Vector e = exponential(part.load(row + i, -kInfinity) - shift);
    part.store(row + i, e);
    sums += e;
  });
  return sum_lanes(sums);
}

void divide(float* row, int64_t count, float divisor) {
  for (int64_t i = 0; i < count; ++i) row[i] /= divisor;
}

void add_scaled(const float* row, int64_t count, float factor, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += row[i] * factor;
}

void add_exp(const float* row, int64_t count, float shift, float* sums) {
  for_each_register(count, [&](int64_t i, auto part) {
    part.store(sums + i, part.load(sums + i, 0.0f) + exponential(part.load(row + i, -kInfinity) - shift));
  });
}

double product_sum(const float* row, const float* grad, int64_t count) {
  Vector sums = {};
  for_each_register(count, [&](int64_t i, auto part) { sums += part.load(row + i, 0.0f) * part.load(grad + i, 0.0f); });
  return sum_lanes(sums);
}

void multiply_by_difference(float* row, int64_t count, float factor, const float* grad, float mean) {
  for (int64_t i = 0; i < count; ++i) row[i] *= factor * (grad[i] - mean);
}
