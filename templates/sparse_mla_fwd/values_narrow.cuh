// The two warpgroups that hold O, half of its columns each: O^T += V^T P^T, and the result.

#pragma once

// Bytes from row to row of a result on its way out: rows of half of the columns do not collide.
constexpr int kPitch = 512 + 16;
static_assert(kHeads * kPitch <= 4 * kTile);

__device__ void values(const Call& call, uint32 memory, uint32 half) {
  const uint32 id = threadIdx.x % 128, lane = id % 32, warp = id / 32;
  const int own = lane % 4 * 2;  // first of this thread's heads
  Ring ring;
  uint32 turn = 0;
  // The barrier of the slot from which the results of the item before are still being stored.
  uint32 leaving = 0;
  const auto leave = [&] {
    wait_for_bulk_reads();
    arrive(leaving);
    leaving = 0;
  };
  const int items = call.items();
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    Sums o[4];  // o[c][4 j + 2 r + e]: column 16 warp + lane / 4 + 8 r, head own + 8 j + e
    uint32 slot, place;
    while (true) {
      slot = memory + ring.slot * kSlot + half * 4 * kTile, place = turn % kPlaces;
      const uint32 scored = memory + kScored + 8 * place, phase = turn / kPlaces & 1;
      // A P that is late may be waiting for that slot.
      if (leaving != 0 && !__all_sync(~0u, passed(scored, phase))) leave();
      wait(scored, phase);
      const uint32 flags = *reinterpret_cast<const uint32*>(s_memory + kFlag + 8 * place);
      if (flags & kMoved) {
#pragma unroll
        for (int j = 0; j < kHeads / 8; ++j) {
          const float2 scale = both(kScale + 4 * (place * kHeads + own + 8 * j));
#pragma unroll
          for (int k = 0; k < 16; ++k) o[k / 4][4 * j + k % 4] *= k % 2 ? scale.y : scale.x;
        }
      }
      const uint32 v = lower(columns_major(slot));
      const uint32 p = lower(k_major(memory + kP + place * kHeadsTile));
      const int add = __shfl_sync(~0u, !(flags & kFirst), 0);
      wgmma_begin();
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          multiply_values(o[c], at(v, c * kTile + k * 16 * 128), at(p, k * 32), k > 0 ? 1 : add);
      wgmma_commit();
      if (leaving != 0) leave();
      if (flags & kLast) break;
      wgmma_wait<0>();
#pragma unroll
      for (int c = 0; c < 4; ++c) settle(o[c]);
      if (lane == 0) arrive(memory + kFree + 8 * ring.slot, 32);
      arrive(memory + kTaken + 8 * place);
      ++turn;
      ring.next();
    }

    float* const factors = floats(kFactor) + half * kHeads;
    if (id < kHeads) {
      const float* const stats = floats(kStats) + place * 9 * kHeads + id;
      const float sum = (stats[0] + stats[kHeads]) + (stats[2 * kHeads] + stats[3 * kHeads]);
      const float reference = stats[8 * kHeads];
      factors[id] = sum == 0.0f ? 0.0f : reciprocal(sum + power(floats(kSinks)[id] - reference));
      if (half == 0 && id < call.h_q) {
        const float most = fmaxf(fmaxf(stats[4 * kHeads], stats[5 * kHeads]),
                                 fmaxf(stats[6 * kHeads], stats[7 * kHeads]));
        const float unit = call.base2 ? 1.0f : kLn2;
        const int64 at = int64(item) * call.h_q + id;
        call.max_logits[at] = most * (call.sm_scale * kLog2E) * unit;
        call.lse[at] = sum == 0.0f ? kInf : (logarithm(sum) + reference) * unit;
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int c = 0; c < 4; ++c) settle(o[c]);
    // The result leaves by way of the slot, half of which nobody else reads any more.
    group_barrier(1 + half, 128);
    arrive(memory + kTaken + 8 * place);
    float2 factor[kHeads / 8];
#pragma unroll
    for (int j = 0; j < kHeads / 8; ++j)
      factor[j] = both(kFactor + 4 * (half * kHeads + own + 8 * j));
    const uint32 staged =
        slot + (lane / 16 * 8 + lane % 8) * kPitch + (2 * warp + lane / 8 % 2) * 16;
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int t = 0; t < kHeads / 16; ++t) {
        uint32 w[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int j = 2 * t + m / 2, k = 4 * j + m % 2 * 2;
          w[m] = pair(o[c][k] * factor[j].x, o[c][k + 1] * factor[j].y);
        }
        store_transposed(staged + t * 16 * kPitch + c * 128, w);
      }
    proxy_fence();
    group_barrier(1 + half, 128);
    if (id < kHeads && id < call.h_q)
      store_bulk(call.out + int64(item) * call.out_token + int64(id) * call.out_head + half * 512,
                 slot + id * kPitch, 512);
    leaving = memory + kFree + 8 * ring.slot;
    ++turn;
    ring.next();
  }
  wait_for_bulk_reads();
}
