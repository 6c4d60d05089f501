//! `--tune`: norms and biases turned until the coded model predicts what the original does.
//!
//! # Idea
//! Quantisation solves each matrix by itself. What the errors of all of them do together, the network's few
//! continuous parameters can partly take back: a norm's weight is a gain per column of the matrices behind it, a bias
//! moves the mean of their outputs. The file stores them exactly in any case, so they can be anything: after coding
//! they are moved along the gradient of the distance between the original's predictions and those of the coded model.
//!
//! # Algorithm
//! 1. The calibration text is cut into windows; every eighth is held out.
//! 2. The original says once what it makes of every window.
//! 3. AdamW with a cosine schedule minimises the mean Kullback-Leibler divergence (decoders, nats per token) or the
//!    squared distance of embeddings (encoders) over batches of about 2,048 tokens. An element's rate is a share of its
//!    array's root mean square.
//! 4. At four points and at the end the held-out windows are judged; the best state is kept, rounded to its stored
//!    type. Where none is better than the untuned one, nothing changes.
//! 5. The tuned arrays are coded by `exact` in place of the original ones. Where that is larger than the budget
//!    allows, low mantissa bits are cleared until it fits.
//!
//! # What changes for a reader of the file
//! Tuned arrays still carry the recipe `exact`, which says how they are coded, but hold other numbers than the
//! original: `expand` writes the tuned ones and `diff` lists them as different. Arrays that `--keep` or `--rule` name
//! are never tuned.
//!
//! # Determinism
//! For a number of steps the bytes are the same at any thread count. `--tune MINUTES` chooses the number by the time
//! that the first step takes, so its bytes depend on the machine; the number is printed and `--tune-steps` repeats it.

mod windows;

use std::collections::BTreeMap;
use std::time::Instant;

use lamella_codec::{Array, ArraySpec, Dtype, Encoded, Knowledge, Progress, Rate, TensorMap, TensorSource};
use lamella_file::Spool;
use lamella_lm::{Family, LmError};
use lamella_nn::{AdamW, Named, Network, NetworkError, Pooling, ReadError, Reference, Trained, cosine};
use rayon::prelude::*;
use serde::Serialize;

use super::plan::Limit;
use super::{CompressError, Job, Place};
use windows::{BATCH_TOKENS, Batches, Windows, windows};

/// Every so many windows one is held out.
const HELD_OUT: usize = 8;
/// How far an element moves in a step, of its array's root mean square.
const RATE: f32 = 0.006;
/// Points at which the held-out windows are judged.
const LOOKS: usize = 5;
/// Steps at most: over so many passes the text is learned by heart.
const MOST_PASSES: usize = 60;
/// Difference of logits (over the largest) up to which two implementations agree.
const AGREEMENT: f32 = 1e-2;
/// Mantissa bits of tuned 32-bit floats that are tried, the first that fits wins.
const MANTISSA_BITS: [u32; 6] = [23, 18, 14, 12, 10, 8];
/// Note of a spooled array that holds tuned numbers.
const TUNED: &str = "tuned";

/// How long to tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TuneLength {
    /// About so many minutes; the number of steps depends on the machine.
    Minutes(f64),
    /// So many steps: reproducible.
    Steps(usize),
}

/// Why a model could not be tuned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum TuneError {
    #[error("`--tune` does not know this model: {reason}")]
    Unsupported { reason: String },
    #[error("`--tune` needs at least {needed} windows of text, the calibration text gives {found}")]
    TooLittleText { needed: usize, found: usize },
    #[error("`--tune` finds no norm or bias that is stored exactly by default")]
    NothingToTune,
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("`--tune` does not know this model: {0}")]
    Read(#[from] ReadError),
}

/// What tuning did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TuneReport {
    /// Steps taken; `--tune-steps` with this number repeats the result.
    pub steps: usize,
    /// Numbers that were tuned.
    pub parameters: usize,
    /// Tokens that were learned from, and tokens held out.
    pub tokens: usize,
    /// Tokens that were judged.
    pub held_out_tokens: usize,
    /// `kl` (nats per token) or `embedding_mse` (squared distance).
    pub metric: String,
    /// On the held-out windows, before.
    pub loss_before: f64,
    /// On the held-out windows, of the numbers in the file.
    pub loss_after: f64,
    /// Whether the tuned numbers are in the file.
    pub is_kept: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl Job<'_> {
    /// Arrays that may be tuned: by default exact, and nobody's twin.
    fn tunable(&self) -> Vec<usize> {
        let is_original =
            |index: usize| self.treatments.iter().any(|other| other.place == Place::TwinOf(index));
        (0..self.treatments.len())
            .filter(|&index| {
                let treatment = &self.treatments[index];
                treatment.codec.recipe().name() == "exact"
                    && !treatment.reason.starts_with("rule `")
                    && !matches!(treatment.place, Place::TwinOf(_))
                    && !is_original(index)
                    && matches!(treatment.spec.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
            })
            .collect()
    }

    /// Refuses what cannot be tuned before anything expensive happens.
    ///
    /// # Errors
    /// Networks without gradients here.
    pub(super) fn check_tunable(&self) -> Result<(), CompressError> {
        if self.request.tune.is_none() {
            return Ok(());
        }
        let reason =
            || self.input.unknown.clone().unwrap_or_else(|| "its architecture is not known".to_owned());
        let model = self.input.model.as_ref().ok_or_else(|| TuneError::Unsupported { reason: reason() })?;
        lamella_nn::check_readable(model.network.config()).map_err(TuneError::Read)?;
        if model.tokenizer.is_none() {
            return Err(CompressError::NoTokenizer);
        }
        if self.tunable().is_empty() || self.free_targets().is_empty() {
            return Err(TuneError::NothingToTune.into());
        }
        Ok(())
    }

    /// Puts the original numbers back into a spool that a killed run left with tuned ones.
    pub(super) fn untune(&self, spool: &Spool) -> Result<(), CompressError> {
        for target in self.tuned_targets(&self.tunable()) {
            let name = &self.targets[target].spec.name;
            if spool.note(name)?.is_some_and(|note| note.starts_with(TUNED)) {
                let encoded = self.codec(target).encode(
                    &self.array(target)?,
                    &self.knowledge(target)?,
                    Rate::Recipe,
                )?;
                spool.store(name, &encoded.layers, &format!("{:e}", encoded.distortion_of_zeros))?;
            }
        }
        Ok(())
    }

    fn tuned_targets(&self, arrays: &[usize]) -> Vec<usize> {
        let holds =
            |target: &usize| self.targets[*target].members.iter().any(|member| arrays.contains(member));
        (0..self.targets.len()).filter(holds).collect()
    }

    /// Tunes what the spool holds and stores the tuned arrays there; `lengths` follows.
    ///
    /// # Errors
    /// Too little text, an interruption, a spool that cannot be written.
    pub(super) fn tune(
        &self,
        length: TuneLength,
        spool: &Spool,
        lengths: &mut BTreeMap<usize, Vec<u64>>,
        progress: &dyn Progress,
    ) -> Result<TuneReport, CompressError> {
        let started = Instant::now();
        let reason = "nothing was calibrated".to_owned();
        let (Some(model), Some(calibration)) = (&self.input.model, &self.calibration) else {
            return Err(TuneError::Unsupported { reason }.into());
        };
        progress.advance("tune", 0, 1, "the original's predictions");
        let tokens = windows(&calibration.sequences, model.network.family());
        if tokens.len() < 2 * HELD_OUT {
            return Err(TuneError::TooLittleText { needed: 2 * HELD_OUT, found: tokens.len() }.into());
        }
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let (original, pooling) = self.original(&model.network, &tokens[0], longest)?;
        let references = tokens
            .par_iter()
            .map(|tokens| original.reference(tokens))
            .collect::<Result<_, _>>()
            .map_err(TuneError::Network)?;
        let windows = Windows { tokens, references };
        let decoded = self.decoded(spool)?;
        let Named { network: mut own, parameters } =
            lamella_nn::read(&model.network, &decoded, longest, pooling, Trained::Vectors)
                .map_err(TuneError::Read)?;
        let names: Vec<String> = parameters.into_iter().map(|parameter| parameter.name).collect();
        let tunable: BTreeMap<&str, usize> = self
            .tunable()
            .into_iter()
            .map(|index| (self.treatments[index].spec.name.as_str(), index))
            .collect();
        let (held_out, learned): (Vec<usize>, Vec<usize>) =
            (0..windows.tokens.len()).partition(|index| index % HELD_OUT == HELD_OUT - 1);
        let judge = |network: &Network| {
            network.loss(&original, &windows.batch(&held_out)).map_err(TuneError::Network)
        };
        let before = judge(&own)?;
        let untuned = own.parameters().to_vec();
        let rates: Vec<f32> = names
            .iter()
            .zip(&untuned)
            .map(
                |(name, vector)| {
                    if tunable.contains_key(&name[..]) { RATE * root_mean_square(vector) } else { 0.0 }
                },
            )
            .collect();
        let mut batches = Batches::new(&windows, learned.clone());
        let mut optimizer = AdamW::new(&untuned);
        let mut best = (before, untuned.clone());
        let most = MOST_PASSES * windows.count(&learned).div_ceil(BATCH_TOKENS).max(1);
        let mut steps = match length {
            TuneLength::Steps(steps) => steps,
            // Until the first step has been timed.
            TuneLength::Minutes(_) => most,
        };
        let mut step = 0;
        while step < steps {
            progress.check()?;
            progress.advance(
                "tune",
                step as u64,
                steps as u64,
                &format!("{:.5} before, {:.5} now", before, best.0),
            );
            let timed = Instant::now();
            let batch = batches.next();
            let (_, gradient) =
                own.gradient(&original, &windows.batch(&batch)).map_err(TuneError::Network)?;
            if let (0, TuneLength::Minutes(minutes)) = (step, length) {
                let left = minutes * 60.0 - started.elapsed().as_secs_f64();
                // Judging costs about a third of a step per token, over the held-out windows.
                let judging = LOOKS as f64 * windows.count(&held_out) as f64
                    / windows.count(&batch).max(1) as f64
                    / 3.0;
                let affordable = left / timed.elapsed().as_secs_f64().max(1e-6) - judging;
                steps = (affordable as usize).clamp(1, most);
            }
            let rates: Vec<f32> = rates.iter().map(|rate| rate * cosine(step, steps)).collect();
            optimizer.step(own.parameters_mut(), &gradient, &rates);
            step += 1;
            if step * LOOKS / steps > (step - 1) * LOOKS / steps {
                let now = judge(&own)?;
                if now < best.0 {
                    best = (now, own.parameters().to_vec());
                }
            }
        }
        let mut report = TuneReport {
            steps,
            parameters: rates
                .iter()
                .zip(&untuned)
                .filter(|(rate, _)| **rate > 0.0)
                .map(|(_, vector)| vector.len())
                .sum(),
            tokens: windows.count(&learned),
            held_out_tokens: windows.count(&held_out),
            metric: if model.network.family() == Family::Decoder { "kl" } else { "embedding_mse" }.to_owned(),
            loss_before: before,
            loss_after: before,
            is_kept: false,
            seconds: 0.0,
        };
        let moved: Vec<usize> = (0..names.len()).filter(|&index| best.1[index] != untuned[index]).collect();
        for bits in MANTISSA_BITS {
            let mut replaced: BTreeMap<usize, Array<'static>> = BTreeMap::new();
            for &index in &moved {
                let array = tunable[&names[index][..]];
                let rounded = round(&self.treatments[array].spec, &best.1[index], bits)?;
                own.parameters_mut()[index] = rounded.to_f32()?;
                replaced.insert(array, rounded);
            }
            let (coded, changed) = self.coded(&replaced, lengths)?;
            if !self.fits(&changed)? {
                continue;
            }
            (0..names.len())
                .filter(|index| !moved.contains(index))
                .for_each(|index| own.parameters_mut()[index].clone_from(&untuned[index]));
            let after = judge(&own)?;
            if after < before {
                for (target, encoded) in coded {
                    let note = format!("{TUNED} {:e}", encoded.distortion_of_zeros);
                    spool.store(&self.targets[target].spec.name, &encoded.layers, &note)?;
                }
                *lengths = changed;
                (report.loss_after, report.is_kept) = (after, true);
            }
            break;
        }
        if !report.is_kept {
            progress.warn("tuning did not improve the held-out text, so nothing was changed");
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// The original with gradients, once its first predictions agree with the runtime's.
    fn original(
        &self,
        network: &lamella_lm::Network,
        tokens: &[u32],
        longest: usize,
    ) -> Result<(Network, Pooling), CompressError> {
        let hidden = network.forward(&[tokens.to_vec()])?;
        for pooling in [Pooling::Mean, Pooling::First] {
            let found = lamella_nn::read(network, &*self.input.directory, longest, pooling, Trained::Vectors)
                .map_err(TuneError::Read)?
                .network;
            let (theirs, ours) = match network.family() {
                Family::Decoder => {
                    let logits = found.logits(tokens).map_err(TuneError::Network)?;
                    (network.logits(&hidden, None)?, logits.unwrap_or_default())
                }
                Family::Encoder => match found.reference(tokens).map_err(TuneError::Network)? {
                    Reference::Embedding(vector) => (network.embed(&hidden).concat(), vector),
                    _ => (Vec::new(), Vec::new()),
                },
            };
            let largest = theirs.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= AGREEMENT * largest;
            if !ours.is_empty() && theirs.len() == ours.len() && theirs.iter().zip(&ours).all(is_near) {
                return Ok((found, pooling));
            }
            if network.family() == Family::Decoder {
                break;
            }
        }
        let reason = "its gradients' forward pass disagrees with the runtime's".to_owned();
        Err(TuneError::Unsupported { reason }.into())
    }

    /// All arrays as the file will give them.
    fn decoded(&self, spool: &Spool) -> Result<Decoded<'_>, CompressError> {
        let coded = |target: &usize| self.codec(*target).recipe().name() != "exact";
        let coded: Vec<usize> = (0..self.targets.len()).filter(coded).collect();
        let arrays: Vec<Array<'static>> = coded
            .par_iter()
            .map(|&target| {
                let spec = &self.targets[target].spec;
                let layers = spool.finished(&spec.name)?.unwrap_or_default();
                let payloads: Vec<&[u8]> = layers.iter().map(|layer| &layer.payload[..]).collect();
                Ok(self.codec(target).decode(spec, &payloads)?)
            })
            .collect::<Result<_, CompressError>>()?;
        let mut map = TensorMap::default();
        for (&target, array) in coded.iter().zip(&arrays) {
            self.insert_members(&mut map, target, array)?;
        }
        let twins = self.treatments.iter().filter_map(|treatment| match treatment.place {
            Place::TwinOf(original) => {
                Some((treatment.spec.name.clone(), self.treatments[original].spec.name.clone()))
            }
            _ => None,
        });
        Ok(Decoded { coded: map, twins: twins.collect(), original: &*self.input.directory })
    }

    /// The payloads that hold replaced arrays, coded anew, and all lengths with them.
    #[allow(clippy::type_complexity, reason = "two maps by target, used at one place")]
    fn coded(
        &self,
        replaced: &BTreeMap<usize, Array<'static>>,
        lengths: &BTreeMap<usize, Vec<u64>>,
    ) -> Result<(Vec<(usize, Encoded)>, BTreeMap<usize, Vec<u64>>), CompressError> {
        let arrays: Vec<usize> = replaced.keys().copied().collect();
        let mut lengths = lengths.clone();
        let mut coded = Vec::new();
        for target in self.tuned_targets(&arrays) {
            let mut bytes = Vec::new();
            for &member in &self.targets[target].members {
                match replaced.get(&member) {
                    Some(array) => bytes.extend_from_slice(&array.bytes),
                    None => bytes.extend_from_slice(
                        &self.input.directory.array(&self.treatments[member].spec.name)?.bytes,
                    ),
                }
            }
            let array = Array::new(self.targets[target].spec.clone(), bytes)?;
            let encoded = self.codec(target).encode(&array, &Knowledge::default(), Rate::Recipe)?;
            lengths.insert(target, encoded.layers.iter().map(|layer| layer.payload.len() as u64).collect());
            coded.push((target, encoded));
        }
        Ok((coded, lengths))
    }

    /// Whether a file with these layers keeps to the budget.
    fn fits(&self, lengths: &BTreeMap<usize, Vec<u64>>) -> Result<bool, CompressError> {
        let Limit::File(limit) = self.limit else { return Ok(true) };
        let all: Vec<Vec<u64>> =
            (0..self.targets.len()).map(|target| lengths.get(&target).cloned().unwrap_or_default()).collect();
        Ok(self.file_bytes(&all)? <= limit)
    }
}

/// Decoded arrays, twins by the array they share, and what is exact from the original.
struct Decoded<'a> {
    coded: TensorMap,
    twins: BTreeMap<String, String>,
    original: &'a dyn TensorSource,
}

impl TensorSource for Decoded<'_> {
    fn arrays(&self) -> &[ArraySpec] {
        self.original.arrays()
    }
    fn array(&self, name: &str) -> Result<Array<'_>, lamella_codec::SourceError> {
        let stored = self.twins.get(name).map_or(name, |twin| &twin[..]);
        match self.coded.array(stored) {
            Err(lamella_codec::SourceError::Missing { .. }) => self.original.array(stored),
            found => found,
        }
    }
}

/// Numbers in their stored type, of 32-bit floats only the upper mantissa bits.
fn round(spec: &ArraySpec, values: &[f32], bits: u32) -> Result<Array<'static>, CompressError> {
    let dropped = 23 - bits.min(23);
    let cleared = |value: &f32| match dropped {
        0 => *value,
        // Adding half of the last kept bit rounds; the carry may run into the exponent, which is right.
        _ => f32::from_bits(value.to_bits().saturating_add(1 << (dropped - 1)) & !((1 << dropped) - 1)),
    };
    let values: Vec<f32> = match spec.dtype {
        Dtype::F32 => values.iter().map(cleared).collect(),
        _ => values.to_vec(),
    };
    Ok(Array::from_f32(spec.clone(), &values)?)
}

fn root_mean_square(vector: &[f32]) -> f32 {
    let sum: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (sum / vector.len().max(1) as f64).sqrt() as f32
}

impl From<LmError> for TuneError {
    fn from(error: LmError) -> Self {
        Self::Unsupported { reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_the_asked_mantissa_bits_and_the_nearest_value() {
        let spec = ArraySpec::new("w", vec![3], Dtype::F32);
        let values = [1.234_567_9f32, -0.001_234_567, 1.999_999_9];
        for bits in MANTISSA_BITS {
            let rounded = round(&spec, &values, bits).unwrap().to_f32().unwrap();
            for (value, rounded) in values.iter().zip(rounded) {
                assert!(((value - rounded) / value).abs() <= 0.5f32.powi(bits as i32 + 1));
                assert_eq!(rounded.to_bits() & ((1u32 << (23 - bits)) - 1), 0);
            }
        }
    }
}
