// A independent chains of x = x * b + c in registers: the float32 arithmetic roof.
//
//   LX  work-items      V  vector width      A  chains      STEPS  multiply-adds in each chain
//
// b and c come from memory, so no compiler can fold the chains; with |b| < 1 each goes to c / (1 - b).
#include "vec.clh"

__kernel REQD void roof_fma(__global const float *restrict bc, __global float *restrict out) {
  const VF b = bc[0], c = bc[1];
  VF x[A];
#pragma unroll
  for (int a = 0; a < A; ++a) x[a] = (float)(a + (int)get_local_id(0));
  for (int step = 0; step < STEPS; ++step) {
#pragma unroll
    for (int a = 0; a < A; ++a) x[a] = x[a] * b + c;
  }
#pragma unroll
  for (int a = 1; a < A; ++a) x[0] += x[a];
  out[get_global_id(0)] = vsum(x[0]) / (A * V);
}
