// Products of a few rows with a weight that is streamed once, by fused multiply-adds.
//
// A warp has two rows of the weight in hand (of a gated product: the gate's and the other of one output), or SPLIT warps
// share them, each with a part of the columns. The first loads of the weight are under way before the kernel before has
// ended. With a prologue the block first normalises the activations into shared memory.

template <typename T, typename W, int COLUMNS, int ROWS, int SPLIT, int PROLOGUE, typename E>
DEVICE void linear_rows(LINEAR_PARAMETERS(T)) {
  constexpr int WARPS = 8, GROUPS = WARPS / SPLIT, N = Chunk<T>::N, PIECES = W::CHUNK / N > 0 ? W::CHUNK / N : 1;
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

  Normalizer<T, COLUMNS> normalizer;
  if (PROLOGUE != 0) normalizer.load(norm_weight, PROLOGUE == 3 ? norm_bias : nullptr);
  // The outputs that this lane stores, if any: j0, and j1 if not gated.
  const bool stores0 = part == 0 && lane == 0 && (E::GATED ? pair < n : 2 * pair < n);
  const bool stores1 = !E::GATED && part == 0 && lane == 0 && 2 * pair + 1 < n;
  typename E::Bias bias0 = {0.f, 0.f}, bias1 = {0.f, 0.f};
  if (stores0) bias0 = E::template load_bias<T>(epilogue, j0);
  if (stores1) bias1 = E::template load_bias<T>(epilogue, j1);
  float residual0[ROWS], residual1[ROWS];

#pragma unroll 1
  for (int step = 0; step < STEPS; step += UNROLL) {
    uint4 bytes[UNROLL][2];
    typename W::Groups groups[UNROLL][2];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int c = (step + u) * STRIDE + part * 32 + lane;
      bytes[u][0] = bytes[u][1] = make_uint4(0, 0, 0, 0);
      groups[u][0].load(row0, c < CHUNKS ? c * W::CHUNK : 0);
      groups[u][1].load(row1, c < CHUNKS ? c * W::CHUNK : 0);
      if (c < CHUNKS) {
        bytes[u][0] = load_weight(w0 + c * 16);
        bytes[u][1] = load_weight(w1 + c * 16);
      }
    }
    if (step == 0) {
      wait_for_previous();
      if (PROLOGUE != 0) normalizer.template stage<PROLOGUE>(x, x_stride, first_row, rows, ROWS, epsilon, staged, parts);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = first_row + r < rows ? first_row + r : rows - 1;
      const T* from = PROLOGUE != 0 ? staged + r * COLUMNS : x + static_cast<i64>(row) * x_stride;
      uint4 h[UNROLL][PIECES];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        // Past the end the weight is zeros, and the first columns do as well as any.
        const int c = (step + u) * STRIDE + part * 32 + lane, k = c < CHUNKS ? c * W::CHUNK : 0;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
          if (PROLOGUE != 0) h[u][i] = *reinterpret_cast<const uint4*>(from + k + i * N);
          else h[u][i] = load16(from + k + i * N);
        }
      }
      if (step == 0) {
        residual0[r] = stores0 && first_row + r < rows ? E::template load_residual<T>(epilogue, row, j0) : 0.f;
        residual1[r] = stores1 && first_row + r < rows ? E::template load_residual<T>(epilogue, row, j1) : 0.f;
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int c = (step + u) * STRIDE + part * 32 + lane;
        float v0[W::CHUNK], v1[W::CHUNK];
        W::values(bytes[u][0], groups[u][0], v0);
        W::values(bytes[u][1], groups[u][1], v1);
        // Few bits that are all zero are numbers with an offset.
        const bool valid = W::ZERO_IS_ZERO || c < CHUNKS;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
          float x_values[N];
          unpack16<T>(h[u][i], x_values);
#pragma unroll
          for (int e = 0; e < N; e++) {
            if (!valid) x_values[e] = 0.f;
            sums[0][r] = fmaf(v0[i * N + e], x_values[e], sums[0][r]);
            sums[1][r] = fmaf(v1[i * N + e], x_values[e], sums[1][r]);
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
    // What the prologue sums with is read by all before the staged rows are.
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
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first_row + r >= rows) continue;
    if (stores0) E::store(epilogue, first_row + r, j0, sums[0][r], sums[1][r], bias0, residual0[r]);
    if (stores1) E::store(epilogue, first_row + r, j1, sums[1][r], 0.f, bias1, residual1[r]);
  }
}
// Blocks that fit a multiprocessor with the registers that so many sums and unpacked weights take.
constexpr int linear_rows_blocks(int rows, int chunk) {
  return rows > 4 ? 1 : rows > 1 || chunk > 16 ? 2 : 3;
}
#define INSTANTIATE_LINEAR_ROWS(name, T, W, COLUMNS, ROWS, SPLIT, PROLOGUE, E)                       \
  KERNEL(256, linear_rows_blocks(ROWS, UNPACK_TYPE W::CHUNK)) name(LINEAR_PARAMETERS(T)) {           \
    linear_rows<T, UNPACK_TYPE W, COLUMNS, ROWS, SPLIT, PROLOGUE, UNPACK_TYPE E>(LINEAR_ARGUMENTS); \
  }
