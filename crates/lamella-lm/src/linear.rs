//! Linear modules.

use std::sync::Arc;

use lamella_codec::{CodedLinear, TensorSource};
use rayon::prelude::*;

use crate::elementwise::add;
use crate::site::LinearSite;
use crate::{LmError, product};

/// Gives the coded form of a linear, `None` where it shall be read as plain numbers. Embedding tables are asked for
/// too, as linears of [`Role::Embedding`](crate::Role) from `hidden_size` features to one per row. Several threads ask
/// at a time, in no fixed order.
pub type OperatorLookup<'a> = dyn Fn(&LinearSite) -> Option<Arc<dyn CodedLinear>> + Sync + 'a;

/// Reads an array of `length` elements, of any shape, as numbers.
pub(crate) fn read_vector(source: &dyn TensorSource, name: &str, length: usize) -> Result<Vec<f32>, LmError> {
    let numbers = source.array(name)?.to_f32()?;
    source.release(name);
    if numbers.len() != length {
        return Err(LmError::Shape {
            name: name.to_owned(),
            expected: vec![length],
            found: vec![numbers.len()],
        });
    }
    Ok(numbers)
}

#[derive(Clone)]
enum Weight {
    /// `[out_features, in_features]`.
    Dense(Arc<Vec<f32>>),
    Coded(Arc<dyn CodedLinear>),
}

/// A linear module with its weight at hand.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) site: LinearSite,
    weight: Weight,
    bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn load(
        site: &LinearSite,
        source: &dyn TensorSource,
        operators: &OperatorLookup<'_>,
    ) -> Result<Self, LmError> {
        let weight = match operators(site) {
            Some(operator) => Weight::Coded(operator),
            None => {
                let length = site.in_features * site.out_features;
                let numbers = read_vector(source, &site.weight, length)?;
                Weight::Dense(if site.is_transposed {
                    Arc::new(transposed(&numbers, site.in_features, site.out_features))
                } else {
                    Arc::new(numbers)
                })
            }
        };
        let read = |name: &String| read_vector(source, name, site.out_features);
        let bias = site.bias.as_ref().map(read).transpose()?;
        Ok(Self { site: site.clone(), weight, bias })
    }

    /// A linear whose weight the caller already has.
    pub(crate) fn from_dense(site: LinearSite, weight: Arc<Vec<f32>>) -> Self {
        Self { site, weight: Weight::Dense(weight), bias: None }
    }

    /// A linear whose coded form the caller already has.
    pub(crate) fn from_coded(site: LinearSite, operator: Arc<dyn CodedLinear>) -> Self {
        Self { site, weight: Weight::Coded(operator), bias: None }
    }

    /// Multiplies `[tokens, in_features]` into columns `column ..` of rows `stride` apart, bias added.
    pub(crate) fn apply_into(&self, inputs: &[f32], outputs: &mut [f32], stride: usize, column: usize) {
        let (in_features, out_features) = (self.site.in_features, self.site.out_features);
        let tokens = inputs.len() / in_features;
        match &self.weight {
            Weight::Dense(weight) => {
                product::linear(inputs, weight, (tokens, in_features, out_features), outputs, stride, column);
            }
            Weight::Coded(operator) => operator.apply(inputs, tokens, outputs, stride, column),
        }
        if let Some(bias) = &self.bias {
            let row = |row: &mut [f32]| add(&mut row[column..column + out_features], bias);
            if tokens <= 16 {
                outputs.chunks_mut(stride).for_each(row);
            } else {
                outputs.par_chunks_mut(stride).for_each(row);
            }
        }
    }

    /// Multiplies `[tokens, in_features]` to `[tokens, out_features]`.
    pub(crate) fn apply(&self, inputs: &[f32]) -> Vec<f32> {
        let out_features = self.site.out_features;
        let mut outputs = vec![0.0; inputs.len() / self.site.in_features * out_features];
        self.apply_into(inputs, &mut outputs, out_features, 0);
        outputs
    }

    /// Bytes of weight and bias in memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Dense(numbers) => size_of_val(&numbers[..]),
            Weight::Coded(operator) => operator.resident_bytes(),
        };
        weight + self.bias.as_ref().map_or(0, |bias| size_of_val(&bias[..]))
    }
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transposed(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; numbers.len()];
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, target)| {
        for (row, value) in target.iter_mut().enumerate() {
            *value = numbers[row * columns + column];
        }
    });
    out
}
