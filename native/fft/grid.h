// Both axes: their circles, and all tiles of all pictures.
#pragma once

#include <cmath>

#include "circle.h"

namespace svertka::INSTRUCTIONS::fft {

struct Tile {
    Index picture, y, x;
};

class Grid {
  public:
    // Those circles for which the arithmetic is least.
    explicit Grid(const Correlation& shape) : Grid(shape, best(shape)) {}

    Circle y, x;
    Line columns, rows;  // the transforms along y and along x

    Index block;  // tiles at a time

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
        block = parts(count(), most(blocks(shape, count(), frequencies()), 1));
    }

    // As many blocks of tiles as it takes for each to lie transformed in 64 MiB, but none below a register block.
    static Index blocks(const Correlation& shape, Index tiles, Index frequencies) {
        const Index channels = parts(shape.in_channels, lanes) + parts(shape.out_channels, lanes);
        return parts(tiles, most((Index{1} << 24) / (frequencies * channels * pair), svertka::INSTRUCTIONS::rows));
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

    // Operations on vectors, roughly.
    static double cost(const Correlation& shape, Length y, Length x) {
        const Circle rows(shape.y, y), columns(shape.x, x);
        if (!rows.fits() || !columns.fits()) return INFINITY;
        const auto line = [](Length length) {
            const double size = length.size();
            return size * (2 * std::log2(size) + 2);
        };
        const Index tiles = shape.batch * rows.tiles() * columns.tiles();
        const Index across = x.size() / 2 + 1, frequencies = across * y.size();
        const auto both = [&](Index lines) { return (lines + 1) / 2 * line(x) + across * line(y); };
        const Index in_groups = parts(shape.in_channels, lanes), out_groups = parts(shape.out_channels, lanes);
        const double pictures = tiles * (in_groups + out_groups) * both(rows.reach());
        const double kernels = blocks(shape, tiles, frequencies) * both(shape.y.taps);
        const double products = 4.0 * tiles * frequencies;
        return pictures + out_groups * shape.in_channels * (kernels + products);
    }

    Index batch_;
};

}  // namespace svertka::INSTRUCTIONS::fft
