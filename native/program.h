// A network's steps, run in order without returning to Python.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "direct/direct.h"
#include "direct/product_softmax_reduction_interpolation.h"
#include "int8/int8.h"
#include "scratch.h"
#include "winograd/winograd.h"

namespace svertka {

// The location of a feature map: an offset in one of the memories passed to a run, in numbers of the map.
struct Place {
    int memory = -1;  // negative: none
    std::ptrdiff_t offset = 0;

    float* in(const std::vector<float*>& memories) const { return memory < 0 ? nullptr : memories[memory] + offset; }
    std::uint8_t* bytes_in(const std::vector<float*>& memories) const {
        return memory < 0 ? nullptr : reinterpret_cast<std::uint8_t*>(memories[memory]) + offset;
    }
    void* numbers_in(const std::vector<float*>& memories, Storage storage) const {
        if (storage == Storage::byte) return bytes_in(memories);
        if (storage == Storage::float32 || memory < 0) return in(memories);
        return reinterpret_cast<BFloat16*>(memories[memory]) + offset;
    }
};

inline Storage storage_of(bool narrow) { return narrow ? Storage::bfloat16 : Storage::float32; }

// An `Epilogue` whose residual is located when the program runs.
struct PlacedEpilogue {
    const float* bias;
    Place residual;
    std::ptrdiff_t residual_step;
    float low, high;
    Activation activation;
    float slope;
    bool multiply, residual_last;

    // `narrow`: whether the residual consists of bfloat16.
    Epilogue in(const std::vector<float*>& memories, bool narrow = false) const {
        const void* const other = residual.numbers_in(memories, storage_of(narrow));
        return {bias, other, residual_step, low, high, activation, slope, multiply, residual_last};
    }
};

// Each step uses the instruction set that was selected when it was added.
class Program {
  public:
    Program(const Winograd& winograd, const Direct& direct, const Int8& int8, const TensorSteps& tensor_steps)
        : winograd_(winograd), direct_(direct), int8_(int8), tensor_steps_(tensor_steps) {}

    void add_winograd(const Convolution& shape, Place input, const void* weights, Precision precision,
                      const PlacedEpilogue& epilogue, Place output, NarrowMaps narrow) {
        add([=, function = winograd_.forward](const Memories& memories, int threads) {
            function(shape, input.numbers_in(memories, storage_of(narrow.input)), weights, Order::packed, precision,
                     epilogue.in(memories, narrow.output), output.numbers_in(memories, storage_of(narrow.output)), narrow,
                     threads);
        });
    }

    // `gate`: of the input; its images are `gate_step` floats apart.
    void add_direct(const Window& shape, Place input, Place gate, std::ptrdiff_t gate_step, const void* weights,
                    Precision precision, const PlacedEpilogue& epilogue, Place output, NarrowMaps narrow) {
        add([=, function = direct_.forward](const Memories& memories, int threads) {
            function(shape, input.numbers_in(memories, storage_of(narrow.input)), {gate.in(memories), gate_step}, weights,
                     precision, epilogue.in(memories, narrow.output),
                     output.numbers_in(memories, storage_of(narrow.output)), narrow, threads);
        });
    }

    void add_grouped(const Window& shape, std::ptrdiff_t groups, Place input, const float* weights,
                     const PlacedEpilogue& epilogue, Place output, bool narrow) {
        add([=, function = direct_.grouped, storage = storage_of(narrow)](const Memories& memories, int threads) {
            function(shape, groups, input.numbers_in(memories, storage), weights, epilogue.in(memories, narrow),
                     output.numbers_in(memories, storage), narrow, threads);
        });
    }

    void add_pool(const Window& shape, Pooling pooling, Place input, Place output, bool narrow) {
        add([=, function = direct_.pool, storage = storage_of(narrow)](const Memories& memories, int threads) {
            function(shape, pooling, input.numbers_in(memories, storage), output.numbers_in(memories, storage), narrow,
                     threads);
        });
    }

    // A tensor, or what is located at a place; neither for none.
    struct FloatOperand {
        Place place;
        const float* tensor = nullptr;

        const float* in(const std::vector<float*>& memories) const { return tensor ? tensor : place.in(memories); }
    };

    void add_elementwise(const Strided& shape, Combination combination, FloatOperand input, FloatOperand other,
                         const PlacedEpilogue& epilogue, Place output) {
        add([=, function = direct_.elementwise](const Memories& memories, int threads) {
            function(shape, combination, input.in(memories), other.in(memories), epilogue.in(memories),
                     output.in(memories), threads);
        });
    }

    void add_normalize(const Normalization& shape, Place input, const float* weight, const float* bias,
                       const PlacedEpilogue& epilogue, Place output) {
        add([=, function = direct_.normalize](const Memories& memories, int threads) {
            function(shape, input.in(memories), weight, bias, epilogue.in(memories), output.in(memories), threads);
        });
    }

    // `after`: without its residual, which is at `residual`.
    void add_int8_convolution(const Window& shape, Int8Kernel kernel, Place input, std::uint8_t zero, const void* weights,
                              const Requantization& after, Place residual, Place output) {
        const auto function = kernel == Int8Kernel::depthwise  ? int8_.depthwise
                              : kernel == Int8Kernel::winograd ? int8_.winograd
                                                               : int8_.convolve;
        add([=](const Memories& memories, int threads) {
            Requantization placed = after;
            placed.residual = residual.bytes_in(memories);
            function(shape, input.bytes_in(memories), zero, weights, placed,
                     output.numbers_in(memories, after.to_float ? Storage::float32 : Storage::byte), threads);
        });
    }

    void add_int8_pool(const Window& shape, const BytePooling& pooling, Place input, Place output) {
        add([=, function = int8_.pool](const Memories& memories, int threads) {
            function(shape, pooling, input.bytes_in(memories), output.bytes_in(memories), threads);
        });
    }

    // Operands are at their places, or where they point to.
    void add_int8_elementwise(const Strided& shape, const ByteOperation& operation, Place input, const Operand& of_input,
                              Place other, const Operand& of_other, Place output) {
        add([=, function = int8_.elementwise](const Memories& memories, int threads) {
            const auto placed = [&](Place place, Operand operand) {
                if (place.memory >= 0) operand.numbers = place.numbers_in(memories, operand.storage);
                return operand;
            };
            function(shape, operation, placed(input, of_input), placed(other, of_other),
                     output.numbers_in(memories, operation.storage), threads);
        });
    }

    void add_matrix_product(const MatrixProduct& shape, Place left, Place right, Place output) {
        add([=, function = tensor_steps_.matrix_product](const Memories& memories, int threads) {
            function(shape, left.in(memories), right.in(memories), output.in(memories), threads);
        });
    }

    void add_softmax(const Softmax& shape, Place input, FloatOperand other, Place output) {
        add([=, function = tensor_steps_.softmax](const Memories& memories, int threads) {
            function(shape, input.in(memories), other.in(memories), output.in(memories), threads);
        });
    }

    void add_reduction(const Reduction& shape, Statistic statistic, Place input, const PlacedEpilogue& epilogue,
                       Place output) {
        add([=, function = tensor_steps_.reduce](const Memories& memories, int threads) {
            function(shape, statistic, input.in(memories), epilogue.in(memories), output.in(memories), threads);
        });
    }

    void add_interpolation(const Interpolation& shape, Place input, const PlacedEpilogue& epilogue, Place output) {
        add([=, function = tensor_steps_.interpolate](const Memories& memories, int threads) {
            function(shape, input.in(memories), epilogue.in(memories), output.in(memories), threads);
        });
    }

    // For each of `images`, run all `parts`, in any order, each on one thread. Memory 0 of a part is `room` floats of
    // the thread's own; the others are `maps`, with the number of floats from one image to the next.
    void add_parts(std::ptrdiff_t images, const std::vector<Program>& parts, std::ptrdiff_t room,
                   const std::vector<std::pair<Place, std::ptrdiff_t>>& maps) {
        const auto count = static_cast<std::ptrdiff_t>(parts.size());
        add([=](const Memories& memories, int threads) {
            std::exception_ptr failure;  // exceptions must not leave a parallel region
#pragma omp parallel for num_threads(threads) schedule(dynamic)
            for (std::ptrdiff_t number = 0; number < images * count; ++number) {
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

    // Run the steps from `first` to `last`, excluding `last`.
    void run(const std::vector<float*>& memories, std::size_t first, std::size_t last, int threads) const {
        for (std::size_t step = first; step < last; ++step) steps_[step](memories, threads);
    }

  private:
    using Memories = std::vector<float*>;
    using Step = std::function<void(const Memories&, int)>;

    void add(Step step) { steps_.push_back(std::move(step)); }

    Winograd winograd_;
    Direct direct_;
    Int8 int8_;
    TensorSteps tensor_steps_;
    std::vector<Step> steps_;
};

}  // namespace svertka
