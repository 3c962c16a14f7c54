// The tiles of all images, along both axes, and the transform lengths.
#pragma once

#include <cmath>

#include "overlap_save.h"

namespace svertka::INSTRUCTIONS::fft {

struct Tile {
    Index image, y, x;
};

class Grid {
  public:
    // Uses the transform lengths with the least arithmetic.
    explicit Grid(const Correlation& shape) : Grid(shape, best(shape)) {}

    OverlapSaveAxis y, x;
    Dft columns, rows;  // the transforms along y and along x

    Index block;  // number of tiles at a time

    Index count() const { return batch_ * y.tiles() * x.tiles(); }
    Index frequencies() const { return columns.size() * rows.frequencies(); }

    Tile operator[](Index index) const {
        const Index line = index / x.tiles();
        return {line / y.tiles(), line % y.tiles(), index % x.tiles()};
    }

  private:
    struct Lengths {
        Length y, x;
    };

    Grid(const Correlation& shape, Lengths chosen)
        : y(shape.y, chosen.y), x(shape.x, chosen.x), columns(chosen.y), rows(chosen.x), batch_(shape.batch) {
        block = ceil_div(count(), max(blocks(shape, count(), frequencies()), 1));
    }

    // Enough blocks of tiles that the transform of each takes 64 MiB at most, but no block smaller than a register block.
    static Index blocks(const Correlation& shape, Index tiles, Index frequencies) {
        const Index channels = ceil_div(shape.in_channels, lanes) + ceil_div(shape.out_channels, lanes);
        return ceil_div(tiles, max((Index{1} << 24) / (frequencies * channels * pair), MR));
    }

    static Lengths best(const Correlation& shape) {
        Lengths found{};
        double least_cost = INFINITY;
        for (Length y : lengths)
            for (Length x : lengths)
                if (const double here = cost(shape, y, x); here < least_cost) {
                    least_cost = here;
                    found = {y, x};
                }
        return found;
    }

    // Approximate number of vector operations.
    static double cost(const Correlation& shape, Length y, Length x) {
        const OverlapSaveAxis rows(shape.y, y), columns(shape.x, x);
        if (!rows.fits() || !columns.fits()) return INFINITY;
        const auto line = [](Length length) {
            const double size = length.size();
            return size * (2 * std::log2(size) + 2);
        };
        const Index tiles = shape.batch * rows.tiles() * columns.tiles();
        const Index across = x.size() / 2 + 1, frequencies = across * y.size();
        const auto both = [&](Index lines) { return (lines + 1) / 2 * line(x) + across * line(y); };
        const Index in_groups = ceil_div(shape.in_channels, lanes), out_groups = ceil_div(shape.out_channels, lanes);
        const double images = tiles * (in_groups + out_groups) * both(rows.reach());
        const double kernels = blocks(shape, tiles, frequencies) * both(shape.y.taps);
        const double products = 4.0 * tiles * frequencies;
        return images + out_groups * shape.in_channels * (kernels + products);
    }

    Index batch_;
};

}  // namespace svertka::INSTRUCTIONS::fft
