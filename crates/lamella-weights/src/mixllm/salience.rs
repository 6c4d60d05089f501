//! How much each row of each linear would cost the model's loss at 4 bits, by one reverse pass a sample.

use std::collections::BTreeMap;

use lamella_codec::{Progress, TensorSource};
use lamella_lm::{LinearSite, Network};
use lamella_nn::{GradientOptions, NetworkError, Pooling, ReadError, Trained, read};
use lamella_quant::grid::{Zero, reconstruct, round_to_nearest, static_groups};
use rayon::prelude::*;

/// Why rows could not be ranked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalienceError {
    /// The network has no gradients here.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A sample that the network cannot be run on.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The run was interrupted.
    #[error(transparent)]
    Interrupted(#[from] lamella_codec::Interrupted),
}

/// What 4-bit rounding in groups changes, `[rows, columns]`.
pub fn rounding_change(weights: &[f32], columns: usize, group_size: usize) -> Vec<f32> {
    let groups = static_groups(weights, columns, group_size, 4, Zero::Integer);
    let codes = round_to_nearest(weights, columns, group_size, 4, &groups);
    let rounded = reconstruct(&codes, columns, group_size, &groups);
    rounded.iter().zip(weights).map(|(rounded, weight)| rounded - weight).collect()
}

/// `S_c = mean over samples of |g (c_q - c_0) + (g (c_q - c_0))^2 / 2|` for every row `c` of every site that has a
/// gradient, `g` being the gradient of one sample's mean loss per token. Sums run in the order of samples, whatever the
/// number of threads.
///
/// # Errors
/// Networks without gradients (encoders, recurrent ones), sequences under two tokens, arrays that cannot be read.
pub fn row_scores(
    network: &Network,
    source: &dyn TensorSource,
    sites: &[&LinearSite],
    samples: &[&[u32]],
    group_size: usize,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Vec<f64>>, SalienceError> {
    let longest = samples.iter().map(|sample| sample.len()).max().unwrap_or(1);
    // Only encoders pool, and those have no next token.
    let named = read(network, source, longest, Pooling::Mean, Trained::Everything)?;
    let mut wanted: Vec<(usize, &LinearSite, Vec<f32>)> = Vec::new();
    for (index, parameter) in named.parameters.iter().enumerate() {
        let site = sites.iter().find(|site| site.weight == parameter.name && !site.is_transposed);
        let Some(&site) = site.filter(|_| parameter.transposed.is_none()) else { continue };
        let weights = &named.network.parameters()[index];
        wanted.push((index, site, rounding_change(weights, site.in_features, group_size)));
    }
    let mut sums: Vec<Vec<f64>> = wanted.iter().map(|(_, site, _)| vec![0.0; site.out_features]).collect();
    let mut done = 0;
    for wave in samples.chunks(rayon::current_num_threads().max(1)) {
        progress.advance("rank rows", done, samples.len() as u64, "gradients");
        progress.check()?;
        let found = wave
            .par_iter()
            .map(|sample| named.network.next_token_gradient(&[sample], GradientOptions::default()))
            .collect::<Result<Vec<_>, NetworkError>>()?;
        for found in &found {
            for ((index, site, change), sums) in wanted.iter().zip(&mut sums) {
                let rows = found.gradient[*index]
                    .chunks_exact(site.in_features)
                    .zip(change.chunks_exact(site.in_features));
                for (sum, (gradient, change)) in sums.iter_mut().zip(rows) {
                    let first: f64 =
                        gradient.iter().zip(change).map(|(&g, &c)| f64::from(g) * f64::from(c)).sum();
                    *sum += (first + 0.5 * first * first).abs() / samples.len() as f64;
                }
            }
        }
        done += wave.len() as u64;
    }
    Ok(wanted.iter().zip(sums).map(|((_, site, _), sums)| (site.weight.clone(), sums)).collect())
}

/// So many sequences of two tokens or more, spread evenly over the text.
pub fn spread(sequences: &[Vec<u32>], samples: usize) -> Vec<&[u32]> {
    let usable: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).filter(|tokens| tokens.len() > 1).collect();
    let n = samples.min(usable.len());
    (0..n).map(|index| usable[index * usable.len() / n]).collect()
}

/// The rows with the largest scores: so many of one array.
pub fn top_rows(scores: &[f64], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut chosen = vec![false; scores.len()];
    order.into_iter().take(count).for_each(|row| chosen[row] = true);
    chosen
}
