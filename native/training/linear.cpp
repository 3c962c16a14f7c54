// Weights come from memory and go to it in runs of several kilobytes, while inputs and results stay in the second cache.
#include "linear.h"

#include "../bfloat16.h"
#include "../parallel.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index room = Index{1} << 19;  // numbers of the inputs that are read again for each tile of outputs: 2 MB
constexpr Index together = 8;  // outputs, whose gradients are summed in registers

#if defined(__AVX512F__)
constexpr Index tile_rows = 8, tile_outputs = 3;  // 24 sums
#else
constexpr Index tile_rows = 4, tile_outputs = 2;
#endif

// Calls function(std::integral_constant<Index, size>()) with the constant that `size`, from 1 to `largest`, is.
template <Index largest, class Function>
ALWAYS_INLINE void with_constant(Index size, Function function) {
    if constexpr (largest > 1)
        if (size < largest) return with_constant<largest - 1>(size, function);
    function(std::integral_constant<Index, largest>());
}

ALWAYS_INLINE float sum_of(Vector vector) {
    float sum = 0;
#pragma GCC unroll 16
    for (Index lane = 0; lane < lanes; ++lane) sum += vector[lane];
    return sum;
}

ALWAYS_INLINE void prefetch(const float* place) { __builtin_prefetch(place, 0, 3); }

// Adds the products of `count` inputs to rows × outputs results.
template <Index rows, Index outputs>
void add_products(const float* input, const float* weights, Index step, Index count, float* result, Index result_step) {
    Vector sums[rows][outputs] = {};
    const auto add = [&](Index k, Index left) __attribute__((always_inline)) {
        Vector factors[outputs];
#pragma GCC unroll 4
        for (Index output = 0; output < outputs; ++output) {
            const float* const from = weights + output * step + k;
            factors[output] = load_up_to(from, left);
            prefetch(from + outputs * step);
        }
#pragma GCC unroll 8
        for (Index row = 0; row < rows; ++row) {
            const Vector numbers = load_up_to(input + row * step + k, left);
#pragma GCC unroll 4
            for (Index output = 0; output < outputs; ++output) sums[row][output] += numbers * factors[output];
        }
    };
    Index k = 0;
    for (; k + lanes <= count; k += lanes) add(k, lanes);
    if (k < count) add(k, count - k);
    for (Index row = 0; row < rows; ++row)
        for (Index output = 0; output < outputs; ++output) result[row * result_step + output] += sum_of(sums[row][output]);
}

// Adds the products of `outputs` gradients and rows of weights to `count` input gradients of each row.
template <Index outputs>
void add_gradients(const LinearShape& shape, const float* gradient, const float* weights, Index count, bool is_first,
                   float* result) {
    for (Index k = 0; k < count; k += lanes) {
        const Index left = count - k;
        Vector factors[outputs];
#pragma GCC unroll 8
        for (Index output = 0; output < outputs; ++output) {
            const float* const from = weights + output * shape.inputs + k;
            factors[output] = load_up_to(from, left);
            prefetch(from + outputs * shape.inputs);
        }
        for (Index row = 0; row < shape.rows; ++row) {
            float* const to = result + row * shape.inputs + k;
            Vector sum = is_first ? Vector{} : load_up_to(to, left);
#pragma GCC unroll 8
            for (Index output = 0; output < outputs; ++output) sum += gradient[row * shape.outputs + output] * factors[output];
            store_up_to(to, sum, left);
        }
    }
}

// Writes `count` weight gradients of each of `outputs` outputs.
template <Index outputs, bool streams>
void write_gradients(const LinearShape& shape, const float* gradient, const float* input, Index count, float* result) {
    for (Index k = 0; k < count; k += lanes) {
        const Index left = count - k;
        Vector sums[outputs] = {};
        for (Index row = 0; row < shape.rows; ++row) {
            const Vector numbers = load_up_to(input + row * shape.inputs + k, left);
#pragma GCC unroll 8
            for (Index output = 0; output < outputs; ++output) sums[output] += gradient[row * shape.outputs + output] * numbers;
        }
#pragma GCC unroll 8
        for (Index output = 0; output < outputs; ++output) {
            float* const to = result + output * shape.inputs + k;
            if constexpr (streams)
                stream_store(to, sums[output]);
            else
                store_up_to(to, sums[output], left);
        }
    }
}

}  // namespace

void linear_forward(const LinearShape& shape, const float* input, const float* weights, const float* bias, float* result,
                    int threads) {
    const Index tiles = ceil_div(shape.outputs, tile_outputs), parts = min(tiles, threads);
    parallel_for(parts, threads, [&](Index part, int) {
        const Index begin = tiles * part / parts * tile_outputs;
        const Index end = min(tiles * (part + 1) / parts * tile_outputs, shape.outputs);
        for (Index row = 0; row < shape.rows; ++row)
            for (Index output = begin; output < end; ++output)
                result[row * shape.outputs + output] = bias ? bias[output] : 0;
        const Index depth = max(room / max(shape.rows, 1), lanes);
        for (Index first = 0; first < shape.inputs; first += depth) {
            const Index count = min(depth, shape.inputs - first);
            for (Index output = begin; output < end; output += tile_outputs)
                for (Index row = 0; row < shape.rows; row += tile_rows)
                    with_constant<tile_outputs>(min(tile_outputs, end - output), [&](auto outputs) {
                        with_constant<tile_rows>(min(tile_rows, shape.rows - row), [&](auto rows) {
                            add_products<rows, outputs>(input + row * shape.inputs + first,
                                                        weights + output * shape.inputs + first, shape.inputs, count,
                                                        result + row * shape.outputs + output, shape.outputs);
                        });
                    });
        }
    });
}

void linear_input_gradient(const LinearShape& shape, const float* gradient, const float* weights, float* result,
                           int threads) {
    constexpr Index block = 1024;
    parallel_for(ceil_div(shape.inputs, block), threads, [&](Index number, int) {
        const Index first = number * block, count = min(block, shape.inputs - first);
        const auto add = [&](Index output, auto outputs) __attribute__((always_inline)) {
            add_gradients<outputs>(shape, gradient + output, weights + output * shape.inputs + first, count, output == 0,
                                   result + first);
        };
        Index output = 0;
        for (; output + together <= shape.outputs; output += together)
            add(output, std::integral_constant<Index, together>());
        for (; output < shape.outputs; ++output) add(output, std::integral_constant<Index, 1>());
    });
}

void linear_weight_gradient(const LinearShape& shape, const float* gradient, const float* input, float* result,
                            int threads) {
    const Index block = max(ceil_div(min(4096 / max(shape.rows, 1), 1024), lanes) * lanes, 4 * lanes);
    const bool streams = is_aligned(result) && shape.inputs % lanes == 0 && shape.inputs * shape.outputs >= Index{1} << 20;
    const Index tiles = ceil_div(shape.outputs, together), parts = min(tiles, threads);
    parallel_for(parts, threads, [&](Index part, int) {
        const Index begin = tiles * part / parts * together;
        const Index end = min(tiles * (part + 1) / parts * together, shape.outputs);
        for (Index first = 0; first < shape.inputs; first += block) {
            const Index count = min(block, shape.inputs - first);
            const auto write = [&](Index output, auto outputs) __attribute__((always_inline)) {
                const float* const of = gradient + output;
                float* const to = result + output * shape.inputs + first;
                streams ? write_gradients<outputs, true>(shape, of, input + first, count, to)
                        : write_gradients<outputs, false>(shape, of, input + first, count, to);
            };
            Index output = begin;
            for (; output + together <= end; output += together) write(output, std::integral_constant<Index, together>());
            for (; output < end; ++output) write(output, std::integral_constant<Index, 1>());
        }
        store_fence();
    });
}

}  // namespace svertka::INSTRUCTIONS
