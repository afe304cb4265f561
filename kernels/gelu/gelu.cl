// y = gelu(x), rows of D elements; dimension 0 covers a row, dimension 1 counts the rows.
//
//   LX  work-items      V  vector width      U  vectors to a work-item      D  row length
//   GELU  GELU_ERF or GELU_TANH      BIAS  added to x, one for each column
//   IMAGE  x and the bias are seen as RGBA texels
#include "vec.clh"
#include "activation.clh"

#ifdef BIAS
#define BIAS_ARG INPUT(float, bias),
#define BIASED(get, i) (get(i, row, x) + get(i, 0, bias))
#else
#define BIAS_ARG
#define BIASED(get, i) get(i, row, x)
#endif

__kernel REQD void gelu(INPUT(float, x), BIAS_ARG __global float *restrict y) {
  const int first = get_group_id(0) * LX * U + get_local_id(0);
  const size_t row = (size_t)get_global_id(1) * D;
  y += row;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int i = first + u * LX;
    if (i < D / V) {
      const VF a = BIASED(VGET, i);
      VSTORE(GELU(a), i, y);
    }
  }
  for (int i = D / V * V + get_global_id(0); i < D; i += get_global_size(0)) {
    const float a = BIASED(GET1, i);
    y[i] = GELU(a);
  }
}
