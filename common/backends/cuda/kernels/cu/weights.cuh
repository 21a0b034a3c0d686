// How weights are read: rows of `columns` elements, as floats or as few bits with a scale (and an offset) a group.
//
// A format gives CHUNK, the elements in 16 bytes; ZERO_IS_ZERO, whether bytes of 0 are zeros; `row`, a row's first byte; `element`, one element; `values`, a chunk from
// column k on in fp32; `pairs`, a chunk as pairs of T for the tensor cores, times `pair_factor`.

// The scales of one row, and its offsets.
template <int GROUP, bool OFFSETS, typename S> struct Scales {
  const S* scales;
  const S* offsets;

  DEVICE Scales(const void* all_scales, const void* all_offsets, int columns, i64 row) {
    scales = static_cast<const S*>(all_scales) + row * (columns / GROUP);
    offsets = static_cast<const S*>(all_offsets) + (OFFSETS ? row * (columns / GROUP) : 0);
  }
  DEVICE float scale(int k) const { return to_float(scales[k / GROUP]); }
  DEVICE float offset(int k) const { return OFFSETS ? to_float(offsets[k / GROUP]) : 0.f; }
};

// Factor of scaled weights in T: scales may be below fp16's normal numbers.
template <typename T> struct ScaleShift {
  static constexpr float FACTOR = 1.f;
};
template <> struct ScaleShift<f16> {
  static constexpr float FACTOR = 64.f;
};

template <typename T> struct FloatWeight {
  static constexpr bool ZERO_IS_ZERO = true;
  static constexpr int CHUNK = Chunk<T>::N;
  struct Row {
    DEVICE Row(const void*, const void*, int, i64) {}
  };
  DEVICE_STATIC const u8* row(const void* weight, int columns, i64 index) {
    return static_cast<const u8*>(weight) + index * columns * sizeof(T);
  }
  DEVICE_STATIC float element(const u8* row, const Row&, int k) { return to_float(reinterpret_cast<const T*>(row)[k]); }
  DEVICE_STATIC void values(const uint4& bytes, const Row&, int, float (&w)[CHUNK]) { unpack16<T>(bytes, w); }
  template <typename A> DEVICE_STATIC constexpr float pair_factor() { return 1.f; }
  template <typename A> DEVICE_STATIC void pairs(const uint4& bytes, const Row&, int, u32 (&w)[CHUNK / 2]) {
    w[0] = bytes.x;
    w[1] = bytes.y;
    w[2] = bytes.z;
    w[3] = bytes.w;
  }
};

// A number in E4M3. Its bits, moved to the places of a float's, are that number over 2^120.
DEVICE float fp8_to_float(u32 byte) {
  return __uint_as_float((byte & 0x80u) << 24 | (byte & 0x7fu) << 20) * 1329227995784915872903807060280344576.f;
}

// Pairs of exact small numbers times scale plus offset, rounded once.
template <typename T> DEVICE u32 scaled_pair(u32 pair, float scale, float offset) {
  constexpr float F = ScaleShift<T>::FACTOR;
  return fma2<T>(pair, pack2<T>(scale * F, scale * F), pack2<T>(offset * F, offset * F));
}

// Groups are whole eighths, so eight elements have one scale.
#define QUANTIZED_WEIGHT(PER_BYTE)                                                                         \
  static constexpr bool ZERO_IS_ZERO = false;                                                              \
  static constexpr int CHUNK = 16 * PER_BYTE;                                                              \
  using Row = Scales<GROUP, OFFSETS, S>;                                                                   \
  DEVICE_STATIC const u8* row(const void* weight, int columns, i64 index) {                                \
    return static_cast<const u8*>(weight) + index * (columns / PER_BYTE);                                  \
  }                                                                                                        \
  DEVICE_STATIC float element(const u8* row, const Row& scales, int k) {                                   \
    return number(row, k) * scales.scale(k) + scales.offset(k);                                            \
  }                                                                                                        \
  DEVICE_STATIC void values(const uint4& bytes, const Row& scales, int k, float (&w)[CHUNK]) {             \
    const u8* from = reinterpret_cast<const u8*>(&bytes);                                                  \
    _Pragma("unroll") for (int i = 0; i < CHUNK; i += 8) {                                                 \
      const float scale = scales.scale(k + i), offset = scales.offset(k + i);                              \
      _Pragma("unroll") for (int e = i; e < i + 8; e++) w[e] = fmaf(number(from, e), scale, offset);       \
    }                                                                                                      \
  }                                                                                                        \
  template <typename A> DEVICE_STATIC constexpr float pair_factor() { return ScaleShift<A>::FACTOR; }      \
  template <typename A> DEVICE_STATIC void pairs(const uint4& bytes, const Row& scales, int k,             \
                                                 u32 (&w)[CHUNK / 2]) {                                    \
    const u32 words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};                                             \
    _Pragma("unroll") for (int i = 0; i < CHUNK; i += 8) {                                                 \
      const float scale = scales.scale(k + i), offset = scales.offset(k + i);                              \
      _Pragma("unroll") for (int e = i; e < i + 8; e += 2) {                                               \
        w[e / 2] = scaled_pair<A>(exact_pair<A>(words[e / (4 * PER_BYTE)], e % (4 * PER_BYTE)), scale, offset); \
      }                                                                                                    \
    }                                                                                                      \
  }

template <int GROUP, bool OFFSETS, typename S> struct Int8Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) { return static_cast<float>(static_cast<i8>(bytes[k])); }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) {
    const i8 low = static_cast<i8>(word >> (8 * e)), high = static_cast<i8>(word >> (8 * e + 8));
    return pack2<A>(static_cast<float>(low), static_cast<float>(high));
  }
  QUANTIZED_WEIGHT(1)
};

template <int GROUP, bool OFFSETS, typename S> struct Fp8Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) { return fp8_to_float(bytes[k]); }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) {
    return pack2<A>(fp8_to_float(word >> (8 * e) & 0xffu), fp8_to_float(word >> (8 * e + 8) & 0xffu));
  }
  QUANTIZED_WEIGHT(1)
};

// The two nibbles of the lowest byte, each less 8, exactly: set into the low bits of a number whose last place is worth one.
template <typename T> DEVICE u32 nibble_pair(u32 byte);
template <> DEVICE u32 nibble_pair<f16>(u32 byte) {
  const u32 pair = (byte & 0xfu) | (byte & 0xf0u) << 12 | 0x64006400u;  // 1024 + nibble
  return fma2<f16>(pair, 0x3c003c00u, 0xe408e408u);                      // less 1032
}
template <> DEVICE u32 nibble_pair<bf16>(u32 byte) {
  const u32 pair = (byte & 0xfu) | (byte & 0xf0u) << 12 | 0x43004300u;  // 128 + nibble
  return fma2<bf16>(pair, 0x3f803f80u, 0xc308c308u);                     // less 136
}

// A nibble less 8; the even element of a byte in its low nibble.
template <int GROUP, bool OFFSETS, typename S> struct Int4Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) {
    return static_cast<float>(static_cast<int>(bytes[k / 2] >> (4 * (k & 1)) & 15u) - 8);
  }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) { return nibble_pair<A>(word >> (4 * e)); }
  QUANTIZED_WEIGHT(2)
};
