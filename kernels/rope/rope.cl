// Rotates q in place, and writes rotated k and plain v into the rows of the KV cache that belong
// to this step. Dimension 0: LX items to the units of S heads; dimension 1: the tokens.
//
//   HEADS, KV_HEADS, HEAD_DIM, ROPE_DIM      LX, V, S      W  2 * V      KV_F16 | KV_F32
//   INTERLEAVED  pairs are (2i, 2i + 1), else (i, i + ROPE_DIM / 2)
//   IMAGE  the table and the norm's weights are seen as RGBA texels
//   NORM  each head of q and k first becomes x / sqrt(mean(x^2) + EPS) * its norm's weights
//
// A unit is 2 * V values of one head: V pairs, or past ROPE_DIM and in v values that are copied.
#include "vec.clh"

#define UNITS (HEAD_DIM / W)
#define ROTATED (ROPE_DIM / W)
#define TURNING (HEADS + KV_HEADS)
#define SLOTS (TURNING + KV_HEADS)
#define FW CAT(float, W)

// Where the two vectors of unit u of a head lie, in vectors.
#ifdef INTERLEAVED
#define AT(turns, u) (2 * (u))
#define AT2(turns, u) (2 * (u) + 1)
#else
#define AT(turns, u) ((turns) ? (u) : 2 * (u))
#define AT2(turns, u) ((turns) ? (u) + ROTATED : 2 * (u) + 1)
#endif

#ifdef NORM
#include "reduce.clh"
#define TOGETHER 1  // the group meets for each head

// The sum of squares of those units of a q or k head that this work-item will write. No item
// reads what another one writes, so the head may turn in place.
static inline float own_squares(__global const float *restrict x) {
  VF squares = 0.0f;
  for (int u = get_local_id(0); u < UNITS; u += LX) {
    const VF a = VLOAD(AT(u < ROTATED, u), x), b = VLOAD(AT2(u < ROTATED, u), x);
    squares = a * a + squares;
    squares = b * b + squares;
  }
  return vsum(squares);
}

static inline VF norm_weights(const int i, const bool query, INPUT(float, q_norm),
                              INPUT(float, k_norm)) {
  return query ? VGET(i, 0, q_norm) : VGET(i, 0, k_norm);
}
#else
#define TOGETHER S
#endif

__kernel REQD void rope(__global const int *restrict state, INPUT(float, table),
#ifdef NORM
                        INPUT(float, q_norm), INPUT(float, k_norm),
#endif
                        __global float *restrict qkv, __global KV *restrict k_cache,
                        __global KV *restrict v_cache) {
  const int token = get_global_id(1);
  const int row = state[0] + token;
  const size_t turns_at = (size_t)row * ROPE_DIM;
  qkv += (size_t)token * SLOTS * HEAD_DIM;
  k_cache += (size_t)row * KV_HEADS * HEAD_DIM;
  v_cache += (size_t)row * KV_HEADS * HEAD_DIM;

  const int begin = get_group_id(0) * S;
  // Past the last token there is nothing to do: some compilers lose barriers behind a return.
  const int end = token < state[1] ? min(begin + S, SLOTS) : begin;
#ifdef NORM
  __local float scratch[LX];
#endif
  for (int head = begin; head < end; head += TOGETHER) {
    const int first = head * UNITS, last = min(head + TOGETHER, end) * UNITS;
#ifdef NORM
    const float sum = group_sum(own_squares(qkv + head * HEAD_DIM), scratch);
    const float scale = 1.0f / sqrt(sum / HEAD_DIM + EPS);
#endif
    for (int i = first + (int)get_local_id(0); i < last; i += LX) {
      const int slot = i / UNITS, u = i % UNITS;
      const bool turns = u < ROTATED && slot < TURNING;
      const int at = AT(turns, u), at2 = AT2(turns, u);
      __global float *x = qkv + slot * HEAD_DIM;
      VF a = VLOAD(at, x), b = VLOAD(at2, x);
#ifdef NORM
      if (slot < TURNING) {
        a *= scale * norm_weights(at, slot < HEADS, q_norm, k_norm);
        b *= scale * norm_weights(at2, slot < HEADS, q_norm, k_norm);
      }
#endif
      if (turns) {
        const FW turn = GET(W, u, turns_at, table);
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
        const VF first_half = a;
        a = first_half * c - b * s;
        b = b * c + first_half * s;
#endif
      }
      if (slot < HEADS) {
        VSTORE(a, at, x);
        VSTORE(b, at2, x);
      } else {
        __global KV *to = slot < TURNING ? k_cache + (slot - HEADS) * HEAD_DIM
                                         : v_cache + (slot - TURNING) * HEAD_DIM;
        KVSTORE(a, at, to);
        KVSTORE(b, at2, to);
      }
    }
  }
}
