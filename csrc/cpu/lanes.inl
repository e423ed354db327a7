// Registers of kLanes floats. Part of the .inl files that are compiled for several instruction sets: a file includes it
// inside an unnamed namespace, after choosing kLanes.

template <int kWidth>
struct Lanes {
  // Not `using`: gcc 12 then drops an attribute that depends on a template argument.
  typedef float Type __attribute__((vector_size(kWidth * sizeof(float))));

  static inline float sum(Type lanes) {
    typename Lanes<kWidth / 2>::Type halves[2];
    __builtin_memcpy(halves, &lanes, sizeof(lanes));
    return Lanes<kWidth / 2>::sum(halves[0] + halves[1]);
  }
};

template <>
struct Lanes<1> {
  using Type = float;
  static inline float sum(float lane) { return lane; }
};

using Vector = Lanes<kLanes>::Type;

inline Vector load_vector(const float* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

// A bfloat16 is the upper half of a float32.
inline Vector load_bfloat16(const void* source) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  __builtin_memcpy(&halves, source, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Vector vector;
  __builtin_memcpy(&vector, &words, sizeof(vector));
  return vector;
}

inline void store_vector(float* target, Vector vector) { __builtin_memcpy(target, &vector, sizeof(vector)); }
