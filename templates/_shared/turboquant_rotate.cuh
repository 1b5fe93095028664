// Hadamard's matrix times vectors, on the tensor cores: elements and the matrix's +1 and -1 are exact
// in 16 bits, and sums are float32.
#pragma once

namespace turboquant {

__host__ __device__ constexpr int parity(int v) { return (v ^ v >> 1 ^ v >> 2 ^ v >> 3) & 1; }

// c += a b, of 16 x 16 and 16 x 8 elements.
template <bool kBfloat>
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned* a, unsigned b0, unsigned b1) {
  if (kBfloat) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{ %0, %1, %2, %3}, { %4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{ %0, %1, %2, %3}, { %4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// By a warp, for eight vectors at once, each with four neighbouring lanes that hold kOwn elements of
// it: y = H (x[0] + x[1] + ..). Elements are packed in pairs, and y has their order. Which bits of an
// element's index are the lane's and which the register's is free: quarters one behind the other, or
// eight elements of a lane beside eight of the next.
//
// The bits are dealt such that fragments of x are registers as they come, those of the matrix are one
// register or its negative, and y comes out in order. One bit tells rows 0-7 of a product from rows
// 8-15, which leaves one butterfly.
template <bool kBfloat, int kTerms, int kOwn>
__device__ __forceinline__ void rotate(float (&y)[kOwn], const unsigned (&x)[kTerms][kOwn / 2]) {
  constexpr unsigned kOne = kBfloat ? 0x3f80 : 0x3c00, kSigns = 0x80008000;
  // A lane's fragment of the matrix has rows 2t and 2t + 1, and those 8 further on, of column 2c + e,
  // where lanes t and c are the vector's, and the last bit of rows and columns is the last one of an
  // element's index. The parity of the bits that both have gives the sign.
  const int lane = threadIdx.x % 32, both = lane & lane >> 3;
  const bool negative = (both ^ both >> 1) & 1, alternates = lane & 4;
  const unsigned plus =
      (kOne | kOne << 16) ^ (negative ? kSigns : 0) ^ (alternates ? 0x80000000u : 0);
  const unsigned minus = plus ^ kSigns;
#pragma unroll
  for (int j = 0; j < kOwn / 4; ++j) {  // four elements of a lane's y
    float c[4] = {};
#pragma unroll
    for (int s = 0; s < kOwn / 8; ++s) {  // eight of x
      const int sign = parity(s & j >> 1);
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
        multiply<kBfloat>(c, x[term] + 4 * s, sign ? minus : plus, sign ^ (j & 1) ? minus : plus);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      y[4 * j + e] = c[e] + c[2 + e];
      y[4 * j + 2 + e] = c[e] - c[2 + e];
    }
  }
}

}  // namespace turboquant
