// The kernels as Python sees them: addresses and sizes, since handing over a tensor takes longer than a small layer.
// Here the instruction set is picked, once, at import.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "direct/direct.h"
#include "fft/fft.h"
#include "program.h"
#include "scratch.h"
#include "winograd/winograd.h"

namespace nb = nanobind;

namespace svertka {
namespace {

using Address = std::uintptr_t;  // of a tensor's numbers; 0: no tensor

float* numbers(Address address) { return reinterpret_cast<float*>(address); }
BFloat16* halves(Address address) { return reinterpret_cast<BFloat16*>(address); }

struct InstructionSet {
    std::string name;
    Winograd winograd;
    Fourier fourier;
    Direct direct;
    bool bfloat16 = false;  // whether it multiplies bfloat16 numbers; elsewhere that takes longer than with floats
};

// Those that were built and that this processor has, the fastest first.
std::vector<InstructionSet> available() {
    std::vector<InstructionSet> sets;
#ifdef SVERTKA_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16"))  // Fourier's kernels know floats alone
        sets.push_back({"avx512bf16", avx512bf16::winograd_functions(), avx512::fourier_functions,
                        avx512bf16::direct_functions(), true});
    if (avx512) sets.push_back({"avx512", avx512::winograd_functions(), avx512::fourier_functions,
                        avx512::direct_functions()});
    if (avx2) sets.push_back({"avx2", avx2::winograd_functions(), avx2::fourier_functions,
                        avx2::direct_functions()});
#endif
    sets.push_back({"baseline", baseline::winograd_functions(), baseline::fourier_functions,
                        baseline::direct_functions()});
    return sets;
}

const std::vector<InstructionSet>& sets() {
    static const std::vector<InstructionSet> all = available();
    return all;
}

const InstructionSet* used = &sets().front();

void use(const std::string& name) {
    for (const InstructionSet& set : sets())
        if (set.name == name) {
            used = &set;
            return;
        }
    throw nb::value_error(("this processor or this build has no kernels for " + name).c_str());
}

}  // namespace
}  // namespace svertka

NB_MODULE(_kernels, module) {
    using namespace svertka;
    using namespace nb::literals;
    using Size = std::ptrdiff_t;
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;

    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const InstructionSet& set : sets()) names.push_back(set.name);
        return names;
    });
    module.def("use", use, "name"_a);
    module.def("used", [] { return used->name; });
    module.def("poison_scratch", poison_scratch, "on"_a);
    module.def("multiplies_bfloat16", [] { return used->bfloat16; });
    nb::enum_<Precision>(module, "Precision")
        .value("FLOAT32", Precision::float32)
        .value("WIDENED", Precision::widened)
        .value("BFLOAT16", Precision::bfloat16);
    nb::enum_<Order>(module, "Order")
        .value("PLAIN", Order::plain)
        .value("ADJOINT", Order::adjoint)
        .value("PACKED", Order::packed);
    nb::class_<Convolution>(module, "Convolution")
        .def(nb::init<Size, Size, Size, Size, Size, Size, Size, Size, Size>(), "batch"_a, "in_channels"_a,
             "out_channels"_a, "height"_a, "width"_a, "out_height"_a, "out_width"_a, "pad_y"_a, "pad_x"_a)
        .def_rw("in_step", &Convolution::in_step)
        .def_rw("out_step", &Convolution::out_step);

    module.def(
        "winograd_packed_size",
        [](Size in_channels, Size out_channels) { return used->winograd.packed_size(in_channels, out_channels); },
        "in_channels"_a, "out_channels"_a);
    module.def(
        "winograd_pack",
        [](Address weights, Size in_channels, Size out_channels, Address packed, int threads) {
            used->winograd.pack(numbers(weights), in_channels, out_channels, numbers(packed), threads);
        },
        "weights"_a, "in_channels"_a, "out_channels"_a, "packed"_a, "threads"_a, Unlocked());
    module.def(
        "winograd_forward",
        [](const Convolution& shape, Address input, Address weights, Order order, Address bias, Address residual,
           bool relu, bool bfloat16, Precision precision, Address output, int threads) {
            Finish finish{.bias = numbers(bias), .residual = numbers(residual), .residual_step = shape.out_channels};
            if (relu) finish.low = 0;
            if (bfloat16)
                used->winograd.forward_of_bfloat16(shape, halves(input), numbers(weights), order, precision, finish,
                                                   halves(output), threads);
            else
                used->winograd.forward(shape, numbers(input), numbers(weights), order, precision, finish,
                                       numbers(output), threads);
        },
        "shape"_a, "input"_a, "weights"_a, "order"_a, "bias"_a, "residual"_a, "relu"_a, "bfloat16"_a, "precision"_a,
        "output"_a, "threads"_a, Unlocked());
    module.def(
        "winograd_weight_gradient",
        [](const Convolution& shape, Address gradient, Address input, bool bfloat16, Precision precision,
           Address result, int threads) {
            if (bfloat16)
                used->winograd.weight_gradient_of_bfloat16(shape, halves(gradient), halves(input), precision,
                                                           numbers(result), threads);
            else
                used->winograd.weight_gradient(shape, numbers(gradient), numbers(input), numbers(result), threads);
        },
        "shape"_a, "gradient"_a, "input"_a, "bfloat16"_a, "precision"_a, "result"_a, "threads"_a, Unlocked());

    nb::class_<Axis>(module, "Axis")
        .def(nb::init<Size, Size, Size, Size, Size, Size, Size>(), "size"_a, "out_size"_a, "taps"_a, "pad"_a,
             "dilation"_a, "spacing"_a, "stride"_a);
    nb::class_<Correlation>(module, "Correlation")
        .def(nb::init<Size, Size, Size, Axis, Axis>(), "batch"_a, "in_channels"_a, "out_channels"_a, "y"_a, "x"_a);

    module.attr("FFT_LONGEST") = fft::longest;
    module.def(
        "fft_forward",
        [](const Correlation& shape, Address input, Address weights, bool adjoint, Address output, int threads) {
            used->fourier.forward(shape, numbers(input), numbers(weights), adjoint, numbers(output), threads);
        },
        "shape"_a, "input"_a, "weights"_a, "adjoint"_a, "output"_a, "threads"_a, Unlocked());
    module.def(
        "fft_weight_gradient",
        [](const Correlation& shape, Address gradient, Address input, Address result, int threads) {
            used->fourier.weight_gradient(shape, numbers(gradient), numbers(input), numbers(result), threads);
        },
        "shape"_a, "gradient"_a, "input"_a, "result"_a, "threads"_a, Unlocked());

    nb::enum_<Pooling>(module, "Pooling")
        .value("MAXIMUM", Pooling::maximum)
        .value("MEAN", Pooling::mean)
        .value("PADDED_MEAN", Pooling::padded_mean);
    nb::class_<Sliding>(module, "Sliding")
        .def(nb::init<Size, Size, Size, Size, Size, Size>(), "size"_a, "out_size"_a, "taps"_a, "stride"_a, "pad"_a,
             "dilation"_a);
    nb::class_<Window>(module, "Window")
        .def(nb::init<Size, Size, Size, Sliding, Sliding, Size, Size>(), "batch"_a, "in_channels"_a, "out_channels"_a,
             "y"_a, "x"_a, "in_step"_a, "out_step"_a);
    nb::class_<Place>(module, "Place").def(nb::init<int, Size>(), "memory"_a, "offset"_a);
    nb::class_<Ending>(module, "Ending")
        .def(
            "__init__",
            [](Ending* self, Address bias, Place residual, Size residual_step, float low, float high) {
                new (self) Ending{numbers(bias), residual, residual_step, low, high};
            },
            "bias"_a, "residual"_a, "residual_step"_a, "low"_a, "high"_a);
    module.def("panel", [] { return used->direct.panel; });

    nb::class_<Program>(module, "Program")
        .def("__init__", [](Program* self) { new (self) Program(used->winograd, used->direct); })
        .def("__len__", &Program::size)
        .def(
            "add_winograd",
            [](Program& self, const Convolution& shape, Place input, Address weights, Precision precision,
               const Ending& ending, Place output) {
                self.add_winograd(shape, input, numbers(weights), precision, ending, output);
            },
            "shape"_a, "input"_a, "weights"_a, "precision"_a, "ending"_a, "output"_a)
        .def(
            "add_direct",
            [](Program& self, const Window& shape, Place input, Address weights, Precision precision,
               const Ending& ending, Place output) {
                self.add_direct(shape, input, numbers(weights), precision, ending, output);
            },
            "shape"_a, "input"_a, "weights"_a, "precision"_a, "ending"_a, "output"_a)
        .def(
            "add_depthwise",
            [](Program& self, const Window& shape, Place input, Address weights, const Ending& ending, Place output) {
                self.add_depthwise(shape, input, numbers(weights), ending, output);
            },
            "shape"_a, "input"_a, "weights"_a, "ending"_a, "output"_a)
        .def("add_pool", &Program::add_pool, "shape"_a, "pooling"_a, "input"_a, "output"_a)
        .def("add_sum", &Program::add_sum, "pixels"_a, "channels"_a, "input"_a, "in_step"_a, "ending"_a, "output"_a,
             "out_step"_a)
        .def("add_parts", &Program::add_parts, "pictures"_a, "parts"_a, "room"_a, "maps"_a)
        .def(
            "run",
            [](const Program& self, const std::vector<Address>& memories, std::size_t first, std::size_t last,
               int threads) {
                std::vector<float*> places;
                for (const Address memory : memories) places.push_back(numbers(memory));
                self.run(places, first, last, threads);
            },
            "memories"_a, "first"_a, "last"_a, "threads"_a, Unlocked());
}
