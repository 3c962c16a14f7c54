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
};

constexpr int points = 6;        // n
constexpr int infinity = 5;      // the index of ∞
constexpr Fraction finite[] = {{0}, {5, 8}, {-5, 8}, {3, 2}, {-3, 2}};  // opposite points are neighbors

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

// Values of a polynomial with `taps` coefficients: G, or with `divided` false the transpose of A.
template <int taps>
constexpr Matrix<points, taps> evaluation(bool divided) {
    Matrix<points, taps> result{};
    for (int p = 0; p < infinity; ++p) {
        Fraction divisor{1};
        for (int q = 0; q < infinity; ++q)
            if (divided && q != p) divisor = divisor * (finite[p] - finite[q]);
        for (int k = 0; k < taps; ++k) result.at[p][k] = power(finite[p], k) / divisor;
    }
    result.at[infinity][taps - 1] = {1};
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
constexpr Matrix<points, points> interpolation() {
    Matrix<points, points> result{};
    for (int p = 0; p < points; ++p) {
        Fraction* row = result.at[p];
        row[0] = {1};
        for (int q = 0; q < infinity; ++q) {
            if (q == p) continue;
            for (int k = points - 1; k >= 0; --k) row[k] = (k ? row[k - 1] : Fraction{0}) - finite[q] * row[k];
        }
    }
    return result;
}

constexpr auto data_matrix = interpolation();                            // Bᵀ
constexpr auto weight_matrix = evaluation<3>(true);                      // G of F(4,3): the weights
constexpr auto output_matrix = transpose(evaluation<4>(false));         // Aᵀ of F(4,3): 4 outputs
constexpr auto gradient_matrix = evaluation<4>(true);                    // G of F(3,4): a tile of the gradient
constexpr auto weight_gradient_matrix = transpose(evaluation<3>(false));  // Aᵀ of F(3,4): 3 taps

// Whether Aᵀ [(G g) ⊙ (Bᵀ d)] is the correlation, in exact fractions.
template <int outputs, int taps>
constexpr bool correlates(const Matrix<outputs, points>& output, const Matrix<points, taps>& weight) {
    for (int k = 0; k < outputs; ++k)
        for (int j = 0; j < taps; ++j)
            for (int i = 0; i < points; ++i) {
                Fraction sum{0};
                for (int p = 0; p < points; ++p) sum = sum + output.at[k][p] * weight.at[p][j] * data_matrix.at[p][i];
                if (!(sum == Fraction{i == k + j})) return false;
            }
    return true;
}
static_assert(correlates(output_matrix, weight_matrix) && correlates(weight_gradient_matrix, gradient_matrix));

}  // namespace svertka::winograd
