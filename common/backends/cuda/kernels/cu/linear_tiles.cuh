// Products of many rows with a weight on the tensor cores: tiles of 32, 64 or 128 rows by 128 or 256 rows of the weight, 64
// columns at a time through shared memory, several ahead. Of a gated product every 16 rows of the weight's tile are 8 of the gate and the
// 8 that belong to them, so a lane holds both.
//
// Where tiles alone would leave multiprocessors without work, gridDim.z blocks share one, each with a part of the columns. The
// last of them to end, by the tile's counter, which is zero before and after, adds what all have left in `scratch`.

constexpr int TILE_COLUMNS = 64;

// Where 16 bytes of a tile's row are: moved so that the rows of a matrix lie in different banks.
DEVICE int tile_offset(int row, int chunk) { return row * TILE_COLUMNS + ((chunk ^ row) & 7) * 8; }

// The weight's row of row i of the tile; past the end the last one, whose results are dropped.
template <bool GATED> DEVICE i64 tile_weight_row(int first, int i, int n) {
  if (!GATED) return first + i < n ? first + i : n - 1;
  const int j = first / 2 + i / 16 * 8 + i % 8;
  return (j < n ? j : n - 1) + (i % 16 >= 8 ? n : 0);
}

// What of the weight's tile a thread brings. Floats are copied behind the kernel's back by `copy`; few bits are loaded ahead by
// `load`, and become T in `store`. Columns past the end are anything, since the activations are zeros there.
template <typename T, typename W, int TILE, bool GATED> struct WeightTile {
  static constexpr int CHUNKS = TILE_COLUMNS / W::CHUNK, COUNT = TILE * CHUNKS / 256;
  // What is between the two.
  struct Held {
    uint4 bytes[COUNT];
    typename W::Groups groups[COUNT];
  };
  const void *weight, *scales, *offsets;
  int columns, first, n;

  DEVICE WeightTile(const void* weight, const void* scales, const void* offsets, int columns, int first, int n)
      : weight(weight), scales(scales), offsets(offsets), columns(columns), first(first), n(n) {}
  DEVICE void copy(T*, int) {}
  DEVICE void load(Held& held, int k0) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int at = threadIdx.x + i * 256, k = k0 + at % CHUNKS * W::CHUNK;
      const i64 row = tile_weight_row<GATED>(first, at / CHUNKS, n);
      held.bytes[i] = load_weight(W::row(weight, columns, row) + (k < columns ? k / W::CHUNK * 16 : 0));
      held.groups[i].load(typename W::Row(scales, offsets, columns, row), k < columns ? k : 0);
    }
  }
  DEVICE void store(T* tile, const Held& held) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int at = threadIdx.x + i * 256;
      u32 w[W::CHUNK / 2];
      W::template pairs<T>(held.bytes[i], held.groups[i], w);
#pragma unroll
      for (int c = 0; c < W::CHUNK / 8; c++) {
        *reinterpret_cast<uint4*>(tile + tile_offset(at / CHUNKS, at % CHUNKS * (W::CHUNK / 8) + c)) =
            make_uint4(w[4 * c], w[4 * c + 1], w[4 * c + 2], w[4 * c + 3]);
      }
    }
  }
};
template <typename T, int TILE, bool GATED> struct WeightTile<T, FloatWeight<T>, TILE, GATED> {
  static constexpr int COUNT = TILE / 32;
  struct Held {};
  const T* from[COUNT];
  int left;  // columns from the thread's first on

  DEVICE WeightTile(const void* weight, const void*, const void*, int columns, int first, int n)
      : left(columns - threadIdx.x % 8 * 8) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const i64 row = tile_weight_row<GATED>(first, (threadIdx.x + i * 256) / 8, n);
      from[i] = static_cast<const T*>(weight) + row * columns + threadIdx.x % 8 * 8;
    }
  }
  DEVICE void copy(T* tile, int k0) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      T* to = tile + tile_offset((threadIdx.x + i * 256) / 8, threadIdx.x % 8);
      copy16_async(to, k0 < left ? from[i] + k0 : from[i], k0 < left);
    }
  }
  DEVICE void load(Held&, int) {}
  DEVICE void store(T*, const Held&) {}
};

// Brings the weight's first tiles, one into each stage but the last: all are under way before the first is waited for.
template <typename T, typename Tile, int STAGES, int ELEMENTS>
DEVICE void bring_first_tiles(Tile& tile, T* stages, int first_step, int end_step) {
  typename Tile::Held held[STAGES - 1];
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (first_step + i < end_step) {
      tile.copy(stages + i * ELEMENTS, (first_step + i) * TILE_COLUMNS);
      tile.load(held[i], (first_step + i) * TILE_COLUMNS);
    }
  }
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (first_step + i < end_step) tile.store(stages + i * ELEMENTS, held[i]);
  }
}

// Where gridDim.z blocks share a tile: leaves a block's sums, and has those of all in the last one of them, which alone is told
// to go on.
template <int HEIGHT, int WIDTH>
DEVICE bool join_parts(float (&c)[HEIGHT][WIDTH][4], u32* counters, float* scratch, unsigned char* shared) {
  if (gridDim.z == 1) return true;
  const int tile = blockIdx.y * gridDim.x + blockIdx.x, tiles = gridDim.x * gridDim.y;
  u32* counter = counters + tile;
  // A thread's sums in 16 bytes each, those of neighbours beside each other.
  float* sums = scratch + threadIdx.x * 4;
  auto part = [&](int z, int i, int j) {
    return sums + (((static_cast<i64>(z) * tiles + tile) * HEIGHT + i) * WIDTH + j) * 1024;
  };
#pragma unroll
  for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) store_elements<float, 4>(part(blockIdx.z, i, j), c[i][j]);
  }
  __threadfence();
  __syncthreads();
  u32* last = reinterpret_cast<u32*>(shared);
  if (threadIdx.x == 0) *last = atomicAdd(counter, 1u) + 1 == gridDim.z ? 1u : 0u;
  __syncthreads();
  if (*last == 0u) return false;
  __threadfence();
  if (threadIdx.x == 0) *counter = 0u;
  // In the order of the parts, so that the sum does not depend on which block was last; many loads at a time.
#pragma unroll
  for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0.f;
  }
  for (int z = 0; z < static_cast<int>(gridDim.z); z++) {
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
      for (int j0 = 0; j0 < WIDTH; j0 += 4) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = load16(part(z, i, j0 + j));
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float f[4];
          unpack16<float>(v[j], f);
#pragma unroll
          for (int e = 0; e < 4; e++) c[i][j0 + j][e] += f[e];
        }
      }
    }
  }
  return true;
}

// Stores products: c[i][j][e] is of row `row + 16 i + 8 (e / 2)` and of row `column + 8 j + e % 2` of the weight's tile.
template <typename T, typename E, int HEIGHT, int WIDTH>
DEVICE void store_products(float (&c)[HEIGHT][WIDTH][4], const EpilogueArguments& epilogue, int rows, int row, int first_weight,
                           int column, float factor) {
  const int n = epilogue.n;
  // The output that products j and e of a lane belong to, or n for none.
  auto output_of = [&](int j, int e) {
    const int of_pair = column % 8 + e % 2, tile_column = column - column % 8 + j * 8;
    const int output = E::GATED ? first_weight / 2 + tile_column / 2 + of_pair : first_weight + tile_column + of_pair;
    return output < n && (!E::GATED || j % 2 == 0) ? output : n;
  };
#pragma unroll
  for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
    for (int j0 = 0; j0 < WIDTH; j0 += 4) {
      // What is added is loaded ahead of all stores, which it must not be moved over: it may be where they go.
      typename E::Bias biases[4][2];
      float residuals[4][4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int at = row + i * 16 + e / 2 * 8, output = output_of(j0 + j, e);
          const bool valid = output < n && at < rows;
          if (e < 2) biases[j][e] = output < n ? E::template load_bias<T>(epilogue, output) : typename E::Bias{0.f, 0.f};
          residuals[j][e] = valid ? E::template load_residual<T>(epilogue, at, output) : 0.f;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int at = row + i * 16 + e / 2 * 8, output = output_of(j0 + j, e);
          if (output >= n || at >= rows) continue;
          const float up = E::GATED ? c[i][(j0 + j + 1) % WIDTH][e] * factor : 0.f;
          E::store(epilogue, at, output, c[i][j0 + j][e] * factor, up, biases[j][e % 2], residuals[j][e]);
        }
      }
    }
  }
}

template <typename T, typename W, int ROWS, int TILE, int STAGES, typename E> DEVICE void linear_tiles(LINEAR_PARAMETERS(T)) {
  constexpr int X_ELEMENTS = ROWS * TILE_COLUMNS, W_ELEMENTS = TILE * TILE_COLUMNS, HEIGHT = ROWS / 32, WIDTH = TILE / 32;
  constexpr int X_COPIES = ROWS / 32;
  DYNAMIC_SHARED(shared);
  T* x_shared = reinterpret_cast<T*>(shared);
  T* w_shared = x_shared + STAGES * X_ELEMENTS;
  LINEAR_EPILOGUE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  // A warp has half of the rows and a quarter of the weight's.
  const int warp_row = warp / 4 * (ROWS / 2), warp_column = warp % 4 * (TILE / 4);
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

  float c[HEIGHT][WIDTH][4];
#pragma unroll
  for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0.f;
  }
  // Where this lane's rows of the matrices begin, and what moves their chunks.
  const int a_row = warp_row + (lane & 15), b_row = warp_column + (lane & 7) + (lane >> 4) * 8;
  const int a_chunk = lane >> 4, b_chunk = lane >> 3 & 1;
  int stage = 0, load_stage = STAGES - 1;
  for (int step = first_step; step < end_step; step++) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    const int ahead = step + STAGES - 1;
    typename Tile::Held held;
    if (ahead < end_step) {
      w_tile.copy(w_shared + load_stage * W_ELEMENTS, ahead * TILE_COLUMNS);
      w_tile.load(held, ahead * TILE_COLUMNS);
    }
    load_x(ahead, load_stage);
    const T *x_tile = x_shared + stage * X_ELEMENTS, *wt = w_shared + stage * W_ELEMENTS;
#pragma unroll
    for (int part = 0; part < 4; part++) {
      u32 a[HEIGHT][4], b[WIDTH / 2][4];
#pragma unroll
      for (int i = 0; i < HEIGHT; i++) load_matrices(a[i], x_tile + tile_offset(a_row + i * 16, part * 2 + a_chunk));
#pragma unroll
      for (int j = 0; j < WIDTH / 2; j++) load_matrices(b[j], wt + tile_offset(b_row + j * 16, part * 2 + b_chunk));
#pragma unroll
      for (int i = 0; i < HEIGHT; i++) {
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
          multiply_tile<T>(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    if (ahead < end_step) w_tile.store(w_shared + load_stage * W_ELEMENTS, held);
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    load_stage = load_stage + 1 < STAGES ? load_stage + 1 : 0;
  }

  if (!join_parts<HEIGHT, WIDTH>(c, counters, scratch, shared)) return;
  constexpr float FACTOR = 1.f / W::template pair_factor<T>();
  store_products<T, E, HEIGHT, WIDTH>(c, epilogue, rows, first_row + warp_row + g, first_weight, warp_column + 2 * t, FACTOR);
}
#define INSTANTIATE_LINEAR_TILES(name, T, W, ROWS, TILE, STAGES, E)                       \
  KERNEL(256, ROWS > 64 ? 1 : 2) name(LINEAR_PARAMETERS(T)) {                             \
    linear_tiles<T, UNPACK_TYPE W, ROWS, TILE, STAGES, UNPACK_TYPE E>(LINEAR_ARGUMENTS);  \
  }
