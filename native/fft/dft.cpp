// Instantiates the radix steps once for all passes.
#include "radix_steps.h"

namespace svertka::INSTRUCTIONS::fft {
namespace {

template <int... radices>
FirstStep* first(int radix) {
    FirstStep* found = nullptr;
    ((radix == radices ? void(found = first_step<radices>) : void()), ...);
    return found;
}

template <int... radices>
SecondStep* second(int radix) {
    SecondStep* found = nullptr;
    ((radix == radices ? void(found = second_step<radices>) : void()), ...);
    return found;
}

}  // namespace

Dft::Dft(Length length)
    : size_(length.size()),
      a_(length.a),
      b_(length.b),
      first_(first<4, 5, 6, 8, 10>(length.a)),
      second_(second<4, 5, 6, 8, 10, 12, 16>(length.b)) {
    for (Index j = 0; j < b_; ++j)
        for (Index k = 0; k < a_; ++k) {
            const Root here = root(j * k, size_);
            roots_[2 * (j * a_ + k)] = static_cast<float>(here.re);
            roots_[2 * (j * a_ + k) + 1] = static_cast<float>(here.im);
        }
    for (Index t = 0; t < size_; ++t) natural_[t] = t * pair;
}

}  // namespace svertka::INSTRUCTIONS::fft
