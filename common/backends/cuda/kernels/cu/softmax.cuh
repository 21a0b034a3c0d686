// Softmax of the groups of a row, and the choice of experts.

// Below every number: minus infinity, which no header is there to name.
DEVICE float lowest() { return __uint_as_float(0xff800000u); }

DEVICE float block_max(float v, float* scratch) {
  v = warp_max(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  float largest = scratch[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x >> 5); warp++) largest = fmaxf(largest, scratch[warp]);
  return largest;
}

template <typename T> DEVICE void softmax(const T* from, i64 from_row, T* to, i64 to_row, int width) {
  DYNAMIC_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  launch_dependents();
  wait_for_previous();
  const i64 group = static_cast<i64>(blockIdx.y) * width;
  from += from_row * blockIdx.x + group;
  to += to_row * blockIdx.x + group;
  float largest = lowest();
  for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, to_float(from[i]));
  largest = block_max(largest, scratch);
  float total = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) total += expf(to_float(from[i]) - largest);
  total = block_sum(total, scratch);
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from_float<T>(expf(to_float(from[i]) - largest) / total);
}
#define INSTANTIATE_SOFTMAX(name, T)                                                         \
  KERNEL(128, 8) name(const T* from, i64 from_row, T* to, i64 to_row, int width) {           \
    softmax<T>(from, from_row, to, to_row, width);                                           \
  }

// The `top_k` experts of each row, the lower number first where two are equal, and their shares: softmax over all experts,
// scaled to sum to one over those chosen where `normalize`. One warp a row; shared memory holds the row.
template <typename T>
DEVICE void router(const T* logits, i64 logits_row, int* chosen, i64 chosen_row, float* shares, i64 shares_row, int experts,
                   int top_k, bool normalize) {
  DYNAMIC_SHARED(shared);
  float* scores = reinterpret_cast<float*>(shared);
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x;
  logits += logits_row * blockIdx.x;
  chosen += chosen_row * blockIdx.x;
  shares += shares_row * blockIdx.x;
  float largest = lowest();
  for (int e = lane; e < experts; e += 32) {
    scores[e] = to_float(logits[e]);
    largest = fmaxf(largest, scores[e]);
  }
  largest = warp_max(largest);
  float total = 0.f;
  for (int e = lane; e < experts; e += 32) total += expf(scores[e] - largest);
  total = warp_sum(total);
  float sum = 0.f;
  for (int k = 0; k < top_k; k++) {
    float best = lowest();
    int index = experts;
    for (int e = lane; e < experts; e += 32) {
      if (scores[e] > best) {
        best = scores[e];
        index = e;
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
      const float other = __shfl_xor_sync(0xffffffffu, best, offset);
      const int other_index = __shfl_xor_sync(0xffffffffu, index, offset);
      if (other > best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
    // No number is larger than nothing: a row of NaN chooses any experts that exist.
    if (index >= experts) index = 0;
    const float share = expf(best - largest) / total;
    sum += share;
    __syncwarp();
    if (lane == 0) {
      chosen[k] = index;
      shares[k] = share;
      scores[index] = lowest();
    }
    __syncwarp();
  }
  if (normalize && lane == 0) {
    for (int k = 0; k < top_k; k++) shares[k] /= sum;
  }
}
#define INSTANTIATE_ROUTER(name, T)                                                                                       \
  KERNEL(32, 16) name(const T* logits, i64 logits_row, int* chosen, i64 chosen_row, float* shares, i64 shares_row,        \
                      int experts, int top_k, int normalize) {                                                            \
    router<T>(logits, logits_row, chosen, chosen_row, shares, shares_row, experts, top_k, normalize != 0);                \
  }
