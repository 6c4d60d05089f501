//! Recipes: the text that names a composition.

use std::fmt;

/// A part with its arguments: `gptq(bits=3, group_size=128)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    name: String,
    arguments: Vec<(String, Value)>,
}

/// An argument's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number: `3`, `0.25`.
    Number(f64),
    /// A percentage, as a fraction: `1%` is 0.01.
    Percent(f64),
    /// A bare word: `static`.
    Word(String),
    /// A nested recipe.
    Recipe(Recipe),
}

/// Why a recipe text could not be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct RecipeError {
    /// What is wrong, with the place marked.
    pub message: String,
}

impl Recipe {
    /// A part without arguments.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), arguments: Vec::new() }
    }
    /// The part's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The arguments in the order they were written.
    pub fn arguments(&self) -> &[(String, Value)] {
        &self.arguments
    }
    /// Adds or replaces an argument.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.arguments.retain(|(known, _)| known != key);
        self.arguments.push((key.to_owned(), value));
        self
    }
    /// The value of an argument.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.arguments.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
}

impl std::str::FromStr for Recipe {
    type Err = RecipeError;
    fn from_str(_text: &str) -> Result<Self, RecipeError> {
        Err(RecipeError { message: "not yet".to_owned() })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}
