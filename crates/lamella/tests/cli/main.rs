//! The program, end to end, on the model that comes with the project.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod compressing;
mod inputs;
mod killing;
mod refusals;
mod support;
mod verbs;
