// The chosen experts of a mixture: each row's own, their weights read where they are. A warp does one output.

// The product of two vectors, for every lane. The weight was there before; x an earlier kernel wrote.
template <typename T, int STEP> DEVICE float expert_product(const T* weight, const T* x, int count, int lane) {
  float sum = 0.f;
#pragma unroll 4
  for (int i = lane * STEP; i < count; i += 32 * STEP) {
    float w[STEP], h[STEP];
    if constexpr (STEP == 1) w[0] = to_float(weight[i]);
    else unpack16<T>(load_weight(weight + i), w);
    load_elements<T, STEP>(x + i, h);
#pragma unroll
    for (int e = 0; e < STEP; e++) sum = fmaf(w[e], h[e], sum);
  }
  return warp_sum(sum);
}

// gated[r][k][i] = silu(gate) · up of expert chosen[r][k], whose rows of the weight are `intermediate` of the gate and then as
// many more.
template <typename T>
DEVICE void experts_gate_up(const T* x, int x_stride, const int* chosen, int chosen_stride, const T* weight, T* gated,
                            int gated_stride, int hidden, int intermediate, int experts) {
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x & 31, i = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  const int k = blockIdx.y, row = blockIdx.z;
  const int expert = chosen[row * chosen_stride + k];
  if (i >= intermediate || expert < 0 || expert >= experts) return;
  x += static_cast<i64>(row) * x_stride;
  const T* gate = weight + (static_cast<i64>(expert) * 2 * intermediate + i) * hidden;
  const T* up = gate + static_cast<i64>(intermediate) * hidden;
  float a, b;
  if (whole_chunks<T>(hidden, x_stride, 0)) {
    a = expert_product<T, Chunk<T>::N>(gate, x, hidden, lane);
    b = expert_product<T, Chunk<T>::N>(up, x, hidden, lane);
  } else {
    a = expert_product<T, 1>(gate, x, hidden, lane);
    b = expert_product<T, 1>(up, x, hidden, lane);
  }
  if (lane == 0) gated[static_cast<i64>(row) * gated_stride + k * intermediate + i] = from_float<T>(activate<1>(a) * b);
}
#define INSTANTIATE_EXPERTS_GATE_UP(name, T)                                                                               \
  KERNEL(256, 4) name(const T* x, int x_stride, const int* chosen, int chosen_stride, const T* weight, T* gated,           \
                      int gated_stride, int hidden, int intermediate, int experts) {                                       \
    experts_gate_up<T>(x, x_stride, chosen, chosen_stride, weight, gated, gated_stride, hidden, intermediate, experts);    \
  }

// out[r] = Σ_k shares[r][k] · down of expert chosen[r][k].
template <typename T>
DEVICE void experts_down(const T* gated, int gated_stride, const int* chosen, int chosen_stride, const float* shares,
                         int shares_stride, const T* weight, T* out, int out_stride, int hidden, int intermediate,
                         int experts, int top_k) {
  launch_dependents();
  wait_for_previous();
  const int lane = threadIdx.x & 31, j = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), row = blockIdx.y;
  if (j >= hidden) return;
  float sum = 0.f;
  for (int k = 0; k < top_k; k++) {
    const int expert = chosen[row * chosen_stride + k];
    if (expert < 0 || expert >= experts) continue;
    const T* h = gated + static_cast<i64>(row) * gated_stride + k * intermediate;
    const T* w = weight + (static_cast<i64>(expert) * hidden + j) * intermediate;
    const float product = whole_chunks<T>(intermediate, gated_stride, 0)
                              ? expert_product<T, Chunk<T>::N>(w, h, intermediate, lane)
                              : expert_product<T, 1>(w, h, intermediate, lane);
    sum = fmaf(shares[row * shares_stride + k], product, sum);
  }
  if (lane == 0) out[static_cast<i64>(row) * out_stride + j] = from_float<T>(sum);
}
#define INSTANTIATE_EXPERTS_DOWN(name, T)                                                                                  \
  KERNEL(256, 4) name(const T* gated, int gated_stride, const int* chosen, int chosen_stride, const float* shares,         \
                      int shares_stride, const T* weight, T* out, int out_stride, int hidden, int intermediate,            \
                      int experts, int top_k) {                                                                            \
    experts_down<T>(gated, gated_stride, chosen, chosen_stride, shares, shares_stride, weight, out, out_stride, hidden,    \
                    intermediate, experts, top_k);                                                                         \
  }
