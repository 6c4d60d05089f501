//! Where linears stand, and who watches their inputs.

use serde::{Deserialize, Serialize};

/// Whether a network predicts the next token or embeds a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Predicts the next token from those before.
    Decoder,
    /// Turns a text into vectors.
    Encoder,
}

/// What a linear does in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are the field's standard names of these modules")]
pub enum Role {
    Query,
    Key,
    Value,
    /// Query, key and value in one array, in this order along the outputs.
    QueryKeyValue,
    /// The attention's output projection (also of an RWKV time mix).
    Output,
    Gate,
    Up,
    Down,
    /// Chooses experts.
    Router,
    /// The RWKV time mix's receptance, and that of its channel mix.
    Receptance,
    /// The small projections that make RWKV's decays and mixing weights depend on the data.
    LowRank,
    Head,
    Embedding,
}

/// A linear module: which array it multiplies and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinearSite {
    /// Name of the weight array.
    pub weight: String,
    /// Name of the bias array, where there is one.
    pub bias: Option<String>,
    /// What its inputs are called: one key for all linears that see the same rows,
    /// `model.layers.0.attention_input` for instance.
    pub input: String,
    /// Decoder block it stands in, `None` for the head.
    pub block: Option<usize>,
    /// Length of an input row.
    pub in_features: usize,
    /// Length of an output row.
    pub out_features: usize,
    /// What it does.
    pub role: Role,
    /// Whether the array is stored `[in_features, out_features]` (GPT-2) instead of `[out_features, in_features]`.
    pub is_transposed: bool,
    /// Which expert's network it belongs to.
    pub expert: Option<usize>,
}

impl LinearSite {
    /// Shape of the stored array.
    pub fn stored_shape(&self) -> [usize; 2] {
        if self.is_transposed {
            [self.in_features, self.out_features]
        } else {
            [self.out_features, self.in_features]
        }
    }
}

/// Names a linear of a block: `(array, input, (in_features, out_features), role)`.
pub(crate) type SiteMaker<'a> = dyn Fn(&str, &str, (usize, usize), Role) -> LinearSite + 'a;

/// Watches the inputs of linears while a network runs.
pub trait Observer {
    /// Rows that linears with input key `input` are about to multiply: `[tokens, features]` row-major.
    ///
    /// Called in token order; one batch may arrive in several calls. Calls and rows are the same at any thread
    /// count. Experts see only the tokens routed to them.
    fn observe(&mut self, input: &str, features: usize, rows: &[f32]);
}

/// An observer that may be absent, lent from call to call.
pub(crate) struct Watch<'a>(pub(crate) Option<&'a mut dyn Observer>);

impl Watch<'_> {
    pub(crate) fn see(&mut self, site: &LinearSite, rows: &[f32]) {
        if let Some(observer) = &mut self.0
            && !rows.is_empty()
        {
            observer.observe(&site.input, site.in_features, rows);
        }
    }
}
