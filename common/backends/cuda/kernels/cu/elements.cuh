// Elements in 16-byte chunks and one at a time.

// How many elements 16 bytes hold.
template <typename T> struct Chunk {
  static constexpr int N = 16 / sizeof(T);
};

template <typename T> DEVICE void unpack16(const uint4& v, float* f) {
  const float2 a = unpack2<T>(v.x), b = unpack2<T>(v.y), c = unpack2<T>(v.z), d = unpack2<T>(v.w);
  f[0] = a.x; f[1] = a.y; f[2] = b.x; f[3] = b.y;
  f[4] = c.x; f[5] = c.y; f[6] = d.x; f[7] = d.y;
}
template <> DEVICE void unpack16<float>(const uint4& v, float* f) {
  f[0] = __uint_as_float(v.x); f[1] = __uint_as_float(v.y);
  f[2] = __uint_as_float(v.z); f[3] = __uint_as_float(v.w);
}
template <typename T> DEVICE uint4 pack16(const float* f) {
  return make_uint4(pack2<T>(f[0], f[1]), pack2<T>(f[2], f[3]), pack2<T>(f[4], f[5]), pack2<T>(f[6], f[7]));
}
template <> DEVICE uint4 pack16<float>(const float* f) {
  return make_uint4(__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3]));
}

// STEP elements at p: a chunk of 16 bytes, or one.
template <typename T, int STEP> DEVICE void load_elements(const T* p, float* f) {
  if constexpr (STEP == 1) {
    f[0] = to_float(*p);
  } else {
    static_assert(STEP == Chunk<T>::N, "a chunk or one element");
    unpack16<T>(load16(p), f);
  }
}
template <typename T, int STEP> DEVICE void store_elements(T* p, const float* f) {
  if constexpr (STEP == 1) {
    *p = from_float<T>(f[0]);
  } else {
    *reinterpret_cast<uint4*>(p) = pack16<T>(f);
  }
}
// As it is stored.
template <typename T> DEVICE float rounded(float f) { return to_float(from_float<T>(f)); }

// Whether all of these counts of elements are whole chunks.
template <typename T> DEVICE bool whole_chunks(int a, int b, int c) {
  constexpr int N = Chunk<T>::N;
  return a % N == 0 && b % N == 0 && c % N == 0;
}
