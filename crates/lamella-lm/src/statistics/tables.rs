//! All statistics of a network, in memory or lazily read from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamella_codec::Knowledge;
use lamella_math::SecondMoment;
use serde::{Deserialize, Serialize};

use super::store::{self, Extent, StatisticsWriter};
use super::{FisherDiagonal, InputStatistics, StatisticsError};
use crate::LinearSite;

/// One text that statistics were taken on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextUse {
    /// [`text_hash`](super::text_hash) of the text, or whatever names it.
    pub hash: String,
    /// Tokens taken from it, padding never counted.
    pub tokens: u64,
    /// Sequences they came in.
    pub sequences: u64,
}

/// What statistics were taken of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// [`source_hash`](super::source_hash) of the model, or whatever names it.
    pub model: String,
    /// The texts.
    pub texts: Vec<TextUse>,
}

impl Provenance {
    /// Tokens of all texts.
    pub fn tokens(&self) -> u64 {
        self.texts.iter().map(|text| text.tokens).sum()
    }
}

/// Takes what calibration has finished, in block order.
pub trait Sink {
    /// All that was seen under one input key; each key comes once.
    ///
    /// # Errors
    /// Where it cannot be kept.
    fn accept_input(&mut self, key: &str, seen: InputStatistics) -> Result<(), StatisticsError>;

    /// How often each row of an embedding was used.
    ///
    /// # Errors
    /// Where it cannot be kept.
    fn accept_row_usage(&mut self, embedding: &str, counts: Vec<f64>) -> Result<(), StatisticsError>;

    /// The Fisher diagonal of an array.
    ///
    /// # Errors
    /// Where it cannot be kept.
    fn accept_fisher(&mut self, array: &str, seen: FisherDiagonal) -> Result<(), StatisticsError>;
}

#[derive(Debug, Clone)]
enum FisherEntry {
    Memory(FisherDiagonal),
    Stored(Arc<PathBuf>, Extent),
}

impl FisherEntry {
    fn load(&self) -> Result<FisherDiagonal, StatisticsError> {
        match self {
            Self::Memory(seen) => Ok(seen.clone()),
            Self::Stored(path, extent) => store::read_fisher(path, extent),
        }
    }
}

#[derive(Debug, Clone)]
enum Entry {
    Memory(InputStatistics),
    Stored(Arc<PathBuf>, Extent),
}

impl Entry {
    fn load(&self) -> Result<InputStatistics, StatisticsError> {
        match self {
            Self::Memory(seen) => Ok(seen.clone()),
            Self::Stored(path, extent) => store::read_input(path, extent),
        }
    }
}

/// Statistics of a network by input key, and the use of its embeddings' rows.
///
/// Entries opened from a file stay there until they are asked for and are not kept afterwards.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    provenance: Provenance,
    inputs: BTreeMap<String, Entry>,
    row_usage: BTreeMap<String, Arc<Vec<f64>>>,
    fisher: BTreeMap<String, FisherEntry>,
}

impl Sink for Statistics {
    fn accept_input(&mut self, key: &str, seen: InputStatistics) -> Result<(), StatisticsError> {
        self.inputs.insert(key.to_owned(), Entry::Memory(seen));
        Ok(())
    }
    fn accept_row_usage(&mut self, embedding: &str, counts: Vec<f64>) -> Result<(), StatisticsError> {
        self.row_usage.insert(embedding.to_owned(), Arc::new(counts));
        Ok(())
    }
    fn accept_fisher(&mut self, array: &str, seen: FisherDiagonal) -> Result<(), StatisticsError> {
        self.fisher.insert(array.to_owned(), FisherEntry::Memory(seen));
        Ok(())
    }
}

impl Statistics {
    /// Nothing seen yet.
    pub fn new(provenance: Provenance) -> Self {
        Self { provenance, ..Self::default() }
    }

    /// What these statistics were taken of.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Every input key, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// What was seen under an input key; `None` where nothing was.
    ///
    /// # Errors
    /// A damaged file.
    pub fn input(&self, key: &str) -> Result<Option<InputStatistics>, StatisticsError> {
        self.inputs.get(key).map(Entry::load).transpose()
    }

    /// The second moment of an input key; `None` where it was not seen, or only its diagonal kept.
    ///
    /// # Errors
    /// A damaged file.
    pub fn second_moment(&self, key: &str) -> Result<Option<Arc<SecondMoment>>, StatisticsError> {
        Ok(self.input(key)?.and_then(|seen| seen.second_moment().cloned()))
    }

    /// How often each row of an embedding was used.
    pub fn row_usage(&self, embedding: &str) -> Option<&Arc<Vec<f64>>> {
        self.row_usage.get(embedding)
    }

    /// The Fisher diagonal of an array; `None` where none was taken.
    ///
    /// # Errors
    /// A damaged file.
    pub fn fisher(&self, array: &str) -> Result<Option<FisherDiagonal>, StatisticsError> {
        self.fisher.get(array).map(FisherEntry::load).transpose()
    }

    /// Every array whose Fisher diagonal is known, sorted.
    pub fn fisher_arrays(&self) -> impl Iterator<Item = &str> {
        self.fisher.keys().map(String::as_str)
    }

    /// Every embedding whose row use is known, sorted.
    pub fn embeddings(&self) -> impl Iterator<Item = &str> {
        self.row_usage.keys().map(String::as_str)
    }

    /// What is known of a linear's use, ready for a codec.
    ///
    /// # Errors
    /// A damaged file.
    pub fn knowledge(&self, site: &LinearSite) -> Result<Knowledge, StatisticsError> {
        let mut knowledge = Knowledge::default();
        knowledge.second_moment = self.second_moment(&site.input)?;
        knowledge.row_usage = self.row_usage(&site.weight).cloned();
        Ok(knowledge)
    }

    /// Weights whose inputs the texts never reached, such as experts no token was routed to. Codecs know nothing of
    /// them: the caller warns.
    pub fn unreached<'a>(&self, linears: &'a [LinearSite]) -> Vec<&'a str> {
        linears
            .iter()
            .filter(|site| !self.inputs.contains_key(&site.input))
            .map(|site| site.weight.as_str())
            .collect()
    }

    /// Adds the statistics of the same model on another text. Entries are read into memory. To get the same bits
    /// again, merge in the same order.
    ///
    /// # Errors
    /// Another model, another set of features, a damaged file. Nothing changes then.
    pub fn merge(&mut self, other: &Self) -> Result<(), StatisticsError> {
        self.check_model(other)?;
        let mut inputs = self.inputs.clone();
        for (key, entry) in &other.inputs {
            let theirs = entry.load()?;
            let merged = match inputs.get(key) {
                None => theirs,
                Some(mine) => merged(key, mine.load()?, &theirs)?,
            };
            inputs.insert(key.clone(), Entry::Memory(merged));
        }
        let mut fisher = self.fisher.clone();
        for array in other.fisher.keys() {
            if let Some(seen) = self.merged_fisher(other, array)? {
                fisher.insert(array.clone(), FisherEntry::Memory(seen));
            }
        }
        let row_usage = self.merged_usage(other)?;
        (self.inputs, self.row_usage, self.fisher) = (inputs, row_usage, fisher);
        self.provenance.texts.extend(other.provenance.texts.iter().cloned());
        Ok(())
    }

    /// Merges as [`Statistics::merge`] does, into a file and holding one entry at a time.
    ///
    /// # Errors
    /// Another model, another set of features, a damaged file, a file that cannot be written.
    pub fn merge_to_file(&self, other: &Self, path: &Path) -> Result<(), StatisticsError> {
        self.check_model(other)?;
        let mut provenance = self.provenance.clone();
        provenance.texts.extend(other.provenance.texts.iter().cloned());
        let mut writer = StatisticsWriter::create(path, provenance)?;
        let keys: std::collections::BTreeSet<&String> =
            self.inputs.keys().chain(other.inputs.keys()).collect();
        for key in keys {
            let seen = match (self.inputs.get(key), other.inputs.get(key)) {
                (Some(mine), Some(theirs)) => merged(key, mine.load()?, &theirs.load()?)?,
                (Some(only), None) | (None, Some(only)) => only.load()?,
                (None, None) => continue,
            };
            writer.accept_input(key, seen)?;
        }
        for (embedding, counts) in self.merged_usage(other)? {
            writer.accept_row_usage(&embedding, Vec::clone(&counts))?;
        }
        let arrays: std::collections::BTreeSet<&String> =
            self.fisher.keys().chain(other.fisher.keys()).collect();
        for array in arrays {
            if let Some(seen) = self.merged_fisher(other, array)? {
                writer.accept_fisher(array, seen)?;
            }
        }
        writer.finish()
    }

    /// Writes everything to one file, under a temporary name until it is whole.
    ///
    /// # Errors
    /// A file that cannot be written; a damaged file that entries come from.
    pub fn save(&self, path: &Path) -> Result<(), StatisticsError> {
        let mut writer = StatisticsWriter::create(path, self.provenance.clone())?;
        for (key, entry) in &self.inputs {
            writer.accept_input(key, entry.load()?)?;
        }
        for (embedding, counts) in &self.row_usage {
            writer.accept_row_usage(embedding, Vec::clone(counts))?;
        }
        for (array, entry) in &self.fisher {
            writer.accept_fisher(array, entry.load()?)?;
        }
        writer.finish()
    }

    /// Opens a file: reads its index and the row usage, entries only when they are asked for.
    ///
    /// # Errors
    /// A file that cannot be read, is no statistics file, or is damaged.
    pub fn open(path: &Path) -> Result<Self, StatisticsError> {
        let index = store::read_index(path)?;
        let shared = Arc::new(path.to_owned());
        let mut statistics = Self::new(index.provenance);
        for (key, extent) in index.inputs {
            statistics.inputs.insert(key, Entry::Stored(Arc::clone(&shared), extent));
        }
        for (embedding, extent) in index.row_usage {
            statistics.row_usage.insert(embedding, Arc::new(store::read_usage(path, &extent)?));
        }
        for (array, extent) in index.fisher {
            statistics.fisher.insert(array, FisherEntry::Stored(Arc::clone(&shared), extent));
        }
        Ok(statistics)
    }

    fn check_model(&self, other: &Self) -> Result<(), StatisticsError> {
        if self.provenance.model == other.provenance.model {
            return Ok(());
        }
        Err(StatisticsError::Mismatch {
            message: format!(
                "they are of different models (`{}` and `{}`)",
                self.provenance.model, other.provenance.model
            ),
        })
    }

    /// Both sides' Fisher diagonals of an array together.
    fn merged_fisher(&self, other: &Self, array: &str) -> Result<Option<FisherDiagonal>, StatisticsError> {
        let (mine, theirs) = (self.fisher(array)?, other.fisher(array)?);
        let (Some(mut mine), Some(theirs)) = (mine.clone(), theirs.clone()) else {
            return Ok(mine.or(theirs));
        };
        mine.merge(&theirs).map_err(|error| within(&format!("the Fisher diagonal of `{array}`"), error))?;
        Ok(Some(mine))
    }

    fn merged_usage(&self, other: &Self) -> Result<BTreeMap<String, Arc<Vec<f64>>>, StatisticsError> {
        let mut usage = self.row_usage.clone();
        for (embedding, counts) in &other.row_usage {
            let Some(mine) = usage.get_mut(embedding) else {
                usage.insert(embedding.clone(), Arc::clone(counts));
                continue;
            };
            if mine.len() != counts.len() {
                return Err(StatisticsError::Mismatch {
                    message: format!("`{embedding}` has {} rows against {}", mine.len(), counts.len()),
                });
            }
            for (sum, count) in Arc::make_mut(mine).iter_mut().zip(counts.iter()) {
                *sum += count;
            }
        }
        Ok(usage)
    }
}

fn merged(
    key: &str,
    mut mine: InputStatistics,
    theirs: &InputStatistics,
) -> Result<InputStatistics, StatisticsError> {
    mine.merge(theirs).map_err(|error| within(&format!("inputs `{key}`"), error))?;
    Ok(mine)
}

/// Says of what a mismatch is.
fn within(what: &str, error: StatisticsError) -> StatisticsError {
    match error {
        StatisticsError::Mismatch { message } => {
            StatisticsError::Mismatch { message: format!("{what}: {message}") }
        }
        other => other,
    }
}
