//! The diagonal of the empirical Fisher information.
//!
//! `F_i = E[(d ln p(text) / d w_i)^2]`: how much the prediction of the text itself would suffer from a small change
//! `d` of weight `i` alone is about `F_i d^2 / 2`. Gradients are taken by sequence, of its summed `-ln p(next token)`;
//! where tokens' gradients are independent, squares of sums have the mean of sums of squares, so the sum over
//! sequences divided by tokens is the Fisher information per token.

use lamella_lm::statistics::{FisherDiagonal, Sink, StatisticsError};
use rayon::prelude::*;

use crate::{GradientOptions, Named, NetworkError};

/// Why the Fisher information could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FisherError {
    /// The network refuses a sequence.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The sink refuses an entry.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// Takes the Fisher diagonal of every trained array over sequences and hands it to a sink, array by array. Sums are
/// taken in the order of sequences: the same bits at any thread count. `progress` counts sequences.
///
/// # Errors
/// Sequences of fewer than two tokens, encoders, a sink that fails.
pub fn fisher(
    named: &Named,
    sequences: &[&[u32]],
    sink: &mut dyn Sink,
    progress: &lamella_lm::statistics::Progress<'_>,
) -> Result<(), FisherError> {
    let mut sums: Vec<Vec<f64>> =
        named.network.parameters().iter().map(|values| vec![0.0; values.len()]).collect();
    let (mut tokens, mut done) = (0, 0);
    for wave in sequences.chunks(rayon::current_num_threads().max(1)) {
        progress(done, sequences.len() as u64, "Fisher information");
        let found = wave
            .par_iter()
            .map(|tokens| named.network.next_token_gradient(&[tokens], GradientOptions::default()))
            .collect::<Result<Vec<_>, _>>()?;
        for (sequence, found) in wave.iter().zip(&found) {
            let predicted = sequence.len() as f64 - 1.0;
            tokens += sequence.len() as u64 - 1;
            done += 1;
            sums.par_iter_mut().zip(&found.gradient).for_each(|(sums, gradient)| {
                for (sum, &slope) in sums.iter_mut().zip(gradient) {
                    // The gradient is that of the mean over the sequence's tokens.
                    let slope = f64::from(slope) * predicted;
                    *sum += slope * slope;
                }
            });
        }
    }
    for (parameter, sums) in named.parameters.iter().zip(sums) {
        sink.accept_fisher(&parameter.name, FisherDiagonal::new(tokens, parameter.stored_order(sums)))?;
    }
    Ok(())
}
