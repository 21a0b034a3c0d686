// Sums and maxima over the lanes of a warp and the threads of a block.

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}
// The sum over the block, for every thread. `scratch` is 32 floats; `used` says whether some thread may still read what is in
// them.
DEVICE float block_sum(float v, float* scratch, bool used = true) {
  v = warp_sum(v);
  if (used) __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  float total = 0.f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x >> 5); warp++) total += scratch[warp];
  return total;
}
