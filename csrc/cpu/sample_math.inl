// The one source of every SampleMath table. A file includes it inside an unnamed namespace, after choosing kLanes, the
// floats in a register. As in window_math.inl no template or inline function of std may be used here.

#include "convert.inl"
#include "lanes.inl"

inline Vector load_vector(const Bfloat16* source) { return load_bfloat16(source); }

inline Vector load_vector(const Float16* source) {
#if defined(__AVX512F__)
  // Masked, since gcc 12 warns of the undefined register in its own unmasked one.
  const __m512 lanes = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  static_assert(sizeof(Vector) == sizeof(lanes), "a register of AVX-512");
#elif defined(__F16C__) && defined(__AVX2__)
  const __m256 lanes = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  static_assert(sizeof(Vector) == sizeof(lanes), "a register of AVX2");
#else
  float lanes[kLanes];
  load_as<Float16>(source, 1, kLanes, lanes);
#endif
  Vector vector;
  __builtin_memcpy(&vector, &lanes, sizeof(vector));
  return vector;
}

// kVectors registers' worth of channels.
template <int kVectors, typename T>
inline void mix_tile(const void* const* rows, const float* weights, int64_t count, int64_t channel, float* out) {
  Vector sum[kVectors] = {};
  for (int64_t k = 0; k < count; ++k) {
    const T* row = static_cast<const T*>(rows[k]) + channel;
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[j] += weights[k] * load_vector(row + j * kLanes);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) store_vector(out + channel + j * kLanes, sum[j]);
}

template <typename T>
void mix_as(const void* const* rows, const float* weights, int64_t count, int64_t channels, float* out) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) mix_tile<4, T>(rows, weights, count, c, out);
  for (; c + kLanes <= channels; c += kLanes) mix_tile<1, T>(rows, weights, count, c, out);
  for (; c < channels; ++c) {
    float sum = 0.0f;
    for (int64_t k = 0; k < count; ++k) sum += weights[k] * to_float(static_cast<const T*>(rows[k])[c]);
    out[c] = sum;
  }
}

template <typename T>
void dot_as(const void* const* rows, const float* vector, int64_t count, int64_t channels, float* dots) {
  for (int64_t k = 0; k < count; ++k) {
    const T* row = static_cast<const T*>(rows[k]);
    Vector sums[2] = {};
    int64_t c = 0;
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
      sums[0] += load_vector(vector + c) * load_vector(row + c);
      sums[1] += load_vector(vector + c + kLanes) * load_vector(row + c + kLanes);
    }
    float total = Lanes<kLanes>::sum(sums[0] + sums[1]);
    for (; c < channels; ++c) total += vector[c] * to_float(row[c]);
    dots[k] = total;
  }
}

void mix(DType dtype, const void* const* rows, const float* weights, int64_t count, int64_t channels, float* out) {
  switch (dtype) {
    case DType::float32:
      return mix_as<float>(rows, weights, count, channels, out);
    case DType::bfloat16:
      return mix_as<Bfloat16>(rows, weights, count, channels, out);
    case DType::float16:
      return mix_as<Float16>(rows, weights, count, channels, out);
  }
}

void dot(DType dtype, const void* const* rows, const float* vector, int64_t count, int64_t channels, float* dots) {
  switch (dtype) {
    case DType::float32:
      return dot_as<float>(rows, vector, count, channels, dots);
    case DType::bfloat16:
      return dot_as<Bfloat16>(rows, vector, count, channels, dots);
    case DType::float16:
      return dot_as<Float16>(rows, vector, count, channels, dots);
  }
}

void spread(float* const* rows, const float* weights, const float* vector, int64_t count, int64_t channels) {
  for (int64_t k = 0; k < count; ++k) {
    float* row = rows[k];
    const float weight = weights[k];
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      store_vector(row + c, load_vector(row + c) + weight * load_vector(vector + c));
    }
    for (; c < channels; ++c) row[c] += weight * vector[c];
  }
}
