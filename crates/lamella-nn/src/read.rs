//! From a network of the runtime to one with gradients.

use lamella_codec::TensorSource;
use lamella_lm::{
    FeedForwardConfig, LinearSite, Mixer, Naming, NormOrder, Positions, Role, TransformerConfig,
};

use crate::{
    Activation, Block, Dense, Experts, FeedForward, Linear, Network, NetworkError, Norm, NormKind, Parts,
    Pooling, Rotation, Tables, Weight,
};

/// A network with gradients and what its parameters are called.
#[derive(Debug, Clone)]
pub struct Named {
    /// The network.
    pub network: Network,
    /// One for each of [`Network::parameters`].
    pub parameters: Vec<ParameterName>,
}

/// Where a parameter is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterName {
    /// Its array.
    pub name: String,
    /// `(in_features, out_features)` where the array is stored `[in_features, out_features]`, that is transposed.
    pub transposed: Option<(usize, usize)>,
}

impl ParameterName {
    /// A parameter's numbers in the order of its array.
    pub fn stored(&self, values: &[f32]) -> Vec<f32> {
        self.stored_order(values.to_vec())
    }

    pub(crate) fn stored_order<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match self.transposed {
            None => values,
            Some((inputs, outputs)) => transposed(&values, outputs, inputs),
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
}

/// What gets gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trained {
    /// Norms and biases.
    Vectors,
    /// These and every matrix, tables included.
    Everything,
}

/// Why a network of the runtime has no gradients here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ReadError {
    #[error("{reason}")]
    Unsupported { reason: String },
    #[error(transparent)]
    Source(#[from] lamella_codec::SourceError),
    #[error(transparent)]
    Array(#[from] lamella_codec::ArrayError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn refuse(reason: impl Into<String>) -> ReadError {
    ReadError::Unsupported { reason: reason.into() }
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
/// [`ReadError::Unsupported`] with the reason.
pub fn check_readable(config: &TransformerConfig) -> Result<(), ReadError> {
    if config.mixer != Mixer::Attention {
        return Err(refuse("gradients of recurrent networks are not built"));
    }
    if modules(config.naming).is_none() {
        return Err(refuse("the names of its norms are not known"));
    }
    activation(config).map(|_| ())
}

fn activation(config: &TransformerConfig) -> Result<Activation, ReadError> {
    Ok(match config.activation {
        lamella_lm::Activation::Silu => Activation::Silu,
        lamella_lm::Activation::Gelu => Activation::Gelu,
        lamella_lm::Activation::GeluTanh => Activation::GeluTanh,
        lamella_lm::Activation::Relu => Activation::Relu,
        other => return Err(refuse(format!("gradients of `{other:?}` are not built"))),
    })
}

struct Reader<'a> {
    source: &'a dyn TensorSource,
    trained: Trained,
    parameters: Vec<Vec<f32>>,
    names: Vec<ParameterName>,
}

impl Reader<'_> {
    fn read(&self, name: &str) -> Result<Vec<f32>, ReadError> {
        Ok(self.source.array(name)?.to_f32()?)
    }

    fn keep(&mut self, name: &str, transposed: Option<(usize, usize)>, values: Vec<f32>) -> usize {
        self.parameters.push(values);
        self.names.push(ParameterName { name: name.to_owned(), transposed });
        self.names.len() - 1
    }

    fn vector(&mut self, name: String) -> Result<usize, ReadError> {
        let values = self.read(&name)?;
        Ok(self.keep(&name, None, values))
    }

    fn norm(&mut self, module: &str, config: &TransformerConfig) -> Result<Norm, ReadError> {
        let weight = self.vector(format!("{module}.weight"))?;
        let has_bias = config.norm == lamella_lm::NormKind::Layer;
        let bias = if has_bias { Some(self.vector(format!("{module}.bias"))?) } else { None };
        Ok(Norm { weight, bias })
    }

    fn matrix(&mut self, name: &str, is_transposed: Option<(usize, usize)>) -> Result<Weight, ReadError> {
        let mut values = self.read(name)?;
        if let Some((inputs, outputs)) = is_transposed {
            if values.len() != inputs * outputs {
                let (part, found) = (name.to_owned(), values.len());
                return Err(NetworkError::Length { part, found, needed: inputs * outputs }.into());
            }
            values = transposed(&values, inputs, outputs);
        }
        Ok(match self.trained {
            Trained::Vectors => Weight::Constant(values.into()),
            Trained::Everything => Weight::Trained(self.keep(name, is_transposed, values)),
        })
    }

    fn linear(&mut self, site: &LinearSite) -> Result<Linear, ReadError> {
        let (in_features, out_features) = (site.in_features, site.out_features);
        let weight = self.matrix(&site.weight, site.is_transposed.then_some((in_features, out_features)))?;
        let bias = site.bias.as_ref().map(|name| self.vector(name.clone())).transpose()?;
        Ok(Linear { weight, in_features, out_features, bias })
    }

    /// The network of three linears among `sites` whose expert and scope fit.
    fn dense(&mut self, sites: &[&LinearSite], what: &str) -> Result<Dense, ReadError> {
        let mut one = |role: Role| {
            sites.iter().find(|site| site.role == role).map(|site| self.linear(site)).transpose()
        };
        let missing = |part: &str| refuse(format!("{what} has no {part} projection"));
        Ok(Dense {
            gate: one(Role::Gate)?,
            up: one(Role::Up)?.ok_or_else(|| missing("up"))?,
            down: one(Role::Down)?.ok_or_else(|| missing("down"))?,
        })
    }

    fn feed_forward(
        &mut self,
        config: &FeedForwardConfig,
        sites: &[&LinearSite],
        block: usize,
    ) -> Result<FeedForward, ReadError> {
        let what = format!("block {block}");
        let FeedForwardConfig::Experts {
            n_experts,
            experts_per_token,
            is_normalized,
            shared_intermediate_size,
            ..
        } = *config
        else {
            return Ok(FeedForward::Dense(self.dense(sites, &what)?));
        };
        let of = |expert: Option<usize>| -> Vec<&LinearSite> {
            sites.iter().copied().filter(|site| site.expert == expert).collect()
        };
        // The router chooses among all; the shared network's gate has one output.
        let routers: Vec<&LinearSite> =
            of(None).into_iter().filter(|site| site.role == Role::Router).collect();
        let router = routers.first().ok_or_else(|| refuse(format!("{what} has no router")))?;
        let router = self.linear(router)?;
        let experts = (0..n_experts)
            .map(|expert| self.dense(&of(Some(expert)), &format!("expert {expert} of {what}")))
            .collect::<Result<_, _>>()?;
        let shared = match (shared_intermediate_size, routers.get(1)) {
            (Some(_), Some(gate)) => Some((self.dense(&of(None), &what)?, self.linear(gate)?)),
            _ => None,
        };
        Ok(FeedForward::Experts(Experts { router, experts, experts_per_token, is_normalized, shared }))
    }
}

/// Reads a network from `source`, with positions up to `longest`.
///
/// # Errors
/// Networks without gradients here; arrays that cannot be read.
pub fn read(
    network: &lamella_lm::Network,
    source: &dyn TensorSource,
    longest: usize,
    pooling: Pooling,
    trained: Trained,
) -> Result<Named, ReadError> {
    let config = network.config();
    check_readable(config)?;
    let unknown = || refuse("the names of its norms are not known");
    let modules = modules(config.naming).ok_or_else(unknown)?;
    let embeddings = network.embeddings();
    let prefix = embeddings[0].strip_suffix(modules.token_embedding).ok_or_else(unknown)?.to_owned();
    let mut reader = Reader { source, trained, parameters: Vec::new(), names: Vec::new() };
    let mut blocks = Vec::with_capacity(config.n_blocks);
    for index in 0..config.n_blocks {
        let base = format!("{prefix}{}.{index}.", modules.layers);
        let sites: Vec<&LinearSite> =
            network.linears().iter().filter(|site| site.block == Some(index)).collect();
        let mut one = |role: Role| -> Result<Option<Linear>, ReadError> {
            sites.iter().find(|site| site.role == role).map(|site| reader.linear(site)).transpose()
        };
        let mut query_key_value = Vec::new();
        for role in [Role::QueryKeyValue, Role::Query, Role::Key, Role::Value] {
            query_key_value.extend(one(role)?);
        }
        let output =
            one(Role::Output)?.ok_or_else(|| refuse(format!("block {index} has no output projection")))?;
        let feed_forward = reader.feed_forward(&config.feed_forward[index], &sites, index)?;
        let head_norms = if config.has_query_key_norm {
            let mut norm = |module: &str| -> Result<Norm, ReadError> {
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
    let tokens = reader.matrix(&embeddings[0], None)?;
    let head = match network.linears().iter().find(|site| site.role == Role::Head) {
        Some(site) if site.weight == embeddings[0] && site.bias.is_none() => Some(Linear {
            weight: tokens.clone(),
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
            positions = Some((reader.matrix(name, None)?, *offset));
        }
        _ => return Err(refuse("it has no positions")),
    }
    let constant = match others.next() {
        Some(name) => reader.read(name)?.get(..config.hidden_size).map(<[f32]>::to_vec),
        None => None,
    };
    let Reader { parameters, names, .. } = reader;
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
        parameters,
    };
    Ok(Named { network: Network::new(parts)?, parameters: names })
}
