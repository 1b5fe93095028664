// Queries from memory to what products take. Counts on the constants that the kernel begins with.
#pragma once
#include <cuda_fp16.h>

#include "work.cuh"

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

// Columns of a request as fp16, rotated where keys are, which of the queries each is, and what its
// scores must be multiplied by: it is divided by a power of two, so that none is too large or too
// small. By all workers.
__device__ void prepare_queries(const Call& call, const Place& place, int request,
                                __half* s_queries, float* s_factors, int* s_tokens) {
  constexpr int kOwn = kDim / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < place.pairs * kColumns; i += kWarps) {
    const int n = i / place.pairs, pair = i - n * place.pairs;
    const int row = place.row(call, pair, n);
    float v[kOwn] = {};
    if (row >= 0) {
      const int heads = call.heads * call.group, token = row / heads;
      const int64 at = (int64(request) * call.queries + token) * call.q_row +
                       (row - token * heads) * call.q_head;
      load_row(v, call.q + at + lane * kOwn * 2, call.bfloat);
    }
    if constexpr (!Layout::kFp8) hadamard<kOwn, 32>(v);
    float greatest = 0.0f;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) greatest = fmaxf(greatest, fabsf(v[k]));
    greatest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(greatest)));
    const int exponent = min(max(int(__float_as_uint(greatest) >> 23), 27), 227);
    const float shrink = __uint_as_float(254 - exponent << 23);
    uint32* s_row = reinterpret_cast<uint32*>(s_queries + (pair * kColumns + n) * kQueryPitch);
#pragma unroll
    for (int k = 0; k < kOwn / 2; ++k) {
      s_row[lane * (kOwn / 2) + k] = half_pair(v[2 * k] * shrink, v[2 * k + 1] * shrink);
    }
    const float unit = Layout::kFp8 ? kLog2e : kLog2e * hadamard_scale<kDim>();
    if (lane == 0) {
      s_tokens[pair * kColumns + n] = max(row, 0) / (call.heads * call.group);
      s_factors[pair * kColumns + n] = call.scale * unit * __uint_as_float(exponent << 23);
    }
  }
}
