// Flash attention of a tile of queries of one sequence and head on the tensor cores. Four warps have 16 queries each; tiles of
// keys and values come through shared memory, the next one while this one is worked on.

// Rows of halves in shared memory, padded against bank conflicts.
template <int D> struct PrefillShape {
  static constexpr int WIDTH = (D + 31) / 32 * 32, STRIDE = WIDTH + 8, KEYS = D > 128 ? 32 : 64, TILE = KEYS * STRIDE;
};

// Starts copying keys first..first + KEYS of one head; zeros from `end` on and past D.
template <typename T, int D>
DEVICE void copy_rows(T* shared, const T* head, int rows, int first, int end) {
  using S = PrefillShape<D>;
  constexpr int CHUNKS = S::WIDTH / 8;
  const int ring_first = first % rows;
  for (int i = threadIdx.x; i < S::KEYS * CHUNKS; i += 128) {
    const int key = i / CHUNKS, d = i % CHUNKS * 8;
    int at = ring_first + key;
    if (at >= rows) at -= rows;
    const bool valid = first + key < end && d < D;
    copy16_async(shared + key * S::STRIDE + d, valid ? head + static_cast<i64>(at) * D + d : head, valid);
  }
}

template <typename T, int D>
DEVICE void attention_prefill(const T* q, int q_stride, const Sequence* sequences, const QueryTile* tiles, int group,
                              i64 k_full, i64 k_ring, i64 v_full, i64 v_ring, int ring_rows, int window, float scale,
                              float soft_cap, T* out, int out_stride) {
  using S = PrefillShape<D>;
  constexpr int KEYS = S::KEYS, STEPS = S::WIDTH / 16, OUT_TILES = (D + 7) / 8;
  DYNAMIC_SHARED(shared);
  T* k_shared = reinterpret_cast<T*>(shared);
  T* v_shared = k_shared + 2 * S::TILE;
  launch_dependents();
  wait_for_previous();
  const QueryTile tile = tiles[blockIdx.x];
  if (tile.sequence < 0) return;
  const Sequence sequence = sequences[tile.sequence];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int head = blockIdx.y;
  const int count = sequence.rows - tile.first < 64 ? sequence.rows - tile.first : 64;
  if (count <= 0) return;
  const Cache<T> k_cache(sequence, k_full, k_ring, ring_rows), v_cache(sequence, v_full, v_ring, ring_rows);
  const T *k = k_cache.head(head / group, D), *v = v_cache.head(head / group, D);
  // The tile's first query has key number `own`; the keys that any of them sees are begin..end.
  const int own = sequence.past + tile.first, end = own + count;
  const int begin = window > 0 && own + 1 > window ? own + 1 - window : 0;

  copy_rows<T, D>(k_shared, k, k_cache.rows, begin, end);
  copy_rows<T, D>(v_shared, v, v_cache.rows, begin, end);
  commit_copies();

  const int query[2] = {warp * 16 + g, warp * 16 + g + 8};
  const i64 first_row = sequence.first_row + tile.first;
  const T* q_rows[2];
#pragma unroll
  for (int half = 0; half < 2; half++) q_rows[half] = q + (first_row + query[half]) * q_stride + static_cast<i64>(head) * D;
  auto load_queries = [&](u32(&a)[4], int i) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int d = i * 16 + 2 * t + (e >> 1) * 8;
      a[e] = 0u;
      if (query[e & 1] < count && d < D) a[e] = *reinterpret_cast<const u32*>(q_rows[e & 1] + d);
    }
  };
  // Wide heads leave no registers for the queries: they are read again for each tile of keys, from the first-level cache.
  constexpr bool HELD = D <= 128;
  u32 held[HELD ? STEPS : 1][4];
  if (HELD) {
#pragma unroll
    for (int i = 0; i < STEPS; i++) load_queries(held[HELD ? i : 0], i);
  }

  float sums[OUT_TILES][4];
#pragma unroll
  for (int i = 0; i < OUT_TILES; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.f;
  float most[2] = {-1e30f, -1e30f}, weight[2] = {0.f, 0.f};

  int stage = 0;
  for (int key0 = begin; key0 < end; key0 += KEYS, stage ^= 1) {
    wait_for_copies<0>();
    __syncthreads();
    if (key0 + KEYS < end) {
      copy_rows<T, D>(k_shared + (stage ^ 1) * S::TILE, k, k_cache.rows, key0 + KEYS, end);
      copy_rows<T, D>(v_shared + (stage ^ 1) * S::TILE, v, v_cache.rows, key0 + KEYS, end);
    }
    commit_copies();
    const T *k_tile = k_shared + stage * S::TILE, *v_tile = v_shared + stage * S::TILE;

    float s[KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
#pragma unroll
    for (int i = 0; i < STEPS; i += 2) {
      u32 read[2][4];
      if (!HELD) {
        load_queries(read[0], i);
        load_queries(read[1], i + 1);
      }
      u32(&a0)[4] = HELD ? held[HELD ? i : 0] : read[0];
      u32(&a1)[4] = HELD ? held[HELD ? i + 1 : 0] : read[1];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
        u32 b[4];
        load_matrices(b, k_tile + (n * 8 + (lane & 7)) * S::STRIDE + i * 16 + (lane >> 3) * 8);
        multiply_tile<T>(s[n], a0[0], a0[1], a0[2], a0[3], b[0], b[1]);
        multiply_tile<T>(s[n], a1[0], a1[1], a1[2], a1[3], b[2], b[3]);
      }
    }

    // Whether some query of the tile must not see some of these keys.
    const bool masked = key0 + KEYS > own + 1 || (window > 0 && key0 <= own + count - 1 - window);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int position = own + query[half];
      float now = most[half];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[n][half * 2 + e];
          x *= scale;
          if (soft_cap > 0.f) x = soft_cap * tanhf(x / soft_cap);
          x *= 1.4426950408889634f;
          if (masked) {
            const int key = key0 + n * 8 + 2 * t + e;
            if (key > position || (window > 0 && key <= position - window)) x = -1e30f;
          }
          now = fmaxf(now, x);
        }
      }
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float factor = exp2_fast(most[half] - now);
      most[half] = now;
      float sum = 0.f;
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[n][half * 2 + e];
          // A query that has seen no key yet has no maximum to take off.
          x = x <= -1e30f ? 0.f : exp2_fast(x - now);
          sum += x;
        }
      }
      weight[half] = weight[half] * factor + sum;
#pragma unroll
      for (int i = 0; i < OUT_TILES; i++) {
        sums[i][half * 2] *= factor;
        sums[i][half * 2 + 1] *= factor;
      }
    }

#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      const u32 p0 = pack2<T>(s[2 * n][0], s[2 * n][1]), p1 = pack2<T>(s[2 * n][2], s[2 * n][3]);
      const u32 p2 = pack2<T>(s[2 * n + 1][0], s[2 * n + 1][1]), p3 = pack2<T>(s[2 * n + 1][2], s[2 * n + 1][3]);
#pragma unroll
      for (int i = 0; i < OUT_TILES; i += 2) {
        u32 b[4];
        load_matrices_transposed(b, v_tile + (n * 16 + (lane & 15)) * S::STRIDE + i * 8 + (lane >> 4) * 8);
        multiply_tile<T>(sums[i], p0, p1, p2, p3, b[0], b[1]);
        if (i + 1 < OUT_TILES) multiply_tile<T>(sums[i + 1], p0, p1, p2, p3, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 1);
    weight[half] += __shfl_xor_sync(0xffffffffu, weight[half], 2);
    if (query[half] >= count) continue;
    T* to = out + (first_row + query[half]) * out_stride + static_cast<i64>(head) * D;
#pragma unroll
    for (int i = 0; i < OUT_TILES; i++) {
      *reinterpret_cast<u32*>(to + i * 8 + 2 * t) =
          pack2<T>(sums[i][half * 2] / weight[half], sums[i][half * 2 + 1] / weight[half]);
    }
  }
}
#define INSTANTIATE_ATTENTION_PREFILL(name, T, D)                                                                          \
  KERNEL(128, D > 128 ? 1 : 2) name(const T* q, int q_stride, const Sequence* sequences, const QueryTile* tiles,           \
                                    int group, i64 k_full, i64 k_ring, i64 v_full, i64 v_ring, int ring_rows, int window,  \
                                    float scale, float soft_cap, T* out, int out_stride) {                                 \
    attention_prefill<T, D>(q, q_stride, sequences, tiles, group, k_full, k_ring, v_full, v_ring, ring_rows, window,       \
                            scale, soft_cap, out, out_stride);                                                             \
  }
