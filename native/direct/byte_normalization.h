// Images of bytes as the numbers that a network reads: (byte − mean) · scale, for each channel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace svertka {

// A batch of images of three channels. The channels of a pixel are adjacent bytes, and so are the pixels of a row.
struct ByteImages {
    std::ptrdiff_t batch, height, width;
    std::ptrdiff_t image_step, row_step;  // bytes from one image or row to the next
};

// Writes batch · 3 · height · width floats: pixel by pixel if `channels_last`, else plane by plane. `mean` and `scale` are
// those of the three channels. Runs in the calling thread, as batches are prepared in several.
using NormalizeBytes = void (*)(const ByteImages&, const std::int8_t* from, const float* mean, const float* scale,
                                bool channels_last, float* to);

#define SVERTKA_NORMALIZE_BYTES(instructions)                                                                          \
    namespace instructions {                                                                                           \
    void normalize_bytes(const ByteImages&, const std::int8_t*, const float*, const float*, bool, float*);             \
    }

SVERTKA_NORMALIZE_BYTES(avx512)
SVERTKA_NORMALIZE_BYTES(avx2)
SVERTKA_NORMALIZE_BYTES(baseline)

}  // namespace svertka
