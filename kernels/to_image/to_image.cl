// The image y of the rows of x: four columns to an RGBA texel, the last one filled up with zeros.
// Dimension 0 covers a row, dimension 1 counts the rows.
//
//   LX  work-items along a row   LY  rows to a work-group   U  texels to a work-item   K  columns
//   XM  as in tokens.clh
#include "widths.clh"
#include "tokens.clh"

#define WIDTH ((K + 3) / 4)

__kernel __attribute__((reqd_work_group_size(LX, LY, 1)))
void to_image(TOKENS(x), __write_only image2d_t y) {
  const int first = get_group_id(0) * LX * U + get_local_id(0);
  const int row = get_global_id(1);
  // x has as many rows as y.
  if (row >= get_image_height(y)) return;
#pragma unroll
  for (int u = 0; u < U; u++) {
    const int i = first + u * LX;
    if (i >= WIDTH) continue;
#ifdef FOURS
    const float4 texel = X_FOUR(i, row, x);
#elif K % 4 == 0
    const float4 texel = ALIGNED(float4, (size_t)row * WIDTH + i, x);
#else
    union four in = {(float4)(0.0f)};
    for (int j = 0; j < min(4, K - 4 * i); j++) in.lane[j] = X_ONE(4 * i + j, row, x);
    const float4 texel = in.vector;
#endif
    write_imagef(y, (int2)(i, row), texel);
  }
}
