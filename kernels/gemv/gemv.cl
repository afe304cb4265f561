// y[n] = W[n, K] x[K], one token. A work-item owns G row groups of R rows (pairs of groups with
// SWIGLU) and every KS-th block of columns; the KS partial sums meet in local memory.
//
//   N rows of y   LX row tiles to a work-group   KS ways to split K   G row groups to a work-item
//   U unroll factor of a block   BIAS, ADD, SWIGLU, QKV, OF as in epilogue.clh
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

// acc += block b of row group g times x, whose sums over the block's halves are given.
#ifdef FLOATS
static inline VR add_block(VR acc, WEIGHT_ARGS(w), X x, const size_t g, const int b) {
  const int k = 32 * b;
  const int end = min(32, K - k);
#pragma unroll U
  for (int j = 0; j < end; j++) acc += float_column(WEIGHT(w), g, k + j) * x[k + j];
  return acc;
}
#define ADD_BLOCK(acc, g, b) add_block(acc, WEIGHT(w), x, g, b)
#else
static inline VR add_block(VR acc, WEIGHT_ARGS(w), X x, const size_t g, const int b,
                           const float *xsum) {
  VR sum[HALVES];
#pragma unroll
  for (int h = 0; h < HALVES; h++) sum[h] = (VR)(0.0f);
#pragma unroll U
  for (int j = 0; j < 16; j++) {
    VR low, high;
    code_pair(WEIGHT(w), g, b, j, &low, &high);
    sum[0] += low * x[32 * b + j];
    sum[HALVES - 1] += high * x[32 * b + j + 16];
  }
#pragma unroll
  for (int h = 0; h < HALVES; h++) {
    const VR d = block_scales(WEIGHT(w), g, b, 0, h);
#ifdef ZERO
    sum[h] -= (VR)(ZERO * xsum[h]);
#endif
    acc += sum[h] * d;
#ifdef MINIMA
    acc += block_scales(WEIGHT(w), g, b, 1, h) * xsum[h];
#endif
  }
  return acc;
}
#define ADD_BLOCK(acc, g, b) add_block(acc, WEIGHT(w), x, g, b, xsum)

// Of columns 16 * half_block to 16 * half_block + 15, by eights.
static inline float8 pair_sums(X x, const int half_block) {
  return X_ALIGNED(float8, 2 * half_block, x) + X_ALIGNED(float8, 2 * half_block + 1, x);
}

// Eight at a time: a simulator that the tests run in takes the halves of a float16 for unset.
static inline float across(const float8 s8) {
  const float4 s4 = s8.lo + s8.hi;
  const float2 s2 = s4.lo + s4.hi;
  return s2.x + s2.y;
}

static inline void block_sums(X x, const int b, float *xsum) {
#ifndef OFFSETS
  xsum[0] = xsum[HALVES - 1] = 0.0f;
#elif HALVES == 1
  xsum[0] = across(pair_sums(x, 2 * b) + pair_sums(x, 2 * b + 1));
#else
  xsum[0] = across(pair_sums(x, 2 * b));
  xsum[1] = across(pair_sums(x, 2 * b + 1));
#endif
}
#endif

__kernel __attribute__((reqd_work_group_size(LX, KS, 1)))
void gemv(STATE_ARG WEIGHT_ARGS(w), __global const float *restrict in, NORM_ARG BIAS_ARG
          PIECE_ARG __global float *restrict y QKV_ARGS) {
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
#ifdef BITS
    float xsum[HALVES];
    block_sums(x, b, xsum);
#endif
#pragma unroll
    for (int i = 0; i < ACC; i++) {
      const size_t g = (size_t)tile * ACC + i;
      if (g < OUT_GROUPS * P) acc[i] = ADD_BLOCK(acc[i], g, b);
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
    store_group(g, acc[i * P + P - 1], acc[i * P], BIAS_VALUE y + PIECE QKV_VALUES);
  }
}
