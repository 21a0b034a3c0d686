// How the keys of a query are split among blocks, and how parts are put together.

constexpr float LOG2_E = 1.4426950408889634f;
// A maximum that no score has: below any finite one, and its difference with itself is 0.
constexpr float LOWEST = -1e30f;

// Keys of a split are a multiple of this: what one step of a block of four warps takes.
constexpr int SPLIT_UNIT = 64;

// The keys that a row sees, and which of them a split takes.
struct KeySplit {
  int begin, end;  // of the row
  int length;      // of a split
  int active;      // splits with keys

  DEVICE KeySplit(const Sequence& sequence, int row, int window, int splits) {
    end = sequence.past + row - sequence.first_row + 1;
    begin = window > 0 && end > window ? end - window : 0;
    const int each = (end - begin + splits - 1) / splits;
    length = (each + SPLIT_UNIT - 1) / SPLIT_UNIT * SPLIT_UNIT;
    active = (end - begin + length - 1) / length;
  }
};

// A score in units of log2, from a product of query and key.
DEVICE float score(float product, float scale, float soft_cap) {
  float s = product * scale;
  if (soft_cap > 0.f) s = soft_cap * tanhf(s / soft_cap);
  return s * LOG2_E;
}

// Puts the states of `count` warps (each head_dim sums, the maximum, the sum of weights) in shared memory together for one
// element, and stores it: as the output if there is one split, else as a part.
template <typename T>
DEVICE void store_state(const float* states, int stride, int count, int d, int head_dim, int splits, float* part, T* out) {
  float most = LOWEST;
  for (int i = 0; i < count; i++) most = fmaxf(most, states[i * stride + head_dim]);
  float sum = 0.f, weight = 0.f;
  for (int i = 0; i < count; i++) {
    const float factor = exp2_fast(states[i * stride + head_dim] - most);
    sum += factor * states[i * stride + d];
    weight += factor * states[i * stride + head_dim + 1];
  }
  if (splits == 1) {
    out[d] = from_float<T>(sum / weight);
  } else {
    part[d] = sum;
    if (d == 0) {
      part[head_dim] = most;
      part[head_dim + 1] = weight;
    }
  }
}

#define ATTENTION_DECODE_PARAMETERS(T)                                                                                   \
  const T *q, int q_stride, int group, int head_dim, const int *row_sequence, const Sequence *sequences, int max_rows,   \
      i64 k_full, i64 k_ring, i64 v_full, i64 v_ring, int ring_rows, int window, float scale, float soft_cap,            \
      float *partial, T *out, int out_stride
#define ATTENTION_DECODE_ARGUMENTS                                                                                       \
  q, q_stride, group, head_dim, row_sequence, sequences, max_rows, k_full, k_ring, v_full, v_ring, ring_rows, window,    \
      scale, soft_cap, partial, out, out_stride
