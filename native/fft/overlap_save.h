// Overlap-save: the division of an axis into tiles that are correlated by circular transforms.
//
// A tile is `step` neighboring outputs, before the stride leaves any out. They read `step` + span − 1 positions, which fit
// on a circle of that length. A transform of the circle's length computes these outputs correctly; its other outputs are
// not used (overlap-save). A single tile fits on a smaller circle, because the zeros before the first input may be the same
// as those behind the last.
#pragma once

#include "dft.h"

namespace svertka::INSTRUCTIONS::fft {

using svertka::fft::max_length;

// The positions of some numbers of an axis on a circle: number `index`[m] is at `place`[m].
struct Places {
    Index count = 0, index[max_length], place[max_length];

    // For each position of a circle of `size`, the offset of its number, m · stride or index · stride, or −1.
    void by_order(Index size, Index stride, Index* to) const { fill(size, to, [=](Index m) { return m * stride; }); }
    void by_index(Index size, Index stride, Index* to) const {
        fill(size, to, [=, this](Index m) { return index[m] * stride; });
    }

  private:
    template <class Where>
    void fill(Index size, Index* to, Where where) const {
        for (Index t = 0; t < size; ++t) to[t] = -1;
        for (Index m = 0; m < count; ++m) to[place[m]] = where(m);
    }
};

// Positions that the taps span, and the outputs without stride.
inline Index span(const Axis& axis) { return axis.dilation * (axis.taps - 1) + 1; }
inline Index outputs(const Axis& axis) { return axis.stride * (axis.out_size - 1) + 1; }

class OverlapSaveAxis {
  public:
    OverlapSaveAxis(const Axis& axis, Length length) : axis_(axis), size_(length.size()) {
        const Index all = fft::outputs(axis) + span(axis) - 1, last = axis.spacing * (axis.size - 1) + axis.pad + 1;
        const bool whole = fft::outputs(axis) <= size_ && min(last, all) <= size_ && all - max(axis.pad, 0) <= size_;
        step_ = whole ? fft::outputs(axis) : size_ - span(axis) + 1;
        tiles_ = step_ > 0 ? ceil_div(fft::outputs(axis), step_) : 0;
    }

    bool fits() const { return span(axis_) <= size_; }
    Index tiles() const { return tiles_; }
    Index reach() const { return min(size_, step_ + span(axis_) - 1); }  // positions that a tile reads

    Places inputs(Index tile) const { return some(axis_.size, axis_.spacing, axis_.pad - tile * step_, reach()); }
    Places outputs(Index tile) const { return some(axis_.out_size, axis_.stride, -tile * step_, step_); }
    Places taps() const { return some(axis_.taps, axis_.dilation, 0, size_); }

  private:
    // Those of the numbers 0 to count − 1 whose position, first + k · step, is at least 0 and below `size`.
    static Places some(Index count, Index step, Index first, Index size) {
        Places found;
        Index index = first < 0 ? ceil_div(-first, step) : 0;
        for (Index place = first + index * step; place < size && index < count; place += step, ++index) {
            found.index[found.count] = index;
            found.place[found.count++] = place;
        }
        return found;
    }

    Axis axis_;
    Index size_, step_, tiles_;
};

}  // namespace svertka::INSTRUCTIONS::fft
