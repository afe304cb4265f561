// y = x / sqrt(mean(x^2) + EPS) * w, a work-group to a row of D elements.
//
//   LX  work-items, a power of two      V  vector width      D  row length      EPS
#include "vec.clh"
#include "reduce.clh"

__kernel REQD void rmsnorm(__global const float *restrict x, __global const float *restrict w,
                           __global float *restrict y) {
  __local float scratch[LX];
  const int item = get_local_id(0);
  const size_t row = (size_t)get_group_id(0) * D;
  x += row;
  y += row;
  VF squares = 0.0f;
  for (int i = item; i < D / V; i += LX) {
    const VF a = VLOAD(i, x);
    squares = a * a + squares;
  }
  float sum = vsum(squares);
  for (int i = D / V * V + item; i < D; i += LX) sum = x[i] * x[i] + sum;
  const float scale = 1.0f / sqrt(group_sum(sum, scratch) / D + EPS);
  for (int i = item; i < D / V; i += LX) VSTORE(VLOAD(i, x) * scale * VLOAD(i, w), i, y);
  for (int i = D / V * V + item; i < D; i += LX) y[i] = x[i] * scale * w[i];
}
