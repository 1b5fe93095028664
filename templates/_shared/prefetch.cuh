// Memory that a kernel is going to read, brought as far as the L2 cache before griddepcontrol.wait:
// what the kernel before still writes reaches the reader all the same, since L2 is what both share.
// A line should be asked for once by the whole grid: thousands of requests for one take their time.
#pragma once

constexpr int kLine = 32;  // words of a cache line

__device__ inline void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
