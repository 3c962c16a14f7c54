// Working memory of the calling thread, kept between calls: fresh pages cost more than the arithmetic of a small layer.
#pragma once

#include <cstddef>

namespace svertka {

enum class Use { kernel, bands };  // a kernel's own, and what lies between kernels

// At least `count` floats, aligned to a page, with whatever was in them; the thread's next call for the same `use` gives
// the same ones. Throws std::bad_alloc. Compiled once and not for each instruction set: see simd.h.
float* scratch(std::size_t count, Use use = Use::kernel);

// For tests. `on`: every call of `scratch` first fills the memory with NaN, so that a kernel that reads what it has not
// written shows it in its results.
void poison_scratch(bool on);

}  // namespace svertka
