// Head norms and rotation of queries and keys; keys and values go to the cache. A warp does one head of a row.

template <typename T, int NORM>
DEVICE void rotary_append(const T* qkv, int row_stride, int q_heads, int kv_heads, int head_dim, int rotary_dim,
                          bool interleaved, const float* inv_freq, float attention_factor, const T* q_norm, const T* k_norm,
                          float epsilon, const int* positions, const int* row_sequence, const Sequence* sequences, i64 k_full,
                          i64 k_ring, i64 v_full, i64 v_ring, int ring_rows, T* q_out, int q_out_stride) {
  DYNAMIC_SHARED(shared);
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int row = blockIdx.x, head = blockIdx.y * (blockDim.x >> 5) + warp;
  if (head >= q_heads + 2 * kv_heads) return;
  const bool is_query = head < q_heads, is_value = head >= q_heads + kv_heads;
  const T* x = qkv + static_cast<i64>(row) * row_stride + head * head_dim;

  T* out = q_out + static_cast<i64>(row) * q_out_stride + head * head_dim;
  if (!is_query) {
    const int index = row_sequence[row];
    if (index < 0) return;
    const Sequence sequence = sequences[index];
    const int key = sequence.past + row - sequence.first_row;
    const Cache<T> cache(sequence, is_value ? v_full : k_full, is_value ? v_ring : k_ring, ring_rows);
    if (ring_rows == 0 && key >= cache.rows) return;
    out = cache.head(head - q_heads - (is_value ? kv_heads : 0), head_dim) + static_cast<i64>(key % cache.rows) * head_dim;
  }
  if (is_value) {
    for (int d = lane; d < head_dim; d += 32) out[d] = x[d];
    return;
  }

  float* h = reinterpret_cast<float*>(shared) + warp * head_dim;
  float squares = 0.f;
  for (int d = lane; d < head_dim; d += 32) {
    h[d] = to_float(x[d]);
    squares += h[d] * h[d];
  }
  if (NORM != 0) {
    const float factor = 1.f / sqrtf(warp_sum(squares) / head_dim + epsilon);
    const T* weight = is_query ? q_norm : k_norm;
    for (int d = lane; d < head_dim; d += 32) {
      const float w = to_float(weight[d]);
      h[d] = rounded<T>(h[d] * factor * (NORM == 2 ? 1.f + w : w));
    }
  }
  __syncwarp();
  const float position = static_cast<float>(positions[row]);
  const int half = rotary_dim / 2;
  for (int d = lane; d < head_dim; d += 32) {
    float value = h[d];
    if (d < rotary_dim) {
      const bool second = interleaved ? (d & 1) != 0 : d >= half;
      const int pair = interleaved ? d / 2 : (second ? d - half : d);
      const int other = interleaved ? (d ^ 1) : (second ? d - half : d + half);
      float sine, cosine;
      sine_cosine(position * inv_freq[pair], &sine, &cosine);
      sine *= attention_factor;
      value = value * (cosine * attention_factor) + h[other] * (second ? sine : -sine);
    }
    out[d] = from_float<T>(value);
  }
}
#define INSTANTIATE_ROTARY_APPEND(name, T, NORM)                                                                            \
  KERNEL(128, 8) name(const T* qkv, int row_stride, int q_heads, int kv_heads, int head_dim, int rotary_dim,                \
                      int interleaved, const float* inv_freq, float attention_factor, const T* q_norm, const T* k_norm,     \
                      float epsilon, const int* positions, const int* row_sequence, const Sequence* sequences, i64 k_full,  \
                      i64 k_ring, i64 v_full, i64 v_ring, int ring_rows, T* q_out, int q_out_stride) {                      \
    rotary_append<T, NORM>(qkv, row_stride, q_heads, kv_heads, head_dim, rotary_dim, interleaved != 0, inv_freq,            \
                           attention_factor, q_norm, k_norm, epsilon, positions, row_sequence, sequences, k_full, k_ring,   \
                           v_full, v_ring, ring_rows, q_out, q_out_stride);                                                 \
  }
