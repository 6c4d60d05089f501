//! GGUF's tokenizer arrays out of `tokenizer.json`.
//!
//! Byte-level BPE becomes `gpt2` (tokens, merges, the name of the cut), BPE with byte fallback becomes `llama`
//! (pieces and scores). A `tokenizer.json` has merges instead of scores; llama.cpp merges the pair whose joined
//! piece has the highest score, so a piece's score is minus the rank of the first merge that makes it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::metadata::json;
use super::{GgufField, GgufPlan, GgufWriteError};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn refuse<T>(message: impl Into<String>) -> Result<T, GgufWriteError> {
    Err(GgufWriteError::Tokenizer { message: message.into() })
}

struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

/// Adds the tokenizer to a plan; without a `tokenizer.json`, the mark of a file that has none.
pub(super) fn fields(
    plan: &mut GgufPlan,
    config: &Value,
    side_files: &BTreeMap<String, Vec<u8>>,
    vocabulary: usize,
) -> Result<(), GgufWriteError> {
    let Some(tokenizer) = json(side_files, "tokenizer.json")? else {
        plan.warnings.push(
            "the model has no `tokenizer.json`: the file takes and gives token numbers only".to_owned(),
        );
        plan.put("tokenizer.ggml.model", GgufField::Text("no_vocab".to_owned()));
        return Ok(());
    };
    let model = &tokenizer["model"];
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") {
        return refuse(format!("holds a model of the kind {}; BPE alone can be written", model["type"]));
    }
    let Some(merges) = model["merges"].as_array() else { return refuse("has no merges") };
    let merges: Option<Vec<(String, String)>> = merges.iter().map(pair).collect();
    let Some(merges) = merges else { return refuse("has a merge that is no pair") };
    let is_byte_level = is_byte_level(&tokenizer["pre_tokenizer"]);
    let mut tokens = tokens(&tokenizer, vocabulary, !is_byte_level)?;
    if is_byte_level {
        let pre = cut(&tokenizer)?;
        plan.put("tokenizer.ggml.model", GgufField::Text("gpt2".to_owned()));
        plan.put("tokenizer.ggml.pre", GgufField::Text(pre.to_owned()));
        let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        plan.put("tokenizer.ggml.merges", GgufField::Texts(merges));
    } else if model["byte_fallback"].as_bool() == Some(true) {
        plan.put("tokenizer.ggml.model", GgufField::Text("llama".to_owned()));
        plan.put("tokenizer.ggml.pre", GgufField::Text("default".to_owned()));
        let scores = scores(&tokens, &merges);
        plan.put("tokenizer.ggml.scores", GgufField::F32s(scores));
        let prepends = prepends_space(&tokenizer);
        plan.put("tokenizer.ggml.add_space_prefix", GgufField::Bool(prepends));
        if let Some(unknown) = model["unk_token"].as_str()
            && let Some(id) = tokens.texts.iter().position(|text| text == unknown)
        {
            tokens.kinds[id] = UNKNOWN;
            plan.put("tokenizer.ggml.unknown_token_id", GgufField::U32(id as u32));
        }
    } else {
        return refuse("is neither byte-level BPE nor BPE with byte fallback");
    }
    special(plan, config, side_files, &tokenizer, &tokens)?;
    plan.put("tokenizer.ggml.tokens", GgufField::Texts(tokens.texts));
    plan.put("tokenizer.ggml.token_type", GgufField::I32s(tokens.kinds));
    Ok(())
}

/// Merges are stored as `"a b"` or `["a", "b"]`.
fn pair(merge: &Value) -> Option<(String, String)> {
    if let Some(text) = merge.as_str() {
        let (left, right) = text.split_once(' ')?;
        return Some((left.to_owned(), right.to_owned()));
    }
    match merge.as_array()?.as_slice() {
        [left, right] => Some((left.as_str()?.to_owned(), right.as_str()?.to_owned())),
        _ => None,
    }
}

/// Tokens by number. Rows of the embedding that no token names get a placeholder, as llama.cpp's converter does.
fn tokens(tokenizer: &Value, vocabulary: usize, has_bytes: bool) -> Result<Tokens, GgufWriteError> {
    let mut texts: Vec<Option<String>> = vec![None; vocabulary];
    let mut kinds = vec![UNUSED; vocabulary];
    let Some(listed) = tokenizer["model"]["vocab"].as_object() else { return refuse("has no vocabulary") };
    let outside = |text: &str, id: &Value| {
        refuse(format!("gives the token `{text}` the number {id}; the embedding has {vocabulary} rows"))
    };
    let place =
        |id: &Value| id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocabulary);
    for (text, id) in listed {
        let Some(at) = place(id) else { return outside(text, id) };
        let is_byte = has_bytes && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        kinds[at] = if is_byte { BYTE } else { NORMAL };
        texts[at] = Some(text.clone());
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = added["content"].as_str() else {
            return refuse("has an added token without a text");
        };
        let Some(at) = place(&added["id"]) else { return outside(text, &added["id"]) };
        kinds[at] = if added["special"].as_bool() == Some(true) { CONTROL } else { USER_DEFINED };
        texts[at] = Some(text.to_owned());
    }
    let name = |(id, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{id}]"));
    Ok(Tokens { texts: texts.into_iter().enumerate().map(name).collect(), kinds })
}

/// A piece's score is minus the rank of the first merge that makes it; single characters come after all of them.
fn scores(tokens: &Tokens, merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(text, &kind): (&String, &i32)| match ranks.get(text) {
        Some(&rank) if kind == NORMAL => -(rank as f32),
        _ if kind == NORMAL => -1e6,
        _ => 0.0,
    };
    tokens.texts.iter().zip(&tokens.kinds).map(score).collect()
}

/// All pre-tokenizers or normalizers of a chain.
fn chain<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match value[list].as_array() {
        Some(parts) => parts.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

fn is_byte_level(pre: &Value) -> bool {
    chain(pre, "pretokenizers").iter().any(|part| part["type"] == "ByteLevel")
}

fn prepends_space(tokenizer: &Value) -> bool {
    let by_normalizer =
        chain(&tokenizer["normalizer"], "normalizers").iter().any(|part| part["type"] == "Prepend");
    let by_cut = chain(&tokenizer["pre_tokenizer"], "pretokenizers").iter().any(|part| {
        part["type"] == "Metaspace" && part["prepend_scheme"].as_str().is_none_or(|scheme| scheme != "never")
    });
    by_normalizer || by_cut
}

/// llama.cpp's name for how text is cut before merging.
fn cut(tokenizer: &Value) -> Result<&'static str, GgufWriteError> {
    let parts = chain(&tokenizer["pre_tokenizer"], "pretokenizers");
    let pattern = |part: &Value| part["pattern"]["Regex"].as_str().map(str::to_owned);
    match parts.as_slice() {
        [only]
            if only["use_regex"].as_bool() != Some(false)
                && only["add_prefix_space"].as_bool() != Some(true) =>
        {
            Ok("gpt-2")
        }
        [split, bytes]
            if split["type"] == "Split"
                && bytes["type"] == "ByteLevel"
                && bytes["use_regex"].as_bool() == Some(false) =>
        {
            match pattern(split) {
                Some(text) if text.contains(r"\p{N}{1,3}|") => Ok("llama-bpe"),
                Some(text) if text.contains(r"\p{N}| ?[^\s\p{L}\p{N}]+") => Ok("qwen2"),
                text => refuse(format!(
                    "cuts text in a way llama.cpp has no known name for: {}",
                    text.unwrap_or_default()
                )),
            }
        }
        _ => refuse("cuts text in a way llama.cpp has no known name for"),
    }
}

/// Special tokens, whether one is put before every text, and the chat template.
fn special(
    plan: &mut GgufPlan,
    config: &Value,
    side_files: &BTreeMap<String, Vec<u8>>,
    tokenizer: &Value,
    tokens: &Tokens,
) -> Result<(), GgufWriteError> {
    let named = json(side_files, "tokenizer_config.json")?.unwrap_or(Value::Null);
    let by_name = |field: &str| {
        let text = named[field].as_str().or_else(|| named[field]["content"].as_str())?;
        tokens.texts.iter().position(|token| token == text)
    };
    let by_number = |field: &str| {
        let value = match &config[field] {
            Value::Array(list) => list.first()?.as_u64(),
            value => value.as_u64(),
        };
        value.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < tokens.texts.len())
    };
    let mut begin = None;
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
        let id = by_name(&format!("{name}_token")).or_else(|| by_number(&format!("{name}_token_id")));
        if let Some(id) = id {
            plan.put(&format!("tokenizer.ggml.{key}_token_id"), GgufField::U32(id as u32));
            if name == "bos" {
                begin = Some(id);
            }
        }
    }
    let text = begin.map(|id| tokens.texts[id].as_str());
    let post = &tokenizer["post_processor"];
    let adds = |part: &Value| {
        let single = part["single"].as_array();
        single.and_then(|list| list.first()).and_then(|first| first["SpecialToken"]["id"].as_str()) == text
    };
    let by_template = text.is_some() && chain(post, "processors").iter().any(|part| adds(part));
    let by_flag = post.is_null() && named["add_bos_token"].as_bool() == Some(true);
    plan.put("tokenizer.ggml.add_bos_token", GgufField::Bool(by_template || by_flag));
    plan.put("tokenizer.ggml.add_eos_token", GgufField::Bool(false));
    let template = named["chat_template"].as_str().map(str::to_owned).or_else(|| {
        side_files.get("chat_template.jinja").map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    });
    if let Some(template) = template {
        plan.put("tokenizer.chat_template", GgufField::Text(template));
    }
    Ok(())
}
