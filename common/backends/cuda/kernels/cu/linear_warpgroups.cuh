// Products of many rows with a weight by groups of four warps, whose tensor cores read both operands from shared memory: tiles of
// 128 rows by 128 or 256 rows of the weight, as those of linear_tiles.cuh. The next stage's products begin before those of the
// last have ended, and few bits become T while products are under way.

template <typename T, typename W, int TILE, int STAGES, typename E> DEVICE void linear_warpgroups(LINEAR_PARAMETERS(T)) {
  constexpr int ROWS = 128, X_ELEMENTS = ROWS * TILE_COLUMNS, W_ELEMENTS = TILE * TILE_COLUMNS, WIDTH = TILE / 8;
  constexpr int X_COPIES = ROWS / 32;
  DYNAMIC_SHARED(shared);
  T* x_shared = reinterpret_cast<T*>(shared);
  T* w_shared = x_shared + STAGES * X_ELEMENTS;
  LINEAR_EPILOGUE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int first_row = blockIdx.x * ROWS, first_weight = blockIdx.y * TILE;
  const int all_steps = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS, each = (all_steps + gridDim.z - 1) / gridDim.z;
  const int first_step = static_cast<int>(blockIdx.z) * each < all_steps ? blockIdx.z * each : all_steps;
  const int end_step = first_step + each < all_steps ? first_step + each : all_steps;

  const T* x_from[X_COPIES];
  bool x_valid[X_COPIES];
  const int x_left = columns - threadIdx.x % 8 * 8;
#pragma unroll
  for (int i = 0; i < X_COPIES; i++) {
    const int row = first_row + (threadIdx.x + i * 256) / 8;
    x_valid[i] = row < rows;
    x_from[i] = x + static_cast<i64>(x_valid[i] ? row : 0) * x_stride + threadIdx.x % 8 * 8;
  }
  using Tile = WeightTile<T, W, TILE, E::GATED>;
  Tile w_tile(weight, scales, offsets, columns, first_weight, n);
  auto load_x = [&](int step, int stage) {
    if (step < end_step) {
      const int k0 = step * TILE_COLUMNS;
#pragma unroll
      for (int i = 0; i < X_COPIES; i++) {
        T* to = x_shared + stage * X_ELEMENTS + tile_offset((threadIdx.x + i * 256) / 8, threadIdx.x % 8);
        copy16_async(to, k0 < x_left ? x_from[i] + k0 : x_from[i], x_valid[i] && k0 < x_left);
      }
    }
    commit_copies();
  };
  launch_dependents();
  // The weight does not depend on the kernel before.
  bring_first_tiles<T, Tile, STAGES, W_ELEMENTS>(w_tile, w_shared, first_step, end_step);
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) load_x(first_step + i, i);

  float c[1][WIDTH][4];
#pragma unroll
  for (int j = 0; j < WIDTH; j++) c[0][j][0] = c[0][j][1] = c[0][j][2] = c[0][j][3] = 0.f;
  int stage = 0, load_stage = STAGES - 1;
  for (int step = first_step; step < end_step; step++) {
    wait_for_copies<STAGES - 2>();
    publish_copies();
    __syncthreads();
    const T *x_tile = x_shared + stage * X_ELEMENTS + warp / 4 * (64 * TILE_COLUMNS), *wt = w_shared + stage * W_ELEMENTS;
    const int ahead = step + STAGES - 1;
    typename Tile::Held held;
    if (ahead < end_step) w_tile.load(held, ahead * TILE_COLUMNS);
    begin_products();
#pragma unroll
    for (int part = 0; part < 4; part++) multiply_group<T>(c[0], x_tile, wt, part);
    commit_products();
    // What comes next goes where the products before these were from.
    wait_for_products<1>();
    __syncthreads();
    if (ahead < end_step) w_tile.copy(w_shared + load_stage * W_ELEMENTS, ahead * TILE_COLUMNS);
    load_x(ahead, load_stage);
    if (ahead < end_step) w_tile.store(w_shared + load_stage * W_ELEMENTS, held);
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    load_stage = load_stage + 1 < STAGES ? load_stage + 1 : 0;
  }
  wait_for_products<0>();
  keep_products(c[0]);
  __syncthreads();

  if (!join_parts<1, WIDTH>(c, counters, scratch, shared)) return;
  constexpr float FACTOR = 1.f / W::template pair_factor<T>();
  store_products<T, E, 1, WIDTH>(c, epilogue, rows, first_row + warp * 16 + g, first_weight, 2 * t, FACTOR);
}
#define INSTANTIATE_LINEAR_WARPGROUPS(name, T, W, TILE, STAGES, E)             \
  KERNEL(256, TILE > 128 ? 1 : 2) name(LINEAR_PARAMETERS(T)) {                 \
    linear_warpgroups<T, UNPACK_TYPE W, TILE, STAGES, UNPACK_TYPE E>(LINEAR_ARGUMENTS);       \
  }
