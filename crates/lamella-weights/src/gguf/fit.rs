//! The scale search: which scale (and minimum) suits a group of weights.
//!
//! A group's error is `sum_i w_i (x_i - v_i)^2` with `v_i` on the grid and `w_i` what an error of that column
//! costs. The search tries scales around the one that puts the largest value on the outermost level, rounds, and
//! fits scale (and minimum) to the rounded codes by least squares.

use lamella_io::BlockForm;

/// Steps of the search for a group's scale.
pub(super) const STEPS: usize = 9;
/// What the steps of the search shrink by, likeliest first.
const ORDER: [f32; STEPS] = [0.0, 2.0, 4.0, -1.0, 1.0, 3.0, 5.0, -2.0, 6.0];
/// Steps where the scale only sets the unit that groups' scales are counted in.
pub(super) const FEW_STEPS: usize = 3;

/// Rounds `values` on a grid; the weighted squared error, codes written where there is room.
pub(super) fn round(
    form: &BlockForm,
    values: &[f32],
    weights: &[f32],
    scale: f32,
    minimum: f32,
    mut codes: Option<&mut [u8]>,
) -> f64 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut error = 0.0f64;
    for (i, (&value, &weight)) in values.iter().zip(weights).enumerate() {
        let code = form.nearest((value + minimum) * inverse);
        let difference = f64::from(value - (scale * form.level(code) - minimum));
        error += f64::from(weight) * difference * difference;
        if let Some(codes) = codes.as_deref_mut() {
            codes[i] = code;
        }
    }
    error
}

/// Scale and minimum that fit fixed codes best, or `None` where all codes are alike.
fn least_squares(form: &BlockForm, values: &[f32], weights: &[f32], codes: &[u8]) -> Option<(f32, f32)> {
    let (mut sw, mut sl, mut sll, mut sx, mut sxl) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for ((&value, &weight), &code) in values.iter().zip(weights).zip(codes) {
        let (level, weight, value) = (f64::from(form.level(code)), f64::from(weight), f64::from(value));
        sw += weight;
        sl += weight * level;
        sll += weight * level * level;
        sx += weight * value;
        sxl += weight * value * level;
    }
    if !form.has_minima() {
        return (sll > 0.0).then(|| ((sxl / sll) as f32, 0.0));
    }
    let determinant = sw * sll - sl * sl;
    if determinant <= 1e-12 * sw * sll {
        return None;
    }
    let scale = (sw * sxl - sl * sx) / determinant;
    let minimum = (sl * sxl - sll * sx) / determinant;
    if minimum < 0.0 && form.most_minimum_code > 1 {
        // Minima of the grouped forms cannot lift a group.
        return (sll > 0.0).then(|| ((sxl / sll) as f32, 0.0));
    }
    Some((scale as f32, minimum as f32))
}

/// Scale and minimum of a group of values, before they are themselves rounded; the first of `steps` tries are the
/// likeliest.
pub(super) fn fit(form: &BlockForm, values: &[f32], weights: &[f32], steps: usize) -> (f32, f32) {
    let mut codes = vec![0u8; values.len()];
    let mut best = (f64::INFINITY, 0.0f32, 0.0f32);
    let mut consider = |scale: f32, minimum: f32, codes: &mut Vec<u8>| {
        let (mut scale, mut minimum) = (scale, minimum);
        for _ in 0..3 {
            if !scale.is_finite() || scale == 0.0 || !minimum.is_finite() {
                return;
            }
            let error = round(form, values, weights, scale, minimum, Some(codes));
            if error < best.0 {
                best = (error, scale, minimum);
            }
            match least_squares(form, values, weights, codes) {
                Some(found) if found != (scale, minimum) => (scale, minimum) = found,
                _ => return,
            }
        }
    };
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    if form.has_minima() {
        let low = if form.most_minimum_code > 1 { low.min(0.0) } else { low };
        let last = (form.n_codes() - 1) as f32;
        for step in 0..steps {
            // Shrinks the range, or widens it a little.
            let shrink = 0.04 * ORDER[step];
            let range = (high - low) * (1.0 - shrink);
            let middle = 0.5 * (high + low);
            let floor = if step % 2 == 0 { low } else { middle - 0.5 * range };
            consider(
                range / last,
                (-floor).max(if form.most_minimum_code > 1 { 0.0 } else { f32::MIN }),
                &mut codes,
            );
        }
    } else {
        let (first, last) = (form.level(0), form.level((form.n_codes() - 1) as u8));
        let extreme = if -low > high { low } else { high };
        let other = if -low > high { high } else { low };
        for step in 0..steps {
            let shrink = 1.0 - 0.05 * ORDER[step];
            // The outermost level is one of two, and a scale may be negative.
            consider(extreme / first * shrink, 0.0, &mut codes);
            consider(extreme / last * shrink, 0.0, &mut codes);
            if other != 0.0 && step == 0 {
                consider(other / first, 0.0, &mut codes);
            }
        }
    }
    if best.0.is_finite() { (best.1, best.2) } else { (0.0, (-low).max(0.0)) }
}
