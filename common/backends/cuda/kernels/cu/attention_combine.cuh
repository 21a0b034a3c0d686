// Puts the parts of split attention together. A block does one query head of a row.

template <typename T>
DEVICE void attention_combine(const float* partial, int splits, int head_dim, const int* row_sequence,
                              const Sequence* sequences, int max_rows, int window, T* out, int out_stride) {
  DYNAMIC_SHARED(shared);
  float* factors = reinterpret_cast<float*>(shared);
  launch_dependents();
  wait_for_previous();
  const int head = blockIdx.x, row = blockIdx.y;
  const int index = row_sequence[row];
  if (index < 0) return;
  const Sequence sequence = sequences[index];
  if (sequence.rows > max_rows) return;
  const int active = KeySplit(sequence, row, window, splits).active, stride = head_dim + 2;
  const float* parts = partial + (static_cast<i64>(row) * gridDim.x + head) * splits * stride;

  // Each warp finds the maximum and the sum of weights by itself.
  const int lane = threadIdx.x & 31;
  float most = LOWEST;
  for (int i = lane; i < active; i += 32) most = fmaxf(most, parts[i * stride + head_dim]);
  most = warp_max(most);
  float weight = 0.f;
  for (int i = lane; i < active; i += 32) {
    const float factor = exp2_fast(parts[i * stride + head_dim] - most);
    if (threadIdx.x < 32) factors[i] = factor;
    weight += factor * parts[i * stride + head_dim + 1];
  }
  weight = warp_sum(weight);
  __syncthreads();
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
    float sum = 0.f;
#pragma unroll 8
    for (int i = 0; i < active; i++) sum += factors[i] * parts[i * stride + d];
    out[static_cast<i64>(row) * out_stride + head * head_dim + d] = from_float<T>(sum / weight);
  }
}
#define INSTANTIATE_ATTENTION_COMBINE(name, T)                                                                      \
  KERNEL(128, 8) name(const float* partial, int splits, int head_dim, const int* row_sequence,                      \
                      const Sequence* sequences, int max_rows, int window, T* out, int out_stride) {                \
    attention_combine<T>(partial, splits, head_dim, row_sequence, sequences, max_rows, window, out, out_stride);    \
  }
