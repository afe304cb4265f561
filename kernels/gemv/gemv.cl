// y[n] = W[n, K] x[K], one token. A work-item owns G row groups of R rows (pairs of groups with
// SWIGLU) and every KS-th block of columns; the KS partial sums meet in local memory.
//
//   N rows of y   LX row tiles to a work-group   KS ways to split K   G row groups to a work-item
//   U unroll factor of a block   BIAS, ADD, SWIGLU, QKV as in epilogue.clh
//   NORM  x becomes RMSNorm(x) first, see normed.clh
#include "weights.clh"
#include "epilogue.clh"

#ifdef NORM
#include "gemv/normed.clh"
#define X __local const float *
#define X_ALIGNED ALIGNED_LOCAL
#define NORM_ARG __global const float *restrict norm,
#else
#define X __global const float *restrict
#define X_ALIGNED ALIGNED
#define NORM_ARG
#endif

#define ACC (G * P)

// acc += block b of row group g times x.
static inline VR add_block(VR acc, WEIGHT_ARGS(w), X x, const size_t g, const int b,
                           const float xsum) {
  const int k = 32 * b;
#ifdef FLOATS
  const int end = min(32, K - k);
#pragma unroll U
  for (int j = 0; j < end; j++) acc += float_column(WEIGHT(w), g, k + j) * x[k + j];
  return acc;
#else
  VR sum = (VR)(0.0f);
#ifdef NIBBLES
#pragma unroll U
  for (int j = 0; j < 16; j++) {
    const UCHARS pair = nibble_pair(WEIGHT(w), g, b, j);
    sum += TO_FLOAT(pair & (UCHARS)(15)) * x[k + j];
    sum += TO_FLOAT(pair >> (UCHARS)(4)) * x[k + j + 16];
  }
#else
#pragma unroll U
  for (int j = 0; j < 32; j++) sum += code_column(WEIGHT(w), g, k + j) * x[k + j];
#endif
  const VR d = block_scales(WEIGHT(w), g, b, 0);
#ifdef DTYPE_Q4_0
  sum -= (VR)(8.0f * xsum);
#endif
  acc += sum * d;
#ifdef DTYPE_Q4_1
  acc += block_scales(WEIGHT(w), g, b, 1) * xsum;
#endif
  return acc;
#endif
}

static inline float block_sum(X x, const int b) {
#ifdef NIBBLES
  // Eight at a time: a simulator that the tests run in takes the halves of a float16 for unset.
  const float8 s8 = (X_ALIGNED(float8, 4 * b, x) + X_ALIGNED(float8, 4 * b + 1, x)) +
                    (X_ALIGNED(float8, 4 * b + 2, x) + X_ALIGNED(float8, 4 * b + 3, x));
  const float4 s4 = s8.lo + s8.hi;
  const float2 s2 = s4.lo + s4.hi;
  return s2.x + s2.y;
#else
  return 0.0f;
#endif
}

__kernel __attribute__((reqd_work_group_size(LX, KS, 1)))
void gemv(STATE_ARG WEIGHT_ARGS(w), __global const float *restrict in, NORM_ARG BIAS_ARG
          __global float *restrict y QKV_ARGS) {
  const int tile = get_global_id(0);
  const int part = get_local_id(1);
#ifdef NORM
  __local float8 staged[STAGED];
  __local float scratch[GROUP_SIZE];
  const float factor = stage(in, norm, staged, scratch);
  X x = (X)staged;
#else
  X x = in;
#endif
  VR acc[ACC];
#pragma unroll
  for (int i = 0; i < ACC; i++) acc[i] = (VR)(0.0f);
  for (int b = part; b < BLOCKS; b += KS) {
    const float xsum = block_sum(x, b);
#pragma unroll
    for (int i = 0; i < ACC; i++) {
      const size_t g = (size_t)tile * ACC + i;
      if (g < OUT_GROUPS * P) acc[i] = add_block(acc[i], WEIGHT(w), x, g, b, xsum);
    }
  }
#if KS > 1
  __local VR sums[KS][LX][ACC];
#pragma unroll
  for (int i = 0; i < ACC; i++) sums[part][get_local_id(0)][i] = acc[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  if (part != 0) return;
  for (int p = 1; p < KS; p++)
#pragma unroll
    for (int i = 0; i < ACC; i++) acc[i] += sums[p][get_local_id(0)][i];
#endif
#pragma unroll
  for (int i = 0; i < G; i++) {
    const size_t g = (size_t)tile * G + i;
    if (g >= OUT_GROUPS) continue;
#ifdef NORM
#pragma unroll
    for (int p = 0; p < P; p++) acc[i * P + p] *= factor;
#endif
    store_group(g, acc[i * P + P - 1], acc[i * P], BIAS_VALUE y QKV_VALUES);
  }
}
