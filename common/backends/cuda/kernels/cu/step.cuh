// What a step is made of, in device memory, and where caches are.

struct Sequence {
  u64 kv;        // address of its caches
  int capacity;  // keys they have room for
  int first_row;
  int rows;
  int past;  // keys before the step
  int padding[2];
};
struct QueryTile {
  int sequence;
  int first;
};

// The keys or the values of a layer: `full` and `ring` as the layer's place in a sequence's caches; rows of a head.
template <typename T> struct Cache {
  T* base;
  int rows;

  DEVICE Cache(const Sequence& sequence, i64 full, i64 ring, int ring_rows) {
    const int most = ring_rows < sequence.capacity ? ring_rows : sequence.capacity;
    base = reinterpret_cast<T*>(sequence.kv) + full * sequence.capacity + ring * most;
    rows = ring_rows > 0 ? most : sequence.capacity;
  }
  // Head `head`, whose key p is in row p mod rows.
  DEVICE T* head(int head, int head_dim) const { return base + static_cast<i64>(head) * rows * head_dim; }
};
