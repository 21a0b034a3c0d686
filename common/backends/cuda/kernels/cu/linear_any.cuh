// A product with a weight of any dimensions, an element at a time: a warp does one output of one row. What the other
// kernels are specialised by is read of `flags` here (see Linear::flags).

template <typename T, typename W> DEVICE void linear_any(LINEAR_PARAMETERS(T)) {
  DYNAMIC_SHARED(shared);
  float* warp_sums = reinterpret_cast<float*>(shared);
  float* h = warp_sums + 32;
  launch_dependents();
  wait_for_previous();
  const int prologue = flags & 3, function = flags >> 2 & 3;
  const bool has_bias = flags >> 4 & 1, gated = flags >> 5 & 1, cap = flags >> 6 & 1, has_residual = flags >> 7 & 1,
             float_output = flags >> 8 & 1;
  const int lane = threadIdx.x & 31, row = blockIdx.y;
  x += static_cast<i64>(row) * x_stride;

  float total = 0.f;
  for (int k = threadIdx.x; k < columns; k += blockDim.x) {
    h[k] = to_float(x[k]);
    total += prologue == 3 ? h[k] : h[k] * h[k];
  }
  float squares = block_sum(total, warp_sums), mean = 0.f;
  if (prologue != 0) {
    if (prologue == 3) {
      mean = squares / columns;
      total = 0.f;
      for (int k = threadIdx.x; k < columns; k += blockDim.x) total += (h[k] - mean) * (h[k] - mean);
      squares = block_sum(total, warp_sums);
    }
    const float factor = 1.f / sqrtf(squares / columns + epsilon);
    for (int k = threadIdx.x; k < columns; k += blockDim.x) {
      const float w = to_float(norm_weight[k]) + (prologue == 2 ? 1.f : 0.f);
      const float b = prologue == 3 && norm_bias != nullptr ? to_float(norm_bias[k]) : 0.f;
      h[k] = rounded<T>((h[k] - mean) * factor * w + b);
    }
    __syncthreads();
  }

  const int j = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (j >= n) return;
  float v[2] = {0.f, 0.f};
  for (int part = 0; part < (gated ? 2 : 1); part++) {
    const i64 index = static_cast<i64>(part) * n + j;
    const u8* w = W::row(weight, columns, index);
    const typename W::Row of_row(scales, offsets, columns, index);
    float sum = 0.f;
    for (int k = lane; k < columns; k += 32) sum += h[k] * W::element(w, of_row, k);
    v[part] = warp_sum(sum);
    if (has_bias) v[part] += to_float(static_cast<const T*>(bias)[index]);
  }
  if (lane != 0) return;
  float out = v[0];
  switch (function) {
    case 1: out = activate<1>(out); break;
    case 2: out = activate<2>(out); break;
    case 3: out = activate<3>(out); break;
  }
  out *= (gated ? v[1] : 1.f) * output_scale;
  if (cap) out = soft_capped(out, soft_cap);
  if (has_residual) out += to_float(static_cast<const T*>(residual)[static_cast<i64>(row) * residual_stride + j]);
  const i64 at = static_cast<i64>(row) * y_stride + j;
  if (float_output) static_cast<float*>(y)[at] = out;
  else static_cast<T*>(y)[at] = from_float<T>(out);
}
#define INSTANTIATE_LINEAR_ANY(name, T, W) \
  KERNEL(256, 4) name(LINEAR_PARAMETERS(T)) { linear_any<T, UNPACK_TYPE W>(LINEAR_ARGUMENTS); }
