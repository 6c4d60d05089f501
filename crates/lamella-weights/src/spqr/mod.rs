//! What SpQR stores ([`form`]) and how it finds it ([`solver`]); the system itself is
//! `systems/spqr.rs`.

pub mod form;
pub mod solver;
