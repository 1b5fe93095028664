// The warpgroup that fetches rows of kv into the ring.

#pragma once

#include "rows.cuh"

__device__ void gather(const Call& call, uint32 memory) {
  Fetcher rows(memory);
  Ring ring;
  int next_length = call.length(blockIdx.x);
  for (int item = blockIdx.x; item < call.items(); item += gridDim.x) {
    const int length = call.clamped(next_length);
    next_length = call.length(item + gridDim.x);
    const int* const indices = call.indices + item * call.indices_token;
    rows.read_indices(indices, length);
    rows.fetch(call, memory, ring, indices, length);
  }
}
