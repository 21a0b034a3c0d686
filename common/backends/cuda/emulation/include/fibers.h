// A block of threads on a processor: one fibre a thread, switched where they wait for each other.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

struct Index {
  unsigned x, y, z;
};
enum State { RUNNING = 0, AT_BLOCK_BARRIER = 1, AT_WARP_BARRIER = 2, ENDED = 3 };

struct Copy {
  void* to;
  const void* from;
  int group;
};
struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  State state;
  int operation;  // what it waits in, which has to be the same for all of a warp
  Index thread;
  int lane, warp;
  unsigned turn;  // of the warp's two buffers
  std::vector<Copy> copies;
  int group;
};
struct Tile {
  float a[16][16], b[8][16];
};
struct Warp {
  uint64_t exchanged[2][32];
  Tile tile[2];
  uint16_t matrices[2][32][8];
};

static Fiber* current;
static Index block_index, block_size, grid_size;
static unsigned char* shared;
static Warp warps[32];
static const char* fault;

static const size_t STACK = 128 * 1024, SHARED_MAX = 256 * 1024, GUARD = 256;
static char* stacks;
static std::vector<Fiber> fibers;
static void (*body)(const uint64_t*);
static const uint64_t* body_slots;

#if defined(__x86_64__)
static void* scheduler_stack;
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
emulation_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
static void to_scheduler(Fiber* f) { emulation_switch(&f->stack_pointer, scheduler_stack); }
static void resume(Fiber* f) { emulation_switch(&scheduler_stack, f->stack_pointer); }
#else
static ucontext_t scheduler_context;
static void to_scheduler(Fiber* f) { swapcontext(&f->context, &scheduler_context); }
static void resume(Fiber* f) { swapcontext(&scheduler_context, &f->context); }
#endif

static void wait(State state, int operation) {
  Fiber* f = current;
  f->state = state;
  f->operation = operation;
  to_scheduler(f);
}
static void enter() {
  body(body_slots);
  current->state = ENDED;
  to_scheduler(current);
  abort();  // an ended fibre is never resumed
}
static void start(Fiber& f, int i) {
  char* top = stacks + STACK * (i + 1);
#if defined(__x86_64__)
  uint64_t* p = reinterpret_cast<uint64_t*>(top);
  *--p = 0;
  *--p = reinterpret_cast<uint64_t>(&enter);
  for (int k = 0; k < 6; k++) *--p = 0;
  f.stack_pointer = p;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = top - STACK;
  f.context.uc_stack.ss_size = STACK;
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
#endif
}

inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fault = "16 bytes accessed at an address that is no multiple of 16";
}
template <typename T> T exchange(T v, int from, int operation) {
  static_assert(sizeof(T) <= 8, "a register or two");
  Fiber* f = current;
  uint64_t(&slots)[32] = warps[f->warp].exchanged[f->turn++ & 1];
  memcpy(&slots[f->lane], &v, sizeof(T));
  wait(AT_WARP_BARRIER, operation);
  T r;
  memcpy(&r, &slots[from], sizeof(T));
  return r;
}

// Runs the lanes of one warp until each has ended or waits for the block; false if they wait for each other in vain.
static bool run_warp(int first, int last, bool backwards) {
  for (;;) {
    int at_warp = 0, ended = 0, operation = -1;
    for (int n = 0; n < last - first; n++) {
      Fiber& f = fibers[backwards ? last - 1 - n : first + n];
      if (f.state == RUNNING) {
        current = &f;
        resume(&f);
      }
      if (f.state == ENDED) ended++;
      if (f.state == AT_WARP_BARRIER) {
        at_warp++;
        if (operation >= 0 && operation != f.operation) {
          fault = "threads of a warp are in different operations";
          return false;
        }
        operation = f.operation;
      }
    }
    if (at_warp == 0) return true;
    if (at_warp + ended != last - first) {
      fault = "threads of a warp wait for others that wait for the block";
      return false;
    }
    for (int i = first; i < last; i++) {
      if (fibers[i].state == AT_WARP_BARRIER) fibers[i].state = RUNNING;
    }
  }
}

static bool run_block(int threads, bool backwards) {
  for (int i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    f.state = RUNNING;
    f.thread = {static_cast<unsigned>(i), 0, 0};
    f.lane = i & 31;
    f.warp = i >> 5;
    f.turn = 0;
    f.copies.clear();
    f.group = 0;
    start(f, i);
  }
  const int count = threads / 32;
  for (;;) {
    for (int n = 0; n < count; n++) {
      const int warp = backwards ? count - 1 - n : n;
      if (!run_warp(warp * 32, warp * 32 + 32, backwards)) return false;
    }
    int ended = 0;
    for (int i = 0; i < threads; i++) {
      if (fibers[i].state == ENDED) ended++;
      else fibers[i].state = RUNNING;
    }
    if (ended == threads) return true;
    if (ended != 0) {
      // A device lets ended threads pass a barrier; none of the kernels means to rely on that.
      bool whole_warps = true;
      for (int i = 0; i < threads; i += 32) {
        int of_warp = 0;
        for (int k = i; k < i + 32; k++) of_warp += fibers[k].state == ENDED;
        whole_warps = whole_warps && (of_warp == 0 || of_warp == 32);
      }
      if (!whole_warps) {
        fault = "some threads of a warp have ended ahead of a barrier";
        return false;
      }
    }
  }
}

template <typename A> static A argument(uint64_t slot) {
  A value;
  memcpy(&value, &slot, sizeof(A));
  return value;
}
template <typename... A, size_t... I>
static void call(void (*kernel)(A...), const uint64_t* slots, std::index_sequence<I...>) {
  kernel(argument<A>(slots[I])...);
}
template <typename... A> static constexpr size_t count_of(void (*)(A...)) { return sizeof...(A); }
template <typename... A> static void call(void (*kernel)(A...), const uint64_t* slots) {
  call(kernel, slots, std::index_sequence_for<A...>());
}

// Runs a grid; null, or what went wrong.
static const char* run_grid(const unsigned* grid, unsigned threads, unsigned shared_bytes, bool backwards) {
  if (threads == 0 || threads % 32 != 0 || threads > 1024) return "a block is no whole number of warps";
  if (shared_bytes > SHARED_MAX) return "more shared memory than a block has";
  if (stacks == nullptr) {
    stacks = static_cast<char*>(aligned_alloc(4096, STACK * 1024));
    shared = static_cast<unsigned char*>(aligned_alloc(4096, SHARED_MAX + 4096));
    fibers.resize(1024);
  }
  fault = nullptr;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {threads, 1, 1};
  for (unsigned z = 0; z < grid[2]; z++) {
    for (unsigned y = 0; y < grid[1]; y++) {
      for (unsigned x = 0; x < grid[0]; x++) {
        block_index = {x, y, z};
        memset(shared, 0xff, shared_bytes);
        memset(shared + shared_bytes, 0xa5, GUARD);
        // Both orders of threads are right; a missing barrier shows in one of them.
        if (!run_block(threads, backwards ^ ((x ^ y ^ z) & 1)) || fault != nullptr) return fault;
        for (size_t i = 0; i < GUARD; i++) {
          if (shared[shared_bytes + i] != 0xa5) return "shared memory is written past its end";
        }
      }
    }
  }
  return nullptr;
}

inline float half_to_float(uint16_t bits) {
#if defined(__FLT16_MANT_DIG__)
  _Float16 h;
#else
  __fp16 h;
#endif
  memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}
inline uint16_t float_to_half(float f) {
#if defined(__FLT16_MANT_DIG__)
  const _Float16 h = static_cast<_Float16>(f);
#else
  const __fp16 h = static_cast<__fp16>(f);
#endif
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}

}  // namespace emulation

#define EMULATION_ENTRY(name)                                                                                       \
  extern "C" __attribute__((visibility("default"))) const char* emulation_launch(                                   \
      const unsigned* grid, unsigned threads, unsigned shared_bytes, const uint64_t* slots, size_t count, int backwards) { \
    if (count != emulation::count_of(&name)) return "wrong number of arguments";                                    \
    emulation::body = [](const uint64_t* slots) { emulation::call(&name, slots); };                                 \
    emulation::body_slots = slots;                                                                                  \
    return emulation::run_grid(grid, threads, shared_bytes, backwards != 0);                                        \
  }
