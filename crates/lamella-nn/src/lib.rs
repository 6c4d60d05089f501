//! Gradients: how a transformer's loss changes with its weights, the optimiser that follows them, and training.
//!
//! # What is here
//! | module | what |
//! |---|---|
//! | [`Network`] | forward and reverse pass of decoders (RMS norm or layer norm, rotary or learned positions, gated or plain feed-forward networks, mixtures of experts, grouped queries, windows) and encoders |
//! | [`read`] | one of these from any network of `lamella-lm` with attention |
//! | [`Reference`] | what to be near to: the original's predictions (Kullback-Leibler divergence) or its embeddings (squared distance); `--tune` follows it |
//! | [`Network::next_token_gradient`] | the loss a language model is trained with |
//! | [`fisher`] | the diagonal of the Fisher information, a statistic for quantisers |
//! | [`AdamW`], [`cosine`] | the optimiser and its schedule |
//! | [`train`] | training of small language models from a text |
//!
//! A matrix is a constant or a parameter ([`Weight`]). Tuning moves norms and biases alone (the file stores them
//! exactly in any case, so turning them costs no byte): then only inputs get gradients, and a reverse pass costs what
//! a forward pass does. Training moves everything.
//!
//! # Why the reverse pass is written by hand
//! The pieces are few (a linear, two norms, a rotation, attention, a gate, a choice of experts, three losses) and each
//! is a dozen lines in reverse. By hand every sum has a fixed order, attention's probabilities are made again instead
//! of kept, logits exist for a few rows at a time, and constant matrices cost nothing. DEPENDENCIES.md says what
//! `candle` was measured to cost instead. Every reverse pass is checked against finite differences in this crate's
//! tests.
//!
//! # Determinism
//! A fixed group of sequences is one task on one thread; sums over groups are taken in their order. The same bits
//! come out at any thread count of one machine.
//!
//! # Example
//! A parabola, descended:
//! ```
//! use lamella_nn::{AdamW, cosine};
//! let mut x = vec![vec![3.0f32]];
//! let mut optimizer = AdamW::new(&x);
//! for step in 0..200 {
//!     let gradient = vec![vec![2.0 * (x[0][0] - 1.0)]];
//!     optimizer.step(&mut x, &gradient, &[0.1 * cosine(step, 200)]);
//! }
//! assert!((x[0][0] - 1.0).abs() < 1e-2);
//! ```

mod attention;
mod block;
mod elementwise;
mod feed_forward;
mod fisher;
mod network;
mod norm;
mod objective;
mod optimize;
mod parts;
mod product;
mod read;
mod rotation;
pub mod train;

pub use elementwise::Activation;
pub use fisher::fisher;
pub use network::{Found, GradientOptions, Network};
pub use norm::NormKind;
pub use objective::{Pooling, Reference};
pub use optimize::{AdamW, cosine, cosine_after};
pub use parts::{Block, Dense, Experts, FeedForward, Linear, NetworkError, Norm, Parts, Tables, Weight};
pub use read::{Named, ParameterName, ReadError, Trained, check_readable, read};
pub use rotation::Rotation;
