//! Sums of products with a fixed order of summation: dot products of many rows with many vectors,
//! and weighted sums of rows. Both work on a tile at a time, as large as the registers of the
//! vector unit allow. Its size does not change the results.

#![expect(clippy::needless_range_loop, reason = "arrays are registers only if loops count so")]

use pulp::Simd;

use crate::prefetch::Ahead;

/// Partial sums of a dot product: element i goes to sum i % LANES, and then the upper half of them
/// is added to the lower, down to one. Their number is the same on every vector unit, and large
/// enough to keep two units of AVX-512 busy.
const LANES: usize = 32;

/// Registers that hold [`LANES`] values.
const fn registers<S: Simd>() -> usize {
    LANES / S::F32_LANES
}

/// Products of rows with vectors.
pub(crate) struct Products<'a, 'b> {
    /// Values of each row and vector.
    pub(crate) cols: usize,
    /// Rows, one after the other.
    pub(crate) w: &'a [f32],
    pub(crate) x: &'a [&'a [f32]],
    /// The product of row r and vector i is `out[i][first + r]`.
    pub(crate) out: &'a mut [&'b mut [f32]],
    pub(crate) first: usize,
    /// Memory that is read after the rows.
    pub(crate) ahead: &'a [u8],
}

impl Products<'_, '_> {
    #[inline(always)]
    pub(crate) fn compute<S: Simd>(mut self, simd: S) {
        let (n, mut i) = (self.x.len(), 0);
        let tiles = n.div_ceil(2) * (self.w.len() / self.cols / 4);
        let ahead = &mut Ahead::new(self.ahead, tiles);
        // As many partial sums as fit the registers beside the values: those of a dot product take
        // two of the 32 registers with 16 lanes, or four of the 16 with 8.
        while n - i >= 2 && S::F32_LANES > 1 {
            if S::F32_LANES == 16 {
                self.strip::<S, 4, 2>(simd, i, ahead);
            } else {
                self.strip::<S, 1, 2>(simd, i, ahead);
            }
            i += 2;
        }
        while n > i {
            if S::F32_LANES == 16 {
                self.strip::<S, 4, 1>(simd, i, ahead);
            } else {
                self.strip::<S, 1, 1>(simd, i, ahead);
            }
            i += 1;
        }
    }

    /// All rows times `N` vectors from the `i`-th on, `M` rows at a time.
    #[inline(always)]
    fn strip<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        i: usize,
        ahead: &mut Ahead<'_>,
    ) {
        let mut x = [&[][..]; N];
        x.copy_from_slice(&self.x[i..i + N]);
        let (w, cols) = (self.w, self.cols);
        let tiles = w.chunks_exact(M * cols);
        let rest = tiles.remainder().chunks_exact(cols);
        let first = tiles.len() * M;
        for (tile, w) in tiles.enumerate() {
            ahead.ask();
            let mut rows = [&[][..]; M];
            for m in 0..M {
                rows[m] = &w[m * cols..][..cols];
            }
            self.put(tile * M, i, dots::<S, M, N>(simd, rows, x));
        }
        for (row, w) in (first..).zip(rest) {
            self.put(row, i, dots::<S, 1, N>(simd, [w], x));
        }
    }

    #[inline(always)]
    fn put<const M: usize, const N: usize>(
        &mut self,
        row: usize,
        i: usize,
        products: [[f32; N]; M],
    ) {
        for n in 0..N {
            let out = &mut self.out[i + n][self.first + row..][..M];
            for m in 0..M {
                out[m] = products[m][n];
            }
        }
    }
}

/// Dot products of `M` rows with `N` vectors of the same length.
#[inline(always)]
pub(crate) fn dots<S: Simd, const M: usize, const N: usize>(
    simd: S,
    w: [&[f32]; M],
    x: [&[f32]; N],
) -> [[f32; N]; M] {
    // When compiled for a vector unit, only one arm is left.
    match registers::<S>() {
        2 => dots_in::<S, M, N, 2>(simd, w, x),
        4 => dots_in::<S, M, N, 4>(simd, w, x),
        8 => dots_in::<S, M, N, 8>(simd, w, x),
        _ => dots_in::<S, M, N, LANES>(simd, w, x),
    }
}

#[inline(always)]
fn dots_in<S: Simd, const M: usize, const N: usize, const R: usize>(
    simd: S,
    w: [&[f32]; M],
    x: [&[f32]; N],
) -> [[f32; N]; M] {
    let cols = w[0].len();
    let whole = cols / LANES * LANES;
    let (mut w_runs, mut x_runs) = ([&[][..]; M], [&[][..]; N]);
    for m in 0..M {
        w_runs[m] = runs::<S, R>(w[m], whole);
    }
    for n in 0..N {
        x_runs[n] = runs::<S, R>(x[n], whole);
    }
    let mut sums = [[[simd.splat_f32s(0.0); R]; N]; M];
    for run in 0..whole / LANES {
        for m in 0..M {
            for n in 0..N {
                for r in 0..R {
                    let (w, x) = (w_runs[m][run][r], x_runs[n][run][r]);
                    sums[m][n][r] = simd.mul_add_f32s(w, x, sums[m][n][r]);
                }
            }
        }
    }
    if whole < cols {
        let mut x_last = [[simd.splat_f32s(0.0); R]; N];
        for n in 0..N {
            x_last[n] = last::<S, R>(simd, &x[n][whole..]);
        }
        for m in 0..M {
            let w = last::<S, R>(simd, &w[m][whole..]);
            for n in 0..N {
                for r in 0..R {
                    sums[m][n][r] = simd.mul_add_f32s(w[r], x_last[n][r], sums[m][n][r]);
                }
            }
        }
    }
    let mut products = [[0.0; N]; M];
    for m in 0..M {
        for n in 0..N {
            products[m][n] = tree_sum(simd, sums[m][n]);
        }
    }
    products
}

/// The first `count` values as runs of [`LANES`].
#[inline(always)]
fn runs<S: Simd, const R: usize>(values: &[f32], count: usize) -> &[[S::f32s; R]] {
    &S::as_simd_f32s(&values[..count]).0.as_chunks().0[..count / LANES]
}

/// Fewer than [`LANES`] values and zeros, which add nothing.
#[inline(always)]
fn last<S: Simd, const R: usize>(simd: S, mut values: &[f32]) -> [S::f32s; R] {
    let mut registers = [simd.splat_f32s(0.0); R];
    for register in &mut registers {
        let (now, later) = values.split_at(values.len().min(S::F32_LANES));
        *register = match S::as_simd_f32s(now) {
            ([whole], _) => *whole,
            ([], []) => *register,
            (_, part) => simd.partial_load_f32s(part),
        };
        values = later;
    }
    registers
}

/// The sum of partial sums.
#[inline(always)]
fn tree_sum<S: Simd, const R: usize>(simd: S, mut sums: [S::f32s; R]) -> f32 {
    let mut half = R / 2;
    while half > 0 {
        for r in 0..half {
            sums[r] = simd.add_f32s(sums[r], sums[r + half]);
        }
        half /= 2;
    }
    // Within a register too halves are added, down to one value.
    simd.reduce_sum_f32s(sums[0])
}

/// Weighted sums of rows.
pub(crate) struct WeightedSums<'a, 'b> {
    /// Values of each row and sum.
    pub(crate) cols: usize,
    /// Rows, one after the other.
    pub(crate) values: &'a [f32],
    /// The weight of row r in sum i is `weights[i * stride + r]`.
    pub(crate) weights: &'a [f32],
    pub(crate) stride: usize,
    /// Sums, to which rows are added in their order.
    pub(crate) out: &'a mut [&'b mut [f32]],
}

impl WeightedSums<'_, '_> {
    #[inline(always)]
    pub(crate) fn add<S: Simd>(mut self, simd: S) {
        let (n, mut i) = (self.out.len(), 0);
        while n - i >= 4 {
            self.add_to::<S, 4>(simd, i);
            i += 4;
        }
        while n > i {
            self.add_to::<S, 1>(simd, i);
            i += 1;
        }
    }

    /// Adds to `N` sums from the `i`-th on.
    #[inline(always)]
    fn add_to<S: Simd, const N: usize>(&mut self, simd: S, i: usize) {
        let (cols, mut col) = (self.cols, 0);
        // Two registers of each sum: with four sums enough to keep two units busy.
        while cols - col >= 2 * S::F32_LANES {
            self.add_cols::<S, N, 2>(simd, i, col);
            col += 2 * S::F32_LANES;
        }
        while cols - col >= S::F32_LANES {
            self.add_cols::<S, N, 1>(simd, i, col);
            col += S::F32_LANES;
        }
        if col == cols {
            return;
        }
        for (out, i) in self.out[i..i + N].iter_mut().zip(i..) {
            let weights = &self.weights[i * self.stride..];
            for (values, weight) in self.values.chunks_exact(cols).zip(weights) {
                add_scaled(&mut out[col..], *weight, &values[col..]);
            }
        }
    }

    /// As many columns from `col` on as `R` registers hold.
    #[inline(always)]
    fn add_cols<S: Simd, const N: usize, const R: usize>(&mut self, simd: S, i: usize, col: usize) {
        let (cols, stride, count) = (self.cols, self.stride, self.values.len() / self.cols);
        let span = col..col + R * S::F32_LANES;
        let (mut sums, mut weights) = ([[simd.splat_f32s(0.0); R]; N], [&[][..]; N]);
        for n in 0..N {
            sums[n] = registers_at::<S, R>(&self.out[i + n][span.clone()]);
            weights[n] = &self.weights[(i + n) * stride..][..count];
        }
        for row in 0..count {
            let values = registers_at::<S, R>(&self.values[row * cols..][span.clone()]);
            for n in 0..N {
                let weight = simd.splat_f32s(weights[n][row]);
                for r in 0..R {
                    sums[n][r] = simd.mul_add_f32s(weight, values[r], sums[n][r]);
                }
            }
        }
        for n in 0..N {
            let sums = sums[n];
            S::as_mut_simd_f32s(&mut self.out[i + n][span.clone()]).0.copy_from_slice(&sums);
        }
    }
}

#[inline(always)]
fn registers_at<S: Simd, const R: usize>(values: &[f32]) -> [S::f32s; R] {
    S::as_simd_f32s(values).0.as_chunks().0[0]
}

/// The sum of the values of each run, in their order.
#[inline(always)]
pub(crate) fn sum_each(runs: &[&mut [f32]], sums: &mut [f32]) {
    // Four at once: an addition waits for the one before it.
    const N: usize = 4;
    for (runs, sums) in runs.chunks(N).zip(sums.chunks_mut(N)) {
        let (mut totals, mut common) = ([0.0; N], 0);
        if let [a, b, c, d] = runs {
            common = a.len().min(b.len()).min(c.len()).min(d.len());
            let heads = [&a[..common], &b[..common], &c[..common], &d[..common]];
            for i in 0..common {
                for n in 0..N {
                    totals[n] += heads[n][i];
                }
            }
        }
        for ((sum, total), run) in sums.iter_mut().zip(totals).zip(runs) {
            *sum = run[common..].iter().fold(total, |sum, value| sum + value);
        }
    }
}

/// y += a * x
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::Vectorised;

    struct Both<'a> {
        cols: usize,
        w: &'a [f32],
        x: &'a [f32],
        out: &'a mut [f32],
    }

    /// Products `[n, rows]` in the first part of `out`, and for each vector the sum of the rows
    /// weighted by its products in the second.
    impl Vectorised for Both<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Self { cols, w, x, out } = self;
            let (rows, x) = (w.len() / cols, x.chunks_exact(cols).collect::<Vec<_>>());
            let (dots, sums) = out.split_at_mut(rows * x.len());
            let mut places: Vec<_> = dots.chunks_exact_mut(rows).collect();
            Products { cols, w, x: &x, out: &mut places, first: 0, ahead: &[] }.compute(simd);
            let mut sums: Vec<_> = sums.chunks_exact_mut(cols).collect();
            WeightedSums { cols, values: w, weights: dots, stride: rows, out: &mut sums }.add(simd);
        }
    }

    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 61) as f32 / 7.0 - 4.0).collect()
    }

    #[test]
    fn results_depend_neither_on_company_nor_on_the_vector_unit() {
        for cols in [1, 12, 16, 31, 32, 48, 77, 96] {
            for (rows, n) in [(1, 1), (1, 2), (5, 7), (3, 4), (4, 1), (9, 11)] {
                let (w, x) = (values(0, rows * cols), values(1, n * cols));
                let mut wide = vec![0.5; n * (rows + cols)];
                let (mut narrow, mut alone) = (wide.clone(), wide.clone());
                Both { cols, w: &w, x: &x, out: &mut wide }.dispatch();
                Both { cols, w: &w, x: &x, out: &mut narrow }.run(pulp::Scalar);
                assert_eq!(wide, narrow, "{rows} rows of {cols}, {n} vectors");
                #[cfg(target_arch = "x86_64")]
                if let Some(unit) = pulp::x86::V3::try_new() {
                    narrow.fill(0.5);
                    Both { cols, w: &w, x: &x, out: &mut narrow }.run(unit);
                    assert_eq!(wide, narrow, "{rows} rows of {cols}, {n} vectors");
                }
                for (i, x) in x.chunks_exact(cols).enumerate() {
                    let mut out = vec![0.5; rows + cols];
                    Both { cols, w: &w, x, out: &mut out }.dispatch();
                    alone[i * rows..][..rows].copy_from_slice(&out[..rows]);
                    alone[n * rows + i * cols..][..cols].copy_from_slice(&out[rows..]);
                    for (row, w) in w.chunks_exact(cols).enumerate() {
                        let mut out = vec![0.5; 1 + cols];
                        Both { cols, w, x, out: &mut out }.dispatch();
                        assert_eq!(out[0], alone[i * rows + row]);
                    }
                }
                assert_eq!(wide, alone, "{rows} rows of {cols}, {n} vectors");
            }
        }
    }

    #[test]
    fn results_are_right() {
        let (cols, rows) = (77, 3);
        let (w, x) = (values(0, rows * cols), values(1, cols));
        let mut out = vec![0.0; rows + cols];
        Both { cols, w: &w, x: &x, out: &mut out }.dispatch();
        let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
        let mut sums = vec![0.0; cols];
        for (dot, w) in out.iter().zip(w.chunks_exact(cols)) {
            let exact: f64 = wide(w).iter().zip(wide(&x)).map(|(w, x)| w * x).sum();
            assert!((f64::from(*dot) - exact).abs() < 1e-3);
            sums.iter_mut().zip(wide(w)).for_each(|(sum, w)| *sum += exact * w);
        }
        for (found, exact) in out[rows..].iter().zip(sums) {
            assert!((f64::from(*found) - exact).abs() < 1e-2);
        }
    }
}
