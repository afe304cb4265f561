// Linear layer for many tokens, in two ways: TILED through local memory, else from registers.
#ifdef TILED
#define E 4
#endif
#include "weights.clh"
#include "epilogue.clh"

#ifdef TILED
#include "gemm/tiled.clh"
#else
// y[m, N] = x[m, K] W[N, K]^T for many tokens. A work-item owns TM tokens and TN row groups of R
// rows (pairs of groups with SWIGLU): each weight is decoded once for TM tokens. Token tiles are the
// fast dimension of the grid, so that one panel of W stays in the cache while all tokens meet it.
//
//   N rows   LX token tiles, LY row tiles to a work-group   BIAS, ADD, SWIGLU, OF as in epilogue.clh
//   state[1] = m, the number of tokens

#define ACC (TN * P)

#define FOR_TOKENS _Pragma("unroll") for (int t = 0; t < TM; t++)

__kernel __attribute__((reqd_work_group_size(LX, LY, 1)))
void gemm(__global const int *restrict state, WEIGHT_ARGS(w), __global const float *restrict x,
          BIAS_ARG PIECE_ARG __global float *restrict y) {
  const int m = state[1];
  const int first = get_global_id(0) * TM;
  const size_t tile = get_global_id(1);
  if (first >= m || tile * TN >= OUT_GROUPS) return;
  // Past the last token the last one is computed again and not stored.
  __global const float *row[TM];
  FOR_TOKENS row[t] = x + (size_t)min(first + t, m - 1) * K;
  VR acc[ACC][TM];
#pragma unroll
  for (int i = 0; i < ACC; i++) FOR_TOKENS acc[i][t] = (VR)(0.0f);

  for (int b = 0; b < BLOCKS; b++) {
    const int k = 32 * b;
#pragma unroll
    for (int i = 0; i < ACC; i++) {
      // A group past the end reads the last one again: its result is not stored.
      const size_t g = min(tile * ACC + i, (size_t)OUT_GROUPS * P - 1);
#ifdef FLOATS
      const int end = min(32, K - k);
      for (int j = k; j < k + end; j++) {
        const VR v = float_column(WEIGHT(w), g, j);
        FOR_TOKENS acc[i][t] += v * row[t][j];
      }
#else
      VR d[HALVES];
#pragma unroll
      for (int h = 0; h < HALVES; h++) d[h] = block_scales(WEIGHT(w), g, b, 0, h);
#ifdef OFFSETS
      VR least[HALVES];
#pragma unroll
#ifdef MINIMA
      for (int h = 0; h < HALVES; h++) least[h] = block_scales(WEIGHT(w), g, b, 1, h);
#else
      for (int h = 0; h < HALVES; h++) least[h] = d[h] * -(float)(ZERO);
#endif
#endif
#ifdef HIGH
#pragma unroll PER
#endif
      for (int j = 0; j < 16; j++) {
        VR v0, v1;
        code_pair(WEIGHT(w), g, b, j, &v0, &v1);
#ifdef OFFSETS
        v0 = v0 * d[0] + least[0];
        v1 = v1 * d[HALVES - 1] + least[HALVES - 1];
#else
        v0 *= d[0];
        v1 *= d[HALVES - 1];
#endif
        FOR_TOKENS acc[i][t] += v0 * row[t][k + j];
        FOR_TOKENS acc[i][t] += v1 * row[t][k + j + 16];
      }
#endif
    }
  }

#pragma unroll
  for (int i = 0; i < TN; i++) {
    const size_t g = tile * TN + i;
    if (g >= OUT_GROUPS) continue;
    FOR_TOKENS {
      if (first + t >= m) continue;
      __global float *to = y + (size_t)(first + t) * COLUMNS + PIECE;
      store_group(g, acc[i * P + P - 1][t], acc[i * P][t], BIAS_VALUE to);
    }
  }
}
#endif
