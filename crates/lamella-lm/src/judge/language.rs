//! Judging language models.

use super::evaluation::{Evaluation, Intervals, NoiseFloor, Quantiles, SCHEMA};
use super::measure::{Comparison, compare_logits, mean, score_logits};
use super::{JudgeError, Predictor, Progress, Resampler, Window};

/// How a text is cut and scored.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageOptions {
    /// Tokens of a window. Default 256; more than the text holds gives one window with all of it.
    pub context: usize,
    /// Tokens from one window to the next; the last `stride` tokens of each window are scored. Default 128.
    pub stride: usize,
    /// Tokens of the text that are used, all where `None`.
    pub max_tokens: Option<usize>,
    /// A token put before every window, not counted in `context` and never scored. Default none.
    pub bos: Option<u32>,
    /// Windows the noise floor is measured on. Default 4.
    pub noise_windows: usize,
    /// Intervals.
    pub resampler: Resampler,
}

impl Default for LanguageOptions {
    fn default() -> Self {
        Self {
            context: 256,
            stride: 128,
            max_tokens: None,
            bos: None,
            noise_windows: 4,
            resampler: Resampler::default(),
        }
    }
}

/// Tokens that run side by side, and bytes of logits that are compared at a time.
const GROUP_TOKENS: usize = 4096;
const SLAB_BYTES: usize = 16 << 20;

impl LanguageOptions {
    /// The windows of a text, in order.
    ///
    /// # Errors
    /// Options out of range; a text of fewer than two tokens.
    pub fn windows(&self, tokens: &[u32]) -> Result<Vec<Window>, JudgeError> {
        let bad = |option, found: usize, allowed: &str| {
            Err(JudgeError::Option { option, message: format!("{found} is not {allowed}") })
        };
        if self.context < 2 {
            return bad("context", self.context, "at least 2");
        }
        if self.stride == 0 || self.stride > self.context {
            return bad("stride", self.stride, &format!("between 1 and the context of {}", self.context));
        }
        let tokens = &tokens[..tokens.len().min(self.max_tokens.unwrap_or(usize::MAX))];
        if tokens.len() < 2 {
            let message = format!("{} tokens where 2 are needed", tokens.len());
            return Err(JudgeError::TooShort { message });
        }
        let context = self.context.min(tokens.len());
        let n_bos = usize::from(self.bos.is_some());
        // Token t is predicted at position t - 1; the first of a window only behind a beginning token.
        let first = context.saturating_sub(self.stride).max(1 - n_bos);
        let scored = first + n_bos - 1..context + n_bos - 1;
        Ok((0..=tokens.len() - context)
            .step_by(self.stride)
            .map(|start| Window {
                tokens: self.bos.iter().chain(&tokens[start..start + context]).copied().collect(),
                scored: scored.clone(),
            })
            .collect())
    }
}

/// Sums over one window.
#[derive(Default, Clone, Copy)]
struct WindowSums {
    tokens: usize,
    kl: f64,
    agreements: f64,
    candidate: f64,
    reference: f64,
}

/// Measures a language model on a text's tokens: its perplexity, and against a reference (the original) its KL
/// divergence and top-1 agreement. `noise` is the reference computed in another numeric order
/// ([`reordered`](super::reordered)); `progress` counts windows.
///
/// # Errors
/// Options out of range, a text too short, vocabularies that differ, logits that are not finite, models that cannot
/// be run.
pub fn evaluate_language(
    candidate: &dyn Predictor,
    reference: Option<&dyn Predictor>,
    noise: Option<&dyn Predictor>,
    tokens: &[u32],
    options: &LanguageOptions,
    progress: &Progress<'_>,
) -> Result<Evaluation, JudgeError> {
    let windows = options.windows(tokens)?;
    let mut sums = Vec::with_capacity(windows.len());
    let mut divergences = Vec::new();
    match reference {
        Some(reference) => compare(reference, candidate, &windows, progress, &mut |comparisons| {
            let mut window = WindowSums { tokens: comparisons.len(), ..WindowSums::default() };
            for found in comparisons {
                window.kl += found.kl_divergence;
                window.agreements += f64::from(u8::from(found.agrees));
                window.candidate += found.candidate.negative_log_likelihood;
                window.reference += found.reference.negative_log_likelihood;
                divergences.push(found.kl_divergence);
            }
            sums.push(window);
        })?,
        None => likelihoods(candidate, &windows, progress, &mut sums)?,
    }
    let scored: usize = sums.iter().map(|window| window.tokens).sum();
    let per_token =
        |field: fn(&WindowSums) -> f64| sums.iter().map(field).sum::<f64>() / scored.max(1) as f64;
    let noise_floor = match (noise, reference) {
        (Some(noise), Some(reference)) => Some(noise_floor(reference, noise, &windows, options)?),
        (Some(noise), None) => Some(noise_floor(candidate, noise, &windows, options)?),
        (None, _) => None,
    };
    let compared = reference.is_some();
    Ok(Evaluation {
        schema: SCHEMA,
        kl: compared.then(|| per_token(|window| window.kl)),
        kl_quantiles: compared.then(|| Quantiles::of(divergences)),
        perplexity: Some(per_token(|window| window.candidate).exp()),
        reference_perplexity: compared.then(|| per_token(|window| window.reference).exp()),
        top1_agreement: compared.then(|| per_token(|window| window.agreements)),
        tokens: scored as u64,
        context: Some(options.context.min(tokens.len())),
        stride: Some(options.stride),
        windows: Some(windows.len() as u64),
        bos: options.bos,
        noise_floor,
        intervals: intervals(&options.resampler, &sums, compared),
        ..Evaluation::default()
    })
}

fn intervals(resampler: &Resampler, sums: &[WindowSums], compared: bool) -> Option<Intervals> {
    let interval = |statistic: &dyn Fn(&WindowSums) -> f64, finish: fn(f64) -> f64| {
        resampler.interval(sums.len(), |drawn| {
            let total = |field: &dyn Fn(&WindowSums) -> f64| -> f64 {
                drawn.iter().map(|&unit| field(&sums[unit])).sum()
            };
            finish(total(statistic) / total(&|window| window.tokens as f64).max(1.0))
        })
    };
    let perplexity = interval(&|window| window.candidate, f64::exp)?;
    let mut found = Intervals {
        confidence: resampler.confidence,
        resamples: resampler.resamples,
        perplexity: Some(perplexity),
        ..Intervals::default()
    };
    if compared {
        found.kl = interval(&|window| window.kl, |mean| mean);
        found.perplexity_ratio = interval(&|window| window.candidate - window.reference, f64::exp);
        found.top1_agreement = interval(&|window| window.agreements, |mean| mean);
    }
    Some(found)
}

fn noise_floor(
    reference: &dyn Predictor,
    noise: &dyn Predictor,
    windows: &[Window],
    options: &LanguageOptions,
) -> Result<NoiseFloor, JudgeError> {
    let windows = &windows[..windows.len().min(options.noise_windows)];
    let mut all: Vec<Comparison> = Vec::new();
    compare(reference, noise, windows, &|_, _, _| {}, &mut |found| all.extend_from_slice(found))?;
    Ok(NoiseFloor {
        kl: Some(mean(all.iter().map(|found| found.kl_divergence))),
        top1_agreement: Some(mean(all.iter().map(|found| f64::from(u8::from(found.agrees))))),
        embedding_mse: None,
        tokens: all.len() as u64,
    })
}

/// Windows that run side by side.
fn groups(windows: &[Window]) -> impl Iterator<Item = &[Window]> {
    let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or(1);
    windows.chunks((GROUP_TOKENS / longest.max(1)).max(1))
}

/// Scored rows of a window, in slabs of bounded size.
fn slabs(window: &Window, vocab_size: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let rows = window.scored.len();
    let step = (SLAB_BYTES / (4 * vocab_size.max(1))).max(1);
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}

/// Targets of some scored rows.
fn targets<'a>(window: &'a Window, rows: &std::ops::Range<usize>) -> &'a [u32] {
    let first = window.scored.start + 1;
    &window.tokens[first + rows.start..first + rows.end]
}

fn check_tokens(windows: &[Window], vocab_size: usize) -> Result<(), JudgeError> {
    let tokens = windows.iter().flat_map(|window| &window.tokens);
    match tokens.max() {
        Some(&token) if token as usize >= vocab_size => Err(JudgeError::Mismatch {
            message: format!("the text holds token {token}, the model knows {vocab_size} tokens"),
        }),
        _ => Ok(()),
    }
}

fn non_finite(who: &str, window: usize, position: usize) -> JudgeError {
    JudgeError::NonFinite {
        what: format!("the {who}'s logits"),
        place: format!("window {window}, position {position}"),
    }
}

fn likelihoods(
    model: &dyn Predictor,
    windows: &[Window],
    progress: &Progress<'_>,
    sums: &mut Vec<WindowSums>,
) -> Result<(), JudgeError> {
    check_tokens(windows, model.vocab_size())?;
    for group in groups(windows) {
        let predictions = model.run(group)?;
        for (index, window) in group.iter().enumerate() {
            let mut total = WindowSums::default();
            for rows in slabs(window, model.vocab_size()) {
                let logits = predictions.logits(index, rows.clone())?;
                let scores = score_logits(&logits, targets(window, &rows))
                    .map_err(|row| non_finite("model", sums.len(), window.scored.start + rows.start + row))?;
                total.tokens += scores.len();
                total.candidate += scores.iter().map(|score| score.negative_log_likelihood).sum::<f64>();
            }
            sums.push(total);
        }
        progress(sums.len() as u64, windows.len() as u64, "windows");
    }
    Ok(())
}

fn compare(
    reference: &dyn Predictor,
    candidate: &dyn Predictor,
    windows: &[Window],
    progress: &Progress<'_>,
    take: &mut dyn FnMut(&[Comparison]),
) -> Result<(), JudgeError> {
    let vocab_size = reference.vocab_size();
    if candidate.vocab_size() != vocab_size {
        return Err(JudgeError::Mismatch {
            message: format!(
                "the reference knows {vocab_size} tokens, the candidate {}",
                candidate.vocab_size()
            ),
        });
    }
    check_tokens(windows, vocab_size)?;
    let mut done = 0;
    for group in groups(windows) {
        let (ours, theirs) = (reference.run(group)?, candidate.run(group)?);
        for (index, window) in group.iter().enumerate() {
            let mut comparisons = Vec::with_capacity(window.scored.len());
            for rows in slabs(window, vocab_size) {
                let (left, right) = (ours.logits(index, rows.clone())?, theirs.logits(index, rows.clone())?);
                let found = compare_logits(&left, &right, targets(window, &rows));
                comparisons.extend(found.map_err(|(is_reference, row)| {
                    let who = if is_reference { "reference" } else { "candidate" };
                    non_finite(who, done, window.scored.start + rows.start + row)
                })?);
            }
            take(&comparisons);
            done += 1;
        }
        progress(done as u64, windows.len() as u64, "windows");
    }
    Ok(())
}
