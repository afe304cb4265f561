// y = x with its axes in another order. Elements are moved as the bits they are, 4 or 2 bytes each:
// both arguments are 32-bit words, and a texel is four of them.
//
// The axis of X elements lies side by side in x, that of Y elements in y; what is left are up to two
// axes of Z0 and Z1 elements. A step along an axis is so many elements:
//
//   in x   X: 1        Y: Y_IN     Z0: Z0_IN    Z1: Z1_IN
//   in y   X: X_OUT    Y: Y_OUT    Z0: Z0_OUT   Z1: Z1_OUT
//
// Y_OUT is 1, but where the same axis lies side by side in both: that is X then, X_OUT is 1, and Y is
// any other axis.
//
//   BITS   of an element, 32 or 16         IMAGE  x is seen as RGBA texels
#include "widths.clh"

#if BITS == 32
#define T uint
#define PER_TEXEL 4
#define AS_ELEMENTS(texel) (texel)
#define STORE_TEXEL vstore4
#else
#define T ushort
#define PER_TEXEL 8
#define AS_ELEMENTS(texel) as_ushort8(texel)
#define STORE_TEXEL vstore8
#endif

#ifdef IMAGE
#define INPUT __read_only image1d_buffer_t x
// Lane by lane through an array: a simulator crashes on taking single elements of a vector.
static inline T element(INPUT, const size_t at) {
  T lanes[PER_TEXEL];
  STORE_TEXEL(AS_ELEMENTS(read_imageui(x, (int)(at / PER_TEXEL))), 0, lanes);
  return lanes[at % PER_TEXEL];
}
#else
#define INPUT __global const uint *restrict x
#define element(x, at) (((__global const T *)(x))[at])
#endif

#ifdef TILE
// A work-group of TILE x LY items carries a tile of TILE x TILE elements through local memory: rows
// along X come in, rows along Y go out, both side by side. PAD elements behind each row of the tile
// put the elements of a column into different banks.
__kernel __attribute__((reqd_work_group_size(TILE, LY, 1)))
void transpose(INPUT, __global uint *restrict words) {
  __global T *restrict y = (__global T *)words;
  __local T tile[TILE * (TILE + PAD)];
  const int lx = get_local_id(0), ly = get_local_id(1);
  const int x0 = get_group_id(0) * TILE, y0 = get_group_id(1) * TILE;
  const size_t z0 = get_group_id(2) % Z0, z1 = get_group_id(2) / Z0;
  const size_t from = z0 * Z0_IN + z1 * Z1_IN, to = z0 * Z0_OUT + z1 * Z1_OUT;
#pragma unroll
  for (int r = ly; r < TILE; r += LY) {
    if (x0 + lx < X && y0 + r < Y) {
      tile[r * (TILE + PAD) + lx] = element(x, from + (size_t)(y0 + r) * Y_IN + x0 + lx);
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll
  for (int r = ly; r < TILE; r += LY) {
    if (x0 + r < X && y0 + lx < Y) {
      y[to + (size_t)(x0 + r) * X_OUT + y0 + lx] = tile[lx * (TILE + PAD) + r];
    }
  }
}

#else
// An item moves U runs of V elements each, without local memory. READ: runs lie along X, and are read
// as vectors; else along Y, and are written as vectors.
//
//   LX  work-items along the runs
#ifdef IMAGE
// Elements at to at + V - 1, where V divides at.
static inline void load_run(T *lanes, INPUT, const size_t at) {
#if V % PER_TEXEL == 0
#pragma unroll
  for (int e = 0; e < V; e += PER_TEXEL) {
    STORE_TEXEL(AS_ELEMENTS(read_imageui(x, (int)((at + e) / PER_TEXEL))), 0, lanes + e);
  }
#else
#pragma unroll
  for (int e = 0; e < V; ++e) lanes[e] = element(x, at + e);
#endif
}
#else
#define load_run(lanes, x, at) \
  CAT(store, V)(CAT(load, V)(0, (__global const T *)(x) + (at)), 0, lanes)
#endif
#define store_run(lanes, y, at) CAT(store, V)(CAT(load, V)(0, lanes), 0, (y) + (at))

#if READ
#define RUN X
#define RUNS Y
#define RUN_IN 1
#define RUN_OUT X_OUT
#define STEP_IN Y_IN
#define STEP_OUT Y_OUT
#else
#define RUN Y
#define RUNS X
#define RUN_IN Y_IN
#define RUN_OUT Y_OUT
#define STEP_IN 1
#define STEP_OUT X_OUT
#endif

__kernel __attribute__((reqd_work_group_size(LX, 1, 1)))
void transpose(INPUT, __global uint *restrict words) {
  __global T *restrict y = (__global T *)words;
  const int first = get_global_id(0) * V;
  const size_t z0 = get_global_id(2) % Z0, z1 = get_global_id(2) / Z0;
  const size_t from = z0 * Z0_IN + z1 * Z1_IN + (size_t)first * RUN_IN;
  const size_t to = z0 * Z0_OUT + z1 * Z1_OUT + (size_t)first * RUN_OUT;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int run = get_global_id(1) * U + u;
    if (run < RUNS) {
      const size_t in = from + (size_t)run * STEP_IN, out = to + (size_t)run * STEP_OUT;
      if (first + V <= RUN) {
        T lanes[V];
#if RUN_IN == 1
        load_run(lanes, x, in);
#else
#pragma unroll
        for (int e = 0; e < V; ++e) lanes[e] = element(x, in + (size_t)e * RUN_IN);
#endif
#if RUN_OUT == 1
        store_run(lanes, y, out);
#else
#pragma unroll
        for (int e = 0; e < V; ++e) y[out + (size_t)e * RUN_OUT] = lanes[e];
#endif
      } else {
        for (int e = 0; first + e < RUN; ++e) {
          y[out + (size_t)e * RUN_OUT] = element(x, in + (size_t)e * RUN_IN);
        }
      }
    }
  }
}
#endif
