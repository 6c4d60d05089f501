//! The program, end to end, on the model that comes with the project.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it measured, and panics where it cannot go on"
)]

mod book;
mod compressing;
mod inputs;
mod killing;
mod planning;
mod refusals;
mod remote;
mod support;
mod training;
mod verbs;
