// Functions of one number. Accurate ones: none is fast math.

DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
DEVICE float soft_capped(float x, float cap) { return cap * tanhf(x / cap); }

// The function of this code in the catalogue: 0 none, 1 SiLU, 2 GELU, 3 GELU by tanh.
template <int FUNCTION> DEVICE float activate(float x) {
  if (FUNCTION == 1) return x * sigmoid(x);
  if (FUNCTION == 2) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  if (FUNCTION == 3) return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  return x;
}
