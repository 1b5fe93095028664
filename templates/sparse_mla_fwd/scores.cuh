// The warpgroup that holds the query: S = Q K^T, and P = exp2(S - reference) for the others.

#pragma once

__device__ void scores(const Call& call, uint32 memory) {
  const uint32 lane = thread() % 32, warp = thread() / 32 % 4;
  const uint32 swizzled = (warp * 16 + lane % 16) * 128 + (lane / 16 ^ lane % 8) * 16;
  const bool leader = lane == 0, first_of_quad = lane % 4 == 0;
  const float scale = call.sm_scale * kLog2E;

  Ring ring;
  uint32 turn = 0;  // of the two P: the lowest bit, and above it the phase
  // After all else that a P needs, which the multiplication that has begun meanwhile hides.
  const auto publish = [&](uint32 turn) {
    proxy_fence();
    arrive(memory + kScored + 8 * (turn & 1));
  };
  const int items = call.items();
  int next_length = call.length(blockIdx.x);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int slots = slots_of(call.clamped(next_length));
    next_length = call.length(item + gridDim.x);

    uint32 q[kHeld * 4][4];
    wait(memory + kReady + 8 * ring.slot, ring.phase);
    {
      const uint32 from = memory + ring.slot * kSlot + swizzled;
#pragma unroll
      for (int i = 0; i < kHeld * 4; ++i)
        load_matrices(q[i], (from ^ (i % 4 * 32)) + i / 4 * kTile);
      arrive(memory + kFree + 8 * ring.slot, 2);
      ring.next();
    }

    float maximum[2] = {-kInf, -kInf}, reference[2] = {kLowest, kLowest}, sum[2] = {0, 0};
    float s[32];
    for (int i = 0; i < slots; ++i) {
      const uint32 rows = memory + ring.slot * kSlot;
      wait(memory + kReady + 8 * ring.slot, ring.phase);
      proxy_fence();
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) {
        const uint64 k = k_major(rows + j / 4 * kTile + j % 4 * 32);
        if (j < kHeld * 4) multiply(s, q[j], k, j > 0);
        else multiply(s, k_major(memory + kTail + (j / 4 - kHeld) * kTile + j % 4 * 32), k, j > 0);
        if (j == kPublish && i > 0) publish(turn - 1);
      }
      wgmma_commit();
      const uint32 odd = turn & 1;
      const uint64 valid = *reinterpret_cast<const uint64*>(s_memory + kValid + 8 * ring.slot);
      wgmma_wait<0>();
      settle(s);
      const bool last = i + 1 == slots;
      if (last && leader) arrive(memory + kTailFree);

      if (~valid != 0) {
        const uint16* const words =
            reinterpret_cast<const uint16*>(s_memory + kValid + 8 * ring.slot) + lane % 4 / 2;
        const uint32 lower = words[0] >> lane % 2 * 2, upper = words[2] >> lane % 2 * 2;
#pragma unroll
        for (int j = 0; j < 32; ++j)
          if (!((j / 4 % 2 ? upper : lower) >> (j / 8 * 4 + j % 2) & 1)) s[j] = -kInf;
      }
      bool grown = false;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float m[4];
#pragma unroll
        for (int t = 0; t < 8; ++t) {
          const float both = fmaxf(s[4 * t + 2 * h], s[4 * t + 2 * h + 1]);
          m[t % 4] = t < 4 ? both : fmaxf(m[t % 4], both);
        }
        const float most = fmaxf(fmaxf(m[0], m[1]), fmaxf(m[2], m[3]));
        maximum[h] = fmaxf(maximum[h], most);
        grown = grown || most * scale > reference[h] + kSlack;
      }
      const bool moved = __any_sync(~0u, grown);
      wait(memory + kTaken + 8 * odd, (turn >> 1 & 1) ^ 1);
      if (moved) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          maximum[h] = quad_max(maximum[h]);
          const float target = maximum[h] * scale;
          const float to = target > reference[h] + kSlack ? target : reference[h];
          const float factor = power(reference[h] - to);
          reference[h] = to;
          sum[h] *= factor;
          if (first_of_quad) row_floats(kScale + 4 * kHeads * odd)[8 * h] = factor;
        }
      }
      const uint32 p_at = memory + kP + odd * kTile + swizzled;
      // Exponentials are issued a step ahead of their use.
      const auto exponentials = [&](int c) {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          s[8 * c + k] = power(fmaf(s[8 * c + k], scale, -reference[k / 2 % 2]));
      };
      exponentials(0);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (c < 3) exponentials(c + 1);
        uint32 p[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float low = s[8 * c + 2 * k], high = s[8 * c + 2 * k + 1];
          sum[k % 2] += low + high;
          p[k] = pair(low, high);
        }
        store_matrices(p_at ^ (c * 32), p);
      }
      if (leader)
        reinterpret_cast<uint32*>(s_memory + kFlag)[4 * odd + warp] =
            (moved && i > 0 ? kMoved : 0) | (i == 0 ? kFirst : 0) | (last ? kLast : 0);
      if (last) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float all = quad_sum(sum[h]), most = quad_max(maximum[h]);
          if (first_of_quad) {
            float* const stats = row_floats(kStats + 3 * 4 * kHeads * odd) + 8 * h;
            stats[0] = all, stats[kHeads] = reference[h], stats[2 * kHeads] = most * scale;
          }
        }
      }
      ++turn;
      if (last) publish(turn - 1);
      ring.next();
    }
  }
}
