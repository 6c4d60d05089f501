//! From a model the runtime knows to a network with gradients.

use std::sync::Arc;

use lamella_codec::TensorSource;
use lamella_lm::{
    FeedForwardConfig, LinearSite, Mixer, Naming, NormOrder, Positions, Role, TransformerConfig,
};
use lamella_nn::{
    Activation, Block, FeedForward, Linear, Network, Norm, NormKind, Parts, Pooling, Rotation, Tables,
};

use super::TuneError;
use crate::compress::CompressError;

/// A network with gradients and what its vectors are called.
pub(super) struct Named {
    pub(super) network: Network,
    pub(super) names: Vec<String>,
}

/// Modules of a block and around the blocks, as families call them.
struct Modules {
    token_embedding: &'static str,
    layers: &'static str,
    attention_norm: &'static str,
    feed_forward_norm: &'static str,
    embedding_norm: Option<&'static str>,
    final_norm: Option<&'static str>,
}

fn modules(naming: Naming) -> Option<Modules> {
    Some(match naming {
        Naming::Llama | Naming::Mixtral => Modules {
            token_embedding: "embed_tokens.weight",
            layers: "layers",
            attention_norm: "input_layernorm",
            feed_forward_norm: "post_attention_layernorm",
            embedding_norm: None,
            final_norm: Some("norm"),
        },
        Naming::Gpt2 => Modules {
            token_embedding: "wte.weight",
            layers: "h",
            attention_norm: "ln_1",
            feed_forward_norm: "ln_2",
            embedding_norm: None,
            final_norm: Some("ln_f"),
        },
        Naming::Bert => Modules {
            token_embedding: "embeddings.word_embeddings.weight",
            layers: "encoder.layer",
            attention_norm: "attention.output.LayerNorm",
            feed_forward_norm: "output.LayerNorm",
            embedding_norm: Some("embeddings.LayerNorm"),
            final_norm: None,
        },
        _ => return None,
    })
}

/// Refuses what has no gradients here.
///
/// # Errors
/// [`TuneError::Unsupported`] with the reason.
pub(super) fn check(config: &TransformerConfig) -> Result<(), TuneError> {
    let refuse = |reason: &str| Err(TuneError::Unsupported { reason: reason.to_owned() });
    if config.mixer != Mixer::Attention {
        return refuse("gradients of recurrent networks are not built");
    }
    if !config.feed_forward.iter().all(|part| matches!(part, FeedForwardConfig::Dense { .. })) {
        return refuse("gradients of mixtures of experts are not built");
    }
    if modules(config.naming).is_none() {
        return refuse("the names of its norms are not known");
    }
    activation(config).map(|_| ())
}

fn activation(config: &TransformerConfig) -> Result<Activation, TuneError> {
    Ok(match config.activation {
        lamella_lm::Activation::Silu => Activation::Silu,
        lamella_lm::Activation::Gelu => Activation::Gelu,
        lamella_lm::Activation::GeluTanh => Activation::GeluTanh,
        lamella_lm::Activation::Relu => Activation::Relu,
        other => {
            return Err(TuneError::Unsupported { reason: format!("gradients of `{other:?}` are not built") });
        }
    })
}

struct Reader<'a> {
    source: &'a dyn TensorSource,
    vectors: Vec<Vec<f32>>,
    names: Vec<String>,
}

impl Reader<'_> {
    fn read(&self, name: &str) -> Result<Vec<f32>, CompressError> {
        Ok(self.source.array(name)?.to_f32()?)
    }

    fn vector(&mut self, name: String) -> Result<usize, CompressError> {
        self.vectors.push(self.read(&name)?);
        self.names.push(name);
        Ok(self.names.len() - 1)
    }

    fn norm(&mut self, module: &str, config: &TransformerConfig) -> Result<Norm, CompressError> {
        let weight = self.vector(format!("{module}.weight"))?;
        let has_bias = config.norm == lamella_lm::NormKind::Layer;
        let bias = if has_bias { Some(self.vector(format!("{module}.bias"))?) } else { None };
        Ok(Norm { weight, bias })
    }

    fn linear(&mut self, site: &LinearSite) -> Result<Linear, CompressError> {
        let (inputs, outputs) = (site.in_features, site.out_features);
        let mut weight = self.read(&site.weight)?;
        if site.is_transposed {
            weight = (0..inputs * outputs).map(|at| weight[at % inputs * outputs + at / inputs]).collect();
        }
        let bias = site.bias.as_ref().map(|name| self.vector(name.clone())).transpose()?;
        Ok(Linear { weight: weight.into(), in_features: inputs, out_features: outputs, bias })
    }
}

/// Reads a network from `source`, with positions up to `longest`.
///
/// # Errors
/// Networks without gradients here; arrays that cannot be read.
pub(super) fn read(
    network: &lamella_lm::Network,
    source: &dyn TensorSource,
    longest: usize,
    pooling: Pooling,
) -> Result<Named, CompressError> {
    let config = network.config();
    check(config)?;
    let unknown = || TuneError::Unsupported { reason: "the names of its norms are not known".to_owned() };
    let modules = modules(config.naming).ok_or_else(unknown)?;
    let embeddings = network.embeddings();
    let prefix = embeddings[0].strip_suffix(modules.token_embedding).ok_or_else(unknown)?.to_owned();
    let mut reader = Reader { source, vectors: Vec::new(), names: Vec::new() };
    let mut blocks = Vec::with_capacity(config.n_blocks);
    for index in 0..config.n_blocks {
        let base = format!("{prefix}{}.{index}.", modules.layers);
        let sites = || network.linears().iter().filter(move |site| site.block == Some(index));
        let mut one = |role: Role| -> Result<Option<Linear>, CompressError> {
            sites().find(|site| site.role == role).map(|site| reader.linear(site)).transpose()
        };
        let missing = |what: &str| TuneError::Unsupported { reason: format!("block {index} has no {what}") };
        let mut query_key_value = Vec::new();
        for role in [Role::QueryKeyValue, Role::Query, Role::Key, Role::Value] {
            query_key_value.extend(one(role)?);
        }
        let output = one(Role::Output)?.ok_or_else(|| missing("output projection"))?;
        let feed_forward = FeedForward {
            gate: one(Role::Gate)?,
            up: one(Role::Up)?.ok_or_else(|| missing("up projection"))?,
            down: one(Role::Down)?.ok_or_else(|| missing("down projection"))?,
        };
        let head_norms = if config.has_query_key_norm {
            let mut norm = |module: &str| -> Result<Norm, CompressError> {
                Ok(Norm { weight: reader.vector(format!("{base}self_attn.{module}.weight"))?, bias: None })
            };
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        blocks.push(Block {
            attention_norm: reader.norm(&format!("{base}{}", modules.attention_norm), config)?,
            query_key_value,
            head_norms,
            output,
            window: config.windows[index],
            feed_forward_norm: reader.norm(&format!("{base}{}", modules.feed_forward_norm), config)?,
            feed_forward,
        });
    }
    let mut norm = |module: Option<&str>| {
        module.map(|module| reader.norm(&format!("{prefix}{module}"), config)).transpose()
    };
    let (embedding_norm, final_norm) = (norm(modules.embedding_norm)?, norm(modules.final_norm)?);
    let head_site = network.linears().iter().find(|site| site.role == Role::Head);
    let tokens: Arc<[f32]> = reader.read(&embeddings[0])?.into();
    let head = match head_site {
        Some(site) if site.weight == embeddings[0] && site.bias.is_none() => Some(Linear {
            weight: Arc::clone(&tokens),
            in_features: site.in_features,
            out_features: site.out_features,
            bias: None,
        }),
        Some(site) => Some(reader.linear(site)?),
        None => None,
    };
    let (mut rotation, mut positions) = (None, None);
    let mut others = embeddings[1..].iter();
    match &config.positions {
        Positions::Rotary(rope) => {
            let (frequencies, factor) = rope.frequencies(longest);
            rotation = Some(Rotation::new(&frequencies, factor, longest));
        }
        Positions::Learned { offset, .. } => {
            let name = others.next().ok_or_else(unknown)?;
            positions = Some((reader.read(name)?.into(), *offset));
        }
        _ => return Err(TuneError::Unsupported { reason: "it has no positions".to_owned() }.into()),
    }
    let constant = match others.next() {
        Some(name) => Some(reader.read(name)?[..config.hidden_size].to_vec()),
        None => None,
    };
    let Reader { vectors, names, .. } = reader;
    let parts = Parts {
        hidden_size: config.hidden_size,
        n_heads: config.n_heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        is_causal: network.family() == lamella_lm::Family::Decoder,
        norm: match config.norm {
            lamella_lm::NormKind::Layer => NormKind::Layer,
            _ => NormKind::RootMeanSquare,
        },
        norm_epsilon: config.norm_epsilon,
        is_norm_first: config.norm_order == NormOrder::Before,
        activation: activation(config)?,
        rotation,
        tables: Tables { tokens, positions, constant },
        embedding_norm,
        blocks,
        final_norm,
        head,
        pooling,
        vectors,
    };
    let network = Network::new(parts).map_err(TuneError::Network)?;
    Ok(Named { network, names })
}
