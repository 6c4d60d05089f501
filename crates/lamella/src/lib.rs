//! Lamella: compress what a machine-learning system stores, moves or attends to, to exactly the size you ask for.
//!
//! This crate is the roof: it joins the wings' lists into one [`catalogue`] and re-exports the floors under their
//! own names. The `lamella` program is a thin layer over it.
//!
//! ```
//! let catalogue = lamella::catalogue();
//! assert_eq!(catalogue.systems().len(), 169);
//! let recipe = "rtn(bits=3, group_size=64)".parse().unwrap();
//! assert!(catalogue.codec(&recipe).is_ok());
//! ```

pub use lamella_codec as codec;
pub use lamella_entropy as entropy;
pub use lamella_file as file;
pub use lamella_io as io;
pub use lamella_lm as lm;
pub use lamella_math as math;
pub use lamella_nn as nn;
pub use lamella_quant as quant;
pub use lamella_rate as rate;
pub use lamella_weights as weights;

mod catalogue;

pub use catalogue::title as system_title;

use std::sync::Arc;

/// Every system and every codec of this build.
pub fn catalogue() -> Arc<codec::Catalogue> {
    let systems = catalogue::merge(weights::systems::systems());
    Arc::new(codec::Catalogue::new(systems, weights::systems::codecs()))
}
