// The warpgroup that fetches the query: S^T = K Q^T, and P = exp2(S - reference) for the others.

#pragma once

constexpr uint32 kTogether = 3;  // this warpgroup's barrier

// Over the eight lanes that have the same heads.
template <class Join>
__device__ void join_lanes(float (&x)[kOwn], const Join& join) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2)
#pragma unroll
    for (int h = 0; h < kOwn; ++h) x[h] = join(x[h], __shfl_xor_sync(~0u, x[h], lanes));
}

__device__ void scores(const Call& call, uint32 memory) {
  const uint32 id = thread() % 128, lane = id % 32, warp = id / 32;
  const int own = lane % 4 * 2;  // first of this thread's heads
  const float scale = call.sm_scale * kLog2E;
  const int items = call.items();

  // A query's heads are rows of 128 bytes a tile, of which eight threads share one.
  const auto fetch = [&](int item) {
#pragma unroll
    for (int r = 0; r < kHeads; r += 16) {
      const int head = r + id / 8;
      const bool valid = head < call.h_q;
      const char* const source = call.q + int64(item) * call.q_token + id % 8 * 16 +
                                 uint64(valid ? head : 0) * uint32(call.q_head);
      const uint32 to = memory + kQuery + head * 128 + (id % 8 ^ head % 8) * 16;
#pragma unroll
      for (int t = 0; t < kQueryTiles; ++t)
        copy(to + t * kHeadsTile, source + t * 128, valid, kEvictFirst);
    }
  };
  // After all else that a P needs.
  const auto publish = [&](uint32 turn) {
    proxy_fence();
    arrive(memory + kScored + 8 * (turn % kPlaces));
  };
  const uint32 p_at = memory + kP + (lane / 16 * 8 + lane % 8) * 128 +
                      (2 * warp + lane / 8 % 2 ^ lane % 8) * 16;

  fetch(blockIdx.x);
  Ring ring;
  uint32 turn = 0;  // of the places of P
  int next_length = call.length(blockIdx.x);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int slots = slots_of(call.clamped(next_length)), next_item = item + gridDim.x;
    next_length = call.length(next_item);
    if (next_item < items) {  // to L2, as there is no second place for it
#pragma unroll
      for (int line = id; line < kHeads * (kDim / 64); line += 128)
        if (line % kHeads < call.h_q)
          prefetch(call.q + int64(next_item) * call.q_token +
                   uint64(line % kHeads) * uint32(call.q_head) + line / kHeads * 128);
    }
    wait_for_copies();
    proxy_fence();
    group_barrier(kTogether, 128);

    float maximum[kOwn], reference[kOwn], sum[kOwn];
#pragma unroll
    for (int h = 0; h < kOwn; ++h) maximum[h] = -kInf, reference[h] = kLowest, sum[h] = 0.0f;
    for (int i = 0; i < slots; ++i) {
      const bool first = i == 0, last = i + 1 == slots;
      const uint32 ready = memory + kReady + 8 * ring.slot;
      // P of the slot before waits for products of this one, but not for its rows.
      const bool late = !first && __all_sync(~0u, passed(ready, ring.phase));
      if (!first && !late) publish(turn - 1);
      wait(ready, ring.phase);
      Sums s;
      const uint32 rows = memory + ring.slot * kSlot;
      const uint32 k = lower(k_major(rows)), q = lower(k_major(memory + kQuery));
      proxy_fence();
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < kQueryTiles * 4; ++j) {
        multiply_keys(s, at(k, j / 4 * kTile + j % 4 * 32), at(q, j / 4 * kHeadsTile + j % 4 * 32),
                      j > 0);
        if (j == kPublish && late) publish(turn - 1);
      }
      wgmma_commit();
      const uint32 place = turn % kPlaces, phase = turn / kPlaces & 1;
      const uint64 valid = *reinterpret_cast<const uint64*>(s_memory + kValid + 8 * ring.slot);
      wgmma_wait<0>();
      settle(s);

      // s[4 j + 2 r + e] is row 16 warp + lane / 4 + 8 r and head own + 8 j + e.
      if (~valid != 0) {
        const int bit = 16 * (lane / 16) + 4 * warp + lane / 4 % 4;
        const bool upper = valid >> bit & 1, lower = valid >> (bit + 32) & 1;
#pragma unroll
        for (int k = 0; k < kHeads / 2; ++k)
          if (!(k / 2 % 2 ? lower : upper)) s[k] = -kInf;
      }
      bool grown = false;
#pragma unroll
      for (int h = 0; h < kOwn; ++h) {
        const int k = h / 2 * 4 + h % 2;
        const float most = fmaxf(s[k], s[k + 2]);
        maximum[h] = fmaxf(maximum[h], most);
        grown = grown || most * scale > reference[h] + kSlack;
      }
      // All must have the same reference; and all have done with the query when they meet.
      const bool moved = any_of_group(kTogether, 128, grown);
      if (last && next_item < items) fetch(next_item);
      float factor[kOwn];
      const int stats = kStats + 4 * (place * 9 * kHeads + own);
      const auto store_maxima = [&] {
        join_lanes(maximum, [](float x, float y) { return fmaxf(x, y); });
        if (lane < 4) {
#pragma unroll
          for (int j = 0; j < kOwn / 2; ++j)
            both(stats + 4 * ((4 + warp) * kHeads + 8 * j)) = {maximum[2 * j], maximum[2 * j + 1]};
        }
      };
      if (moved) {
        wait(memory + kTaken + 8 * place, phase ^ 1);
        store_maxima();
        group_barrier(kTogether, 128);
#pragma unroll
        for (int h = 0; h < kOwn; ++h) {
          const float* const warps = floats(stats) + 4 * kHeads + h / 2 * 8 + h % 2;
          const float most = fmaxf(fmaxf(warps[0], warps[kHeads]),
                                   fmaxf(warps[2 * kHeads], warps[3 * kHeads]));
          const float target = most * scale;
          const float to = target > reference[h] + kSlack ? target : reference[h];
          factor[h] = power(reference[h] - to);
          reference[h] = to;
          sum[h] *= factor[h];
        }
      }
      uint32 p[kHeads / 4];
#pragma unroll
      for (int k = 0; k < kHeads / 2; k += 2) {
        const int h = k / 4 * 2;
        const float low = power(fmaf(s[k], scale, -reference[h]));
        const float high = power(fmaf(s[k + 1], scale, -reference[h + 1]));
        sum[h] += low, sum[h + 1] += high;
        p[k / 2] = pair(low, high);
      }
      wait(memory + kTaken + 8 * place, phase ^ 1);
#pragma unroll
      for (int t = 0; t < kHeads / 16; ++t) {
        const uint32 four[4] = {p[4 * t], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3]};
        store_transposed(p_at + place * kHeadsTile + t * 16 * 128, four);
      }
      if (moved && !first && id < 4) {
#pragma unroll
        for (int j = 0; j < kOwn / 2; ++j)
          both(kScale + 4 * (place * kHeads + own + 8 * j)) = {factor[2 * j], factor[2 * j + 1]};
      }
      if (id == 0)
        *reinterpret_cast<uint32*>(s_memory + kFlag + 8 * place) =
            (moved && !first ? kMoved : 0) | (first ? kFirst : 0) | (last ? kLast : 0);
      if (last) {
        if (!moved) store_maxima();
        join_lanes(sum, [](float x, float y) { return x + y; });
        if (lane < 4) {
#pragma unroll
          for (int j = 0; j < kOwn / 2; ++j) {
            both(stats + 4 * (warp * kHeads + 8 * j)) = {sum[2 * j], sum[2 * j + 1]};
            if (warp == 0)
              both(stats + 4 * (8 * kHeads + 8 * j)) = {reference[2 * j], reference[2 * j + 1]};
          }
        }
      }
      if (last) publish(turn);
      ++turn;
      ring.next();
    }
  }
}
