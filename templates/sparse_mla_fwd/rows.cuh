// The warpgroup that fetches, as far as all of its kinds do the same: rows of kv into the ring.

#pragma once

constexpr int kQuarter = kRows / 4;

// All that the warp has begun to copy or has stored will have been done when the barrier has this.
__device__ void announce(uint32 ready) {
  arrive_with_copies(ready);
  if (threadIdx.x % 32 == 0) arrive(ready);
}

// Eight lanes share a row, and a lane takes its 16 bytes of every tile; so it has one row of each
// quarter of a slot, whose index it reads itself.
struct Fetcher {
  uint32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  int row = 4 * warp + lane / 8;  // of a quarter
  uint32 own;                     // its first bytes in a tile
  int next[4];                    // indices of the slot to come

  __device__ explicit Fetcher(uint32 memory)
      : own(memory + row * 128 + (lane % 8 ^ row % 8) * 16) {}

  __device__ void read_indices(const int* indices, int length) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int column = k * kQuarter + row;
      next[k] = column < length ? indices[column] : -1;
    }
  }

  // All of an item's, of whose indices the first slot's have been read.
  __device__ void fetch(const Call& call, uint32 memory, Ring& ring, const int* indices,
                        int length) {
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
};
