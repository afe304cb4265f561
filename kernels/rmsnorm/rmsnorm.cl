// y = x / sqrt(mean(x^2) + EPS) * w, a work-group to a row of D elements.
//
//   LX  work-items, a power of two      V  vector width      D  row length      EPS
//   IMAGE  x and w are seen as RGBA texels
#include "vec.clh"
#include "reduce.clh"

__kernel REQD void rmsnorm(INPUT(float, x), INPUT(float, w), __global float *restrict y) {
  __local float scratch[LX];
  const int item = get_local_id(0);
  const size_t row = (size_t)get_group_id(0) * D;
  y += row;
  VF squares = 0.0f;
  for (int i = item; i < D / V; i += LX) {
    const VF a = VGET(i, row, x);
    squares = a * a + squares;
  }
  float sum = vsum(squares);
  for (int i = D / V * V + item; i < D; i += LX) {
    const float a = GET1(i, row, x);
    sum = a * a + sum;
  }
  const float scale = 1.0f / sqrt(group_sum(sum, scratch) / D + EPS);
  for (int i = item; i < D / V; i += LX) VSTORE(VGET(i, row, x) * scale * VGET(i, 0, w), i, y);
  for (int i = D / V * V + item; i < D; i += LX) {
    y[i] = GET1(i, row, x) * scale * GET1(i, 0, w);
  }
}
