//! What SpQR stores ([`form`]) how it finds it ([`solver`]) and multiplies it ([`product`]); the system itself is
//! `systems/spqr.rs`.

mod claim;
pub mod form;
pub mod kernel;
pub mod product;
pub mod solver;

pub use claim::measure;
