//! The `lamella` program.
fn main() {}
