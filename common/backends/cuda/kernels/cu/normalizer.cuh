// Norms of rows that a product reads, by each block for itself, into shared memory.

// What a thread has of a row: chunks threadIdx.x, threadIdx.x + 256, ..
template <typename T, int COLUMNS> struct Normalizer {
  static constexpr int N = Chunk<T>::N, CHUNKS = COLUMNS / N, PER_THREAD = (CHUNKS + 255) / 256;
  uint4 weight[PER_THREAD], bias[PER_THREAD];
  bool has_bias;

  DEVICE void load(const T* norm_weight, const T* norm_bias) {
    has_bias = norm_bias != nullptr;
#pragma unroll
    for (int m = 0; m < PER_THREAD; m++) {
      const int c = threadIdx.x + m * 256;
      weight[m] = bias[m] = make_uint4(0, 0, 0, 0);
      if (c < CHUNKS) weight[m] = load_weight(norm_weight + c * N);
      if (c < CHUNKS && has_bias) bias[m] = load_weight(norm_bias + c * N);
    }
  }

  // Normalises `count` rows into shared memory.
  template <int PROLOGUE>
  DEVICE void stage(const T* x, int x_stride, int first_row, int rows, int count, float epsilon, T* staged, float* scratch) {
    for (int r = 0; r < count; r++) {
      const int row = first_row + r < rows ? first_row + r : rows - 1;
      const T* from = x + static_cast<i64>(row) * x_stride;
      float h[PER_THREAD][N];
      float total = 0.f;
#pragma unroll
      for (int m = 0; m < PER_THREAD; m++) {
        const int c = threadIdx.x + m * 256;
#pragma unroll
        for (int e = 0; e < N; e++) h[m][e] = 0.f;
        if (c < CHUNKS) unpack16<T>(load16(from + c * N), h[m]);
#pragma unroll
        for (int e = 0; e < N; e++) total += PROLOGUE == 3 ? h[m][e] : h[m][e] * h[m][e];
      }
      float squares = block_sum(total, scratch, r > 0), mean = 0.f;
      if (PROLOGUE == 3) {
        mean = squares / COLUMNS;
        total = 0.f;
#pragma unroll
        for (int m = 0; m < PER_THREAD; m++) {
          if (static_cast<int>(threadIdx.x) + m * 256 < CHUNKS) {
#pragma unroll
            for (int e = 0; e < N; e++) total += (h[m][e] - mean) * (h[m][e] - mean);
          }
        }
        squares = block_sum(total, scratch);
      }
      const float factor = 1.f / sqrtf(squares / COLUMNS + epsilon);
#pragma unroll
      for (int m = 0; m < PER_THREAD; m++) {
        const int c = threadIdx.x + m * 256;
        if (c < CHUNKS) {
          float w[N];
          unpack16<T>(weight[m], w);
#pragma unroll
          for (int e = 0; e < N; e++) h[m][e] = (h[m][e] - mean) * factor * (PROLOGUE == 2 ? 1.f + w[e] : w[e]);
          if (PROLOGUE == 3 && has_bias) {
            unpack16<T>(bias[m], w);
#pragma unroll
            for (int e = 0; e < N; e++) h[m][e] += w[e];
          }
          *reinterpret_cast<uint4*>(staged + r * COLUMNS + c * N) = pack16<T>(h[m]);
        }
      }
    }
    __syncthreads();
  }
};
