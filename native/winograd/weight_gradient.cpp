// The weight gradient: F(3×3, 4×4), in which tiles of the gradient are the kernel.
//
// The tiles of the input and of the gradient in a block are transformed. Then the result is computed in pieces of a few
// outputs by a panel of inputs: 36 products over the block's tiles, and the inverse transform, which turns 36 sums into
// the 9 numbers that are added to the result.
#include <omp.h>

#include "../gemm.h"
#include "../scratch.h"
#include "input_transform.h"
#include "weight_packing.h"
#include "winograd.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr int outputs = 4, points = Tiles<outputs>::points;
constexpr Index frequencies = Tiles<outputs>::frequencies;
constexpr int height = lanes < 16 ? 4 : 8;  // height of the register block, a divisor of `lanes`

// Images consist of `Number`s. `Factor`s are multiplied: floats or pairs of tiles.
template <class Number, class Factor>
struct Pass {
    static constexpr Index several = values_per<Factor>;
    Tiles<outputs> tiles;
    Images<Number> input, gradient;
    Index pad_y, pad_x;
    Index block;    // tiles
    Index some;     // outputs of one piece of the result, a multiple of `lanes`
    Index steps = ceil_div(block, several);  // steps of a product over a block
    Index panels = ceil_div(input.channels, NR), groups = ceil_div(gradient.channels, lanes);
    // Distance between frequencies, in factors and in floats.
    Index input_stride = panels * steps * NR + lanes, gradient_stride = groups * steps * lanes + lanes;
    Index product_stride = some * NR + lanes;

    Range range(Index number) const {
        return {min(number * block, tiles.count()), min((number + 1) * block, tiles.count())};
    }

    // The tiles of one step of the block `here`.
    void transform_step(Range here, Index step, Factor* inputs, Factor* gradients) const {
        const Index tile = here.first + several * step;
        if constexpr (several == 1) {
            transform_as<float>(tile, step, inputs, gradients);
        } else {
            transform_as<First>(tile, step, inputs, gradients);
            if (tile + 1 < here.last) transform_as<Second>(tile + 1, step, inputs, gradients);
        }
    }

    // Adds the contribution of the tiles `here` to one piece, or stores it if they are the first.
    void add(Range here, Index piece, bool onto, const Factor* inputs, const Factor* gradients, float* products,
             float* result) const {
        const Index first = piece / panels * some, number = piece % panels;
        multiply(here, inputs, gradients, first, number, products);
        inverse_transform(products, first, number, onto, result);
    }

  private:
    // Transforms the input's tile into (frequency, panel, step, input in its panel) and the gradient's into (frequency,
    // group of outputs, step, output in its group). In small maps, the tile after the next is not in the same rows.
    template <class Stored>
    void transform_as(Index index, Index step, Factor* inputs, Factor* gradients) const {
        const Tile tile = tiles[index], later = tiles[min(index + 2, tiles.count() - 1)];
        const auto ahead = [&](const Images<Number>& images) {
            return ((later.image - tile.image) * images.height + later.y - tile.y) * images.width + later.x - tile.x;
        };
        const auto place = [](Factor* some) { return reinterpret_cast<Stored*>(some); };
        transform_tile<winograd::data_matrix<outputs>>(
            input, tile.image, tile.y - pad_y, tile.x - pad_x, points, points, input_stride,
            [=, this](Index group) { return place(inputs + (group / 2 * steps + step) * NR + group % 2 * lanes); },
            ahead(input));
        transform_tile<winograd::gradient_matrix>(
            gradient, tile.image, tile.y, tile.x, tile.height, tile.width, gradient_stride,
            [=, this](Index group) { return place(gradients + (group * steps + step) * lanes); }, ahead(gradient));
    }

    // Computes the 36 products over the tiles `here` for the outputs from `first` on and one panel of inputs. A tile that
    // does not need a product but shares a step with one that does adds zero, because its gradient is zero there.
    // Meanwhile the factors of the next frequency are prefetched: in each block of outputs a group of gradients, or half of
    // the inputs.
    void multiply(Range here, const Factor* inputs, const Factor* gradients, Index first, Index number,
                  float* products) const {
        const Index last = min(first + some, groups * lanes), groups_here = (last - first) / lanes;
        const auto gradients_of = [=, this](Index frequency, Index group, Index begin) {
            return gradients + frequency * gradient_stride + (group * steps + begin) * lanes;
        };
        for (Index frequency = 0; frequency < frequencies; ++frequency) {
            const Range needed = tiles.needing(frequency, here);
            const Index begin = needed.first / several, end = ceil_div(needed.last, several);
            const Factor* b = inputs + frequency * input_stride + (number * steps + begin) * NR;
            for (Index output = first; output < last; output += height) {
                const Factor* a = gradients_of(frequency, output / lanes, begin) + output % lanes;
                const Index block = (output - first) / height;
                const Factor* next = block < groups_here ? gradients_of(frequency + 1, first / lanes + block, begin)
                                                         : b + input_stride + (block - groups_here) % 2 * steps * lanes;
                const Prefetch ahead{reinterpret_cast<const char*>(next), lanes * sizeof(Factor)};
                float* const c = products + frequency * product_stride + (output - first) * NR;
                if (input.channels - number * NR > lanes)  // else the panel's second vector is left out
                    block_product<height, 1, lanes>(a, lanes * lanes, b, NR, lanes, c, end - begin, false, ahead);
                else
                    block_product<height, 1, lanes, 1>(a, lanes * lanes, b, NR, lanes, c, end - begin, false, ahead);
            }
        }
    }

    // Stores (output, tap, input); with `onto`, adds to it.
    void inverse_transform(const float* products, Index first, Index number, bool onto, float* result) const {
        const Index last = min(first + some, gradient.channels);
        for (Index output = first; output < last; ++output)
            for (Index half = 0; half < NR; half += lanes) {
                const Index channel = number * NR + half, count = min(lanes, input.channels - channel);
                if (count <= 0) break;
                transform<winograd::weight_gradient_matrix>(
                    [&](auto i, auto j) __attribute__((always_inline)) {
                        return load(products + (i * points + j) * product_stride + (output - first) * NR +
                                    half);
                    },
                    [&](auto i, auto j, Vector vector) __attribute__((always_inline)) {
                        float* to = result + (output * taps + 3 * i + j) * input.channels + channel;
                        store_up_to(to, onto ? load_up_to(to, count) + vector : vector, count);
                    });
            }
    }
};

template <class Factor, class Number>
void compute(const Convolution& shape, const Number* gradient, const Number* input, float* result, int threads) {
    const Tiles<outputs> tiles(shape.batch, shape.out_height, shape.out_width);
    const Index several = values_per<Factor>;
    // With larger blocks, sums are added to the result fewer times, which takes longer with more channels of both kinds.
    const Index wanted = several * (min(shape.in_channels, shape.out_channels) < 128 ? 112 : 224);
    const Index blocks = max(ceil_div(tiles.count(), wanted), 1);
    Pass<Number, Factor> pass{
        .tiles = tiles,
        .input = {input, shape.height, shape.width, shape.in_channels, nullptr, shape.in_step},
        .gradient = {gradient, shape.out_height, shape.out_width, shape.out_channels, nullptr, shape.out_step},
        .pad_y = shape.pad_y,
        .pad_x = shape.pad_x,
        .block = ceil_div(tiles.count(), blocks),
        .some = min(ceil_div(shape.out_channels, lanes) * lanes, 64)};
    const Index pieces = ceil_div(shape.out_channels, pass.some) * pass.panels;
    // Blocks of tiles are processed one after another, and each thread takes pieces of the result. If there are few pieces,
    // each thread takes blocks instead and has its own result; the results are added in the order of the threads.
    const bool shared = threads == 1 || pieces >= 4 * threads;

    // Sizes of the parts of the scratch memory, in floats or pairs; shared parts come before those of each thread.
    const Index of_zeros = max(pass.panels * NR, pass.groups * lanes);
    const Index of_inputs = frequencies * pass.input_stride, of_gradients = frequencies * pass.gradient_stride;
    const Index of_products = frequencies * pass.product_stride, of_tiles = of_inputs + of_gradients;
    const Index of_result = shape.out_channels * taps * shape.in_channels;
    const Index common = of_zeros + (shared ? of_tiles : 0), own = of_products + (shared ? 0 : of_tiles + of_result);
    float* const memory = scratch(common + threads * own);
    pass.input.zeros = pass.gradient.zeros = reinterpret_cast<const Number*>(memory);
    __builtin_memset(memory, 0, of_zeros * sizeof(float));

#pragma omp parallel num_threads(threads)
    {
        float* const products = memory + common + omp_get_thread_num() * own;
        float* const transformed_tiles = shared ? memory + of_zeros : products + of_products;
        const auto inputs = reinterpret_cast<Factor*>(transformed_tiles), gradients = inputs + of_inputs;
        if (shared) {
            for (Index number = 0; number < blocks; ++number) {
                const Range here = pass.range(number);
#pragma omp for schedule(static)
                for (Index step = 0; step < ceil_div(here.last - here.first, several); ++step)
                    pass.transform_step(here, step, inputs, gradients);
#pragma omp for schedule(dynamic)
                for (Index piece = 0; piece < pieces; ++piece)
                    pass.add(here, piece, number > 0, inputs, gradients, products, result);
            }
        } else {
            float* const sums = transformed_tiles + of_tiles;
            __builtin_memset(sums, 0, of_result * sizeof(float));
#pragma omp for schedule(static)
            for (Index number = 0; number < blocks; ++number) {
                const Range here = pass.range(number);
                for (Index step = 0; step < ceil_div(here.last - here.first, several); ++step)
                    pass.transform_step(here, step, inputs, gradients);
                for (Index piece = 0; piece < pieces; ++piece)
                    pass.add(here, piece, true, inputs, gradients, products, sums);
            }
#pragma omp for schedule(static)
            for (Index place = 0; place < of_result; ++place) {
                float sum = 0;
                for (int thread = 0; thread < omp_get_num_threads(); ++thread)
                    sum += memory[common + thread * own + of_products + of_tiles + place];
                result[place] = sum;
            }
        }
    }
}

}  // namespace

void weight_gradient(const Convolution& shape, const float* gradient, const float* input, float* result, int threads) {
    compute<float>(shape, gradient, input, result, threads);
}

void weight_gradient(const Convolution& shape, const BFloat16* gradient, const BFloat16* input, Precision precision,
                     float* result, int threads) {
    if (precision == Precision::bfloat16)
        compute<Pair>(shape, gradient, input, result, threads);
    else
        compute<float>(shape, gradient, input, result, threads);
}

}  // namespace svertka::INSTRUCTIONS
