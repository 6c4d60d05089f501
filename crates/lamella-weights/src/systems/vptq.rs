//! VPTQ (S068): vectors down the outputs of one input, k-means weighted by the second moment, errors fed forward.
//!
//! # Idea
//! A codebook of vectors has more shapes to choose from than a grid. Vectors that run along the outputs of *one* input
//! share that input's place in the error feedback, so that the nearest centroid is also the best one.
//!
//! # Algorithm
//! 1. `H` = mean of `x x^T`, damped; columns optionally by falling `H_jj`, optionally normalised to
//!    `(w - min_j) / (max_j - min_j)`. `U` = upper Cholesky factor of `H^-1`.
//! 2. Vectors: `v` consecutive outputs of one column. The first `outliers` share of the columns by `H_jj` and each of
//!    `groups` runs of the others have codebooks of their own.
//! 3. Centroids: k-means from random vectors, each vector counted `H_jj` times (with normalisation `H_jj range_j^2`).
//! 4. For each column `j`: every piece takes its nearest centroid; `e = (w_j - v_j) / U_jj`, `w_k -= e U_jk`, `k > j`.
//! 5. Residuals: k-means over what step 4 left, then step 4 again from the original weights with both codebooks.
//! 6. With codes fixed the output error is quadratic in the centroids: each codebook moves to its least squares.
//!
//! # Shapes
//! `weight [out_features, in_features]`, any float type; codebooks `[centroids, v]`; indices `[in_features,
//! ceil(out_features / v)]`.
//!
//! # Stored form
//! [`crate::vptq`]: order (16 bits a column), spans (32 bits a column), per shelf codebooks as 16-bit floats and indices
//! of `log2 k` bits: `(log2 k_1 + log2 k_2) / v + 16 v (k_1 + k_2) / (M N) + 16 / M` bits per weight.
//!
//! # Cost
//! k-means: `M N k` multiply-adds a round, the sweep as many again and `M N^2 / 2` for the feedback; tuning `M N^2 / v`
//! and `k^3 / 3`. Decoding: one look-up per vector.
//!
//! # When to choose it
//! At 2 bits where decoding must be a table look-up and matrices are large beside their codebooks. Else `house`.
//!
//! # Claim
//! At about 2 bits with codebooks counted: error below GPTQ's in a file no smaller and below k-means without feedback;
//! weighted k-means beats unweighted; columns one at a time beat `v` columns at once.
//!
//! # Differences
//! Step 6 is exact least squares instead of Adam, one matrix at a time, and end-to-end tuning is not built. Vector
//! lengths are powers of two up to 16: rows run in chunks of 64. Normalisation, which moves no code by itself, is off
//! unless asked for, and then the weights of k-means follow it. Codebooks above 1024 centroids are not tuned.
//!
//! # Source
//! Y. Liu, J. Wen, Y. Wang, S. Ye, L. L. Zhang, T. Cao, C. Li, M. Yang, "VPTQ: Extreme Low-bit Vector Post-Training
//! Quantization for Large Language Models", arXiv 2409.17066, section 3 and algorithm 1; the authors' quantiser.

use std::sync::Arc;

use half::f16;
use lamella_codec::{
    Array, ArraySpec, Codec, CodecError, Encoded, Knowledge, Rate, Recipe, Refusal, Registration, System,
    Wing,
};
use lamella_math::KMeans;
use lamella_quant::gptq::{Direction, Order, reorder};

use crate::distortion::{distortion, weighted_energy};
use crate::inputs::factored;
use crate::matrix::{accepts_matrix, clamp, clamped_array, damaged, out_of_range, read_matrix, single_layer};
use crate::vptq::{Axis, Books, Form, Problem, Shelf, Span, measure};

/// The line of the list.
pub fn system() -> System {
    System {
        id: "S068",
        name: "VPTQ",
        wing: Wing::Weights,
        compresses: "linear weights in vector codebooks",
        recipe: Some("vptq(vector=4, centroids=256)"),
        claim: Some("at 2 bits error below GPTQ's and below k-means without feedback; each part pays"),
        measure: Some(measure),
    }
}

/// `vptq(vector=4, centroids=256)`.
#[derive(Debug, Clone)]
pub struct Vptq {
    recipe: Recipe,
    /// `v`, `k_1`, `k_2` of the plain columns.
    plain: [usize; 3],
    /// `v_0`, `k_0` of the outlier columns.
    outlier: [usize; 2],
    /// Share of columns with the outliers' codebook.
    outliers: f64,
    groups: usize,
    order: Order,
    axis: Axis,
    is_normalized: bool,
    is_weighted: bool,
    has_feedback: bool,
    is_tuned: bool,
    iterations: usize,
    damping: f64,
}

/// How recipes name it.
pub fn registration() -> Registration {
    Registration {
        name: "vptq",
        summary: "vectors along the outputs in weighted k-means codebooks, errors fed forward (S068)",
        arguments: &[
            ("vector", "4", "weights of a vector, v: 1, 2, 4, 8 or 16"),
            ("centroids", "256", "centroids of the main codebook, k_1, 2 to 65536"),
            ("residual", "0", "centroids of the residual codebook, k_2, 0 (none) or 2 to 65536"),
            ("outliers", "0", "share of columns, by mean square, with a codebook of their own, 0 to 0.5"),
            ("outlier_vector", "4", "weights of their vectors: 1, 2, 4, 8 or 16"),
            ("outlier_centroids", "256", "centroids of their codebook, 2 to 65536"),
            ("groups", "1", "runs of columns with codebooks of their own, 1 to 64"),
            ("order", "natural", "columns as stored (natural) or by falling mean square (activation)"),
            ("normalize", "false", "map each column to 0 to 1 first"),
            ("axis", "outputs", "vectors along outputs, or along inputs and v columns at once (inputs)"),
            ("weighted", "true", "weight k-means by the inputs' mean squares (true) or not (false)"),
            ("feedback", "true", "feed errors forward (true) or take nearest centroids only (false)"),
            ("tune", "true", "move centroids to their least squares (true) or not (false)"),
            ("iterations", "100", "most rounds of k-means, 1 to 1000"),
            ("damping", "0.01", "fraction of the mean diagonal added to the second moment, 0.000001 to 1"),
        ],
        build: |recipe| Ok(Arc::new(Vptq::from_recipe(recipe)?)),
    }
}

impl Vptq {
    fn from_recipe(recipe: &Recipe) -> Result<Self, CodecError> {
        let recipe = recipe.clone().name_positional("vector")?;
        let known: Vec<&str> = registration().arguments.iter().map(|argument| argument.0).collect();
        recipe.reject_unknown(&known)?;
        let refuse = |message: String| CodecError::BadRecipe { recipe: recipe.to_string(), message };
        let vector = |key: &str| match recipe.integer(key, 1..=16u32, 4)? as usize {
            length if length.is_power_of_two() => Ok(length),
            length => Err(refuse(format!("`{key}` is {length}; it takes 1, 2, 4, 8 or 16"))),
        };
        let centroids = |key: &str| recipe.integer(key, 2..=65_536u32, 256).map(|k| k as usize);
        let is_on = |key: &str, default| {
            Ok::<_, CodecError>(recipe.word(key, &["true", "false"], default)? == "true")
        };
        let residual = recipe.integer("residual", 0..=65_536u32, 0)? as usize;
        if residual == 1 {
            return Err(refuse("`residual` is 1; it takes 0 or 2 to 65536".to_owned()));
        }
        let axis = match recipe.word("axis", &["outputs", "inputs"], "outputs")? {
            "inputs" => Axis::Inputs,
            _ => Axis::Outputs,
        };
        let order = match recipe.word("order", &["natural", "activation"], "natural")? {
            "activation" => Order::Activation,
            _ => Order::Natural,
        };
        let outliers = recipe.number("outliers", 0.0..=0.5, 0.0)?;
        let groups = recipe.integer("groups", 1..=64u32, 1)? as usize;
        if outliers > 0.0 && order == Order::Natural {
            return Err(refuse("`outliers` needs `order=activation`, which puts them first".to_owned()));
        }
        if axis == Axis::Inputs && (outliers > 0.0 || groups > 1 || residual > 0) {
            return Err(refuse("`axis=inputs` has one main codebook only".to_owned()));
        }
        Ok(Self {
            plain: [vector("vector")?, centroids("centroids")?, residual],
            outlier: [vector("outlier_vector")?, centroids("outlier_centroids")?],
            outliers,
            groups,
            order,
            axis,
            is_normalized: is_on("normalize", "false")?,
            is_weighted: is_on("weighted", "true")?,
            has_feedback: is_on("feedback", "true")?,
            is_tuned: is_on("tune", "true")?,
            iterations: recipe.integer("iterations", 1..=1000u32, 100)? as usize,
            damping: recipe.number("damping", 1e-6..=1.0, 0.01)?,
            recipe,
        })
    }

    /// Step 2.
    fn form(&self, rows: usize, columns: usize) -> Form {
        let first = (self.outliers * columns as f64).ceil() as usize;
        let mut shelves = Vec::new();
        if first > 0 {
            let [vector, centroids] = self.outlier;
            shelves.push(Shelf { positions: 0..first, vector, centroids, residual: 0 });
        }
        let [vector, centroids, residual] = self.plain;
        let bound = |group: usize| first + (columns - first) * group / self.groups;
        let bounds = (0..self.groups).map(|group| bound(group)..bound(group + 1));
        for positions in bounds.filter(|positions| !positions.is_empty()) {
            shelves.push(Shelf { positions, vector, centroids, residual });
        }
        let has_order = self.order == Order::Activation;
        Form { rows, columns, shelves, axis: self.axis, is_normalized: self.is_normalized, has_order }
    }
}

/// Minimum and range of each column, as stored.
fn spans(weights: &[f32], columns: usize, is_normalized: bool) -> Vec<Span> {
    let mut spans = vec![(0.0f32, 1.0f32); columns];
    if !is_normalized {
        return spans;
    }
    for (column, span) in spans.iter_mut().enumerate() {
        let values = weights.iter().skip(column).step_by(columns);
        let (low, high) =
            values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
        let range = f16::from_f32(high - low).to_f32();
        *span = (f16::from_f32(low).to_f32(), if range > 0.0 { range } else { 1.0 });
    }
    spans
}

impl Codec for Vptq {
    fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn uses_second_moment(&self) -> bool {
        true
    }

    fn stored_bytes(&self, spec: &ArraySpec) -> Option<u64> {
        let (rows, columns) = spec.matrix()?;
        Some(self.form(rows, columns).stored_bytes()? as u64)
    }

    fn accepts(&self, spec: &ArraySpec) -> Result<(), Refusal> {
        accepts_matrix(spec)
    }

    fn encode(&self, array: &Array<'_>, knowledge: &Knowledge, _rate: Rate) -> Result<Encoded, CodecError> {
        let matrix = read_matrix(&self.recipe, array)?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        // Step 1.
        let factored = factored(&array.spec, columns, knowledge, self.order, self.damping)?;
        let weights = reorder(&matrix.values, columns, &factored.order, Direction::ToSweep);
        let moment = knowledge.second_moment.as_deref().filter(|_| !factored.upper.is_empty());
        let diagonal = match moment.map(|moment| moment.diagonal()) {
            Some(diagonal) => factored.order.iter().map(|&column| diagonal[column as usize]).collect(),
            None => vec![1.0; columns],
        };
        let spans = spans(&weights, columns, self.is_normalized);
        let upper = if self.has_feedback { &factored.upper[..] } else { &[] };
        let axis = self.axis;
        let problem = Problem { weights: &weights, columns, upper, diagonal: &diagonal, spans: &spans, axis };
        let form = self.form(rows, columns);
        // Steps 3 to 5.
        let fit = KMeans { clusters: 0, iterations: self.iterations, tolerance: 1e-5, seed: 68 };
        let mut books = problem.fit(&form.shelves, &fit, self.is_weighted);
        if books.iter().all(Books::is_finite) && spans.iter().all(|span| (span.0 + span.1).is_finite()) {
            problem.fit_residuals(&form.shelves, &mut books, &fit);
        } else {
            return Err(out_of_range(&array.spec, &matrix, "a centroid is beyond 16-bit floats"));
        }
        let (coded, _) = problem.sweep(&form.shelves, &books, false);
        // Step 6.
        if let Some(moment) = moment.filter(|_| self.is_tuned && self.axis == Axis::Outputs) {
            problem.tune(&form, &mut books, &coded, moment, &factored.order);
        }
        let payload = form.encode(&books, &coded, &spans, &factored.order);
        let payload = payload.map_err(|message| out_of_range(&array.spec, &matrix, &message))?;
        let values = form.values(&books, &coded, &spans);
        let mut reconstruction = reorder(&values, columns, &factored.order, Direction::ToOriginal);
        clamp(&mut reconstruction, array.spec.dtype);
        Ok(Encoded::single(
            payload,
            distortion(&matrix.values, &reconstruction, columns, knowledge),
            weighted_energy(&matrix.values, columns, knowledge),
        ))
    }

    fn decode(&self, spec: &ArraySpec, layers: &[&[u8]]) -> Result<Array<'static>, CodecError> {
        let (rows, columns) = spec.matrix().ok_or_else(|| damaged(spec, 0, "the array has not 2 axes"))?;
        let payload = single_layer(spec, layers)?;
        let form = self.form(rows, columns);
        let read = form.decode(payload).map_err(|message| damaged(spec, 0, message))?;
        let (books, coded, spans, order) = read;
        let values = form.values(&books, &coded, &spans);
        clamped_array(spec, reorder(&values, columns, &order, Direction::ToOriginal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamella_codec::Dtype;

    #[test]
    fn a_matrix_of_few_vectors_comes_back_exactly() {
        let kinds = [[0.5f32, -1.0], [2.0, 0.25], [-0.75, 3.0]];
        // Column j of row pair i holds kind (i + j) % 3, so that 2 x 6 vectors have 3 shapes.
        let values: Vec<f32> = (0..4 * 6).map(|i| kinds[(i / 12 + i % 6) % 3][i / 6 % 2]).collect();
        let array = Array::from_f32(ArraySpec::new("w", vec![4, 6], Dtype::F32), &values).unwrap();
        for text in ["vptq(vector=2, centroids=4)", "vptq(vector=2, centroids=2, residual=8)"] {
            let codec = Vptq::from_recipe(&text.parse().unwrap()).unwrap();
            let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
            assert_eq!(Some(encoded.size_bytes() as u64), codec.stored_bytes(&array.spec), "{text}");
            let decoded = codec.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap().to_f32().unwrap();
            assert!(values.iter().zip(&decoded).all(|(a, b)| (a - b).abs() < 2e-3), "{text}: {decoded:?}");
        }
    }
}
