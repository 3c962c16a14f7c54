// The Winograd transforms of tiles of vectors.
#pragma once

#include <type_traits>
#include <utility>

#include "../simd.h"
#include "transform_matrices.h"

namespace svertka::INSTRUCTIONS {

// body(0), body(1), … body(count − 1), each index a compile-time constant.
template <int count, class Body>
ALWAYS_INLINE void unrolled(Body body) {
    [&]<int... index>(std::integer_sequence<int, index...>) __attribute__((always_inline)) {
        (body(std::integral_constant<int, index>{}), ...);
    }
    (std::make_integer_sequence<int, count>{});
}

// Row `row` of `matrix` times `from`, over columns first, first + step, …; zeros and ones take no multiplication. Vectors
// consist of floats, or of shorts if the matrix is integer.
template <const auto& matrix, int row, int first, int step, class Numbers>
ALWAYS_INLINE Numbers dot(const Numbers* from) {
    Numbers sum{};
    bool begun = false;
    unrolled<(matrix.columns - first + step - 1) / step>([&](auto index) __attribute__((always_inline)) {
        constexpr int column = first + index * step;
        constexpr std::remove_cvref_t<decltype(from[0][0])> factor{matrix.at[row][column]};
        if constexpr (factor != 0) {
            const Numbers term = factor == 1 ? from[column] : factor * from[column];
            sum = begun ? sum + term : term;
            begun = true;
        }
    });
    return sum;
}

// `matrix` (points × anything) times `from`. The rows of opposite points differ only in the sign of their odd columns.
template <const auto& matrix, class Numbers>
ALWAYS_INLINE void to_points(const Numbers* from, Numbers* to) {
    constexpr int infinity = matrix.rows - 1;
    to[0] = dot<matrix, 0, 0, 1>(from);
    unrolled<(infinity - 1) / 2>([&](auto pair) __attribute__((always_inline)) {
        constexpr int row = 1 + 2 * pair;
        const Numbers even = dot<matrix, row, 0, 2>(from), odd = dot<matrix, row, 1, 2>(from);
        to[row] = even + odd;
        to[row + 1] = even - odd;
    });
    to[infinity] = dot<matrix, infinity, 0, 1>(from);
}

// `matrix` (anything × points) times `from`. The columns of opposite points differ only in the sign of their odd rows.
template <const auto& matrix>
ALWAYS_INLINE void from_points(const Vector* from, Vector* to) {
    constexpr int points = matrix.columns, infinity = points - 1;
    Vector even[points] = {}, odd[points] = {};
    unrolled<(infinity - 1) / 2>([&](auto pair) __attribute__((always_inline)) {
        constexpr int column = 1 + 2 * pair;
        even[column] = from[column] + from[column + 1];
        odd[column] = from[column] - from[column + 1];
    });
    even[infinity] = odd[infinity] = from[infinity];
    unrolled<matrix.rows>([&](auto row) __attribute__((always_inline)) {
        Vector sum = dot<matrix, row, 1, 2>(row % 2 ? odd : even);
        if constexpr (row == 0) sum += dot<matrix, 0, 0, points>(from);  // 0⁰ = 1, and higher powers of 0 are 0
        to[row] = sum;
    });
}

// M X Mᵀ for a tile X of vectors, read with load(i, j) and written with store(i, j, vector).
template <const auto& matrix, class Load, class Store>
ALWAYS_INLINE void transform(Load load, Store store) {
    constexpr int width = matrix.columns, height = matrix.rows;
    using Numbers = decltype(load(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{}));
    const auto apply = [](const Numbers* from, Numbers* to) __attribute__((always_inline)) {
        if constexpr (height >= width)
            to_points<matrix>(from, to);
        else
            from_points<matrix>(from, to);
    };
    Numbers middle[height][width];
    unrolled<width>([&](auto column) __attribute__((always_inline)) {
        Numbers from[width], to[height];
        unrolled<width>([&](auto i) __attribute__((always_inline)) { from[i] = load(i, column); });
        apply(from, to);
        unrolled<height>([&](auto i) __attribute__((always_inline)) { middle[i][column] = to[i]; });
    });
    unrolled<height>([&](auto row) __attribute__((always_inline)) {
        Numbers to[height];
        apply(middle[row], to);
        unrolled<height>([&](auto j) __attribute__((always_inline)) { store(row, j, to[j]); });
    });
}

}  // namespace svertka::INSTRUCTIONS
