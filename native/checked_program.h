// A program that records how much of each memory its steps read and write, and checks the memories before it runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "program.h"
#include "python_tensor.h"

namespace svertka {

// The arguments of a `PlacedEpilogue` from Python.
struct EpilogueSpec {
    nb::object bias;  // a tensor, or None
    Place residual;
    Size residual_step;
    float low, high;
    Activation activation;
    float slope;
    bool multiply, residual_last;
};

// The arguments of a `Requantization` from Python.
struct RequantizationSpec {
    nb::object start, scale, shift;  // tensors: int32, float32, float32
    Place residual;
    Size residual_step;
    Affine real;
    Activation activation;
    float slope;
    bool multiply, residual_last;
    Affine stored;
    float low, high;
    bool to_float;
};

class CheckedProgram {
  public:
    CheckedProgram(const Winograd& winograd, const Direct& direct, const Int8& int8, const TensorSteps& tensor_steps)
        : winograd_(winograd), direct_(direct), int8_(int8), program_(winograd, direct, int8, tensor_steps) {}

    void add_winograd(const Convolution& shape, Place input, const nb::object& weights, Precision precision,
                      const EpilogueSpec& epilogue, Place output, NarrowMaps narrow) {
        check(shape);
        require_products_of_bfloat16(narrow, precision);
        check_tile(shape, precision != Precision::bfloat16 && !narrow.input);
        const Size count = winograd_.packed_size(packed_inputs(shape, precision), shape.out_channels);
        const void* numbers = kept(weights, count, precision);
        reads_map(shape, input, narrow.input);
        const PlacedEpilogue after = place_epilogue(epilogue, pixels_out(shape), shape.out_channels, narrow.output);
        writes_map(shape, output, narrow.output);
        program_.add_winograd(shape, input, numbers, precision, after, output, narrow);
    }

    void add_direct(const Window& shape, Place input, const nb::object& weights, Precision precision,
                    const EpilogueSpec& epilogue, Place output, Place gate, Size gate_step, NarrowMaps narrow) {
        check(shape);
        require_products_of_bfloat16(narrow, precision);
        const bool whole_pairs = shape.in_channels % 2 == 0 && shape.in_step % 2 == 0;
        require(!narrow.input || whole_pairs, "a map of bfloat16 has an even number of channels and an even in_step");
        require(!narrow.input || gate.memory < 0, "a gate needs an input of floats");
        const void* numbers = kept(weights, weights_of(shape, precision, direct_.panel_width), precision);
        if (gate.memory >= 0) {
            const bool simple = shape.y.taps == 1 && shape.x.taps == 1 && shape.y.pad == 0 && shape.x.pad == 0;
            require(simple, "a gate needs a 1×1 kernel without padding");
            require_between("gate_step", gate_step, shape.in_channels, max_size);
            reads(gate, reach(shape.batch, gate_step, shape.in_channels));
        }
        reads_map(shape, input, narrow.input);
        const PlacedEpilogue after = place_epilogue(epilogue, pixels_out(shape), shape.out_channels, narrow.output);
        writes_map(shape, output, narrow.output);
        program_.add_direct(shape, input, gate, gate_step, numbers, precision, after, output, narrow);
    }

    void add_grouped(const Window& shape, Size groups, Place input, const nb::object& weights, const EpilogueSpec& epilogue,
                     Place output, bool narrow) {
        check(shape);
        const Size count = weights_of(shape, groups);
        const auto numbers = static_cast<const float*>(kept(weights, count, Precision::float32));
        reads_map(shape, input, narrow);
        const PlacedEpilogue after = place_epilogue(epilogue, pixels_out(shape), shape.out_channels, narrow);
        writes_map(shape, output, narrow);
        program_.add_grouped(shape, groups, input, numbers, after, output, narrow);
    }

    void add_pool(const Window& shape, Pooling pooling, Place input, Place output, bool narrow) {
        check(shape);
        require(shape.in_channels == shape.out_channels, "pooling gives as many channels as there are");
        reads_map(shape, input, narrow);
        writes_map(shape, output, narrow);
        program_.add_pool(shape, pooling, input, output, narrow);
    }

    // `input`, `other`: a tensor, a place, or None for `other`.
    void add_elementwise(const Strided& shape, Combination combination, const nb::object& input, const nb::object& other,
                         const EpilogueSpec& epilogue, Place output) {
        check(shape);
        require(epilogue.residual.memory < 0 && epilogue.bias.is_none(), "elementwise operations have no bias or residual");
        require(other.is_none() == has_one_operand(combination), "two tensors are combined, or one is given alone");
        require(!input.is_none(), "elementwise operations have an input");
        const Program::FloatOperand first = reads_operand(input, extent(shape.sizes, shape.input));
        const Program::FloatOperand second = reads_operand(other, extent(shape.sizes, shape.other));
        reads(output, extent(shape.sizes, shape.output));
        program_.add_elementwise(shape, combination, first, second, place_epilogue(epilogue, 0, 1), output);
    }

    void add_normalize(const Normalization& shape, Place input, const nb::object& weight, const nb::object& bias,
                       const EpilogueSpec& epilogue, Place output) {
        require_between("batch", shape.batch, 0, max_size);
        require_between("pixels", shape.pixels, 1, max_size);
        require_between("channels", shape.channels, 1, max_size);
        require_between("groups", shape.groups, 1, shape.channels);
        require(shape.channels % shape.groups == 0, "groups must divide the channels");
        require_between("in_step", shape.in_step, shape.channels, max_size);
        require_between("out_step", shape.out_step, shape.channels, max_size);
        require(epilogue.residual.memory < 0 && epilogue.bias.is_none(), "normalization has no residual");
        const Size pixels = product({shape.batch, shape.pixels});
        const Tensor factors("weight", weight), summands("bias", bias);
        tensors_.push_back(weight);
        tensors_.push_back(bias);
        reads(input, reach(pixels, shape.in_step, shape.channels));
        reads(output, reach(pixels, shape.out_step, shape.channels));
        program_.add_normalize(shape, input, factors.numbers_if_any<float>(shape.channels),
                               summands.numbers_if_any<float>(shape.channels), place_epilogue(epilogue, 0, 1), output);
    }

    void add_int8_convolution(const Window& shape, Int8Kernel kernel, Place input, int zero, const nb::object& weights,
                              const RequantizationSpec& after, Place output) {
        check(shape);
        require_between("zero", zero, 0, 255);
        const bool depthwise = kernel == Int8Kernel::depthwise;
        if (kernel == Int8Kernel::winograd)
            require(has_winograd_window(shape) && shape.in_channels % int8_.numbers_per_factor == 0,
                    "Winograd needs 3×3 taps, stride and dilation 1, and whole factors of channels");
        require(!depthwise || shape.in_channels == shape.out_channels, "a depthwise convolution has a filter for each channel");
        const Size channels = rounded_up(shape.out_channels, depthwise ? int8_.channel_width : int8_.panel_width);
        const Size per = int8_.numbers_per_factor;
        const Size depth = depthwise ? product({shape.y.taps, rounded_up(shape.x.taps, per)})
                                     : product({shape.y.taps, rounded_up(product({shape.x.taps, shape.in_channels}), per)});
        const Size count = product({channels, depth});
        const void* numbers = nullptr;
        if (per == 4)
            numbers = kept_as<std::int8_t>("weights", weights, count);
        else
            numbers = kept_as<std::int16_t>("weights", weights, count);
        check_zero_point_sums(shape, depthwise);
        require_range(after.low, after.high, after.to_float);
        Requantization placed{.start = kept_as<std::int32_t>("start", after.start, channels),
                              .scale = kept_as<float>("scale", after.scale, channels),
                              .shift = kept_as<float>("shift", after.shift, channels),
                              .residual_step = after.residual_step,
                              .real = after.real,
                              .activation = after.activation,
                              .slope = after.slope,
                              .multiply = after.multiply,
                              .residual_last = after.residual_last,
                              .stored = after.stored,
                              .low = after.low,
                              .high = after.high,
                              .to_float = after.to_float};
        reads_bytes(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        if (after.residual.memory >= 0) {
            require_between("residual_step", after.residual_step, shape.out_channels, max_size);
            reads_bytes(after.residual, reach(pixels_out(shape), after.residual_step, shape.out_channels));
        }
        reads_numbers(output, reach(pixels_out(shape), shape.out_step, shape.out_channels),
                      after.to_float ? Storage::float32 : Storage::byte);
        program_.add_int8_convolution(shape, kernel, input, static_cast<std::uint8_t>(zero), numbers, placed,
                                      after.residual, output);
    }

    void add_int8_pool(const Window& shape, Pooling pooling, int zero, Affine mean, Place input, Place output) {
        check(shape);
        require_between("zero", zero, 0, 255);
        require(shape.in_channels == shape.out_channels, "pooling gives as many channels as there are");
        require(product({shape.y.taps, shape.x.taps}) < max_size / 256, "a pooling window has too many pixels for 32-bit sums");
        reads_bytes(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        reads_bytes(output, reach(pixels_out(shape), shape.out_step, shape.out_channels));
        program_.add_int8_pool(shape, {pooling, static_cast<std::uint8_t>(zero), mean}, input, output);
    }

    // Operands: a place, or a tensor of float32, or None. `real`: the scale and shift of one of 8 bits.
    void add_int8_elementwise(const Strided& shape, const ByteOperation& operation, const nb::object& input, Storage storage,
                              std::pair<float, float> real, const nb::object& other, Storage other_storage,
                              std::pair<float, float> other_real, Place output) {
        check(shape);
        require_range(operation.low, operation.high, operation.storage != Storage::byte);
        require(other.is_none() == (operation.combination == Combination::first),
                "two tensors are combined, or one is given alone");
        const auto [place, first] = operand(input, extent(shape.sizes, shape.input), storage, real);
        const auto [other_place, second] = operand(other, extent(shape.sizes, shape.other), other_storage, other_real);
        reads_numbers(output, extent(shape.sizes, shape.output), operation.storage);
        program_.add_int8_elementwise(shape, operation, place, first, other_place, second, output);
    }

    void add_matrix_product(const MatrixProduct& shape, Place left, Place right, Place output) {
        const auto& [a, b, c] = shape.batch;
        const std::array<Size, 5> of_left{a, b, c, shape.rows, shape.depth}, of_right{a, b, c, shape.depth, shape.columns};
        const std::array<Size, 5> of_output{a, b, c, shape.rows, shape.columns};
        check_axes(of_left, {shape.left});
        check_axes(of_right, {shape.right});
        check_axes(of_output, {shape.output});
        require_between("depth", shape.depth, 1, max_size);
        product({a, b, c, shape.rows, shape.columns});
        reads(left, extent(of_left, shape.left));
        reads(right, extent(of_right, shape.right));
        reads(output, extent(of_output, shape.output));
        program_.add_matrix_product(shape, left, right, output);
    }

    // `other`: a tensor, a place, or None.
    void add_softmax(const Softmax& shape, Place input, const nb::object& other, Place output) {
        check_axes(shape.sizes, {shape.input, shape.other, shape.output});
        require(shape.input[4] == 1 && shape.output[4] == 1 && (shape.other[4] == 0 || shape.other[4] == 1),
                "softmax reads and writes contiguous numbers");
        reads(input, extent(shape.sizes, shape.input));
        const Program::FloatOperand summand = reads_operand(other, extent(shape.sizes, shape.other));
        reads(output, extent(shape.sizes, shape.output));
        program_.add_softmax(shape, input, summand, output);
    }

    void add_reduction(const Reduction& shape, Statistic statistic, Place input, const EpilogueSpec& epilogue,
                       Place output) {
        check_axes(shape.sizes, {shape.input, shape.output});
        require(shape.input[5] == 1, "reductions read contiguous numbers");
        require(shape.output[3] == 0 && shape.output[4] == 0 && (shape.output[5] == 0 || !shape.reduces_innermost),
                "what is reduced has no place in the output");
        require(epilogue.residual.memory < 0 && epilogue.bias.is_none(), "reductions have no bias or residual");
        reads(input, extent(shape.sizes, shape.input));
        reads(output, extent(shape.sizes, shape.output));
        program_.add_reduction(shape, statistic, input, place_epilogue(epilogue, 0, 1), output);
    }

    void add_interpolation(Size batch, Size channels, const InterpolationAxis& y, const InterpolationAxis& x, Place input,
                           Size in_step, const EpilogueSpec& epilogue, Place output, Size out_step) {
        require_between("batch", batch, 0, max_size);
        require_between("channels", channels, 1, max_size);
        require_between("in_step", in_step, channels, max_size);
        require_between("out_step", out_step, channels, max_size);
        for (const InterpolationAxis& axis : {y, x}) {
            require_between("size", axis.size, 1, max_size);
            require_between("out_size", axis.out_size, 1, max_size);
            require_between("taps", axis.taps, 1, max_size);
            const auto count = static_cast<std::size_t>(product({axis.out_size, axis.taps}));
            require(axis.indices.size() == count && axis.weights.size() == count,
                    "an interpolation has indices and weights for each output");
            for (const Size index : axis.indices) require_between("indices", index, 0, axis.size - 1);
        }
        require(epilogue.residual.memory < 0 && epilogue.bias.is_none(), "interpolations have no bias or residual");
        product({x.size, channels});
        reads(input, reach(product({batch, y.size, x.size}), in_step, channels));
        reads(output, reach(product({batch, y.out_size, x.out_size}), out_step, channels));
        program_.add_interpolation({batch, channels, in_step, out_step, y, x}, input, place_epilogue(epilogue, 0, 1), output);
    }

    void add_parts(Size images, const std::vector<CheckedProgram>& parts, Size room,
                   const std::vector<std::pair<Place, Size>>& maps) {
        require_between("pictures", images, 0, max_size);
        require_between("room", room, 0, PTRDIFF_MAX / 64);
        std::vector<Program> programs;
        for (const CheckedProgram& part : parts) {
            require(part.needed_.size() <= maps.size() + 1, "a part uses a memory that it is not given");
            for (std::size_t memory = 0; memory < part.needed_.size(); ++memory) {
                const Size count = part.needed_[memory];
                if (memory == 0) {
                    require(count <= room, "a part needs " + std::to_string(count) + " numbers of its own, room is for " +
                                            std::to_string(room));
                } else if (images > 0) {
                    const auto& [place, step] = maps[memory - 1];
                    require_between("step", step, 0, PTRDIFF_MAX);
                    reads(place, product({images - 1, step}) + count);
                }
            }
            programs.push_back(part.program_);
            tensors_.insert(tensors_.end(), part.tensors_.begin(), part.tensors_.end());
        }
        program_.add_parts(images, programs, room, maps);
    }

    std::size_t size() const { return program_.size(); }

    // Run the steps from `first` to `last`, excluding `last`.
    void run(const nb::list& memories, std::size_t first, std::size_t last, int threads) const {
        require(first <= last && last <= size(), "there are " + std::to_string(size()) + " steps, not from " +
                                                  std::to_string(first) + " to " + std::to_string(last));
        require_between("threads", threads, 1, max_threads);
        require(memories.size() >= needed_.size(), "steps use " + std::to_string(needed_.size()) + " memories, given are " +
                                                    std::to_string(memories.size()));
        std::vector<float*> places;
        for (std::size_t memory = 0; memory < memories.size(); ++memory) {
            const std::string name = "memory " + std::to_string(memory);
            const Tensor tensor(name.c_str(), memories[memory]);
            places.push_back(tensor.numbers<float>(memory < needed_.size() ? needed_[memory] : 0));
        }
        const nb::gil_scoped_release unlocked;
        program_.run(places, first, last, threads);
    }

  private:
    void reads(Place place, Size count) {
        if (count == 0) return;
        require(place.memory >= 0, "a step has no place for what it reads or writes");
        require_between("offset", place.offset, 0, PTRDIFF_MAX / 64);
        const auto memory = static_cast<std::size_t>(place.memory);
        if (needed_.size() <= memory) needed_.resize(memory + 1, 0);
        needed_[memory] = std::max(needed_[memory], place.offset + count);
    }

    void reads_bytes(Place place, Size count) {
        if (count == 0) return;
        require_between("offset", place.offset, 0, PTRDIFF_MAX / 64);
        reads({place.memory, 0}, (place.offset + count + 3) / 4);
    }

    void reads_numbers(Place place, Size count, Storage storage) {
        if (storage == Storage::float32) return reads(place, count);
        if (storage == Storage::byte || count == 0) return reads_bytes(place, count);
        require_between("offset", place.offset, 0, PTRDIFF_MAX / 64);
        reads_bytes({place.memory, 2 * place.offset}, 2 * count);
    }

    template <class Shape>
    void reads_map(const Shape& shape, Place place, bool narrow) {
        reads_numbers(place, reach(pixels_in(shape), shape.in_step, shape.in_channels), storage_of(narrow));
    }

    template <class Shape>
    void writes_map(const Shape& shape, Place place, bool narrow) {
        reads_numbers(place, reach(pixels_out(shape), shape.out_step, shape.out_channels), storage_of(narrow));
    }

    static void require_products_of_bfloat16(NarrowMaps narrow, Precision precision) {
        require(precision == Precision::bfloat16 || !(narrow.input || narrow.output),
                "maps of bfloat16 need products of bfloat16");
    }

    // The place of an operand, or the tensor; neither for None.
    std::pair<Place, Operand> operand(const nb::object& from, Size count, Storage storage, std::pair<float, float> real) {
        Place place;
        Operand found{.storage = storage, .real = {real.first, real.second}};
        if (nb::isinstance<Place>(from)) {
            place = nb::cast<Place>(from);
            reads_numbers(place, count, storage);
        } else if (!from.is_none()) {
            require(storage == Storage::float32, "a tensor is float32");
            found.numbers = kept_as<float>("operand", from, count);
        }
        return {place, found};
    }

    // Sums of products of 8 bits, and what they begin with, must fit in 32 bits.
    static void check_zero_point_sums(const Window& shape, bool depthwise) {
        const Size terms = product({shape.y.taps, shape.x.taps, depthwise ? 1 : shape.in_channels});
        require(terms <= max_size / (255 * 128), std::to_string(terms) + " products of 8 bits may exceed a sum of 32 bits");
    }

    static void require_range(float low, float high, bool floats) {
        require(low <= high && (floats || (low >= 0 && high <= 255)), "results of 8 bits are from 0 to 255");
    }

    static bool has_winograd_window(const Window& shape) {
        const auto fits = [](const WindowAxis& axis) { return axis.taps == 3 && axis.stride == 1 && axis.dilation == 1; };
        return fits(shape.y) && fits(shape.x);
    }

    static Size rounded_up(Size size, Size part) { return (size + part - 1) / part * part; }

    template <class Number>
    const Number* kept_as(const char* name, const nb::object& numbers, Size count) {
        tensors_.push_back(numbers);
        return Tensor(name, numbers).numbers<Number>(count);
    }

    // Where an operand of `count` numbers lies: a tensor, a place, or None.
    Program::FloatOperand reads_operand(const nb::object& operand, Size count) {
        if (operand.is_none()) return {};
        if (!nb::isinstance<Place>(operand))
            return {{}, static_cast<const float*>(kept(operand, count, Precision::float32))};
        const Place place = nb::cast<Place>(operand);
        reads(place, count);
        return {place, nullptr};
    }

    template <std::size_t count>
    static void check_axes(const std::array<Size, count>& sizes, std::initializer_list<std::array<Size, count>> strides) {
        for (const Size size : sizes) require_between("sizes", size, 0, max_size);
        for (const auto& axes : strides)
            for (const Size stride : axes) require_between("strides", stride, 0, PTRDIFF_MAX / 64);
    }

    const void* kept(const nb::object& weights, Size count, Precision precision) {
        const Tensor tensor("weights", weights);
        tensors_.push_back(weights);
        if (precision == Precision::float32) return tensor.numbers<float>(count);
        return tensor.numbers<BFloat16>(count);
    }

    PlacedEpilogue place_epilogue(const EpilogueSpec& epilogue, Size pixels, Size channels, bool narrow = false) {
        const Tensor bias("bias", epilogue.bias);
        tensors_.push_back(epilogue.bias);
        if (epilogue.residual.memory >= 0) {
            require_between("residual_step", epilogue.residual_step, channels, max_size);
            reads_numbers(epilogue.residual, reach(pixels, epilogue.residual_step, channels), storage_of(narrow));
        }
        return {bias.numbers_if_any<float>(channels), epilogue.residual, epilogue.residual_step, epilogue.low, epilogue.high,
                epilogue.activation, epilogue.slope, epilogue.multiply, epilogue.residual_last};
    }

    // Values from the first element to the last of a strided tensor.
    template <std::size_t count>
    static Size extent(const std::array<Size, count>& sizes, const std::array<Size, count>& strides) {
        Size last = 0;
        for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
            if (sizes[axis] == 0) return 0;
            last += product({sizes[axis] - 1, strides[axis]});
        }
        return last + 1;
    }

    Winograd winograd_;
    Direct direct_;
    Int8 int8_;
    Program program_;
    std::vector<Size> needed_;         // floats needed in each memory
    std::vector<nb::object> tensors_;  // the weights and biases that the steps read, kept alive
};

}  // namespace svertka
