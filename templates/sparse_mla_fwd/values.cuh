// The two warpgroups that hold O, half of its columns each: O += P V, and the result.

#pragma once

__device__ void values(const Call& call, uint32 memory, uint32 half) {
  const uint32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const bool leader = lane == 0;
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
    ring.next();  // the query
    float o[2][64];
    while (true) {
      const uint32 slot = memory + ring.slot * kSlot, odd = turn & 1;
      const uint32 scored = memory + kScored + 8 * odd, phase = turn >> 1 & 1;
      // A P that is late may be waiting for that slot.
      if (leaving != 0 && !__all_sync(~0u, passed(scored, phase))) leave();
      wait(scored, phase);
      const uint32 flags = reinterpret_cast<const uint32*>(s_memory + kFlag)[4 * odd + warp];
      if (flags & kMoved) {
        const float* const scales = row_floats(kScale + 4 * kHeads * odd);
        const float upper = scales[0], lower = scales[8];
#pragma unroll
        for (int j = 0; j < 128; ++j) o[j / 64][j % 64] *= j / 2 % 2 ? lower : upper;
      }
      const uint32 p = memory + kP + odd * kTile;
      wgmma_begin();
      // All rows of an accumulator in a row: in turns, the two cost 3 %.
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          multiply(o[c], k_major(p + k * 32),
                   columns_major(slot + (half * 4 + c * 2) * kTile + k * 16 * 128),
                   k > 0 ? 1 : !(flags & kFirst));
      wgmma_commit();
      if (leaving != 0) leave();
      if (flags & kLast) break;
      wgmma_wait<0>();
      settle(o[0]);
      settle(o[1]);
      if (leader) arrive(memory + kFree + 8 * ring.slot, 32);
      arrive(memory + kTaken + 8 * odd);
      ++turn;
      ring.next();
    }

    const int head = (item & call.halves) * kHeads + warp * 16 + lane / 4;
    const float* const stats = row_floats(kStats + 3 * 4 * kHeads * (turn & 1));
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = stats[8 * h], reference = stats[kHeads + 8 * h];
      const float sink = reinterpret_cast<const float*>(s_memory + kSinks)[head + 8 * h];
      factor[h] = sum == 0.0f ? 0.0f : reciprocal(sum + power(sink - reference));
      if (half == 0 && lane % 4 == 0 && head + 8 * h < call.h_q) {
        const float unit = call.base2 ? 1.0f : kLn2;
        const int64 place = int64(item >> call.halves) * call.h_q + head + 8 * h;
        call.max_logits[place] = stats[2 * kHeads + 8 * h] * unit;
        call.lse[place] = sum == 0.0f ? kInf : (logarithm(sum) + reference) * unit;
      }
    }
    wgmma_wait<0>();
    settle(o[0]);
    settle(o[1]);
    // The result leaves by way of the slot, half of which nobody else reads any more. A warp has 16
    // rows there. Row r is rotated by r % 8 pieces of 16 bytes, so that rows do not collide.
    group_barrier(1 + half, 128);
    arrive(memory + kTaken + 8 * (turn & 1));
    const uint32 staged = memory + ring.slot * kSlot + half * 4 * kTile + warp * kTile;
#pragma unroll
    for (int c = 0; c < 16; ++c) {
      uint32 w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = c % 8 * 8 + 2 * k;
        w[k] = pair(o[c / 8][j] * factor[k % 2], o[c / 8][j + 1] * factor[k % 2]);
      }
      const uint32 piece = (2 * c + lane / 16 + lane % 8) % 32;
      store_matrices(staged + lane % 16 * 512 + piece * 16, w);
    }
    proxy_fence();
    __syncwarp();
    {
      // Two pieces a row: what begins behind the rotation, and what has been carried over.
      const uint32 row = lane % 16, turned = row % 8 * 16;
      const uint32 bytes = lane < 16 ? 512 - turned : turned;
      const int head = (item & call.halves) * kHeads + warp * 16 + row;
      char* const to = call.out + int64(item >> call.halves) * call.out_token +
                       int64(head) * call.out_head + half * 512 + (lane < 16 ? 0 : 512 - turned);
      if (bytes != 0 && head < call.h_q)
        store_bulk(to, staged + row * 512 + (lane < 16 ? turned : 0), bytes);
    }
    leaving = memory + kFree + 8 * ring.slot;
    ++turn;
    ring.next();
  }
  wait_for_bulk_reads();
}
