//! The language-model runtime: load, calibrate, run, evaluate.
//!
//! A [`Network`] runs any supported architecture over any [`lamella_codec::TensorSource`]: a checkpoint directory,
//! an open compressed file, arrays in memory. It runs **block by block**, so that statistics of a model larger than
//! memory can be taken, and every block shows its inputs to an [`Observer`].
//!
//! # What runs
//! | family | `model_type` | notes |
//! |---|---|---|
//! | Llama | llama, mistral, qwen2, qwen3 | grouped queries, sliding windows, biases, query-key norm, all rotary scalings |
//! | experts | mixtral, qwen2_moe, qwen3_moe | routed feed-forward networks |
//! | GPT-2 | gpt2 | learned positions, transposed weights |
//! | RWKV | rwkv5, rwkv6, rwkv7 | arrays as rwkv.cpp names them |
//! | encoders | bert, roberta, xlm-roberta, camembert | pooled to unit vectors |
//!
//! An architecture that is not listed gives [`LmError::UnknownArchitecture`].
//!
//! # What to call
//! | to | call | memory |
//! |---|---|---|
//! | take statistics of a model larger than memory | [`Network::begin`], then [`Network::block`] one by one | one block, the activations |
//! | quantise block by block | [`Network::block_with`] and a source that holds the coded block | the same |
//! | evaluate many texts | [`Network::resident`], then [`Network::forward`] and [`Network::logits_range`] | all weights in `f32` |
//! | run linears on their coded form | [`Network::resident_with`] and a [`CodedLinear`] for each | what the operators keep |
//! | embed texts | [`Network::forward`], then [`Network::embed`] | |
//! | continue a text | [`generate::generate`] on a resident network | weights, and a [`Cache`] for each text |
//!
//! # Determinism
//! Results are the same bits at any thread count, and the same whether weights are read block by block or kept
//! resident. They are not the same bits on machines with other vector units.
//!
//! # Example
//! A network of one block whose weights are all zero gives every token the same logit:
//! ```
//! use std::sync::Arc;
//! use lamella_codec::{Array, ArraySpec, Dtype, TensorMap};
//! use lamella_lm::Network;
//! let config = serde_json::json!({
//!     "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
//!     "num_attention_heads": 2, "vocab_size": 3, "tie_word_embeddings": true,
//! });
//! let mut arrays = TensorMap::default();
//! for (name, shape) in [
//!     ("embed_tokens", vec![3, 4]), ("norm", vec![4]),
//!     ("layers.0.input_layernorm", vec![4]), ("layers.0.post_attention_layernorm", vec![4]),
//!     ("layers.0.self_attn.q_proj", vec![4, 4]), ("layers.0.self_attn.k_proj", vec![4, 4]),
//!     ("layers.0.self_attn.v_proj", vec![4, 4]), ("layers.0.self_attn.o_proj", vec![4, 4]),
//!     ("layers.0.mlp.gate_proj", vec![8, 4]), ("layers.0.mlp.up_proj", vec![8, 4]),
//!     ("layers.0.mlp.down_proj", vec![4, 8]),
//! ] {
//!     let n = shape.iter().product();
//!     let spec = ArraySpec::new(format!("model.{name}.weight"), shape, Dtype::F32);
//!     arrays.insert(Array::from_f32(spec, &vec![0.0; n])?);
//! }
//! let network = Network::open(&config, Arc::new(arrays))?;
//! let hidden = network.forward(&[vec![0, 2]])?;
//! assert_eq!(network.logits(&hidden, None)?, vec![0.0; 6]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod block;
mod check;
mod config;
mod elementwise;
mod embedding;
mod error;
mod experts;
mod families;
mod feed_forward;
mod fields;
pub mod generate;
mod head;
mod hidden;
pub mod judge;
mod kv_cache;
mod linear;
mod model;
mod network;
mod norm;
mod plan;
mod product;
mod rope;
mod rwkv;
mod sampler;
mod site;
pub mod statistics;
mod stream;
mod tokenizer;

pub use config::{FeedForwardConfig, Mixer, Naming, NormKind, NormOrder, Positions, TransformerConfig};
pub use elementwise::Activation;
pub use embedding::Pooling;
pub use error::LmError;
pub use hidden::Hidden;
pub use kv_cache::Cache;
pub use lamella_codec::CodedLinear;
pub use linear::OperatorLookup;
pub use model::Model;
pub use network::Network;
pub use rope::{RopeConfig, RopeScaling};
pub use site::{Family, LinearSite, Observer, Role};
pub use tokenizer::Tokenizer;
