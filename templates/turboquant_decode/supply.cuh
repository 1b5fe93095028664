// What the warps do that do not calculate. Counts on the constants that the kernel begins with.
#pragma once
#include "fetch.cuh"
#include "queries.cuh"
#include "shared.cuh"

constexpr int kNews = kWorkers + 64;  // threads of a barrier: two warps tell, workers wait

// By four warps, numbered from 0: one finds the block's share and fetches its tiles, one finds what
// its columns are, and two bring into the L2 what will be needed, while the kernel before still
// runs. few: whether one warp can deal out the batch; else that is done.
__device__ __forceinline__ void supply(int warp, const Call& call, const Place& place,
                                       const Dealer& dealer, const Ring& ring, bool few,
                                       Shared& s_shared) {
  const int lane = threadIdx.x % 32;
  if (warp == 1) {
    if (few) prefetch_tiles(call, place, dealer);
  } else if (warp == 2) {
    prefetch_queries(call);
  } else if (warp == 3) {
    s_shared.rows.fill(call, place);
    __syncwarp();
    tell_news<kNews>();
  } else {
    await_predecessor();
    let_successor_start();
    Walk walk;
    if (few) {
      Deal deal;
      walk = deal_few_tiles<false>(call, dealer, deal);
      if (lane == 0) s_shared.deal = deal;
    } else {
      walk = s_shared.walk;
      __syncwarp();
    }
    Segment segment = {};
    const bool more = walk.next(call, segment);
    if (lane == 0) {
      s_shared.place = place;
      s_shared.segment = segment;
      s_shared.more = more;
      s_shared.walk = walk;
    }
    __syncwarp();
    tell_news<kNews>();
    fetch_tiles(call, place, more, segment, walk, ring);
  }
}
