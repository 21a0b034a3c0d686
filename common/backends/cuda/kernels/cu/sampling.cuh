// The next token of each row of logits: the largest, or a draw after penalties, temperature, top-k, top-p and min-p.

// An order of floats as unsigned numbers.
DEVICE u32 ordered(float x) {
  const u32 bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Above the key of any finite logit.
constexpr u64 NOT_FINITE = ~0ull;

// Blocks of a row each find their largest logit; the last of them to end stores the row's, the lower token among equals, or -1
// where a logit is NaN or infinite. `best` and `count` hold zeros before and after.
DEVICE void find_arg_max(const float* logits, i64 stride, int vocabulary, u64* best, u32* count, int* out) {
  DYNAMIC_SHARED(shared);
  u64* keys = reinterpret_cast<u64*>(shared);
  launch_dependents();
  wait_for_previous();
  const int row = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  logits += row * stride;
  u64 key = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vocabulary; i += gridDim.x * blockDim.x) {
    const float x = logits[i];
    const bool finite = x >= -3.402823466e38f && x <= 3.402823466e38f;
    const u64 own = finite ? static_cast<u64>(ordered(x)) << 32 | (0xffffffffu - static_cast<u32>(i)) : NOT_FINITE;
    if (own > key) key = own;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const u64 other = __shfl_xor_sync(0xffffffffu, key, offset);
    if (other > key) key = other;
  }
  if (lane == 0) keys[warp] = key;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < static_cast<int>(blockDim.x >> 5); i++) {
    if (keys[i] > key) key = keys[i];
  }
  atomicMax(best + row, key);
  __threadfence();
  if (atomicAdd(count + row, 1u) + 1 == gridDim.x) {
    const u64 all = atomicExch(best + row, 0ull);
    atomicExch(count + row, 0u);
    out[row] = all == 0 || all == NOT_FINITE ? -1 : static_cast<int>(0xffffffffu - static_cast<u32>(all));
  }
}
#define INSTANTIATE_ARG_MAX(name)                                                                                    \
  KERNEL(256, 4) name(const float* logits, i64 stride, int vocabulary, u64* best, u32* count, int* out) {            \
    find_arg_max(logits, stride, vocabulary, best, count, out);                                                      \
  }

// How a row is sampled: `struct SampleRow` of the catalogue, byte for byte.
struct SampleRow {
  u64 seed;
  u64 counter;  // numbers drawn with the seed so far
  u64 seen;     // int[vocabulary]: 0 a token that was not there, 1 in the prompt only, 1 + its count in the output; or no address
  float temperature;
  int top_k;
  float top_p;
  float min_p;
  float repetition;
  float presence;
  float frequency;
  int padding;
};

// Philox 4x32-10 (Salmon et al. 2011), the first two words of a block as one number.
DEVICE u64 philox(u64 seed, u64 counter) {
  u32 c0 = static_cast<u32>(counter), c1 = static_cast<u32>(counter >> 32), c2 = 0, c3 = 0;
  u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const u64 a = static_cast<u64>(0xD2511F53u) * c0, b = static_cast<u64>(0xCD9E8D57u) * c2;
    const u32 n0 = static_cast<u32>(b >> 32) ^ c1 ^ k0, n2 = static_cast<u32>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<u32>(b);
    c3 = static_cast<u32>(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<u64>(c1) << 32 | c0;
}

// Weights are counted in units of 2^-40 of the largest, so that sums are the same in every order.
constexpr float WEIGHT_UNITS = 1099511627776.f;

constexpr int SAMPLE_THREADS = 1024;

struct SampleShared {
  u64 bins[256];
  u64 warps[32];
  u64 equals[32];
  u64 value;
  u64 rest;
};

DEVICE u64 block_sum_u64(u64 v, u64* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  u64 total = 0;
  for (int i = 0; i < SAMPLE_THREADS / 32; i++) total += scratch[i];
  return total;
}

// The order of the token at which the sums of `measure` over tokens of falling logit reach `target`; `rest` is what is left of
// the target for the tokens of just that logit. The target is above 0 and not above the whole.
template <typename Measure>
DEVICE u32 select_descending(const float* logits, int vocabulary, u64 target, SampleShared& s, u64& rest, Measure measure) {
  u32 prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += SAMPLE_THREADS) s.bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocabulary; i += SAMPLE_THREADS) {
      const u32 order = ordered(logits[i]);
      if (shift == 24 || (order >> (shift + 8)) == (prefix >> (shift + 8))) {
        const u64 m = measure(logits[i]);
        if (m > 0) atomicAdd(&s.bins[order >> shift & 255u], m);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255;
      for (; bin > 0 && s.bins[bin] < target; bin--) target -= s.bins[bin];
      s.value = static_cast<u64>(bin);
      s.rest = target;
    }
    __syncthreads();
    prefix |= static_cast<u32>(s.value) << shift;
    target = s.rest;
  }
  rest = target;
  return prefix;
}

DEVICE void draw_token(float* logits, i64 stride, int vocabulary, const SampleRow* rows, int* out) {
  DYNAMIC_SHARED(shared);
  SampleShared& s = *reinterpret_cast<SampleShared*>(shared);
  launch_dependents();
  wait_for_previous();
  const SampleRow row = rows[blockIdx.x];
  logits += blockIdx.x * stride;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int* seen = reinterpret_cast<int*>(row.seen);

  // Penalties, and the largest logit with the lowest token among equals.
  u64 key = 0;
  for (int i = threadIdx.x; i < vocabulary; i += SAMPLE_THREADS) {
    float x = logits[i];
    const int count = seen == nullptr ? 0 : seen[i];
    if (count > 0) {
      x = x < 0.f ? x * row.repetition : x / row.repetition;
      x = x - row.frequency * static_cast<float>(count - 1) - (count > 1 ? row.presence : 0.f);
      x = fminf(fmaxf(x, -3.402823466e38f), 3.402823466e38f);
      logits[i] = x;
    }
    const u64 own = static_cast<u64>(ordered(x)) << 32 | (0xffffffffu - static_cast<u32>(i));
    if (x == x && own > key) key = own;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const u64 other = __shfl_xor_sync(0xffffffffu, key, offset);
    if (other > key) key = other;
  }
  if (lane == 0) s.warps[warp] = key;
  __syncthreads();
  for (int i = 0; i < SAMPLE_THREADS / 32; i++) {
    if (s.warps[i] > key) key = s.warps[i];
  }
  int token = static_cast<int>(0xffffffffu - static_cast<u32>(key));
  if (key == 0) token = 0;

  if (row.temperature > 0.f && key != 0) {
    const float most = logits[token], inverse = 1.4426950408889634f / row.temperature;
    auto weight = [&](float x) { return static_cast<u64>(exp2f((x - most) * inverse) * WEIGHT_UNITS); };
    // Top-k keeps all tokens from the k-th logit on.
    u32 lowest = 0;
    u64 rest = 0;
    if (row.top_k > 0 && row.top_k < vocabulary) {
      lowest = select_descending(logits, vocabulary, row.top_k, s, rest, [](float) { return 1ull; });
    }
    // Top-p keeps the fewest that have the mass, of equal ones the lower.
    u64 equals_kept = ~0ull;
    if (row.top_p < 1.f) {
      u64 total = 0;
      for (int i = threadIdx.x; i < vocabulary; i += SAMPLE_THREADS) {
        if (ordered(logits[i]) >= lowest) total += weight(logits[i]);
      }
      total = block_sum_u64(total, s.warps);
      const double wanted = static_cast<double>(total) * static_cast<double>(row.top_p);
      u64 target = static_cast<u64>(wanted);
      target = target < 1 ? 1 : target > total ? total : target;
      const u32 top_k_lowest = lowest;
      lowest = select_descending(logits, vocabulary, target, s, rest, [&](float x) {
        return ordered(x) >= top_k_lowest ? weight(x) : 0ull;
      });
      // Its own weight, from its order.
      const u32 bits = lowest & 0x80000000u ? lowest & 0x7fffffffu : ~lowest;
      const u64 each = weight(__uint_as_float(bits));
      equals_kept = each == 0 ? 1 : (rest + each - 1) / each;
    }
    const u64 least = static_cast<u64>(row.min_p * WEIGHT_UNITS);
    auto kept = [&](float x) {
      const u64 w = weight(x);
      return ordered(x) >= lowest && w >= least ? w : 0ull;
    };

    // Each warp has a stretch of the vocabulary; its mass, and how many of it are equal to the lowest.
    const int stretch = ((vocabulary + 31) / 32 + 31) / 32 * 32;
    const int begin = warp * stretch, end = begin + stretch < vocabulary ? begin + stretch : vocabulary;
    u64 mass = 0, equals = 0;
    for (int i = begin + lane; i < end; i += 32) {
      const float x = logits[i];
      if (ordered(x) == lowest) equals++;
      else mass += kept(x);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
      mass += __shfl_xor_sync(0xffffffffu, mass, offset);
      equals += __shfl_xor_sync(0xffffffffu, equals, offset);
    }
    __syncthreads();
    if (lane == 0) {
      s.warps[warp] = mass;
      s.equals[warp] = equals;
    }
    __syncthreads();
    const u32 lowest_bits = lowest & 0x80000000u ? lowest & 0x7fffffffu : ~lowest;
    const u64 equal_weight = lowest == 0 ? 0 : kept(__uint_as_float(lowest_bits));
    u64 before = 0, own_before = 0, equals_before = 0, own_equals = 0;
    for (int i = 0; i < SAMPLE_THREADS / 32; i++) {
      if (i == warp) {
        own_before = before;
        own_equals = equals_before;
      }
      u64 left = equals_before < equals_kept ? equals_kept - equals_before : 0;
      left = left < s.equals[i] ? left : s.equals[i];
      before += s.warps[i] + left * equal_weight;
      equals_before += s.equals[i];
    }
    // 53 bits of a point in the whole mass, as the processor's sampler takes one.
    const double point = static_cast<double>(philox(row.seed, row.counter) >> 11) * 1.1102230246251565e-16;
    u64 target = static_cast<u64>(point * static_cast<double>(before));
    if (target >= before) target = before - 1;

    // The warp whose stretch has the point goes through it, 32 tokens at a time.
    u64 running = own_before, running_equals = own_equals;
    for (int i0 = begin; i0 < end; i0 += 32) {
      const int i = i0 + lane;
      const float x = i < end ? logits[i] : 0.f;
      const bool is_equal = i < end && lowest != 0 && ordered(x) == lowest;
      u64 equal_count = is_equal ? 1 : 0;
      for (int offset = 1; offset < 32; offset <<= 1) {
        const u64 other = __shfl_up_sync(0xffffffffu, equal_count, offset);
        if (lane >= offset) equal_count += other;
      }
      u64 own = 0;
      if (is_equal) own = running_equals + equal_count <= equals_kept ? equal_weight : 0;
      else if (i < end) own = kept(x);
      u64 sum = own;
      for (int offset = 1; offset < 32; offset <<= 1) {
        const u64 other = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (own > 0 && running + sum - own <= target && target < running + sum) s.value = static_cast<u64>(i);
      running += __shfl_sync(0xffffffffu, sum, 31);
      running_equals += __shfl_sync(0xffffffffu, equal_count, 31);
    }
    __syncthreads();
    token = static_cast<int>(s.value);
  }
  if (threadIdx.x == 0) {
    out[blockIdx.x] = token;
    if (seen != nullptr) seen[token] = seen[token] == 0 ? 2 : seen[token] + 1;
  }
}
#define INSTANTIATE_SAMPLE(name)                                                                                     \
  KERNEL(1024, 1) name(float* logits, i64 stride, int vocabulary, const SampleRow* rows, int* out) {                 \
    draw_token(logits, stride, vocabulary, rows, out);                                                               \
  }
