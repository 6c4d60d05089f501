//! The bounds a reader checks before it believes a number. docs/format.md lists the same figures.

/// First bytes of every `.lam` file.
pub const MAGIC: [u8; 4] = [0x8B, b'L', b'A', b'M'];
/// Format version this crate writes and reads. Version 0 was unstable; no release reads it.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes before the manifest: magic, version, manifest length, checksum.
pub const HEADER_BYTES: usize = 13;
/// Most bytes of a stored manifest (64 MiB).
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Most bytes of a description before compression (64 MiB).
pub const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;
/// Most bytes that one stored byte may stand for (beside [`EXPANSION_FLOOR_BYTES`]) in compressed text.
pub const MAX_EXPANSION: u64 = 256;
/// What compressed text may always expand to, however short it is (64 KiB).
pub const EXPANSION_FLOOR_BYTES: u64 = 64 << 10;
/// Longest text that the mixing coder codes (2 MiB), and most bytes that one of its stored bytes may stand for: the
/// bounds on a reader's time.
pub const MAX_MIXED_BYTES: u64 = 2 << 20;
/// See [`MAX_MIXED_BYTES`]; beside [`EXPANSION_FLOOR_BYTES`].
pub const MAX_MIXED_EXPANSION: u64 = 64;
/// Most bytes of array names per byte of description (beside [`EXPANSION_FLOOR_BYTES`]).
pub const MAX_NAME_EXPANSION: u64 = 16;
/// Most arrays of a file.
pub const MAX_ARRAYS: u64 = 1 << 20;
/// Most layers of a file.
pub const MAX_LAYERS: u64 = 1 << 22;
/// Most bytes of an array's or side file's name.
pub const MAX_NAME_BYTES: u64 = 4096;
/// Most bytes of any other text (recipes, budget, metadata).
pub const MAX_TEXT_BYTES: u64 = 16 << 20;
/// Most axes of an array.
pub const MAX_AXES: u64 = 16;
/// Most bytes of one array in its own dtype (16 TiB).
pub const MAX_ARRAY_BYTES: u64 = 1 << 44;
/// Most entries of each smaller table: recipes, shards, metadata pairs, side files.
pub const MAX_ENTRIES: u64 = 1 << 16;
/// Most bytes of one layer's payload (16 TiB).
pub const MAX_LAYER_BYTES: u64 = 1 << 44;
/// Most bytes of all side files together, decompressed (1 GiB).
pub const MAX_SIDE_BYTES: u64 = 1 << 30;
/// Boundary that payloads for memory mapping start on, in bytes from the start of the file.
pub const MAPPED_ALIGNMENT: u64 = 64;
