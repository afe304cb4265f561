// Rotates q in place, and writes rotated k and plain v into the rows of the KV cache that belong
// to this step. Dimension 0: LX items to the units of S heads; dimension 1: the tokens.
//
//   HEADS, KV_HEADS, HEAD_DIM, ROPE_DIM      LX, V, S      W  2 * V      KV_F16 | KV_F32
//   INTERLEAVED  pairs are (2i, 2i + 1), else (i, i + ROPE_DIM / 2)
//
// A unit is 2 * V values of one head: V pairs, or past ROPE_DIM and in v values that are copied.
#include "vec.clh"

#define UNITS (HEAD_DIM / W)
#define ROTATED (ROPE_DIM / W)
#define SLOTS (HEADS + 2 * KV_HEADS)
#define FW CAT(float, W)

__kernel REQD void rope(__global const int *restrict state, __global const float *restrict table,
                        __global float *restrict qkv, __global KV *restrict k_cache,
                        __global KV *restrict v_cache) {
  const int token = get_global_id(1);
  if (token >= state[1]) return;
  const int row = state[0] + token;
  table += (size_t)row * ROPE_DIM;
  qkv += (size_t)token * SLOTS * HEAD_DIM;
  k_cache += (size_t)row * KV_HEADS * HEAD_DIM;
  v_cache += (size_t)row * KV_HEADS * HEAD_DIM;

  const int begin = get_group_id(0) * S;
  const int end = min(begin + S, SLOTS) * UNITS;
  for (int i = begin * UNITS + (int)get_local_id(0); i < end; i += LX) {
    const int slot = i / UNITS, u = i % UNITS;
    const bool turns = u < ROTATED && slot < HEADS + KV_HEADS;
#ifdef INTERLEAVED
    const int at = 2 * u, at2 = 2 * u + 1;
#else
    const int at = turns ? u : 2 * u, at2 = turns ? u + ROTATED : 2 * u + 1;
#endif
    __global float *x = qkv + slot * HEAD_DIM;
    VF a = VLOAD(at, x), b = VLOAD(at2, x);
    if (turns) {
      const FW turn = CAT(load, W)(u, table);
      const VF c = turn.even, s = turn.odd;
#ifdef INTERLEAVED
      FW pairs = 0.0f, turned = 0.0f;
      pairs.lo = a;
      pairs.hi = b;
      turned.even = pairs.even * c - pairs.odd * s;
      turned.odd = pairs.odd * c + pairs.even * s;
      a = turned.lo;
      b = turned.hi;
#else
      const VF first = a;
      a = first * c - b * s;
      b = b * c + first * s;
#endif
    }
    if (slot < HEADS) {
      VSTORE(a, at, x);
      VSTORE(b, at2, x);
    } else {
      __global KV *to = slot < HEADS + KV_HEADS ? k_cache + (slot - HEADS) * HEAD_DIM
                                                : v_cache + (slot - HEADS - KV_HEADS) * HEAD_DIM;
      KVSTORE(a, at, to);
      KVSTORE(b, at2, to);
    }
  }
}
