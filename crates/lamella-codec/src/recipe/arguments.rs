//! Typed reading of a part's arguments, with errors that say what is allowed.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{POSITIONAL, Recipe, RecipeError, Value};

/// Whole numbers up to this size are exact in an `f64`.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

impl Recipe {
    /// The whole number under `key`, or `default` where it is not given. The default need not lie in the range.
    ///
    /// ```
    /// # use lamella_codec::Recipe;
    /// let recipe: Recipe = "rtn(bits=9)".parse().unwrap();
    /// let error = recipe.integer("bits", 1..=8u32, 4).unwrap_err();
    /// assert_eq!(error.to_string(), "recipe `rtn(bits=9)`: `bits` is 9; it takes a whole number from 1 to 8");
    /// ```
    ///
    /// # Errors
    /// Not a whole number, or outside `allowed`.
    pub fn integer<T>(&self, key: &str, allowed: RangeInclusive<T>, default: T) -> Result<T, RecipeError>
    where
        T: Copy + PartialOrd + Display + TryFrom<i64>,
    {
        let Some(value) = self.get(key) else { return Ok(default) };
        let whole = match value {
            Value::Number(number) if number.fract() == 0.0 && number.abs() <= MAX_EXACT => {
                T::try_from(*number as i64).ok().filter(|whole| allowed.contains(whole))
            }
            _ => None,
        };
        whole.ok_or_else(|| {
            let (low, high) = (allowed.start(), allowed.end());
            self.refuse(format!("`{key}` is {value}; it takes a whole number from {low} to {high}"))
        })
    }

    /// The number under `key`, or `default` where it is not given. A percentage counts as its fraction.
    ///
    /// # Errors
    /// Not a number, or outside `allowed`.
    pub fn number(&self, key: &str, allowed: RangeInclusive<f64>, default: f64) -> Result<f64, RecipeError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Number(number) | Value::Percent(number)) if allowed.contains(number) => Ok(*number),
            Some(value) => {
                let (low, high) = (Value::Number(*allowed.start()), Value::Number(*allowed.end()));
                Err(self.refuse(format!("`{key}` is {value}; it takes a number from {low} to {high}")))
            }
        }
    }

    /// The word under `key`, one of `allowed`, or `default` where it is not given.
    ///
    /// # Errors
    /// Not a word, or none of those allowed.
    pub fn word<'w>(&self, key: &str, allowed: &[&'w str], default: &'w str) -> Result<&'w str, RecipeError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let found = match value {
            Value::Word(word) => allowed.iter().find(|known| *known == word).copied(),
            _ => None,
        };
        found.ok_or_else(|| self.refuse(format!("`{key}` is {value}; it takes {}", list(allowed, "or"))))
    }

    /// Whether the flag `key` is given: `sequential` or `sequential=true`. Not given or `=false`: `false`.
    ///
    /// # Errors
    /// Anything but `true` or `false`.
    pub fn flag(&self, key: &str) -> Result<bool, RecipeError> {
        Ok(self.word(key, &["true", "false"], "false")? == "true")
    }

    /// The recipe nested under `key`, if it is given; a word counts as a recipe without arguments.
    ///
    /// # Errors
    /// A number stands there.
    pub fn nested(&self, key: &str) -> Result<Option<Recipe>, RecipeError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Recipe(recipe)) => Ok(Some(recipe.clone())),
            Some(Value::Word(word)) if !matches!(word.as_str(), "true" | "false") => {
                Ok(Some(Recipe::new(word)))
            }
            Some(value) => Err(self.refuse(format!("`{key}` is {value}; it takes a recipe"))),
        }
    }

    /// Refuses arguments that are not in `known`, so that a misspelt one is never passed over in silence.
    ///
    /// # Errors
    /// The first unknown argument, with the known ones listed.
    pub fn reject_unknown(&self, known: &[&str]) -> Result<(), RecipeError> {
        let Some((key, value)) = self.arguments.iter().find(|(key, _)| !known.contains(&key.as_str())) else {
            return Ok(());
        };
        let takes = match known {
            [] => "no arguments".to_owned(),
            _ => list(known, "and"),
        };
        let name = &self.name;
        Err(self.refuse(if key == POSITIONAL {
            format!("{value} stands without a name; `{name}` takes {takes}")
        } else {
            format!("`{name}` has no argument `{key}`; it takes {takes}")
        }))
    }
}

/// "`a`, `b` or `c`".
fn list(words: &[&str], joint: &str) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} {joint} {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}
