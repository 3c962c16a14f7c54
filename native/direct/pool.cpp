// Max and average pooling.
#include <limits>

#include "../parallel.h"
#include "../vector_epilogue.h"
#include "../windows.h"

namespace svertka::INSTRUCTIONS {
namespace {

template <class Number>
struct Pass {
    const Window& shape;
    Pooling pooling;
    const Number* input;
    Number* output;

    // One line of outputs, channels `first` to `last`.
    void line(Index number, Index first, Index last) const {
        const Index y = number % shape.y.out_size, image = number / shape.y.out_size;
        const TapsInside rows(shape.y, y);
        for (Index x = 0; x < shape.x.out_size; ++x) {
            const TapsInside columns(shape.x, x);
            const Number* const corner =
                input + ((image * shape.y.size + rows.start) * shape.x.size + columns.start) * shape.in_step;
            Number* const to = output + (number * shape.x.out_size + x) * shape.out_step;
            Index channel = first;
            for (; channel + together * lanes <= last; channel += together * lanes)
                reduce<together>(rows, columns, corner + channel, lanes, to + channel);
            for (; channel < last; channel += lanes)
                reduce<1>(rows, columns, corner + channel, last - channel, to + channel);
        }
    }

  private:
    static constexpr int together = 4;  // vectors that share the loop over the taps

    // `vectors` vectors of channels of one output pixel, the last with `count` numbers.
    template <int vectors>
    ALWAYS_INLINE void reduce(const TapsInside& rows, const TapsInside& columns, const Number* corner, Index count,
                              Number* to) const {
        const Index down = shape.y.dilation * shape.x.size * shape.in_step, right = shape.x.dilation * shape.in_step;
        const auto each_tap = [&](auto function) __attribute__((always_inline)) {
            for (Index i = rows.first; i < rows.last; ++i)
                for (Index j = columns.first; j < columns.last; ++j)
#pragma GCC unroll 4
                    for (int k = 0; k < vectors; ++k)
                        function(k, load_up_to(corner + i * down + j * right + k * lanes, count));
        };
        Vector result[vectors]{};
        if (pooling == Pooling::maximum) {
            Vector invalid[vectors]{};  // a NaN that was seen
            for (Vector& one : result) one = -std::numeric_limits<float>::infinity() - Vector{};
            each_tap([&](int k, Vector one) __attribute__((always_inline)) {
                result[k] = larger(one, result[k]);
                invalid[k] = one == one ? invalid[k] : one;
            });
            for (int k = 0; k < vectors; ++k) result[k] = invalid[k] == invalid[k] ? result[k] : invalid[k];
        } else {
            each_tap([&](int k, Vector one) __attribute__((always_inline)) { result[k] += one; });
            const Index taps = pooling == Pooling::padded_mean ? rows.count_padded(shape.y) * columns.count_padded(shape.x)
                                                               : rows.count() * columns.count();
            for (Vector& one : result) one /= static_cast<float>(taps);
        }
        for (int k = 0; k < vectors; ++k) store_up_to(to + k * lanes, result[k], count);
    }

    // The larger of two numbers; `b` if one is NaN.
    ALWAYS_INLINE static Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
        return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
        return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
        return a > b ? a : b;
#endif
    }
};

template <class Number>
void compute(const Window& shape, Pooling pooling, const void* input, void* output, int threads) {
    const Pass<Number> pass{shape, pooling, static_cast<const Number*>(input), static_cast<Number*>(output)};
    const Index lines = shape.batch * shape.y.out_size;
    // If there are few lines, as for the mean over whole maps, threads divide the channels.
    const Index pieces = lines >= 4 * threads ? 1 : threads;
    const Index piece = ceil_div(ceil_div(shape.in_channels, lanes), pieces) * lanes;
    parallel_for(lines * pieces, threads, [&](Index number, int) {
        const Index channel = number % pieces * piece;
        pass.line(number / pieces, channel, min(channel + piece, shape.in_channels));
    });
}

}  // namespace

void pool(const Window& shape, Pooling pooling, const void* input, void* output, bool narrow, int threads) {
    (narrow ? compute<BFloat16> : compute<float>)(shape, pooling, input, output, threads);
}

}  // namespace svertka::INSTRUCTIONS
