//! How strongly the loss bends in a layer's weights: Hutchinson's estimate of a mean trace, by forward passes alone.

use lamella_codec::Array;

use super::{Error, Judge, Random};

/// Mean over a layer's weights of the diagonal of the KL divergence's Hessian at the original, which is the
/// Gauss-Newton (Fisher) matrix of the loss: `(1 / n) mean_j z_j^T H z_j`, `z_j` of random signs.
///
/// The divergence and its gradient are zero at the original, so `z^T H z` is the second difference
/// `(KL(W + e z) + KL(W - e z)) / e^2`; the odd third order cancels. `e` is a fiftieth of the weights' root mean
/// square. At most `probes` vectors are drawn, fewer where the running mean moves by less than `tolerance` of itself.
///
/// # Errors
/// Arrays and networks that cannot be run.
pub(crate) fn mean_trace(
    judge: &Judge<'_>,
    array: &Array<'_>,
    probes: usize,
    tolerance: f64,
    seed: u64,
) -> Result<f64, Error> {
    let weights = array.to_f32()?;
    let n = weights.len().max(1) as f64;
    let square: f64 = weights.iter().map(|weight| f64::from(weight * weight)).sum();
    let step = 0.02 * (square / n).sqrt();
    if step == 0.0 {
        return Ok(0.0);
    }
    let mut random = Random(seed);
    let (mut sum, mut mean) = (0.0, 0.0);
    for probe in 0..probes {
        let signs: Vec<u64> = (0..weights.len().div_ceil(64)).map(|_| random.next()).collect();
        let moved = |towards: f64| -> Result<f64, Error> {
            let sign = |at: usize| if signs[at / 64] >> (at % 64) & 1 == 1 { towards } else { -towards };
            let values: Vec<f32> =
                weights.iter().enumerate().map(|(at, &w)| w + (step * sign(at)) as f32).collect();
            judge.kl_with(&Array::from_f32(array.spec.clone(), &values)?)
        };
        sum += (moved(1.0)? + moved(-1.0)?) / (step * step);
        let next = sum / (probe + 1) as f64;
        let is_still = probe > 0 && (next - mean).abs() < tolerance * next;
        mean = next;
        if is_still {
            break;
        }
    }
    Ok(mean / n)
}
