// Products of many rows with a weight on the tensor cores: tiles of 128 rows by 128 rows of the weight, 32 columns at a time
// through shared memory, several ahead. Of a gated product every 16 rows of the weight's tile are 8 of the gate and the 8
// that belong to them, so a lane holds both.

constexpr int TILE = 128, TILE_COLUMNS = 32;

// Where 16 bytes of a tile's row are: moved so that the rows of a matrix lie in different banks.
template <typename T> DEVICE T* tile_chunk(T* tile, int row, int chunk) {
  return tile + row * TILE_COLUMNS + ((chunk ^ (row >> 1)) & 3) * 8;
}

// What of the weight's tile a thread brings: floats are copied behind the kernel's back; few bits are loaded ahead, and become
// T when they are stored.
template <typename T, typename W> struct WeightTile {
  static constexpr int CHUNKS = TILE_COLUMNS / W::CHUNK, COUNT = (TILE * CHUNKS + 255) / 256;
  uint4 bytes[COUNT];

  DEVICE void load(T*, const void* weight, int columns, int k0, const i64 (&)[2], i64 row_of_thread) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int at = threadIdx.x + i * 256;
      bytes[i] = make_uint4(0, 0, 0, 0);
      if (at < TILE * CHUNKS) {
        bytes[i] = load_weight(W::row(weight, columns, row_of_thread) + (k0 / W::CHUNK + at % CHUNKS) * 16);
      }
    }
  }
  DEVICE void store(T* tile, const void* scales, const void* offsets, int columns, int k0, i64 row_of_thread) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int at = threadIdx.x + i * 256;
      if (at < TILE * CHUNKS) {
        const typename W::Row of_row(scales, offsets, columns, row_of_thread);
        u32 w[W::CHUNK / 2];
        W::template pairs<T>(bytes[i], of_row, k0 + at % CHUNKS * W::CHUNK, w);
#pragma unroll
        for (int c = 0; c < W::CHUNK / 8; c++) {
          *reinterpret_cast<uint4*>(tile_chunk(tile, at / CHUNKS, at % CHUNKS * (W::CHUNK / 8) + c)) =
              make_uint4(w[4 * c], w[4 * c + 1], w[4 * c + 2], w[4 * c + 3]);
        }
      }
    }
  }
};
template <typename T> struct WeightTile<T, FloatWeight<T>> {
  static constexpr int CHUNKS = TILE_COLUMNS / 8;

  DEVICE void load(T* tile, const void* weight, int columns, int k0, const i64 (&rows)[2], i64) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = threadIdx.x + i * 256;
      const T* from = static_cast<const T*>(weight) + rows[i] * columns + k0 + at % CHUNKS * 8;
      copy16_async(tile_chunk(tile, at / CHUNKS, at % CHUNKS), from, true);
    }
  }
  DEVICE void store(T*, const void*, const void*, int, int, i64) {}
};

// The weight's row of row i of the tile; past the end the last one, whose results are dropped.
template <bool GATED> DEVICE i64 tile_weight_row(int first, int i, int n) {
  if (!GATED) return first + i < n ? first + i : n - 1;
  const int j = first / 2 + i / 16 * 8 + i % 8;
  return (j < n ? j : n - 1) + (i % 16 >= 8 ? n : 0);
}

template <typename T, typename W, int STAGES, typename E> DEVICE void linear_tiles(LINEAR_PARAMETERS(T)) {
  constexpr int ELEMENTS = TILE * TILE_COLUMNS;
  DYNAMIC_SHARED(shared);
  T* x_shared = reinterpret_cast<T*>(shared);
  T* w_shared = x_shared + STAGES * ELEMENTS;
  LINEAR_EPILOGUE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  // A warp has 64 rows and 32 rows of the weight.
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  const int first_row = blockIdx.x * TILE, first_weight = blockIdx.y * TILE;
  const int steps = columns / TILE_COLUMNS;
  launch_dependents();
  wait_for_previous();

  const T* x_from[2];
  bool x_valid[2];
  i64 w_rows[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int at = (threadIdx.x + i * 256) / 4, row = first_row + at;
    x_valid[i] = row < rows;
    x_from[i] = x + static_cast<i64>(x_valid[i] ? row : 0) * x_stride + threadIdx.x % 4 * 8;
    w_rows[i] = tile_weight_row<E::GATED>(first_weight, at, n);
  }
  constexpr int CHUNKS = WeightTile<T, W>::CHUNKS;
  const i64 w_row = tile_weight_row<E::GATED>(first_weight, threadIdx.x / CHUNKS % TILE, n);
  WeightTile<T, W> w_tile;
  auto load = [&](int step) {
    if (step < steps) {
      T* x_tile = x_shared + step % STAGES * ELEMENTS;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int at = (threadIdx.x + i * 256) / 4;
        copy16_async(tile_chunk(x_tile, at, threadIdx.x % 4), x_from[i] + step * TILE_COLUMNS, x_valid[i]);
      }
      w_tile.load(w_shared + step % STAGES * ELEMENTS, weight, columns, step * TILE_COLUMNS, w_rows, w_row);
    }
    commit_copies();
  };
  auto store = [&](int step) {
    if (step < steps) {
      w_tile.store(w_shared + step % STAGES * ELEMENTS, scales, offsets, columns, step * TILE_COLUMNS, w_row);
    }
  };
  for (int step = 0; step < STAGES - 1; step++) {
    load(step);
    store(step);
  }

  float c[4][4][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0.f;
  }
  for (int step = 0; step < steps; step++) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    load(step + STAGES - 1);
    T* x_tile = x_shared + step % STAGES * ELEMENTS;
    T* wt = w_shared + step % STAGES * ELEMENTS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        load_matrices(a[i], tile_chunk(x_tile, warp_row + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        load_matrices(b[j], tile_chunk(wt, warp_column + j * 16 + (lane & 7) + (lane >> 4) * 8, half * 2 + (lane >> 3 & 1)));
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          multiply_tile<T>(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
    store(step + STAGES - 1);
  }

  constexpr float FACTOR = 1.f / W::template pair_factor<T>();
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int row = first_row + warp_row + i * 16 + g + e / 2 * 8;
      if (row >= rows) continue;
#pragma unroll
      for (int j = 0; j < 4; j += E::GATED ? 2 : 1) {
        const int column = first_weight + warp_column + j * 8 + 2 * t + e % 2;
        if (E::GATED) {
          const int output = first_weight / 2 + (warp_column + j * 8) / 2 + 2 * t + e % 2;
          if (output < n) E::template store<T>(epilogue, row, output, c[i][j][e] * FACTOR, c[i][j + 1 < 4 ? j + 1 : j][e] * FACTOR);
        } else if (column < n) {
          E::template store<T>(epilogue, row, column, c[i][j][e] * FACTOR, 0.f);
        }
      }
    }
  }
}
#define INSTANTIATE_LINEAR_TILES(name, T, W, STAGES, E)                             \
  KERNEL(256, 1) name(LINEAR_PARAMETERS(T)) {                                       \
    linear_tiles<T, UNPACK_TYPE W, STAGES, UNPACK_TYPE E>(LINEAR_ARGUMENTS);        \
  }
