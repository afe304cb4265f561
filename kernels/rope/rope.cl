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

#if V == 1
#define PAIRS_LOAD(i, p) vload2(i, p)
#define PAIRS_STORE(x, i, p) vstore2(x, i, p)
#else
#define PAIRS_LOAD(i, p) CAT(vload, W)(i, p)
#define PAIRS_STORE(x, i, p) CAT(vstore, W)(x, i, p)
#endif

// Offsets, in vectors of V, of the two halves of unit u.
#ifdef INTERLEAVED
#define FIRST(u) (2 * (u))
#define SECOND(u) (2 * (u) + 1)
#else
#define FIRST(u) ((u) < ROTATED ? (u) : 2 * (u))
#define SECOND(u) ((u) < ROTATED ? (u) + ROTATED : 2 * (u) + 1)
#endif

// A unit's values: rotated, as two vectors in the order in which they are stored.
typedef struct {
  VF first, second;
} Unit;

static inline Unit rotated(__global const float *x, __global const float *table, const int u) {
  const FW turn = PAIRS_LOAD(u, table);
  const VF c = turn.even, s = turn.odd;
  Unit out;
#ifdef INTERLEAVED
  const FW pair = PAIRS_LOAD(u, x);
  FW turned;
  turned.even = pair.even * c - pair.odd * s;
  turned.odd = pair.odd * c + pair.even * s;
  out.first = turned.lo;
  out.second = turned.hi;
#else
  const VF a = VLOAD(FIRST(u), x), b = VLOAD(SECOND(u), x);
  out.first = a * c - b * s;
  out.second = b * c + a * s;
#endif
  return out;
}

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
    __global float *x = qkv + slot * HEAD_DIM;
    const bool turns = u < ROTATED && slot < HEADS + KV_HEADS;
    if (slot < HEADS) {
      if (turns) {
        const Unit out = rotated(x, table, u);
        VSTORE(out.first, FIRST(u), x);
        VSTORE(out.second, SECOND(u), x);
      }
    } else if (turns) {
      const Unit out = rotated(x, table, u);
      __global KV *k = k_cache + (slot - HEADS) * HEAD_DIM;
      KVSTORE(out.first, FIRST(u), k);
      KVSTORE(out.second, SECOND(u), k);
    } else {
      const bool key = slot < HEADS + KV_HEADS;
      __global KV *to = key ? k_cache + (slot - HEADS) * HEAD_DIM
                            : v_cache + (slot - HEADS - KV_HEADS) * HEAD_DIM;
      KVSTORE(VLOAD(2 * u, x), 2 * u, to);
      KVSTORE(VLOAD(2 * u + 1, x), 2 * u + 1, to);
    }
  }
}
