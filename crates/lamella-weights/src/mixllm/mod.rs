//! What MixLLM stores ([`form`]), how rows are ranked ([`salience`]), coded ([`solver`]) and multiplied ([`product`]); the
//! system itself is `systems/mixllm.rs`.

mod claim;
pub mod form;
pub mod product;
pub mod salience;
pub mod solver;

pub use claim::measure;
