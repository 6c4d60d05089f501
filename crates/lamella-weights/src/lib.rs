//! The weight wing: the recipes and systems that compress model weights.
//!
//! * [`systems`]: the list of codecs (`exact`, `rtn`, `gptq`, `house`) and published systems, one file each.
//! * [`grouped`]: the stored form that all codecs with a grid per group share.
//! * [`progressive`]: the stored form that a prefix of any length decodes.
//! * [`lossless`]: every bit kept: what `exact` writes, deltas to a base model, whole files byte for byte.
//! * [`gguf`]: models as llama.cpp reads them, quantised into its block types.
//! * [`compressed_tensors`]: checkpoints that vLLM and transformers load, quantised by the same solvers.
//! * [`claims`]: what the claims of published systems are measured with: files, seeds, `gptq` at its best.
//! * [`spqr`], [`elutq`], [`decoupleq`], [`vptq`], [`olive`], [`k_sort`], [`mixllm`]: forms, solvers and coded
//!   products of those systems; [`sparse`]: kept weights.
//! * [`distortion`]: the loss that every codec here reports and every allocator spends by.
//!
//! # Which recipe should I use?
//! `house` wherever a size matters: it is the only one that meets any size and the best at each. `gptq` where a
//! runtime wants plain groups, `rtn` where there is no text to calibrate on and no time, `exact` for what must not
//! change.

pub mod bitstack;
pub mod claims;
pub mod coded;
pub mod compress;
pub mod compressed_tensors;
pub mod decoupleq;
pub mod distortion;
pub mod elutq;
pub mod evaluate;
pub mod expand;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gguf;
pub mod grouped;
pub mod house;
pub mod inputs;
pub mod k_sort;
mod levels;
pub mod lossless;
pub mod matrix;
pub mod mixllm;
pub mod olive;
pub mod open;
pub mod progressive;
pub mod sparse;
pub mod spqr;
pub mod systems;
pub mod vptq;
