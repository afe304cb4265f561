// Linear layer for many tokens, in two ways: TILED through local memory, else from registers.
#ifdef TILED
#define E 4
#endif
#include "weights.clh"
#include "epilogue.clh"
#include "tokens.clh"

#ifdef TILED
#include "gemm/tiled.clh"
#else
// y[m, N] = x[m, K] W[N, K]^T for many tokens. A work-item owns TM tokens and TN row groups of R
// rows (pairs of groups with SWIGLU): each weight is decoded once for TM tokens. Token tiles are the
// fast dimension of the grid, so that one panel of W stays in the cache while all tokens meet it.
//
//   N rows   LX token tiles, LY row tiles to a work-group   BIAS, ADD, SWIGLU, OF as in epilogue.clh
//   XM where x lies, as in tokens.clh
//   state[1] = m, the number of tokens

#define ACC (TN * P)

#define FOR_TOKENS _Pragma("unroll") for (int t = 0; t < TM; t++)

// Columns 4 * i to 4 * i + 3 of all tokens of the item; of token t column j.
#ifdef FOURS
#define FOUR_COLUMNS(name, i) \
  union four name[TM];        \
  FOR_TOKENS name[t].vector = X_FOUR(i, row[t], x)
#elif XM == 0
#define COLUMN(j, t) row[t][j]
#else
#define COLUMN(j, t) X_ONE(j, row[t], x)
#endif

#ifndef FLOATS
#ifdef OFFSETS
#define LEAST_ARG const VR *least,
#define LEAST least,
#else
#define LEAST_ARG
#define LEAST
#endif
// Columns j and j + 16 of block b of row group g, decoded with the scales d of its halves.
static inline void decode(WEIGHT_ARGS(w), const size_t g, const int b, const int j, const VR *d,
                          LEAST_ARG VR *low, VR *high) {
  code_pair(WEIGHT(w), g, b, j, low, high);
#ifdef OFFSETS
  *low = *low * d[0] + least[0];
  *high = *high * d[HALVES - 1] + least[HALVES - 1];
#else
  *low *= d[0];
  *high *= d[HALVES - 1];
#endif
}
#endif

__kernel __attribute__((reqd_work_group_size(LX, LY, 1)))
void gemm(__global const int *restrict state, WEIGHT_ARGS(w), TOKENS(x),
          BIAS_ARG PIECE_ARG __global float *restrict y) {
  const int m = state[1];
  const int first = get_global_id(0) * TM;
  const size_t tile = get_global_id(1);
  if (first >= m || tile * TN >= OUT_GROUPS) return;
  // Past the last token the last one is computed again and not stored.
#if XM == 0
  __global const float *row[TM];
  FOR_TOKENS row[t] = x + (size_t)min(first + t, m - 1) * K;
#else
  int row[TM];
  FOR_TOKENS row[t] = min(first + t, m - 1);
#endif
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
#ifdef FOURS
      for (int q = k; q < k + end; q += 4) {
        FOUR_COLUMNS(columns, q / 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (K % 4 && q + j >= K) continue;
          const VR v = float_column(WEIGHT(w), g, q + j);
          FOR_TOKENS acc[i][t] += v * columns[t].lane[j];
        }
      }
#else
      for (int j = k; j < k + end; j++) {
        const VR v = float_column(WEIGHT(w), g, j);
        FOR_TOKENS acc[i][t] += v * COLUMN(j, t);
      }
#endif
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
#ifdef FOURS
      for (int q = 0; q < 16; q += 4) {
        FOUR_COLUMNS(low, (k + q) / 4);
        FOUR_COLUMNS(high, (k + q) / 4 + 4);
#pragma unroll
        for (int j = q; j < q + 4; j++) {
          VR v0, v1;
          decode(WEIGHT(w), g, b, j, d, LEAST &v0, &v1);
          FOR_TOKENS acc[i][t] += v0 * low[t].lane[j - q];
          FOR_TOKENS acc[i][t] += v1 * high[t].lane[j - q];
        }
      }
#else
#ifdef HIGH
#pragma unroll PER
#endif
      for (int j = 0; j < 16; j++) {
        VR v0, v1;
        decode(WEIGHT(w), g, b, j, d, LEAST &v0, &v1);
        FOR_TOKENS acc[i][t] += v0 * COLUMN(k + j, t);
        FOR_TOKENS acc[i][t] += v1 * COLUMN(k + j + 16, t);
      }
#endif
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
