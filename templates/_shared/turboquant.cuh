// The cache format of TurboQuant: codebooks, and what lies where in a slot. A slot is what one token
// keeps of one head:
//
//   key codes | norm (not of FP8 keys) | value codes | step | minimum
//
// Codes are one stream of bits, the lowest first, element 0 first; norm, step and minimum are fp16.
// Keys of fewer than 8 bits are rotated by the Hadamard matrix over sqrt(kDim) and divided by their
// norm; a code is then a position in the codebook, in ascending order.
#pragma once

namespace turboquant {

template <int kKeyBits, int kValueBits, int kDim>
struct Slot {
  static_assert(kKeyBits == 8 || kKeyBits == 4 || kKeyBits == 3, "FP8 or a codebook of 16 or 8");
  static_assert(kValueBits == 4 || kValueBits == 3, "16 or 8 levels");
  static_assert(kDim == 64 || kDim == 128 || kDim == 256, "the codebooks there are");

  static constexpr bool kFp8 = kKeyBits == 8;  // E4M3 codes of the key as it is
  static constexpr int kLevels = 1 << kValueBits;

  // Bytes.
  static constexpr int kKeyBytes = kDim * kKeyBits / 8;
  static constexpr int kValueBytes = kDim * kValueBits / 8;

  // Offsets, in bytes; all are even, and no more is known of a slot's address.
  static constexpr int kNorm = kKeyBytes;  // without FP8 keys
  static constexpr int kValues = kKeyBytes + (kFp8 ? 0 : 2);
  static constexpr int kStep = kValues + kValueBytes;
  static constexpr int kMinimum = kStep + 2;
  static constexpr int kBytes = kMinimum + 2;  // of a slot
};

static_assert(Slot<8, 4, 128>::kBytes == 196 && Slot<4, 4, 128>::kBytes == 134);
static_assert(Slot<3, 4, 128>::kBytes == 118 && Slot<3, 3, 128>::kBytes == 102);

// The upper half of a codebook, ascending; the lower half is its mirror image. These numbers are
// the format: the procedure behind them stops before it converges.
template <int kBits, int kDim>
__host__ __device__ constexpr float upper_centroid(int index) {
  static_assert((kBits == 3 || kBits == 4) && (kDim == 64 || kDim == 128 || kDim == 256));
  constexpr float k64x3[] = {0x1.f5b9f6p-6f, 0x1.82e3f8p-4f, 0x1.57daa6p-3f, 0x1.133ea8p-2f};
  constexpr float k128x3[] = {0x1.62c62ep-6f, 0x1.1192aap-4f, 0x1.e6487ap-4f, 0x1.85413ep-3f};
  constexpr float k64x4[] = {0x1.070514p-6f, 0x1.8d73fep-5f, 0x1.505290p-4f, 0x1.e28894p-4f,
                             0x1.419a18p-3f, 0x1.9e2d80p-3f, 0x1.08c2e0p-2f, 0x1.5d8edcp-2f};
  constexpr float k128x4[] = {0x1.73f75cp-7f, 0x1.190ab2p-5f, 0x1.dba1c2p-5f, 0x1.5533e4p-4f,
                              0x1.c6d056p-4f, 0x1.24de2ep-3f, 0x1.766dcep-3f, 0x1.ee5988p-3f};
  if (kDim == 128) return kBits == 3 ? k128x3[index] : k128x4[index];
  return (kBits == 3 ? k64x3[index] : k64x4[index]) * (kDim == 256 ? 0.5f : 1.0f);
}

// What code `index` stands for, index < 2^kBits.
template <int kBits, int kDim>
__host__ __device__ constexpr float centroid(int index) {
  constexpr int kHalf = 1 << (kBits - 1);
  return index < kHalf ? -upper_centroid<kBits, kDim>(kHalf - 1 - index)
                       : upper_centroid<kBits, kDim>(index - kHalf);
}

// The least number that has a code above `index`, index < 2^kBits - 1.
template <int kBits, int kDim>
__host__ __device__ constexpr float midpoint(int index) {
  return (centroid<kBits, kDim>(index) + centroid<kBits, kDim>(index + 1)) * 0.5f;
}

static_assert(midpoint<4, 128>(7) == 0.0f && midpoint<4, 128>(8) == 0x1.760888p-6f);
static_assert(midpoint<3, 256>(6) == 0x1.bf2bfcp-4f && midpoint<3, 64>(0) == -0x1.bf2bfcp-3f);

// 1 / sqrt(kDim), which scales the Hadamard matrix.
template <int kDim>
__host__ __device__ constexpr float hadamard_scale() {
  return kDim == 64 ? 0.125f : kDim == 128 ? 0x1.6a09e6p-4f : 0.0625f;
}

// Hadamard's matrix of +1 and -1 times the kCount * kLanes numbers that neighbouring lanes hold,
// kCount each. In which order is free, as long as the bits of a register's index and those of the
// lane are bits of the element's: lane * kCount + i or i * kLanes + lane, for two.
template <int kCount, int kLanes>
__device__ __forceinline__ void hadamard(float (&v)[kCount]) {
#pragma unroll
  for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i & step) continue;
      const float a = v[i], b = v[i + step];
      v[i] = a + b;
      v[i + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const float sign = threadIdx.x & step ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = __fmaf_rn(v[i], sign, __shfl_xor_sync(~0u, v[i], step));
    }
  }
}

}  // namespace turboquant
