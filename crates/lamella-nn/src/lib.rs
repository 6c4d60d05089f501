//! Gradients: how a transformer's loss changes with its norms and biases, and the optimiser that follows them.
//!
//! A quantised network errs in a way that its few continuous parameters can partly undo: a norm's weight is a gain
//! for every column of the matrices behind it, a bias moves the mean of their outputs. They are stored exactly in any
//! case, so turning them costs no byte. This crate says which way to turn them.
//!
//! # What is here
//! | module | what |
//! |---|---|
//! | [`Network`] | forward and reverse pass of decoders (RMS norm or layer norm, rotary or learned positions, gated or plain feed-forward networks, grouped queries, windows) and encoders |
//! | [`Reference`] | what to be near to: the original's predictions (Kullback-Leibler divergence) or its embeddings (squared distance) |
//! | [`AdamW`], [`cosine`] | the optimiser and its schedule |
//!
//! Matrices are constants here: only their inputs get gradients, so a reverse pass costs what a forward pass does.
//!
//! # Why the reverse pass is written by hand
//! The pieces are few (a linear, two norms, a rotation, attention, a gate, two losses), each is a dozen lines in
//! reverse, and none needs the gradient of a matrix, which general frameworks compute or must be told to leave out.
//! By hand every sum has a fixed order, attention's probabilities are made again instead of kept, and logits exist
//! for a few rows at a time. `candle` would add minutes to each build for the same mathematics. Every reverse pass is
//! checked against finite differences in this crate's tests.
//!
//! # Determinism
//! One sequence is one task on one thread; sums over sequences are taken in their order. The same bits come out at
//! any thread count of one machine.
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
mod elementwise;
mod network;
mod norm;
mod objective;
mod optimize;
mod parts;
mod product;
mod rotation;

pub use elementwise::Activation;
pub use network::Network;
pub use norm::NormKind;
pub use objective::{Pooling, Reference};
pub use optimize::{AdamW, cosine};
pub use parts::{Block, FeedForward, Linear, NetworkError, Norm, Parts, Tables};
pub use rotation::Rotation;
