//! Meeting a target by measuring: a bracketed secant search on a falling, slightly noisy function.

/// Finds where a function that falls with its argument lies in a window.
///
/// The function is bytes against the logarithm of a step, say. It may be noisy (a little up and down on its way
/// down), each evaluation is dear, and the upper end of the window is a hard limit. So the search brackets the
/// window, takes secant steps on the logarithm of the values (which is close to linear for coded sizes, and the
/// Illinois rule keeps both ends moving), halves the bracket where secants stall, and returns the largest value
/// within the limit that was *seen*: never an interpolated one.
///
/// ```
/// use lamella_rate::Search;
/// let bytes_at = |log_step: f64| Ok::<_, std::convert::Infallible>((1e6 * (-log_step).exp2()).round());
/// let found = Search::new(-8.0..=8.0, 99_000.0..=100_000.0).run(0.0, bytes_at)?;
/// assert!(found.is_within && found.value <= 100_000.0 && found.n_evaluations <= 5);
/// # Ok::<(), lamella_rate::SearchError<std::convert::Infallible>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    range: (f64, f64),
    window: (f64, f64),
    max_evaluations: usize,
}

/// Where a search ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The argument.
    pub argument: f64,
    /// What was measured there; never above the window.
    pub value: f64,
    /// Whether the value lies in the window. Where it does not, the function jumps over the window, ends below
    /// it, or the evaluations were used up; the value is the largest seen below the window.
    pub is_within: bool,
    /// Evaluations made.
    pub n_evaluations: usize,
}

/// Why a search has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError<E> {
    /// Nothing seen is within the limit; the smallest value seen is at the end of the range or near it.
    #[error("the smallest value reached is {smallest}, the limit is {limit}")]
    Unreachable {
        /// Smallest value seen.
        smallest: f64,
        /// Upper end of the window.
        limit: f64,
    },
    /// The function failed.
    #[error(transparent)]
    Failed(#[from] E),
}

impl Search {
    /// Looks for an argument in `range` with a value in `window` (low and high end, both allowed), in at most 24
    /// evaluations.
    pub fn new(range: std::ops::RangeInclusive<f64>, window: std::ops::RangeInclusive<f64>) -> Self {
        Self {
            range: (*range.start(), *range.end()),
            window: (*window.start(), *window.end()),
            max_evaluations: 24,
        }
    }
    /// Bounds the evaluations, at least two.
    pub fn with_max_evaluations(mut self, n: usize) -> Self {
        self.max_evaluations = n.max(2);
        self
    }

    /// Searches from `start` (clamped into the range). Same function, same path.
    ///
    /// # Errors
    /// [`SearchError::Unreachable`], or the function's own error.
    pub fn run<E>(
        &self,
        start: f64,
        mut function: impl FnMut(f64) -> Result<f64, E>,
    ) -> Result<Found, SearchError<E>> {
        let (low, high) = self.range;
        let (floor, limit) = self.window;
        let aim = (floor + limit) / 2.0;
        // A distance to the aim whose sign is the side and whose size is nearly linear in the argument.
        let excess = |value: f64| (value.max(1e-300) / aim.max(1e-300)).ln();
        let mut best: Option<(f64, f64)> = None;
        let mut smallest = f64::INFINITY;
        let mut n_evaluations = 0;
        let mut measure = |argument: f64| -> Result<f64, SearchError<E>> {
            let value = function(argument)?;
            n_evaluations += 1;
            smallest = smallest.min(value);
            if value <= limit && best.is_none_or(|(_, known)| value > known) {
                best = Some((argument, value));
            }
            Ok(value)
        };
        let is_done = |value: f64| value >= floor && value <= limit;

        // Bracket: `left` has too much, `right` too little. Strides double, so ln(range) evaluations suffice.
        let mut argument = start.max(low).min(high);
        let mut left: Option<(f64, f64)> = None;
        let mut right: Option<(f64, f64)> = None;
        let mut stride = 1.0;
        let mut used = 0;
        let mut last_side = 0;
        while used < self.max_evaluations {
            let value = measure(argument)?;
            used += 1;
            if is_done(value) {
                break;
            }
            let side = if value > limit { 1 } else { -1 };
            let end = (argument, excess(value));
            // Illinois: an end kept twice in a row counts half, or secants creep towards it.
            let kept = if side == 1 { &mut right } else { &mut left };
            if let Some((_, weight)) = kept.as_mut().filter(|_| side == last_side) {
                *weight /= 2.0;
            }
            *if side == 1 { &mut left } else { &mut right } = Some(end);
            last_side = side;
            argument = match (left, right) {
                (Some(_), None) if argument >= high => break,
                (None, Some(_)) if argument <= low => break,
                (Some((at, _)), None) => {
                    stride *= 2.0;
                    (at + stride / 2.0).min(high)
                }
                (None, Some((at, _))) => {
                    stride *= 2.0;
                    (at - stride / 2.0).max(low)
                }
                (Some((a, above)), Some((b, below))) => {
                    let width = b - a;
                    if width.abs() <= f64::EPSILON * (a.abs() + b.abs()) {
                        break;
                    }
                    let secant = a + width * above / (above - below);
                    // Every fourth step halves, which bounds the work whatever the function does.
                    let is_inside = secant > a.min(b) && secant < a.max(b);
                    if is_inside && used % 4 != 3 { secant } else { a + width / 2.0 }
                }
                (None, None) => break,
            };
        }
        match best {
            Some((argument, value)) => {
                Ok(Found { argument, value, is_within: is_done(value), n_evaluations })
            }
            None => Err(SearchError::Unreachable { smallest, limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn run(search: &Search, start: f64, f: impl Fn(f64) -> f64) -> Result<Found, SearchError<Infallible>> {
        search.run(start, |x| Ok(f(x)))
    }
    /// A fixed wiggle of up to `size`, different at every argument.
    fn noise(x: f64, size: f64) -> f64 {
        let z = x.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        1.0 + size * ((z >> 32) as f64 / (1u64 << 31) as f64 - 1.0)
    }

    #[test]
    fn sizes_with_noise_are_met_within_a_percent() {
        let mut most = 0;
        for case in 0..200 {
            let base = 1e4 * 1.07f64.powi(case);
            let slope = 0.3 + f64::from(case % 7) * 0.2;
            let floor_bytes = base * 0.02;
            let f = |x: f64| ((base * (-slope * x).exp() + floor_bytes) * noise(x, 0.003)).round();
            let target = base * (0.05 + f64::from(case % 31) * 0.1);
            let search = Search::new(-20.0..=20.0, 0.99 * target..=target);
            let found = run(&search, f64::from(case % 5) - 2.0, f).unwrap();
            assert!(found.is_within, "case {case}: {found:?}, target {target}");
            assert!(found.value == f(found.argument));
            most = most.max(found.n_evaluations);
        }
        assert!(most <= 16, "{most} evaluations");
    }

    #[test]
    fn what_cannot_be_reached_is_an_error_with_the_smallest() {
        let search = Search::new(-4.0..=4.0, 9.9..=10.0);
        let error = run(&search, 0.0, |x| 100.0 - x).unwrap_err();
        assert_eq!(error, SearchError::Unreachable { smallest: 96.0, limit: 10.0 });
    }

    #[test]
    fn everything_fits_or_a_jump_gives_the_best_below() {
        let search = Search::new(-4.0..=4.0, 990.0..=1000.0);
        let found = run(&search, 1.0, |x| 100.0 - x).unwrap();
        assert_eq!((found.argument, found.value, found.is_within), (-4.0, 104.0, false));
        let jump = run(&search, 1.0, |x| if x < 0.7 { 1200.0 } else { 800.0 }).unwrap();
        assert_eq!((jump.value, jump.is_within), (800.0, false));
        assert!(jump.n_evaluations <= 24);
    }

    #[test]
    fn the_functions_own_error_comes_out_and_evaluations_are_bounded() {
        let search = Search::new(-4.0..=4.0, 1.0..=2.0).with_max_evaluations(5);
        assert_eq!(search.run(0.0, |_| Err::<f64, _>("full")), Err(SearchError::Failed("full")));
        let mut n = 0;
        let result = search.run(0.0, |x: f64| {
            n += 1;
            Ok::<_, Infallible>(if x < 3.123 { 3.0 } else { 0.5 })
        });
        assert!(n <= 5 && result.is_ok_and(|found| !found.is_within));
    }
}
