// Functions of the elements of grids: rows of up to three axes with strides. For what no other kernel does on the way.

// Elements of a row, the axes' strides and the rows' in elements.
struct Grid {
  i64 row;
  i64 strides[3];
};

// Where an element of a row is.
DEVICE i64 place(const Grid& grid, int row, int element, int middle, int inner) {
  const int last = element % inner, rest = element / inner;
  return grid.row * row + grid.strides[0] * (rest / middle) + grid.strides[1] * (rest % middle) + grid.strides[2] * last;
}

template <typename From, typename To>
DEVICE void map(const From* from, Grid from_grid, To* to, Grid to_grid, int elements, int middle, int inner, int function,
                float parameter) {
  launch_dependents();
  wait_for_previous();
  const int element = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (element >= elements) return;
  float x = to_float(from[place(from_grid, row, element, middle, inner)]);
  switch (function) {
    case 1: x = activate<1>(x); break;
    case 2: x = activate<2>(x); break;
    case 3: x = activate<3>(x); break;
    case 4: x = sigmoid(x); break;
    case 5: x *= parameter; break;
    case 6: x = soft_capped(x, parameter); break;
    default: break;
  }
  to[place(to_grid, row, element, middle, inner)] = from_float<To>(x);
}
#define INSTANTIATE_MAP(name, From, To)                                                                                    \
  KERNEL(256, 4) name(const From* from, i64 from_row, i64 from0, i64 from1, i64 from2, To* to, i64 to_row, i64 to0,        \
                      i64 to1, i64 to2, int elements, int middle, int inner, int function, float parameter) {              \
    map<From, To>(from, Grid{from_row, {from0, from1, from2}}, to, Grid{to_row, {to0, to1, to2}}, elements, middle, inner, \
                  function, parameter);                                                                                    \
  }

template <typename T>
DEVICE void binary(const T* a, Grid a_grid, const T* b, Grid b_grid, T* to, Grid to_grid, int elements, int middle, int inner,
                   int operation) {
  launch_dependents();
  wait_for_previous();
  const int element = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (element >= elements) return;
  const float x = to_float(a[place(a_grid, row, element, middle, inner)]), y = to_float(b[place(b_grid, row, element, middle, inner)]);
  float result;
  switch (operation) {
    case 1: result = activate<1>(x) * y; break;
    case 2: result = activate<2>(x) * y; break;
    case 3: result = activate<3>(x) * y; break;
    case 4: result = x + y; break;
    default: result = x * y; break;
  }
  to[place(to_grid, row, element, middle, inner)] = from_float<T>(result);
}
#define INSTANTIATE_BINARY(name, T)                                                                                       \
  KERNEL(256, 4) name(const T* a, i64 a_row, i64 a0, i64 a1, i64 a2, const T* b, i64 b_row, i64 b0, i64 b1, i64 b2, T* to, \
                      i64 to_row, i64 to0, i64 to1, i64 to2, int elements, int middle, int inner, int operation) {        \
    binary<T>(a, Grid{a_row, {a0, a1, a2}}, b, Grid{b_row, {b0, b1, b2}}, to, Grid{to_row, {to0, to1, to2}}, elements,    \
              middle, inner, operation);                                                                                  \
  }

// Integers as numbers, one a row.
template <typename T> DEVICE void numbers(const int* ids, T* to, i64 to_row, int rows) {
  launch_dependents();
  wait_for_previous();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < rows) to[to_row * row] = from_float<T>(static_cast<float>(ids[row]));
}
#define INSTANTIATE_NUMBERS(name, T)                                        \
  KERNEL(256, 4) name(const int* ids, T* to, i64 to_row, int rows) {        \
    numbers<T>(ids, to, to_row, rows);                                      \
  }

// Makes the tokens that were found those of the next step, one row a sequence, and keeps them: `found[turn]`, `turn` being how
// often that was done since the row's `turns` was 0.
DEVICE void advance_rows(const int* tokens, int* ids, int* positions, const int* row_sequence, Sequence* sequences, int* turns,
                    int* found, int rows) {
  launch_dependents();
  wait_for_previous();
  const int row = threadIdx.x;
  if (row >= rows) return;
  const int turn = turns[row], sequence = row_sequence[row];
  found[turn * rows + row] = tokens[row];
  turns[row] = turn + 1;
  if (sequence < 0) return;
  ids[row] = tokens[row];
  positions[row] += 1;
  sequences[sequence].past += 1;
}
#define INSTANTIATE_ADVANCE(name)                                                                                       \
  KERNEL(128, 1) name(const int* tokens, int* ids, int* positions, const int* row_sequence, Sequence* sequences,        \
                      int* turns, int* found, int rows) {                                                               \
    advance_rows(tokens, ids, positions, row_sequence, sequences, turns, found, rows);                                       \
  }
