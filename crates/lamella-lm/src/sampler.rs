//! Choosing the next token from logits.

use crate::LmError;
use crate::elementwise::softmax;
use crate::generate::SamplingOptions;

/// SplitMix64: the same seed, the same text.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    /// Uniform in `[0, 1)`.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Chooses tokens of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sampler<'a> {
    options: &'a SamplingOptions,
    random: Random,
}

impl<'a> Sampler<'a> {
    /// `stream` tells sequences of one batch apart.
    pub(crate) fn new(options: &'a SamplingOptions, stream: u64) -> Self {
        let seed = options.seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03);
        Self { options, random: Random(seed) }
    }

    /// The next token after `seen`; `logits` is used as scratch.
    pub(crate) fn choose(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        let options = self.options;
        if options.repetition_penalty != 1.0 {
            let first = match options.repetition_window {
                0 => 0,
                window => seen.len().saturating_sub(window),
            };
            let mut recent = seen[first..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for token in recent {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / options.repetition_penalty
                    } else {
                        *logit * options.repetition_penalty
                    };
                }
            }
        }
        if options.temperature == 0.0 {
            return best(logits);
        }
        logits.iter_mut().for_each(|logit| *logit /= options.temperature);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if options.top_k > 0 {
            order.truncate(options.top_k);
        }
        let mut probabilities: Vec<f32> = order.iter().map(|&token| logits[token as usize]).collect();
        softmax(&mut probabilities);
        let mut sum = 0.0;
        let within = probabilities
            .iter()
            .take_while(|&&p| {
                let is_wanted = sum < options.top_p;
                sum += p;
                is_wanted
            })
            .count();
        let floor = options.min_p * probabilities.first().copied().unwrap_or(0.0);
        let likely = probabilities.iter().take_while(|&&p| p >= floor).count();
        let kept = within.min(likely).max(1).min(order.len());
        let total: f64 = probabilities[..kept].iter().map(|&p| f64::from(p)).sum();
        let mut left = self.random.uniform() * total;
        for (&token, &p) in order[..kept].iter().zip(&probabilities) {
            left -= f64::from(p);
            if left < 0.0 {
                return token;
            }
        }
        order[kept - 1]
    }
}

/// Index of the largest logit, the first among equals.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Refuses options out of range.
pub(crate) fn check(options: &SamplingOptions) -> Result<(), LmError> {
    let test = |is_good: bool, option: &'static str, value: f32, allowed: &'static str| {
        if is_good { Ok(()) } else { Err(LmError::Option { option, value: f64::from(value), allowed }) }
    };
    let (temperature, top_p, min_p, penalty) =
        (options.temperature, options.top_p, options.min_p, options.repetition_penalty);
    test(temperature >= 0.0 && temperature.is_finite(), "temperature", temperature, "0 (greedy) or more")?;
    test(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "above 0, at most 1 (off)")?;
    test((0.0..1.0).contains(&min_p), "min_p", min_p, "0 (off) to below 1")?;
    test(penalty > 0.0 && penalty.is_finite(), "repetition_penalty", penalty, "above 0 (1 is off)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(options: &SamplingOptions, logits: &[f32], seen: &[u32], draws: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options, 0);
        (0..draws).map(|_| sampler.choose(&mut logits.to_vec(), seen)).collect()
    }

    #[test]
    fn temperature_zero_takes_the_largest() {
        assert_eq!(draw(&SamplingOptions::default(), &[0.0, 3.0, 3.0], &[], 2), [1, 1]);
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let options = SamplingOptions { temperature: 1.0, ..Default::default() };
        let draws = draw(&options, &[0.0, 3f32.ln()], &[], 20_000);
        let share = draws.iter().filter(|&&token| token == 1).count() as f64 / 20_000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
        assert_eq!(draws, draw(&options, &[0.0, 3f32.ln()], &[], 20_000), "the seed decides");
    }

    #[test]
    fn each_limit_leaves_only_its_tokens() {
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0];
        let hot = SamplingOptions { temperature: 3.0, ..Default::default() };
        let smallest =
            |options: SamplingOptions| draw(&options, &logits, &[], 500).into_iter().min().unwrap();
        assert_eq!(smallest(hot.clone()), 0);
        assert_eq!(smallest(SamplingOptions { top_k: 2, ..hot.clone() }), 3);
        assert_eq!(smallest(SamplingOptions { top_p: 0.3, ..hot.clone() }), 4);
        assert_eq!(smallest(SamplingOptions { min_p: 0.7, ..hot }), 3);
    }

    #[test]
    fn repetition_is_punished_within_its_window() {
        let options = SamplingOptions { repetition_penalty: 2.0, repetition_window: 1, ..Default::default() };
        assert_eq!(draw(&options, &[1.0, 1.5], &[1], 1), [0]);
        assert_eq!(draw(&options, &[1.0, 1.5], &[1, 0], 1), [1]);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let error = check(&SamplingOptions { top_p: 0.0, ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "generation option `top_p` is 0, allowed is above 0, at most 1 (off)");
    }
}
