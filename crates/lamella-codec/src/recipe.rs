//! Recipes: the text that names a composition.
//!
//! A recipe says how an array is coded. People type it (`--rule 'GLOB=gptq(bits=3)'`), and files keep it for
//! ever, because the decoder reads it back. So there is one written grammar, a canonical text for each recipe,
//! and nothing is guessed: a text either follows the grammar or is refused with the place marked.
//!
//! # Grammar, version [`GRAMMAR_VERSION`]
//! ```text
//! recipe     = part , { "|" , part } ;
//! part       = word | call ;
//! call       = word , "(" , [ argument , { "," , argument } ] , ")" ;
//! argument   = word , "=" , value       (* named *)
//!            | word                     (* a flag: the same as word=true *)
//!            | positional ;             (* only as the first argument of a call *)
//! positional = number | percent | nested ;
//! value      = number | percent | word | nested ;
//! nested     = call , { "|" , part }    (* a lone word is a word: `sign()` is the recipe *)
//!            | word , "|" , part , { "|" , part } ;
//! percent    = number , "%" ;
//! number     = [ "-" ] , digits , [ "." , digits ] , [ ( "e" | "E" ) , [ "+" | "-" ] , digits ] ;
//! word       = letter , { letter | digit | "_" | "-" } ;
//! digits     = digit , { digit } ;
//! letter     = "A" | … | "Z" | "a" | … | "z" ;
//! digit      = "0" | … | "9" ;
//! ```
//! Spaces and tabs may stand anywhere but inside a word or a number. A text has at most 4,096 bytes, 32 parts in a pipeline,
//! 64 arguments in a part and 8 levels of nesting; no argument is given twice; `true` and `false` name nothing.
//! Later versions of the grammar only accept more texts; none changes what a text means.
//!
//! # Canonical text
//! [`Recipe`]'s `Display` writes one text for one recipe, and reading that text returns the recipe: `, ` between
//! arguments, ` | ` between parts, numbers in the fewest digits that return the same `f64`, flags as bare words.
//!
//! ```
//! use lamella_codec::{Recipe, Value};
//! let recipe: Recipe = "gptq( bits=3.0,groups = static ,sequential=true )".parse()?;
//! assert_eq!(recipe.to_string(), "gptq(bits=3, groups=static, sequential)");
//! assert_eq!(recipe.get("bits"), Some(&Value::Number(3.0)));
//! assert_eq!(recipe.integer("bits", 1..=8, 4)?, 3);
//! assert!(recipe.flag("sequential")?);
//!
//! let chain: Recipe = "hadamard | outliers(1%) | lowrank(16, space=eigen)".parse()?;
//! assert_eq!(chain.parts().map(Recipe::name).collect::<Vec<_>>(), ["hadamard", "outliers", "lowrank"]);
//!
//! let error = "gptq(bits=3 groups=static)".parse::<Recipe>().unwrap_err();
//! assert_eq!(error.to_string(), "a recipe cannot be read
//!   gptq(bits=3 groups=static)
//!               ^ expected `,` or `)`");
//! # Ok::<(), lamella_codec::RecipeError>(())
//! ```

mod arguments;
mod decimal;
mod parse;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::CodecError;

/// Version of the recipe grammar. It grows when texts are accepted that earlier readers refuse.
pub const GRAMMAR_VERSION: u32 = 1;

/// Key under which a positional argument is kept until [`Recipe::name_positional`] names it.
pub(crate) const POSITIONAL: &str = "";

/// A part with its arguments, `gptq(bits=3, group_size=128)`, and the parts chained after it, if any.
///
/// [`Recipe::name`], [`Recipe::arguments`] and the getters speak of the first part; [`Recipe::parts`] walks the
/// whole pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    name: String,
    arguments: Vec<(String, Value)>,
    /// Later parts of a pipeline; theirs is empty.
    rest: Vec<Recipe>,
}

/// An argument's value. Numbers are finite.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number: `3`, `0.25`.
    Number(f64),
    /// A percentage, as a fraction: `1%` is 0.01.
    Percent(f64),
    /// A bare word: `static`. A flag that is given holds `true`.
    Word(String),
    /// A nested recipe.
    Recipe(Recipe),
}

/// Why a recipe text could not be read, or why an argument is not what its part takes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RecipeError {
    /// The recipe's text as it was given.
    pub recipe: String,
    /// What is wrong, in one line.
    pub message: String,
    /// Byte of the text where reading stopped, for texts that do not follow the grammar.
    pub position: Option<usize>,
}

impl std::error::Error for RecipeError {}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(position) = self.position else {
            return write!(f, "recipe `{}`: {}", self.recipe, self.message);
        };
        // A long text shows the 60 bytes before the mark and 30 after it, so that one line holds it.
        let start = floor_char(&self.recipe, position.saturating_sub(60));
        let end = floor_char(&self.recipe, position.saturating_add(30).min(self.recipe.len()));
        let shown: String =
            self.recipe[start..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let before = self.recipe[start..floor_char(&self.recipe, position)].chars().count();
        let (left, right) =
            (if start > 0 { "…" } else { "" }, if end < self.recipe.len() { "…" } else { "" });
        let indent = before + usize::from(start > 0);
        write!(f, "a recipe cannot be read\n  {left}{shown}{right}\n  {:indent$}^ {}", "", self.message)
    }
}

/// The nearest character boundary at or before byte `at`.
fn floor_char(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

impl From<RecipeError> for CodecError {
    fn from(error: RecipeError) -> Self {
        CodecError::BadRecipe { recipe: error.recipe, message: error.message }
    }
}

impl Recipe {
    /// A part without arguments.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), arguments: Vec::new(), rest: Vec::new() }
    }
    /// The first part's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The first part's arguments in the order they were written; a positional one has the key `""`.
    pub fn arguments(&self) -> &[(String, Value)] {
        &self.arguments
    }
    /// Adds an argument, or replaces the value of the one with this key, where it stands.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        match self.arguments.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            // A positional argument is only read back in the first place.
            None if key == POSITIONAL => self.arguments.insert(0, (String::new(), value)),
            None => self.arguments.push((key.to_owned(), value)),
        }
        self
    }
    /// The value of an argument of the first part.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.arguments.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
    /// Chains `next`, with all its parts, after this recipe's parts: `a.then(b)` reads `a | b`.
    pub fn then(mut self, mut next: Recipe) -> Self {
        let later = std::mem::take(&mut next.rest);
        self.rest.push(next);
        self.rest.extend(later);
        self
    }
    /// The parts from first to last; a recipe without `|` has one.
    pub fn parts(&self) -> impl Iterator<Item = &Recipe> {
        std::iter::once(self).chain(&self.rest)
    }
    /// Whether parts are chained: `a | b`.
    pub fn is_pipeline(&self) -> bool {
        !self.rest.is_empty()
    }
    /// Gives the first part's positional argument, if there is one, the name `key`: `lowrank(16)` becomes
    /// `lowrank(rank=16)`. [`crate::Catalogue::codec`] does this with the first argument a codec declares.
    ///
    /// # Errors
    /// The argument is given under its name as well.
    pub fn name_positional(mut self, key: &str) -> Result<Self, RecipeError> {
        if self.get(POSITIONAL).is_some() && self.get(key).is_some() {
            return Err(self.refuse(format!("`{key}` is given twice, once without its name")));
        }
        if let Some((known, _)) = self.arguments.iter_mut().find(|(known, _)| known == POSITIONAL) {
            key.clone_into(known);
        }
        Ok(self)
    }
    fn refuse(&self, message: String) -> RecipeError {
        RecipeError { recipe: self.to_string(), message, position: None }
    }
    fn write_part(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (i, (key, value)) in self.arguments.iter().enumerate() {
            f.write_str(if i == 0 { "(" } else { ", " })?;
            match value {
                Value::Word(word) if word == "true" && key != POSITIONAL => f.write_str(key)?,
                _ if key == POSITIONAL => write!(f, "{value}")?,
                _ => write!(f, "{key}={value}")?,
            }
        }
        if self.arguments.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl std::str::FromStr for Recipe {
    type Err = RecipeError;
    fn from_str(text: &str) -> Result<Self, RecipeError> {
        parse::recipe(text)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_part(f)?;
        self.rest.iter().try_for_each(|part| {
            f.write_str(" | ")?;
            part.write_part(f)
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => f.write_str(&decimal::text(*value, 0)),
            Self::Percent(fraction) => write!(f, "{}%", decimal::text(*fraction, 2)),
            Self::Word(word) => f.write_str(word),
            // Without the parentheses this would be read back as a word.
            Self::Recipe(recipe) if recipe.arguments.is_empty() && !recipe.is_pipeline() => {
                write!(f, "{recipe}()")
            }
            Self::Recipe(recipe) => write!(f, "{recipe}"),
        }
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number(f64::from(value))
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Word(value.to_string())
    }
}
impl From<&str> for Value {
    fn from(word: &str) -> Self {
        Self::Word(word.to_owned())
    }
}
impl From<Recipe> for Value {
    fn from(recipe: Recipe) -> Self {
        Self::Recipe(recipe)
    }
}

impl Serialize for Recipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Recipe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
