// Sums, means, norms, variances and extrema over axes of a tensor.
#include <cmath>
#include <limits>

#include "../parallel.h"
#include "../vector_epilogue.h"
#include "product_softmax_reduction_interpolation.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index run = 64;  // numbers added in a register before the sum is added to the others: long sums lose precision

struct Add {
    static constexpr float start = 0;
    ALWAYS_INLINE static Vector step(Vector sum, Vector value, Vector) { return sum + value; }
    ALWAYS_INLINE static Vector join(Vector a, Vector b) { return a + b; }
};
struct AddSquares : Add {
    ALWAYS_INLINE static Vector step(Vector sum, Vector value, Vector) { return sum + value * value; }
};
struct AddCenteredSquares : Add {
    ALWAYS_INLINE static Vector step(Vector sum, Vector value, Vector mean) { return sum + (value - mean) * (value - mean); }
};
struct Larger {
    static constexpr float start = -std::numeric_limits<float>::infinity();
    ALWAYS_INLINE static Vector step(Vector a, Vector b, Vector) { return join(a, b); }
    ALWAYS_INLINE static Vector join(Vector a, Vector b) { return (a > b) | (a != a) ? a : b; }  // NaN stays NaN
};
struct Smaller {
    static constexpr float start = std::numeric_limits<float>::infinity();
    ALWAYS_INLINE static Vector step(Vector a, Vector b, Vector) { return join(a, b); }
    ALWAYS_INLINE static Vector join(Vector a, Vector b) { return (a < b) | (a != a) ? a : b; }
};

struct Pass {
    const Reduction& shape;
    Statistic statistic;
    const float* input;
    const Epilogue& epilogue;
    float* output;

    // Over the two outer reduced axes; lanes are `count` innermost numbers.
    template <class Kind>
    ALWAYS_INLINE Vector over_rows(const float* from, Index count, Vector mean) const {
        Vector all = Kind::start - Vector{}, some = all;
        Index pending = 0;
        for (Index i = 0; i < shape.sizes[3]; ++i)
            for (Index j = 0; j < shape.sizes[4]; ++j) {
                some = Kind::step(some, load_up_to(from + i * shape.input[3] + j * shape.input[4], count), mean);
                if (++pending == run) all = Kind::join(all, some), some = Kind::start - Vector{}, pending = 0;
            }
        return Kind::join(all, some);
    }

    // Over all reduced axes, the innermost among them.
    template <class Kind>
    ALWAYS_INLINE float over_all(const float* from, float mean) const {
        Vector all = Kind::start - Vector{};
        for (Index i = 0; i < shape.sizes[3]; ++i)
            for (Index j = 0; j < shape.sizes[4]; ++j) {
                const float* const row = from + i * shape.input[3] + j * shape.input[4];
                Vector some = Kind::start - Vector{};
                for (Index k = 0; k < shape.sizes[5]; k += lanes) {
                    const Index count = shape.sizes[5] - k;
                    const Vector value = Kind::step(some, load_up_to(row + k, count), mean - Vector{});
                    some = count >= lanes ? value : first_lanes(value, some, count);
                    if (k % (run * lanes) == 0 && k > 0) all = Kind::join(all, some), some = Kind::start - Vector{};
                }
                all = Kind::join(all, some);
            }
        Vector result = all[0] - Vector{};
        for (Index i = 1; i < lanes; ++i) result = Kind::join(result, all[i] - Vector{});
        return result[0];
    }

    // The first `count` lanes of `vector`, then those of `other`.
    ALWAYS_INLINE static Vector first_lanes(Vector vector, Vector other, Index count) {
        Bits places;
        for (Index i = 0; i < lanes; ++i) places[i] = static_cast<std::uint32_t>(i);
        return places < static_cast<std::uint32_t>(count) ? vector : other;
    }

    template <class Kind>
    ALWAYS_INLINE Vector over(const float* from, Index count, Vector mean) const {
        return shape.reduces_innermost ? over_all<Kind>(from, mean[0]) - Vector{} : over_rows<Kind>(from, count, mean);
    }

    ALWAYS_INLINE Vector compute(const float* from, Index count) const {
        const Vector none{};
        const float number = static_cast<float>(shape.sizes[3] * shape.sizes[4] *
                                                (shape.reduces_innermost ? shape.sizes[5] : 1));
        switch (statistic) {
            case Statistic::sum: return over<Add>(from, count, none);
            case Statistic::mean: return over<Add>(from, count, none) / shape.divisor;
            case Statistic::maximum: return over<Larger>(from, count, none);
            case Statistic::minimum: return over<Smaller>(from, count, none);
            case Statistic::variance:
                return over<AddCenteredSquares>(from, count, over<Add>(from, count, none) / number) / shape.divisor;
            case Statistic::norm: break;
        }
        Vector squares = over<AddSquares>(from, count, none);
        for (Index i = 0; i < lanes; ++i) squares[i] = std::sqrt(squares[i]);
        return squares;
    }

    template <Activation activation>
    void compute_at(Index number) const {
        const float* from = input;
        float* to = output;
        for (int axis = 2; axis >= 0; --axis) {
            const Index place = number % shape.sizes[axis];
            number /= shape.sizes[axis];
            from += place * shape.input[axis], to += place * shape.output[axis];
        }
        const Index kept = shape.reduces_innermost ? 1 : shape.sizes[5];
        for (Index k = 0; k < kept; k += lanes) {
            const Vector value = activate<activation>(compute(from + k, kept - k), epilogue.slope);
            const Vector result = clamp(value, epilogue.low, epilogue.high);
            for (Index i = 0; i < min(lanes, kept - k); ++i) to[(k + i) * shape.output[5]] = result[i];
        }
    }
};

}  // namespace

void reduce(const Reduction& shape, Statistic statistic, const float* input, const Epilogue& epilogue, float* output,
            int threads) {
    const Pass pass{shape, statistic, input, epilogue, output};
    const Index all = shape.sizes[0] * shape.sizes[1] * shape.sizes[2];
    with_activation(epilogue.activation, [&](auto activation) {
        parallel_for(all, threads, [&](Index number, int) { pass.compute_at<activation>(number); });
    });
}

}  // namespace svertka::INSTRUCTIONS
