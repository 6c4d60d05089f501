//! What a linear becomes, and how `quantization_config` says so.

use std::collections::BTreeMap;

use lamella_codec::{ArraySpec, Dtype};
use serde_json::{Value, json};

/// How a linear is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// Integers of 4 bits, one scale for so many columns of a row (`pack-quantized`).
    Int4 {
        /// Columns that share a scale.
        group_size: usize,
    },
    /// Integers of 8 bits, one scale for so many columns of a row (`pack-quantized`).
    Int8 {
        /// Columns that share a scale.
        group_size: usize,
    },
    /// Integers of 8 bits, one scale a row (`int-quantized`).
    Int8Channel,
    /// `F8_E4M3`, one scale a row (`float-quantized`).
    Fp8,
}

impl Scheme {
    /// The scheme of this name: `int4`, `int8`, `int8-channel`, `fp8`.
    pub fn from_name(name: &str, group_size: usize) -> Option<Self> {
        Some(match name {
            "int4" => Self::Int4 { group_size },
            "int8" => Self::Int8 { group_size },
            "int8-channel" => Self::Int8Channel,
            "fp8" => Self::Fp8,
            _ => return None,
        })
    }

    /// The name that [`Scheme::from_name`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int4 { .. } => "int4",
            Self::Int8 { .. } => "int8",
            Self::Int8Channel => "int8-channel",
            Self::Fp8 => "fp8",
        }
    }

    /// compressed-tensors' name of the storage.
    fn format(self) -> &'static str {
        match self {
            Self::Int4 { .. } | Self::Int8 { .. } => "pack-quantized",
            Self::Int8Channel => "int-quantized",
            Self::Fp8 => "float-quantized",
        }
    }

    /// Columns that share a scale in rows of so many.
    pub(super) fn group(self, columns: usize) -> usize {
        match self {
            Self::Int4 { group_size } | Self::Int8 { group_size } => group_size,
            Self::Int8Channel | Self::Fp8 => columns,
        }
    }

    /// The arrays that a linear `module` of `[rows, columns]` becomes; scales have the source's type.
    pub(super) fn arrays(self, module: &str, rows: usize, columns: usize, dtype: Dtype) -> Vec<ArraySpec> {
        let array = |ending: &str, shape: Vec<usize>, dtype| {
            ArraySpec::new(format!("{module}.{ending}"), shape, dtype)
        };
        let scale = array("weight_scale", vec![rows, columns / self.group(columns).max(1)], dtype);
        let packed = |bits: usize| {
            vec![
                array("weight_packed", vec![rows, (columns * bits).div_ceil(32)], Dtype::I32),
                scale.clone(),
                array("weight_shape", vec![2], Dtype::I64),
            ]
        };
        match self {
            Self::Int4 { .. } => packed(4),
            Self::Int8 { .. } => packed(8),
            Self::Int8Channel => vec![array("weight", vec![rows, columns], Dtype::I8), scale],
            Self::Fp8 => vec![array("weight", vec![rows, columns], Dtype::F8E4M3), scale],
        }
    }

    fn weights(self) -> Value {
        let (bits, kind, group_size) = match self {
            Self::Int4 { group_size } => (4, "int", Some(group_size)),
            Self::Int8 { group_size } => (8, "int", Some(group_size)),
            Self::Int8Channel => (8, "int", None),
            Self::Fp8 => (8, "float", None),
        };
        json!({
            "num_bits": bits,
            "type": kind,
            "symmetric": true,
            "strategy": if group_size.is_some() { "group" } else { "channel" },
            "group_size": group_size,
            "block_structure": null,
            "dynamic": false,
            "actorder": null,
        })
    }

    /// Activations rounded to 8 bits token by token, where the runtime multiplies 8-bit numbers.
    fn activations(self) -> Value {
        match self {
            Self::Int4 { .. } | Self::Int8 { .. } => Value::Null,
            Self::Int8Channel | Self::Fp8 => json!({
                "num_bits": 8,
                "type": if self == Self::Fp8 { "float" } else { "int" },
                "symmetric": true,
                "strategy": "token",
                "group_size": null,
                "dynamic": true,
            }),
        }
    }
}

/// The `quantization_config` of linears by module name and of modules that stay as they are.
pub(super) fn config(linears: &[(String, Scheme)], ignored: &[String], is_dynamic: bool) -> Value {
    let mut by_scheme: BTreeMap<Scheme, Vec<&str>> = BTreeMap::new();
    for (module, scheme) in linears {
        by_scheme.entry(*scheme).or_default().push(module);
    }
    let mut groups = serde_json::Map::new();
    for (ordinal, (scheme, modules)) in by_scheme.iter().enumerate() {
        let targets = if by_scheme.len() == 1 { json!(["Linear"]) } else { json!(modules) };
        let activations = if is_dynamic { scheme.activations() } else { Value::Null };
        let group = json!({
            "targets": targets,
            "weights": scheme.weights(),
            "input_activations": activations,
            "output_activations": null,
            "format": scheme.format(),
        });
        groups.insert(format!("group_{ordinal}"), group);
    }
    let format = match by_scheme.keys().next() {
        Some(first) if by_scheme.keys().all(|scheme| scheme.format() == first.format()) => first.format(),
        _ => "mixed-precision",
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}
