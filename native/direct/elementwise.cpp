// Elementwise operations and normalization. Both are bound by memory, so they read each value once or, to normalize,
// three times while it is in the cache.
#include "elementwise.h"

#include <cmath>
#include <vector>

#include "../vector_epilogue.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index piece = 4096;  // values of a row that a thread computes at a time

using Offsets = std::vector<std::int32_t>;

// Lane i is from[offsets[i]].
ALWAYS_INLINE Vector gather(const float* from, const std::int32_t* offsets, Index count) {
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
    const __mmask16 mask = count < lanes ? mask_of(count) : static_cast<__mmask16>(0xffff);
    return (Vector)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, _mm512_maskz_loadu_epi32(mask, offsets), from, 4);
#else
    Vector gathered{};
    for (Index i = 0; i < min(count, lanes); ++i) gathered[i] = from[offsets[i]];
    return gathered;
#endif
}

ALWAYS_INLINE Vector combine(Vector a, Vector b, Combination combination) {
    switch (combination) {
        case Combination::first: return a;
        case Combination::add: return a + b;
        case Combination::subtract: return a - b;
        case Combination::multiply: return a * b;
        case Combination::divide: return a / b;
        case Combination::maximum: return (a != a) | (a > b) ? a : b;  // NaN stays NaN
        case Combination::minimum: return (a != a) | (a < b) ? a : b;
    }
    return a;
}

struct Pass {
    const Strided& shape;
    Combination combination;
    const float *input, *other;
    const Epilogue& epilogue;
    float* output;

    ALWAYS_INLINE static Vector strided(const float* from, Index step, Index count) {
        if (step == 0) return *from - Vector{};
        if (step == 1) return load_up_to(from, count);
        Vector gathered{};
        for (Index i = 0; i < min(count, lanes); ++i) gathered[i] = from[i * step];
        return gathered;
    }

    // The last two axes as one row, where the last one alone does not fill a vector and results are contiguous: the
    // offsets of both operands. Channel shuffles have such axes.
    Offsets offsets_of(const Strided::Axes& strides) const {
        Offsets offsets;
        if (!joins_axes()) return offsets;
        for (Index i = 0; i < shape.sizes[3]; ++i)
            for (Index j = 0; j < shape.sizes[4]; ++j)
                offsets.push_back(static_cast<std::int32_t>(i * strides[3] + j * strides[4]));
        return offsets;
    }
    bool joins_axes() const {
        const bool contiguous = shape.output[4] == 1 && shape.output[3] == shape.sizes[4];
        const Index reach = max(shape.sizes[3] * max(shape.input[3], shape.other[3]),
                                shape.sizes[4] * max(shape.input[4], shape.other[4]));
        return contiguous && shape.sizes[4] < lanes && shape.sizes[3] > 1 && shape.sizes[3] <= piece && reach < 1 << 30;
    }
    Offsets of_input = offsets_of(shape.input), of_other = offsets_of(shape.other);

    void joined_row(const float* a, const float* b, float* to) const {
        const Index count = static_cast<Index>(of_input.size());
        for (Index k = 0; k < count; k += lanes) {
            const Index here = count - k;
            Vector value = gather(a, of_input.data() + k, here);
            if (b) value = combine(value, gather(b, of_other.data() + k, here), combination);
            value = clamp(activate(value, epilogue.activation, epilogue.slope), epilogue.low, epilogue.high);
            store_up_to(to + k, value, here);
        }
    }

    template <bool activated>
    void row(const float* a, const float* b, float* to, Index count) const {
        const Index step_a = shape.input[4], step_b = shape.other[4], step = shape.output[4];
        const float low = epilogue.low, high = epilogue.high, slope = epilogue.slope;
        const Activation activation = epilogue.activation;
        for (Index k = 0; k < count; k += lanes) {
            const Index here = count - k;
            Vector value = strided(a + k * step_a, step_a, here);
            if (b) value = combine(value, strided(b + k * step_b, step_b, here), combination);
            if constexpr (activated) value = activate(value, activation, slope);
            value = clamp(value, low, high);
            if (step == 1)
                store_up_to(to + k, value, here);
            else
                for (Index i = 0; i < min(here, lanes); ++i) to[(k + i) * step] = value[i];
        }
    }

    // The number of pieces of all rows.
    Index count() const {
        Index all = of_input.empty() ? shape.sizes[3] * ceil_div(shape.sizes[4], piece) : 1;
        for (int axis = 0; axis < 3; ++axis) all *= shape.sizes[axis];
        return shape.sizes[3] * shape.sizes[4] == 0 ? 0 : all;
    }

    // Pieces `first` to `last` of all rows.
    void pieces(Index first, Index last) const {
        const bool joined = !of_input.empty();
        const Index of_row = joined ? 1 : ceil_div(shape.sizes[4], piece);
        for (Index number = first; number < last; ++number) {
            Index rest = number / of_row, a = 0, b = 0, to = 0;
            for (int axis = joined ? 2 : 3; axis >= 0; --axis) {
                const Index place = rest % shape.sizes[axis];
                rest /= shape.sizes[axis];
                a += place * shape.input[axis], b += place * shape.other[axis], to += place * shape.output[axis];
            }
            if (joined) {
                joined_row(input + a, other ? other + b : nullptr, output + to);
                continue;
            }
            const Index begin = number % of_row * piece, count = min(piece, shape.sizes[4] - begin);
            a += begin * shape.input[4], b += begin * shape.other[4], to += begin * shape.output[4];
            const float* const second = other ? other + b : nullptr;
            if (epilogue.activation == Activation::none)
                row<false>(input + a, second, output + to, count);
            else
                row<true>(input + a, second, output + to, count);
        }
    }
};

float sum_of(Vector vector) {
    float sum = 0;
    for (Index i = 0; i < lanes; ++i) sum += vector[i];
    return sum;
}

}  // namespace

void elementwise(const Strided& shape, Combination combination, const float* input, const float* other,
                 const Epilogue& epilogue, float* output, int threads) {
    const Pass pass{shape, combination, input, other, epilogue, output};
    const Index all = pass.count();
    if (all == 0 || threads == 1) return pass.pieces(0, all);
    const Index each = ceil_div(all, 4 * threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index first = 0; first < all; first += each) pass.pieces(first, min(first + each, all));
}

void normalize(const Normalization& shape, const float* input, const float* weight, const float* bias,
               const Epilogue& epilogue, float* output, int threads) {
    const Index channels = shape.channels / shape.groups;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < shape.batch * shape.groups; ++number) {
        const Index image = number / shape.groups, channel = number % shape.groups * channels;
        const float* from = input + image * shape.pixels * shape.in_step + channel;
        float* to = output + image * shape.pixels * shape.out_step + channel;
        // Sums of a pixel are floats, those of all pixels doubles.
        const auto sum = [&](auto of) {
            double all = 0;
            for (Index pixel = 0; pixel < shape.pixels; ++pixel) {
                Vector sums{};
                for (Index k = 0; k < channels; k += lanes) sums += of(from + pixel * shape.in_step + k, channels - k);
                all += sum_of(sums);
            }
            return all / static_cast<double>(shape.pixels * channels);
        };
        const float mean = static_cast<float>(sum([](const float* values, Index count) { return load_up_to(values, count); }));
        const double variance = sum([&](const float* values, Index count) {
            Vector centered = load_up_to(values, count) - mean;
            if (count < lanes)  // lanes without a channel
                for (Index i = count; i < lanes; ++i) centered[i] = 0;
            return centered * centered;
        });
        const float scale = static_cast<float>(1 / std::sqrt(variance + shape.epsilon));
        for (Index pixel = 0; pixel < shape.pixels; ++pixel, from += shape.in_step, to += shape.out_step)
            for (Index k = 0; k < channels; k += lanes) {
                const Index count = channels - k;
                Vector value = (load_up_to(from + k, count) - mean) * scale;
                if (weight) value *= load_up_to(weight + channel + k, count);
                if (bias) value += load_up_to(bias + channel + k, count);
                value = activate(value, epilogue.activation, epilogue.slope);
                store_up_to(to + k, clamp(value, epilogue.low, epilogue.high), count);
            }
    }
}

}  // namespace svertka::INSTRUCTIONS
