//! What a network looks like: one description for every transformer, read from Hugging Face configurations.
//!
//! Families differ in a handful of choices (which norm, where it stands, how positions enter, which projections
//! have biases, what the feed-forward network is). [`TransformerConfig`] holds those choices, so that one decoder
//! runs them all. [`TransformerConfig::from_json`] is the only place that knows families by name.

use crate::Family;
use crate::elementwise::Activation;
use crate::rope::RopeConfig;

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// Divided by their root mean square, scaled.
    RootMeanSquare,
    /// Centred, divided by their standard deviation, scaled, shifted.
    Layer,
}

/// Where norms stand relative to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormOrder {
    /// `x + f(norm(x))`, and a last norm before the head.
    Before,
    /// `norm(x + f(x))`, and a norm over the embeddings.
    After,
}

/// How a network knows where a token stands.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary(RopeConfig),
    /// A learned vector is added to the embedding of the token at `index + offset`.
    Learned {
        /// Rows of the table.
        rows: usize,
        /// Row of the first token (2 in RoBERTa, else 0).
        offset: usize,
    },
    /// By the order in which tokens arrive alone (recurrent networks).
    Order,
}

/// What lets tokens see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mixer {
    /// Softmax attention.
    Attention,
    /// RWKV's recurrence of this version (5, 6 or 7).
    Rwkv(u8),
}

/// The feed-forward half of a decoder block.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FeedForwardConfig {
    /// One network for every token.
    Dense {
        /// Width of the hidden activation.
        intermediate_size: usize,
    },
    /// RWKV's channel mix.
    ChannelMix {
        /// Width of the hidden activation.
        intermediate_size: usize,
    },
    /// A router sends every token to a few of many networks.
    Experts {
        /// Networks there are.
        n_experts: usize,
        /// Networks each token goes through.
        experts_per_token: usize,
        /// Width of each network's hidden activation.
        intermediate_size: usize,
        /// Whether the chosen networks' probabilities are rescaled to sum to one.
        is_normalized: bool,
        /// Width of the network that sees every token behind a sigmoid gate, where there is one.
        shared_intermediate_size: Option<usize>,
    },
}

/// How arrays are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`; experts as `mlp.experts.0.gate_proj`.
    Llama,
    /// As [`Naming::Llama`]; experts as `block_sparse_moe.experts.0.w1`.
    Mixtral,
    /// `h.0.attn.c_attn.weight`, stored `[in_features, out_features]`.
    Gpt2,
    /// `encoder.layer.0.attention.self.query.weight`.
    Bert,
    /// `blocks.0.att.key.weight`, as rwkv.cpp's converter writes them.
    Rwkv,
}

/// A network of residual blocks: transformer (decoder or encoder) or RWKV.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TransformerConfig {
    /// Name by the configuration.
    pub architecture: String,
    /// Decoder (causal) or encoder.
    pub family: Family,
    /// How arrays are called.
    pub naming: Naming,
    /// What lets tokens see each other.
    pub mixer: Mixer,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub n_blocks: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Tokens of context the network was made for.
    pub context_length: usize,
    /// Rows of the token-type embedding (0: none).
    pub type_vocab_size: usize,
    /// How rows are normalised.
    pub norm: NormKind,
    /// Added to the variance.
    pub norm_epsilon: f32,
    /// Where norms stand.
    pub norm_order: NormOrder,
    /// How positions enter.
    pub positions: Positions,
    /// Per block: how many tokens back a query sees (itself included), `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Whether every head of queries and keys is normalised before rotation.
    pub has_query_key_norm: bool,
    /// Whether query, key and value projections have biases.
    pub has_query_key_value_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub has_output_bias: bool,
    /// Whether feed-forward projections have biases.
    pub has_feed_forward_bias: bool,
    /// Whether feed-forward networks multiply a gate (SwiGLU).
    pub is_gated: bool,
    /// The feed-forward nonlinearity.
    pub activation: Activation,
    /// Per block: its feed-forward network.
    pub feed_forward: Vec<FeedForwardConfig>,
    /// Whether the head is the token embedding.
    pub is_tied: bool,
}
