// Products of up to 64 rows with a weight that is streamed once, on the tensor cores.
//
// The weight is the left operand, 16 of its rows to a warp, straight from memory to registers: a product is the same in any
// order of columns, so lane t of four takes the t-th 16 bytes of each 64, for the weight and for the activations alike. Of a
// gated product the 16 rows are 8 of the gate and the 8 that belong to them, so a lane holds both. SPLIT warps share 16 rows,
// each with a part of the columns. With a prologue there is one row of COLUMNS, which the block first normalises into shared
// memory.

template <typename T, typename W, int ROWS, int SPLIT, int PROLOGUE, int COLUMNS, typename E>
DEVICE void linear_tensor(LINEAR_PARAMETERS(T)) {
  constexpr int WARPS = 8, GROUPS = WARPS / SPLIT, TILES = ROWS / 8, CHUNK = W::CHUNK, STEP = 4 * CHUNK;
  constexpr int UNROLL = CHUNK > 8 ? 2 : 4;
  DYNAMIC_SHARED(shared);
  T* staged = reinterpret_cast<T*>(shared);
  float* parts = reinterpret_cast<float*>(shared + (PROLOGUE != 0 ? COLUMNS * sizeof(T) : 0));
  LINEAR_EPILOGUE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int group = warp / SPLIT, part = warp % SPLIT;
  const int tile = blockIdx.x * GROUPS + group;
  const int first_row = blockIdx.y * ROWS;
  const int weight_rows = E::GATED ? 2 * n : n;
  // Past the end the last row is read again, and the result dropped.
  const int j0 = E::GATED ? tile * 8 + g : tile * 16 + g;
  const int last = E::GATED ? n - 1 : weight_rows - 1;
  const i64 i0 = j0 < last ? j0 : last;
  const i64 i1 = E::GATED ? n + i0 : (j0 + 8 < last ? j0 + 8 : last);
  const u8 *w0 = W::row(weight, columns, i0), *w1 = W::row(weight, columns, i1);
  const typename W::Row row0(scales, offsets, columns, i0), row1(scales, offsets, columns, i1);

  float c[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.f;

  launch_dependents();
  Normalizer<T, PROLOGUE != 0 ? COLUMNS : Chunk<T>::N> normalizer;
  if (PROLOGUE != 0) normalizer.load(norm_weight, PROLOGUE == 3 ? norm_bias : nullptr);
  bool waited = false;
  auto wait_for_x = [&]() {
    wait_for_previous();
    if (PROLOGUE != 0) normalizer.template stage<PROLOGUE>(x, x_stride, 0, 1, 1, epsilon, staged, parts);
    waited = true;
  };
  for (int k0 = part * STEP; k0 < columns; k0 += SPLIT * STEP * UNROLL) {
    uint4 bytes[UNROLL][2];
    typename W::Groups groups[UNROLL][2];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = k0 + u * SPLIT * STEP + t * CHUNK;
      groups[u][0].load(row0, k < columns ? k : 0);
      groups[u][1].load(row1, k < columns ? k : 0);
      if (k < columns) {
        bytes[u][0] = load_weight(w0 + k / CHUNK * 16);
        bytes[u][1] = load_weight(w1 + k / CHUNK * 16);
      } else {
        bytes[u][0] = bytes[u][1] = make_uint4(0, 0, 0, 0);
      }
    }
    if (!waited) wait_for_x();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = k0 + u * SPLIT * STEP + t * CHUNK;
      // Past the end the weight counts as zeros, and the first columns do as well as any.
      const int from_k = k < columns ? k : 0;
      // Eight columns of the activations at a time, which few registers hold beside a chunk of few bits.
      uint4 h[TILES];
      auto load_x = [&](int e) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          const int row = first_row + i * 8 + g;
          const T* from = x + static_cast<i64>(row < rows ? row : rows - 1) * x_stride + from_k;
          if (PROLOGUE != 0) h[i] = *reinterpret_cast<const uint4*>(staged + from_k + e * 8);
          else h[i] = load16(from + e * 8);
        }
      };
      load_x(0);
      u32 a0[CHUNK / 2], a1[CHUNK / 2];
      W::template pairs<T>(bytes[u][0], groups[u][0], a0);
      W::template pairs<T>(bytes[u][1], groups[u][1], a1);
      if (!W::ZERO_IS_ZERO && k >= columns) {
#pragma unroll
        for (int e = 0; e < CHUNK / 2; e++) a0[e] = a1[e] = 0u;
      }
#pragma unroll
      for (int e = 0; e < CHUNK / 8; e++) {
        if (e > 0) load_x(e);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          multiply_tile<T>(c[i], a0[4 * e], a1[4 * e], a0[4 * e + 1], a1[4 * e + 1], h[i].x, h[i].y);
          multiply_tile<T>(c[i], a0[4 * e + 2], a1[4 * e + 2], a0[4 * e + 3], a1[4 * e + 3], h[i].z, h[i].w);
        }
      }
    }
  }
  if (!waited) wait_for_x();

  // What is added is loaded ahead of all stores, which it must not be moved over: it may be where they go.
  constexpr int OUTPUTS = E::GATED ? 1 : 2;
  typename E::Bias biases[OUTPUTS];
  float residuals[TILES][2][OUTPUTS];
  if (part == 0) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      const int j = j0 + 8 * o;
      biases[o] = j < n ? E::template load_bias<T>(epilogue, j) : typename E::Bias{0.f, 0.f};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int row = first_row + i * 8 + 2 * t + e;
          residuals[i][e][o] = j < n && row < rows ? E::template load_residual<T>(epilogue, row, j) : 0.f;
        }
      }
    }
  }

  if (SPLIT > 1) {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) parts[((warp * TILES + i) * 4 + e) * 32 + lane] = c[i][e];
    }
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        for (int other = 1; other < SPLIT; other++) c[i][e] += parts[(((warp + other) * TILES + i) * 4 + e) * 32 + lane];
      }
    }
  }
  constexpr float FACTOR = 1.f / W::template pair_factor<T>();
#pragma unroll
  for (int i = 0; i < TILES; i++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int row = first_row + i * 8 + 2 * t + e;
      if (row >= rows) continue;
      if (j0 < n) {
        const float up = E::GATED ? c[i][e + 2] * FACTOR : 0.f;
        E::store(epilogue, row, j0, c[i][e] * FACTOR, up, biases[0], residuals[i][e][0]);
      }
      if (!E::GATED && j0 + 8 < n) {
        E::store(epilogue, row, j0 + 8, c[i][e + 2] * FACTOR, 0.f, biases[OUTPUTS - 1], residuals[i][e][OUTPUTS - 1]);
      }
    }
  }
}
// Blocks that fit a multiprocessor with the registers that so many sums and weights take.
constexpr int linear_tensor_blocks(int rows, int chunk, int prologue) {
  return rows > 32 || (rows > 16 && chunk > 16) ? 1 : rows > 8 || prologue != 0 || chunk > 16 ? 2 : 3;
}
#define INSTANTIATE_LINEAR_TENSOR(name, T, W, ROWS, SPLIT, PROLOGUE, COLUMNS, E)                       \
  KERNEL(256, linear_tensor_blocks(ROWS, UNPACK_TYPE W::CHUNK, PROLOGUE)) name(LINEAR_PARAMETERS(T)) { \
    linear_tensor<T, UNPACK_TYPE W, ROWS, SPLIT, PROLOGUE, COLUMNS, UNPACK_TYPE E>(LINEAR_ARGUMENTS);  \
  }
