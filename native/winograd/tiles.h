// The division of an image's outputs into tiles, and their order.
#pragma once

#include "../simd.h"
#include "transform_matrices.h"

namespace svertka::INSTRUCTIONS {

// One axis: `whole` tiles of `outputs` outputs, then short tiles of one less, which do not need the point ∞. With four,
// these take five products instead of six: 7 = 4 + 3 outputs take 11 products and 14 = 4 + 4 + 3 + 3 take 22. The last
// tile may be even shorter.
template <int outputs>
struct Axis {
    Index size, count, whole;

    explicit Axis(Index size)
        : size(size), count(ceil_div(size, outputs)), whole(max(size - (outputs - 1) * count, 0)) {}
    Index start(Index tile) const { return outputs * tile - max(tile - whole, 0); }
    Index length(Index tile) const { return min(tile < whole ? outputs : outputs - 1, size - start(tile)); }
};

struct Tile {
    Index image, y, x;    // position of its first output
    Index height, width;    // outputs
};

struct Range {
    Index first, last;  // `last` is excluded
};

// The tiles of all images in one sequence of four kinds: whole in y and short in x; whole; short in y; short in both.
// In this order, the tiles that need a given pair of points are contiguous. `most`: outputs of a whole tile along an
// axis.
template <int most>
class Tiles {
  public:
    static constexpr int outputs = most, points = winograd::Points<most>::count;
    static constexpr Index frequencies = points * points;  // pairs of points, which are the products of a tile

    Tiles(Index batch, Index height, Index width) : y_(height), x_(width), batch_(batch) {
        for (int kind = 0; kind < 4; ++kind) {
            const auto [rows, columns] = extent(kind);
            bounds_[kind + 1] = bounds_[kind] + batch * rows.count() * columns.count();
        }
    }

    Index count() const { return bounds_[4]; }

    // The part of `block` that needs the product of points (frequency / points, frequency % points), counted from its
    // start; {0, 0} if it is empty.
    Range needing(Index frequency, Range block) const {
        const bool y = frequency / points == points - 1;
        const bool x = frequency % points == points - 1;
        const Index first = max(bounds_[x ? 1 : 0], block.first);
        const Index last = min(bounds_[y ? 2 : x ? 3 : 4], block.last);
        return first < last ? Range{first - block.first, last - block.first} : Range{0, 0};
    }

    Tile operator[](Index index) const {
        int kind = 0;
        while (index >= bounds_[kind + 1]) ++kind;
        const auto [rows, columns] = extent(kind);
        const Index place = index - bounds_[kind];
        const Index x = columns.first + place % columns.count(), line = place / columns.count();
        const Index y = rows.first + line % rows.count();
        return {line / rows.count(), y_.start(y), x_.start(x), y_.length(y), x_.length(x)};
    }

  private:
    struct Span {
        Index first, last;
        Index count() const { return last - first; }
    };
    struct Extent {
        Span rows, columns;
    };

    Extent extent(int kind) const {
        const Span whole_rows{0, y_.whole}, short_rows{y_.whole, y_.count};
        const Span whole_columns{0, x_.whole}, short_columns{x_.whole, x_.count};
        return {kind < 2 ? whole_rows : short_rows, kind == 1 || kind == 2 ? whole_columns : short_columns};
    }

    Axis<outputs> y_, x_;
    Index batch_;
    Index bounds_[5] = {};
};

}  // namespace svertka::INSTRUCTIONS
