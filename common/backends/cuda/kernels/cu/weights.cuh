// How weights are read: rows of `columns` elements, as floats or as few bits with a scale (and an offset) a group.
//
// A format gives CHUNK, the elements in 16 bytes; ZERO_IS_ZERO, whether bytes of 0 are zeros; `row`, a row's first byte; Row,
// where a row's scales are; `element`, one element; Groups, the scales of a chunk from column k on, which are loaded with it;
// `values`, the chunk in fp32; `pairs`, the chunk as pairs of T for the tensor cores, times `pair_factor`.

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

// Those of a chunk: one for each group in it, or for each eight elements where groups begin inside of it. Groups are whole
// eighths, so eight elements have one scale.
template <int GROUP, bool OFFSETS, typename S, int CHUNK> struct ChunkScales {
  static constexpr int PART = GROUP % CHUNK == 0 ? CHUNK : CHUNK % GROUP == 0 ? GROUP : 8, COUNT = CHUNK / PART;
  S scales[COUNT], offsets[OFFSETS ? COUNT : 1];

  DEVICE void load(const Scales<GROUP, OFFSETS, S>& row, int k) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const u32 group = static_cast<u32>(k + i * PART) / GROUP;
      scales[i] = row.scales[group];
      if (OFFSETS) offsets[i] = row.offsets[group];
    }
  }
  DEVICE float scale(int i) const { return to_float(scales[i / PART]); }
  DEVICE float offset(int i) const { return OFFSETS ? to_float(offsets[OFFSETS ? i / PART : 0]) : 0.f; }
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
  struct Groups {
    DEVICE void load(const Row&, int) {}
  };
  DEVICE_STATIC const u8* row(const void* weight, int columns, i64 index) {
    return static_cast<const u8*>(weight) + index * columns * sizeof(T);
  }
  DEVICE_STATIC float element(const u8* row, const Row&, int k) { return to_float(reinterpret_cast<const T*>(row)[k]); }
  DEVICE_STATIC void values(const uint4& bytes, const Groups&, float (&w)[CHUNK]) { unpack16<T>(bytes, w); }
  template <typename A> DEVICE_STATIC constexpr float pair_factor() { return 1.f; }
  template <typename A> DEVICE_STATIC void pairs(const uint4& bytes, const Groups&, u32 (&w)[CHUNK / 2]) {
    w[0] = bytes.x;
    w[1] = bytes.y;
    w[2] = bytes.z;
    w[3] = bytes.w;
  }
};

// Pairs of exact small numbers times scale plus offset, rounded once.
template <typename T> DEVICE u32 scaled_pair(u32 pair, float scale, float offset) {
  constexpr float F = ScaleShift<T>::FACTOR;
  return fma2<T>(pair, pack2<T>(scale * F, scale * F), pack2<T>(offset * F, offset * F));
}

#define QUANTIZED_WEIGHT(PER_BYTE)                                                                         \
  static constexpr bool ZERO_IS_ZERO = false;                                                              \
  static constexpr int CHUNK = 16 * PER_BYTE;                                                              \
  using Row = Scales<GROUP, OFFSETS, S>;                                                                   \
  using Groups = ChunkScales<GROUP, OFFSETS, S, CHUNK>;                                                    \
  DEVICE_STATIC const u8* row(const void* weight, int columns, i64 index) {                                \
    return static_cast<const u8*>(weight) + index * (columns / PER_BYTE);                                  \
  }                                                                                                        \
  DEVICE_STATIC float element(const u8* row, const Row& scales, int k) {                                   \
    return number(row, k) * scales.scale(k) + scales.offset(k);                                            \
  }                                                                                                        \
  DEVICE_STATIC void values(const uint4& bytes, const Groups& groups, float (&w)[CHUNK]) {                 \
    const u8* from = reinterpret_cast<const u8*>(&bytes);                                                  \
    _Pragma("unroll") for (int i = 0; i < CHUNK; i += 8) {                                                 \
      const float scale = groups.scale(i), offset = groups.offset(i);                                      \
      _Pragma("unroll") for (int e = i; e < i + 8; e++) w[e] = fmaf(number(from, e), scale, offset);       \
    }                                                                                                      \
  }                                                                                                        \
  template <typename A> DEVICE_STATIC constexpr float pair_factor() { return ScaleShift<A>::FACTOR; }      \
  template <typename A> DEVICE_STATIC void pairs(const uint4& bytes, const Groups& groups, u32 (&w)[CHUNK / 2]) { \
    const u32 words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};                                             \
    _Pragma("unroll") for (int i = 0; i < CHUNK; i += 8) {                                                 \
      const float scale = groups.scale(i), offset = groups.offset(i);                                      \
      _Pragma("unroll") for (int e = i; e < i + 8; e += 2) {                                               \
        w[e / 2] = scaled_pair<A>(exact_pair<A>(words[e / (4 * PER_BYTE)], e % (4 * PER_BYTE)), scale, offset); \
      }                                                                                                    \
    }                                                                                                      \
  }

// Numbers of few bits become halves without conversions, which are slow: their bits are set into those of a number whose last
// place is worth one, which is taken off again.

// Bytes e and e + 1 of a word, each below another byte.
DEVICE u32 byte_pair(u32 word, u32 above, int e) { return __byte_perm(word, above, 0x4040 | (e + 1) << 8 | e); }

// Two bytes in two's complement.
template <typename T> DEVICE u32 int8_pair(u32 word, int e);
template <> DEVICE u32 int8_pair<f16>(u32 word, int e) {
  const u32 pair = byte_pair(word ^ 0x80808080u, 0x64646464u, e);  // 1024 + 128 + number
  return fma2<f16>(pair, 0x3c003c00u, 0xe480e480u);                // less 1152
}
template <> DEVICE u32 int8_pair<bf16>(u32 word, int e) {
  const u32 pair = byte_pair(word, 0u, e);
  // 128 + the low seven bits, less 128, and less 128 more where the sign bit, which is also the exponent's last, is set.
  return fma2<bf16>((pair & 0x007f007fu) | 0x43004300u, 0x3f803f80u, (pair & 0x00800080u) | 0xc300c300u);
}

template <int GROUP, bool OFFSETS, typename S> struct Int8Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) { return static_cast<float>(static_cast<i8>(bytes[k])); }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) { return int8_pair<A>(word, e); }
  QUANTIZED_WEIGHT(1)
};

// A number in E4M3. Its bits, moved to the places of a float's, are that number over 2^120.
DEVICE float fp8_to_float(u32 byte) {
  return __uint_as_float((byte & 0x80u) << 24 | (byte & 0x7fu) << 20) * 1329227995784915872903807060280344576.f;
}
// Bytes e and e + 1 of a word, each above a zero.
DEVICE u32 raised_byte_pair(u32 word, int e) { return __byte_perm(word, 0u, 0x0404 | (e + 1) << 12 | e << 4); }
// Two numbers in E4M3, in the same way: over 2^8 in fp16, over 2^120 in bf16.
template <typename T> DEVICE u32 fp8_pair(u32 word, int e);
template <> DEVICE u32 fp8_pair<f16>(u32 word, int e) {
  const u32 pair = raised_byte_pair(word, e);
  return fma2<f16>((pair & 0x80008000u) | (pair >> 1 & 0x3f803f80u), 0x5c005c00u, 0u);
}
template <> DEVICE u32 fp8_pair<bf16>(u32 word, int e) {
  const u32 pair = raised_byte_pair(word, e);
  return fma2<bf16>((pair & 0x80008000u) | (pair >> 4 & 0x07f007f0u), 0x7b807b80u, 0u);
}

template <int GROUP, bool OFFSETS, typename S> struct Fp8Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) { return fp8_to_float(bytes[k]); }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) { return fp8_pair<A>(word, e); }
  QUANTIZED_WEIGHT(1)
};

// The nibbles e and e + 1 of a word.
DEVICE u32 nibble_pair(u32 word, int e) {
  // The lower one's byte, and the same byte with the upper one in the lower place.
  return __byte_perm(word, word >> 4, (4 + e / 2) << 8 | e / 2) & 0x000f000fu;
}
// Each less 8.
template <typename T> DEVICE u32 int4_pair(u32 word, int e);
template <> DEVICE u32 int4_pair<f16>(u32 word, int e) {
  return fma2<f16>(nibble_pair(word, e) | 0x64006400u, 0x3c003c00u, 0xe408e408u);  // 1024 + nibble, less 1032
}
template <> DEVICE u32 int4_pair<bf16>(u32 word, int e) {
  return fma2<bf16>(nibble_pair(word, e) | 0x43004300u, 0x3f803f80u, 0xc308c308u);  // 128 + nibble, less 136
}

// A nibble less 8; the even element of a byte in its low nibble.
template <int GROUP, bool OFFSETS, typename S> struct Int4Weight {
  DEVICE_STATIC float number(const u8* bytes, int k) {
    return static_cast<float>(static_cast<int>(bytes[k / 2] >> (4 * (k & 1)) & 15u) - 8);
  }
  template <typename A> DEVICE_STATIC u32 exact_pair(u32 word, int e) { return int4_pair<A>(word, e); }
  QUANTIZED_WEIGHT(2)
};
