//! What a network is made of, and the check that it fits together.

use std::sync::Arc;

use crate::elementwise::Activation;
use crate::norm::NormKind;
use crate::objective::Pooling;
use crate::rotation::Rotation;

/// A linear module: `[out_features, in_features]` and the index of its bias among the vectors.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Row-major `[out_features, in_features]`; constant.
    pub weight: Arc<[f32]>,
    /// Length of an input row.
    pub in_features: usize,
    /// Length of an output row.
    pub out_features: usize,
    /// Its bias.
    pub bias: Option<usize>,
}

/// A norm: indices of its vectors.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Scale.
    pub weight: usize,
    /// Shift.
    pub bias: Option<usize>,
}

/// `down(activation(gate x) * up x)`, or `down(activation(up x))` without a gate.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the standard names of these modules")]
pub struct FeedForward {
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

/// A block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Norm of the attention's half.
    pub attention_norm: Norm,
    /// Projections whose outputs side by side are all queries, keys and values.
    pub query_key_value: Vec<Linear>,
    /// Norms of every head of queries and of keys, before they turn.
    pub head_norms: Option<(Norm, Norm)>,
    /// The attention's output projection.
    pub output: Linear,
    /// How many tokens back a query sees, itself included.
    pub window: Option<usize>,
    /// Norm of the feed-forward half.
    pub feed_forward_norm: Norm,
    /// The feed-forward half.
    pub feed_forward: FeedForward,
}

/// Tables that are looked up and added.
#[derive(Debug, Clone)]
pub struct Tables {
    /// `[vocab_size, hidden_size]`.
    pub tokens: Arc<[f32]>,
    /// Learned positions, and the row of the first token.
    pub positions: Option<(Arc<[f32]>, usize)>,
    /// Added to every token (an encoder's first token type).
    pub constant: Option<Vec<f32>>,
}

/// Everything a network is made of.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the standard names of these properties")]
pub struct Parts {
    pub hidden_size: usize,
    pub n_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Whether tokens see only those before them.
    pub is_causal: bool,
    pub norm: NormKind,
    pub norm_epsilon: f32,
    /// `x + f(norm(x))` where true, else `norm(x + f(x))`.
    pub is_norm_first: bool,
    pub activation: Activation,
    pub rotation: Option<Rotation>,
    pub tables: Tables,
    pub embedding_norm: Option<Norm>,
    pub blocks: Vec<Block>,
    pub final_norm: Option<Norm>,
    /// `None` in encoders.
    pub head: Option<Linear>,
    pub pooling: Pooling,
    /// Norms' weights and all biases.
    pub vectors: Vec<Vec<f32>>,
}

/// Why parts do not make a network, or a sequence does not fit one.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum NetworkError {
    #[error("{part} holds {found} numbers, {needed} are needed")]
    Length { part: String, found: usize, needed: usize },
    #[error("token {token} at position {position} has no row in the tables")]
    Token { token: u32, position: usize },
    #[error("the reference does not fit the network or the sequence")]
    Reference,
}

fn length(part: impl Into<String>, found: usize, needed: usize) -> Result<(), NetworkError> {
    if found == needed { Ok(()) } else { Err(NetworkError::Length { part: part.into(), found, needed }) }
}

fn vector(parts: &Parts, part: &str, index: usize, needed: usize) -> Result<(), NetworkError> {
    length(part, parts.vectors.get(index).map_or(0, Vec::len), needed)
}

fn norm(parts: &Parts, part: &str, norm: &Norm, width: usize) -> Result<(), NetworkError> {
    vector(parts, &format!("the weight of {part}"), norm.weight, width)?;
    norm.bias.map_or(Ok(()), |bias| vector(parts, &format!("the bias of {part}"), bias, width))
}

fn linear(parts: &Parts, part: &str, linear: &Linear, shape: (usize, usize)) -> Result<(), NetworkError> {
    length(format!("an input row of {part}"), linear.in_features, shape.0)?;
    length(format!("an output row of {part}"), linear.out_features, shape.1)?;
    length(format!("the weight of {part}"), linear.weight.len(), shape.0.saturating_mul(shape.1))?;
    linear.bias.map_or(Ok(()), |bias| vector(parts, &format!("the bias of {part}"), bias, shape.1))
}

/// Checks every length.
pub(crate) fn check(parts: &Parts) -> Result<(), NetworkError> {
    let hidden = parts.hidden_size;
    let (queries, keys) = (parts.n_heads * parts.head_dim, parts.kv_heads * parts.head_dim);
    if hidden == 0
        || parts.head_dim == 0
        || parts.kv_heads == 0
        || !parts.n_heads.is_multiple_of(parts.kv_heads)
    {
        return Err(NetworkError::Length {
            part: "the heads' layout".into(),
            found: parts.n_heads,
            needed: parts.kv_heads,
        });
    }
    if parts.rotation.as_ref().is_some_and(|rotation| rotation.rotated() > parts.head_dim) {
        return Err(NetworkError::Length {
            part: "a head".into(),
            found: parts.head_dim,
            needed: parts.head_dim + 1,
        });
    }
    length("the last row of the token table", parts.tables.tokens.len() % hidden, 0)?;
    if let Some(constant) = &parts.tables.constant {
        length("the row added to every token", constant.len(), hidden)?;
    }
    for found in parts.embedding_norm.iter().chain(&parts.final_norm) {
        norm(parts, "a norm", found, hidden)?;
    }
    for (index, block) in parts.blocks.iter().enumerate() {
        let name = |part: &str| format!("{part} of block {index}");
        norm(parts, &name("the attention's norm"), &block.attention_norm, hidden)?;
        norm(parts, &name("the feed-forward norm"), &block.feed_forward_norm, hidden)?;
        if let Some((queries, keys)) = &block.head_norms {
            norm(parts, &name("the queries' norm"), queries, parts.head_dim)?;
            norm(parts, &name("the keys' norm"), keys, parts.head_dim)?;
        }
        let widths = block.query_key_value.iter().map(|linear| linear.out_features).sum();
        length(name("queries, keys and values"), widths, queries + 2 * keys)?;
        for part in &block.query_key_value {
            linear(parts, &name("a projection"), part, (hidden, part.out_features))?;
        }
        linear(parts, &name("the output projection"), &block.output, (queries, hidden))?;
        let wide = block.feed_forward.up.out_features;
        for part in block.feed_forward.gate.iter().chain([&block.feed_forward.up]) {
            linear(parts, &name("a feed-forward projection"), part, (hidden, wide))?;
        }
        linear(parts, &name("the down projection"), &block.feed_forward.down, (wide, hidden))?;
    }
    match &parts.head {
        Some(head) => linear(parts, "the head", head, (hidden, head.out_features)),
        None => Ok(()),
    }
}
