// What numbers in memory can be, beside float.
#pragma once

#include <cstdint>

namespace svertka {

// The upper half of a float.
struct BFloat16 {
    std::uint16_t bits;
};

// Of a layer: what its weights are in memory, and what is multiplied. Sums are of floats.
enum class Precision {
    float32,
    widened,   // weights are bfloat16, and become floats
    bfloat16,  // weights are bfloat16; what they are multiplied with is rounded to it
};

}  // namespace svertka
