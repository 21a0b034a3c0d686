// What the kernels need of a device beyond CUDA C++ itself: types, loads, tensor cores, dependent launch. Written in PTX,
// so that no header of the toolkit is needed.

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

#define DEVICE_STATIC static __device__ __forceinline__
// A kernel of so many threads a block, of which so many blocks should fit a multiprocessor.
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DYNAMIC_SHARED(name)                                   \
  extern __shared__ __align__(1024) uint4 dynamic_shared[];    \
  unsigned char* name = reinterpret_cast<unsigned char*>(dynamic_shared)

// Programmatic dependent launch: nothing unless the launch carries the attribute. The next kernel's blocks may start once
// all blocks of this one have called launch_dependents; wait returns when the kernel before has ended and its writes are
// visible.
DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 16 bytes of a weight: read once, so not kept in the first-level cache. Volatile, so that it stays one load and stays ahead
// of wait_for_previous.
DEVICE uint4 load_weight(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// 16 bytes that an earlier kernel wrote: never by the read-only path, which need not see what a kernel writes that ran when
// this one had started.
DEVICE uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
// The same, for what is read once.
DEVICE uint4 load16_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
// Brings a line of a weight nearer ahead of its use.
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
DEVICE float to_float(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }

template <typename T> DEVICE T from_float(float f);
template <> DEVICE float from_float<float>(float f) { return f; }
template <> DEVICE f16 from_float<f16>(float f) {
  f16 v;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v.bits) : "f"(f));
  return v;
}
template <> DEVICE bf16 from_float<bf16>(float f) {
  bf16 v;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v.bits) : "f"(f));
  return v;
}

// Two halves in a word, the first in the low bits.
template <typename T> DEVICE float2 unpack2(u32 v);
template <> DEVICE float2 unpack2<f16>(u32 v) {
  float2 r;
  asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(r.x), "=f"(r.y)
      : "r"(v));
  return r;
}
template <> DEVICE float2 unpack2<bf16>(u32 v) {
  return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
template <typename T> DEVICE u32 pack2(float low, float high);
template <> DEVICE u32 pack2<f16>(float low, float high) {
  u32 v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
template <> DEVICE u32 pack2<bf16>(float low, float high) {
  u32 v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
// a · b + c of both halves, rounded once.
template <typename T> DEVICE u32 fma2(u32 a, u32 b, u32 c);
template <> DEVICE u32 fma2<f16>(u32 a, u32 b, u32 c) {
  u32 v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
template <> DEVICE u32 fma2<bf16>(u32 a, u32 b, u32 c) {
  u32 v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Sine and cosine at any angle: the turns are taken off in double precision.
DEVICE void sine_cosine(float angle, float* sine, float* cosine) {
  const double turns = static_cast<double>(angle) * 0.15915494309189533577;
  sincospif(static_cast<float>(2.0 * (turns - rint(turns))), sine, cosine);
}

// c += a · b on the tensor cores: a is 16 x 16, b 16 x 8, c 16 x 8 in fp32. With g = lane / 4 and t = lane % 4, a lane holds
// a[g][2t..], a[g + 8][2t..], a[g][2t + 8..], a[g + 8][2t + 8..]; b[2t..][g], b[2t + 8..][g]; c[g][2t..], c[g + 8][2t..].
template <typename T> DEVICE void multiply_tile(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
#define MULTIPLY_TILE(T, name)                                                                               \
  template <> DEVICE void multiply_tile<T>(float(&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {   \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                      \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                            \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                    \
  }
MULTIPLY_TILE(f16, "f16")
MULTIPLY_TILE(bf16, "bf16")

// Four 8 x 8 matrices of halves: lane i gives the address of row i % 8 of matrix i / 8, and holds elements 2t, 2t + 1 of row
// g of each; transposed, of column g.
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes to shared memory behind the kernel's back; zeros where not valid.
DEVICE void copy16_async(void* shared, const void* global, bool valid) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of the last committed groups are under way.
template <int PENDING> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
