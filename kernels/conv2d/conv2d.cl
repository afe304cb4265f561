// 2-d convolution of N images, NHWC, y[n, oy, ox, co] = act(b[co] + sum of x w over the window).
//
//   N, IH, IW, CI      images, their rows, columns and channels     OH, OW, CO   those of y
//   KH   rows of a window      SY, PY, DY   its step, padding and dilation along the rows
//   TAPS, RUN   a row of a window is TAPS runs of RUN elements of x that lie side by side
//   STEP, PAD, TAP   elements of x from one column of y to the next, those of the padding, and those
//                    from one run to the next
//   CIG, COG    channels of a group: the input of each output channel, and the output channels
//   DEPTHWISE   each channel is its own group, with one output
//   COP         output channels with their padding: a row of w and the length of the bias
//   W_F16       w is float16           BIAS, ACT   what is done with a sum, see activation.clh
//
// w is [KH, columns, CIG, COP]: for each element of a window one number for each output channel.
#include "widths.clh"
#include "activation.clh"

#define GROUPED (CIG < CI)
#define K (KH * TAPS * RUN)

#ifdef W_F16
#define WEIGHT half
#define W_LOAD(n, i, p) CAT(half_load, n)(i, p)
#else
#define WEIGHT float
#define W_LOAD(n, i, p) ALIGNED(CAT(float, n), i, p)
#endif

#ifdef BIAS
#define BIAS_ARG __global const float *restrict bias,
#define BIAS_LOAD(n, i) ALIGNED(CAT(float, n), i, bias)
#else
#define BIAS_ARG
#define BIAS_LOAD(n, i) (CAT(float, n))(0.0f)
#endif

#if defined(TILED)
#include "conv2d/tiled.clh"
#elif defined(IMAGE)
#include "conv2d/texels.clh"
#else
#include "conv2d/direct.clh"
#endif
