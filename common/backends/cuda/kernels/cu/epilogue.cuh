// What is done to products before they are stored: + bias, activation (of the gate), · scale, soft cap, + residual.

struct EpilogueArguments {
  const void* bias;
  const void* residual;
  int residual_stride;
  void* y;
  int y_stride;
  int n;
  float output_scale;
  float soft_cap;
};

// OUTPUT is float or the activations' type T. `up` is the product with the other half of the weight, if gated.
// What is added can be loaded ahead: the bias before the kernel before has ended, the residual after.
template <typename OUTPUT, bool BIAS, int FUNCTION, bool GATED_, bool SOFT_CAP, bool RESIDUAL> struct Epilogue {
  static constexpr bool GATED = GATED_;
  struct Bias {
    float gate, up;
  };

  template <typename T> DEVICE_STATIC Bias load_bias(const EpilogueArguments& a, int j) {
    Bias bias = {0.f, 0.f};
    if (BIAS) {
      bias.gate = to_float(static_cast<const T*>(a.bias)[j]);
      if (GATED) bias.up = to_float(static_cast<const T*>(a.bias)[a.n + j]);
    }
    return bias;
  }
  template <typename T> DEVICE_STATIC float load_residual(const EpilogueArguments& a, int row, int j) {
    return RESIDUAL ? to_float(static_cast<const T*>(a.residual)[static_cast<i64>(row) * a.residual_stride + j]) : 0.f;
  }
  DEVICE_STATIC void store(const EpilogueArguments& a, int row, int j, float v, float up, Bias bias, float residual) {
    v = activate<FUNCTION>(v + bias.gate);
    if (GATED) v *= up + bias.up;
    v *= a.output_scale;
    if (SOFT_CAP) v = soft_capped(v, a.soft_cap);
    static_cast<OUTPUT*>(a.y)[static_cast<i64>(row) * a.y_stride + j] = from_float<OUTPUT>(v + residual);
  }
};

// The arguments of every linear kernel.
#define LINEAR_PARAMETERS(T)                                                                                          \
  const T *x, int x_stride, const T *norm_weight, const T *norm_bias, float epsilon, const void *weight,              \
      const void *scales, const void *offsets, const void *bias, const void *residual, int residual_stride, void *y,  \
      int y_stride, int n, int columns, int rows, float output_scale, float soft_cap, int flags, u32 *counters, float *scratch
#define LINEAR_EPILOGUE \
  const EpilogueArguments epilogue = {bias, residual, residual_stride, y, y_stride, n, output_scale, soft_cap}
// The same, handed on.
#define LINEAR_ARGUMENTS                                                                                          \
  x, x_stride, norm_weight, norm_bias, epsilon, weight, scales, offsets, bias, residual, residual_stride, y,      \
      y_stride, n, columns, rows, output_scale, soft_cap, flags, counters, scratch
// A type in parentheses, which keep its commas together in a macro's argument.
#define UNPACK_TYPE(...) __VA_ARGS__
