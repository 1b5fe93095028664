// Where attention ends: rows of the output, and what is kept of their sums.
#pragma once
#include "instructions.cuh"

constexpr float kLowest = -3e38f;  // below all scores, and finite

struct Result {
  uint8* out;
  float* lse;          // may be absent
  const float* sinks;  // likewise
  int64 out_row, out_head;
  int heads, queries;
  bool bfloat;

  // Where a query row goes; it is numbered (token, head) in its request. `by`: what its sums are to
  // be multiplied by. lse is written by one.
  __device__ uint8* row(int request, int token, int row, float2 sum, bool one, float& by) const {
    const int head = row - token * heads;
    const int64 number = int64(request) * queries + token;
    by = 1.0f;
    if (sinks) {
      const float sink = sinks[head] * 1.4426950408889634f;
      const float most = fmaxf(sum.x, sink);
      by = exp2_fast(sum.x - most);
      sum = make_float2(most, sum.y * by + exp2_fast(sink - most));
    }
    const bool any = sum.y > 0.0f;
    by = any ? by * reciprocal(sum.y) : 0.0f;
    if (lse && one) {
      const float logarithm = (sum.x + log2_fast(sum.y)) * 0.6931471805599453f;
      lse[number * heads + head] = any ? logarithm : -infinity();
    }
    return out + number * out_row + head * out_head;
  }
  __device__ void write(uint8* g_row, int element, float4 v, float by) const {
    const float x = v.x * by, y = v.y * by, z = v.z * by, w = v.w * by;
    *reinterpret_cast<uint2*>(g_row + 2 * element) =
        bfloat ? make_uint2(bfloat_pair(x, y), bfloat_pair(z, w))
               : make_uint2(half_pair(x, y), half_pair(z, w));
  }
};
