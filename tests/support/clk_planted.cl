// y[m, N] = 2 x[m, N] + column, and the ways to get it wrong that a tuner must survive.
//
//   HOW_<way>   one of the ways of clk_planted.py   LX items to a work-group
//   N columns   state[1] = m, the number of rows     BUCKET the largest m
#ifdef HOW_SYNTAX
this is no OpenCL C
#endif

__kernel __attribute__((reqd_work_group_size(LX, 1, 1)))
void planted(__global const int *restrict state, __global const float *restrict x,
             __global float *restrict y) {
  const int m = state[1];
  const int i = get_global_id(0);
  const int row = i / N;
  const int column = i % N;
  if (row >= m) return;
  float value = 2 * x[i] + column;
#ifdef HOW_NAN
  if (i == N - 1) value = nan(0u);
#endif
#ifdef HOW_OFF
  if (i == N - 1) value += 1;
#endif
#ifdef HOW_UNWRITTEN
  if (i == N - 1) return;
#endif
#ifdef HOW_BUCKET
  if (m != BUCKET) value += 1;
#endif
#ifdef HOW_UNEVEN
  if (i >= m * N / 16 * 16) return;
#endif
#ifdef HOW_HUNGRY
  __local float much[LOCAL];
  for (int j = get_local_id(0); j < LOCAL; j += LX) much[j] = value;
  barrier(CLK_LOCAL_MEM_FENCE);
  value = much[get_local_id(0)];
#endif
#ifdef HOW_ENDLESS
  for (volatile int turns = 0; turns >= 0; turns = 1 - turns) {}
#endif
#ifdef HOW_SEGFAULT
  if (i == 0) *(__global float *)(size_t)16 = value;
#endif
  y[i] = value;
#ifdef HOW_PAST_END
  if (i == 0) y[m * N] = value;
#endif
#ifdef HOW_ADDS_PAST_END
  if (i == 0) y[m * N] += 0.0f;
#endif
#ifdef HOW_SLOW
  for (volatile int turns = 0; turns < 3000000 / (m * N); turns++) {}
#endif
}
