// Loops that threads share.
#pragma once

#include <omp.h>

#include "simd.h"

namespace svertka::INSTRUCTIONS {

// Calls body(number, thread) for each number below `count`, on at most `threads` threads. One thread runs the loop as it
// is: starting a team of one takes as long as a small step.
template <class Body>
ALWAYS_INLINE void parallel_for(Index count, int threads, Body body) {
    if (threads == 1) {
        for (Index number = 0; number < count; ++number) body(number, 0);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index number = 0; number < count; ++number) body(number, omp_get_thread_num());
}

}  // namespace svertka::INSTRUCTIONS
