// A program that knows how much of each memory its steps read and write, and runs only in memories that have it.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "program.h"
#include "tensor.h"

namespace svertka {

// An `Ending` as Python sees it.
struct Finishing {
    nb::object bias;  // a tensor, or None
    Place residual;
    Size residual_step;
    float low, high;
};

class BoundedProgram {
  public:
    BoundedProgram(const Winograd& winograd, const Direct& direct)
        : winograd_(winograd), direct_(direct), program_(winograd, direct) {}

    void add_winograd(const Convolution& shape, Place input, const nb::object& weights, Precision precision,
                      const Finishing& ending, Place output) {
        check(shape);
        const Size count = winograd_.packed_size(shape.in_channels, shape.out_channels);
        const void* numbers = kept(weights, count, precision);
        reads(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        const Ending after = finish(ending, pixels_out(shape), shape.out_channels);
        reads(output, reach(pixels_out(shape), shape.out_step, shape.out_channels));
        program_.add_winograd(shape, input, numbers, precision, after, output);
    }

    void add_direct(const Window& shape, Place input, const nb::object& weights, Precision precision,
                    const Finishing& ending, Place output) {
        check(shape);
        const void* numbers = kept(weights, weights_of(shape, precision, direct_.panel), precision);
        reads(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        const Ending after = finish(ending, pixels_out(shape), shape.out_channels);
        reads(output, reach(pixels_out(shape), shape.out_step, shape.out_channels));
        program_.add_direct(shape, input, numbers, precision, after, output);
    }

    void add_grouped(const Window& shape, Size groups, Place input, const nb::object& weights, const Finishing& ending,
                     Place output) {
        check(shape);
        need_between("groups", groups, 1, std::min(shape.in_channels, shape.out_channels));
        const Size in = shape.in_channels / groups, out = shape.out_channels / groups;
        need(in * groups == shape.in_channels && out * groups == shape.out_channels && direct_.computes_groups(in, out),
             "the kernels do not compute " + std::to_string(groups) + " groups of " + std::to_string(shape.in_channels) +
                 " input and " + std::to_string(shape.out_channels) + " output channels");
        const Size count = product({shape.y.taps, shape.x.taps, in, shape.out_channels});
        const auto numbers = static_cast<const float*>(kept(weights, count, Precision::float32));
        reads(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        const Ending after = finish(ending, pixels_out(shape), shape.out_channels);
        reads(output, reach(pixels_out(shape), shape.out_step, shape.out_channels));
        program_.add_grouped(shape, groups, input, numbers, after, output);
    }

    void add_pool(const Window& shape, Pooling pooling, Place input, Place output) {
        check(shape);
        need(shape.in_channels == shape.out_channels, "pooling gives as many channels as there are");
        reads(input, reach(pixels_in(shape), shape.in_step, shape.in_channels));
        reads(output, reach(pixels_out(shape), shape.out_step, shape.out_channels));
        program_.add_pool(shape, pooling, input, output);
    }

    void add_sum(Size pixels, Size channels, Place input, Size in_step, const Finishing& ending, Place output,
                 Size out_step) {
        need_between("pixels", pixels, 0, PTRDIFF_MAX);
        need_between("channels", channels, 1, largest);
        need_between("in_step", in_step, channels, largest);
        need_between("out_step", out_step, channels, largest);
        reads(input, reach(pixels, in_step, channels));
        const Ending after = finish(ending, pixels, channels);
        reads(output, reach(pixels, out_step, channels));
        program_.add_sum(pixels, channels, input, in_step, after, output, out_step);
    }

    void add_parts(Size pictures, const std::vector<BoundedProgram>& parts, Size room,
                   const std::vector<std::pair<Place, Size>>& maps) {
        need_between("pictures", pictures, 0, largest);
        need_between("room", room, 0, PTRDIFF_MAX / 64);
        std::vector<Program> programs;
        for (const BoundedProgram& part : parts) {
            need(part.needed_.size() <= maps.size() + 1, "a part uses a memory that it is not given");
            for (std::size_t memory = 0; memory < part.needed_.size(); ++memory) {
                const Size count = part.needed_[memory];
                if (memory == 0) {
                    need(count <= room, "a part needs " + std::to_string(count) + " numbers of its own, room is for " +
                                            std::to_string(room));
                } else if (pictures > 0) {
                    const auto& [place, step] = maps[memory - 1];
                    need_between("step", step, 0, PTRDIFF_MAX);
                    reads(place, product({pictures - 1, step}) + count);
                }
            }
            programs.push_back(part.program_);
            tensors_.insert(tensors_.end(), part.tensors_.begin(), part.tensors_.end());
        }
        program_.add_parts(pictures, programs, room, maps);
    }

    std::size_t size() const { return program_.size(); }

    // Steps `first` to `last`.
    void run(const nb::list& memories, std::size_t first, std::size_t last, int threads) const {
        need(first <= last && last <= size(), "there are " + std::to_string(size()) + " steps, not from " +
                                                  std::to_string(first) + " to " + std::to_string(last));
        need_between("threads", threads, 1, most_threads);
        need(memories.size() >= needed_.size(), "steps use " + std::to_string(needed_.size()) + " memories, given are " +
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
        need(place.memory >= 0, "a step has no place for what it reads or writes");
        need_between("offset", place.offset, 0, PTRDIFF_MAX / 64);
        const auto memory = static_cast<std::size_t>(place.memory);
        if (needed_.size() <= memory) needed_.resize(memory + 1, 0);
        needed_[memory] = std::max(needed_[memory], place.offset + count);
    }

    const void* kept(const nb::object& weights, Size count, Precision precision) {
        const Tensor tensor("weights", weights);
        tensors_.push_back(weights);
        if (precision == Precision::float32) return tensor.numbers<float>(count);
        return tensor.numbers<BFloat16>(count);
    }

    Ending finish(const Finishing& ending, Size pixels, Size channels) {
        const Tensor bias("bias", ending.bias);
        tensors_.push_back(ending.bias);
        if (ending.residual.memory >= 0) {
            need_between("residual_step", ending.residual_step, channels, largest);
            reads(ending.residual, reach(pixels, ending.residual_step, channels));
        }
        return {bias.numbers_if_any<float>(channels), ending.residual, ending.residual_step, ending.low, ending.high};
    }

    Winograd winograd_;
    Direct direct_;
    Program program_;
    std::vector<Size> needed_;         // numbers, of each memory
    std::vector<nb::object> tensors_;  // whose numbers the steps read: they live as long
};

}  // namespace svertka
