//! What ELUTQ stores ([`form`]), how levels are fitted ([`fit`]) and multiplied ([`product`]); the system itself is
//! `systems/elutq.rs`.

mod claim;
pub mod fit;
pub mod form;
pub mod kernel;
pub mod product;
pub mod timing;

pub use claim::measure;
