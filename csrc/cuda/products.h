// The arithmetic of one warp on matrices in shared memory: 16 rows by some tiles of 16 columns. 16-bit numbers go
// through the matrix instruction, float32 ones through ordinary multiply-adds, with the sums in the same places.
#pragma once

#include "cuda/tile.h"

namespace vr::cuda {

// Which numbers of an operand are neighbours in shared memory: the terms of one row (column), or the rows (columns) of
// one term.
enum class Adjacent { terms, lines };

// Sixteen terms of an operand. A left operand's line is a row, a right operand's a column.
template <typename T, Adjacent kAdjacent>
struct StagedMatrix {
  const T* at;
  int stride;

  VR_DEVICE float value(int line, int term) const {
    return to_float(kAdjacent == Adjacent::terms ? at[line * stride + term] : at[term * stride + line]);
  }
};

// Rows 0 to 7 and 8 to 15 of terms 0 to 7, then the same of terms 8 to 15.
template <typename T, Adjacent kAdjacent>
VR_DEVICE Matrices load_left(const StagedMatrix<T, kAdjacent>& left) {
  const int lane = lane_index();
  if constexpr (kAdjacent == Adjacent::terms) return load_matrices(left.at + lane % 16 * left.stride + lane / 16 * 8);
  return load_matrices_transposed(left.at + (lane % 8 + lane / 16 * 8) * left.stride + lane / 8 % 2 * 8);
}

// Terms 0 to 7 and 8 to 15 of columns 0 to 7, then the same of columns 8 to 15.
template <typename T, Adjacent kAdjacent>
VR_DEVICE Matrices load_right(const StagedMatrix<T, kAdjacent>& right, int first_column) {
  const int lane = lane_index();
  if constexpr (kAdjacent == Adjacent::terms) {
    return load_matrices(right.at + (first_column + lane / 16 * 8 + lane % 8) * right.stride + lane / 8 % 2 * 8);
  }
  return load_matrices_transposed(right.at + lane % 16 * right.stride + first_column + lane / 16 * 8);
}

// sums[row][column] += sum_t left[row][t] right[column][t] over 16 terms.
template <typename T, Adjacent kLeft, Adjacent kRight, int kTiles>
VR_DEVICE void add_products(TileSums (&sums)[kTiles], const StagedMatrix<T, kLeft>& left,
                            const StagedMatrix<T, kRight>& right) {
  const Matrices a = load_left(left);
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const Matrices b = load_right(right, i * kTile);
    multiply_add<T>(sums[i].left.sum, a, b.pair[0], b.pair[1]);
    multiply_add<T>(sums[i].right.sum, a, b.pair[2], b.pair[3]);
  }
}

// Sixteen terms by themselves, before they join a long sum: a sixteenth of the roundings at the size of the whole.
template <Adjacent kLeft, Adjacent kRight, int kTiles>
VR_DEVICE void add_products(TileSums (&sums)[kTiles], const StagedMatrix<float, kLeft>& left,
                            const StagedMatrix<float, kRight>& right) {
  TileSums part[kTiles];
#pragma unroll 4
  for (int term = 0; term < kTile; ++term) {
    const float a[2] = {left.value(Sums::row(0), term), left.value(Sums::row(2), term)};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = i * kTile + Sums::column(j);
        part[i].left.sum[j] += a[j / 2] * right.value(column, term);
        part[i].right.sum[j] += a[j / 2] * right.value(column + 8, term);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[i].left.sum[j] += part[i].left.sum[j];
      sums[i].right.sum[j] += part[i].right.sum[j];
    }
  }
}

// Sixteen rows of shared memory, 16 columns of each, in the places that the sums of a product have.
template <typename T>
VR_DEVICE TileSums read_tile(const T* rows, int stride) {
  using Two = Pack<T, 2>;
  TileSums tile;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const T* row = rows + Sums::row(j) * stride + Sums::column(j);
    const Two left = *reinterpret_cast<const Two*>(row), right = *reinterpret_cast<const Two*>(row + 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      tile.left.sum[j + i] = to_float(left.at[i]);
      tile.right.sum[j + i] = to_float(right.at[i]);
    }
  }
  return tile;
}

// The way back, rounded to T.
template <typename T>
VR_DEVICE void write_tile(T* rows, int stride, const TileSums& tile) {
  using Two = Pack<T, 2>;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    T* row = rows + Sums::row(j) * stride + Sums::column(j);
    *reinterpret_cast<Two*>(row) = {from_float<T>(tile.left.sum[j]), from_float<T>(tile.left.sum[j + 1])};
    *reinterpret_cast<Two*>(row + 8) = {from_float<T>(tile.right.sum[j]), from_float<T>(tile.right.sum[j + 1])};
  }
}

// Calls change(row, column, number) for each number of a tile that this lane has.
template <typename Change>
VR_DEVICE void for_each(TileSums& tile, const Change& change) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    change(Sums::row(j), Sums::column(j), tile.left.sum[j]);
    change(Sums::row(j), Sums::column(j) + 8, tile.right.sum[j]);
  }
}

}  // namespace vr::cuda
