//! Bits without a model: streams, packing at fixed widths, Golomb, Rice and Elias codes.
//!
//! * [`BitWriter`], [`BitReader`]: a stream of bits, least significant first within each byte.
//! * [`pack`], [`unpack`]: arrays of integers of 1 to 16 bits each, decodable from any position.
//! * [`golomb`]: Golomb, Rice, Exp-Golomb and Elias codes on these streams.
//!
//! Choose packing where codes are (nearly) uniform or random access must cost nothing; Golomb codes where numbers fall
//! off geometrically and a table would cost more than it saves; [`crate::rans`] for everything else.

pub mod golomb;
mod packing;
mod stream;

pub use packing::{pack, packed_bytes, unpack, unpack_at};
pub use stream::{BitReader, BitWriter};
