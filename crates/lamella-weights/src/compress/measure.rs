//! The original model on text that calibration has not seen: what changed arrays do to its output.

use std::collections::BTreeMap;

use lamella_codec::{Silent, TensorMap, TensorSource};
use lamella_lm::judge::compare_logits;
use lamella_lm::statistics::paragraphs;
use lamella_lm::{Family, Hidden, Model, Network};

use super::run::Overlay;
use super::{CompressError, Job};

/// Weights up to which the network is held in memory while it is measured.
const RESIDENT_WEIGHTS: u64 = 512 << 20;
/// Every so many windows behind the calibration text is used, so that more than one article is seen.
const WINDOW_STRIDE: usize = 4;
/// Window of decoders.
pub(super) const WINDOW: usize = 256;
/// Logits held at most.
pub(super) const MAX_LOGITS: usize = 64 << 20;
/// Tokens of a measurement, at least and at most.
pub(super) const TOKENS: (usize, usize) = (512, 4096);

/// The original, its text, and its states in front of every block, so that only what follows a change runs again.
pub(super) struct Bench<'b> {
    own: &'b Network,
    resident: Option<Network>,
    source: &'b dyn TensorSource,
    sequences: Vec<Vec<u32>>,
    states: Vec<Hidden>,
    original: Outcome,
}

impl Bench<'_> {
    fn network(&self) -> &Network {
        self.resident.as_ref().unwrap_or(self.own)
    }

    /// Tokens of the text.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Loss of the model with these arrays in place of its own, none of them in a block before `from`; `embeds` where
    /// embeddings are among them.
    pub(super) fn loss(&self, changed: &TensorMap, from: usize, embeds: bool) -> Result<f64, CompressError> {
        let network = self.network();
        let source = Overlay { above: changed, below: self.source };
        let mut hidden = match embeds {
            true => network.begin_with(&source, &self.sequences)?,
            false => self.states[from].clone(),
        };
        let is_changed = |block: Option<usize>| {
            let mut sites = network.linears().iter().filter(|site| site.block == block);
            sites.any(|site| changed.spec(&site.weight).is_some())
        };
        for block in from..network.n_blocks() {
            match is_changed(Some(block)) {
                true => network.block_with(block, &source, &mut hidden, None)?,
                false => network.block(block, &mut hidden, None)?,
            }
        }
        let head = is_changed(None).then_some(&source as &dyn TensorSource);
        self.original.loss(&Outcome::of(network, &hidden, head)?)
    }
}

impl Job<'_> {
    /// The original on about so many tokens behind the calibration text.
    pub(super) fn bench<'b>(&'b self, own: &'b Model, tokens: usize) -> Result<Bench<'b>, CompressError> {
        let resident = (self.weights() <= RESIDENT_WEIGHTS)
            .then(|| {
                let side: BTreeMap<String, Vec<u8>> = self.input.side_files.iter().cloned().collect();
                Model::with_config(own.config.clone(), self.input.directory.clone(), &side)?
                    .network
                    .resident()
            })
            .transpose()?;
        let network = resident.as_ref().unwrap_or(&own.network);
        let sequences = self.unseen(own, tokens)?;
        let mut states = vec![network.begin(&sequences)?];
        for block in 0..network.n_blocks() {
            let mut hidden = states[block].clone();
            network.block(block, &mut hidden, None)?;
            states.push(hidden);
        }
        let original = Outcome::of(network, &states[network.n_blocks()], None)?;
        Ok(Bench { own: &own.network, resident, source: &*self.input.directory, sequences, states, original })
    }

    /// Text behind the calibration text: neither statistics nor, by the protocols, evaluation have seen it. A text
    /// without more is used twice.
    fn unseen(&self, model: &Model, tokens: usize) -> Result<Vec<Vec<u32>>, CompressError> {
        let request = &self.request.calibration;
        let seen = self.calibration.as_ref().map_or(&[][..], |calibration| &calibration.sequences);
        let used: usize = seen.iter().map(Vec::len).sum();
        let (text, _) = request.read_text(self.input, &Silent)?;
        let mut longer = request.clone();
        let options = &mut longer.sequences;
        let mut fresh: Vec<Vec<u32>> = if let Some(range) = &mut options.paragraphs {
            let end = (range.end + tokens / 16).min(paragraphs(&text, options.longer_than).count());
            let start = range.end.min(end);
            *range = start..end;
            options.max_tokens = 2 * tokens;
            if start < end { longer.sequences(self.input, &text)? } else { Vec::new() }
        } else if model.network.family() == Family::Encoder {
            options.max_tokens = used + 2 * tokens;
            longer.sequences(self.input, &text)?.split_off(seen.len())
        } else {
            options.max_tokens = used + WINDOW + tokens * WINDOW_STRIDE;
            options.context_length = options.context_length.min(WINDOW);
            let mut begun = 0;
            let windows = longer.sequences(self.input, &text)?.into_iter().filter(|window| {
                begun += window.len();
                begun - window.len() >= used
            });
            let windows: Vec<Vec<u32>> = windows.collect();
            let stride = if windows.len() * WINDOW >= tokens * WINDOW_STRIDE { WINDOW_STRIDE } else { 1 };
            windows.into_iter().step_by(stride).collect()
        };
        if fresh.iter().map(Vec::len).sum::<usize>() < TOKENS.0.min(used) {
            fresh = seen.iter().rev().cloned().collect();
        }
        let mut held = 0;
        let fits = |sequence: &Vec<u32>| {
            held += sequence.len();
            held <= tokens || held == sequence.len()
        };
        Ok(fresh.into_iter().filter(|sequence| !sequence.is_empty()).take_while(fits).collect())
    }
}

/// What a model makes of a text.
enum Outcome {
    /// `[tokens, vocab_size]`
    Logits {
        values: Vec<f32>,
        tokens: usize,
    },
    Embeddings(Vec<Vec<f32>>),
}

impl Outcome {
    fn of(
        network: &Network,
        hidden: &Hidden,
        head: Option<&dyn TensorSource>,
    ) -> Result<Self, CompressError> {
        if network.family() == Family::Encoder {
            return Ok(Self::Embeddings(network.embed(hidden)));
        }
        let tokens = hidden.n_tokens();
        let values = match head {
            Some(source) => network.logits_with(source, hidden, 0..tokens, None)?,
            None => network.logits(hidden, None)?,
        };
        Ok(Self::Logits { values, tokens })
    }

    /// Mean KL divergence of `other` from this in nats, or mean squared distance.
    fn loss(&self, other: &Self) -> Result<f64, CompressError> {
        Ok(match (self, other) {
            (Self::Logits { values, tokens }, Self::Logits { values: changed, .. }) => {
                let compared = compare_logits(values, changed, &vec![0; *tokens])
                    .map_err(|(_, row)| CompressError::NotFinite { token: row })?;
                compared.iter().map(|row| row.kl_divergence).sum::<f64>() / compared.len().max(1) as f64
            }
            (Self::Embeddings(own), Self::Embeddings(changed)) => {
                let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
                let of = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(square).sum::<f64>();
                own.iter().zip(changed).map(of).sum::<f64>() / own.len().max(1) as f64
            }
            _ => 0.0,
        })
    }
}
