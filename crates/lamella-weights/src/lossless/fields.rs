//! Cutting the words of an array into streams of bytes, and putting them together again.
//!
//! A float's bits say different things. Sign and mantissa are close to noise; the exponent takes few values. So each
//! word becomes
//!
//! * a *symbol*: the exponent with the first `kept_bits` mantissa bits, as a number within a window of up to 254 values,
//!   30 where the others are rare. The mantissa of numbers from a smooth density is skewed towards small
//!   values inside an octave, and the kept bits are where that shows;
//! * the *rest*: the sign over the remaining mantissa bits, cut into whole bytes from the lowest up (the *low planes*)
//!   and, on top of these, up to 7 bits (the *head*), which are packed without gaps;
//! * where the magnitude lies outside the window, an *escape*: symbol 0, and the 16-bit value in a list of its own.
//!
//! Integers and 8-bit floats are cut into their bytes, all of them low planes.

use lamella_codec::Dtype;

use super::vector::{deposit, extract, wide};

/// Most symbols that name values inside the window; symbol 0 is an escape, symbol 1 stands for the value 0.
pub(crate) const WINDOW: u16 = 254;

/// Values of a window whose tables decode fastest: with symbols 0 and 1 they are 32.
pub(crate) const NARROW_WINDOW: u16 = 30;

/// How the words of an array are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fields {
    /// Into bytes.
    Bytes {
        /// Bytes of a word: 1, 2, 4 or 8.
        width: usize,
    },
    /// Into symbol, head and low planes.
    Float(FloatFields),
}

/// How floats are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatFields {
    /// Bytes of a word: 2, 4 or 8.
    pub(crate) width: usize,
    /// Mantissa bits of the format.
    pub(crate) mantissa_bits: u32,
    /// Mantissa bits that belong to the symbol.
    pub(crate) kept_bits: u32,
    /// Least value above 0 inside the window.
    pub(crate) window_start: u16,
    /// Values inside it. Only an encoder asks: a decoder takes any symbol.
    pub(crate) window: u16,
}

impl FloatFields {
    /// Bits of the rest, sign included.
    pub(crate) fn rest_bits(&self) -> u32 {
        self.mantissa_bits - self.kept_bits + 1
    }
    /// Bits of the head, 0 to 7.
    pub(crate) fn head_bits(&self) -> u32 {
        self.rest_bits() % 8
    }
    /// Number of low planes.
    pub(crate) fn low_planes(&self) -> usize {
        (self.rest_bits() / 8) as usize
    }
}

/// Mantissa bits of a float format that is cut into fields, and the numbers of kept bits that may pay.
pub(crate) fn float_format(dtype: Dtype) -> Option<(u32, std::ops::RangeInclusive<u32>)> {
    match dtype {
        Dtype::BF16 => Some((7, 0..=3)),
        Dtype::F16 => Some((10, 3..=4)),
        Dtype::F32 => Some((23, 0..=3)),
        Dtype::F64 => Some((52, 0..=3)),
        _ => None,
    }
}

impl Fields {
    /// Bytes of a word.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Bytes { width } => *width,
            Self::Float(fields) => fields.width,
        }
    }
    /// Number of low planes.
    pub(crate) fn low_planes(&self) -> usize {
        match self {
            Self::Bytes { width } => *width,
            Self::Float(fields) => fields.low_planes(),
        }
    }
    /// Bits of the head.
    pub(crate) fn head_bits(&self) -> u32 {
        match self {
            Self::Bytes { .. } => 0,
            Self::Float(fields) => fields.head_bits(),
        }
    }
    /// Whether there is a stream of symbols.
    pub(crate) fn has_symbols(&self) -> bool {
        matches!(self, Self::Float(_))
    }
}

/// One kind of word; written out for each width so that the loops become vector code. Checks of overflow would keep them
/// from it, so shifts and sums are the wrapping ones; every shift is less than the width.
macro_rules! words {
    ($module:ident, $word:ty, $bytes:literal) => {
        mod $module {
            use super::FloatFields;

            fn words(bytes: &[u8]) -> impl Iterator<Item = $word> + '_ {
                bytes.as_chunks::<$bytes>().0.iter().map(|&word| <$word>::from_le_bytes(word))
            }

            const MAGNITUDE: $word = <$word>::MAX >> 1;

            #[inline(always)]
            pub(super) fn values(bytes: &[u8], shift: u32, out: &mut [u16]) {
                for (out, word) in out.iter_mut().zip(words(bytes)) {
                    *out = (word & MAGNITUDE).wrapping_shr(shift) as u16;
                }
            }

            #[inline(always)]
            pub(super) fn symbols(bytes: &[u8], fields: &FloatFields, out: &mut [u8]) {
                let (shift, start) = (fields.mantissa_bits - fields.kept_bits, fields.window_start);
                let window = fields.window;
                for (out, word) in out.iter_mut().zip(words(bytes)) {
                    let value = (word & MAGNITUDE).wrapping_shr(shift) as u16;
                    let offset = value.wrapping_sub(start);
                    let inside = if offset < window { offset.wrapping_add(2) } else { 0 };
                    *out = if value == 0 { 1 } else { inside } as u8;
                }
            }

            #[inline(always)]
            pub(super) fn rest(bytes: &[u8], fields: &FloatFields, right: u32, out: &mut [u8]) {
                let mantissa = fields.mantissa_bits - fields.kept_bits;
                let mask = ((1 as $word) << mantissa) - 1;
                for (out, word) in out.iter_mut().zip(words(bytes)) {
                    let sign = (word >> (<$word>::BITS - 1)).wrapping_shl(mantissa);
                    *out = (sign | (word & mask)).wrapping_shr(right) as u8;
                }
            }

            #[inline(always)]
            pub(super) fn join(
                symbols: &[u8],
                fields: &FloatFields,
                head: &[u8],
                low: &[&[u8]],
                out: &mut [u8],
            ) {
                let mantissa = fields.mantissa_bits - fields.kept_bits;
                let start = fields.window_start as $word;
                let mask = ((1 as $word) << mantissa) - 1;
                let whole = |symbol: u8, rest: $word| -> $word {
                    let value =
                        if symbol < 2 { 0 } else { (symbol as $word).wrapping_sub(2).wrapping_add(start) };
                    rest.wrapping_shr(mantissa) << (<$word>::BITS - 1)
                        | value.wrapping_shl(mantissa)
                        | (rest & mask)
                };
                let (out, _) = out.as_chunks_mut::<$bytes>();
                // One byte holds the whole rest of 16-bit floats: the case worth a loop of its own.
                let only = match (low, head) {
                    ([], head) => Some(head),
                    ([plane], []) => Some(*plane),
                    _ => None,
                };
                if let Some(head) = only {
                    for ((out, &symbol), &rest) in out.iter_mut().zip(symbols).zip(head) {
                        *out = whole(symbol, rest as $word).to_le_bytes();
                    }
                    return;
                }
                for (index, plane) in low.iter().chain([&head]).enumerate() {
                    let left = 8 * index as u32;
                    for (out, &byte) in out.iter_mut().zip(*plane) {
                        let rest = if index == 0 { 0 } else { <$word>::from_le_bytes(*out) };
                        *out = (rest | (byte as $word).wrapping_shl(left)).to_le_bytes();
                    }
                }
                for (out, &symbol) in out.iter_mut().zip(symbols) {
                    *out = whole(symbol, <$word>::from_le_bytes(*out)).to_le_bytes();
                }
            }

            pub(super) fn patch(out: &mut [u8], element: usize, value: u16, fields: &FloatFields) {
                let mantissa = fields.mantissa_bits - fields.kept_bits;
                if let Some(word) = out.as_chunks_mut::<$bytes>().0.get_mut(element) {
                    let bits = <$word>::from_le_bytes(*word) | (value as $word) << mantissa & MAGNITUDE;
                    *word = bits.to_le_bytes();
                }
            }
        }
    };
}
words!(word16, u16, 2);
words!(word32, u32, 4);
words!(word64, u64, 8);

macro_rules! by_width {
    ($fields:expr, $name:ident($($argument:expr),*)) => {
        match $fields.width {
            2 => wide(|| word16::$name($($argument),*)),
            4 => wide(|| word32::$name($($argument),*)),
            _ => wide(|| word64::$name($($argument),*)),
        }
    };
}

impl FloatFields {
    /// The value (exponent and kept mantissa bits) of each word.
    pub(crate) fn values(&self, bytes: &[u8], out: &mut [u16]) {
        by_width!(self, values(bytes, self.mantissa_bits - self.kept_bits, out));
    }
    /// The symbol of each word.
    pub(crate) fn symbols(&self, bytes: &[u8], out: &mut [u8]) {
        by_width!(self, symbols(bytes, self, out));
    }
    /// One low plane.
    pub(crate) fn low_plane(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        by_width!(self, rest(bytes, self, 8 * index as u32, out));
    }
    /// The head of each word, one byte each, not packed.
    pub(crate) fn head(&self, bytes: &[u8], out: &mut [u8]) {
        by_width!(self, rest(bytes, self, 8 * self.low_planes() as u32, out));
    }
    /// Values outside the window, in order, two bytes each.
    pub(crate) fn escapes(&self, bytes: &[u8], symbols: &[u8]) -> Vec<u8> {
        let mut escapes = Vec::new();
        let mut value = [0u16];
        // Escapes are rare: most stretches have none.
        for (bytes, symbols) in bytes.chunks(256 * self.width).zip(symbols.chunks(256)) {
            if !has_escape(symbols) {
                continue;
            }
            for (word, _) in bytes.chunks(self.width).zip(symbols).filter(|(_, symbol)| **symbol == 0) {
                self.values(word, &mut value);
                escapes.extend_from_slice(&value[0].to_le_bytes());
            }
        }
        escapes
    }
    /// Puts words together; `head` is unpacked. What stands for escape symbols is taken from the front of `escapes`, as
    /// [`FloatFields::escapes`] gave them; false where there are too few.
    pub(crate) fn join(
        &self,
        symbols: &[u8],
        head: &[u8],
        low: &[&[u8]],
        escapes: &mut &[u8],
        out: &mut [u8],
    ) -> bool {
        by_width!(self, join(symbols, self, head, low, out));
        if !has_escape(symbols) {
            return true;
        }
        for (element, _) in symbols.iter().enumerate().filter(|(_, symbol)| **symbol == 0) {
            let Some((value, rest)) = escapes.split_first_chunk::<2>() else { return false };
            *escapes = rest;
            by_width!(self, patch(out, element, u16::from_le_bytes(*value), self));
        }
        true
    }
}

/// Whether any symbol is an escape.
fn has_escape(symbols: &[u8]) -> bool {
    wide(|| symbols.iter().fold(0u8, |any, &symbol| any | u8::from(symbol == 0))) != 0
}

/// One byte of each word.
pub(crate) fn byte_plane(bytes: &[u8], width: usize, index: usize, out: &mut [u8]) {
    if width == 1 {
        out.copy_from_slice(bytes);
        return;
    }
    for (out, word) in out.iter_mut().zip(bytes.chunks_exact(width)) {
        *out = word[index];
    }
}

/// Puts bytes back into words.
pub(crate) fn join_bytes(planes: &[&[u8]], width: usize, out: &mut [u8]) {
    for (index, plane) in planes.iter().enumerate() {
        for (word, &byte) in out.chunks_exact_mut(width).zip(*plane) {
            word[index] = byte;
        }
    }
}

/// Bytes of `count` packed elements.
pub(crate) fn packed_bytes(count: usize, bits: u32) -> usize {
    count.div_ceil(8) * bits as usize
}

/// Appends elements of `bits` bits (1 to 7), one byte each, without gaps: eight fill `bits` bytes, the last group with
/// zeros.
pub(crate) fn pack(elements: &[u8], bits: u32, out: &mut Vec<u8>) {
    let start = out.len();
    let size = packed_bytes(elements.len(), bits);
    // Eight bytes are stored at a time, so the last group needs room.
    out.resize(start + size + 8, 0);
    let (groups, tail) = elements.as_chunks::<8>();
    let done = extract(groups, bits, &mut out[start..]);
    let mut position = start + done * bits as usize;
    let mut store = |group: [u8; 8]| {
        let mut x = u64::from_le_bytes(group);
        x = (x & 0x00ff_00ff_00ff_00ff) | (x & 0xff00_ff00_ff00_ff00) >> (8 - bits);
        x = (x & 0x0000_ffff_0000_ffff) | (x & 0xffff_0000_ffff_0000) >> (16 - 2 * bits);
        x = (x & 0xffff_ffff) | (x >> 32) << (4 * bits);
        out[position..position + 8].copy_from_slice(&x.to_le_bytes());
        position += bits as usize;
    };
    groups[done..].iter().for_each(|&group| store(group));
    if !tail.is_empty() {
        let mut group = [0; 8];
        group[..tail.len()].copy_from_slice(tail);
        store(group);
    }
    out.truncate(start + size);
}

/// Unpacks into one byte per element; `packed` has [`packed_bytes`] bytes.
pub(crate) fn unpack(packed: &[u8], bits: u32, out: &mut [u8]) {
    let mask = (1u64 << bits) - 1;
    let (pair, quad) = (mask | mask << 8, (1u64 << (2 * bits)) - 1);
    let (lower, upper) = (quad | quad << 32, (1u64 << (4 * bits)) - 1);
    let spread = |group: &[u8]| -> [u8; 8] {
        let mut eight = [0; 8];
        eight[..group.len()].copy_from_slice(group);
        let mut x = u64::from_le_bytes(eight);
        x = (x & upper) | (x >> (4 * bits) & upper) << 32;
        x = (x & lower) | (x >> (2 * bits) & lower) << 16;
        let ones = pair & 0xff | (pair & 0xff) << 16 | (pair & 0xff) << 32 | (pair & 0xff) << 48;
        x = (x & ones) | (x >> bits & ones) << 8;
        x.to_le_bytes()
    };
    let done = deposit(packed, bits, out);
    let bits = bits as usize;
    let mut position = done * bits;
    let mut groups = out[8 * done..].chunks_exact_mut(8);
    for group in &mut groups {
        let end = (position + 8).min(packed.len());
        group.copy_from_slice(&spread(&packed[position..end]));
        position += bits;
    }
    let tail = groups.into_remainder();
    if !tail.is_empty() {
        let end = (position + 8).min(packed.len());
        tail.copy_from_slice(&spread(&packed[position..end])[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_returns(elements in prop::collection::vec(any::<u8>(), 0..70), bits in 1u32..8) {
            let elements: Vec<u8> = elements.iter().map(|e| e & ((1 << bits) - 1)).collect();
            let mut packed = vec![9];
            pack(&elements, bits, &mut packed);
            prop_assert_eq!(packed.len(), 1 + packed_bytes(elements.len(), bits));
            let mut back = vec![0; elements.len()];
            unpack(&packed[1..], bits, &mut back);
            prop_assert_eq!(back, elements);
        }

        #[test]
        fn any_words_return(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            format in 0usize..4, kept in 0u32..5, window_start in any::<u16>(), window in 1u16..255,
        ) {
            let (dtype, width) = [(Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F32, 4), (Dtype::F64, 8)][format];
            let (mantissa_bits, range) = float_format(dtype).unwrap();
            let kept_bits = kept.clamp(*range.start(), *range.end());
            let window_start = window_start.max(1) % 0x3000 + 1;
            let fields = FloatFields { width, mantissa_bits, kept_bits, window_start, window };
            let bytes = &bytes[..bytes.len() / width * width];
            let count = bytes.len() / width;
            let mut symbols = vec![0; count];
            fields.symbols(bytes, &mut symbols);
            let mut head = vec![0; if fields.head_bits() > 0 { count } else { 0 }];
            fields.head(bytes, &mut head);
            let low: Vec<Vec<u8>> = (0..fields.low_planes()).map(|index| {
                let mut plane = vec![0; count];
                fields.low_plane(bytes, index, &mut plane);
                plane
            }).collect();
            let low: Vec<&[u8]> = low.iter().map(|plane| &plane[..]).collect();
            let escapes = fields.escapes(bytes, &symbols);
            let mut out = vec![0; bytes.len()];
            let mut escapes = &escapes[..];
            prop_assert!(fields.join(&symbols, &head, &low, &mut escapes, &mut out));
            prop_assert!(escapes.is_empty());
            prop_assert_eq!(&out[..], bytes);
        }
    }
}
