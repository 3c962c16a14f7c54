// The kernels as Python sees them: addresses and sizes, since handing over a tensor takes longer than a small layer.
// Here the instruction set is picked, once, at import.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "fft/fft.h"
#include "winograd/winograd.h"

namespace nb = nanobind;

namespace svertka {
namespace {

using Address = std::uintptr_t;  // of a tensor's numbers; 0: no tensor

float* numbers(Address address) { return reinterpret_cast<float*>(address); }

struct InstructionSet {
    std::string name;
    Winograd winograd;
    Fourier fourier;
};

// Those that were built and that this processor has, the fastest first.
std::vector<InstructionSet> available() {
    std::vector<InstructionSet> sets;
#ifdef SVERTKA_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        sets.push_back({"avx512", avx512::winograd_functions, avx512::fourier_functions});
    if (avx2) sets.push_back({"avx2", avx2::winograd_functions, avx2::fourier_functions});
#endif
    sets.push_back({"baseline", baseline::winograd_functions, baseline::fourier_functions});
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

    nb::enum_<Order>(module, "Order")
        .value("PLAIN", Order::plain)
        .value("ADJOINT", Order::adjoint)
        .value("PACKED", Order::packed);
    nb::class_<Convolution>(module, "Convolution")
        .def(nb::init<Size, Size, Size, Size, Size, Size, Size, Size, Size>(), "batch"_a, "in_channels"_a,
             "out_channels"_a, "height"_a, "width"_a, "out_height"_a, "out_width"_a, "pad_y"_a, "pad_x"_a);

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
           bool relu, Address output, int threads) {
            const Finish finish{numbers(bias), numbers(residual), relu};
            used->winograd.forward(shape, numbers(input), numbers(weights), order, finish, numbers(output), threads);
        },
        "shape"_a, "input"_a, "weights"_a, "order"_a, "bias"_a, "residual"_a, "relu"_a, "output"_a, "threads"_a,
        Unlocked());
    module.def(
        "winograd_weight_gradient",
        [](const Convolution& shape, Address gradient, Address input, Address result, int threads) {
            used->winograd.weight_gradient(shape, numbers(gradient), numbers(input), numbers(result), threads);
        },
        "shape"_a, "gradient"_a, "input"_a, "result"_a, "threads"_a, Unlocked());

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
}
