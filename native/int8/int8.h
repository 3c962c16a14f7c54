// Convolution, pooling and elementwise operations on 8-bit feature maps, channels-last. Sizes are not checked.
//
// The unsigned 8-bit number q of a map stands for the real number scale · (q − zero point). Weights are signed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../activation_kind.h"
#include "../direct/direct.h"

namespace svertka {

// Another number for each number: scale · number + shift.
struct Affine {
    float scale = 1, shift = 0;
};

enum class Int8Kernel { direct, winograd, depthwise };

// What becomes of the integer sum of a result:
// stored(activation(scale · sum + shift + real(residual))), clamped to [low, high], rounded if it is stored in 8 bits.
// Arrays have a number for each output channel, padded to whole panels.
struct Requantization {
    const std::int32_t* start;  // of the sum: minus the input's zero point times the sum of the weights
    const float *scale, *shift;
    const std::uint8_t* residual = nullptr;
    std::ptrdiff_t residual_step = 0;  // bytes from one pixel of the residual to the next
    Affine real;                       // of a number of the residual
    Activation activation = Activation::none;
    float slope = 0;             // of the activation function
    bool multiply = false;       // whether the residual is a factor instead of a summand
    bool residual_last = false;  // whether the residual comes after the activation function
    Affine stored;               // of the result
    float low, high;             // of the number that is stored
    bool to_float = false;       // whether results are floats

    // Whether kernels store sums first and finish them in a second pass, which keeps their registers for the product.
    // In one pass `stored` is not applied: without an activation function it is part of scale, shift and `real`.
    bool in_two_passes() const { return activation != Activation::none || (residual && multiply) || to_float; }
};

// The numbers of an elementwise operation; `real` converts those of 8 bits.
struct Operand {
    const void* numbers = nullptr;
    Storage storage = Storage::float32;
    Affine real;
};

// The operation on real numbers, and how its result is stored.
struct ByteOperation {
    Combination combination;
    Activation activation;
    float slope;
    Affine stored;
    float low, high;  // of the number that is stored
    Storage storage;
};

// An average pool: the result is mean · (sum − zero of each pixel inside) / count + shift.
struct BytePooling {
    Pooling pooling;
    std::uint8_t zero;
    Affine mean;
};

// The functions of one instruction set; each uses at most `threads` threads of the caller's OpenMP pool.
struct Int8 {
    std::ptrdiff_t panel_width;        // output channels whose weights are interleaved
    std::ptrdiff_t channel_width;      // channels that the depthwise kernel computes together
    std::ptrdiff_t numbers_per_factor;  // consecutive weights side by side: four of 8 bits, or two of 16 bits
    std::ptrdiff_t winograd_inputs;     // channels whose products `winograd` sums in 32 bits, from the first on

    // `zero`: the number in the padding. Weights: (panel, tap in y, factor of consecutive (tap in x, input), output in panel,
    // element of the factor), padded with zeros.
    void (*convolve)(const Window&, const std::uint8_t* input, std::uint8_t zero, const void* weights, const Requantization&,
                     void* output, int threads);

    // The same for 3×3 with stride and dilation 1, and a multiple of `numbers_per_factor` channels. `start` is not read.
    void (*winograd)(const Window&, const std::uint8_t* input, std::uint8_t zero, const void* weights,
                     const Requantization&, void* output, int threads);

    // Whether `winograd` is faster than `convolve`, by an estimate from the sizes.
    bool (*winograd_is_faster)(const Window&);

    // One filter for each channel. Weights: (channels / channel_width, tap in y, factor of taps in x, channel, element).
    void (*depthwise)(const Window&, const std::uint8_t* input, std::uint8_t zero, const void* weights,
                      const Requantization&, void* output, int threads);

    void (*pool)(const Window&, const BytePooling&, const std::uint8_t* input, std::uint8_t* output, int threads);

    void (*elementwise)(const Strided&, const ByteOperation&, const Operand&, const Operand&, void* output, int threads);
};

#define SVERTKA_INT8(instructions)                                                                                    \
    namespace instructions {                                                                                          \
    std::ptrdiff_t int8_panel_width();                                                                                \
    std::ptrdiff_t int8_channel_width();                                                                              \
    std::ptrdiff_t int8_numbers_per_factor();                                                                         \
    std::ptrdiff_t int8_winograd_inputs();                                                                            \
    void int8_convolve(const Window&, const std::uint8_t*, std::uint8_t, const void*, const Requantization&, void*, int);  \
    void int8_winograd(const Window&, const std::uint8_t*, std::uint8_t, const void*, const Requantization&, void*, int);  \
    bool int8_winograd_is_faster(const Window&);                                                                      \
    void int8_depthwise(const Window&, const std::uint8_t*, std::uint8_t, const void*, const Requantization&, void*, int); \
    void int8_pool(const Window&, const BytePooling&, const std::uint8_t*, std::uint8_t*, int);                       \
    void int8_elementwise(const Strided&, const ByteOperation&, const Operand&, const Operand&, void*, int);          \
    inline Int8 int8_functions() {                                                                                    \
        return {int8_panel_width(), int8_channel_width(), int8_numbers_per_factor(), int8_winograd_inputs(),          \
                int8_convolve,      int8_winograd,        int8_winograd_is_faster,   int8_depthwise,                  \
                int8_pool,          int8_elementwise};                                                                \
    }                                                                                                                 \
    }

SVERTKA_INT8(avx512vnni)
SVERTKA_INT8(avx512)
SVERTKA_INT8(avxvnni)
SVERTKA_INT8(avx2)
SVERTKA_INT8(baseline)

}  // namespace svertka
