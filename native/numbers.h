// What numbers in memory can be, beside float.
#pragma once

#include <cstdint>

namespace svertka {

// The upper half of a float.
struct BFloat16 {
    std::uint16_t bits;
};

}  // namespace svertka
