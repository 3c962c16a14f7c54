// The Winograd transform matrices, computed from interpolation points at compile time in exact fractions (Cook–Toom).
//
// m outputs of a correlation with r taps, y_k = Σ_j g_j d_(k+j), are the transpose of a product of two polynomials, one
// with r and one with m coefficients. Toom and Cook evaluate both polynomials at n − 1 = m + r − 2 points p and at ∞ (the
// leading coefficient), multiply the n values, and recover the product s by Lagrange's formula,
//     s(x) = Σ_p s(p) · Π_(q≠p) (x − q) / (p − q)  +  s_∞ · Π_q (x − q).
// Transposed (Lavin & Gray 2016, eq. 5 and 8): y = Aᵀ [(G g) ⊙ (Bᵀ d)], with
//     G   values of a polynomial with r coefficients, divided by Π_(q≠p) (p − q)   n × r
//     Aᵀ  the powers of the points, column by column                               m × n
//     Bᵀ  the coefficients of Π_(q≠p) (x − q), and for ∞ of Π_q (x − q)            n × n
// Only G has divisions; with the points below, Aᵀ and Bᵀ are exact in float32.
//
// Here n = 6 and the points are 0, ±5/8, ±3/2, ∞, with half the rounding error of the usual 0, ±1, ±2, ∞. F(4,3), with
// m = 4 outputs of r = 3 taps, and F(3,4), for the weight gradient, use the same points and so the same Bᵀ. F(3,3), for
// tiles of m = 3 outputs, is contained in F(4,3): without the last output, row ∞ is not used.
//
// With the usual points, Bᵀ is integer, and so is G if its divisions are moved to Aᵀ: 8-bit numbers and weights are
// transformed without rounding.
#pragma once

namespace svertka::winograd {

struct Fraction {
    long above = 0, below = 1;

    constexpr Fraction(long above = 0, long below = 1) {
        long a = above < 0 ? -above : above, b = below < 0 ? -below : below;
        while (b) {
            const long rest = a % b;
            a = b;
            b = rest;
        }
        const long shared = below < 0 ? -a : a;
        this->above = shared ? above / shared : 0;
        this->below = shared ? below / shared : 1;
    }
    constexpr Fraction operator+(Fraction o) const { return {above * o.below + o.above * below, below * o.below}; }
    constexpr Fraction operator-(Fraction o) const { return {above * o.below - o.above * below, below * o.below}; }
    constexpr Fraction operator*(Fraction o) const { return {above * o.above, below * o.below}; }
    constexpr Fraction operator/(Fraction o) const { return {above * o.below, below * o.above}; }
    constexpr bool operator==(const Fraction&) const = default;
    constexpr explicit operator float() const { return static_cast<float>(static_cast<double>(above) / below); }
    constexpr explicit operator short() const { return static_cast<short>(above / below); }
};

constexpr int taps = 3;  // r

// The n − 1 finite points of tiles of `outputs` outputs; opposite points are neighbors.
template <int outputs>
struct Points {
    static constexpr int infinity = outputs + taps - 2;  // the index of ∞
    static constexpr int count = infinity + 1;           // n
    Fraction finite[infinity];
};

template <int outputs>
constexpr Points<outputs> accurate;
template <>
constexpr Points<4> accurate<4>{{{0}, {5, 8}, {-5, 8}, {3, 2}, {-3, 2}}};
template <>
constexpr Points<6> accurate<6>{{{0}, {1, 2}, {-1, 2}, {1}, {-1}, {2}, {-2}}};
constexpr Points<4> whole{{{0}, {1}, {-1}, {2}, {-2}}};

template <int height, int width>
struct Matrix {
    static constexpr int rows = height, columns = width;
    Fraction at[height][width];
};

constexpr Fraction power(Fraction base, int exponent) {
    Fraction result{1};
    for (int i = 0; i < exponent; ++i) result = result * base;
    return result;
}

// Values of a polynomial with `size` coefficients: G, or with `divided` false the transpose of A.
template <int size, int outputs>
constexpr Matrix<Points<outputs>::count, size> evaluation(const Points<outputs>& at, bool divided) {
    constexpr int infinity = at.infinity;
    Matrix<at.count, size> result{};
    for (int p = 0; p < infinity; ++p) {
        Fraction divisor{1};
        for (int q = 0; q < infinity; ++q)
            if (divided && q != p) divisor = divisor * (at.finite[p] - at.finite[q]);
        for (int k = 0; k < size; ++k) result.at[p][k] = power(at.finite[p], k) / divisor;
    }
    result.at[infinity][size - 1] = {1};
    return result;
}

template <int height, int width>
constexpr Matrix<width, height> transpose(Matrix<height, width> matrix) {
    Matrix<width, height> result{};
    for (int i = 0; i < height; ++i)
        for (int j = 0; j < width; ++j) result.at[j][i] = matrix.at[i][j];
    return result;
}

// Bᵀ: row p holds the coefficients of Π (x − q) over the finite points q other than p.
template <int outputs>
constexpr Matrix<Points<outputs>::count, Points<outputs>::count> interpolation(const Points<outputs>& at) {
    Matrix<at.count, at.count> result{};
    for (int p = 0; p < at.count; ++p) {
        Fraction* row = result.at[p];
        row[0] = {1};
        for (int q = 0; q < at.infinity; ++q) {
            if (q == p) continue;
            for (int k = at.count - 1; k >= 0; --k) row[k] = (k ? row[k - 1] : Fraction{0}) - at.finite[q] * row[k];
        }
    }
    return result;
}

// The matrices of F(outputs, 3): Bᵀ, G for the weights, and Aᵀ.
template <int outputs>
constexpr auto data_matrix = interpolation(accurate<outputs>);
template <int outputs>
constexpr auto weight_matrix = evaluation<taps>(accurate<outputs>, true);
template <int outputs>
constexpr auto output_matrix = transpose(evaluation<outputs>(accurate<outputs>, false));

constexpr auto gradient_matrix = evaluation<4>(accurate<4>, true);                        // G of F(3,4): a tile of the gradient
constexpr auto weight_gradient_matrix = transpose(evaluation<taps>(accurate<4>, false));  // Aᵀ of F(3,4)

// The same for F(4,3) of integers, with the divisions in Aᵀ.
constexpr auto whole_data_matrix = interpolation(whole);
constexpr auto whole_weight_matrix = evaluation<taps>(whole, false);
constexpr auto divided_output_matrix = transpose(evaluation<4>(whole, true));

// Whether Aᵀ [(G g) ⊙ (Bᵀ d)] is the correlation, in exact fractions.
template <int outputs, int size, int points>
constexpr bool correlates(const Matrix<outputs, points>& output, const Matrix<points, size>& weight,
                          const Matrix<points, points>& data) {
    for (int k = 0; k < outputs; ++k)
        for (int j = 0; j < size; ++j)
            for (int i = 0; i < points; ++i) {
                Fraction sum{0};
                for (int p = 0; p < points; ++p) sum = sum + output.at[k][p] * weight.at[p][j] * data.at[p][i];
                if (!(sum == Fraction{i == k + j})) return false;
            }
    return true;
}
static_assert(correlates(output_matrix<4>, weight_matrix<4>, data_matrix<4>));
static_assert(correlates(output_matrix<6>, weight_matrix<6>, data_matrix<6>));
static_assert(correlates(weight_gradient_matrix, gradient_matrix, data_matrix<4>));
static_assert(correlates(divided_output_matrix, whole_weight_matrix, whole_data_matrix));

// The largest sum of a row's numbers, all taken as positive.
template <int height, int width>
constexpr Fraction largest_row(const Matrix<height, width>& matrix) {
    Fraction largest{0};
    for (int i = 0; i < height; ++i) {
        Fraction sum{0};
        for (int j = 0; j < width; ++j) sum = sum + (matrix.at[i][j].above < 0 ? Fraction{-1} : Fraction{1}) * matrix.at[i][j];
        if ((largest - sum).above < 0) largest = sum;
    }
    return largest;
}
constexpr Fraction largest_data = largest_row(whole_data_matrix), largest_weight = largest_row(whole_weight_matrix);
static_assert((largest_data * largest_data * Fraction{255} - Fraction{32767}).above <= 0, "transformed numbers have 16 bits");
static_assert((largest_weight * largest_weight * Fraction{128} - Fraction{32767}).above <= 0, "and so have weights");

}  // namespace svertka::winograd
