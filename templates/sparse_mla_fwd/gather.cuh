// The warpgroup that fetches: queries and rows of kv into the ring.

#pragma once

#include "rows.cuh"

__device__ void gather(const Call& call, uint32 memory) {
  Fetcher rows(memory);
  Ring ring;
  uint32 turn = 0;
  int next_length = call.length(blockIdx.x);
  for (int item = blockIdx.x; item < call.items(); item += gridDim.x) {
    const int length = call.clamped(next_length);
    next_length = call.length(item + gridDim.x);
    const int64 token = item >> call.halves;
    const int* const indices = call.indices + token * call.indices_token;
    rows.read_indices(indices, length);

    const int head = (item & call.halves) * kHeads + rows.row;
    const auto query = [&](uint32 place, int k, int first, int end) {
      const bool valid = head + k * kQuarter < call.h_q;
      const uint32 from = valid ? head + k * kQuarter : 0;
      const char* const source = call.q + token * call.q_token + rows.lane % 8 * 16 +
                                 uint64(from) * uint32(call.q_head);
#pragma unroll
      for (int t = first; t < end; ++t)
        copy(rows.own + place + k * kQuarter * 128 + (t - first) * kTile, source + t * 128, valid,
             kEvictFirst);
    };
    wait(memory + kFree + 8 * ring.slot, ring.phase ^ 1);
    for (int k = 0; k < 4; ++k) query(ring.slot * kSlot, k, 0, kHeld);
    announce(memory + kReady + 8 * ring.slot);
    ring.next();
    // The tiles that registers do not hold are announced with the first rows of kv.
    wait(memory + kTailFree, turn ^ 1);
    turn ^= 1;
    for (int k = 0; k < 4; ++k) query(kTail, k, kHeld, kDim / 64);

    rows.fetch(call, memory, ring, indices, length);
  }
}
