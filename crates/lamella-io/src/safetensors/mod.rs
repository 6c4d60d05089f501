//! safetensors: named arrays behind a JSON header.
//!
//! A file is `[u64 little-endian] n`, `n` bytes of JSON, then the arrays' bytes without gaps. The JSON object
//! maps each name to `dtype`, `shape` and `data_offsets` (relative to the end of the header); `__metadata__` maps
//! strings to strings.
//!
//! Three things here go beyond the `safetensors` crate, which is the peer in this module's tests: errors name the
//! array they are about, the header's own order of names is kept, and its bytes stay available, so that a file can
//! be written again byte for byte ([`SafetensorsWriter::with_header`]).
//!
//! ```
//! use lamella_codec::{Array, ArraySpec, Dtype, TensorSource};
//! use lamella_io::{SafetensorsFile, SafetensorsWriter};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("model.safetensors");
//! let spec = ArraySpec::new("w", vec![2, 2], Dtype::BF16);
//! let mut writer = SafetensorsWriter::create(&path, &[("format", "pt")], std::slice::from_ref(&spec))?;
//! writer.write(&Array::from_f32(spec, &[1.0, 2.0, 3.0, 4.0])?)?;
//! writer.finish()?;
//!
//! let file = SafetensorsFile::open(&path)?;
//! assert_eq!(file.array("w")?.to_f32()?, [1.0, 2.0, 3.0, 4.0]);
//! assert_eq!(file.header().metadata(), [("format".to_owned(), "pt".to_owned())]);
//! # Ok(())
//! # }
//! ```

mod compressed;
mod file;
mod header;
mod writer;

pub(crate) use compressed::{CompressedTensors, is_compressed};
pub use file::SafetensorsFile;
pub use header::SafetensorsHeader;
pub use writer::SafetensorsWriter;
