//! What the runtime computes, held against what other programs compute.

mod generation;
mod observing;
mod parity;
mod rwkv;
mod support;
