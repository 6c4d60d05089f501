//! One block: a half in which tokens see each other, then a feed-forward half, each around the residual stream.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::attention::Attention;
use crate::config::{NormOrder, TransformerConfig};
use crate::elementwise::add;
use crate::feed_forward::FeedForward;
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup};
use crate::norm::Norm;
use crate::plan::{BlockPlan, MixerPlan};
use crate::rwkv::TimeMix;
use crate::site::Watch;

/// Elements a thread takes at a time.
const ELEMENTS: usize = 1 << 15;

/// The half in which tokens see each other.
enum Mixer {
    Attention(Box<Attention>),
    Rwkv(Box<TimeMix>),
}

impl Mixer {
    fn forward(
        &self,
        inputs: &[f32],
        hidden: &mut Hidden,
        index: usize,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        match self {
            Self::Attention(attention) => attention.forward(inputs, hidden, index, caches, watch),
            Self::Rwkv(mix) => mix.forward(inputs, hidden, index, caches, watch),
        }
    }
}

/// A block with its weights.
pub(crate) struct Block {
    mixer_norm: Norm,
    mixer: Mixer,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    order: NormOrder,
}

impl Block {
    pub(crate) fn load(
        plan: &BlockPlan,
        config: &TransformerConfig,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let norm = |plan| Norm::load(plan, config.norm, config.norm_epsilon, config.hidden_size, source);
        Ok(Self {
            mixer_norm: norm(&plan.mixer_norm)?,
            mixer: match &plan.mixer {
                MixerPlan::Attention(plan) => {
                    Mixer::Attention(Box::new(Attention::load(plan, config, source, operators)?))
                }
                MixerPlan::Rwkv(plan) => Mixer::Rwkv(Box::new(TimeMix::load(plan, source, operators)?)),
            },
            feed_forward_norm: norm(&plan.feed_forward_norm)?,
            feed_forward: FeedForward::load(&plan.feed_forward, config.activation, source, operators)?,
            order: config.norm_order,
        })
    }

    /// Shows every linear of the block.
    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        match &self.mixer {
            Mixer::Attention(attention) => attention.for_each_linear(show),
            Mixer::Rwkv(mix) => mix.for_each_linear(show),
        }
        self.feed_forward.for_each_linear(show);
    }

    /// Runs the block over `hidden`; `index` is its place in the caches.
    pub(crate) fn forward(
        &self,
        index: usize,
        hidden: &mut Hidden,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) {
        let mut caches = caches;
        let mut inputs = hidden.values.clone();
        match self.order {
            NormOrder::Before => {
                self.mixer_norm.rows(&mut inputs);
                let change = self.mixer.forward(&inputs, hidden, index, caches.as_deref_mut(), watch);
                add_rows(&mut hidden.values, &change);
                inputs.copy_from_slice(&hidden.values);
                self.feed_forward_norm.rows(&mut inputs);
                let change = self.feed_forward.forward(&inputs, hidden, index, caches, watch);
                add_rows(&mut hidden.values, &change);
            }
            NormOrder::After => {
                let change = self.mixer.forward(&inputs, hidden, index, caches.as_deref_mut(), watch);
                add_rows(&mut hidden.values, &change);
                self.mixer_norm.rows(&mut hidden.values);
                inputs.copy_from_slice(&hidden.values);
                let change = self.feed_forward.forward(&inputs, hidden, index, caches, watch);
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
