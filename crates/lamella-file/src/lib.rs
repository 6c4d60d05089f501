//! The .lam container: manifest, layers, checksums, cutting and resuming.

mod cut;
mod error;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod inspect;
mod layout;
pub mod limits;
mod manifest;
mod mapping;
mod mixing;
mod names;
mod order;
mod priming;
mod side;
mod source;
mod spool;
mod text_coding;
mod verify;
mod wire;
mod write;

pub use cut::{Cut, CutReport, cut};
pub use error::{FileError, Intact, ManifestError};
pub use file::{File, Location};
pub use inspect::{ArrayReport, Inspection};
pub use layout::{Layout, size_of};
pub use manifest::{
    ArrayEntry, LayerEntry, Manifest, Shard, SideFile, SideTable, Storage, Targets, stored_distortion,
};
pub use mapping::MappedFile;
pub use order::{LayerGain, order_by_gain};
pub use side::SideFiles;
pub use source::ReadAt;
pub use spool::{Spool, SpoolStart, SpooledLayer};
pub use text_coding::TextCoding;
pub use verify::{Progress, Verification};
pub use write::{to_bytes, write_atomically, write_to};
