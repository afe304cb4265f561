// Attention of one token to the positions 0 .. pos of the KV cache, pos = state[0].
//
//   HEADS, KV_HEADS, HEAD_DIM, SCALE      LX, V, KV_F16 | KV_F32
//   G  query heads to a work-group, all of one KV head: they share its loads
//   IMAGE  qkv and the caches are seen as RGBA texels
//   T  positions to a step, whose scores are exponentiated together
//
// Item i takes steps i, i + LX, ... with a softmax and an accumulator of its own (rescaled when the
// largest score grows); at the end the items' parts are added up through local memory.
#include "vec.clh"
#include "reduce.clh"

#define NV (HEAD_DIM / V)
#define TLOAD CAT(load, T)
#define TSTORE CAT(store, T)
// Where this head's row of a position begins.
#define ROW_OF(p) (((size_t)min(p, count - 1) * KV_HEADS + kv_head) * HEAD_DIM)

GROUP_SUMS(group_sums, VF, NV)

__kernel REQD void attention_decode(__global const int *restrict state, INPUT(float, qkv),
                                    INPUT(KV, k_cache), INPUT(KV, v_cache),
                                    __global float *restrict out) {
  __local float scratch[LX];
  const int item = get_local_id(0);
  const int head = get_group_id(0) * G;
  const int count = state[0] + 1;
  const int kv_head = head / (HEADS / KV_HEADS);

  VF q[G][NV], acc[G][NV];
  float peak[G], sum[G];
  for (int g = 0; g < G; ++g) {
    for (int j = 0; j < NV; ++j) {
      q[g][j] = VGET(g * NV + j, head * HEAD_DIM, qkv) * SCALE;
      acc[g][j] = 0.0f;
    }
    peak[g] = -INFINITY;
    sum[g] = 0.0f;
  }

  for (int step = item * T; step < count; step += LX * T) {
    float scores[G][T];
#pragma unroll
    for (int t = 0; t < T; ++t) {
      // Past the end the last position stands in, and its score counts nothing.
      const size_t row = ROW_OF(step + t);
      VF dot[G];
#pragma unroll
      for (int g = 0; g < G; ++g) dot[g] = 0.0f;
#pragma unroll
      for (int j = 0; j < NV; ++j) {
        const VF x = KVGET(j, row, k_cache);
#pragma unroll
        for (int g = 0; g < G; ++g) dot[g] = q[g][j] * x + dot[g];
      }
#pragma unroll
      for (int g = 0; g < G; ++g) scores[g][t] = step + t < count ? vsum(dot[g]) : -INFINITY;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float most = peak[g];
#pragma unroll
      for (int t = 0; t < T; ++t) most = fmax(most, scores[g][t]);
      const float shrink = exp(peak[g] - most);
      peak[g] = most;
      TSTORE(exp(TLOAD(0, scores[g]) - most), 0, scores[g]);
      sum[g] *= shrink;
#pragma unroll
      for (int t = 0; t < T; ++t) sum[g] += scores[g][t];
#pragma unroll
      for (int j = 0; j < NV; ++j) acc[g][j] *= shrink;
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const size_t row = ROW_OF(step + t);
#pragma unroll
      for (int j = 0; j < NV; ++j) {
        const VF x = KVGET(j, row, v_cache);
#pragma unroll
        for (int g = 0; g < G; ++g) acc[g][j] = scores[g][t] * x + acc[g][j];
      }
    }
  }

  __local VF parts[(LX + 1) / 2 * NV];
  for (int g = 0; g < G; ++g) {
    // An item without a position has peak -inf and weighs nothing.
    const float weight = exp(peak[g] - group_max(peak[g], scratch));
    const float scale = 1.0f / group_sum(sum[g] * weight, scratch);
    for (int j = 0; j < NV; ++j) acc[g][j] *= weight * scale;
    group_sums(acc[g], parts);
    if (item == 0) {
      for (int j = 0; j < NV; ++j) VSTORE(acc[g][j], (head + g) * NV + j, out);
    }
  }
}
