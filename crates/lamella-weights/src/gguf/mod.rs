//! GGUF out: a model as llama.cpp reads it, quantised by this project's solvers.
//!
//! * [`export`]: the whole file: which tensor gets which type, metadata, tokenizer ([`Export`]).
//!   With a size every tensor gets the type that loses least for its bytes, by measured sensitivities.
//! * [`quantize`]: one matrix into one type's blocks: a scale search weighted by what each column's error costs,
//!   inside the error-feedback sweep; then coordinate descent over codes and scales.
//! * [`Calibration`]: what a text says of the model.
//!
//! # Which type should I use?
//! `q4_k` where nothing else is known, `q6_k` where the loss must not be seen, `iq4_xs` between `q3_k` and `q4_k`.
//! Types with minima (`q2_k`, `q4_k`, `q5_k`) suit weights whose groups are off centre.
//!
//! ```
//! use lamella_io::GgmlType;
//! let weights: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
//! let bytes = lamella_weights::gguf::quantize(&weights, 32, GgmlType::Q8_0, None).unwrap();
//! let back = GgmlType::Q8_0.dequantize(&bytes);
//! assert!(weights.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.005));
//! ```

mod allocate;
mod calibration;
pub(crate) mod coding;
pub(crate) mod drift;
mod export;
mod fit;
mod refine;
mod solve;
mod sweep;

pub use calibration::{BUILT_IN_TEXT, Calibration, CalibrationError};
pub use export::{Export, ExportError, ExportReport, TensorRow, TypeRule, export};
pub use solve::quantize;
pub(crate) use solve::{Effort, costs, factor, solve};
