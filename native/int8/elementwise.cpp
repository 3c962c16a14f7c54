// Elementwise operations between 8-bit numbers, bfloat16 and floats, the conversions of one to the other among them.
#include "../parallel.h"
#include "vector_requantization.h"

namespace svertka::INSTRUCTIONS {
namespace {

ALWAYS_INLINE Vector combine(Vector a, Vector b, Combination combination) {
    switch (combination) {
        case Combination::add: return a + b;
        case Combination::subtract: return a - b;
        case Combination::multiply: return a * b;
        case Combination::divide: return a / b;
        case Combination::maximum: return a > b ? a : b;
        case Combination::minimum: return a < b ? a : b;
        default: return a;  // the others are computed with floats
    }
}

struct Pass {
    const Strided& shape;
    const ByteOperation& operation;
    const Operand &input, &other;
    void* output;

    // `count` real numbers, at most one vector, the first at `offset`.
    ALWAYS_INLINE static Vector real(const Operand& operand, Index offset, Index step, Index count) {
        const auto read = [=](auto load, auto numbers) __attribute__((always_inline)) {
            if (step == 1) return load(numbers + offset, count);
            std::remove_const_t<std::remove_pointer_t<decltype(numbers)>> gathered[lanes]{};
            for (Index i = 0; i < min(count, lanes); ++i) gathered[i] = numbers[offset + i * step];
            return load(gathered, lanes);
        };
        const auto load_real = [](const auto* from, Index count) { return load_up_to(from, count); };
        if (operand.storage == Storage::float32) return read(load_real, static_cast<const float*>(operand.numbers));
        if (operand.storage == Storage::bfloat16) return read(load_real, static_cast<const BFloat16*>(operand.numbers));
        const Bytes bytes =
            read([](const Byte* from, Index count) { return load_bytes(from, count); }, static_cast<const Byte*>(operand.numbers));
        return to_floats(bytes) * operand.real.scale + operand.real.shift;
    }

    // Numbers `first` to `last` of a row along the last axis.
    template <Activation activation>
    void row(Index a, Index b, Index to, Index first, Index last) const {
        const Index step_a = shape.input[4], step_b = shape.other[4], step = shape.output[4];
        const Affine stored = operation.stored;
        for (Index k = first; k < last; k += lanes) {
            const Index count = min(last - k, lanes);
            Vector value = real(input, a + k * step_a, step_a, count);
            if (other.numbers) value = combine(value, real(other, b + k * step_b, step_b, count), operation.combination);
            value = activate<activation>(value, operation.slope) * stored.scale + stored.shift;
            value = clamp(value, operation.low, operation.high);
            const Index place = to + k * step;
            switch (operation.storage) {
                case Storage::byte: store_strided(static_cast<Byte*>(output) + place, to_bytes(value), step, count); break;
                case Storage::bfloat16: store_bf16(static_cast<BFloat16*>(output) + place, value, step, count); break;
                case Storage::float32: store_strided(static_cast<float*>(output) + place, value, step, count);
            }
        }
    }

    ALWAYS_INLINE static void store_bf16(BFloat16* to, Vector values, Index step, Index count) {
        if (step == 1) return store_up_to(to, values, count);
        BFloat16 rounded[lanes];
        store(rounded, values);
        for (Index i = 0; i < count; ++i) to[i * step] = rounded[i];
    }

    template <class Number, class Numbers>
    ALWAYS_INLINE static void store_strided(Number* to, Numbers numbers, Index step, Index count) {
        if (step != 1) {
            for (Index i = 0; i < count; ++i) to[i * step] = numbers[i];
            return;
        }
        if constexpr (std::is_same_v<Number, float>)
            store_up_to(to, numbers, count);
        else
            store_bytes(to, numbers, count);
    }

    // Rows are divided into pieces, so that threads share one long row.
    static constexpr Index piece = 4096;
    Index pieces = ceil_div(shape.sizes[4], piece);

    template <Activation activation>
    void compute(Index number) const {
        const Index first = number % pieces * piece;
        number /= pieces;
        Index a = 0, b = 0, to = 0;
        for (int axis = 3; axis >= 0; --axis) {
            const Index place = number % shape.sizes[axis];
            number /= shape.sizes[axis];
            a += place * shape.input[axis], b += place * shape.other[axis], to += place * shape.output[axis];
        }
        row<activation>(a, b, to, first, min(first + piece, shape.sizes[4]));
    }
};

}  // namespace

void int8_elementwise(const Strided& shape, const ByteOperation& operation, const Operand& input, const Operand& other,
                      void* output, int threads) {
    const Pass pass{shape, operation, input, other, output};
    const Index all = shape.sizes[0] * shape.sizes[1] * shape.sizes[2] * shape.sizes[3] * pass.pieces;
    with_activation(operation.activation, [&](auto activation) {
        parallel_for(all, threads, [&](Index number, int) { pass.compute<activation>(number); });
    });
}

}  // namespace svertka::INSTRUCTIONS
