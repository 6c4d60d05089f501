//! Layers of a small model at several levels of compression, and the loss of whole assignments of them.
//!
//! What the allocating systems (EvoPress, HAWQ-V3, L-GreCo) share: a [`Model`](Subject) with two texts, its linears at
//! every level in memory, and a judge that runs the model with one level chosen for each.

mod curvature;
mod depth;

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::{
    Array, ArraySpec, Catalogue, ClaimContext, ClaimSize, Knowledge, Rate, Recipe, SourceError, TensorSource,
};
use lamella_lm::judge::compare_logits;
use lamella_lm::statistics::Statistics;
use lamella_lm::{LinearSite, Model, Network};
use lamella_rate::{Offer, Problem, RatePoint};

pub(crate) use curvature::mean_trace;
pub(crate) use depth::remove_halves;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Tokens of a window.
pub(crate) const WINDOW: usize = 128;

/// A model that claims are measured on, with a text to search on and one that no search has seen.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) network: Network,
    pub(crate) seen: Vec<u32>,
    pub(crate) unseen: Vec<u32>,
}

impl Subject {
    /// The project's own model of 260 thousand weights; in a full run, where test data are there, wiki5m.
    pub(crate) fn of(context: &ClaimContext) -> Result<Self, Error> {
        match &context.data {
            Some(data) if context.size == ClaimSize::Full && data.join("lm/wiki5m").is_dir() => {
                let text = data.join("text");
                let texts = [text.join("wikitext2_valid.txt"), text.join("wikitext2_eval.txt")];
                Self::open("wiki5m", &data.join("lm/wiki5m"), texts)
            }
            _ => {
                let directory = context.assets.join("stories260k");
                let texts = [directory.join("calibration.txt"), directory.join("evaluation.txt")];
                Self::open("stories260k", &directory, texts)
            }
        }
    }

    /// A model and its two texts.
    pub(crate) fn open(
        name: &'static str,
        directory: &std::path::Path,
        texts: [std::path::PathBuf; 2],
    ) -> Result<Self, Error> {
        let directory = Arc::new(lamella_io::ModelDirectory::open(directory)?);
        let side: BTreeMap<String, Vec<u8>> = directory.side_files()?.into_iter().collect();
        let model = Model::open(directory, &side)?;
        let tokenizer = model.tokenizer.ok_or("the model has no tokenizer")?;
        let tokens = |path: &std::path::Path| -> Result<Vec<u32>, Error> {
            // The beginning is enough, and long texts take long to split.
            let text = fs_err::read_to_string(path)?;
            let end = text.char_indices().nth(200_000).map_or(text.len(), |(at, _)| at);
            Ok(tokenizer.encode(&text[..end], false)?)
        };
        let (seen, unseen) = (tokens(&texts[0])?, tokens(&texts[1])?);
        Ok(Self { name, network: model.network.resident()?, seen, unseen })
    }

    /// The linears of the blocks.
    pub(crate) fn sites(&self) -> Vec<LinearSite> {
        self.network.linears().iter().filter(|site| site.block.is_some()).cloned().collect()
    }
}

/// Arrays at every level, with the bytes of each.
pub(crate) struct Levels {
    /// `[units][levels]`; a unit may hold no array at a level, which leaves the original.
    pub(crate) arrays: Vec<Vec<Option<Array<'static>>>>,
    pub(crate) bytes: Vec<Vec<u64>>,
}

impl Levels {
    /// Every site coded by every recipe, with what the statistics say of it.
    pub(crate) fn coded(
        network: &Network,
        sites: &[LinearSite],
        recipes: &[String],
        statistics: Option<&Statistics>,
        catalogue: &Catalogue,
    ) -> Result<Self, Error> {
        let mut levels = Self { arrays: Vec::new(), bytes: Vec::new() };
        for site in sites {
            let array = network.source().array(&site.weight)?;
            let knowledge = statistics.map(|known| known.knowledge(site)).transpose()?;
            let knowledge: Knowledge = knowledge.unwrap_or_default();
            let (mut arrays, mut bytes) = (Vec::new(), Vec::new());
            for recipe in recipes {
                let codec = catalogue.codec(&recipe.parse::<Recipe>()?)?;
                let encoded = codec.encode(&array, &knowledge, Rate::Recipe)?;
                let payloads: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
                arrays.push(Some(codec.decode(&array.spec, &payloads)?.into_owned()));
                bytes.push(encoded.size_bytes() as u64);
            }
            levels.arrays.push(arrays);
            levels.bytes.push(bytes);
        }
        Ok(levels)
    }

    /// The original with the chosen level of each unit; `None` leaves a unit as it is.
    pub(crate) fn chosen<'a>(&'a self, below: &'a dyn TensorSource, choices: &[Option<usize>]) -> Chosen<'a> {
        let levels = self.arrays.iter().zip(choices);
        let arrays = levels.filter_map(|(levels, choice)| levels.get((*choice)?)?.as_ref());
        Chosen { below, above: arrays.map(|array| (array.spec.name.as_str(), array)).collect() }
    }

    /// Every unit's levels with the loss of the model that has only that unit changed.
    pub(crate) fn problem(&self, judge: &Judge<'_>) -> Result<Problem, Error> {
        let mut offers = Vec::new();
        for (unit, bytes) in self.bytes.iter().enumerate() {
            let alone = |(level, &bytes): (usize, &u64)| -> Result<RatePoint, Error> {
                Ok(RatePoint { bytes, loss: judge.kl_alone(self, unit, level)? })
            };
            let points: Vec<RatePoint> = bytes.iter().enumerate().map(alone).collect::<Result<_, _>>()?;
            offers.push(Offer::new(unit.to_string(), points));
        }
        Ok(Problem::new(offers)?)
    }

    /// Bytes of one level for each unit.
    pub(crate) fn total(&self, choices: &[usize]) -> u64 {
        self.bytes.iter().zip(choices).map(|(levels, &choice)| levels[choice]).sum()
    }
}

/// A model with some arrays replaced.
pub(crate) struct Chosen<'a> {
    below: &'a dyn TensorSource,
    above: BTreeMap<&'a str, &'a Array<'static>>,
}

impl TensorSource for Chosen<'_> {
    fn arrays(&self) -> &[ArraySpec] {
        self.below.arrays()
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        match self.above.get(name) {
            Some(&array) => Ok(array.clone()),
            None => self.below.array(name),
        }
    }
}

/// How near a model's predictions are to the original's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verdict {
    /// Mean KL divergence from the original, nats per token.
    pub(crate) kl: f64,
    /// Share of tokens with the same most probable prediction.
    pub(crate) agreement: f64,
}

/// A text with the original's logits.
pub(crate) struct Judge<'a> {
    network: &'a Network,
    windows: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

impl<'a> Judge<'a> {
    /// The first so many windows of a text.
    pub(crate) fn new(network: &'a Network, tokens: &[u32], windows: usize) -> Result<Self, Error> {
        let windows: Vec<Vec<u32>> = tokens.chunks(WINDOW).take(windows).map(<[u32]>::to_vec).collect();
        let logits = network.logits(&network.forward(&windows)?, None)?;
        Ok(Self { network, windows, logits })
    }

    /// The model with the chosen levels against the original.
    pub(crate) fn verdict(&self, levels: &Levels, choices: &[Option<usize>]) -> Result<Verdict, Error> {
        self.verdict_of(&levels.chosen(&**self.network.source(), choices))
    }

    /// Mean KL divergence with one level for each unit.
    pub(crate) fn kl(&self, levels: &Levels, choices: &[usize]) -> Result<f64, Error> {
        let choices: Vec<Option<usize>> = choices.iter().copied().map(Some).collect();
        Ok(self.verdict(levels, &choices)?.kl)
    }

    /// Mean KL divergence with one unit at a level and all others as they are.
    pub(crate) fn kl_alone(&self, levels: &Levels, unit: usize, level: usize) -> Result<f64, Error> {
        let mut choices = vec![None; levels.arrays.len()];
        choices[unit] = Some(level);
        Ok(self.verdict(levels, &choices)?.kl)
    }

    /// The model with one array replaced against the original.
    pub(crate) fn kl_with(&self, array: &Array<'static>) -> Result<f64, Error> {
        let above = BTreeMap::from([(array.spec.name.as_str(), array)]);
        Ok(self.verdict_of(&Chosen { below: &**self.network.source(), above })?.kl)
    }

    fn verdict_of(&self, source: &Chosen<'_>) -> Result<Verdict, Error> {
        let mut hidden = self.network.begin(&self.windows)?;
        for block in 0..self.network.n_blocks() {
            let sites = self.network.linears().iter().filter(|site| site.block == Some(block));
            match sites.into_iter().any(|site| source.above.contains_key(site.weight.as_str())) {
                true => self.network.block_with(block, source, &mut hidden, None)?,
                false => self.network.block(block, &mut hidden, None)?,
            }
        }
        let logits = self.network.logits(&hidden, None)?;
        let compared = compare_logits(&self.logits, &logits, &vec![0; hidden.n_tokens()])
            .map_err(|(_, row)| format!("the logits at token {row} are not finite"))?;
        let n = compared.len().max(1) as f64;
        Ok(Verdict {
            kl: compared.iter().map(|row| row.kl_divergence).sum::<f64>() / n,
            agreement: compared.iter().filter(|row| row.agrees).count() as f64 / n,
        })
    }
}

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A shuffled `0..n`.
    pub(crate) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for at in (1..n).rev() {
            order.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
        order
    }
}
