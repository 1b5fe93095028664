// The blocks that share a request, and how they learn that all their partial results are there.
// Counts on the constants that the kernel begins with.
//
// A shared request has a counter, to which each of its blocks adds 1 when it has written. Where
// blocks are few, the last to come adds up, and nobody waits. Where they are many, all wait for the
// last, and add up a slice each. That cannot hang:
//
// * A block waits at its very end, when it has come to the counters of all its requests. So every
//   block that runs comes, and blocks never wait in a ring.
// * A launch has no more working blocks than there are multiprocessors, and the next one of its
//   stream begins when all have theirs. What other streams run may still keep some away. So nobody
//   waits for long: who has waited kPatience adds kGone to the counter and goes. The last to come,
//   which waits for no one, sees that some went and adds up all slices. Who still waits by then
//   adds up its own as well, and writes the same bits.
//
// A second counter tells who is the last to leave. Nobody looks at the first any more, and that
// block makes it 0 again; the second wraps by itself.
#pragma once
#include "work.cuh"

constexpr int kMostShares = 13;      // that one block puts together
constexpr int kGone = 1 << 16;       // more than there are blocks
constexpr int64 kPatience = 100000;  // cycles, some 50 us: by far more than blocks are apart

// In order. Each block has a slot in the workspace for the request that it begins with and one for
// that which it ends with; others are its own.
struct Shares {
  int first_block, first_slot, count;

  Shares() = default;
  __device__ Shares(const Deal& deal, int start, int tiles)
      : first_block(deal.owner(start)),
        first_slot(2 * first_block + (deal.begin(first_block) < start)),
        count(deal.owner(start + tiles - 1) - first_block + 1) {}
  __device__ int member() const { return int(blockIdx.x) - first_block; }
  __device__ int slot(int member) const {
    return member == 0 ? first_slot : 2 * (first_block + member);
  }
};

// How a block came.
struct Arrival {
  bool last;       // of those that share the request,
  bool some_left;  // and some did not wait for it
};

// By one thread, when all threads of the block have met.
__device__ __forceinline__ Arrival come(int* counter, int count) {
  const int before = add_globally(counter, 1);
  const bool last = before % kGone == count - 1;
  return {last, last && before >= kGone};
}

// Whether all have come; if not, this block counts as gone. By one thread.
__device__ __forceinline__ bool await_all(int* counter, int count) {
  const int64 begin = clock64();
  do {
    if (load_acquire(counter) % kGone == count) return true;
  } while (clock64() - begin < kPatience);
  return add_globally(counter, kGone) % kGone == count;
}

// Whether this block is the last to leave, and so to make the first counter 0. By one thread.
__device__ __forceinline__ bool leave(int* counter, int count) {
  return count_globally(counter, count - 1) == count - 1;
}

// Whether this block comes last, where nobody waits; then the counter is 0 again. By all workers.
__device__ bool last_to_come(int* counter, int count, bool* s_last) {
  meet<kWorkers>();
  if (threadIdx.x == 0) {
    *s_last = come(counter, count).last;
    if (*s_last) *counter = 0;
  }
  meet<kWorkers>();
  return *s_last;
}
