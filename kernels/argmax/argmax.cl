// out = (index of the largest of N values, the lowest where several are; status), one work-group.
// Status: bit 0, a value is NaN or infinite, and the index is 0; bit 1, all N > 1 values are equal.
//
//   LX  work-items, a power of two      V  vector width      N  number of values
//   IMAGE  x is seen as RGBA texels
#include "vec.clh"
#include "reduce.clh"

// An exponent of all ones marks infinities and NaN.
#define EXPONENT 0x7f800000
#define ODD 1
#define DIFFERENT 2
#define AS_VI CAT(as_, VI)

__kernel REQD void argmax(INPUT(float, x), __global int *restrict out) {
  __local float scratch[LX];
  __local int marks[LX];
  const int item = get_local_id(0);
  const float first = GET1(0, 0, x);

  // A lane keeps its first largest value: only a strictly larger one replaces it.
  VF top = -INFINITY;
  VI at = 0, exponents = 0, differ = 0;
  for (int i = item; i < N / V; i += LX) {
    const VF a = VGET(i, 0, x);
    const VI larger = a > top;
    top = select(top, a, larger);
    at = select(at, (VI)i, larger);
    exponents = max(exponents, AS_VI(a) & EXPONENT);
    differ |= a != first;
  }
  float tops[V];
  int ats[V], exponent[V], different[V];
  VSTORE(top, 0, tops);
  VSTORE(at, 0, ats);
  VSTORE(exponents, 0, exponent);
  VSTORE(differ, 0, different);
  float best = -INFINITY;
  int index = INT_MAX, status = 0;
  for (int lane = 0; lane < V; ++lane) {
    const int i = ats[lane] * V + lane;
    if (tops[lane] > best || (tops[lane] == best && i < index)) {
      best = tops[lane];
      index = i;
    }
    status |= (exponent[lane] == EXPONENT ? ODD : 0) | (different[lane] ? DIFFERENT : 0);
  }
  for (int i = N / V * V + item; i < N; i += LX) {
    const float a = GET1(i, 0, x);
    if (a > best) {
      best = a;
      index = i;
    }
    status |= ((as_int(a) & EXPONENT) == EXPONENT ? ODD : 0) | (a != first ? DIFFERENT : 0);
  }

  const float largest = group_max(best, scratch);
  index = group_min_int(best == largest ? index : INT_MAX, marks);
  status = group_or(status, marks);
  if (item == 0) {
    const int unfit = status & ODD;
    out[0] = unfit ? 0 : index;
    out[1] = unfit | (N > 1 && !(status & DIFFERENT) ? 2 : 0);
  }
}
