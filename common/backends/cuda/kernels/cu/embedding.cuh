// Rows of tables: embeddings, and the rows whose logits are wanted.

template <typename T, int STEP>
DEVICE void embed_row(const T* row, const T* position_row, T* out, int width, float scale) {
  for (int i = threadIdx.x * STEP; i < width; i += blockDim.x * STEP) {
    float x[STEP];
    load_elements<T, STEP>(row + i, x);
#pragma unroll
    for (int e = 0; e < STEP; e++) x[e] *= scale;
    if (position_row != nullptr) {
      float p[STEP];
      load_elements<T, STEP>(position_row + i, p);
#pragma unroll
      for (int e = 0; e < STEP; e++) x[e] = rounded<T>(x[e]) + p[e];
    }
    store_elements<T, STEP>(out + i, x);
  }
}

template <typename T>
DEVICE void embedding(const int* ids, const T* table, const int* positions, const T* position_table, T* out, int width,
                      int vocabulary, int position_count, float scale) {
  launch_dependents();
  wait_for_previous();
  const int row = blockIdx.x, id = ids[row];
  out += static_cast<i64>(row) * width;
  const bool known = id >= 0 && id < vocabulary;
  const T* from = table + static_cast<i64>(known ? id : 0) * width;
  const T* position_row = nullptr;
  if (position_table != nullptr) {
    const int position = positions[row];
    if (position >= 0 && position < position_count) position_row = position_table + static_cast<i64>(position) * width;
  }
  const float factor = known ? scale : 0.f;
  if (whole_chunks<T>(width, 0, 0)) embed_row<T, Chunk<T>::N>(from, position_row, out, width, factor);
  else embed_row<T, 1>(from, position_row, out, width, factor);
}
#define INSTANTIATE_EMBEDDING(name, T)                                                                                \
  KERNEL(128, 8) name(const int* ids, const T* table, const int* positions, const T* position_table, T* out, int width, \
                      int vocabulary, int position_count, float scale) {                                              \
    embedding<T>(ids, table, positions, position_table, out, width, vocabulary, position_count, scale);               \
  }

template <typename T>
DEVICE void select_rows(const T* x, int x_stride, const int* selected, T* out, int width) {
  launch_dependents();
  wait_for_previous();
  const int row = selected[blockIdx.x];
  if (row < 0) return;
  x += static_cast<i64>(row) * x_stride;
  out += static_cast<i64>(blockIdx.x) * width;
  if (whole_chunks<T>(width, x_stride, 0)) {
    constexpr int N = Chunk<T>::N;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) *reinterpret_cast<uint4*>(out + i) = load16(x + i);
  } else {
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[i] = x[i];
  }
}
#define INSTANTIATE_SELECT_ROWS(name, T)                                                           \
  KERNEL(128, 8) name(const T* x, int x_stride, const int* selected, T* out, int width) {          \
    select_rows<T>(x, x_stride, selected, out, width);                                             \
  }
