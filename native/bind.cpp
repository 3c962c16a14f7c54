// The Python bindings of the kernels. Every function checks that its tensors are as large as the sizes require before it
// computes anything. The instruction set is selected once, at import.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(SVERTKA_X86)
#include <cpuid.h>
#endif

#include <string>
#include <vector>

#include "checked_program.h"
#include "direct/byte_normalization.h"
#include "scratch.h"
#include "size_checks.h"
#include "python_tensor.h"
#include "training/linear.h"
#include "training/max_pool.h"
#include "training/training.h"
#include "winograd/transform_matrices.h"

namespace svertka {

extern const char* const source_hash;  // written by CMake

namespace {

struct InstructionSet {
    std::string name;
    Winograd winograd;
    Fourier fourier;
    Direct direct;
    Int8 int8;
    TensorSteps tensor_steps;
    Training training;
    MaxPool max_pool;
    Linear linear;
    NormalizeBytes normalize_bytes;
    bool bfloat16 = false;  // whether the CPU multiplies bfloat16; emulation is slower than float32
};

#ifdef SVERTKA_X86
// Whether the CPU has AVX-VNNI: leaf 7, subleaf 1, bit 4 of EAX. Older compilers do not know its name.
bool multiplies_bytes_by_avx() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
}
#endif

// The sets that were built and that this CPU supports, the fastest first.
std::vector<InstructionSet> available() {
    std::vector<InstructionSet> sets;
#ifdef SVERTKA_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    // The sets without kernels of their own for an algorithm have those of the next one.
    if (avx512vnni && __builtin_cpu_supports("avx512bf16"))
        sets.push_back({"avx512bf16", avx512bf16::winograd_functions(), avx512::fourier_functions,
                        avx512bf16::direct_functions(), avx512vnni::int8_functions(), avx512::tensor_steps(), avx512bf16::training_functions(), avx512bf16::max_pool_functions(), avx512::linear_functions(), avx512::normalize_bytes,
                        true});
    if (avx512vnni)
        sets.push_back({"avx512vnni", avx512::winograd_functions(), avx512::fourier_functions,
                        avx512::direct_functions(), avx512vnni::int8_functions(), avx512::tensor_steps(), avx512::training_functions(), avx512::max_pool_functions(),
                        avx512::linear_functions(), avx512::normalize_bytes});
    if (avx512) sets.push_back({"avx512", avx512::winograd_functions(), avx512::fourier_functions,
                        avx512::direct_functions(), avx512::int8_functions(), avx512::tensor_steps(), avx512::training_functions(), avx512::max_pool_functions(),
                        avx512::linear_functions(), avx512::normalize_bytes});
    if (avx2 && multiplies_bytes_by_avx())
        sets.push_back({"avxvnni", avx2::winograd_functions(), avx2::fourier_functions, avx2::direct_functions(),
                        avxvnni::int8_functions(), avx2::tensor_steps(), avx2::training_functions(), avx2::max_pool_functions(),
                        avx2::linear_functions(), avx2::normalize_bytes});
    if (avx2) sets.push_back({"avx2", avx2::winograd_functions(), avx2::fourier_functions,
                        avx2::direct_functions(), avx2::int8_functions(), avx2::tensor_steps(), avx2::training_functions(), avx2::max_pool_functions(),
                        avx2::linear_functions(), avx2::normalize_bytes});
#endif
    sets.push_back({"baseline", baseline::winograd_functions(), baseline::fourier_functions,
                        baseline::direct_functions(), baseline::int8_functions(), baseline::tensor_steps(), baseline::training_functions(), baseline::max_pool_functions(),
                        baseline::linear_functions(), baseline::normalize_bytes});
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

// A matrix of integers as lists.
template <int height, int width>
nb::list rows_of(const winograd::Matrix<height, width>& matrix) {
    nb::list rows;
    for (const auto& row : matrix.at) {
        nb::list numbers;
        for (const winograd::Fraction& number : row) numbers.append(static_cast<short>(number));
        rows.append(numbers);
    }
    return rows;
}

void winograd_pack(nb::handle weights, Size in_channels, Size out_channels, nb::handle packed, int threads) {
    require_between("in_channels", in_channels, 1, max_size);
    require_between("out_channels", out_channels, 1, max_size);
    require_between("threads", threads, 1, max_threads);
    const float* from = Tensor("weights", weights).numbers<float>(product({out_channels, 9, in_channels}));
    float* to = Tensor("packed", packed).numbers<float>(used->winograd.packed_size(in_channels, out_channels));
    const nb::gil_scoped_release unlocked;
    used->winograd.pack(from, in_channels, out_channels, to, threads);
}

void winograd_forward(const Convolution& shape, nb::handle input, nb::handle weights, Order order, nb::handle bias,
                      nb::handle residual, bool relu, Precision precision, nb::handle output, int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const Size in = reach(pixels_in(shape), shape.in_step, shape.in_channels);
    const Size out = reach(pixels_out(shape), shape.out_step, shape.out_channels);
    const bool packed = order == Order::packed;
    const Size of_weights =
        packed ? used->winograd.packed_size(packed_inputs(shape, precision), shape.out_channels) : weights_of(shape);
    const Tensor from("input", input), by("weights", weights), to("output", output);
    check_tile(shape, precision != Precision::bfloat16 && !from.is_bfloat16());
    const void* numbers = nullptr;
    if (packed && precision != Precision::float32)
        numbers = by.numbers<BFloat16>(of_weights);
    else
        numbers = by.numbers<float>(of_weights);
    const Size of_residual = reach(pixels_out(shape), shape.out_channels, shape.out_channels);
    const auto compute = [&]<class Number>(bool narrow) {
        Epilogue epilogue{.bias = Tensor("bias", bias).numbers_if_any<float>(shape.out_channels),
                          .residual = Tensor("residual", residual).numbers_if_any<Number>(of_residual),
                          .residual_step = shape.out_channels};
        if (relu) epilogue.low = 0;
        const Number* pixels = from.numbers<Number>(in);
        Number* results = to.numbers<Number>(out);
        const nb::gil_scoped_release unlocked;
        used->winograd.forward(shape, pixels, numbers, order, precision, epilogue, results, {narrow, narrow}, threads);
    };
    from.is_bfloat16() ? compute.operator()<BFloat16>(true) : compute.operator()<float>(false);
}

void winograd_weight_gradient(const Convolution& shape, nb::handle gradient, nb::handle input, Precision precision,
                              nb::handle result, int threads) {
    check(shape);
    check_tile(shape, false);
    require_between("threads", threads, 1, max_threads);
    const Size in = reach(pixels_in(shape), shape.in_step, shape.in_channels);
    const Size out = reach(pixels_out(shape), shape.out_step, shape.out_channels);
    const Tensor from("input", input), of("gradient", gradient);
    float* sums = Tensor("result", result).numbers<float>(weights_of(shape));
    if (from.is_bfloat16()) {
        const BFloat16 *pixels = from.numbers<BFloat16>(in), *upstream = of.numbers<BFloat16>(out);
        const nb::gil_scoped_release unlocked;
        used->winograd.weight_gradient_of_bfloat16(shape, upstream, pixels, precision, sums, threads);
    } else {
        require(precision == Precision::float32, "products of bfloat16 are for tensors of bfloat16");
        const float *pixels = from.numbers<float>(in), *upstream = of.numbers<float>(out);
        const nb::gil_scoped_release unlocked;
        used->winograd.weight_gradient(shape, upstream, pixels, sums, threads);
    }
}

void fft_forward(const Correlation& shape, nb::handle input, nb::handle weights, bool adjoint, nb::handle output,
                 int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const float* from = Tensor("input", input).numbers<float>(numbers_in(shape));
    const float* by = Tensor("weights", weights).numbers<float>(weights_of(shape));
    float* to = Tensor("output", output).numbers<float>(numbers_out(shape));
    const nb::gil_scoped_release unlocked;
    used->fourier.forward(shape, from, by, adjoint, to, threads);
}

void fft_weight_gradient(const Correlation& shape, nb::handle gradient, nb::handle input, nb::handle result,
                         int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const float* upstream = Tensor("gradient", gradient).numbers<float>(numbers_out(shape));
    const float* from = Tensor("input", input).numbers<float>(numbers_in(shape));
    float* sums = Tensor("result", result).numbers<float>(weights_of(shape));
    const nb::gil_scoped_release unlocked;
    used->fourier.weight_gradient(shape, upstream, from, sums, threads);
}

// Number of weights of a convolution in one group.
Size dense_weights_of(const Window& shape) {
    return product({shape.out_channels, shape.y.taps, shape.x.taps, shape.in_channels});
}

void direct_pack(Size out_channels, Size taps, Size in_channels, nb::handle weights, bool adjoint, nb::handle packed) {
    require_between("out_channels", out_channels, 1, max_size);
    require_between("taps", taps, 1, max_size);
    require_between("in_channels", in_channels, 1, max_size);
    const Size panel = used->direct.panel_width, outputs = adjoint ? in_channels : out_channels;
    const Size padded = product({(outputs + panel - 1) / panel, panel});
    const float* from = Tensor("weights", weights).numbers<float>(product({out_channels, taps, in_channels}));
    float* to = Tensor("packed", packed).numbers<float>(product({padded, taps, adjoint ? out_channels : in_channels}));
    const nb::gil_scoped_release unlocked;
    used->training.pack(from, out_channels, taps, in_channels, adjoint, to);
}

void direct_forward(const Window& shape, nb::handle input, nb::handle packed, nb::handle bias, nb::handle output,
                    int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const Size of_weights = weights_of(shape, Precision::float32, used->direct.panel_width);
    const float* by = Tensor("packed", packed).numbers<float>(of_weights);
    const float* from = Tensor("input", input).numbers<float>(reach(pixels_in(shape), shape.in_step, shape.in_channels));
    float* to = Tensor("output", output).numbers<float>(reach(pixels_out(shape), shape.out_step, shape.out_channels));
    const Epilogue epilogue{.bias = Tensor("bias", bias).numbers_if_any<float>(shape.out_channels)};
    const nb::gil_scoped_release unlocked;
    used->direct.forward(shape, from, Gate{}, by, Precision::float32, epilogue, to, {}, threads);
}

void direct_weight_gradient(const Window& shape, nb::handle gradient, nb::handle input, nb::handle result, int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const Tensor upstream("gradient", gradient), pixels("input", input);
    const float* of = upstream.numbers<float>(reach(pixels_out(shape), shape.out_step, shape.out_channels));
    const float* from = pixels.numbers<float>(reach(pixels_in(shape), shape.in_step, shape.in_channels));
    float* sums = Tensor("result", result).numbers<float>(dense_weights_of(shape));
    const nb::gil_scoped_release unlocked;
    used->training.weight_gradient(shape, of, from, sums, threads);
}

void grouped_weight_gradient(const Window& shape, Size groups, nb::handle gradient, nb::handle input, nb::handle result,
                             int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    weights_of(shape, groups);
    const Size of_result = product({shape.y.taps, shape.x.taps, shape.out_channels / groups, shape.in_channels});
    const Tensor upstream("gradient", gradient), pixels("input", input);
    const float* of = upstream.numbers<float>(reach(pixels_out(shape), shape.out_step, shape.out_channels));
    const float* from = pixels.numbers<float>(reach(pixels_in(shape), shape.in_step, shape.in_channels));
    float* sums = Tensor("result", result).numbers<float>(of_result);
    const nb::gil_scoped_release unlocked;
    used->training.grouped_weight_gradient(shape, groups, of, from, sums, threads);
}

void depthwise_input_gradient(const Window& shape, nb::handle gradient, nb::handle weights, nb::handle result,
                              int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    require(shape.in_channels == shape.out_channels, "a depthwise convolution has as many outputs as inputs");
    const Tensor upstream("gradient", gradient), factors("weights", weights), to("result", result);
    const float* of = upstream.numbers<float>(reach(pixels_out(shape), shape.out_step, shape.out_channels));
    const float* by = factors.numbers<float>(weights_of(shape, shape.in_channels));
    float* sums = to.numbers<float>(reach(pixels_in(shape), shape.in_step, shape.in_channels));
    const nb::gil_scoped_release unlocked;
    used->training.depthwise_input_gradient(shape, of, by, sums, threads);
}

Size check(const BatchNorm& shape) {
    require_between("pixels", shape.pixels, 1, max_size);
    require_between("channels", shape.channels, 1, max_size);
    return product({shape.pixels, shape.channels});
}

void check_residual(const BatchNorm& shape) {
    require(shape.activation == Activation::none, "a residual is added before limits, not before an activation function");
}

void batch_norm(const BatchNorm& shape, nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual,
                nb::handle output, nb::handle mean, nb::handle variance, int threads) {
    const Size all = check(shape), channels = shape.channels;
    require_between("threads", threads, 1, max_threads);
    if (!residual.is_none()) check_residual(shape);
    const Tensor from("input", input);
    const float* factors = Tensor("weight", weight).numbers<float>(channels);
    const float* summands = Tensor("bias", bias).numbers<float>(channels);
    float* means = Tensor("mean", mean).numbers<float>(channels);
    float* variances = Tensor("variance", variance).numbers<float>(channels);
    const auto compute = [&]<class Number>(bool narrow) {
        const Number* images = from.numbers<Number>(all);
        const Number* added = Tensor("residual", residual).numbers_if_any<Number>(all);
        Number* to = Tensor("output", output).numbers<Number>(all);
        const nb::gil_scoped_release unlocked;
        used->training.batch_norm(shape, images, factors, summands, added, to, means, variances, narrow, threads);
    };
    from.is_bfloat16() ? compute.operator()<BFloat16>(true) : compute.operator()<float>(false);
}

void batch_norm_gradients(const BatchNorm& shape, nb::handle gradient, nb::handle input, nb::handle output,
                          nb::handle weight, nb::handle bias, nb::handle mean, nb::handle variance,
                          nb::handle input_gradient, nb::handle residual_gradient, nb::handle weight_gradient,
                          nb::handle bias_gradient, int threads) {
    const Size all = check(shape), channels = shape.channels;
    require_between("threads", threads, 1, max_threads);
    const bool has_residual = !residual_gradient.is_none();
    if (has_residual) check_residual(shape);
    const Tensor from("input", input);
    const float* factors = Tensor("weight", weight).numbers<float>(channels);
    const float* summands = Tensor("bias", bias).numbers<float>(channels);
    const float* means = Tensor("mean", mean).numbers<float>(channels);
    const float* variances = Tensor("variance", variance).numbers<float>(channels);
    float* of_weight = Tensor("weight_gradient", weight_gradient).numbers<float>(channels);
    float* of_bias = Tensor("bias_gradient", bias_gradient).numbers<float>(channels);
    const auto compute = [&]<class Number>(bool narrow) {
        const Number* images = from.numbers<Number>(all);
        const Number* upstream = Tensor("gradient", gradient).numbers<Number>(all);
        const Number* results = has_residual ? Tensor("output", output).numbers<Number>(all) : nullptr;
        Number* to = Tensor("input_gradient", input_gradient).numbers<Number>(all);
        Number* of_residual = Tensor("residual_gradient", residual_gradient).numbers_if_any<Number>(all);
        const nb::gil_scoped_release unlocked;
        used->training.batch_norm_gradients(shape, upstream, images, results, factors, summands, means, variances, to,
                                            of_residual, of_weight, of_bias, narrow, threads);
    };
    from.is_bfloat16() ? compute.operator()<BFloat16>(true) : compute.operator()<float>(false);
}

// Every window must have a pixel of the image, and the number of a tap must fit into a byte.
void check_max_pool(const Window& shape, int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    require_between("taps", product({shape.y.taps, shape.x.taps}), 1, INT8_MAX);
    for (const WindowAxis& axis : {shape.y, shape.x}) {
        require_between("dilation", axis.dilation, 1, 1);
        require_between("pad", axis.pad, 0, axis.taps - 1);
        require_between("start of the last window", (axis.out_size - 1) * axis.stride - axis.pad, -max_size, axis.size - 1);
    }
    require_between("out_channels", shape.out_channels, shape.in_channels, shape.in_channels);
    require_between("in_step", shape.in_step, shape.in_channels, shape.in_channels);
    require_between("out_step", shape.out_step, shape.in_channels, shape.in_channels);
}

void max_pool_forward(const Window& shape, nb::handle input, nb::handle output, nb::handle places, int threads) {
    check_max_pool(shape, threads);
    const Size in = product({pixels_in(shape), shape.in_channels}), out = product({pixels_out(shape), shape.in_channels});
    const Tensor from("input", input), to("output", output);
    std::int8_t* where = Tensor("places", places).numbers<std::int8_t>(out);
    const auto compute = [&]<class Number>(bool narrow) {
        const Number* images = from.numbers<Number>(in);
        Number* results = to.numbers<Number>(out);
        const nb::gil_scoped_release unlocked;
        used->max_pool.forward(shape, images, results, where, narrow, threads);
    };
    from.is_bfloat16() ? compute.operator()<BFloat16>(true) : compute.operator()<float>(false);
}

void max_pool_input_gradient(const Window& shape, nb::handle gradient, nb::handle places, nb::handle result, int threads) {
    check_max_pool(shape, threads);
    const Size in = product({pixels_in(shape), shape.in_channels}), out = product({pixels_out(shape), shape.in_channels});
    const Tensor from("gradient", gradient), to("result", result);
    const std::int8_t* where = Tensor("places", places).numbers<std::int8_t>(out);
    const auto compute = [&]<class Number>(bool narrow) {
        const Number* upstream = from.numbers<Number>(out);
        Number* results = to.numbers<Number>(in);
        const nb::gil_scoped_release unlocked;
        used->max_pool.input_gradient(shape, upstream, where, results, narrow, threads);
    };
    from.is_bfloat16() ? compute.operator()<BFloat16>(true) : compute.operator()<float>(false);
}

void max_pool_convolution_gradient(const Window& pool, const Window& convolution, nb::handle gradient, nb::handle places,
                                   bool rectify, nb::handle weights, nb::handle result, int threads) {
    check_max_pool(pool, threads);
    check(convolution);
    for (const auto& [axis, maps] : {std::pair{convolution.y, pool.y}, std::pair{convolution.x, pool.x}}) {
        require_between("dilation", axis.dilation, 1, 1);
        require_between("pad", axis.pad, 0, 0);
        require_between("outputs", axis.out_size, maps.size, maps.size);
        const Size size = product({maps.size - 1, axis.stride}) + axis.taps;
        require_between("size", axis.size, size, size);
    }
    require_between("batch", convolution.batch, pool.batch, pool.batch);
    require_between("out_channels", convolution.out_channels, pool.in_channels, pool.in_channels);
    require_between("in_step", convolution.in_step, convolution.in_channels, convolution.in_channels);
    require_between("out_step", convolution.out_step, convolution.out_channels, convolution.out_channels);
    const Size pooled = product({pixels_out(pool), pool.in_channels});
    const Size row = product({convolution.x.taps, convolution.in_channels});
    const Size columns = (row + weight_columns - 1) / weight_columns * weight_columns;
    const float* upstream = Tensor("gradient", gradient).numbers<float>(pooled);
    const std::int8_t* where = Tensor("places", places).numbers<std::int8_t>(pooled);
    const float* by =
        Tensor("weights", weights).numbers<float>(product({pool.in_channels, convolution.y.taps, columns}));
    float* to = Tensor("result", result).numbers<float>(product({pixels_in(convolution), convolution.in_channels}));
    const nb::gil_scoped_release unlocked;
    used->max_pool.convolution_gradient(pool, convolution, upstream, where, rectify, by, to, threads);
}

void check(const LinearShape& shape, int threads) {
    require_between("rows", shape.rows, 1, max_size);
    require_between("inputs", shape.inputs, 1, max_size);
    require_between("outputs", shape.outputs, 1, max_size);
    require_between("threads", threads, 1, max_threads);
}

void linear_forward(const LinearShape& shape, nb::handle input, nb::handle weights, nb::handle bias, nb::handle result,
                    int threads) {
    check(shape, threads);
    const float* from = Tensor("input", input).numbers<float>(product({shape.rows, shape.inputs}));
    const float* by = Tensor("weights", weights).numbers<float>(product({shape.outputs, shape.inputs}));
    const float* summands = Tensor("bias", bias).numbers_if_any<float>(shape.outputs);
    float* to = Tensor("result", result).numbers<float>(product({shape.rows, shape.outputs}));
    const nb::gil_scoped_release unlocked;
    used->linear.forward(shape, from, by, summands, to, threads);
}

void linear_input_gradient(const LinearShape& shape, nb::handle gradient, nb::handle weights, nb::handle result,
                           int threads) {
    check(shape, threads);
    const float* from = Tensor("gradient", gradient).numbers<float>(product({shape.rows, shape.outputs}));
    const float* by = Tensor("weights", weights).numbers<float>(product({shape.outputs, shape.inputs}));
    float* to = Tensor("result", result).numbers<float>(product({shape.rows, shape.inputs}));
    const nb::gil_scoped_release unlocked;
    used->linear.input_gradient(shape, from, by, to, threads);
}

void linear_weight_gradient(const LinearShape& shape, nb::handle gradient, nb::handle input, nb::handle result,
                            int threads) {
    check(shape, threads);
    const float* from = Tensor("gradient", gradient).numbers<float>(product({shape.rows, shape.outputs}));
    const float* by = Tensor("input", input).numbers<float>(product({shape.rows, shape.inputs}));
    float* to = Tensor("result", result).numbers<float>(product({shape.outputs, shape.inputs}));
    const nb::gil_scoped_release unlocked;
    used->linear.weight_gradient(shape, from, by, to, threads);
}

void normalize_bytes(Size batch, Size height, Size width, Size image_step, Size row_step, nb::handle input, nb::handle mean,
                     nb::handle scale, bool channels_last, nb::handle output) {
    require_between("batch", batch, 1, max_size);
    require_between("height", height, 1, max_size);
    require_between("width", width, 1, max_size);
    require_between("image_step", image_step, 0, max_size);
    require_between("row_step", row_step, 0, max_size);
    const Size last = product({batch - 1, image_step}) + product({height - 1, row_step});
    const std::int8_t* from = Tensor("input", input).numbers<std::int8_t>(last + 3 * width);
    const float* means = Tensor("mean", mean).numbers<float>(3);
    const float* scales = Tensor("scale", scale).numbers<float>(3);
    float* to = Tensor("output", output).numbers<float>(product({batch, 3, height, width}));
    const nb::gil_scoped_release unlocked;
    used->normalize_bytes({batch, height, width, image_step, row_step}, from, means, scales, channels_last, to);
}

void grouped_forward(const Window& shape, Size groups, nb::handle input, nb::handle weights, nb::handle bias,
                     nb::handle output, int threads) {
    check(shape);
    require_between("threads", threads, 1, max_threads);
    const float* by = Tensor("weights", weights).numbers<float>(weights_of(shape, groups));
    const float* from = Tensor("input", input).numbers<float>(reach(pixels_in(shape), shape.in_step, shape.in_channels));
    float* to = Tensor("output", output).numbers<float>(reach(pixels_out(shape), shape.out_step, shape.out_channels));
    const Epilogue epilogue{.bias = Tensor("bias", bias).numbers_if_any<float>(shape.out_channels)};
    const nb::gil_scoped_release unlocked;
    used->direct.grouped(shape, groups, from, by, epilogue, to, false, threads);
}

}  // namespace
}  // namespace svertka

NB_MODULE(_kernels, module) {
    module.attr("source_hash") = svertka::source_hash;
    using namespace svertka;
    using namespace nb::literals;

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
        .value("UPCAST", Precision::upcast)
        .value("BFLOAT16", Precision::bfloat16);
    nb::enum_<Order>(module, "Order")
        .value("PLAIN", Order::plain)
        .value("ADJOINT", Order::adjoint)
        .value("PACKED", Order::packed);
    nb::class_<Convolution>(module, "Convolution")
        .def(nb::init<Size, Size, Size, Size, Size, Size, Size, Size, Size>(), "batch"_a, "in_channels"_a,
             "out_channels"_a, "height"_a, "width"_a, "out_height"_a, "out_width"_a, "pad_y"_a, "pad_x"_a)
        .def_rw("in_step", &Convolution::in_step)
        .def_rw("out_step", &Convolution::out_step)
        .def_rw("tile", &Convolution::tile);

    module.def(
        "winograd_packed_size",
        [](Size in_channels, Size out_channels) {
            require_between("in_channels", in_channels, 1, max_size);
            require_between("out_channels", out_channels, 1, max_size);
            return used->winograd.packed_size(in_channels, out_channels);
        },
        "in_channels"_a, "out_channels"_a);
    module.def("winograd_pack", winograd_pack, "weights"_a, "in_channels"_a, "out_channels"_a, "packed"_a, "threads"_a);
    module.def("winograd_forward", winograd_forward, "shape"_a, "input"_a, "weights"_a, "order"_a, "bias"_a.none(),
               "residual"_a.none(), "relu"_a, "precision"_a, "output"_a, "threads"_a);
    module.def("winograd_weight_gradient", winograd_weight_gradient, "shape"_a, "gradient"_a, "input"_a, "precision"_a,
               "result"_a, "threads"_a);

    nb::class_<Axis>(module, "Axis")
        .def(nb::init<Size, Size, Size, Size, Size, Size, Size>(), "size"_a, "out_size"_a, "taps"_a, "pad"_a,
             "dilation"_a, "spacing"_a, "stride"_a);
    nb::class_<Correlation>(module, "Correlation")
        .def(nb::init<Size, Size, Size, Axis, Axis>(), "batch"_a, "in_channels"_a, "out_channels"_a, "y"_a, "x"_a);

    module.attr("FFT_MAX_LENGTH") = fft::max_length;
    module.def("fft_forward", fft_forward, "shape"_a, "input"_a, "weights"_a, "adjoint"_a, "output"_a, "threads"_a);
    module.def("fft_weight_gradient", fft_weight_gradient, "shape"_a, "gradient"_a, "input"_a, "result"_a, "threads"_a);

    nb::enum_<Pooling>(module, "Pooling")
        .value("MAXIMUM", Pooling::maximum)
        .value("MEAN", Pooling::mean)
        .value("PADDED_MEAN", Pooling::padded_mean);
    nb::enum_<Activation>(module, "Activation")
        .value("NONE", Activation::none)
        .value("SIGMOID", Activation::sigmoid)
        .value("SILU", Activation::silu)
        .value("HARD_SIGMOID", Activation::hard_sigmoid)
        .value("HARD_SWISH", Activation::hard_swish)
        .value("GELU", Activation::gelu)
        .value("GELU_TANH", Activation::gelu_tanh)
        .value("TANH", Activation::tanh)
        .value("MISH", Activation::mish)
        .value("ELU", Activation::elu)
        .value("LEAKY_RELU", Activation::leaky_relu);
    nb::enum_<Combination>(module, "Combination")
        .value("FIRST", Combination::first)
        .value("SQUARE_ROOT", Combination::square_root)
        .value("RECIPROCAL_SQUARE_ROOT", Combination::reciprocal_square_root)
        .value("EXPONENTIAL", Combination::exponential)
        .value("ADD", Combination::add)
        .value("SUBTRACT", Combination::subtract)
        .value("MULTIPLY", Combination::multiply)
        .value("DIVIDE", Combination::divide)
        .value("MAXIMUM", Combination::maximum)
        .value("MINIMUM", Combination::minimum)
        .value("PRELU", Combination::prelu);
    nb::class_<WindowAxis>(module, "WindowAxis")
        .def(nb::init<Size, Size, Size, Size, Size, Size>(), "size"_a, "out_size"_a, "taps"_a, "stride"_a, "pad"_a,
             "dilation"_a);
    nb::class_<Window>(module, "Window")
        .def(nb::init<Size, Size, Size, WindowAxis, WindowAxis, Size, Size>(), "batch"_a, "in_channels"_a, "out_channels"_a,
             "y"_a, "x"_a, "in_step"_a, "out_step"_a);
    module.def("direct_pack", direct_pack, "out_channels"_a, "taps"_a, "in_channels"_a, "weights"_a, "adjoint"_a,
               "packed"_a);
    module.def("direct_forward", direct_forward, "shape"_a, "input"_a, "packed"_a, "bias"_a.none(), "output"_a,
               "threads"_a);
    module.def("direct_weight_gradient", direct_weight_gradient, "shape"_a, "gradient"_a, "input"_a, "result"_a,
               "threads"_a);
    nb::class_<BatchNorm>(module, "BatchNorm")
        .def(nb::init<Size, Size, float, Activation, float, float>(), "pixels"_a, "channels"_a, "epsilon"_a, "activation"_a,
             "low"_a, "high"_a);
    module.def("batch_norm", batch_norm, "shape"_a, "input"_a, "weight"_a, "bias"_a, "residual"_a.none(), "output"_a,
               "mean"_a, "variance"_a, "threads"_a);
    module.def("batch_norm_gradients", batch_norm_gradients, "shape"_a, "gradient"_a, "input"_a, "output"_a.none(),
               "weight"_a, "bias"_a, "mean"_a, "variance"_a, "input_gradient"_a, "residual_gradient"_a.none(),
               "weight_gradient"_a, "bias_gradient"_a, "threads"_a);
    module.def("max_pool_forward", max_pool_forward, "shape"_a, "input"_a, "output"_a, "places"_a, "threads"_a);
    module.def("max_pool_input_gradient", max_pool_input_gradient, "shape"_a, "gradient"_a, "places"_a, "result"_a,
               "threads"_a);
    module.def("max_pool_convolution_gradient", max_pool_convolution_gradient, "pool"_a, "convolution"_a, "gradient"_a,
               "places"_a, "rectify"_a, "weights"_a, "result"_a, "threads"_a);
    nb::class_<LinearShape>(module, "LinearShape").def(nb::init<Size, Size, Size>(), "rows"_a, "inputs"_a, "outputs"_a);
    module.def("linear_forward", linear_forward, "shape"_a, "input"_a, "weights"_a, "bias"_a.none(), "result"_a, "threads"_a);
    module.def("linear_input_gradient", linear_input_gradient, "shape"_a, "gradient"_a, "weights"_a, "result"_a, "threads"_a);
    module.def("linear_weight_gradient", linear_weight_gradient, "shape"_a, "gradient"_a, "input"_a, "result"_a, "threads"_a);
    module.def("grouped_weight_gradient", grouped_weight_gradient, "shape"_a, "groups"_a, "gradient"_a, "input"_a,
               "result"_a, "threads"_a);
    module.def("depthwise_input_gradient", depthwise_input_gradient, "shape"_a, "gradient"_a, "weights"_a, "result"_a,
               "threads"_a);
    module.def("normalize_bytes", normalize_bytes, "batch"_a, "height"_a, "width"_a, "image_step"_a, "row_step"_a, "input"_a,
               "mean"_a, "scale"_a, "channels_last"_a, "output"_a);
    module.def("grouped_forward", grouped_forward, "shape"_a, "groups"_a, "input"_a, "weights"_a, "bias"_a.none(),
               "output"_a, "threads"_a);
    nb::enum_<Storage>(module, "Storage")
        .value("FLOAT32", Storage::float32)
        .value("BFLOAT16", Storage::bfloat16)
        .value("BYTE", Storage::byte);
    nb::class_<NarrowMaps>(module, "NarrowMaps").def(nb::init<bool, bool>(), "input"_a, "output"_a);
    nb::class_<Place>(module, "Place").def(nb::init<int, Size>(), "memory"_a, "offset"_a);
    nb::class_<EpilogueSpec>(module, "Epilogue")
        .def(
            "__init__",
            [](EpilogueSpec* self, nb::object bias, Place residual, Size residual_step, float low, float high,
               Activation activation, float slope, bool multiply, bool residual_last) {
                new (self) EpilogueSpec{std::move(bias), residual, residual_step, low, high,
                                        activation,      slope,    multiply,      residual_last};
            },
            "bias"_a.none(), "residual"_a, "residual_step"_a, "low"_a, "high"_a, "activation"_a = Activation::none,
            "slope"_a = 0.0f, "multiply"_a = false, "residual_last"_a = false);
    nb::class_<Strided>(module, "Strided")
        .def(nb::init<Strided::Axes, Strided::Axes, Strided::Axes, Strided::Axes>(), "sizes"_a, "input"_a, "other"_a,
             "output"_a);
    nb::class_<Normalization>(module, "Normalization")
        .def(nb::init<Size, Size, Size, Size, Size, Size, float>(), "batch"_a, "pixels"_a, "channels"_a, "groups"_a,
             "in_step"_a, "out_step"_a, "epsilon"_a);
    nb::class_<MatrixProduct>(module, "MatrixProduct")
        .def(nb::init<std::array<Size, 3>, Size, Size, Size, MatrixProduct::Axes, MatrixProduct::Axes, MatrixProduct::Axes,
                      float>(),
             "batch"_a, "rows"_a, "depth"_a, "columns"_a, "left"_a, "right"_a, "output"_a, "scale"_a);
    nb::class_<Softmax>(module, "Softmax")
        .def(nb::init<Softmax::Axes, Softmax::Axes, Softmax::Axes, Softmax::Axes, bool, float>(), "sizes"_a, "input"_a,
             "other"_a, "output"_a, "innermost"_a, "scale"_a);
    nb::enum_<Statistic>(module, "Statistic")
        .value("SUM", Statistic::sum)
        .value("MEAN", Statistic::mean)
        .value("NORM", Statistic::norm)
        .value("MAXIMUM", Statistic::maximum)
        .value("MINIMUM", Statistic::minimum)
        .value("VARIANCE", Statistic::variance);
    using SixAxes = std::array<Size, 6>;
    nb::class_<Reduction>(module, "Reduction")
        .def(nb::init<SixAxes, SixAxes, SixAxes, bool, float>(), "sizes"_a, "input"_a, "output"_a, "reduces_innermost"_a,
             "divisor"_a);
    nb::class_<InterpolationAxis>(module, "InterpolationAxis")
        .def(nb::init<Size, Size, Size, std::vector<Size>, std::vector<float>>(), "size"_a, "out_size"_a, "taps"_a,
             "indices"_a, "weights"_a);
    module.def("panel_width", [] { return used->direct.panel_width; });

    module.def("int8_panel_width", [] { return used->int8.panel_width; });
    module.def("int8_channel_width", [] { return used->int8.channel_width; });
    module.def("int8_numbers_per_factor", [] { return used->int8.numbers_per_factor; });
    module.def("int8_winograd_inputs", [] { return used->int8.winograd_inputs; });
    module.def(
        "int8_winograd_is_faster", [](const Window& shape) { return used->int8.winograd_is_faster(shape); }, "shape"_a);
    module.attr("INT8_WINOGRAD_MATRICES") =
        nb::make_tuple(rows_of(winograd::whole_data_matrix), rows_of(winograd::whole_weight_matrix));
    nb::enum_<Int8Kernel>(module, "Int8Kernel")
        .value("DIRECT", Int8Kernel::direct)
        .value("WINOGRAD", Int8Kernel::winograd)
        .value("DEPTHWISE", Int8Kernel::depthwise);
    using Pair = std::pair<float, float>;
    nb::class_<RequantizationSpec>(module, "Requantization")
        .def(
            "__init__",
            [](RequantizationSpec* self, nb::object start, nb::object scale, nb::object shift, Place residual,
               Size residual_step, Pair real, Activation activation, float slope, bool multiply, bool residual_last,
               Pair stored, Pair bounds, bool to_float) {
                new (self) RequantizationSpec{std::move(start), std::move(scale), std::move(shift), residual,
                                              residual_step, {real.first, real.second}, activation, slope, multiply,
                                              residual_last, {stored.first, stored.second}, bounds.first, bounds.second,
                                              to_float};
            },
            "start"_a, "scale"_a, "shift"_a, "residual"_a, "residual_step"_a, "real"_a, "activation"_a, "slope"_a,
            "multiply"_a, "residual_last"_a, "stored"_a, "bounds"_a, "to_float"_a);
    nb::class_<ByteOperation>(module, "ByteOperation")
        .def(
            "__init__",
            [](ByteOperation* self, Combination combination, Activation activation, float slope, Pair stored, Pair bounds,
               Storage storage) {
                new (self) ByteOperation{combination,   activation,    slope,   {stored.first, stored.second},
                                         bounds.first, bounds.second, storage};
            },
            "combination"_a, "activation"_a, "slope"_a, "stored"_a, "bounds"_a, "storage"_a);

    nb::class_<CheckedProgram>(module, "Program")
        .def("__init__", [](CheckedProgram* self) {
            new (self) CheckedProgram(used->winograd, used->direct, used->int8, used->tensor_steps);
        })
        .def("__len__", &CheckedProgram::size)
        .def("add_winograd", &CheckedProgram::add_winograd, "shape"_a, "input"_a, "weights"_a, "precision"_a, "epilogue"_a,
             "output"_a, "narrow"_a = NarrowMaps{})
        .def("add_direct", &CheckedProgram::add_direct, "shape"_a, "input"_a, "weights"_a, "precision"_a, "epilogue"_a,
             "output"_a, "gate"_a = Place{}, "gate_step"_a = 0, "narrow"_a = NarrowMaps{})
        .def("add_grouped", &CheckedProgram::add_grouped, "shape"_a, "groups"_a, "input"_a, "weights"_a, "epilogue"_a,
             "output"_a, "narrow"_a = false)
        .def("add_pool", &CheckedProgram::add_pool, "shape"_a, "pooling"_a, "input"_a, "output"_a, "narrow"_a = false)
        .def("add_elementwise", &CheckedProgram::add_elementwise, "shape"_a, "combination"_a, "input"_a,
             "other"_a.none(), "epilogue"_a, "output"_a)
        .def("add_normalize", &CheckedProgram::add_normalize, "shape"_a, "input"_a, "weight"_a.none(), "bias"_a.none(),
             "epilogue"_a, "output"_a)
        .def("add_int8_convolution", &CheckedProgram::add_int8_convolution, "shape"_a, "kernel"_a, "input"_a, "zero"_a,
             "weights"_a, "after"_a, "output"_a)
        .def(
            "add_int8_pool",
            [](CheckedProgram& self, const Window& shape, Pooling pooling, int zero, Pair mean, Place input, Place output) {
                self.add_int8_pool(shape, pooling, zero, {mean.first, mean.second}, input, output);
            },
            "shape"_a, "pooling"_a, "zero"_a, "mean"_a, "input"_a, "output"_a)
        .def("add_int8_elementwise", &CheckedProgram::add_int8_elementwise, "shape"_a, "operation"_a, "input"_a.none(),
             "storage"_a, "real"_a, "other"_a.none(), "other_storage"_a, "other_real"_a, "output"_a)
        .def("add_matrix_product", &CheckedProgram::add_matrix_product, "shape"_a, "left"_a, "right"_a, "output"_a)
        .def("add_softmax", &CheckedProgram::add_softmax, "shape"_a, "input"_a, "other"_a.none(), "output"_a)
        .def("add_reduction", &CheckedProgram::add_reduction, "shape"_a, "statistic"_a, "input"_a, "epilogue"_a, "output"_a)
        .def("add_interpolation", &CheckedProgram::add_interpolation, "batch"_a, "channels"_a, "y"_a, "x"_a, "input"_a,
             "in_step"_a, "epilogue"_a, "output"_a, "out_step"_a)
        .def("add_parts", &CheckedProgram::add_parts, "images"_a, "parts"_a, "room"_a, "maps"_a)
        .def("run", &CheckedProgram::run, "memories"_a, "first"_a, "last"_a, "threads"_a);
}
