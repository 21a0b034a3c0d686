// Puts the parts of split attention together. A block does one query head of a row: groups of as many threads as a head has
// elements each add up some of the parts, so that many loads are under way.

template <typename T>
DEVICE void attention_combine(const float* partial, int splits, int head_dim, const int* row_sequence,
                              const Sequence* sequences, int max_rows, int window, T* out, int out_stride) {
  DYNAMIC_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  float* factors = sums + blockDim.x;
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
  const int groups = blockDim.x / head_dim, group = threadIdx.x / head_dim, d = threadIdx.x % head_dim;
  if (group < groups) {
    float sum = 0.f;
#pragma unroll 8
    for (int i = group; i < active; i += groups) sum += factors[i] * parts[i * stride + d];
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (group == 0) {
    float sum = 0.f;
    for (int i = 0; i < groups; i++) sum += sums[i * head_dim + d];
    out[static_cast<i64>(row) * out_stride + head * head_dim + d] = from_float<T>(sum / weight);
  }
}
#define INSTANTIATE_ATTENTION_COMBINE(name, T)                                                                      \
  KERNEL(512, 2) name(const float* partial, int splits, int head_dim, const int* row_sequence,                      \
                      const Sequence* sequences, int max_rows, int window, T* out, int out_stride) {                \
    attention_combine<T>(partial, splits, head_dim, row_sequence, sequences, max_rows, window, out, out_stride);    \
  }
