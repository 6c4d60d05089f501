//! Bytes as a function of the step, for one array and for all of them.

use lamella_codec::{Point, Rate};

/// What one array costs at any step, from a few measured points.
///
/// Between measured points bytes are linear in the logarithm of the step (they are close to it: twice the step is a
/// bit less per element), beyond the coarsest the last piece goes on down to zero, and beyond the finest each halving
/// costs a bit per element.
///
/// ```
/// use lamella_codec::{Point, Rate};
/// use lamella_rate::{RateCurve, common_step};
/// let point = |step: f64, bytes: f64| Point { rate: Rate::Step(step), bytes, distortion: 0.0 };
/// let curve = RateCurve::new(&[point(0.25, 300.0), point(1.0, 100.0)], 800, 1.0);
/// assert_eq!((curve.bytes(-1.0), curve.bytes(-3.0)), (200.0, 400.0));
/// assert_eq!(common_step(&[&curve, &curve], 400.0, 1.0), -1.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RateCurve {
    /// `(log2 step, bytes)`, by rising step.
    points: Vec<(f64, f64)>,
    /// Elements of the array: beyond the finest point each halving of the step costs a bit per element.
    elements: f64,
    /// The array's step over the common one, as a power of two.
    log2_ratio: f64,
}

impl RateCurve {
    /// A curve through measured points, in any order, of an array of so many elements whose step is `step_ratio` times
    /// the one common to all arrays.
    pub fn new(points: &[Point], elements: usize, step_ratio: f64) -> Self {
        let mut curve = Self { points: Vec::new(), elements: elements as f64, log2_ratio: step_ratio.log2() };
        curve.extend(points);
        curve
    }

    /// Adds points.
    pub fn extend(&mut self, points: &[Point]) {
        self.points.extend(points.iter().filter_map(|point| match point.rate {
            Rate::Step(step) if step > 0.0 => Some((step.log2(), point.bytes)),
            _ => None,
        }));
        self.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }

    /// Changes the array's step over the common one.
    pub fn set_ratio(&mut self, step_ratio: f64) {
        self.log2_ratio = step_ratio.log2();
    }

    /// The array's own step where all arrays have the common step `2^log2_step`.
    pub fn step(&self, log2_step: f64) -> f64 {
        (log2_step + self.log2_ratio).exp2()
    }

    /// Predicted bytes at the common step `2^log2_step`.
    pub fn bytes(&self, log2_step: f64) -> f64 {
        let at = log2_step + self.log2_ratio;
        let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0).max(1e-9);
        match &self.points[..] {
            [] => 0.0,
            [only] => (only.1 + (only.0 - at) * self.elements / 8.0).max(0.0),
            [first, ..] if at <= first.0 => first.1 + (first.0 - at) * self.elements / 8.0,
            [.., before, last] if at >= last.0 => (last.1 + slope(*before, *last) * (at - last.0)).max(0.0),
            points => {
                let after = points.partition_point(|point| point.0 <= at).clamp(1, points.len() - 1);
                let (a, b) = (points[after - 1], points[after]);
                a.1 + slope(a, b) * (at - a.0)
            }
        }
    }

    /// Distance in octaves from the common step to the nearest measured point.
    pub fn distance(&self, log2_step: f64) -> f64 {
        let at = log2_step + self.log2_ratio;
        self.points.iter().map(|point| (point.0 - at).abs()).fold(f64::INFINITY, f64::min)
    }
}

/// The common `log2` step at which the curves together predict `bytes`, within the range that steps may have.
pub fn common_step(curves: &[&RateCurve], bytes: f64, correction: f64) -> f64 {
    let total = |at: f64| curves.iter().map(|curve| curve.bytes(at)).sum::<f64>() * correction;
    let (mut fine, mut coarse) = LOG2_STEPS;
    for _ in 0..60 {
        let middle = 0.5 * (fine + coarse);
        if total(middle) > bytes { fine = middle } else { coarse = middle }
    }
    coarse
}

/// The finest and coarsest common step that is tried.
pub const LOG2_STEPS: (f64, f64) = (-14.0, 8.0);

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: f64, bytes: f64) -> Point {
        Point { rate: Rate::Step(step), bytes, distortion: 0.0 }
    }

    #[test]
    fn between_points_linear_beyond_them_a_bit_an_octave() {
        let curve = RateCurve::new(&[point(1.0, 100.0), point(0.25, 300.0)], 800, 1.0);
        assert_eq!(curve.bytes(-1.0), 200.0);
        assert_eq!(curve.bytes(-4.0), 500.0);
        assert_eq!(curve.bytes(1.0), 0.0);
        assert_eq!(common_step(&[&curve, &curve], 400.0, 1.0), -1.0);
    }
}
