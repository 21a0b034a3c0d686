// The products of groups of four warps, of Hopper's GPUs alone (sm_90a).
//
// A tile of 64 columns of halves in shared memory, from an address that is a multiple of 1024 on: 128 bytes a row, whose 16
// bytes c are at place c ^ row % 8.
DEVICE u64 group_operand(const void* tile, int part) {
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(tile)) + part * 32;
  // 1024 bytes from 8 rows to the next, and the places swapped within 128 bytes.
  return static_cast<u64>(address >> 4 & 0x3fffu) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
template <typename T, int WIDTH> struct GroupProduct;
#define GROUP_SUMS(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define GROUP_PRODUCT_16(T, NAME)                                                               \
  template <> struct GroupProduct<T, 16> {                                                      \
    DEVICE_STATIC void multiply(float (&c)[16][4], u64 a, u64 b) {                              \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; "                                    \
                   "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"            \
                   "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                     \
                   "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"           \
                   "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"           \
                   "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "         \
                   "%64, %65, p, 1, 1, 0, 0; }"                                                 \
                   : GROUP_SUMS(c[0]), GROUP_SUMS(c[1]), GROUP_SUMS(c[2]), GROUP_SUMS(c[3]),    \
                     GROUP_SUMS(c[4]), GROUP_SUMS(c[5]), GROUP_SUMS(c[6]), GROUP_SUMS(c[7]),    \
                     GROUP_SUMS(c[8]), GROUP_SUMS(c[9]), GROUP_SUMS(c[10]), GROUP_SUMS(c[11]),  \
                     GROUP_SUMS(c[12]), GROUP_SUMS(c[13]), GROUP_SUMS(c[14]), GROUP_SUMS(c[15]) \
                   : "l"(a), "l"(b), "r"(1));                                                   \
    }                                                                                           \
  }
GROUP_PRODUCT_16(f16, "f16");
GROUP_PRODUCT_16(bf16, "bf16");
#define GROUP_PRODUCT_32(T, NAME)                                                                       \
  template <> struct GroupProduct<T, 32> {                                                              \
    DEVICE_STATIC void multiply(float (&c)[32][4], u64 a, u64 b) {                                      \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0; "                                           \
                   "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {"                    \
                   "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                             \
                   "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                   \
                   "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                   \
                   "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                   \
                   "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                   \
                   "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                   \
                   "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"       \
                   "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, " \
                   "%128, %129, p, 1, 1, 0, 0; }"                                                       \
                   : GROUP_SUMS(c[0]), GROUP_SUMS(c[1]), GROUP_SUMS(c[2]), GROUP_SUMS(c[3]),            \
                     GROUP_SUMS(c[4]), GROUP_SUMS(c[5]), GROUP_SUMS(c[6]), GROUP_SUMS(c[7]),            \
                     GROUP_SUMS(c[8]), GROUP_SUMS(c[9]), GROUP_SUMS(c[10]), GROUP_SUMS(c[11]),          \
                     GROUP_SUMS(c[12]), GROUP_SUMS(c[13]), GROUP_SUMS(c[14]), GROUP_SUMS(c[15]),        \
                     GROUP_SUMS(c[16]), GROUP_SUMS(c[17]), GROUP_SUMS(c[18]), GROUP_SUMS(c[19]),        \
                     GROUP_SUMS(c[20]), GROUP_SUMS(c[21]), GROUP_SUMS(c[22]), GROUP_SUMS(c[23]),        \
                     GROUP_SUMS(c[24]), GROUP_SUMS(c[25]), GROUP_SUMS(c[26]), GROUP_SUMS(c[27]),        \
                     GROUP_SUMS(c[28]), GROUP_SUMS(c[29]), GROUP_SUMS(c[30]), GROUP_SUMS(c[31])         \
                   : "l"(a), "l"(b), "r"(1));                                                           \
    }                                                                                                   \
  }
GROUP_PRODUCT_32(f16, "f16");
GROUP_PRODUCT_32(bf16, "bf16");
// c += a · b of columns 16 part.. of both tiles: a has 64 rows, b 8 WIDTH. Lane 4g + t of warp w holds rows 16w + g and 8 more of
// columns 8j + 2t and 8j + 2t + 1, as after multiply_tile.
template <typename T, int WIDTH> DEVICE void multiply_group(float (&c)[WIDTH][4], const T* a, const T* b, int part) {
  GroupProduct<T, WIDTH>::multiply(c, group_operand(a, part), group_operand(b, part));
}
// What is copied to shared memory, or was read into c, before.
DEVICE void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING of the last committed groups of products are under way.
template <int PENDING> DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving products before what was waited for.
template <int WIDTH> DEVICE void keep_products(float (&c)[WIDTH][4]) {
#pragma unroll
  for (int j = 0; j < WIDTH; j++) asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
}
