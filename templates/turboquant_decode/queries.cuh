// Queries from memory to what products take. Counts on the constants that the kernel begins with.
#pragma once
#include <cuda_fp16.h>

#include "place.cuh"
#include "prefetch.cuh"

// As many elements as a lane has of a row.
template <int kCount>
__device__ void load_row(float (&v)[kCount], const uint8* g_row, bool bfloat) {
  uint32 pairs[kCount / 2];
  if constexpr (kCount == 2) {
    pairs[0] = *reinterpret_cast<const uint32*>(g_row);
  } else if constexpr (kCount == 4) {
    const uint2 two = *reinterpret_cast<const uint2*>(g_row);
    pairs[0] = two.x, pairs[1] = two.y;
  } else {
    const uint4 four = *reinterpret_cast<const uint4*>(g_row);
    pairs[0] = four.x, pairs[1] = four.y, pairs[2] = four.z, pairs[3] = four.w;
  }
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    v[2 * i] = bfloat ? bfloat_bits(pairs[i]) : half_bits(pairs[i] & 0xffff);
    v[2 * i + 1] = bfloat ? __uint_as_float(pairs[i] & 0xffff0000) : half_bits(pairs[i] >> 16);
  }
}

// Columns of a request as fp16, rotated where keys are, and what their scores must be multiplied
// by: each is divided by a power of two, so that none is too large or too small. By all workers.
__device__ __forceinline__ void prepare_queries(int warp, const Call& call, const Place& place,
                                                const Rows& rows, int request, __half* s_queries,
                                                float* s_factors) {
  constexpr int kOwn = kDim / 32, kAtOnce = 4;  // rows, so that one wait serves all
  const int lane = threadIdx.x % 32, heads = call.heads * call.group;
  uint32* const s_own = reinterpret_cast<uint32*>(s_queries) + lane * (kOwn / 2);
#pragma unroll 1
  for (int first = warp; first < rows.count; first += kAtOnce * kWarps) {
    float v[kAtOnce][kOwn];
    int column[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      column[i] = rows.list[min(first + i * kWarps, rows.count - 1)];
      const int token = rows.token[column[i]];
      const int64 at = (int64(request) * call.queries + token) * call.q_row +
                       (rows.row[column[i]] - token * heads) * call.q_head;
      load_row(v[i], call.q + at + lane * kOwn * 2, call.bfloat);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if constexpr (!Layout::kFp8) hadamard<kOwn, 32>(v[i]);
      float greatest = 0.0f;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) greatest = fmaxf(greatest, fabsf(v[i][k]));
      greatest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(greatest)));
      const int exponent = min(max(int(__float_as_uint(greatest) >> 23), 27), 227);
      const float shrink = __uint_as_float(254 - exponent << 23);
#pragma unroll
      for (int k = 0; k < kOwn / 2; ++k) {
        s_own[column[i] * (kQueryPitch / 2) + k] =
            half_pair(v[i][2 * k] * shrink, v[i][2 * k + 1] * shrink);
      }
      const float unit = Layout::kFp8 ? kLog2e : kLog2e * hadamard_scale<kDim>();
      if (lane == 0) s_factors[column[i]] = call.scale * unit * __uint_as_float(exponent << 23);
    }
  }
#pragma unroll 1
  for (int column = warp; column < place.pairs * kColumns; column += kWarps) {
    if (rows.row[column] >= 0) continue;
#pragma unroll
    for (int k = 0; k < kOwn / 2; ++k) s_own[column * (kQueryPitch / 2) + k] = 0;
    if (lane == 0) s_factors[column] = 0.0f;
  }
}

// Brings queries as far as the L2 while the kernel before may still write them, each line by one
// block of the grid. By one warp.
__device__ void prefetch_queries(const Call& call) {
  constexpr int kLines = (kDim * 2 + 127) / 128;
  const int heads = call.heads * call.group, rows = heads * call.queries;  // of a request
  const int lane = threadIdx.x % 32;
  const int number = lane * int(gridDim.x) + int(blockIdx.x);  // of a row and head
  const int64 all = int64(call.requests) * rows;
  if (blockIdx.y > 0 || number >= all) return;
  const int token = number / heads, head = number - token * heads;
  const uint8* g_row = call.q + token * call.q_row + head * call.q_head;
#pragma unroll
  for (int i = 0; i < kLines; ++i) prefetch(g_row + 128 * i);
}
