// Sums N vectors of V floats as fast as memory delivers them: the read bandwidth roof.
//
//   LX  work-items      V  vector width      A  loads in flight, each with its own accumulator
//
// Each group reads one contiguous share. Beside it, item i of a group reads vectors i, i + LX, ...
#include "vec.clh"

__kernel REQD void roof_read(__global const float *restrict x, __global float *restrict out) {
  const size_t groups = get_num_groups(0);
  const size_t begin = (size_t)N * get_group_id(0) / groups;
  const size_t end = (size_t)N * (get_group_id(0) + 1) / groups;
  VF sums[A];
#pragma unroll
  for (int a = 0; a < A; ++a) sums[a] = 0.0f;
  size_t i = begin + get_local_id(0);
  for (; i + (A - 1) * LX < end; i += A * LX) {
#pragma unroll
    for (int a = 0; a < A; ++a) sums[a] += ALIGNED(VF, i + a * LX, x);
  }
  for (; i < end; i += LX) sums[0] += ALIGNED(VF, i, x);
#pragma unroll
  for (int a = 1; a < A; ++a) sums[0] += sums[a];
  out[get_global_id(0)] = vsum(sums[0]);
}
