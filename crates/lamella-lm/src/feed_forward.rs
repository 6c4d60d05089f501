//! The feed-forward half of a block.

use lamella_codec::TensorSource;
use rayon::prelude::*;

use crate::LmError;
use crate::elementwise::{Activation, multiply};
use crate::experts::Experts;
use crate::hidden::Hidden;
use crate::kv_cache::Cache;
use crate::linear::{Linear, OperatorLookup};
use crate::plan::{DensePlan, FeedForwardPlan};
use crate::rwkv::ChannelMix;
use crate::site::Watch;

/// Tokens that go through at a time: bounds the wide activations of long batches.
const TOKENS: usize = 2048;
/// Elements a thread takes at a time.
const ELEMENTS: usize = 1 << 14;

/// `down(activation(gate x) * up x)`, or `down(activation(up x))` without a gate.
pub(crate) struct Dense {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Dense {
    pub(crate) fn load(
        plan: &DensePlan,
        activation: Activation,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        Ok(Self {
            gate: plan.gate.as_ref().map(|site| Linear::load(site, source, operators)).transpose()?,
            up: Linear::load(&plan.up, source, operators)?,
            down: Linear::load(&plan.down, source, operators)?,
            activation,
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        self.gate.iter().chain([&self.up, &self.down]).for_each(show);
    }

    pub(crate) fn forward(&self, inputs: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        for part in inputs.chunks(TOKENS * self.up.site.in_features) {
            watch.see(&self.up.site, part);
        }
        self.forward_seen(inputs, watch)
    }

    /// As `forward` for inputs that somebody else has shown.
    pub(crate) fn forward_seen(&self, inputs: &[f32], watch: &mut Watch<'_>) -> Vec<f32> {
        let mut outputs = Vec::with_capacity(inputs.len());
        for part in inputs.chunks(TOKENS * self.up.site.in_features) {
            let mut wide = self.up.apply(part);
            match &self.gate {
                Some(gate) => {
                    let mut gates = gate.apply(part);
                    let step = |gates: &mut [f32], wide: &mut [f32]| {
                        self.activation.apply(gates);
                        multiply(wide, gates);
                    };
                    if wide.len() <= ELEMENTS {
                        step(&mut gates, &mut wide);
                    } else {
                        gates
                            .par_chunks_mut(ELEMENTS)
                            .zip(wide.par_chunks_mut(ELEMENTS))
                            .for_each(|(gates, wide)| step(gates, wide));
                    }
                }
                None if wide.len() <= ELEMENTS => self.activation.apply(&mut wide),
                None => wide.par_chunks_mut(ELEMENTS).for_each(|part| self.activation.apply(part)),
            }
            watch.see(&self.down.site, &wide);
            outputs.extend(self.down.apply(&wide));
        }
        outputs
    }
}

/// The feed-forward half with its weights.
pub(crate) enum FeedForward {
    Dense(Box<Dense>),
    ChannelMix(Box<ChannelMix>),
    Experts(Box<Experts>),
}

impl FeedForward {
    pub(crate) fn load(
        plan: &FeedForwardPlan,
        activation: Activation,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let dense = |plan: &DensePlan| Dense::load(plan, activation, source, operators);
        Ok(match plan {
            FeedForwardPlan::Dense(plan) => Self::Dense(Box::new(dense(plan)?)),
            FeedForwardPlan::ChannelMix(plan) => {
                Self::ChannelMix(Box::new(ChannelMix::load(plan, source, operators)?))
            }
            FeedForwardPlan::Experts(plan) => {
                Self::Experts(Box::new(Experts::load(plan, activation, source, operators)?))
            }
        })
    }

    pub(crate) fn for_each_linear(&self, show: &mut dyn FnMut(&Linear)) {
        match self {
            Self::Dense(network) => network.for_each_linear(show),
            Self::ChannelMix(network) => network.for_each_linear(show),
            Self::Experts(experts) => experts.for_each_linear(show),
        }
    }

    /// From normalised rows to what is added to the residual stream.
    pub(crate) fn forward(
        &self,
        inputs: &[f32],
        hidden: &Hidden,
        index: usize,
        caches: Option<&mut [Cache]>,
        watch: &mut Watch<'_>,
    ) -> Vec<f32> {
        match self {
            Self::Dense(network) => network.forward(inputs, watch),
            Self::ChannelMix(network) => network.forward(inputs, hidden, index, caches, watch),
            Self::Experts(experts) => experts.forward(inputs, watch),
        }
    }
}
