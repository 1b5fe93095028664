// Adding up the partial results of the blocks that share a request. Counts on the constants that
// the kernel begins with.
#pragma once
#include "place.cuh"
#include "results.cuh"
#include "shares.cuh"

// Partial results in the workspace.
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

// Four elements of one row, and what they are relative to.
struct Four {
  float2 sum = {kLowest, 0.0f};
  float4 of = {};

  __device__ void load(const Partials& partials, int slot, int row, int element) {
    const int64 at = int64(slot) * partials.rows + row;
    sum = __ldcg(partials.sums + at);
    of = __ldcg(reinterpret_cast<const float4*>(partials.elements + at * kDim + element));
  }
  // By a factor; the sum's maximum is another's.
  __device__ void add_scaled(const Four& other, float weight) {
    sum.y += other.sum.y * weight;
    of.x += other.of.x * weight;
    of.y += other.of.y * weight;
    of.z += other.of.z * weight;
    of.w += other.of.w * weight;
  }
  __device__ void add(const Four& other) {
    const float most = fmaxf(sum.x, other.sum.x), mine = exp2_fast(sum.x - most);
    sum = make_float2(most, sum.y * mine);
    of = make_float4(of.x * mine, of.y * mine, of.z * mine, of.w * mine);
    add_scaled(other, exp2_fast(other.sum.x - most));
  }
  // What the lane so far away has.
  __device__ Four from_lane(int distance) const {
    Four other;
    other.sum.x = __shfl_xor_sync(~0u, sum.x, distance);
    other.sum.y = __shfl_xor_sync(~0u, sum.y, distance);
    other.of.x = __shfl_xor_sync(~0u, of.x, distance);
    other.of.y = __shfl_xor_sync(~0u, of.y, distance);
    other.of.z = __shfl_xor_sync(~0u, of.z, distance);
    other.of.w = __shfl_xor_sync(~0u, of.w, distance);
    return other;
  }
};

constexpr int kFours = kDim / 4;

// Adds up all of the block's rows, where shares are at most kMostShares. By all workers.
// put(column, element, four) takes a result.
template <class Put>
__device__ __forceinline__ void add_up(const Partials& partials, const Shares& shares,
                                       const Rows& rows, Put put) {
#pragma unroll 1
  for (int i = threadIdx.x; i < rows.count * kFours; i += kWorkers) {
    const int element = i % kFours * 4, column = rows.list[i / kFours], row = rows.row[column];
    Four its[kMostShares], total;
#pragma unroll
    for (int m = 0; m < kMostShares; ++m) {
      if (m < shares.count) its[m].load(partials, shares.slot(m), row, element);
    }
#pragma unroll
    for (int m = 0; m < kMostShares; ++m) total.sum.x = fmaxf(total.sum.x, its[m].sum.x);
#pragma unroll
    for (int m = 0; m < kMostShares; ++m) {
      total.add_scaled(its[m], exp2_fast(its[m].sum.x - total.sum.x));
    }
    put(column, element, total);
  }
}

constexpr int kFourPitch = 8;  // float, of what warps tell each other of a slice
static_assert(kWorkers * kFourPitch * 4 <= kRows * kQueryPitch * 2);

// Adds up one of as many slices of the block's rows as there are shares, when all are there: with
// lanes side by side for elements, and the others for shares. By all workers.
template <class Put>
__device__ __forceinline__ void add_up_slice(const Partials& partials, const Shares& shares,
                                             int slice, const Rows& rows, float* s_fours, Put put) {
  constexpr int kAtOnce = 6;
  const int all = rows.count * kFours, each = (all + shares.count - 1) / shares.count;
  const int end = min((slice + 1) * each, all);
  const int wide = each > 16 ? 32 : each > 8 ? 16 : each > 4 ? 8 : 4;  // lanes side by side
  const int lane = threadIdx.x % 32;
  const int side = lane & wide - 1, stride = kWorkers / wide;
  const int first = threadIdx.x / wide;  // of the shares that the lane takes
#pragma unroll 1
  for (int begin = slice * each; begin < end; begin += wide) {
    const int i = begin + side;
    const int element = i % kFours * 4, column = rows.list[min(i, all - 1) / kFours];
    const int row = rows.row[column];
    Four total;
#pragma unroll 1
    for (int m = first; m < shares.count; m += kAtOnce * stride) {
      Four its[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int member = m + u * stride;
        if (i < end && member < shares.count) {
          its[u].load(partials, shares.slot(member), row, element);
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) total.add(its[u]);
    }
#pragma unroll 1
    for (int distance = wide; distance < 32; distance *= 2) total.add(total.from_lane(distance));
    float* const s_own = s_fours + (threadIdx.x - lane + side) * kFourPitch;
    if (lane < wide) {
      *reinterpret_cast<float4*>(s_own) = total.of;
      *reinterpret_cast<float2*>(s_own + 4) = total.sum;
    }
    meet<kWorkers>();
    if (threadIdx.x < wide && i < end) {
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        const float* const s_its = s_own + w * 32 * kFourPitch;
        Four its;
        its.of = *reinterpret_cast<const float4*>(s_its);
        its.sum = *reinterpret_cast<const float2*>(s_its + 4);
        total.add(its);
      }
      put(column, element, total);
    }
    meet<kWorkers>();
  }
}
