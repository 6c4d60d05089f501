//! Sizes as people write them: `60MB`, `4.2 GB`, `512KiB`, `70000`, `40%`.

use std::fmt;
use std::str::FromStr;

/// A size: bytes, or a share of a base (of the input's weight files, for `--size`).
///
/// ```
/// use lamella_rate::Size;
/// assert_eq!("4.2GB".parse(), Ok(Size::Bytes(4_200_000_000)));
/// assert_eq!("1.5 KiB".parse(), Ok(Size::Bytes(1_536)));
/// assert_eq!("40%".parse::<Size>().unwrap().bytes(1_000), 400);
/// assert_eq!(
///     "60M".parse::<Size>().unwrap_err().to_string(),
///     "`60M` is no size: `M` is not a unit; write `60MB` (10^6 bytes) or `60MiB` (2^20), \
///      a plain number of bytes, or a share such as `40%`"
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// Bytes, at least one.
    Bytes(u64),
    /// A share of a base, above 0 and at most 1.
    Share(f64),
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no size: {reason}; write `60MB` (10^6 bytes) or `60MiB` (2^20), a plain number of bytes, \
     or a share such as `40%`"
)]
pub struct SizeError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Units in any case, with their bytes.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl Size {
    /// The size in bytes, rounded down, where a share is one of `base_bytes`.
    pub fn bytes(self, base_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (share * base_bytes as f64) as u64,
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let refuse = |reason: String| SizeError { text: text.to_owned(), reason };
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
            return Err(refuse("it does not start with a number".to_owned()));
        }
        if unit == "%" {
            let percent: f64 =
                number.parse().map_err(|_| refuse("it does not start with a number".to_owned()))?;
            if percent > 0.0 && percent <= 100.0 {
                return Ok(Self::Share(percent / 100.0));
            }
            return Err(refuse("a share is above 0% and at most 100%".to_owned()));
        }
        let unit_bytes = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| refuse(format!("`{unit}` is not a unit")))?;
        // Decimal digits in whole numbers: `4.2GB` is exactly 4,200,000,000 bytes. Parts of a byte round down.
        let bytes = decimal_product(whole, fraction, unit_bytes)
            .ok_or_else(|| refuse("it is more than 2^64 bytes".to_owned()))?;
        if bytes == 0 { Err(refuse("it is less than a byte".to_owned())) } else { Ok(Self::Bytes(bytes)) }
    }
}

/// `whole.fraction * unit`, rounded down; `None` above 2^64.
fn decimal_product(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let whole: u128 = whole.parse::<u64>().ok()?.into();
    // Beyond 18 places no unit reaches a byte.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(fraction.len() as u32);
    let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()?.into() };
    let product = whole.checked_mul(unit.into())?.checked_add(parts * u128::from(unit) / scale)?;
    product.try_into().ok()
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&bytes_text(*bytes)),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

/// Bytes for people, in powers of 1,000 with four significant digits: `505.1 MB`, `17 bytes`.
///
/// ```
/// use lamella_rate::bytes_text;
/// assert_eq!(bytes_text(505_149_000), "505.1 MB");
/// assert_eq!(bytes_text(999_999), "1.000 MB");
/// assert_eq!(bytes_text(1), "1 byte");
/// ```
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        1 => return "1 byte".to_owned(),
        0..1_000 => return format!("{bytes} bytes"),
        _ => {}
    }
    let mut value = bytes as f64 / 1e3;
    for unit in ["KB", "MB", "GB", "TB"] {
        // 999.95 would be written 1000.0.
        if value < 999.95 || unit == "TB" {
            let places = if value < 9.9995 {
                3
            } else if value < 99.995 {
                2
            } else {
                1
            };
            return format!("{value:.places$} {unit}");
        }
        value /= 1e3;
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_texts() {
        for (text, bytes) in [
            ("1", 1),
            ("70000", 70_000),
            ("60MB", 60_000_000),
            ("60mb", 60_000_000),
            (" 60 MB ", 60_000_000),
            ("4.2GB", 4_200_000_000),
            ("0.1KB", 100),
            ("1.0005KB", 1_000),
            ("512KiB", 524_288),
            ("1.5MiB", 1_572_864),
            ("2TiB", 2_199_023_255_552),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size::Bytes(bytes)), "{text}");
        }
        assert_eq!("7.5%".parse::<Size>().unwrap().bytes(1_051_008), 78_825);
        assert_eq!("100 %".parse::<Size>().unwrap(), Size::Share(1.0));
    }

    #[test]
    fn refused_texts_say_why() {
        for (text, reason) in [
            ("", "start with a number"),
            ("MB", "start with a number"),
            ("-5MB", "start with a number"),
            (".5MB", "start with a number"),
            ("5.MB", "start with a number"),
            ("1.2.3MB", "start with a number"),
            ("5PB", "`PB` is not a unit"),
            ("5 bits", "`bits` is not a unit"),
            ("1e6", "`e6` is not a unit"),
            ("0", "less than a byte"),
            ("0.4B", "less than a byte"),
            ("0%", "above 0%"),
            ("101%", "above 0%"),
            ("99999999999999999999", "more than 2^64"),
            ("17000000TiB", "more than 2^64"),
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn texts_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1_000, "1.000 KB"),
            (9_999, "9.999 KB"),
            (99_994, "99.99 KB"),
            (99_999, "100.0 KB"),
            (262_100_000, "262.1 MB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
