// A network's steps one after the other, without Python between them.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "direct/direct.h"
#include "scratch.h"
#include "winograd/winograd.h"

namespace svertka {

// Where a map lies: so many numbers behind the beginning of one of the pieces of memory that a run is given.
struct Place {
    int memory = -1;  // fewer than 0: nowhere
    std::ptrdiff_t offset = 0;

    float* in(const std::vector<float*>& memories) const { return memory < 0 ? nullptr : memories[memory] + offset; }
};

// A `Finish` whose residual is known only in a run.
struct Ending {
    const float* bias;
    Place residual;
    std::ptrdiff_t residual_step;
    float low, high;

    Finish in(const std::vector<float*>& memories) const {
        return {bias, residual.in(memories), residual_step, low, high};
    }
};

// The kernels are those of the instruction set that was used when a step was added.
class Program {
  public:
    Program(const Winograd& winograd, const Direct& direct) : winograd_(winograd), direct_(direct) {}

    void add_winograd(const Convolution& shape, Place input, const void* weights, Precision precision,
                      const Ending& ending, Place output) {
        add([=, function = winograd_.forward](const Memories& memories, int threads) {
            function(shape, input.in(memories), weights, Order::packed, precision, ending.in(memories),
                     output.in(memories), threads);
        });
    }

    void add_direct(const Window& shape, Place input, const void* weights, Precision precision, const Ending& ending,
                    Place output) {
        add([=, function = direct_.forward](const Memories& memories, int threads) {
            function(shape, input.in(memories), weights, precision, ending.in(memories), output.in(memories), threads);
        });
    }

    void add_grouped(const Window& shape, std::ptrdiff_t groups, Place input, const float* weights,
                     const Ending& ending, Place output) {
        add([=, function = direct_.grouped](const Memories& memories, int threads) {
            function(shape, groups, input.in(memories), weights, ending.in(memories), output.in(memories), threads);
        });
    }

    void add_pool(const Window& shape, Pooling pooling, Place input, Place output) {
        add([=, function = direct_.pool](const Memories& memories, int threads) {
            function(shape, pooling, input.in(memories), output.in(memories), threads);
        });
    }

    void add_sum(std::ptrdiff_t pixels, std::ptrdiff_t channels, Place input, std::ptrdiff_t in_step,
                 const Ending& ending, Place output, std::ptrdiff_t out_step) {
        add([=, function = direct_.add](const Memories& memories, int threads) {
            function(pixels, channels, input.in(memories), in_step, ending.in(memories), output.in(memories), out_step,
                     threads);
        });
    }

    // For each of `pictures` all of `parts`, in any order, each by one thread. The memories of a part are `room` floats
    // of the thread's own and then `maps`, each of which begins for the next picture so many numbers further.
    void add_parts(std::ptrdiff_t pictures, const std::vector<Program>& parts, std::ptrdiff_t room,
                   const std::vector<std::pair<Place, std::ptrdiff_t>>& maps) {
        const auto count = static_cast<std::ptrdiff_t>(parts.size());
        add([=](const Memories& memories, int threads) {
            std::exception_ptr failure;  // of any thread: none may leave a parallel region by an exception
#pragma omp parallel for num_threads(threads) schedule(dynamic)
            for (std::ptrdiff_t number = 0; number < pictures * count; ++number) {
                try {
                    Memories own{scratch(room, Use::bands)};
                    for (const auto& [place, step] : maps) {
                        float* const first = place.in(memories);
                        own.push_back(first ? first + number / count * step : nullptr);
                    }
                    const Program& part = parts[number % count];
                    part.run(own, 0, part.size(), 1);
                } catch (...) {
#pragma omp critical(svertka_failure)
                    failure = std::current_exception();
                }
            }
            if (failure) std::rethrow_exception(failure);
        });
    }

    std::size_t size() const { return steps_.size(); }

    // Steps `first` to `last`.
    void run(const std::vector<float*>& memories, std::size_t first, std::size_t last, int threads) const {
        for (std::size_t step = first; step < last; ++step) steps_[step](memories, threads);
    }

  private:
    using Memories = std::vector<float*>;
    using Step = std::function<void(const Memories&, int)>;

    void add(Step step) { steps_.push_back(std::move(step)); }

    Winograd winograd_;
    Direct direct_;
    std::vector<Step> steps_;
};

}  // namespace svertka
