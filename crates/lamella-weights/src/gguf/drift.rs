//! A calibration text on its way through a network whose blocks are replaced by their quantised selves.
//!
//! What a block is quantised for is what it will see: inputs behind the quantised embedding and blocks before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamella_codec::TensorMap;
use lamella_lm::statistics::{Detail, InputAccumulator, InputStatistics, StatisticsError, observe_block};
use lamella_lm::{Hidden, Model, Network, Observer};
use lamella_math::SecondMoment;

use crate::compress::Overlay;

/// The hidden states in front of the next block.
pub(crate) struct Drift<'m> {
    network: &'m Network,
    sequences: &'m [Vec<u32>],
    batches: Vec<Hidden>,
    /// Statistics by input key, of the block that is being quantised.
    seen: BTreeMap<String, InputStatistics>,
}

impl<'m> Drift<'m> {
    pub(crate) fn new(model: &'m Model, sequences: &'m [Vec<u32>]) -> Self {
        Self { network: &model.network, sequences, batches: Vec::new(), seen: BTreeMap::new() }
    }

    /// Embeds the text with the quantised tables, where there are some.
    pub(crate) fn begin(&mut self, quantized: &TensorMap) -> Result<(), StatisticsError> {
        let source = Overlay { above: quantized, below: self.network.source().as_ref() };
        self.batches = vec![self.network.begin_with(&source, self.sequences)?];
        Ok(())
    }

    /// Takes the statistics of a block that is not quantised yet.
    pub(crate) fn observe(&mut self, block: usize) -> Result<(), StatisticsError> {
        let mut ahead = self.batches.clone();
        self.seen = observe_block(self.network, block, &mut ahead, None, Detail::Full)?;
        Ok(())
    }

    /// Moves the states behind the quantised block.
    pub(crate) fn advance(&mut self, block: usize, quantized: &TensorMap) -> Result<(), StatisticsError> {
        let source = Overlay { above: quantized, below: self.network.source().as_ref() };
        for hidden in &mut self.batches {
            self.network.block_with(block, &source, hidden, None)?;
        }
        Ok(())
    }

    /// Takes the statistics of the head.
    pub(crate) fn observe_head(&mut self) -> Result<(), StatisticsError> {
        struct Head(BTreeMap<String, InputAccumulator>);
        impl Observer for Head {
            fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
                let new = || InputAccumulator::new(features, Detail::Full);
                self.0.entry(input.to_owned()).or_insert_with(new).push(rows);
            }
        }
        let mut head = Head(BTreeMap::new());
        for hidden in &self.batches {
            self.network.observe_head(hidden, &mut head)?;
        }
        self.seen = head.0.into_iter().map(|(key, seen)| (key, seen.finish())).collect();
        Ok(())
    }

    /// The second moment under an input key, where this block has it.
    pub(crate) fn second_moment(&self, key: &str) -> Option<Arc<SecondMoment>> {
        self.seen.get(key).and_then(|seen| seen.second_moment().cloned())
    }
}
