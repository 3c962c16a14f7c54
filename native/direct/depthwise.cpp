// Convolutions of each channel by itself.
#include "../simd.h"
#include "direct.h"

namespace svertka::INSTRUCTIONS {
namespace {

// Outputs in x that share what they read; networks for photographs have lines of 7, 14, 28, 56 and 112.
constexpr Index side_by_side = rows > 7 ? 7 : 4;

struct Pass {
    const Window& shape;
    const float *input, *weights;
    const Finish& finish;
    float* output;

    void keep(Index pixel, Index channel, Index count, Vector vector) const {
        const auto read = [=](const float* from) __attribute__((always_inline)) {
            return count == lanes ? load(from) : load_some(from, count);
        };
        if (finish.bias) vector += read(finish.bias + channel);
        if (finish.residual) vector += read(finish.residual + pixel * finish.residual_step + channel);
        vector = bounded(vector, finish.low, finish.high);
        float* to = output + pixel * shape.out_step + channel;
        count == lanes ? store(to, vector) : store_some(to, vector, count);
    }

    // One output of any window.
    Vector any(const float* picture, Index y, Index x, Index channel, Index count) const {
        Vector sum{};
        for (Index i = 0; i < shape.y.taps; ++i) {
            const Index in_y = y * shape.y.stride - shape.y.pad + i * shape.y.dilation;
            if (in_y < 0 || in_y >= shape.y.size) continue;
            for (Index j = 0; j < shape.x.taps; ++j) {
                const Index in_x = x * shape.x.stride - shape.x.pad + j * shape.x.dilation;
                if (in_x < 0 || in_x >= shape.x.size) continue;
                const float* from = picture + (in_y * shape.x.size + in_x) * shape.in_step + channel;
                const float* weight = weights + (i * shape.x.taps + j) * shape.in_channels + channel;
                sum += count == lanes ? load(from) * load(weight) : load_some(from, count) * load_some(weight, count);
            }
        }
        return sum;
    }

    // `side_by_side` outputs from x on: what two of them read is read once.
    template <int taps, int stride>
    ALWAYS_INLINE void several(const float* picture, Index y, Index x, Index channel, Vector* sums) const {
        constexpr Index width = (side_by_side - 1) * stride + taps;
#pragma GCC unroll 8
        for (Index one = 0; one < side_by_side; ++one) sums[one] = Vector{};
        const Index in_x = x * stride - shape.x.pad;
        const bool inside = in_x >= 0 && in_x + width <= shape.x.size;
        for (Index i = 0; i < taps; ++i) {
            const Index in_y = y * stride - shape.y.pad + i;
            if (in_y < 0 || in_y >= shape.y.size) continue;
            const float* from = picture + (in_y * shape.x.size + in_x) * shape.in_step + channel;
            const float* weight = weights + i * taps * shape.in_channels + channel;
            Vector factors[taps];
#pragma GCC unroll 8
            for (Index j = 0; j < taps; ++j) factors[j] = load(weight + j * shape.in_channels);
#pragma GCC unroll 32
            for (Index place = 0; place < width; ++place) {
                if (!inside && (in_x + place < 0 || in_x + place >= shape.x.size)) continue;
                const Vector pixel = load(from + place * shape.in_step);
#pragma GCC unroll 8
                for (Index one = 0; one < side_by_side; ++one)
                    if (place >= one * stride && place < one * stride + taps)
                        sums[one] += pixel * factors[place - one * stride];
            }
        }
    }

    // A line of outputs of all channels. The last outputs are computed twice where their number does not fit.
    template <int taps, int stride>
    void line(Index picture, Index y) const {
        const float* from = input + picture * shape.y.size * shape.x.size * shape.in_step;
        const Index start = (picture * shape.y.out_size + y) * shape.x.out_size;
        for (Index channel = 0; channel < shape.in_channels; channel += lanes) {
            const Index count = least(lanes, shape.in_channels - channel);
            if (taps && count == lanes && shape.x.out_size >= side_by_side) {
                for (Index next = 0; next < shape.x.out_size; next += side_by_side) {
                    const Index x = least(next, shape.x.out_size - side_by_side);
                    Vector sums[side_by_side];
                    several<taps ? taps : 1, stride>(from, y, x, channel, sums);
#pragma GCC unroll 8
                    for (Index one = 0; one < side_by_side; ++one) keep(start + x + one, channel, lanes, sums[one]);
                }
            } else {
                for (Index x = 0; x < shape.x.out_size; ++x)
                    keep(start + x, channel, count, any(from, y, x, channel, count));
            }
        }
    }
};

}  // namespace

void depthwise(const Window& shape, const float* input, const float* weights, const Finish& finish, float* output,
               int threads) {
    const Pass pass{shape, input, weights, finish, output};
    const bool square = shape.y.taps == shape.x.taps && shape.y.stride == shape.x.stride && shape.y.dilation == 1 &&
                        shape.x.dilation == 1;
    const Index taps = square ? shape.y.taps : 0, stride = shape.y.stride;
    const Index lines = shape.batch * shape.y.out_size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < lines; ++number) {
        const Index picture = number / shape.y.out_size, y = number % shape.y.out_size;
        if (taps == 3 && stride == 1)
            pass.line<3, 1>(picture, y);
        else if (taps == 3 && stride == 2)
            pass.line<3, 2>(picture, y);
        else if (taps == 5 && stride == 1)
            pass.line<5, 1>(picture, y);
        else if (taps == 5 && stride == 2)
            pass.line<5, 2>(picture, y);
        else
            pass.line<0, 1>(picture, y);
    }
}

}  // namespace svertka::INSTRUCTIONS
