// The intrinsics of the kernels on a processor: what cu/intrinsics.cuh defines for a device, over the emulation's fibres. A
// block's threads run one at a time, each until it waits for others; so what a kernel does is repeated exactly, and what it
// must not do is found: threads of a warp that part ways before a common operation, barriers that not all threads reach,
// shared memory that is read before it is written (it starts as NaN) or past its end, copies that are not waited for,
// 16-byte accesses at other addresses.

typedef int8_t i8;
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef long long i64;
typedef unsigned long long u64;

#define __device__
#define __restrict__
#define DEVICE inline
#define DEVICE_STATIC static inline
#define KERNEL(threads, blocks) static void
#define DYNAMIC_SHARED(name) unsigned char* name = emulation::shared

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

struct alignas(16) uint4 {
  u32 x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

inline float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
inline u32 __float_as_uint(float f) { u32 v; memcpy(&v, &f, 4); return v; }
inline u32 __byte_perm(u32 x, u32 y, u32 selector) {
  const u64 bytes = static_cast<u64>(y) << 32 | x;
  u32 r = 0;
  for (int i = 0; i < 4; i++) r |= static_cast<u32>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return r;
}

inline void __syncthreads() { emulation::wait(emulation::AT_BLOCK_BARRIER, 0); }
inline void __syncwarp() { emulation::wait(emulation::AT_WARP_BARRIER, 1); }
inline void __threadfence() {}
template <typename T> inline T __shfl_xor_sync(u32, T v, int mask) {
  return emulation::exchange(v, emulation::current->lane ^ mask, 2);
}
template <typename T> inline T __shfl_sync(u32, T v, int lane) { return emulation::exchange(v, lane & 31, 3); }
template <typename T> inline T __shfl_up_sync(u32, T v, int by) {
  const int from = emulation::current->lane - by;
  return emulation::exchange(v, from < 0 ? emulation::current->lane : from, 4);
}
template <typename T> inline T __shfl_down_sync(u32, T v, int by) {
  const int from = emulation::current->lane + by;
  return emulation::exchange(v, from > 31 ? emulation::current->lane : from, 5);
}
// One thread runs at a time.
template <typename T> inline T atomicAdd(T* p, T v) { const T old = *p; *p = old + v; return old; }
template <typename T> inline T atomicMax(T* p, T v) { const T old = *p; if (v > old) *p = v; return old; }

template <typename T> inline T atomicExch(T* p, T v) { const T old = *p; *p = v; return old; }

inline void launch_dependents() {}
inline void wait_for_previous() {}
inline uint4 load16(const void* p) {
  emulation::check_aligned(p);
  uint4 v;
  memcpy(&v, p, 16);
  return v;
}
inline uint4 load_weight(const void* p) { return load16(p); }
inline uint4 load16_once(const void* p) { return load16(p); }
inline void prefetch(const void*) {}

struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};
inline float to_float(float v) { return v; }
inline float to_float(f16 v) { return emulation::half_to_float(v.bits); }
inline float to_float(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }
template <typename T> T from_float(float f);
template <> inline float from_float<float>(float f) { return f; }
template <> inline f16 from_float<f16>(float f) { return {emulation::float_to_half(f)}; }
template <> inline bf16 from_float<bf16>(float f) {
  const u32 v = __float_as_uint(f);
  if (f != f) return {static_cast<u16>(v >> 16 | 0x40)};
  return {static_cast<u16>((v + 0x7fff + (v >> 16 & 1)) >> 16)};
}
template <typename T> inline float2 unpack2(u32 v) {
  return {to_float(T{static_cast<u16>(v)}), to_float(T{static_cast<u16>(v >> 16)})};
}
template <typename T> inline u32 pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<u32>(from_float<T>(high).bits) << 16;
}
template <typename T> inline u32 fma2(u32 a, u32 b, u32 c) {
  const float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
  return pack2<T>(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}
inline float exp2_fast(float x) { return exp2f(x); }
inline void sine_cosine(float angle, float* sine, float* cosine) {
  *sine = static_cast<float>(sin(static_cast<double>(angle)));
  *cosine = static_cast<float>(cos(static_cast<double>(angle)));
}

template <typename T> inline void multiply_tile(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  emulation::Fiber* f = emulation::current;
  emulation::Tile& tile = emulation::warps[f->warp].tile[f->turn++ & 1];
  const int g = f->lane >> 2, t = f->lane & 3;
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  for (int i = 0; i < 4; i++) {
    const float2 v = unpack2<T>(a[i]);
    float* to = &tile.a[g + (i & 1) * 8][2 * t + (i >> 1) * 8];
    to[0] = v.x;
    to[1] = v.y;
  }
  for (int i = 0; i < 2; i++) {
    const float2 v = unpack2<T>(b[i]);
    float* to = &tile.b[g][2 * t + i * 8];
    to[0] = v.x;
    to[1] = v.y;
  }
  emulation::wait(emulation::AT_WARP_BARRIER, 6);
  for (int i = 0; i < 4; i++) {
    const float *x = tile.a[g + (i >> 1) * 8], *y = tile.b[2 * t + (i & 1)];
    float sum = 0.f;
    for (int k = 0; k < 16; k++) sum += x[k] * y[k];
    c[i] += sum;
  }
}
inline void load_matrices_of(u32 (&r)[4], const void* row, bool transposed) {
  emulation::check_aligned(row);
  emulation::Fiber* f = emulation::current;
  u16(&rows)[32][8] = emulation::warps[f->warp].matrices[f->turn++ & 1];
  memcpy(rows[f->lane], row, 16);
  emulation::wait(emulation::AT_WARP_BARRIER, transposed ? 7 : 8);
  const int g = f->lane >> 2, t = f->lane & 3;
  for (int m = 0; m < 4; m++) {
    const u16 low = transposed ? rows[m * 8 + 2 * t][g] : rows[m * 8 + g][2 * t];
    const u16 high = transposed ? rows[m * 8 + 2 * t + 1][g] : rows[m * 8 + g][2 * t + 1];
    r[m] = low | static_cast<u32>(high) << 16;
  }
}
inline void load_matrices(u32 (&r)[4], const void* row) { load_matrices_of(r, row, false); }
inline void load_matrices_transposed(u32 (&r)[4], const void* row) { load_matrices_of(r, row, true); }

// As on the device: rows of 128 bytes, whose 16 bytes c are at place c ^ row % 8, from a multiple of 1024 bytes on.
template <typename T> inline float of_group_operand(const T* tile, int row, int column) {
  const T v = tile[row * 64 + ((column / 8 ^ row) & 7) * 8 + column % 8];
  return to_float(v);
}
template <typename T, int WIDTH> inline void multiply_group(float (&c)[WIDTH][4], const T* a, const T* b, int part) {
  const auto offset = [](const T* tile) { return reinterpret_cast<const unsigned char*>(tile) - emulation::shared; };
  if (offset(a) % 1024 != 0 || offset(b) % 1024 != 0) emulation::fault = "a tile that is not aligned";
  emulation::Fiber* f = emulation::current;
  const int g = f->lane >> 2, t = f->lane & 3;
  float rows[2][16];
  for (int half = 0; half < 2; half++) {
    for (int k = 0; k < 16; k++) rows[half][k] = of_group_operand(a, f->warp % 4 * 16 + g + half * 8, part * 16 + k);
  }
  for (int j = 0; j < WIDTH; j++) {
    for (int e = 0; e < 2; e++) {
      for (int k = 0; k < 16; k++) {
        const float w = of_group_operand(b, j * 8 + 2 * t + e, part * 16 + k);
        c[j][e] += rows[0][k] * w;
        c[j][2 + e] += rows[1][k] * w;
      }
    }
  }
}
inline void publish_copies() {}
inline void begin_products() {}
inline void commit_products() {}
template <int PENDING> inline void wait_for_products() {}
template <int WIDTH> inline void keep_products(float (&)[WIDTH][4]) {}

inline void copy16_async(void* shared, const void* global, bool valid) {
  emulation::check_aligned(shared);
  emulation::check_aligned(global);
  emulation::Fiber* f = emulation::current;
  f->copies.push_back({shared, valid ? global : nullptr, f->group});
}
inline void commit_copies() { emulation::current->group++; }
template <int PENDING> inline void wait_for_copies() {
  emulation::Fiber* f = emulation::current;
  size_t kept = 0;
  for (const emulation::Copy& copy : f->copies) {
    if (copy.group >= f->group - PENDING) f->copies[kept++] = copy;
    else if (copy.from == nullptr) memset(copy.to, 0, 16);
    else memcpy(copy.to, copy.from, 16);
  }
  f->copies.resize(kept);
}
