// Rows of a page, known at launch: divides by a 32-bit product.
#pragma once

struct PageSize {
  int rows;
  unsigned int factor;
  int shift;

  // `reciprocal` is 2^62 / rows, rounded up.
  __device__ PageSize(int rows, long long reciprocal)
      : rows(rows), shift(31 - __clz((rows - 1) | 1)) {
    factor = (reciprocal + (1ll << (30 - shift)) - 1) >> (30 - shift);
  }

  // The page of a row from 0 on, exactly; of one below 0, anything.
  __device__ int page_of(int row) const {
    return rows == 1 ? row : int(__umulhi(row, factor) >> shift);
  }
};
