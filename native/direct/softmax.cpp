// Softmax: along a contiguous axis with the vectors of one row, along another with the rows of one vector.
#include <limits>

#include "../parallel.h"
#include "../vector_epilogue.h"
#include "product_softmax_reduction_interpolation.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();

ALWAYS_INLINE Vector larger(Vector a, Vector b) { return (a > b) | (a != a) ? a : b; }  // NaN stays NaN

struct Pass {
    const Softmax& shape;
    const float *input, *other;
    float* output;

    // scale · input + other for one vector, or for one number where axes are not contiguous.
    ALWAYS_INLINE Vector scores(Index a, Index b, Index count) const {
        Vector value = load_up_to(input + a, count) * shape.scale;
        if (other) value += shape.other[4] == 0 ? other[b] - Vector{} : load_up_to(other + b, count);
        return value;
    }

    // The row from `a`, `b` and `to` on, along the innermost axis.
    void row(Index a, Index b, Index to) const {
        const Index size = shape.sizes[4];
        Vector most = lowest - Vector{};
        for (Index k = 0; k < size; k += lanes) {
            const Vector value = scores(a + k, b + k * shape.other[4], size - k);
            store_up_to(output + to + k, value, size - k);
            most = larger(most, size - k >= lanes ? value : first_lanes(value, size - k, lowest));
        }
        float highest = most[0];
        for (Index i = 1; i < lanes; ++i) highest = most[i] > highest || most[i] != most[i] ? most[i] : highest;
        Vector sums{};
        for (Index k = 0; k < size; k += lanes) {
            const Vector value = exponential(load_up_to(output + to + k, size - k) - highest);
            store_up_to(output + to + k, value, size - k);
            sums += size - k >= lanes ? value : first_lanes(value, size - k, 0.0f);
        }
        float sum = 0;
        for (Index i = 0; i < lanes; ++i) sum += sums[i];
        const float factor = 1 / sum;
        for (Index k = 0; k < size; k += lanes)
            store_up_to(output + to + k, load_up_to(output + to + k, size - k) * factor, size - k);
    }

    // One vector of `count` innermost numbers, along the axis before.
    void column(Index a, Index b, Index to, Index count) const {
        const Index size = shape.sizes[3];
        Vector most = lowest - Vector{}, sum{};
        for (Index i = 0; i < size; ++i) {
            const Vector value = scores(a + i * shape.input[3], b + i * shape.other[3], count);
            store_up_to(output + to + i * shape.output[3], value, count);
            most = larger(most, value);
        }
        for (Index i = 0; i < size; ++i) {
            float* const place = output + to + i * shape.output[3];
            const Vector value = exponential(load_up_to(place, count) - most);
            store_up_to(place, value, count);
            sum += value;
        }
        for (Index i = 0; i < size; ++i) {
            float* const place = output + to + i * shape.output[3];
            store_up_to(place, load_up_to(place, count) / sum, count);
        }
    }

    // Lanes from `count` on replaced by `filling`.
    ALWAYS_INLINE static Vector first_lanes(Vector vector, Index count, float filling) {
        Bits places;
        for (Index i = 0; i < lanes; ++i) places[i] = static_cast<std::uint32_t>(i);
        return places < static_cast<std::uint32_t>(count) ? vector : filling - Vector{};
    }

    Index outer() const {
        return shape.sizes[0] * shape.sizes[1] * shape.sizes[2] * (shape.innermost ? shape.sizes[3] : 1);
    }

    void compute(Index number) const {
        Index a = 0, b = 0, to = 0;
        for (int axis = shape.innermost ? 3 : 2; axis >= 0; --axis) {
            const Index place = number % shape.sizes[axis];
            number /= shape.sizes[axis];
            a += place * shape.input[axis], b += place * shape.other[axis], to += place * shape.output[axis];
        }
        if (shape.innermost) return row(a, b, to);
        for (Index k = 0; k < shape.sizes[4]; k += lanes)
            column(a + k, b + k * shape.other[4], to + k, shape.sizes[4] - k);
    }
};

}  // namespace

void softmax(const Softmax& shape, const float* input, const float* other, float* output, int threads) {
    const Pass pass{shape, input, other, output};
    const Index all = pass.outer();
    parallel_for(all, threads, [&](Index number, int) { pass.compute(number); });
}

}  // namespace svertka::INSTRUCTIONS
