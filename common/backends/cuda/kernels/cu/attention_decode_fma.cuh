// Attention of single queries by fused multiply-adds: any type, any head_dim up to 256. A block does a split of the keys of one
// query head; its warps take keys in turn, lanes the dimensions.

template <typename T> DEVICE void attention_decode_fma(ATTENTION_DECODE_PARAMETERS(T)) {
  constexpr int WARPS = 4, PER_LANE = 8;
  DYNAMIC_SHARED(shared);
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int split = blockIdx.x, splits = gridDim.x, head = blockIdx.y, row = blockIdx.z;
  const int index = row_sequence[row];
  if (index < 0) return;
  const Sequence sequence = sequences[index];
  if (sequence.rows > max_rows) return;
  const KeySplit keys(sequence, row, window, splits);
  if (split >= keys.active) return;
  const int first = keys.begin + split * keys.length;
  const int last = first + keys.length < keys.end ? first + keys.length : keys.end;
  const Cache<T> k_cache(sequence, k_full, k_ring, ring_rows), v_cache(sequence, v_full, v_ring, ring_rows);
  const T *k = k_cache.head(head / group, head_dim), *v = v_cache.head(head / group, head_dim);
  q += static_cast<i64>(row) * q_stride + head * head_dim;

  float query[PER_LANE], sums[PER_LANE];
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const int d = lane + 32 * i;
    query[i] = d < head_dim ? to_float(q[d]) : 0.f;
    sums[i] = 0.f;
  }
  float most = LOWEST, weight = 0.f;
  for (int key = first + warp; key < last; key += WARPS) {
    const i64 at = static_cast<i64>(key % k_cache.rows) * head_dim;
    float product = 0.f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int d = lane + 32 * i;
      if (d < head_dim) product += query[i] * to_float(k[at + d]);
    }
    const float s = score(warp_sum(product), scale, soft_cap);
    const float now = fmaxf(most, s), factor = exp2_fast(most - now), p = exp2_fast(s - now);
    most = now;
    weight = weight * factor + p;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int d = lane + 32 * i;
      if (d < head_dim) sums[i] = sums[i] * factor + p * to_float(v[at + d]);
    }
  }

  float* states = reinterpret_cast<float*>(shared);
  float* state = states + warp * (head_dim + 2);
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    if (lane + 32 * i < head_dim) state[lane + 32 * i] = sums[i];
  }
  if (lane == 0) {
    state[head_dim] = most;
    state[head_dim + 1] = weight;
  }
  __syncthreads();
  float* part = partial + ((static_cast<i64>(row) * gridDim.y + head) * splits + split) * (head_dim + 2);
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
    store_state<T>(states, head_dim + 2, WARPS, d, head_dim, splits, part,
                   out + static_cast<i64>(row) * out_stride + head * head_dim);
  }
}
#define INSTANTIATE_ATTENTION_DECODE_FMA(name, T) \
  KERNEL(128, 8) name(ATTENTION_DECODE_PARAMETERS(T)) { attention_decode_fma<T>(ATTENTION_DECODE_ARGUMENTS); }
