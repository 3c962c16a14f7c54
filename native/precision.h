// The precision of products, and the storage type of bfloat16 values.
#pragma once

#include <cstdint>

namespace svertka {

// The upper half of a float.
struct BFloat16 {
    std::uint16_t bits;
};

// The dtype of a layer's weights in memory and of its products. Sums are always float32.
enum class Precision {
    float32,
    upcast,   // weights are bfloat16 and converted to float32
    bfloat16,  // weights are bfloat16; inputs are rounded to bfloat16
};

}  // namespace svertka
