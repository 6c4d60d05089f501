//! compressed-tensors out: a checkpoint that vLLM and transformers load, quantised by this project's solvers.
//!
//! * [`Scheme`]: what the linears of the blocks become: int4 or int8 in groups, int8 or 8-bit floats by row.
//! * [`export`]: the directory: arrays, `quantization_config` in `config.json`, side files ([`Export`]).
//!
//! Reading goes through `lamella_io`: a directory whose `config.json` names compressed-tensors opens as the floats its
//! codes stand for, so that evaluating, comparing and exporting it again need nothing special.
//!
//! # Which scheme should I use?
//! `int4` where memory is short, `int8` where the loss must not be seen, `fp8` where the hardware multiplies 8-bit
//! floats. Linears that a runtime fuses (query, key and value; gate and up) must share a scheme; rules that part them
//! are refused.

mod export;
mod scheme;
mod solve;

pub use export::{Export, ExportError, ExportReport, LinearRow, SchemeRule, export};
pub use scheme::Scheme;
