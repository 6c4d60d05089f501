//! Reading of configuration fields with errors that name field, value and range.

use serde_json::Value;

use crate::LmError;

/// A JSON object read field by field.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Value);

/// Largest extent a configuration may ask for: keeps products of two extents within 64 bits.
const LARGEST: u64 = 1 << 28;

fn bad(field: &str, message: String) -> LmError {
    LmError::Config { field: field.to_owned(), message }
}

impl<'a> Fields<'a> {
    /// The field, `None` where it is absent or null.
    pub(crate) fn get(self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// A count from 0 to 2^28.
    pub(crate) fn count_or(self, field: &str, default: Option<usize>) -> Result<usize, LmError> {
        match self.get(field) {
            Some(value) => value
                .as_u64()
                .filter(|&count| count <= LARGEST)
                .map(|count| count as usize)
                .ok_or_else(|| bad(field, format!("{value} is not a count from 0 to {LARGEST}"))),
            None => default.ok_or_else(|| bad(field, "is missing".to_owned())),
        }
    }

    /// A count from 1 to 2^28 that has to be there.
    pub(crate) fn extent(self, field: &str) -> Result<usize, LmError> {
        self.extent_or(field, None)
    }

    /// A count from 1 to 2^28.
    pub(crate) fn extent_or(self, field: &str, default: Option<usize>) -> Result<usize, LmError> {
        match self.count_or(field, default)? {
            0 => Err(bad(field, "is 0, at least 1 is needed".to_owned())),
            count => Ok(count),
        }
    }

    /// A finite number.
    pub(crate) fn number_or(self, field: &str, default: f64) -> Result<f64, LmError> {
        match self.get(field) {
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| bad(field, format!("{value} is not a finite number"))),
            None => Ok(default),
        }
    }

    /// A finite number above zero.
    pub(crate) fn positive_or(self, field: &str, default: f64) -> Result<f64, LmError> {
        let number = self.number_or(field, default)?;
        if number > 0.0 { Ok(number) } else { Err(bad(field, format!("{number} is not above 0"))) }
    }

    /// True or false.
    pub(crate) fn flag_or(self, field: &str, default: bool) -> Result<bool, LmError> {
        match self.get(field) {
            Some(value) => {
                value.as_bool().ok_or_else(|| bad(field, format!("{value} is neither true nor false")))
            }
            None => Ok(default),
        }
    }

    /// A text.
    pub(crate) fn text(self, field: &str) -> Option<&'a str> {
        self.get(field)?.as_str()
    }

    /// A list of counts, empty where absent.
    pub(crate) fn counts(self, field: &str) -> Result<Vec<usize>, LmError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| bad(field, "is not a list".to_owned()))?;
        list.iter()
            .map(|item| {
                item.as_u64()
                    .map(|count| count as usize)
                    .ok_or_else(|| bad(field, format!("{item} is not a count")))
            })
            .collect()
    }
}
