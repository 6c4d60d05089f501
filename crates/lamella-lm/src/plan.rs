//! Which arrays a transformer is made of: names and shapes by family.

use crate::config::{FeedForwardConfig, Mixer, Naming, NormKind, Positions, TransformerConfig};
use crate::norm::NormPlan;
use crate::rwkv::{ChannelMixPlan, TimeMixPlan};
use crate::site::{LinearSite, Role};

/// An array that is not a linear, and the shape it needs. A vector may carry further axes: only its length counts.
pub(crate) type Needed = (String, Vec<usize>);

/// Looks up an array's shape in the checkpoint.
pub(crate) type Shapes<'a> = dyn Fn(&str) -> Option<Vec<usize>> + 'a;

/// Arrays of one attention module.
#[derive(Debug, Clone)]
pub(crate) struct AttentionPlan {
    pub(crate) query_key_value: Vec<LinearSite>,
    pub(crate) output: LinearSite,
    pub(crate) query_norm: Option<String>,
    pub(crate) key_norm: Option<String>,
    pub(crate) window: Option<usize>,
}

/// Arrays of one feed-forward network.
#[derive(Debug, Clone)]
pub(crate) struct DensePlan {
    pub(crate) gate: Option<LinearSite>,
    pub(crate) up: LinearSite,
    pub(crate) down: LinearSite,
}

/// Arrays of the feed-forward half of a block.
#[derive(Debug, Clone)]
pub(crate) enum FeedForwardPlan {
    Dense(Box<DensePlan>),
    ChannelMix(Box<ChannelMixPlan>),
    Experts(Box<ExpertsPlan>),
}

/// Arrays of a mixture of experts.
#[derive(Debug, Clone)]
pub(crate) struct ExpertsPlan {
    pub(crate) router: LinearSite,
    pub(crate) experts: Vec<DensePlan>,
    /// The network for every token, and its gate of one output.
    pub(crate) shared: Option<(DensePlan, LinearSite)>,
    pub(crate) experts_per_token: usize,
    pub(crate) is_normalized: bool,
}

/// Arrays of the half of a block in which tokens see each other.
#[derive(Debug, Clone)]
pub(crate) enum MixerPlan {
    Attention(Box<AttentionPlan>),
    Rwkv(Box<TimeMixPlan>),
}

/// Arrays of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockPlan {
    pub(crate) mixer_norm: NormPlan,
    pub(crate) feed_forward_norm: NormPlan,
    pub(crate) mixer: MixerPlan,
    pub(crate) feed_forward: FeedForwardPlan,
}

/// Arrays of a whole transformer.
#[derive(Debug, Clone)]
pub(crate) struct TransformerPlan {
    pub(crate) token_embedding: String,
    pub(crate) position_embedding: Option<String>,
    pub(crate) type_embedding: Option<String>,
    /// Over the embeddings (encoders).
    pub(crate) embedding_norm: Option<NormPlan>,
    pub(crate) blocks: Vec<BlockPlan>,
    /// Before the head (decoders).
    pub(crate) final_norm: Option<NormPlan>,
    pub(crate) head: Option<LinearSite>,
    /// Arrays that are not linears, with the shapes they need.
    pub(crate) others: Vec<Needed>,
}

/// Prefixes under which a family's arrays may stand, and the array that tells which it is.
fn prefix(naming: Naming, shape: &Shapes<'_>) -> &'static str {
    let (candidates, landmark): (&[&str], &str) = match naming {
        Naming::Llama | Naming::Mixtral => (&["model.", ""], "embed_tokens.weight"),
        Naming::Gpt2 => (&["transformer.", ""], "wte.weight"),
        Naming::Bert => (&["", "bert.", "roberta."], "embeddings.word_embeddings.weight"),
        Naming::Rwkv => (&[""], "emb.weight"),
    };
    candidates
        .iter()
        .copied()
        .find(|prefix| shape(&format!("{prefix}{landmark}")).is_some())
        .unwrap_or(candidates[0])
}

/// Builds sites of one block.
struct Builder<'a> {
    config: &'a TransformerConfig,
    shape: &'a Shapes<'a>,
    block: usize,
    /// Name of the block with a dot at the end.
    base: String,
}

impl Builder<'_> {
    fn site(
        &self,
        module: &str,
        input: &str,
        shape: (usize, usize),
        role: Role,
        has_bias: bool,
    ) -> LinearSite {
        let base = &self.base;
        LinearSite {
            weight: format!("{base}{module}.weight"),
            bias: has_bias.then(|| format!("{base}{module}.bias")),
            input: format!("{base}{input}"),
            block: Some(self.block),
            in_features: shape.0,
            out_features: shape.1,
            role,
            is_transposed: self.config.naming == Naming::Gpt2,
            expert: None,
        }
    }

    fn norm(&self, module: &str) -> NormPlan {
        norm_plan(self.config, &format!("{}{module}", self.base))
    }

    fn attention(&self) -> AttentionPlan {
        let config = self.config;
        let hidden = config.hidden_size;
        let queries = config.n_heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        let bias = config.has_query_key_value_bias;
        let each = |names: [&str; 3]| {
            let part =
                |name: &str, width, role| self.site(name, "attention_input", (hidden, width), role, bias);
            vec![
                part(names[0], queries, Role::Query),
                part(names[1], keys, Role::Key),
                part(names[2], keys, Role::Value),
            ]
        };
        let (query_key_value, output) = match config.naming {
            Naming::Llama | Naming::Mixtral | Naming::Rwkv => {
                (each(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), "self_attn.o_proj")
            }
            Naming::Bert => (
                each(["attention.self.query", "attention.self.key", "attention.self.value"]),
                "attention.output.dense",
            ),
            Naming::Gpt2 => {
                let shape = (hidden, queries + 2 * keys);
                let site = self.site("attn.c_attn", "attention_input", shape, Role::QueryKeyValue, bias);
                (vec![site], "attn.c_proj")
            }
        };
        let head_norm = |name: &str| config.has_query_key_norm.then(|| format!("{}{name}", self.base));
        AttentionPlan {
            query_key_value,
            output: self.site(
                output,
                "attention_output_input",
                (queries, hidden),
                Role::Output,
                config.has_output_bias,
            ),
            query_norm: head_norm("self_attn.q_norm.weight"),
            key_norm: head_norm("self_attn.k_norm.weight"),
            window: config.windows[self.block],
        }
    }

    /// Names are gate (or none), up, down; `scope` tells this network's inputs from others in the block.
    fn dense(&self, names: [&str; 3], input: &str, scope: &str, intermediate: usize) -> DensePlan {
        let config = self.config;
        let bias = config.has_feed_forward_bias;
        let wide = |name: &str, role| self.site(name, input, (config.hidden_size, intermediate), role, bias);
        DensePlan {
            gate: config.is_gated.then(|| wide(names[0], Role::Gate)),
            up: wide(names[1], Role::Up),
            down: self.site(
                names[2],
                &format!("{scope}down_input"),
                (intermediate, config.hidden_size),
                Role::Down,
                bias,
            ),
        }
    }

    /// A linear named in full, as RWKV's arrays are.
    fn named(&self, array: &str, input: &str, shape: (usize, usize), role: Role) -> LinearSite {
        let mut site = self.site("", input, shape, role, false);
        site.weight = format!("{}{array}", self.base);
        site
    }

    fn channel_mix(&self, version: u8, intermediate: usize) -> FeedForwardPlan {
        let widths = (self.config.hidden_size, intermediate);
        let site = |array: &str, input: &str, shape, role| self.named(array, input, shape, role);
        FeedForwardPlan::ChannelMix(Box::new(ChannelMixPlan::new(version, &self.base, widths, &site)))
    }

    fn mixer(&self) -> MixerPlan {
        match self.config.mixer {
            Mixer::Attention => MixerPlan::Attention(Box::new(self.attention())),
            Mixer::Rwkv(version) => {
                let widths = (self.config.hidden_size, self.config.n_heads);
                let site = |array: &str, input: &str, shape, role| self.named(array, input, shape, role);
                let plan = TimeMixPlan::new(version, self.block, &self.base, widths, &site, self.shape);
                MixerPlan::Rwkv(Box::new(plan))
            }
        }
    }

    fn feed_forward(&self) -> FeedForwardPlan {
        let config = self.config;
        match config.feed_forward[self.block] {
            FeedForwardConfig::Dense { intermediate_size } => {
                let names = match config.naming {
                    Naming::Llama | Naming::Mixtral | Naming::Rwkv => {
                        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
                    }
                    Naming::Gpt2 => ["", "mlp.c_fc", "mlp.c_proj"],
                    Naming::Bert => ["", "intermediate.dense", "output.dense"],
                };
                FeedForwardPlan::Dense(Box::new(self.dense(
                    names,
                    "feed_forward_input",
                    "",
                    intermediate_size,
                )))
            }
            FeedForwardConfig::ChannelMix { intermediate_size } => {
                let Mixer::Rwkv(version) = config.mixer else {
                    // A channel mix only ever stands in an RWKV block; its newest form is as good as any.
                    return self.channel_mix(7, intermediate_size);
                };
                self.channel_mix(version, intermediate_size)
            }
            FeedForwardConfig::Experts {
                n_experts,
                experts_per_token,
                intermediate_size,
                is_normalized,
                shared_intermediate_size,
            } => {
                let (module, names) = match config.naming {
                    Naming::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
                    _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
                };
                let expert = |index: usize| {
                    let names = names.map(|name| format!("{module}.experts.{index}.{name}"));
                    let scope = format!("experts.{index}.");
                    let mut plan = self.dense(
                        [&names[0], &names[1], &names[2]],
                        &format!("{scope}feed_forward_input"),
                        &scope,
                        intermediate_size,
                    );
                    for site in plan.gate.iter_mut().chain([&mut plan.up, &mut plan.down]) {
                        site.expert = Some(index);
                    }
                    plan
                };
                let hidden = config.hidden_size;
                let one = |name: String, width: usize| {
                    self.site(&name, "feed_forward_input", (hidden, width), Role::Router, false)
                };
                FeedForwardPlan::Experts(Box::new(ExpertsPlan {
                    router: one(format!("{module}.gate"), n_experts),
                    experts: (0..n_experts).map(expert).collect(),
                    shared: shared_intermediate_size.map(|width| {
                        let names = ["gate_proj", "up_proj", "down_proj"];
                        let names = names.map(|name| format!("{module}.shared_expert.{name}"));
                        let names = [&names[0][..], &names[1], &names[2]];
                        (
                            self.dense(names, "feed_forward_input", "shared_expert.", width),
                            one(format!("{module}.shared_expert_gate"), 1),
                        )
                    }),
                    experts_per_token,
                    is_normalized,
                }))
            }
        }
    }

    fn block(&self) -> BlockPlan {
        let (mixer_norm, feed_forward_norm) = match self.config.naming {
            Naming::Rwkv => ("ln1", "ln2"),
            Naming::Llama | Naming::Mixtral => ("input_layernorm", "post_attention_layernorm"),
            Naming::Gpt2 => ("ln_1", "ln_2"),
            Naming::Bert => ("attention.output.LayerNorm", "output.LayerNorm"),
        };
        BlockPlan {
            mixer_norm: self.norm(mixer_norm),
            feed_forward_norm: self.norm(feed_forward_norm),
            mixer: self.mixer(),
            feed_forward: self.feed_forward(),
        }
    }
}

fn norm_plan(config: &TransformerConfig, module: &str) -> NormPlan {
    NormPlan {
        weight: format!("{module}.weight"),
        bias: (config.norm == NormKind::Layer).then(|| format!("{module}.bias")),
    }
}

impl TransformerPlan {
    /// Names every array of the network; `shape` tells which names the checkpoint holds.
    pub(crate) fn new(config: &TransformerConfig, shape: &Shapes<'_>) -> Self {
        let prefix = prefix(config.naming, shape);
        let hidden = config.hidden_size;
        let (tokens, positions, types, layers, last) = match config.naming {
            Naming::Llama | Naming::Mixtral => ("embed_tokens", "", "", "layers", Some("norm")),
            Naming::Gpt2 => ("wte", "wpe", "", "h", Some("ln_f")),
            Naming::Rwkv => ("emb", "", "", "blocks", Some("ln_out")),
            Naming::Bert => (
                "embeddings.word_embeddings",
                "embeddings.position_embeddings",
                "embeddings.token_type_embeddings",
                "encoder.layer",
                None,
            ),
        };
        let name = |module: &str| format!("{prefix}{module}.weight");
        let mut others = vec![(name(tokens), vec![config.vocab_size, hidden])];
        let mut table = |module: &str, rows: usize| {
            others.push((name(module), vec![rows, hidden]));
            name(module)
        };
        let position_embedding = match config.positions {
            Positions::Learned { rows, .. } => Some(table(positions, rows)),
            Positions::Rotary(_) | Positions::Order => None,
        };
        let type_embedding = (config.type_vocab_size > 0).then(|| table(types, config.type_vocab_size));
        let embedding_norm = match config.naming {
            Naming::Bert => Some("embeddings.LayerNorm"),
            Naming::Rwkv => Some("blocks.0.ln0"),
            _ => None,
        };
        let embedding_norm = embedding_norm.map(|module| norm_plan(config, &format!("{prefix}{module}")));
        let final_norm = last.map(|module| norm_plan(config, &format!("{prefix}{module}")));
        let blocks: Vec<BlockPlan> = (0..config.n_blocks)
            .map(|block| Builder { config, shape, block, base: format!("{prefix}{layers}.{block}.") }.block())
            .collect();
        let mut norm = |plan: &NormPlan| {
            others.push((plan.weight.clone(), vec![hidden]));
            others.extend(plan.bias.iter().map(|name| (name.clone(), vec![hidden])));
        };
        embedding_norm.iter().chain(&final_norm).for_each(&mut norm);
        for block in &blocks {
            norm(&block.mixer_norm);
            norm(&block.feed_forward_norm);
        }
        for block in &blocks {
            match &block.mixer {
                MixerPlan::Attention(attention) => {
                    let names = attention.query_norm.iter().chain(&attention.key_norm);
                    others.extend(names.map(|name| (name.clone(), vec![config.head_dim])));
                }
                MixerPlan::Rwkv(plan) => others.extend(plan.others()),
            }
            if let FeedForwardPlan::ChannelMix(plan) = &block.feed_forward {
                others.extend(plan.others());
            }
        }
        let head_name = match config.naming {
            _ if config.is_tied => name(tokens),
            Naming::Rwkv => "head.weight".to_owned(),
            _ => "lm_head.weight".to_owned(),
        };
        let head = final_norm.is_some().then(|| LinearSite {
            weight: head_name,
            bias: None,
            input: "head_input".to_owned(),
            block: None,
            in_features: hidden,
            out_features: config.vocab_size,
            role: Role::Head,
            is_transposed: false,
            expert: None,
        });
        Self {
            token_embedding: name(tokens),
            position_embedding,
            type_embedding,
            embedding_norm,
            blocks,
            final_norm,
            head,
            others,
        }
    }

    /// Tables that are looked up, as linears from `hidden_size` features to one per row: tokens first, then positions
    /// and token types where they exist.
    pub(crate) fn tables(&self, config: &TransformerConfig) -> Vec<LinearSite> {
        let positions = match config.positions {
            Positions::Learned { rows, .. } => rows,
            Positions::Rotary(_) | Positions::Order => 0,
        };
        let names = [
            (Some(&self.token_embedding), config.vocab_size),
            (self.position_embedding.as_ref(), positions),
            (self.type_embedding.as_ref(), config.type_vocab_size),
        ];
        let site = |(name, rows): (Option<&String>, usize)| {
            Some(LinearSite {
                weight: name?.clone(),
                bias: None,
                input: "embedding".to_owned(),
                block: None,
                in_features: config.hidden_size,
                out_features: rows,
                role: Role::Embedding,
                is_transposed: false,
                expert: None,
            })
        };
        names.into_iter().filter_map(site).collect()
    }

    /// Every linear in the order it runs, the head last.
    pub(crate) fn linears(&self) -> Vec<LinearSite> {
        let mut sites = Vec::new();
        let dense = |sites: &mut Vec<LinearSite>, plan: &DensePlan| {
            sites.extend(plan.gate.iter().cloned());
            sites.extend([plan.up.clone(), plan.down.clone()]);
        };
        for block in &self.blocks {
            match &block.mixer {
                MixerPlan::Attention(attention) => {
                    sites.extend(attention.query_key_value.iter().cloned());
                    sites.push(attention.output.clone());
                }
                MixerPlan::Rwkv(plan) => sites.extend(plan.sites().cloned()),
            }
            match &block.feed_forward {
                FeedForwardPlan::Dense(plan) => dense(&mut sites, plan),
                FeedForwardPlan::ChannelMix(plan) => sites.extend(plan.sites().cloned()),
                FeedForwardPlan::Experts(plan) => {
                    sites.push(plan.router.clone());
                    plan.experts.iter().for_each(|plan| dense(&mut sites, plan));
                    if let Some((plan, gate)) = &plan.shared {
                        dense(&mut sites, plan);
                        sites.push(gate.clone());
                    }
                }
            }
        }
        sites.extend(self.head.iter().cloned());
        sites
    }
}
