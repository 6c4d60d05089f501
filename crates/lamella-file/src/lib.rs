//! The `.lam` container: one file that holds a model's coded arrays, and of which any long enough prefix does too.
//!
//! This crate knows bytes, not numbers: it stores what codecs made ([`lamella_codec::EncodedLayer`]) and hands it back,
//! checked. `docs/format.md` defines every byte.
//!
//! # What stands in a file
//! A manifest (what there is), the side files (configuration, tokenizer), then layer after layer in the order in which
//! they buy most. The manifest is compressed column by column: 47 arrays with names like
//! `model.layers.3.self_attn.q_proj.weight` cost 560 bytes, checksums included. Everything has a checksum; nothing has
//! an offset, because offsets follow from lengths and order.
//!
//! # Which function do I want?
//! | to | use | memory |
//! |---|---|---|
//! | read arrays | [`File::open`], [`File::locate`], [`File::layers_of`] | the manifest; payloads stay mapped |
//! | look without reading | [`File::inspect`] | the manifest |
//! | check every byte | [`File::verify`] | 1 MiB |
//! | shorten a file | [`cut`](fn@cut), [`File::cut`] | the manifest |
//! | write a model, hours of work | [`Spool`] | one payload |
//! | write what is in memory | [`to_bytes`], [`write_to`] inside [`write_atomically`] | the payloads |
//! | know a size before writing | [`size_of`] | none |
//! | read only a file's first bytes | [`File::open_prefix`]; over HTTP `File::open_url_prefix` | the layers that lie whole in them |
//! | read over HTTP | `File::open_url` (feature `remote`); any other source: [`ReadAt`], [`File::from_source`] | the manifest, and what is asked for |
//!
//! # A file of one layer and a half
//! ```
//! use lamella_codec::{ArraySpec, Dtype, EncodedLayer};
//! use lamella_file::{ArrayEntry, File, LayerEntry, Manifest, Shard, Storage, size_of, to_bytes};
//!
//! let mut manifest = Manifest {
//!     recipes: vec!["exact".to_owned()],
//!     shards: vec![Shard { name: "model.safetensors".to_owned(), metadata: Vec::new() }],
//!     arrays: vec![ArrayEntry {
//!         spec: ArraySpec::new("w", vec![2], Dtype::BF16),
//!         recipe: 0,
//!         shard: 0,
//!         storage: Storage::Own,
//!     }],
//!     ..Manifest::default()
//! };
//! let payloads = [vec![1, 2, 3], vec![4, 5]];
//! for (payload, distortion) in payloads.iter().zip([0.5, 0.25]) {
//!     let layer = EncodedLayer { payload: payload.clone(), distortion, is_mapped: false };
//!     manifest.layers.push(LayerEntry::of(0, &layer));
//! }
//! let bytes = to_bytes(&manifest, &[], &payloads).unwrap();
//! assert_eq!(bytes.len() as u64, size_of(&manifest).unwrap());
//!
//! // One byte short of the second layer: the first still stands.
//! let prefix = File::from_bytes(&bytes[..bytes.len() - 1]).unwrap();
//! assert_eq!(prefix.layers_of("w").unwrap(), [vec![1, 2, 3]]);
//!
//! // Too short for the first layer: the error names the array.
//! let error = File::from_bytes(&bytes[..bytes.len() - 3]).unwrap_err();
//! assert!(error.to_string().contains("ends before array `w`"));
//! ```
//!
//! # What can go wrong
//! Every byte is treated as hostile: lengths are checked against what is there before anything is allocated, and the
//! [limits] bound the rest. [`FileError`] names the file, the layer, the array and the bytes;
//! [`FileError::hints`] says what to do.

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
#[cfg(feature = "remote")]
mod remote;
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
#[cfg(feature = "remote")]
pub use remote::RemoteFile;
pub use side::SideFiles;
pub use source::{Prefix, ReadAt};
pub use spool::{Spool, SpoolStart, SpooledLayer};
pub use text_coding::TextCoding;
pub use verify::{Progress, Verification};
pub use write::{to_bytes, write_atomically, write_to};
