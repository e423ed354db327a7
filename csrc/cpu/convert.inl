// Rows of any dtype to float32 and back. Part of the .inl files that are compiled for several instruction sets.

struct Bfloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(Bfloat16 value) { return bits_to_float(uint32_t{value.bits} << 16); }

inline float to_float(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude << 13));  // infinity and NaN
  // Multiplying by 2^112 moves the bias of the exponent, and is exact for subnormal numbers too.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

inline void from_float(float value, float* target) { *target = value; }

inline void from_float(float value, Bfloat16* target) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;  // rounding could carry a NaN over into infinity
  target->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

inline void from_float(float value, Float16* target) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24 and leaves the result in the low bits
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  target->bits = static_cast<uint16_t>(sign | half);
}

// How many leading elements were converted in whole registers; the element-wise loop takes the rest.
template <typename T>
inline int64_t load_registers(const T*, int64_t, float*) {
  return 0;
}

template <typename T>
inline int64_t store_registers(const float*, int64_t, T*) {
  return 0;
}

#if defined(__F16C__)
inline int64_t load_registers(const Float16* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

inline int64_t store_registers(const float* source, int64_t count, Float16* target) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
  }
  return i;
}
#endif

template <typename T>
inline void load_as(const void* source, int64_t stride, int64_t count, float* target) {
  const T* elements = static_cast<const T*>(source);
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) target[i] = to_float(elements[i * stride]);
    return;
  }
  for (int64_t i = load_registers(elements, count, target); i < count; ++i) target[i] = to_float(elements[i]);
}

template <typename T>
inline void store_as(const float* source, int64_t count, void* target) {
  T* elements = static_cast<T*>(target);
  for (int64_t i = store_registers(source, count, elements); i < count; ++i) from_float(source[i], elements + i);
}

void load(DType dtype, const void* source, int64_t stride, int64_t count, float* target) {
  switch (dtype) {
    case DType::float32:
      return load_as<float>(source, stride, count, target);
    case DType::bfloat16:
      return load_as<Bfloat16>(source, stride, count, target);
    case DType::float16:
      return load_as<Float16>(source, stride, count, target);
  }
}

void store(DType dtype, const float* source, int64_t count, void* target) {
  switch (dtype) {
    case DType::float32:
      return store_as<float>(source, count, target);
    case DType::bfloat16:
      return store_as<Bfloat16>(source, count, target);
    case DType::float16:
      return store_as<Float16>(source, count, target);
  }
}
