// Causal attention of m = state[1] tokens to the positions 0 .. state[0] + m - 1 of the KV cache.
//
//   HEADS, KV_HEADS, HEAD_DIM, SCALE      KV_F16 | KV_F32
//   LX  work-items to a group      V  query rows to a work-item, one in each lane
//   T   positions to a step        UD  unrolling along the head      W  width of a cache load
//   IMAGE  qkv and the caches are seen as RGBA texels
//
// The rows of a KV head are the pairs of a token and one of the head's query heads: row r is query
// head r % GROUP of token r / GROUP. With rows in lanes no score is summed across lanes, and T keys
// and values are read and widened once for LX * V rows. Dimension 0 counts blocks of rows, the last
// first, because they have most positions to attend to; dimension 1 counts KV heads.
#include "vec.clh"

#define GROUP (HEADS / KV_HEADS)
#define ROW ((HEADS + 2 * KV_HEADS) * HEAD_DIM)

// QW  width of a load of queries: single texels are not worth a read each
#ifdef IMAGE
#define QW W
#define WIDE_GET(i, base, p) GET(W, i, base, p)
#else
#define QW 1
#ifdef KV_F16
#define WIDE_GET(i, base, p) CAT(half_load, W)(i, (p) + (base))
#else
#define WIDE_GET(i, base, p) GET(W, i, base, p)
#endif
#endif
#define WIDE_STORE CAT(store, W)

// What several items read, they share.
#if LX > 1
#define TILE_SPACE __local
#define TILE_BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#else
#define TILE_SPACE __private
#define TILE_BARRIER
#endif

// Positions first .. first + T - 1 of a head as float32; past the end the last one stands in.
static inline void read_tile(INPUT(KV, cache), const int kv_head, TILE_SPACE float *tile,
                             const int first, const int end) {
  for (int i = get_local_id(0); i < T * HEAD_DIM / W; i += LX) {
    const int t = i / (HEAD_DIM / W), j = i % (HEAD_DIM / W);
    const size_t row = ((size_t)min(first + t, end - 1) * KV_HEADS + kv_head) * HEAD_DIM;
    WIDE_STORE(WIDE_GET(j, row, cache), i, tile);
  }
}

__kernel REQD void attention_prefill(__global const int *restrict state, INPUT(float, qkv),
                                     INPUT(KV, k_cache), INPUT(KV, v_cache),
                                     __global float *restrict out) {
  TILE_SPACE float k_tile[T * HEAD_DIM];
  TILE_SPACE float v_tile[T * HEAD_DIM];
  const int pos = state[0], rows = state[1] * GROUP;
  const int block = (get_num_groups(0) - 1 - get_group_id(0)) * LX * V;
  // A block past the last row repeats it: some compilers lose barriers behind a return.
  const int end = pos + (min(block + LX * V, rows) - 1) / GROUP + 1;
  const int first = block + (int)get_local_id(0) * V;
  const int kv_head = get_global_id(1);
  out += kv_head * GROUP * HEAD_DIM;

  // Lanes past the last row repeat it and are not written.
  VF q[HEAD_DIM], acc[HEAD_DIM];
  int counts[V];
  for (int lane = 0; lane < V; ++lane) {
    const int row = min(first + lane, rows - 1);
    const size_t from = (size_t)(row / GROUP) * ROW + (kv_head * GROUP + row % GROUP) * HEAD_DIM;
#pragma unroll UD
    for (int d = 0; d < HEAD_DIM; d += QW) {
      float part[QW];
      CAT(store, QW)(GET(QW, d / QW, from, qkv) * SCALE, 0, part);
#pragma unroll
      for (int n = 0; n < QW; ++n) ((float *)q)[(d + n) * V + lane] = part[n];
    }
    counts[lane] = pos + row / GROUP + 1;
  }
  const VI count = VLOAD(0, counts);
#pragma unroll UD
  for (int d = 0; d < HEAD_DIM; ++d) acc[d] = 0.0f;
  VF peak = -INFINITY, sum = 0.0f;

  for (int step = 0; step < end; step += T) {
    TILE_BARRIER;
    read_tile(k_cache, kv_head, k_tile, step, end);
    read_tile(v_cache, kv_head, v_tile, step, end);
    TILE_BARRIER;
    VF scores[T];
#pragma unroll
    for (int t = 0; t < T; ++t) scores[t] = 0.0f;
#pragma unroll UD
    for (int d = 0; d < HEAD_DIM; ++d) {
#pragma unroll
      for (int t = 0; t < T; ++t) scores[t] = q[d] * k_tile[t * HEAD_DIM + d] + scores[t];
    }
    // Position 0 is seen by every row, so the peak is finite from the first step on.
    VF most = peak;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      scores[t] = select(scores[t], (VF)(-INFINITY), (VI)(step + t) >= count);
      most = fmax(most, scores[t]);
    }
    const VF shrink = exp(peak - most);
    peak = most;
    sum *= shrink;
#pragma unroll
    for (int t = 0; t < T; ++t) {
      scores[t] = exp(scores[t] - most);
      sum += scores[t];
    }
#pragma unroll UD
    for (int d = 0; d < HEAD_DIM; ++d) {
      VF a = acc[d] * shrink;
#pragma unroll
      for (int t = 0; t < T; ++t) a = scores[t] * v_tile[t * HEAD_DIM + d] + a;
      acc[d] = a;
    }
  }

  float sums[V];
  VSTORE(sum, 0, sums);
  for (int lane = 0; lane < V && first + lane < rows; ++lane) {
    const int row = first + lane;
    const float scale = 1.0f / sums[lane];
    __global float *to = out + (size_t)(row / GROUP) * (HEADS * HEAD_DIM) + row % GROUP * HEAD_DIM;
#pragma unroll UD
    for (int d = 0; d < HEAD_DIM; ++d) to[d] = ((const float *)acc)[d * V + lane] * scale;
  }
}
