// Batch normalization, the residual and the activation function after it, in training: statistics in one pass over the
// images, the results in another; two passes again for the gradients, in which the activation's input is computed once more,
// or with a residual the result is read.
#include <omp.h>

#include <cmath>

#include "../bfloat16.h"
#include "../scratch.h"
#include "../vector_math.h"
#include "training.h"

namespace svertka::INSTRUCTIONS {
namespace {

constexpr Index room = Index{1} << 16;  // floats of a block of pixels, which is read twice: 256 KiB

// f'(x), f the activation function.
template <Activation activation>
ALWAYS_INLINE Vector derivative(Vector x) {
    if constexpr (activation == Activation::silu) {
        const Vector gate = sigmoid(x);
        return gate * (1.0f + x * (1.0f - gate));
    }
    if constexpr (activation == Activation::hard_swish) {
        const Vector inside = x * (1.0f / 3.0f) + 0.5f;
        return x < -3.0f ? Vector{} : x > 3.0f ? 1.0f - Vector{} : inside;
    }
    if constexpr (activation == Activation::gelu) {
        // Φ(x) + x · φ(x), with an error below 4e-7: a minimax fit, which takes half of the time of both functions.
        const Vector near = clamp(x, -5.7f, 5.7f), square = near * near;
        return 0.5f + near *
                          polynomial(square, 0.7978853583f, -0.03099166602f, 0.01422949973f, 1.932602936e-5f,
                                     3.594541704e-5f, 1.927874393e-7f) /
                          polynomial(square, 1.0f, 0.2944992483f, 0.04098100588f, 0.003522977f, 1.920414943e-4f,
                                     8.947895367e-6f);
    }
    return 1.0f - Vector{};
}

template <class Function>
void with_kind(Activation activation, Function function) {
    if (activation == Activation::silu)
        function(std::integral_constant<Activation, Activation::silu>());
    else if (activation == Activation::hard_swish)
        function(std::integral_constant<Activation, Activation::hard_swish>());
    else if (activation == Activation::gelu)
        function(std::integral_constant<Activation, Activation::gelu>());
    else
        function(std::integral_constant<Activation, Activation::none>());
}

struct Range {
    Index first, last;
};

// Images consist of `Number`s.
template <class Number>
struct Pass {
    const BatchNorm& shape;
    const Number* input;
    const float *weight, *bias;
    int threads;
    Index rows = max(min(room / shape.channels, 256), 8), blocks = ceil_div(shape.pixels, rows);

    // The pixels of thread `number`: whole blocks.
    Range part(int number) const {
        return {min(blocks * number / threads * rows, shape.pixels), min(blocks * (number + 1) / threads * rows, shape.pixels)};
    }

    // Number of pixels, mean and sum of squared deviations of each channel, of the pixels of one thread.
    void measure(Range pixels, double* means, double* squares) const {
        const Index channels = shape.channels;
        for (Index channel = 0; channel < channels; ++channel) means[channel] = squares[channel] = 0;
        for (Index first = pixels.first; first < pixels.last; first += rows) {
            const Index count = min(rows, pixels.last - first);
            const double before = static_cast<double>(first - pixels.first), all = before + static_cast<double>(count);
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                const Number* const from = input + first * channels + channel;
                Vector sums[4] = {}, deviations[4] = {};
                Index row = 0;
                for (; row + 4 <= count; row += 4)
#pragma GCC unroll 4
                    for (Index k = 0; k < 4; ++k) sums[k] += load_up_to(from + (row + k) * channels, left);
                for (; row < count; ++row) sums[0] += load_up_to(from + row * channels, left);
                const Vector mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(count);
                const auto add = [&](Index number, Index place) __attribute__((always_inline)) {
                    const Vector deviation = load_up_to(from + place * channels, left) - mean;
                    deviations[number] += deviation * deviation;
                };
                for (row = 0; row + 4 <= count; row += 4)
#pragma GCC unroll 4
                    for (Index k = 0; k < 4; ++k) add(k, row + k);
                for (; row < count; ++row) add(0, row);
                const Vector square = (deviations[0] + deviations[1]) + (deviations[2] + deviations[3]);
                for (Index lane = 0; lane < min(left, lanes); ++lane) {
                    // Chan, Golub & LeVeque 1979: the moments of two sets together.
                    const double apart = static_cast<double>(mean[lane]) - means[channel + lane];
                    means[channel + lane] += apart * static_cast<double>(count) / all;
                    squares[channel + lane] += static_cast<double>(square[lane]) +
                                               apart * apart * before * static_cast<double>(count) / all;
                }
            }
        }
    }

    // The factor and summand of each channel, from its mean and the inverse of its standard deviation.
    void find_line(const float* mean, const float* inverse, float* scale, float* shift) const {
        for (Index channel = 0; channel < shape.channels; ++channel) {
            scale[channel] = inverse[channel] * weight[channel];
            shift[channel] = bias[channel] - mean[channel] * scale[channel];
        }
    }

    // `residual` may be null.
    template <Activation activation>
    void normalize(Range pixels, const float* scale, const float* shift, const Number* residual, Number* output) const {
        residual ? normalize_with<activation, true>(pixels, scale, shift, residual, output)
                 : normalize_with<activation, false>(pixels, scale, shift, residual, output);
    }

    template <Activation activation, bool adds>
    void normalize_with(Range pixels, const float* scale, const float* shift, const Number* residual,
                        Number* output) const {
        const Index channels = shape.channels;
        const float low = shape.low, high = shape.high;
        for (Index pixel = pixels.first; pixel < pixels.last; ++pixel)
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index place = pixel * channels + channel, left = channels - channel;
                Vector line = load_up_to(input + place, left) * load_up_to(scale + channel, left) +
                              load_up_to(shift + channel, left);
                if constexpr (adds) line += load_up_to(residual + place, left);
                store_up_to(output + place, clamp(activate<activation>(line, 0), low, high), left);
            }
    }

    // The gradient of the normalized value, before the activation function.
    template <Activation activation>
    ALWAYS_INLINE Vector before_activation(Vector gradient, Vector x, Vector scale, Vector shift) const {
        const Vector line = x * scale + shift;
        if constexpr (activation != Activation::none) return gradient * derivative<activation>(line);
        return line <= shape.low || line >= shape.high ? Vector{} : gradient;  // NaN passes
    }

    // The sums of the gradients, and of their products with deviations from the mean, of the pixels of one thread.
    template <Activation activation>
    void add_up(Range pixels, const Number* gradient, const float* mean, const float* scale, const float* shift,
                double* sums, double* products) const {
        add_up_with(pixels, mean, sums, products, [=, this](Index channel, Index left) __attribute__((always_inline)) {
            const Vector factor = load_up_to(scale + channel, left), summand = load_up_to(shift + channel, left);
            return [=, this](Index place, Vector x) __attribute__((always_inline)) {
                return before_activation<activation>(load_up_to(gradient + place, left), x, factor, summand);
            };
        });
    }

    // The same after a residual was added: `output` shows which results were limited, and the gradients of the others are
    // stored to `kept`.
    void add_up_after_residual(Range pixels, const Number* gradient, const Number* output, const float* mean, Number* kept,
                               double* sums, double* products) const {
        const float low = shape.low, high = shape.high;
        add_up_with(pixels, mean, sums, products, [=](Index, Index left) __attribute__((always_inline)) {
            return [=](Index place, Vector) __attribute__((always_inline)) {
                const Vector result = load_up_to(output + place, left);
                const Vector upstream = result <= low || result >= high ? Vector{} : load_up_to(gradient + place, left);
                store_up_to(kept + place, upstream, left);
                return upstream;
            };
        });
    }

    // `make`(channel, left) returns a function of (place, x), the gradients before the activation function.
    template <class Make>
    ALWAYS_INLINE void add_up_with(Range pixels, const float* mean, double* sums, double* products, Make make) const {
        const Index channels = shape.channels;
        for (Index channel = 0; channel < channels; ++channel) sums[channel] = products[channel] = 0;
        for (Index first = pixels.first; first < pixels.last; first += rows) {
            const Index last = min(first + rows, pixels.last);
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index left = channels - channel;
                const Vector center = load_up_to(mean + channel, left);
                const auto upstream_at = make(channel, left);
                Vector sum[2] = {}, product[2] = {};
                const auto add = [&](Index number, Index pixel) __attribute__((always_inline)) {
                    const Index place = pixel * channels + channel;
                    const Vector x = load_up_to(input + place, left), upstream = upstream_at(place, x);
                    sum[number] += upstream;
                    product[number] += upstream * (x - center);
                };
                Index pixel = first;
                for (; pixel + 2 <= last; pixel += 2) {
                    add(0, pixel);
                    add(1, pixel + 1);
                }
                if (pixel < last) add(0, pixel);
                sum[0] += sum[1];
                product[0] += product[1];
                for (Index lane = 0; lane < min(left, lanes); ++lane) {
                    sums[channel + lane] += static_cast<double>(sum[0][lane]);
                    products[channel + lane] += static_cast<double>(product[0][lane]);
                }
            }
        }
    }

    // `gradient`: after the activation function, or before it, if `activation` is none and nothing is `limited`.
    template <Activation activation, bool limited>
    void input_gradient(Range pixels, const Number* gradient, const float* scale, const float* shift, const float* slope,
                        const float* offset, Number* result) const {
        const Index channels = shape.channels;
        for (Index pixel = pixels.first; pixel < pixels.last; ++pixel)
            for (Index channel = 0; channel < channels; channel += lanes) {
                const Index place = pixel * channels + channel, left = channels - channel;
                const Vector x = load_up_to(input + place, left), factor = load_up_to(scale + channel, left);
                Vector upstream = load_up_to(gradient + place, left);
                if constexpr (activation != Activation::none || limited)
                    upstream = before_activation<activation>(upstream, x, factor, load_up_to(shift + channel, left));
                store_up_to(result + place,
                            upstream * factor - x * load_up_to(slope + channel, left) - load_up_to(offset + channel, left),
                            left);
            }
    }
};

template <class Number>
void compute(const BatchNorm& shape, const Number* input, const float* weight, const float* bias, const Number* residual,
             Number* output, float* mean, float* variance, int threads) {
    const Pass<Number> pass{shape, input, weight, bias, threads};
    const Index channels = shape.channels;
    float* const memory = scratch(4 * channels * threads + 3 * channels);
    const auto moments = reinterpret_cast<double*>(memory);  // of each thread: means, sums of squares
    float* const scale = memory + 4 * channels * threads;
    float *const shift = scale + channels, *const inverse = shift + channels;
#pragma omp parallel num_threads(threads)
    {
        const int number = omp_get_thread_num();
        const Range own = pass.part(number);
        pass.measure(own, moments + 2 * channels * number, moments + 2 * channels * number + channels);
#pragma omp barrier
#pragma omp single
        {
            for (Index channel = 0; channel < channels; ++channel) {
                double count = 0, center = 0, square = 0;
                for (int thread = 0; thread < threads; ++thread) {
                    const Range range = pass.part(thread);
                    const double more = static_cast<double>(range.last - range.first);
                    if (more == 0) continue;
                    const double* const of = moments + 2 * channels * thread + channel;
                    const double apart = of[0] - center;
                    square += of[channels] + apart * apart * count * more / (count + more);
                    center += apart * more / (count + more);
                    count += more;
                }
                mean[channel] = static_cast<float>(center);
                variance[channel] = static_cast<float>(square / count);
                inverse[channel] = static_cast<float>(1 / std::sqrt(square / count + shape.epsilon));
            }
            pass.find_line(mean, inverse, scale, shift);
        }
        with_kind(shape.activation,
                  [&](auto kind) { pass.template normalize<kind>(own, scale, shift, residual, output); });
    }
}

template <class Number>
void compute_gradients(const BatchNorm& shape, const Number* gradient, const Number* input, const Number* output,
                       const float* weight, const float* bias, const float* mean, const float* variance,
                       Number* input_gradient, Number* residual_gradient, float* weight_gradient, float* bias_gradient,
                       int threads) {
    const Pass<Number> pass{shape, input, weight, bias, threads};
    const Index channels = shape.channels;
    float* const memory = scratch(4 * channels * threads + 5 * channels);
    const auto sums = reinterpret_cast<double*>(memory);  // of each thread: gradients, products
    float* const scale = memory + 4 * channels * threads;
    float *const shift = scale + channels, *const slope = shift + channels, *const offset = slope + channels;
    float* const inverse = offset + channels;
    for (Index channel = 0; channel < channels; ++channel)
        inverse[channel] = static_cast<float>(1 / std::sqrt(variance[channel] + shape.epsilon));
    pass.find_line(mean, inverse, scale, shift);
#pragma omp parallel num_threads(threads)
    with_kind(shape.activation, [&](auto kind) {
        const int number = omp_get_thread_num();
        const Range own = pass.part(number);
        double* const of = sums + 2 * channels * number;
        if (residual_gradient)
            pass.add_up_after_residual(own, gradient, output, mean, residual_gradient, of, of + channels);
        else
            pass.template add_up<kind>(own, gradient, mean, scale, shift, of, of + channels);
#pragma omp barrier
#pragma omp single
        for (Index channel = 0; channel < channels; ++channel) {
            double sum = 0, product = 0;
            for (int thread = 0; thread < threads; ++thread) {
                sum += sums[2 * channels * thread + channel];
                product += sums[2 * channels * thread + channels + channel];
            }
            const double pixels = static_cast<double>(shape.pixels), own_inverse = inverse[channel];
            bias_gradient[channel] = static_cast<float>(sum);
            weight_gradient[channel] = static_cast<float>(product * own_inverse);
            const double steep = product * own_inverse * own_inverse / pixels * scale[channel];
            slope[channel] = static_cast<float>(steep);
            offset[channel] = static_cast<float>(sum / pixels * scale[channel] - steep * mean[channel]);
        }
        if (residual_gradient)
            pass.template input_gradient<Activation::none, false>(own, residual_gradient, scale, shift, slope, offset,
                                                                  input_gradient);
        else
            pass.template input_gradient<kind, true>(own, gradient, scale, shift, slope, offset, input_gradient);
    });
}

}  // namespace

void batch_norm(const BatchNorm& shape, const void* input, const float* weight, const float* bias, const void* residual,
                void* output, float* mean, float* variance, bool narrow, int threads) {
    const auto run = [&]<class Number>(const Number* images) {
        compute(shape, images, weight, bias, static_cast<const Number*>(residual), static_cast<Number*>(output), mean,
                variance, threads);
    };
    narrow ? run(static_cast<const BFloat16*>(input)) : run(static_cast<const float*>(input));
}

void batch_norm_gradients(const BatchNorm& shape, const void* gradient, const void* input, const void* output,
                          const float* weight, const float* bias, const float* mean, const float* variance,
                          void* input_gradient, void* residual_gradient, float* weight_gradient, float* bias_gradient,
                          bool narrow, int threads) {
    const auto run = [&]<class Number>(const Number* images) {
        compute_gradients(shape, static_cast<const Number*>(gradient), images, static_cast<const Number*>(output), weight,
                          bias, mean, variance, static_cast<Number*>(input_gradient),
                          static_cast<Number*>(residual_gradient), weight_gradient, bias_gradient, threads);
    };
    narrow ? run(static_cast<const BFloat16*>(input)) : run(static_cast<const float*>(input));
}

}  // namespace svertka::INSTRUCTIONS
