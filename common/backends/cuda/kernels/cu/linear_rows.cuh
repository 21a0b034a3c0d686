// Products of a few rows with a weight that is streamed once, by fused multiply-adds.
//
// A warp has two rows of the weight in hand (of a gated product: the gate's and the other of one output), or SPLIT warps
// share them, each with a part of the columns. The first loads of the weight are under way before the kernel before has
// ended. With a prologue the block first normalises the activations into shared memory.

template <typename T, int COLUMNS, int ROWS, int PROLOGUE>
DEVICE void stage_normalized(const T* x, int x_stride, int first_row, int rows, const T* norm_weight, const T* norm_bias,
                             float epsilon, T* staged, float* scratch) {
  constexpr int N = Chunk<T>::N, CHUNKS = COLUMNS / N, PER_THREAD = (CHUNKS + 255) / 256;
  for (int r = 0; r < ROWS; r++) {
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
    float squares = block_sum(total, scratch), mean = 0.f;
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
        float w[N], b[N];
        unpack16<T>(load_weight(norm_weight + c * N), w);
#pragma unroll
        for (int e = 0; e < N; e++) h[m][e] = (h[m][e] - mean) * factor * (PROLOGUE == 2 ? 1.f + w[e] : w[e]);
        if (PROLOGUE == 3 && norm_bias != nullptr) {
          unpack16<T>(load_weight(norm_bias + c * N), b);
#pragma unroll
          for (int e = 0; e < N; e++) h[m][e] += b[e];
        }
        *reinterpret_cast<uint4*>(staged + r * COLUMNS + c * N) = pack16<T>(h[m]);
      }
    }
  }
  __syncthreads();
}

template <typename T, typename W, int COLUMNS, int ROWS, int SPLIT, int PROLOGUE, typename E>
DEVICE void linear_rows(LINEAR_PARAMETERS(T)) {
  constexpr int WARPS = 8, GROUPS = WARPS / SPLIT, N = Chunk<T>::N;
  constexpr int CHUNKS = (COLUMNS + W::CHUNK - 1) / W::CHUNK, STRIDE = SPLIT * 32;
  constexpr int STEPS = (CHUNKS + STRIDE - 1) / STRIDE;
  constexpr int IN_FLIGHT = W::CHUNK <= N ? 4 : W::CHUNK <= 16 ? 2 : 1, UNROLL = STEPS < IN_FLIGHT ? STEPS : IN_FLIGHT;
  DYNAMIC_SHARED(shared);
  T* staged = reinterpret_cast<T*>(shared);
  float* parts = reinterpret_cast<float*>(shared + (PROLOGUE != 0 ? ROWS * COLUMNS * sizeof(T) : 0));
  LINEAR_EPILOGUE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int group = warp / SPLIT, part = warp % SPLIT;
  const int weight_rows = E::GATED ? 2 * n : n;
  const int first_row = blockIdx.y * ROWS;

  launch_dependents();
  bool waited = false;
  const int pair = blockIdx.x * GROUPS + group;
  // Past the end the last row is read again, and the result dropped.
  int j0 = E::GATED ? pair : 2 * pair, j1 = E::GATED ? n + pair : 2 * pair + 1;
  j0 = j0 < weight_rows ? j0 : weight_rows - 1;
  j1 = j1 < weight_rows ? j1 : weight_rows - 1;
  const u8 *w0 = W::row(weight, COLUMNS, j0), *w1 = W::row(weight, COLUMNS, j1);
  const typename W::Row row0(scales, offsets, COLUMNS, j0), row1(scales, offsets, COLUMNS, j1);
  float sums[2][ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) sums[0][r] = sums[1][r] = 0.f;

#pragma unroll 1
  for (int step = 0; step < STEPS; step += UNROLL) {
    uint4 bytes[UNROLL][2];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int c = (step + u) * STRIDE + part * 32 + lane;
      if (c < CHUNKS) {
        bytes[u][0] = load_weight(w0 + c * 16);
        bytes[u][1] = load_weight(w1 + c * 16);
      } else {
        bytes[u][0] = bytes[u][1] = make_uint4(0, 0, 0, 0);
      }
    }
    if (!waited) {
      wait_for_previous();
      if (PROLOGUE != 0) {
        stage_normalized<T, COLUMNS, ROWS, PROLOGUE>(x, x_stride, first_row, rows, norm_weight, norm_bias, epsilon, staged,
                                                     parts);
      }
      waited = true;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int c = (step + u) * STRIDE + part * 32 + lane, k = c * W::CHUNK;
      if (c >= CHUNKS) continue;
      float v0[W::CHUNK], v1[W::CHUNK];
      W::values(bytes[u][0], row0, k, v0);
      W::values(bytes[u][1], row1, k, v1);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int row = first_row + r < rows ? first_row + r : rows - 1;
#pragma unroll
        for (int i = 0; i < W::CHUNK; i += N) {
          float h[N];
          if (PROLOGUE != 0) unpack16<T>(*reinterpret_cast<const uint4*>(staged + r * COLUMNS + k + i), h);
          else unpack16<T>(load16(x + static_cast<i64>(row) * x_stride + k + i), h);
#pragma unroll
          for (int e = 0; e < N; e++) {
            sums[0][r] = fmaf(v0[i + e], h[e], sums[0][r]);
            sums[1][r] = fmaf(v1[i + e], h[e], sums[1][r]);
          }
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    sums[0][r] = warp_sum(sums[0][r]);
    sums[1][r] = warp_sum(sums[1][r]);
  }
  if (SPLIT > 1) {
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        parts[(warp * ROWS + r) * 2] = sums[0][r];
        parts[(warp * ROWS + r) * 2 + 1] = sums[1][r];
      }
    }
    __syncthreads();
    if (part == 0) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        sums[0][r] = sums[1][r] = 0.f;
        for (int other = 0; other < SPLIT; other++) {
          sums[0][r] += parts[((warp + other) * ROWS + r) * 2];
          sums[1][r] += parts[((warp + other) * ROWS + r) * 2 + 1];
        }
      }
    }
  }
  if (part == 0 && lane == 0) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (first_row + r >= rows) continue;
      if (E::GATED) {
        if (pair < n) E::template store<T>(epilogue, first_row + r, pair, sums[0][r], sums[1][r]);
      } else {
        if (2 * pair < n) E::template store<T>(epilogue, first_row + r, 2 * pair, sums[0][r], 0.f);
        if (2 * pair + 1 < n) E::template store<T>(epilogue, first_row + r, 2 * pair + 1, sums[1][r], 0.f);
      }
    }
  }
}
// Blocks that fit a multiprocessor with the registers that so many sums and unpacked weights take.
constexpr int linear_rows_blocks(int rows, int chunk) {
  return rows > 4 ? 1 : rows > 2 || chunk > 16 || (rows > 1 && chunk > 8) ? 2 : rows > 1 || chunk > 8 ? 3 : 4;
}
#define INSTANTIATE_LINEAR_ROWS(name, T, W, COLUMNS, ROWS, SPLIT, PROLOGUE, E)                       \
  KERNEL(256, linear_rows_blocks(ROWS, UNPACK_TYPE W::CHUNK)) name(LINEAR_PARAMETERS(T)) {           \
    linear_rows<T, UNPACK_TYPE W, COLUMNS, ROWS, SPLIT, PROLOGUE, UNPACK_TYPE E>(LINEAR_ARGUMENTS); \
  }
