// The warpgroup that fetches: queries and rows of kv into the ring.

#pragma once

constexpr int kQuarter = kRows / 4;

// All that the warp has begun to copy or has stored will have been done when the barrier has this.
__device__ void announce(uint32 ready) {
  arrive_with_copies(ready);
  if (threadIdx.x % 32 == 0) arrive(ready);
}

// Eight lanes share a row, and a lane takes its 16 bytes of every tile; so it has one row of each
// quarter of a slot, whose index it reads itself.
__device__ void gather(const Call& call, uint32 memory) {
  const uint32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = 4 * warp + lane / 8;  // of a quarter
  const uint32 own = memory + row * 128 + (lane % 8 ^ row % 8) * 16;
  Ring ring;
  uint32 turn = 0;
  int next_length = call.length(blockIdx.x);
  for (int item = blockIdx.x; item < call.items(); item += gridDim.x) {
    const int length = call.clamped(next_length);
    next_length = call.length(item + gridDim.x);
    const int64 token = item >> call.halves;
    const int* const indices = call.indices + token * call.indices_token;
    int next[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int column = k * kQuarter + row;
      next[k] = column < length ? indices[column] : -1;
    }

    const int head = (item & call.halves) * kHeads + row;
    const auto query = [&](uint32 place, int k, int first, int end) {
      const bool valid = head + k * kQuarter < call.h_q;
      const uint32 from = valid ? head + k * kQuarter : 0;
      const char* const source = call.q + token * call.q_token + lane % 8 * 16 +
                                 uint64(from) * uint32(call.q_head);
#pragma unroll
      for (int t = first; t < end; ++t)
        copy(own + place + k * kQuarter * 128 + (t - first) * kTile, source + t * 128, valid,
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

    for (int column = row; column - row < slots_of(length) * kRows; column += kRows) {
      uint32 bits = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const bool valid = uint32(next[k]) < uint32(call.s_kv);
        const uint32 from = valid ? next[k] : 0;
        const char* const source = call.kv + lane % 8 * 16 + uint64(from) * uint32(call.kv_row);
        const int ahead = column + kRows + k * kQuarter;
        next[k] = ahead < length ? indices[ahead] : -1;
        if (valid) bits |= 1 << 4 * k;
        // After the first it returns at once; it keeps quarters apart, which mixed cost 1 %.
        wait(memory + kFree + 8 * ring.slot, ring.phase ^ 1);
#pragma unroll
        for (int t = 0; t < kDim / 64; ++t)
          copy(own + ring.slot * kSlot + k * kQuarter * 128 + t * kTile, source + t * 128, valid,
               kEvictLast);
      }
      // Bit 4 k + r of a warp's word is row 16 k + 4 warp + r.
      bits = __reduce_or_sync(~0u, bits << lane / 8);
      if (lane == 0)
        *reinterpret_cast<uint16*>(s_memory + kValid + 8 * ring.slot + 2 * warp) = uint16(bits);
      announce(memory + kReady + 8 * ring.slot);
      ring.next();
    }
  }
}
