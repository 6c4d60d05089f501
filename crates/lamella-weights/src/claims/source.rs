//! Measuring other weights than those of one written file: prefixes of stacks, cut files, mixtures of both.

use std::path::{Path, PathBuf};

use lamella_codec::{Array, ArraySpec, SourceError, TensorSource};
use lamella_lm::judge::compare_logits;

use super::{ClaimBench, Error, Measured};
use crate::evaluate::Opened;

/// The original with other arrays in some places.
pub struct Replaced<'a> {
    /// What is not replaced.
    pub below: &'a dyn TensorSource,
    /// What replaces arrays of the same name.
    pub above: Vec<&'a Array<'static>>,
}

impl TensorSource for Replaced<'_> {
    fn arrays(&self) -> &[ArraySpec] {
        self.below.arrays()
    }
    fn array(&self, name: &str) -> Result<Array<'_>, SourceError> {
        match self.above.iter().find(|array| array.spec.name == name) {
            Some(&array) => Ok(array.clone()),
            None => self.below.array(name),
        }
    }
}

impl ClaimBench {
    /// The file that the last measurement wrote; the next one replaces it.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("candidate.lam")
    }

    /// A file in the claim's directory, removed with it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Negative log-likelihood per token, in nats, of sequences with the blocks' weights from `source`.
    ///
    /// # Errors
    /// Arrays that cannot be read, logits that are not finite.
    pub fn likelihood(&self, source: &dyn TensorSource, sequences: &[Vec<u32>]) -> Result<f64, Error> {
        let mut hidden = self.network.begin(sequences)?;
        for block in 0..self.network.n_blocks() {
            self.network.block_with(block, source, &mut hidden, None)?;
        }
        let logits = self.network.logits(&hidden, None)?;
        let next = |tokens: &Vec<u32>| -> Vec<u32> {
            let first = tokens.first().copied();
            tokens.iter().skip(1).copied().chain(first).collect()
        };
        let targets: Vec<u32> = sequences.iter().flat_map(next).collect();
        let compared = compare_logits(&logits, &logits, &targets)
            .map_err(|(_, row)| format!("the logits at token {row} are not finite"))?;
        let sum: f64 = compared.iter().map(|row| row.candidate.negative_log_likelihood).sum();
        Ok(sum / compared.len().max(1) as f64)
    }

    /// The sequences that losses are measured on.
    pub fn unseen(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// Measures a file as it lies there; errors of single linears are left out.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn measure_file(&self, path: &Path, name: &str) -> Result<Measured, Error> {
        let opened = Opened::open(&path.to_string_lossy(), &self.catalogue)?;
        let weights: usize = self.originals.iter().map(|array| array.spec.len()).sum();
        let (kl, perplexity) = self.judge(&opened.model.network)?;
        Ok(Measured {
            recipe: name.to_owned(),
            file_bytes: opened.bytes,
            linear_bytes: (opened.linear_bits_per_weight * weights as f64 / 8.0).round() as u64,
            linear_bits: opened.linear_bits_per_weight,
            kl,
            perplexity,
            errors: Vec::new(),
            squared_errors: Vec::new(),
        })
    }
}
