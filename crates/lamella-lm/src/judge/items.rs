//! Questions, one JSON object a line.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::JudgeError;

/// A question with choices: `{"context": "The sky is", "choices": ["blue", "made of tin"], "gold": 0}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ChoiceItem {
    /// What stands before every choice.
    pub context: String,
    /// The choices, without the delimiter between context and choice.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

/// A text whose end is to be predicted: `{"context": "They sailed to the", "target": " island"}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClozeItem {
    /// What stands before.
    pub context: String,
    /// How it goes on.
    pub target: String,
}

/// A prompt and its answers: `{"prompt": "2 + 2 =", "answers": ["4"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GenerationItem {
    /// What is continued.
    pub prompt: String,
    /// Any of these is right.
    pub answers: Vec<String>,
}

/// Reads JSONL; empty lines are skipped, other fields of an object ignored.
///
/// # Errors
/// [`JudgeError::Item`] with the first line that does not fit; [`JudgeError::TooShort`] where there is no item.
///
/// ```
/// use lamella_lm::judge::{ClozeItem, read_items};
/// let items: Vec<ClozeItem> = read_items("{\"context\": \"one two\", \"target\": \" three\"}\n\n")?;
/// assert_eq!(items[0].target, " three");
/// # Ok::<(), lamella_lm::judge::JudgeError>(())
/// ```
pub fn read_items<T: DeserializeOwned>(jsonl: &str) -> Result<Vec<T>, JudgeError> {
    let items: Vec<T> = jsonl
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| JudgeError::Item { line: index + 1, message: error.to_string() })
        })
        .collect::<Result<_, _>>()?;
    if items.is_empty() {
        return Err(JudgeError::TooShort { message: "there is no item".to_owned() });
    }
    Ok(items)
}
