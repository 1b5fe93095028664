// What all bodies do with scores: constants of the softmax, binary powers, sums over a quad.

#pragma once

using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;
using int64 = long long;

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
// The reference of exponentials follows a maximum that is further away, in binary exponents.
constexpr float kSlack = 8.0f;
constexpr float kLowest = -1e30f;  // finite, so that exp2(-inf - kLowest) is 0
#define kInf __int_as_float(0x7f800000)

__device__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float logarithm(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ uint32 pair(float low, float high) {
  uint32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// Over the four lanes that share a row of a fragment.
__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Transposes four words of each of four neighbouring lanes.
__device__ uint4 quad_transposed(uint32 a, uint32 b, uint32 c, uint32 d) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const auto swap = [](uint32& x, uint32& y, bool first, int lanes) {
    const uint32 other = __shfl_xor_sync(~0u, first ? x : y, lanes);
    (first ? x : y) = other;
  };
  swap(a, b, odd, 1), swap(c, d, odd, 1);
  swap(a, c, upper, 2), swap(b, d, upper, 2);
  return {a, b, c, d};
}

// Both instructions of a programmatic launch: until all before it has been written, and that the
// next may start.
__device__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ void start_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }
