// y[t, K] = row tokens[t] of W[N, K], decoded. A work-item writes V columns of one token.
//
//   LX column groups to a work-group   V columns to a work-item
//   OF  the table has OF rows, of which W holds those from piece[0] on; the others' tokens are left
//   A token id outside the vocabulary yields zeros, in a split table from its first piece; the host
//   checks ids before they get here.
#include "weights.clh"

#ifdef IMAGE
// Byte i of an image of bytes.
static inline uint byte_at(__read_only image2d_t p, const size_t i) {
  uint texel[4];
  vstore4(READ_UI(p, TEXEL(i / 16)), 0, texel);
  return texel[i % 16 / 4] >> (8 * (i % 4)) & 255;
}
#else
#define byte_at(p, i) ((uint)(uchar)(p)[i])
#endif

#ifdef FLOATS
static inline float weight_at(WEIGHT_ARGS(w), const size_t row, const int k) {
  const size_t at = (row / R * K + k) * R + row % R;
#ifdef BFLOAT
#ifdef IMAGE
  return as_float(byte_at(w_q, 2 * at) << 16 | byte_at(w_q, 2 * at + 1) << 24);
#else
  return as_float((uint)w_q[at] << 16);
#endif
#elif defined(IMAGE)
  float texel[4];
  vstore4(READ_F(w_q, TEXEL(at / 4)), 0, texel);
  return texel[at % 4];
#elif FLOATS == 16
  return vload_half(at, w_q);
#else
  return w_q[at];
#endif
}
#else
// Scale (which = 0) or minimum (1) of one row.
static inline float scale_at(WEIGHT_ARGS(w), const size_t row, const int b, const int which,
                             const int h) {
  const size_t g = row / R;
  const size_t at = (SCALE_PLACE(g, b, which, h)) * R + row % R;
#if SCALE == 16
  return vload_half(at, w_s);
#elif SCALE == 32
  return w_s[at];
#else
  return (float)w_s[at] * w_d[(SUPER_PLACE(g, b, which)) * R + row % R];
#endif
}

static inline float weight_at(WEIGHT_ARGS(w), const size_t row, const int k) {
  const size_t g = row / R;
  const int r = row % R;
  const int b = k / 32;
  const int j = k % 16;
  const int upper = k % 32 / 16;
#if BITS == 8
  const int code = (char)byte_at(w_q, (g * K + k) * R + r);
#else
  int code = byte_at(w_q, ((g * BLOCKS + b) * 16 + j) * R + r) >> (4 * upper) & 15;
#ifdef HIGH
  const uint plane = byte_at(w_h, ((g * BLOCKS + b) * (16 / PER) + j / PER) * R + r);
  code |= (plane >> (4 * upper + HIGH * (j % PER)) & HIGH_MASK) << 4;
#endif
#endif
#ifdef ZERO
  code -= ZERO;
#endif
  const int h = HALVES == 2 ? upper : 0;
  const float value = (float)code * scale_at(WEIGHT(w), row, b, 0, h);
#ifdef MINIMA
  return value + scale_at(WEIGHT(w), row, b, 1, h);
#else
  return value;
#endif
}
#endif

#ifdef OF
#define PIECE_ARG __global const int *restrict piece,
#else
#define PIECE_ARG
#endif

__kernel __attribute__((reqd_work_group_size(LX, 1, 1)))
void embedding(WEIGHT_ARGS(w), __global const int *restrict tokens, PIECE_ARG
               __global float *restrict y) {
  const int t = get_global_id(1);
#ifdef OF
  const bool known = tokens[t] >= 0 && tokens[t] < OF;
  const int row = tokens[t] - piece[0];
  const bool own = known ? row >= 0 && row < N : piece[0] == 0;
#else
  const int row = tokens[t];
  const bool known = row >= 0 && row < N, own = true;
#endif
  const int start = get_global_id(0) * V;
  for (int k = start; own && k < min(start + V, K); k++)
    y[(size_t)t * K + k] = known ? weight_at(WEIGHT(w), (size_t)row, k) : 0.0f;
}
