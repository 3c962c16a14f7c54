// The weight gradient of grouped convolution, down to depthwise.
//
// A vector holds neighboring input channels, of one group or of several whole ones. Its product with the gradients of
// output `number` of each group, in all places of its inputs, is added up for each tap over all pixels.
#include <cstring>

#include "../bfloat16.h"
#include "../parallel.h"
#include "../scratch.h"
#include "training.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index room = Index{1} << 16;  // floats of a band of rows: half of a cache of 512 KiB

struct Pass {
    const Window& shape;
    Index groups;
    const float *gradient, *input;
    Index in = shape.in_channels / groups, out = shape.out_channels / groups;
    bool depthwise = in == 1 && out == 1;
    bool wide = max(in, out) > min(lanes, 8);           // one group, or a part of one, in a vector
    Index whole = wide ? 1 : lanes / max(in, out);      // groups in a vector
    Index parts = wide ? ceil_div(in, lanes) : 1;       // vectors of a group
    Index vectors = ceil_div(groups, whole) * parts;
    Index taps = shape.y.taps * shape.x.taps;
    Index of_vector = taps * out * lanes;  // sums: (tap, output in group, lane)
    Index rows = min(max(room / (shape.x.size * shape.in_step * shape.y.stride + shape.x.out_size * shape.out_step), 1),
                     shape.y.out_size);  // of outputs in a band
    Bits places[lanes] = {};  // where in a vector of gradients the inputs in its places find output `number` of their group

    Pass(const Window& shape, Index groups, const float* gradient, const float* input)
        : shape(shape), groups(groups), gradient(gradient), input(input) {
        if (wide) return;
        for (Index number = 0; number < out; ++number)
            for (Index lane = 0; lane < whole * in; ++lane)
                places[number][lane] = static_cast<std::uint32_t>(lane / in * out + number);
    }

    // The first channel of vector `number`, and how many there are.
    Index first_input(Index number) const { return wide ? number / parts * in + number % parts * lanes : number * whole * in; }
    Index inputs(Index number) const {
        if (wide) return min(in - number % parts * lanes, lanes);
        return min(shape.in_channels - first_input(number), whole * in);
    }
    Index first_output(Index number) const { return number / parts * whole * out; }
    Index outputs(Index number) const { return min(shape.out_channels - first_output(number), whole * out); }

    // Add what the rows of outputs `first` to `last` of one image contribute.
    void add_band(Index image, Index first, Index last, float* sums) const {
        for (Index number = 0; number < vectors;) {
            const Index count = depthwise && number + 2 <= vectors ? 2 : 1;
            for (Index i = 0; i < shape.y.taps; ++i) {
                float* const to = sums + number * of_vector + i * shape.x.taps * out * lanes;
                if (shape.x.dilation == 1 && shape.x.taps == 3)
                    add_row<3>(image, first, last, number, count, i, 0, to);
                else if (shape.x.dilation == 1 && shape.x.taps == 5 && depthwise)
                    add_row<5>(image, first, last, number, count, i, 0, to);
                else if (shape.x.dilation == 1 && shape.x.taps == 7 && depthwise)
                    add_row<7>(image, first, last, number, count, i, 0, to);
                else
                    for (Index j = 0; j < shape.x.taps; ++j)
                        add_row<1>(image, first, last, number, count, i, j, to + j * out * lanes);
            }
            number += count;
        }
    }

    // For the `taps` taps from (i, j) on.
    template <int taps>
    void add_row(Index image, Index first, Index last, Index number, Index count, Index i, Index j, float* sums) const {
        if (count == 2) return add<taps, 1, 2, false>(image, first, last, number, i, j, 0, sums);
        if (depthwise) return add<taps, 1, 1, false>(image, first, last, number, i, j, 0, sums);
        for (Index output = 0; output < out; output += 8) {
            const Index left = out - output;
            if constexpr (taps <= 3) {  // with more taps there are more sums than registers
                if (left <= 2)
                    add_of<taps, 2>(image, first, last, number, i, j, output, sums);
                else if (left <= 4)
                    add_of<taps, 4>(image, first, last, number, i, j, output, sums);
                else
                    add_of<taps, 8>(image, first, last, number, i, j, output, sums);
            }
        }
    }

    template <int taps, int some>
    void add_of(Index image, Index first, Index last, Index number, Index i, Index j, Index output, float* sums) const {
        if (wide)
            add<taps, some, 1, true>(image, first, last, number, i, j, output, sums);
        else
            add<taps, some, 1, false>(image, first, last, number, i, j, output, sums);
    }

    // For the outputs from `output` on of each group, at most `some`, and `count` vectors.
    template <int taps, int some, int count, bool broadcast>
    [[gnu::noinline]] void add(Index image, Index first, Index last, Index number, Index i, Index j, Index output,
                               float* sums) const {
        const Index in_step = shape.in_step, out_step = shape.out_step, stride = shape.x.stride, size = shape.x.size;
        const Index channel = first_input(number), here = inputs(number + count - 1), last_output = out - 1;
        const Index of_gradients = outputs(number + count - 1), between = of_vector, of_tap = out * lanes;
        const Index shift = j * shape.x.dilation - shape.x.pad;  // from an output to its pixel
        // Outputs from `begin` to `end` read only pixels that exist.
        const Index begin = min(max(ceil_div(max(-shift, 0), stride), 0), shape.x.out_size);
        const Index reach = size - shift - taps;
        const Index end = max(min(reach < 0 ? 0 : reach / stride + 1, shape.x.out_size), begin);
        Bits own[some];
#pragma GCC unroll 8
        for (int k = 0; k < some; ++k) own[k] = places[min(output + k, lanes - 1)];
        Vector total[count][some][taps] = {};
        for (Index y = first; y < last; ++y) {
            const Index in_y = y * shape.y.stride - shape.y.pad + i * shape.y.dilation;
            if (in_y < 0 || in_y >= shape.y.size) continue;
            const float* const pixels = input + (image * shape.y.size + in_y) * size * in_step + channel;
            const float* const upstream = gradient + (image * shape.y.out_size + y) * shape.x.out_size * out_step +
                                          first_output(number);
            const auto step = [&](Index x, auto checked) __attribute__((always_inline)) {
                const float* const of = upstream + x * out_step;
                const float* const from = pixels + (x * stride + shift) * in_step;
#pragma GCC unroll 2
                for (int part = 0; part < count; ++part) {
                    const bool full = part < count - 1;
                    Vector gradients{};
                    if constexpr (!broadcast) gradients = load_up_to(of + part * lanes, full ? lanes : of_gradients);
#pragma GCC unroll 8
                    for (int k = 0; k < some; ++k) {
                        Vector factor = gradients;
                        if constexpr (broadcast)
                            factor = of[min(output + k, last_output)] - Vector{};
                        else if constexpr (some > 1)
                            factor = permute(gradients, own[k]);
#pragma GCC unroll 8
                        for (int tap = 0; tap < taps; ++tap) {
                            if constexpr (checked) {
                                const Index in_x = x * stride + shift + tap;
                                if (in_x < 0 || in_x >= size) continue;
                            }
                            const float* const pixel = from + tap * in_step + part * lanes;
                            total[part][k][tap] += factor * load_up_to(pixel, full ? lanes : here);
                        }
                    }
                }
            };
            for (Index x = 0; x < begin; ++x) step(x, std::true_type());
            for (Index x = begin; x < end; ++x) step(x, std::false_type());
            for (Index x = end; x < shape.x.out_size; ++x) step(x, std::true_type());
        }
#pragma GCC unroll 2
        for (int part = 0; part < count; ++part)
#pragma GCC unroll 8
            for (int k = 0; k < some; ++k)
#pragma GCC unroll 8
                for (int tap = 0; tap < taps; ++tap) {
                    if (output + k > last_output) continue;
                    float* const to = sums + part * between + tap * of_tap + (output + k) * lanes;
                    store(to, load(to) + total[part][k][tap]);
                }
    }

    // The sums of all threads, `between` floats apart, to (tap, output in group, input).
    void add_up(const float* sums, int threads, Index between, float* result) const {
        for (Index number = 0; number < vectors; ++number)
            for (Index place = 0; place < taps * out; ++place) {
                Vector sum{};
                for (int thread = 0; thread < threads; ++thread)
                    sum += load(sums + thread * between + number * of_vector + place * lanes);
                store_up_to(result + place * shape.in_channels + first_input(number), sum, inputs(number));
            }
    }
};

}  // namespace

void grouped_weight_gradient(const Window& shape, std::ptrdiff_t groups, const float* gradient, const float* input,
                             float* result, int threads) {
    const Pass pass(shape, groups, gradient, input);
    const Index own = pass.vectors * pass.of_vector, bands = ceil_div(shape.y.out_size, pass.rows);
    float* const sums = scratch(threads * own);
    std::memset(sums, 0, threads * own * sizeof(float));
    parallel_for(shape.batch * bands, threads, [&](Index number, int thread) {
        const Index first = number % bands * pass.rows;
        pass.add_band(number / bands, first, min(first + pass.rows, shape.y.out_size), sums + thread * own);
    });
    pass.add_up(sums, threads, own, result);
}

}  // namespace svertka::INSTRUCTIONS
