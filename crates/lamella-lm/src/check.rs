//! Whether a checkpoint holds what a configuration asks for.

use std::collections::HashMap;

use lamella_codec::{ArrayError, ArraySpec};
use serde_json::{Value, json};

use crate::LmError;
use crate::config::{FeedForwardConfig, TransformerConfig};
use crate::plan::Needed;
use crate::site::LinearSite;

/// Adds to an RWKV configuration what only the arrays tell: version 5.1 has no array whose first axis is its heads
/// but the decay.
pub(crate) fn completed(config: &Value, specs: &HashMap<&str, &ArraySpec>) -> Value {
    let mut config = config.clone();
    let decay = specs.get("blocks.0.att.time_decay").and_then(|spec| spec.shape.first());
    if let (Some(object), Some(&heads)) = (config.as_object_mut(), decay)
        && object.get("model_type").and_then(Value::as_str) == Some("rwkv5")
    {
        object.entry("num_attention_heads").or_insert(json!(heads));
    }
    config
}

/// Refuses more experts than the checkpoint has arrays: names are made for every expert.
pub(crate) fn check_counts(config: &TransformerConfig, n_arrays: usize) -> Result<(), LmError> {
    let experts = config.feed_forward.iter().map(|feed_forward| match feed_forward {
        FeedForwardConfig::Experts { n_experts, .. } => *n_experts,
        _ => 0,
    });
    let experts = experts.fold(0usize, usize::saturating_add);
    if experts.saturating_add(config.n_blocks) > n_arrays {
        return Err(LmError::Config {
            field: "num_hidden_layers".to_owned(),
            message: format!(
                "{} blocks with {experts} experts cannot stand in {n_arrays} arrays",
                config.n_blocks
            ),
        });
    }
    Ok(())
}

/// Checks that every array exists, holds floats and has the right shape.
pub(crate) fn check(
    architecture: &str,
    specs: &HashMap<&str, &ArraySpec>,
    linears: &[LinearSite],
    others: &[Needed],
) -> Result<(), LmError> {
    let one = |name: &str, expected: &[usize]| -> Result<(), LmError> {
        let spec = specs.get(name).ok_or_else(|| LmError::MissingArray {
            architecture: architecture.to_owned(),
            name: name.to_owned(),
        })?;
        let fits = match expected {
            // A vector may carry further axes (of one head each, for instance).
            [length] => spec.checked_len() == Some(*length),
            _ => spec.shape == expected,
        };
        if !fits {
            return Err(LmError::Shape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: spec.shape.clone(),
            });
        }
        if !spec.dtype.is_float() {
            return Err(ArrayError::NotFloat { name: name.to_owned(), dtype: spec.dtype.name() }.into());
        }
        Ok(())
    };
    for (name, shape) in others {
        one(name, shape)?;
    }
    for site in linears {
        one(&site.weight, &site.stored_shape())?;
        match &site.bias {
            Some(bias) => one(bias, &[site.out_features])?,
            None => {
                let stem = site.weight.strip_suffix(".weight").unwrap_or(&site.weight);
                let bias = format!("{stem}.bias");
                if specs.contains_key(bias.as_str()) {
                    return Err(LmError::UnexpectedArray {
                        architecture: architecture.to_owned(),
                        name: bias,
                    });
                }
            }
        }
    }
    Ok(())
}
