// y = (x - mean) / sqrt(var + EPS) * w + b, a work-group to a row of D elements.
//
//   LX  work-items, a power of two      V  vector width      D  row length      EPS
//   HOLD  1: an item keeps its part of the row in registers; 0: it reads the row three times
//   BIAS  b is there      IMAGE  x, w and b are seen as RGBA texels
//
// Two passes, corrected (Chan, Golub, LeVeque 1983): the mean first, then the sums of what is left
// without it and of its squares. The first of these is zero but for what rounding did to the mean,
// and puts both right; so digits of the variance survive a mean that is far from zero.
#include "vec.clh"
#include "reduce.clh"

#ifdef BIAS
#define BIAS_ARG INPUT(float, b),
#define PLUS_BIAS(get, i) + get(i, 0, b)
#else
#define BIAS_ARG
#define PLUS_BIAS(get, i)
#endif

#define STEPS ((D / V + LX - 1) / LX)
#if HOLD
#define X(step, i) held[step]
#define UNROLL _Pragma("unroll")
#else
#define X(step, i) VGET(i, row, x)
#define UNROLL
#endif
// For every whole vector of this item: its step and its place in the row.
#define FOR_VECTORS(step, i) UNROLL for (int step = 0, i = item; step < STEPS; ++step, i += LX)
// What fills no vector: fewer than V elements.
#define FOR_REST(i) for (int i = D / V * V + item; i < D; i += LX)

__kernel REQD void layernorm(INPUT(float, x), INPUT(float, w), BIAS_ARG __global float *restrict y) {
  __local float scratch[LX];
  const int item = get_local_id(0);
  const size_t row = (size_t)get_group_id(0) * D;
  y += row;
  VF sums = 0.0f, squares = 0.0f;
#if HOLD
  VF held[STEPS + !STEPS];
#endif
  FOR_VECTORS(step, i) {
    if (i < D / V) {
#if HOLD
      held[step] = VGET(i, row, x);
#endif
      sums += X(step, i);
    }
  }
  float sum = vsum(sums);
  FOR_REST(i) sum += GET1(i, row, x);
  const float mean = group_sum(sum, scratch) / D;

  sums = 0.0f;
  FOR_VECTORS(step, i) {
    if (i < D / V) {
      const VF a = X(step, i) - mean;
      sums += a;
      squares = a * a + squares;
    }
  }
  sum = vsum(sums);
  float square = vsum(squares);
  FOR_REST(i) {
    const float a = GET1(i, row, x) - mean;
    sum += a;
    square = a * a + square;
  }
  const float off = group_sum(sum, scratch) / D;
  const float variance = fmax(group_sum(square, scratch) / D - off * off, 0.0f);
  const float scale = 1.0f / sqrt(variance + EPS);

  FOR_VECTORS(step, i) {
    if (i < D / V) {
      VSTORE((X(step, i) - mean - off) * scale * VGET(i, 0, w) PLUS_BIAS(VGET, i), i, y);
    }
  }
  FOR_REST(i) {
    y[i] = (GET1(i, row, x) - mean - off) * scale * GET1(i, 0, w) PLUS_BIAS(GET1, i);
  }
}
