// Attention of single queries on the tensor cores: a block does a split of the keys of one head of keys for all query heads of
// its group, which are the rows of the left operand. Keys and values go from memory to registers, once.
//
// Scores: lane t of four takes the t-th 16 bytes of each 64 of a query and of a key alike, which are other dimensions than the
// instruction's but the same product. Values: a lane holds 8 neighbouring dimensions of 4 keys; the i-th of them belongs to
// the i-th product, whose column g is then dimension 8g + i.

template <typename T, int D, bool WIDE> struct DecodeTile {
  static constexpr int KEYS = 16, K_CHUNKS = (D + 31) / 32, V_CHUNKS = (D + 63) / 64;
  uint4 k[2][K_CHUNKS];
  uint4 v[4][V_CHUNKS];

  // The first element of a key, or of the last one where there is none: its weight is 0 then. A head has fewer than 2^32
  // elements.
  DEVICE_STATIC u32 place(int key, int last, int begin, int first_row, int rows) {
    const int at = first_row + (key < last ? key : last - 1) - begin;
    return static_cast<u32>(at < rows ? at : at - rows) * D;
  }
  DEVICE void load_keys(const T* base, int key0, int last, int begin, int first_row, int rows, int g, int t, int i) {
    const T* from = base + (place(key0 + i * 8 + g, last, begin, first_row, rows) + t * 8);
#pragma unroll
    for (int j = 0; j < K_CHUNKS; j++) {
      if (D % 32 == 0 || j * 32 + t * 8 < D) k[i][j] = load16_once(from + j * 32);
      else k[i][j] = make_uint4(0, 0, 0, 0);
    }
  }
  DEVICE void load_values(const T* base, int key0, int last, int begin, int first_row, int rows, int g, int t, int j) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const T* from = base + (place(key0 + 2 * t + (i & 1) + (i >> 1) * 8, last, begin, first_row, rows) + g * 8);
      if (D % 64 == 0 || j * 64 + g * 8 < D) v[i][j] = load16_once(from + j * 64);
      else v[i][j] = make_uint4(0, 0, 0, 0);
    }
  }
};

DEVICE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

template <typename T, int D, bool WIDE> DEVICE void attention_decode_tensor(ATTENTION_DECODE_PARAMETERS(T)) {
  constexpr int WARPS = 4, HEADS = WIDE ? 16 : 8, STATE = D + 2;
  using Tile = DecodeTile<T, D, WIDE>;
  constexpr int KEYS = Tile::KEYS, K_CHUNKS = Tile::K_CHUNKS, V_CHUNKS = Tile::V_CHUNKS;
  // Whether there are registers enough to load the next keys and values while these are worked on.
  constexpr bool AHEAD = D <= 128;
  DYNAMIC_SHARED(shared);
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int split = blockIdx.x, splits = gridDim.x, kv_head = blockIdx.y, row = blockIdx.z;
  const int index = row_sequence[row];
  if (index < 0) return;
  const Sequence sequence = sequences[index];
  if (sequence.rows > max_rows) return;
  const KeySplit keys(sequence, row, window, splits);
  if (split >= keys.active) return;
  const int first = keys.begin + split * keys.length;
  const int last = first + keys.length < keys.end ? first + keys.length : keys.end;
  const Cache<T> k_cache(sequence, k_full, k_ring, ring_rows), v_cache(sequence, v_full, v_ring, ring_rows);
  const T *k = k_cache.head(kv_head, D), *v = v_cache.head(kv_head, D);
  const int rows = k_cache.rows, begin = keys.begin, ring_first = begin % rows;

  Tile tile;
  int key0 = first + warp * KEYS;
  if (AHEAD && key0 < last) {
#pragma unroll
    for (int i = 0; i < 2; i++) tile.load_keys(k, key0, last, begin, ring_first, rows, g, t, i);
#pragma unroll
    for (int j = 0; j < V_CHUNKS; j++) tile.load_values(v, key0, last, begin, ring_first, rows, g, t, j);
  }

  const T* query = q + static_cast<i64>(row) * q_stride + static_cast<i64>(kv_head) * group * D;
  uint4 q0[K_CHUNKS], q1[K_CHUNKS];
#pragma unroll
  for (int j = 0; j < K_CHUNKS; j++) {
    const int d = j * 32 + t * 8;
    q0[j] = q1[j] = make_uint4(0, 0, 0, 0);
    if (g < group && d < D) q0[j] = load16(query + g * D + d);
    if (WIDE && g + 8 < group && d < D) q1[j] = load16(query + (g + 8) * D + d);
  }

  float sums[V_CHUNKS][8][4];
#pragma unroll
  for (int j = 0; j < V_CHUNKS; j++) {
#pragma unroll
    for (int i = 0; i < 8; i++) sums[j][i][0] = sums[j][i][1] = sums[j][i][2] = sums[j][i][3] = 0.f;
  }
  float most[2] = {LOWEST, LOWEST}, weight[2] = {0.f, 0.f};

  for (; key0 < last; key0 += WARPS * KEYS) {
    const int next = key0 + WARPS * KEYS;
    float s[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.f;
      if (!AHEAD) tile.load_keys(k, key0, last, begin, ring_first, rows, g, t, i);
#pragma unroll
      for (int j = 0; j < K_CHUNKS; j++) {
        multiply_tile<T>(s[i], q0[j].x, q1[j].x, q0[j].y, q1[j].y, tile.k[i][j].x, tile.k[i][j].y);
        multiply_tile<T>(s[i], q0[j].z, q1[j].z, q0[j].w, q1[j].w, tile.k[i][j].z, tile.k[i][j].w);
      }
    }
    if (AHEAD && next < last) {
#pragma unroll
      for (int i = 0; i < 2; i++) tile.load_keys(k, next, last, begin, ring_first, rows, g, t, i);
    }

#pragma unroll
    for (int half = 0; half < (WIDE ? 2 : 1); half++) {
      float now = most[half];
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[i][half * 2 + e];
          x = key0 + i * 8 + 2 * t + e < last ? score(x, scale, soft_cap) : LOWEST;
          now = fmaxf(now, x);
        }
      }
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float factor = exp2_fast(most[half] - now);
      most[half] = now;
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[i][half * 2 + e];
          // Where no key has been seen yet the maximum is the lowest, and its difference with itself would weigh.
          x = x == LOWEST ? 0.f : exp2_fast(x - now);
          sum += x;
        }
      }
      weight[half] = weight[half] * factor + sum;
#pragma unroll
      for (int j = 0; j < V_CHUNKS; j++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sums[j][i][half * 2] *= factor;
          sums[j][i][half * 2 + 1] *= factor;
        }
      }
    }

    const u32 a0 = pack2<T>(s[0][0], s[0][1]), a2 = pack2<T>(s[1][0], s[1][1]);
    const u32 a1 = WIDE ? pack2<T>(s[0][2], s[0][3]) : 0u, a3 = WIDE ? pack2<T>(s[1][2], s[1][3]) : 0u;
#pragma unroll
    for (int j = 0; j < V_CHUNKS; j++) {
      if (!AHEAD) tile.load_values(v, key0, last, begin, ring_first, rows, g, t, j);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u32 select = i % 2 == 0 ? 0x5410u : 0x7632u;
        const u32 b0 = __byte_perm(word(tile.v[0][j], i / 2), word(tile.v[1][j], i / 2), select);
        const u32 b1 = __byte_perm(word(tile.v[2][j], i / 2), word(tile.v[3][j], i / 2), select);
        multiply_tile<T>(sums[j][i], a0, a1, a2, a3, b0, b1);
      }
      if (AHEAD && next < last) tile.load_values(v, next, last, begin, ring_first, rows, g, t, j);
    }
  }

  float* states = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int half = 0; half < (WIDE ? 2 : 1); half++) {
    weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 1);
    weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 2);
    float* state = states + (warp * HEADS + half * 8 + g) * STATE;
#pragma unroll
    for (int j = 0; j < V_CHUNKS; j++) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int d = j * 64 + 16 * t + i;
        if (d < D) state[d] = sums[j][i][half * 2];
        if (d + 8 < D) state[d + 8] = sums[j][i][half * 2 + 1];
      }
    }
    if (t == 0) {
      state[D] = most[half];
      state[D + 1] = weight[half];
    }
  }
  __syncthreads();
  const int heads = gridDim.y * group;
  for (int i = threadIdx.x; i < group * D; i += WARPS * 32) {
    const int of_group = i / D, d = i % D, head = kv_head * group + of_group;
    float* part = partial + ((static_cast<i64>(row) * heads + head) * splits + split) * STATE;
    store_state<T>(states + of_group * STATE, HEADS * STATE, WARPS, d, D, splits, part,
                   out + static_cast<i64>(row) * out_stride + static_cast<i64>(head) * D);
  }
}
#define INSTANTIATE_ATTENTION_DECODE_TENSOR(name, T, D, WIDE)                   \
  KERNEL(128, D > 64 ? 2 : 4) name(ATTENTION_DECODE_PARAMETERS(T)) { \
    attention_decode_tensor<T, D, WIDE>(ATTENTION_DECODE_ARGUMENTS);            \
  }
