// Registers of kLanes floats. Part of every .inl that is compiled for several instruction sets: a file includes it
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

inline void store_vector(float* target, Vector vector) { __builtin_memcpy(target, &vector, sizeof(vector)); }
