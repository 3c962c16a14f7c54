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

// How the numbers of a map are stored.
enum class Storage { float32, bfloat16, byte };

// Which maps of a kernel consist of bfloat16; the others consist of floats. A residual has the dtype of the output.
struct NarrowMaps {
    bool input = false, output = false;
};

}  // namespace svertka
