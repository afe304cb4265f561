// y[n] = W[n, K] x[K], one token. A work-item owns G row groups of R rows (pairs of groups with
// SWIGLU) and every KS-th block of columns; the KS partial sums meet in local memory.
//
//   N rows of y   LX row tiles to a work-group   KS ways to split K   G row groups to a work-item
//   U unroll factor of a block   BIAS, ADD, SWIGLU, QKV, OF as in epilogue.clh
//   XM where x lies, as in tokens.clh   NORM  x becomes RMSNorm(x) first, see normed.clh
#include "weights.clh"
#include "epilogue.clh"
#define ONE_TOKEN
#include "tokens.clh"
#define GROUP_SIZE (LX * KS)
#define GROUP_ID (get_local_id(1) * LX + get_local_id(0))
#include "reduce.clh"

// What is multiplied: x itself, or what was staged of it in local memory.
//
//   X_ARG      x as a function's argument   EIGHT(i)           columns 8 * i to 8 * i + 7
//   COLUMN(k)  column k                     BY_FOURS, FOUR(i)  columns come in fours, 4 * i and on
#ifdef NORM
#include "gemv/normed.clh"
#define SOURCE in
#define X_ARG __local const float *x
#define COLUMN(k) x[k]
#define EIGHT(i) ALIGNED_LOCAL(float8, i, x)
#else
#define SOURCE x
#define NORM_ARG
#define X_ARG TOKENS(x)
#define COLUMN(k) X_ONE(k, 0, x)
#define EIGHT(i) X_EIGHT(i, x)
#ifdef FOURS
#define BY_FOURS
#define FOUR(i) X_FOUR(i, 0, x)
#if U > 4
#define FOURS_AT_ONCE 4
#else
#define FOURS_AT_ONCE 1
#endif
#endif
#endif

#define ACC (G * P)

#if KS > 1
PART_SUMS(part_sums, VR, ACC, KS)
#endif

// acc += block b of row group g times x, whose sums over the block's halves are given.
#ifdef FLOATS
static inline VR add_block(VR acc, WEIGHT_ARGS(w), X_ARG, const size_t g, const int b) {
  const int end = min(32 * b + 32, K);
#ifdef BY_FOURS
#pragma unroll FOURS_AT_ONCE
  for (int k = 32 * b; k < end; k += 4) {
    const union four columns = {FOUR(k / 4)};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (K % 4 && k + j >= K) continue;
      acc += float_column(WEIGHT(w), g, k + j) * columns.lane[j];
    }
  }
#else
#pragma unroll U
  for (int k = 32 * b; k < end; k++) acc += float_column(WEIGHT(w), g, k) * COLUMN(k);
#endif
  return acc;
}
#define ADD_BLOCK(acc, g, b) add_block(acc, WEIGHT(w), x, g, b)
#else
static inline VR add_block(VR acc, WEIGHT_ARGS(w), X_ARG, const size_t g, const int b,
                           const float *xsum) {
  VR sum[HALVES];
#pragma unroll
  for (int h = 0; h < HALVES; h++) sum[h] = (VR)(0.0f);
#ifdef BY_FOURS
#pragma unroll FOURS_AT_ONCE
  for (int q = 0; q < 4; q++) {
    const union four left = {FOUR(8 * b + q)}, right = {FOUR(8 * b + q + 4)};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      VR low, high;
      code_pair(WEIGHT(w), g, b, 4 * q + j, &low, &high);
      sum[0] += low * left.lane[j];
      sum[HALVES - 1] += high * right.lane[j];
    }
  }
#else
#pragma unroll U
  for (int j = 0; j < 16; j++) {
    VR low, high;
    code_pair(WEIGHT(w), g, b, j, &low, &high);
    sum[0] += low * COLUMN(32 * b + j);
    sum[HALVES - 1] += high * COLUMN(32 * b + j + 16);
  }
#endif
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
static inline float8 pair_sums(X_ARG, const int half_block) {
  return EIGHT(2 * half_block) + EIGHT(2 * half_block + 1);
}

// Eight at a time: a simulator that the tests run in takes the halves of a float16 for unset.
static inline float across(const float8 s8) {
  const float4 s4 = s8.lo + s8.hi;
  const float2 s2 = s4.lo + s4.hi;
  return s2.x + s2.y;
}

static inline void block_sums(X_ARG, const int b, float *xsum) {
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
void gemv(STATE_ARG WEIGHT_ARGS(w), TOKENS(SOURCE), NORM_ARG BIAS_ARG
          PIECE_ARG __global float *restrict y QKV_ARGS) {
  const int tile = get_global_id(0);
  const int part = get_local_id(1);
#ifdef NORM
  __local float8 staged[STAGED];
  __local float scratch[GROUP_SIZE];
  const float factor = stage(in, norm, staged, scratch);
  __local const float *x = (__local const float *)staged;
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
  __local VR sums[GROUP_SIZE * ACC];
  part_sums(acc, sums);
  if (part != 0) return;
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
