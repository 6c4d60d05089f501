//! One block of a transformer: attention, then a feed-forward network, each around the residual stream.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::attention::Attention;
use crate::config::{NormOrder, TransformerConfig};
use crate::elementwise::add;
use crate::feed_forward::FeedForward;
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::OperatorLookup;
use crate::norm::Norm;
use crate::plan::BlockPlan;
use crate::site::Watch;

/// Elements a thread takes at a time.
const ELEMENTS: usize = 1 << 15;

/// A transformer block with its weights.
pub(crate) struct TransformerBlock {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    order: NormOrder,
}

impl TransformerBlock {
    pub(crate) fn load(
        plan: &BlockPlan,
        config: &TransformerConfig,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let norm = |plan| Norm::load(plan, config.norm, config.norm_epsilon, source);
        Ok(Self {
            attention_norm: norm(&plan.attention_norm)?,
            attention: Attention::load(&plan.attention, config, source, operators)?,
            feed_forward_norm: norm(&plan.feed_forward_norm)?,
            feed_forward: FeedForward::load(&plan.feed_forward, config.activation, source, operators)?,
            order: config.norm_order,
        })
    }

    /// Runs the block over `hidden`; `index` is its place in the caches.
    pub(crate) fn forward(
        &self,
        index: usize,
        hidden: &mut Hidden,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) {
        match self.order {
            NormOrder::Before => {
                let mut inputs = hidden.values.clone();
                self.attention_norm.rows(&mut inputs);
                let change = self.attention.forward(&inputs, hidden, index, caches, watch);
                add_rows(&mut hidden.values, &change);
                inputs.copy_from_slice(&hidden.values);
                self.feed_forward_norm.rows(&mut inputs);
                add_rows(&mut hidden.values, &self.feed_forward.forward(&inputs, watch));
            }
            NormOrder::After => {
                let change = self.attention.forward(&hidden.values, hidden, index, caches, watch);
                add_rows(&mut hidden.values, &change);
                self.attention_norm.rows(&mut hidden.values);
                let change = self.feed_forward.forward(&hidden.values, watch);
                add_rows(&mut hidden.values, &change);
                self.feed_forward_norm.rows(&mut hidden.values);
            }
        }
    }
}

/// `left += right` on all threads.
pub(crate) fn add_rows(left: &mut [f32], right: &[f32]) {
    if left.len() <= ELEMENTS {
        add(left, right);
    } else {
        left.par_chunks_mut(ELEMENTS)
            .zip(right.par_chunks(ELEMENTS))
            .for_each(|(left, right)| add(left, right));
    }
}
