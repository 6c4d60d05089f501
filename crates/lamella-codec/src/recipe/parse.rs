//! The reader: recursive descent over bytes, bounded in length, depth and counts.

use super::{POSITIONAL, Recipe, RecipeError, Value, decimal};

const MAX_BYTES: usize = 4096;
const MAX_PARTS: usize = 32;
const MAX_ARGUMENTS: usize = 64;
const MAX_DEPTH: usize = 8;

/// Reads a whole text.
pub(super) fn recipe(text: &str) -> Result<Recipe, RecipeError> {
    let mut reader = Reader { text, at: 0 };
    if text.len() > MAX_BYTES {
        reader.at = MAX_BYTES;
        return Err(reader.error(format!("a recipe has at most {MAX_BYTES} bytes, this one {}", text.len())));
    }
    let recipe = reader.pipeline(0)?;
    match reader.peek() {
        None => Ok(recipe),
        Some(_) => Err(reader.error("expected `|` or the end")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>) -> RecipeError {
        RecipeError { recipe: self.text.to_owned(), message: message.into(), position: Some(self.at) }
    }
    fn error_at(&self, at: usize, message: impl Into<String>) -> RecipeError {
        RecipeError { position: Some(at), ..self.error(message) }
    }
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
    /// The next byte that is not a space or tab, not taken.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.byte(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        self.byte()
    }
    fn take(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        self.at += usize::from(found);
        found
    }
    fn take_while(&mut self, accepts: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.byte().is_some_and(&accepts) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn word(&mut self, what: &str) -> Result<&'a str, RecipeError> {
        if !self.peek().is_some_and(|b| b.is_ascii_alphabetic()) {
            return Err(self.error(format!("expected {what}")));
        }
        Ok(self.take_while(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'))
    }
    /// A word that names a part or an argument.
    fn name(&mut self, what: &str) -> Result<&'a str, RecipeError> {
        let name = self.word(what)?;
        if matches!(name, "true" | "false") {
            return Err(self.error_at(self.at - name.len(), format!("expected {what}; `{name}` is a value")));
        }
        Ok(name)
    }

    fn pipeline(&mut self, depth: usize) -> Result<Recipe, RecipeError> {
        let name = self.name("a name")?;
        self.pipeline_after(name, depth)
    }
    /// A pipeline whose first name was taken already.
    fn pipeline_after(&mut self, name: &str, depth: usize) -> Result<Recipe, RecipeError> {
        let mut recipe = self.part(name, depth)?;
        while self.take(b'|') {
            if recipe.rest.len() + 1 == MAX_PARTS {
                return Err(self.error(format!("a pipeline has at most {MAX_PARTS} parts")));
            }
            let name = self.name("a name")?;
            let part = self.part(name, depth)?;
            recipe.rest.push(part);
        }
        Ok(recipe)
    }

    fn part(&mut self, name: &str, depth: usize) -> Result<Recipe, RecipeError> {
        let mut recipe = Recipe::new(name);
        if !self.take(b'(') {
            return Ok(recipe);
        }
        if depth == MAX_DEPTH {
            return Err(self.error(format!("recipes nest at most {MAX_DEPTH} levels deep")));
        }
        if self.take(b')') {
            return Ok(recipe);
        }
        loop {
            self.argument(&mut recipe, depth)?;
            if self.take(b')') {
                return Ok(recipe);
            }
            if !self.take(b',') {
                return Err(self.error("expected `,` or `)`"));
            }
        }
    }

    fn argument(&mut self, recipe: &mut Recipe, depth: usize) -> Result<(), RecipeError> {
        let first = self.peek();
        let start = self.at;
        if recipe.arguments.len() == MAX_ARGUMENTS {
            return Err(self.error(format!("a part has at most {MAX_ARGUMENTS} arguments")));
        }
        let (key, value) = if first.is_some_and(|b| b.is_ascii_alphabetic()) {
            let word = self.name("an argument")?;
            match self.peek() {
                Some(b'=') => {
                    self.at += 1;
                    (word, self.value(depth)?)
                }
                Some(b'(' | b'|') => (POSITIONAL, Value::Recipe(self.pipeline_after(word, depth + 1)?)),
                _ => (word, Value::Word("true".to_owned())),
            }
        } else if matches!(first, Some(b'-' | b'0'..=b'9')) {
            (POSITIONAL, self.number()?)
        } else {
            return Err(self.error("expected an argument"));
        };
        if key == POSITIONAL && !recipe.arguments.is_empty() {
            return Err(self.error_at(start, "only the first argument may stand without its name"));
        }
        if recipe.get(key).is_some() {
            return Err(self.error_at(start, format!("`{key}` is given twice")));
        }
        recipe.arguments.push((key.to_owned(), value));
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, RecipeError> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b) if b.is_ascii_alphabetic() => {
                let word = self.word("a value")?;
                match self.peek() {
                    Some(b'(' | b'|') if !matches!(word, "true" | "false") => {
                        Ok(Value::Recipe(self.pipeline_after(word, depth + 1)?))
                    }
                    _ => Ok(Value::Word(word.to_owned())),
                }
            }
            _ => Err(self.error("expected a number, a percentage, a word or a recipe")),
        }
    }

    fn digits(&mut self) -> Result<(), RecipeError> {
        match self.take_while(|b| b.is_ascii_digit()) {
            "" => Err(self.error("expected a digit")),
            _ => Ok(()),
        }
    }

    fn number(&mut self) -> Result<Value, RecipeError> {
        let start = self.at;
        self.at += usize::from(self.byte() == Some(b'-'));
        self.digits()?;
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if self.byte().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
            return Err(self.error("this does not belong to a number; a word starts with a letter"));
        }
        let is_percent = self.take(b'%');
        let value = decimal::value(text, if is_percent { 2 } else { 0 })
            .ok_or_else(|| self.error_at(start, "this number is too large"))?;
        Ok(if is_percent { Value::Percent(value) } else { Value::Number(value) })
    }
}
