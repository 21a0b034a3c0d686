// RMSNorm and LayerNorm, with the additions before and after.

template <typename T, int STEP, bool LAYER, bool UNIT_OFFSET, bool BEFORE, bool AFTER>
DEVICE void norm_group(const T* x, const T* before, T* sum, const T* weight, const T* bias, const T* after, T* out, int width,
                       float epsilon, float* scratch, float* h) {
  const int first = threadIdx.x * STEP, step = blockDim.x * STEP;
  float total = 0.f;
  for (int i = first; i < width; i += step) {
    float v[STEP];
    load_elements<T, STEP>(x + i, v);
    if (BEFORE) {
      float b[STEP];
      load_elements<T, STEP>(before + i, b);
#pragma unroll
      for (int e = 0; e < STEP; e++) v[e] = rounded<T>(v[e] + b[e]);
      store_elements<T, STEP>(sum + i, v);
    }
#pragma unroll
    for (int e = 0; e < STEP; e++) {
      h[i + e] = v[e];
      total += LAYER ? v[e] : v[e] * v[e];
    }
  }
  float mean = 0.f;
  float squares = block_sum(total, scratch);
  if (LAYER) {
    mean = squares / width;
    total = 0.f;
    for (int i = first; i < width; i += step) {
#pragma unroll
      for (int e = 0; e < STEP; e++) total += (h[i + e] - mean) * (h[i + e] - mean);
    }
    squares = block_sum(total, scratch);
  }
  const float factor = 1.f / sqrtf(squares / width + epsilon);
  for (int i = first; i < width; i += step) {
    float v[STEP], w[STEP];
    load_elements<T, STEP>(weight + i, w);
#pragma unroll
    for (int e = 0; e < STEP; e++) v[e] = (h[i + e] - mean) * factor * (UNIT_OFFSET ? 1.f + w[e] : w[e]);
    if (LAYER && bias != nullptr) {
      load_elements<T, STEP>(bias + i, w);
#pragma unroll
      for (int e = 0; e < STEP; e++) v[e] += w[e];
    }
    if (AFTER) {
      load_elements<T, STEP>(after + i, w);
#pragma unroll
      for (int e = 0; e < STEP; e++) v[e] = rounded<T>(v[e]) + w[e];
    }
    store_elements<T, STEP>(out + i, v);
  }
}

template <typename T, bool LAYER, bool UNIT_OFFSET, bool BEFORE, bool AFTER>
DEVICE void norm(const T* x, int x_stride, const T* before, T* sum, const T* weight, const T* bias, const T* after, T* out,
                 int out_stride, int width, float epsilon) {
  DYNAMIC_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  float* h = scratch + 32;
  launch_dependents();
  if (threadIdx.x * 64 < width) prefetch(weight + threadIdx.x * 64);
  wait_for_previous();
  const i64 group = static_cast<i64>(blockIdx.y) * width;
  const i64 from = static_cast<i64>(blockIdx.x) * x_stride + group, to = static_cast<i64>(blockIdx.x) * out_stride + group;
  const T *b = BEFORE ? before + from : nullptr, *a = AFTER ? after + to : nullptr;
  T* s = BEFORE ? sum + from : nullptr;
  if (whole_chunks<T>(width, x_stride, out_stride)) {
    norm_group<T, Chunk<T>::N, LAYER, UNIT_OFFSET, BEFORE, AFTER>(x + from, b, s, weight, bias, a, out + to, width, epsilon,
                                                                  scratch, h);
  } else {
    norm_group<T, 1, LAYER, UNIT_OFFSET, BEFORE, AFTER>(x + from, b, s, weight, bias, a, out + to, width, epsilon, scratch, h);
  }
}
#define INSTANTIATE_NORM(name, T, LAYER, UNIT_OFFSET, BEFORE, AFTER)                                                       \
  KERNEL(512, 2) name(const T* x, int x_stride, const T* before, T* sum, const T* weight, const T* bias, const T* after,   \
                      T* out, int out_stride, int width, float epsilon) {                                                  \
    norm<T, LAYER, UNIT_OFFSET, BEFORE, AFTER>(x, x_stride, before, sum, weight, bias, after, out, out_stride, width,      \
                                               epsilon);                                                                   \
  }
