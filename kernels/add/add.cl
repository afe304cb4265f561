// y += x, rows of D elements; dimension 0 covers a row, dimension 1 counts the rows.
//
//   LX  work-items      V  vector width      U  vectors to a work-item      D  row length
//   IMAGE  x is seen as RGBA texels
#include "vec.clh"

__kernel REQD void add(INPUT(float, x), __global float *restrict y) {
  const int first = get_group_id(0) * LX * U + get_local_id(0);
  const size_t row = (size_t)get_global_id(1) * D;
  y += row;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int i = first + u * LX;
    if (i < D / V) VSTORE(VLOAD(i, y) + VGET(i, row, x), i, y);
  }
  for (int i = D / V * V + get_global_id(0); i < D; i += get_global_size(0)) {
    y[i] += GET1(i, row, x);
  }
}
