// y = exp(x - max x) / sum of exp(x - max x), a work-group to a row of N elements.
//
//   LX  work-items, a power of two      V  vector width      N  row length
//   IMAGE  x is seen as RGBA texels
#include "vec.clh"
#include "reduce.clh"

__kernel REQD void softmax(INPUT(float, x), __global float *restrict y) {
  __local float scratch[LX];
  const int item = get_local_id(0);
  const size_t row = (size_t)get_group_id(0) * N;
  y += row;
  VF most = -INFINITY;
  for (int i = item; i < N / V; i += LX) most = fmax(most, VGET(i, row, x));
  float peak = vmax(most);
  for (int i = N / V * V + item; i < N; i += LX) peak = fmax(peak, GET1(i, row, x));
  peak = group_max(peak, scratch);

  // An item reads back from y only what it wrote itself.
  VF sums = 0.0f;
  for (int i = item; i < N / V; i += LX) {
    const VF e = exp(VGET(i, row, x) - peak);
    VSTORE(e, i, y);
    sums += e;
  }
  float sum = vsum(sums);
  for (int i = N / V * V + item; i < N; i += LX) {
    const float e = exp(GET1(i, row, x) - peak);
    y[i] = e;
    sum += e;
  }
  const float scale = 1.0f / group_sum(sum, scratch);
  for (int i = item; i < N / V; i += LX) VSTORE(VLOAD(i, y) * scale, i, y);
  for (int i = N / V * V + item; i < N; i += LX) y[i] *= scale;
}
