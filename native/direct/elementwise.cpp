// Elementwise operations and normalization. Both are limited by memory bandwidth, so elementwise operations read each
// value once, and normalization three times.
#include "elementwise.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "../parallel.h"
#include "../vector_epilogue.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index piece = 4096;  // values that a thread computes at a time

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

ALWAYS_INLINE Vector square_root(Vector x) {
#if defined(__AVX512F__)
    return (Vector)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (Vector)_mm256_sqrt_ps((__m256)x);
#else
    Vector roots{};
    for (Index i = 0; i < lanes; ++i) roots[i] = std::sqrt(x[i]);
    return roots;
#endif
}

ALWAYS_INLINE Vector combine(Vector a, Vector b, Combination combination) {
    switch (combination) {
        case Combination::first: return a;
        case Combination::square_root: return square_root(a);
        case Combination::reciprocal_square_root: return 1.0f / square_root(a);
        case Combination::exponential: return exponential(a);
        case Combination::add: return a + b;
        case Combination::subtract: return a - b;
        case Combination::multiply: return a * b;
        case Combination::divide: return a / b;
        case Combination::maximum: return (a != a) | (a > b) ? a : b;  // NaN stays NaN
        case Combination::minimum: return (a != a) | (a < b) ? a : b;
        case Combination::prelu: return a > 0 ? a : a * b;
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

    // The last two axes as one row, if the last one alone does not fill a vector and results are contiguous: the
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

    template <Activation activation>
    ALWAYS_INLINE Vector finish(Vector value) const {
        return clamp(activate<activation>(value, epilogue.slope), epilogue.low, epilogue.high);
    }

    template <Activation activation>
    void joined_row(const float* a, const float* b, float* to) const {
        const Index count = static_cast<Index>(of_input.size());
        for (Index k = 0; k < count; k += lanes) {
            const Index here = count - k;
            Vector value = gather(a, of_input.data() + k, here);
            value = combine(value, b ? gather(b, of_other.data() + k, here) : value, combination);
            store_up_to(to + k, finish<activation>(value), here);
        }
    }

    template <Activation activation>
    void row(const float* a, const float* b, float* to, Index count) const {
        const Index step_a = shape.input[4], step_b = shape.other[4], step = shape.output[4];
        for (Index k = 0; k < count; k += lanes) {
            const Index here = count - k;
            Vector value = strided(a + k * step_a, step_a, here);
            value = combine(value, b ? strided(b + k * step_b, step_b, here) : value, combination);
            value = finish<activation>(value);
            if (step == 1)
                store_up_to(to + k, value, here);
            else
                for (Index i = 0; i < min(here, lanes); ++i) to[(k + i) * step] = value[i];
        }
    }

    // Work is divided into units: pieces of one row, or some rows along axis 3, or all of them where rows are joined.
    Index of_piece = min(shape.sizes[4], piece), of_rows = joined() ? shape.sizes[3] : max(piece / max(of_piece, 1), 1);
    Index pieces = ceil_div(shape.sizes[4], max(of_piece, 1)), groups = ceil_div(shape.sizes[3], max(of_rows, 1));

    bool joined() const { return !of_input.empty(); }
    Index units() const { return shape.sizes[0] * shape.sizes[1] * shape.sizes[2] * groups * pieces; }

    // Computes units `first` to `last`.
    template <Activation activation>
    void compute(Index first, Index last) const {
        for (Index number = first; number < last; ++number) {
            const Index begin = number % pieces * of_piece, start = number / pieces % groups * of_rows;
            Index rest = number / pieces / groups;
            Index a = begin * shape.input[4] + start * shape.input[3], b = begin * shape.other[4] + start * shape.other[3];
            Index to = begin * shape.output[4] + start * shape.output[3];
            for (int axis = 2; axis >= 0; --axis) {
                const Index place = rest % shape.sizes[axis];
                rest /= shape.sizes[axis];
                a += place * shape.input[axis], b += place * shape.other[axis], to += place * shape.output[axis];
            }
            if (joined()) {
                joined_row<activation>(input + a, other ? other + b : nullptr, output + to);
                continue;
            }
            const Index count = min(of_piece, shape.sizes[4] - begin), end = min(start + of_rows, shape.sizes[3]);
            for (Index one = start; one < end; ++one) {
                row<activation>(input + a, other ? other + b : nullptr, output + to, count);
                a += shape.input[3], b += shape.other[3], to += shape.output[3];
            }
        }
    }
};

float sum_of(Vector vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)vector);
#else
    float sum = 0;
    for (Index i = 0; i < lanes; ++i) sum += vector[i];
    return sum;
#endif
}

// The first `count` lanes, then zeros.
ALWAYS_INLINE Vector first_lanes(Vector vector, Index count) {
    Bits places;
    for (Index i = 0; i < lanes; ++i) places[i] = static_cast<std::uint32_t>(i);
    return places < static_cast<std::uint32_t>(min(count, lanes)) ? vector : Vector{};
}

struct Normalizer {
    const Normalization& shape;
    const float *input, *weight, *bias;
    const Epilogue& epilogue;
    float* output;
    Index channels = shape.channels / shape.groups;  // of a group
};

// Normalizes one group of the channels of one pixel.
struct PixelNormalizer : Normalizer {
    Index units() const { return shape.batch * shape.groups; }

    // The mean of function(values, count) over the vectors of a group.
    template <class Function>
    ALWAYS_INLINE double mean_of(const float* from, Function function) const {
        Vector sums{};
        for (Index k = 0; k < channels; k += lanes) sums += function(from + k, channels - k);
        return static_cast<double>(sum_of(sums)) / static_cast<double>(channels);
    }

    template <Activation activation>
    void compute(Index number) const {
        const Index image = number / shape.groups, channel = number % shape.groups * channels;
        const float* from = input + image * shape.in_step + channel;
        float* to = output + image * shape.out_step + channel;
        const float mean = static_cast<float>(mean_of(from, [](const float* values, Index count) __attribute__((always_inline)) {
            return load_up_to(values, count);
        }));
        const double variance = mean_of(from, [=](const float* values, Index count) __attribute__((always_inline)) {
            const Vector centered = first_lanes(load_up_to(values, count) - mean, count);
            return centered * centered;
        });
        const float scale = static_cast<float>(1 / std::sqrt(variance + shape.epsilon));
        for (Index k = 0; k < channels; k += lanes) {
            const Index count = channels - k;
            Vector value = (load_up_to(from + k, count) - mean) * scale;
            if (weight) value *= load_up_to(weight + channel + k, count);
            if (bias) value += load_up_to(bias + channel + k, count);
            value = clamp(activate<activation>(value, epilogue.slope), epilogue.low, epilogue.high);
            store_up_to(to + k, value, count);
        }
    }
};

// Normalizes, in one image, as many groups as fill whole vectors. Sums are taken for each channel, then over the channels of each
// group, so that vectors are full however few channels a group has.
struct MapNormalizer : Normalizer {
    Index together = lanes / std::gcd(channels, lanes);  // groups
    Index blocks = ceil_div(shape.groups, together);
    static constexpr Index run = 256;  // pixels whose sum is a float; all other sums are doubles

    Index units() const { return shape.batch * blocks; }

    // Sums of function(values) over the pixels, for each of up to `lanes` channels.
    template <class Function>
    ALWAYS_INLINE void add_up(const float* from, Index count, Function function, double* sums) const {
        for (Index first = 0; first < shape.pixels; first += run) {
            const Index last = min(first + run, shape.pixels);
            Vector partial[4]{};
            Index pixel = first;
            for (; pixel + 4 <= last; pixel += 4)
                for (Index i = 0; i < 4; ++i) partial[i] += function(load_up_to(from + (pixel + i) * shape.in_step, count));
            for (; pixel < last; ++pixel) partial[0] += function(load_up_to(from + pixel * shape.in_step, count));
            const Vector all = (partial[0] + partial[1]) + (partial[2] + partial[3]);
            for (Index lane = 0; lane < lanes; ++lane) sums[lane] += all[lane];
        }
    }

    template <Activation activation>
    void compute(Index number) const {
        const Index image = number / blocks, first = number % blocks * together;
        const Index groups = min(together, shape.groups - first), width = groups * channels, channel = first * channels;
        const float* from = input + image * shape.pixels * shape.in_step + channel;
        float* to = output + image * shape.pixels * shape.out_step + channel;
        const Index padded = ceil_div(width, lanes) * lanes;
        std::vector<double> sums(padded);
        std::vector<float> means(padded), factors(padded), shifts(padded);
        const auto set_by_group = [&](auto function) {  // of the mean of `sums`
            for (Index group = 0; group < groups; ++group) {
                double all = 0;
                for (Index k = group * channels; k < (group + 1) * channels; ++k) all += sums[k];
                const double mean = all / static_cast<double>(shape.pixels * channels);
                for (Index k = group * channels; k < (group + 1) * channels; ++k) function(k, mean);
            }
        };
        for (Index k = 0; k < width; k += lanes)
            add_up(from + k, width - k, [](Vector values) __attribute__((always_inline)) { return values; }, sums.data() + k);
        set_by_group([&](Index k, double mean) { means[k] = static_cast<float>(mean); });
        sums.assign(padded, 0);
        for (Index k = 0; k < width; k += lanes) {
            const Vector mean = load(means.data() + k);
            add_up(from + k, width - k, [=](Vector values) __attribute__((always_inline)) {
                return (values - mean) * (values - mean);
            }, sums.data() + k);
        }
        set_by_group([&](Index k, double variance) {
            const float scale = static_cast<float>(1 / std::sqrt(variance + shape.epsilon));
            factors[k] = weight ? scale * weight[channel + k] : scale;
            if (bias) shifts[k] = bias[channel + k];
        });
        for (Index k = 0; k < width; k += lanes) {
            const Vector mean = load(means.data() + k), factor = load(factors.data() + k), shift = load(shifts.data() + k);
            for (Index pixel = 0; pixel < shape.pixels; ++pixel) {
                const Vector value = (load_up_to(from + pixel * shape.in_step + k, width - k) - mean) * factor + shift;
                store_up_to(to + pixel * shape.out_step + k,
                            clamp(activate<activation>(value, epilogue.slope), epilogue.low, epilogue.high), width - k);
            }
        }
    }
};

template <class Kind>
void normalize_all(const Kind& normalizer, int threads) {
    with_activation(normalizer.epilogue.activation, [&](auto activation) {
        parallel_for(normalizer.units(), threads, [&](Index number, int) { normalizer.template compute<activation>(number); });
    });
}

}  // namespace

void elementwise(const Strided& shape, Combination combination, const float* input, const float* other,
                 const Epilogue& epilogue, float* output, int threads) {
    const Pass pass{shape, combination, input, other, epilogue, output};
    const Index all = pass.units(), each = ceil_div(all, 4 * threads);
    if (all == 0) return;
    with_activation(epilogue.activation, [&](auto activation) {
        parallel_for(ceil_div(all, each), threads, [&](Index number, int) {
            pass.compute<activation>(number * each, min((number + 1) * each, all));
        });
    });
}

void normalize(const Normalization& shape, const float* input, const float* weight, const float* bias,
               const Epilogue& epilogue, float* output, int threads) {
    const Normalizer normalizer{shape, input, weight, bias, epilogue, output};
    if (shape.pixels == 1) return normalize_all(PixelNormalizer{normalizer}, threads);
    normalize_all(MapNormalizer{normalizer}, threads);
}

}  // namespace svertka::INSTRUCTIONS
