// Results, and partial ones that blocks leave for each other.
#pragma once
#include "instructions.cuh"

constexpr float kLowest = -3e38f;  // below all scores, and finite
constexpr int kMostShares = 13;    // that are put together in one round; in two, its square

// Where attention ends.
struct Result {
  uint8* out;
  float* lse;          // may be absent
  const float* sinks;  // likewise
  int64 out_row, out_head;
  int heads, queries;
  bool bfloat;

  // Where a query row goes. `by`: what its sums are to be multiplied by. lse is written by one.
  __device__ uint8* row(int request, int row, float2 sum, bool one, float& by) const {
    const int token = row / heads, head = row - token * heads;
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

// The blocks that share a request, in order. Each has a slot in the workspace for the request that
// it begins with and one for that which it ends with.
struct Shares {
  int first_block, first_slot, count;

  template <class Deal>
  __device__ Shares(const Deal& deal, int start, int tiles)
      : first_block(deal.owner(start)),
        first_slot(2 * first_block + (deal.begin(first_block) < start)),
        count(deal.owner(start + tiles - 1) - first_block + 1) {}
  __device__ int slot(int member) const {
    return member == 0 ? first_slot : 2 * (first_block + member);
  }
};

// Partial results in the workspace.
template <int kDim>
struct Partials {
  float* elements;  // [slot][row][element], not divided by the sum of weights
  float2* sums;     // [slot][row]: what they are relative to, and that sum
  int rows;

  // Where a row goes. Its sum is written by one.
  __device__ float* row(int slot, int row, float2 sum, bool one) const {
    const int64 at = int64(slot) * rows + row;
    if (one) sums[at] = sum;
    return elements + at * kDim;
  }
};

// Adds up what every `stride`th of `count` members has of a block's rows, at most kMostShares. By
// all workers. row_of(i): the row numbered i of the block. emit(row, element, four elements, sum)
// takes the result, in place if it likes.
template <int kWorkers, int kDim, class RowOf, class Emit>
__device__ __forceinline__ void add_up(const Partials<kDim>& partials, const Shares& shares,
                                       int first, int stride, int count, int rows, RowOf row_of,
                                       Emit emit) {
  constexpr int kFours = kDim / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * kFours; i += kWorkers) {
    const int element = i % kFours * 4, row = row_of(i / kFours);
    float2 its[kMostShares];
    float4 v[kMostShares];
#pragma unroll
    for (int m = 0; m < kMostShares; ++m) {
      its[m] = make_float2(kLowest, 0.0f);
      v[m] = {};
      if (m >= count) continue;
      const int64 at = int64(shares.slot(first + m * stride)) * partials.rows + row;
      its[m] = __ldcg(partials.sums + at);
      v[m] = __ldcg(reinterpret_cast<const float4*>(partials.elements + at * kDim + element));
    }
    float2 sum = its[0];
#pragma unroll
    for (int m = 1; m < kMostShares; ++m) sum.x = fmaxf(sum.x, its[m].x);
    sum.y = 0.0f;
    float4 total = {};
#pragma unroll
    for (int m = 0; m < kMostShares; ++m) {
      const float weight = exp2_fast(its[m].x - sum.x);
      sum.y += its[m].y * weight;
      total.x += v[m].x * weight;
      total.y += v[m].y * weight;
      total.z += v[m].z * weight;
      total.w += v[m].w * weight;
    }
    emit(row, element, total, sum);
  }
}

// Whether this block is the last of `count` that come here with what they wrote. Leaves the counter
// as it found it, at 0. By all workers.
template <int kWorkers>
__device__ bool last_to_arrive(int* counter, int count, bool* s_last) {
  meet<kWorkers>();
  if (threadIdx.x == 0) {
    const bool last = arrive_globally(counter) == count - 1;
    if (last) *counter = 0;
    *s_last = last;
  }
  meet<kWorkers>();
  return *s_last;
}
