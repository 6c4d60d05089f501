//! What a network is made of, and the check that it fits together.

use std::sync::Arc;

use crate::elementwise::Activation;
use crate::norm::NormKind;
use crate::objective::Pooling;
use crate::rotation::Rotation;

/// A matrix, row-major.
#[derive(Debug, Clone)]
pub enum Weight {
    /// It stays as it is and costs no gradient.
    Constant(Arc<[f32]>),
    /// It is this one of [`Parts::parameters`] and gets a gradient.
    Trained(usize),
}

/// A linear module: `[out_features, in_features]` and the index of its bias among the parameters.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// Length of an input row.
    pub in_features: usize,
    /// Length of an output row.
    pub out_features: usize,
    /// Its bias.
    pub bias: Option<usize>,
}

/// A norm: indices of its parameters.
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
pub struct Dense {
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

/// A router sends every token through the few networks it finds most probable.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[n_experts, hidden_size]`.
    pub router: Linear,
    /// The networks.
    pub experts: Vec<Dense>,
    /// Networks each token goes through.
    pub experts_per_token: usize,
    /// Whether the chosen networks' probabilities are rescaled to sum to one.
    pub is_normalized: bool,
    /// The network that sees every token, and its sigmoid gate of one output.
    pub shared: Option<(Dense, Linear)>,
}

/// The feed-forward half of a block.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a network holds one per block")]
pub enum FeedForward {
    /// One network for every token.
    Dense(Dense),
    /// A mixture of experts.
    Experts(Experts),
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
    pub tokens: Weight,
    /// Learned positions, and the row of the first token.
    pub positions: Option<(Weight, usize)>,
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
    /// What gets gradients: norms' weights, all biases, and matrices that are [`Weight::Trained`].
    pub parameters: Vec<Vec<f32>>,
}

impl Parts {
    /// Numbers of a matrix; nothing where the index leads nowhere (which [`check`] refuses).
    pub(crate) fn weight<'a>(&'a self, weight: &'a Weight) -> &'a [f32] {
        match weight {
            Weight::Constant(values) => values,
            Weight::Trained(index) => self.parameters.get(*index).map_or(&[], |values| values),
        }
    }

    /// Whether any matrix gets a gradient.
    pub(crate) fn trains_matrices(&self) -> bool {
        let of = |linear: &Linear| matches!(linear.weight, Weight::Trained(_));
        let dense = |dense: &Dense| [&dense.up, &dense.down].into_iter().chain(&dense.gate).any(of);
        matches!(self.tables.tokens, Weight::Trained(_))
            || self.head.as_ref().is_some_and(of)
            || self.blocks.iter().any(|block| {
                of(&block.output)
                    || block.query_key_value.iter().any(of)
                    || match &block.feed_forward {
                        FeedForward::Dense(part) => dense(part),
                        FeedForward::Experts(part) => of(&part.router) || part.experts.iter().any(dense),
                    }
            })
    }
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
    #[error("a loss over next tokens needs a decoder and sequences of two tokens or more")]
    NoNextToken,
}

fn length(part: impl Into<String>, found: usize, needed: usize) -> Result<(), NetworkError> {
    if found == needed { Ok(()) } else { Err(NetworkError::Length { part: part.into(), found, needed }) }
}

fn vector(parts: &Parts, part: &str, index: usize, needed: usize) -> Result<(), NetworkError> {
    length(part, parts.parameters.get(index).map_or(0, Vec::len), needed)
}

fn norm(parts: &Parts, part: &str, norm: &Norm, width: usize) -> Result<(), NetworkError> {
    vector(parts, &format!("the weight of {part}"), norm.weight, width)?;
    norm.bias.map_or(Ok(()), |bias| vector(parts, &format!("the bias of {part}"), bias, width))
}

fn linear(parts: &Parts, part: &str, linear: &Linear, shape: (usize, usize)) -> Result<(), NetworkError> {
    length(format!("an input row of {part}"), linear.in_features, shape.0)?;
    length(format!("an output row of {part}"), linear.out_features, shape.1)?;
    length(
        format!("the weight of {part}"),
        parts.weight(&linear.weight).len(),
        shape.0.saturating_mul(shape.1),
    )?;
    linear.bias.map_or(Ok(()), |bias| vector(parts, &format!("the bias of {part}"), bias, shape.1))
}

fn dense(parts: &Parts, name: &dyn Fn(&str) -> String, part: &Dense) -> Result<(), NetworkError> {
    let (hidden, wide) = (parts.hidden_size, part.up.out_features);
    for part in part.gate.iter().chain([&part.up]) {
        linear(parts, &name("a feed-forward projection"), part, (hidden, wide))?;
    }
    linear(parts, &name("the down projection"), &part.down, (wide, hidden))
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
    length("the last row of the token table", parts.weight(&parts.tables.tokens).len() % hidden, 0)?;
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
        match &block.feed_forward {
            FeedForward::Dense(part) => dense(parts, &name, part)?,
            FeedForward::Experts(part) => {
                let n = part.experts.len();
                linear(parts, &name("the router"), &part.router, (hidden, n))?;
                length(
                    name("the choice of experts"),
                    part.experts_per_token.clamp(1.min(n), n),
                    part.experts_per_token,
                )?;
                part.experts.iter().try_for_each(|part| dense(parts, &name, part))?;
                if let Some((part, gate)) = &part.shared {
                    dense(parts, &name, part)?;
                    linear(parts, &name("the shared network's gate"), gate, (hidden, 1))?;
                }
            }
        }
    }
    match &parts.head {
        Some(head) => linear(parts, "the head", head, (hidden, head.out_features)),
        None => Ok(()),
    }
}
