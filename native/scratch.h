// Scratch memory of the calling thread, kept between calls because new pages take more time than a small layer.
#pragma once

#include <cstddef>

namespace svertka {

enum class Use { kernel, bands };  // inside a kernel, and between the kernels of a tile

// Return at least `count` uninitialized floats, page-aligned. The thread's next call with the same `use` returns the same
// memory. Throws std::bad_alloc. Compiled once, not once per instruction set: see simd.h.
float* scratch(std::size_t count, Use use = Use::kernel);

// For tests: if `on`, every call of `scratch` fills the memory with NaN, which reveals reads of uninitialized memory.
void poison_scratch(bool on);

}  // namespace svertka
