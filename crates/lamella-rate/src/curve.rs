//! Bytes and distortion of an array as functions of the step.

use lamella_codec::{Point, Rate};

/// What one array costs at any step, from a few measured points.
///
/// Between measured points bytes are linear in the logarithm of the step (they are close to it: twice the step
/// is a bit less per element) and distortion is a power of it; outside, the outermost piece goes on, bytes never
/// below zero. Measured bytes that rise with the step, as noise makes them do, are averaged with their
/// neighbours, so that the curve falls and its inverse is unique.
///
/// ```
/// use lamella_codec::{Point, Rate};
/// use lamella_rate::RateCurve;
/// let point = |step: f64, bytes: f64, distortion: f64| Point { rate: Rate::Step(step), bytes, distortion };
/// let curve = RateCurve::new(&[point(0.5, 1000.0, 1.0), point(1.0, 800.0, 4.0)])?;
/// assert_eq!(curve.bytes_at(1.0), 800.0);
/// assert!((curve.bytes_at(2.0) - 600.0).abs() < 1e-9);
/// assert!((curve.distortion_at(2.0) - 16.0).abs() < 1e-9);
/// assert!((curve.step_for_bytes(900.0) - 0.5f64.sqrt()).abs() < 1e-9);
/// # Ok::<(), lamella_rate::CurveError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RateCurve {
    /// Logarithm of the step (rising), bytes (falling strictly), logarithm of the distortion.
    knots: Vec<[f64; 3]>,
}

/// Why points make no curve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CurveError {
    /// A curve needs two different steps.
    #[error("a curve needs points at two different steps, {found} given")]
    TooFew {
        /// Different steps given.
        found: usize,
    },
    /// A point has no step, or a number in it is not finite or negative.
    #[error("point {index} is no step with finite bytes and distortion")]
    BadPoint {
        /// Which one.
        index: usize,
    },
}

impl RateCurve {
    /// The curve through measured points, in any order; of points at one step the mean counts.
    ///
    /// # Errors
    /// Fewer than two different steps; rates other than [`Rate::Step`]; numbers that are not finite.
    pub fn new(points: &[Point]) -> Result<Self, CurveError> {
        let mut knots = Vec::with_capacity(points.len());
        for (index, point) in points.iter().enumerate() {
            let step = if let Rate::Step(step) = point.rate { step } else { f64::NAN };
            let is_sound = step > 0.0
                && step.is_finite()
                && point.bytes >= 0.0
                && point.bytes.is_finite()
                && point.distortion >= 0.0
                && point.distortion.is_finite();
            if !is_sound {
                return Err(CurveError::BadPoint { index });
            }
            knots.push([step.ln(), point.bytes, point.distortion.max(1e-300).ln(), 1.0]);
        }
        knots.sort_by(|a, b| a[0].total_cmp(&b[0]));
        // Pool neighbours that violate the order (pool adjacent violators); equal steps are pooled as well.
        let mut pooled: Vec<[f64; 4]> = Vec::with_capacity(knots.len());
        let mut n_steps = 0;
        for (i, knot) in knots.iter().enumerate() {
            n_steps += usize::from(i == 0 || knots[i - 1][0] < knot[0]);
            let mut knot = *knot;
            while let Some(last) =
                pooled.last().copied().filter(|last| last[0] == knot[0] || last[1] <= knot[1])
            {
                pooled.pop();
                let weight = last[3] + knot[3];
                for k in 0..3 {
                    knot[k] = (last[k] * last[3] + knot[k] * knot[3]) / weight;
                }
                knot[3] = weight;
            }
            pooled.push(knot);
        }
        if n_steps < 2 {
            return Err(CurveError::TooFew { found: n_steps });
        }
        Ok(Self { knots: pooled.iter().map(|&[x, bytes, distortion, _]| [x, bytes, distortion]).collect() })
    }

    /// The line around `x`: its left knot and the slopes of bytes and log distortion.
    fn piece(&self, right: usize) -> ([f64; 3], f64, f64) {
        let [.., last] = self.knots[..] else { return ([0.0; 3], 0.0, 0.0) };
        if self.knots.len() == 1 {
            // Everything was pooled: flat bytes, distortion as the square of the step.
            return (last, 0.0, 2.0);
        }
        let right = right.clamp(1, self.knots.len() - 1);
        let (a, b) = (self.knots[right - 1], self.knots[right]);
        let width = b[0] - a[0];
        (a, (b[1] - a[1]) / width, (b[2] - a[2]) / width)
    }

    /// Bytes at a step.
    pub fn bytes_at(&self, step: f64) -> f64 {
        let x = step.ln();
        let (knot, slope, _) = self.piece(self.knots.partition_point(|knot| knot[0] < x));
        (knot[1] + slope * (x - knot[0])).max(0.0)
    }

    /// Distortion at a step.
    pub fn distortion_at(&self, step: f64) -> f64 {
        let x = step.ln();
        let (knot, _, slope) = self.piece(self.knots.partition_point(|knot| knot[0] < x));
        (knot[2] + slope * (x - knot[0])).exp()
    }

    /// The step at which the array has so many bytes: the inverse of [`RateCurve::bytes_at`] where that is above
    /// zero. A flat curve gives its own step.
    pub fn step_for_bytes(&self, bytes: f64) -> f64 {
        let (knot, slope, _) = self.piece(self.knots.partition_point(|knot| knot[1] > bytes));
        if slope == 0.0 { knot[0].exp() } else { (knot[0] + (bytes - knot[1]) / slope).exp() }
    }
}

/// How finished arrays turned out against their curves: what is still to come is expected to err alike.
///
/// Bytes that finished arrays left unspent (or overspent) are carried on by asking [`common_step`] for what the
/// rest of the budget buys, with this factor on its curves.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Correction {
    predicted_bytes: f64,
    actual_bytes: f64,
}

impl Correction {
    /// Takes note of a finished array.
    pub fn record(&mut self, predicted_bytes: f64, actual_bytes: f64) {
        self.predicted_bytes += predicted_bytes;
        self.actual_bytes += actual_bytes;
    }
    /// Actual over predicted bytes so far, held within [0.5, 2]; 1 before the first array.
    pub fn factor(self) -> f64 {
        if self.predicted_bytes > 0.0 {
            (self.actual_bytes / self.predicted_bytes).clamp(0.5, 2.0)
        } else {
            1.0
        }
    }
}

/// The step that spends `bytes` on all arrays together, array `i` being coded at `step * multiplier[i]`.
///
/// Each pair is a curve and its multiplier; predicted bytes are scaled by `correction`. The answer is found by
/// bisection on the logarithm of the step, to 1e-12 of it, and is bounded to [1e-12, 1e12].
pub fn common_step(arrays: &[(&RateCurve, f64)], bytes: f64, correction: Correction) -> f64 {
    let factor = correction.factor();
    let total = |step: f64| arrays.iter().map(|(curve, m)| curve.bytes_at(step * m) * factor).sum::<f64>();
    let (mut low, mut high) = (1e-12f64.ln(), 1e12f64.ln());
    // Total bytes fall with the step; 64 halvings exhaust the precision of an f64.
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if total(middle.exp()) > bytes { low = middle } else { high = middle }
    }
    high.exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64, f64)]) -> Result<RateCurve, CurveError> {
        let points: Vec<Point> = points
            .iter()
            .map(|&(step, bytes, distortion)| Point { rate: Rate::Step(step), bytes, distortion })
            .collect();
        RateCurve::new(&points)
    }
    /// A Gaussian array of `n` elements: a bit less per element each time the step doubles.
    fn gaussian(n: f64, spread: f64) -> RateCurve {
        let at = |step: f64| (step, n / 8.0 * (spread / step).log2() + n / 4.0, n * step * step / 12.0);
        curve(&[at(0.1), at(0.4), at(1.0)]).unwrap()
    }

    #[test]
    fn measured_points_return_and_the_inverse_inverts() {
        let curve = curve(&[(0.1, 900.0, 0.01), (1.0, 300.0, 1.5), (0.3, 600.0, 0.2)]).unwrap();
        for (step, bytes, distortion) in [(0.1, 900.0, 0.01), (0.3, 600.0, 0.2), (1.0, 300.0, 1.5)] {
            assert!((curve.bytes_at(step) - bytes).abs() < 1e-9);
            assert!((curve.distortion_at(step) / distortion - 1.0).abs() < 1e-9);
        }
        for step in [0.01, 0.1, 0.2, 0.3, 0.7, 1.0, 1.9] {
            assert!((curve.step_for_bytes(curve.bytes_at(step)) / step - 1.0).abs() < 1e-9, "{step}");
        }
        assert_eq!(curve.bytes_at(1e9), 0.0);
    }

    #[test]
    fn noise_is_pooled_into_a_falling_curve() {
        let curve =
            curve(&[(0.1, 900.0, 0.01), (0.2, 700.0, 0.1), (0.3, 710.0, 0.2), (1.0, 300.0, 1.5)]).unwrap();
        let bytes: Vec<f64> = (1..100).map(|i| curve.bytes_at(f64::from(i) * 0.02)).collect();
        assert!(bytes.windows(2).all(|pair| pair[0] > pair[1] || pair[1] == 0.0));
        let flat = super::tests::curve(&[(0.1, 5.0, 1.0), (0.2, 5.0, 4.0)]).unwrap();
        assert_eq!(flat.bytes_at(7.0), 5.0);
        assert!(flat.step_for_bytes(3.0).is_finite());
    }

    #[test]
    fn bad_points_are_named() {
        assert_eq!(curve(&[(0.1, 1.0, 1.0), (0.1, 2.0, 1.0)]), Err(CurveError::TooFew { found: 1 }));
        assert_eq!(curve(&[]), Err(CurveError::TooFew { found: 0 }));
        assert_eq!(curve(&[(0.1, 1.0, 1.0), (-0.1, 2.0, 1.0)]), Err(CurveError::BadPoint { index: 1 }));
        let fixed = Point { rate: Rate::Recipe, bytes: 1.0, distortion: 1.0 };
        assert_eq!(RateCurve::new(&[fixed]), Err(CurveError::BadPoint { index: 0 }));
    }

    #[test]
    fn unspent_bytes_are_carried_on_to_the_target() {
        // Eight arrays whose curves promise 6 % fewer bytes than coding takes, give or take 2 %.
        let curves: Vec<RateCurve> = (0..8).map(|i| gaussian(1000.0 * f64::from(i + 1), 2.0)).collect();
        let arrays: Vec<(&RateCurve, f64)> = curves.iter().map(|curve| (curve, 1.0)).collect();
        let (target, mut spent, mut correction) = (10_000.0, 0.0, Correction::default());
        for i in 0..arrays.len() {
            let step = common_step(&arrays[i..], target - spent, correction);
            let actual = curves[i].bytes_at(step) * (1.06 + 0.02 * f64::from(i as u32 % 3) - 0.02);
            correction.record(curves[i].bytes_at(step), actual);
            spent += actual;
        }
        assert!((spent / target - 1.0).abs() < 0.01, "{spent}");
        let step = common_step(&arrays, target, Correction::default());
        assert!(
            (arrays.iter().map(|(curve, _)| curve.bytes_at(step)).sum::<f64>() / target - 1.0).abs() < 1e-9
        );
    }
}
