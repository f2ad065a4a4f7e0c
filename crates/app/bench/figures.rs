//! Mean, median, standard deviation and percentiles with numpy's definitions, so that results can
//! be compared with those of tools that use numpy.

/// Statistics of a set of numbers; all are 0 if the set is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) mean: f64,
    pub(super) deviation: f64,
    sorted: Vec<f64>,
}

impl Figures {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return Self::default();
        }
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let variance = sorted.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self { mean, deviation: variance.sqrt(), sorted }
    }

    /// A percentile, interpolated between the two nearest numbers.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.sorted.len().checked_sub(1) else { return 0.0 };
        let place = percent / 100.0 * last as f64;
        let below = self.sorted[place.floor() as usize];
        let above = self.sorted[place.ceil() as usize];
        below + (above - below) * place.fract()
    }

    pub(super) fn median(&self) -> f64 {
        self.percentile(50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numpys() {
        let figures = Figures::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((figures.mean, figures.median()), (2.5, 2.5));
        assert!((figures.deviation - 1.25_f64.sqrt()).abs() < 1e-12);
        assert!((figures.percentile(99.0) - 3.97).abs() < 1e-12);
        assert_eq!((figures.percentile(0.0), figures.percentile(100.0)), (1.0, 4.0));
        let none = Figures::of([]);
        assert_eq!((none.mean, none.percentile(99.0)), (0.0, 0.0));
    }
}
