// What threads of a block tell each other. Counts on the constants that the kernel begins with.
#pragma once
#include "merge.cuh"

// A request that is put together at the end, since its blocks are many.
struct Pending {
  int request;
  Shares shares;
  Arrival arrival;
};

struct Shared {
  int tiles[32];  // of the requests of a warp's threads
  Walk walk;      // the block's share, as far as it is not begun
  Segment segment;
  Shares shares;  // of the segment's request
  Place place;
  Deal deal;
  Rows rows;
  Pending pending[2];  // the block's first request and its last: others are its own
  int from, to;        // slices that the block adds up
  bool more, last;
};

static_assert(kStateAt + sizeof(Shared) <= kShared);
