//! Laws of the container, through its public interface.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics where it cannot go on, and says what it measured"
)]

#[path = "container/corruption.rs"]
mod corruption;
#[path = "container/cutting.rs"]
mod cutting;
#[path = "container/golden.rs"]
mod golden;
#[path = "container/sample.rs"]
mod sample;
#[path = "container/size.rs"]
mod size;
