//! What the runtime computes, held against what other programs compute.

mod generation;
mod parity;
mod support;
