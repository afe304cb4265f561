// y[t, K] = row tokens[t] of W[N, K], decoded. A work-item writes V columns of one token.
//
//   LX column groups to a work-group   V columns to a work-item
//   A token id outside the vocabulary yields zeros; the host checks ids before they get here.
#include "weights.clh"

static inline float weight_at(WEIGHT_ARGS(w), const size_t row, const int k) {
  const size_t g = row / R;
  const int r = row % R;
#ifdef FLOATS
#ifdef IMAGE
  const size_t at = (g * K + k) * R + r;
  float texel[4];
  vstore4(read_imagef(w_q, TEXEL(at / 4)), 0, texel);
  return texel[at % 4];
#elif defined(DTYPE_F16)
  return vload_half((g * K + k) * R + r, w_q);
#else
  return w_q[(g * K + k) * R + r];
#endif
#else
  const int b = k / 32;
  const int j = k % 32;
#ifdef NIBBLES
  const size_t at = ((g * BLOCKS + b) * 16 + j % 16) * R + r;
#else
  const size_t at = (g * K + k) * R + r;
#endif
#ifdef IMAGE
  uint texel[4];
  vstore4(read_imageui(w_q, TEXEL(at / 16)), 0, texel);
  const uchar byte = (uchar)(texel[at % 16 / 4] >> (8 * (at % 4)));
#else
  const uchar byte = (uchar)w_q[at];
#endif
  const size_t s = (g * BLOCKS + b) * SCALARS * R + r;
  const float d = SCALE_AT(w_s, s);
#ifdef DTYPE_Q8_0
  return (float)(char)byte * d;
#else
  const float code = (float)(j < 16 ? byte & 15 : byte >> 4);
#ifdef DTYPE_Q4_1
  return code * d + SCALE_AT(w_s, s + R);
#else
  return (code - 8.0f) * d;
#endif
#endif
#endif
}

__kernel __attribute__((reqd_work_group_size(LX, 1, 1)))
void embedding(WEIGHT_ARGS(w), __global const int *restrict tokens, __global float *restrict y) {
  const int t = get_global_id(1);
  const int token = tokens[t];
  const int start = get_global_id(0) * V;
  for (int k = start; k < min(start + V, K); k++)
    y[(size_t)t * K + k] =
        token >= 0 && token < N ? weight_at(WEIGHT(w), (size_t)token, k) : 0.0f;
}
