//! What the runtime computes, held against what other programs compute.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod generation;
mod models;
mod observing;
mod parity;
mod rwkv;
mod support;
