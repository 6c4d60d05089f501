//! The solver of VPTQ ([`crate::systems`]): codebooks, the sweep that uses them, and their tuning.

mod claim;
mod form;

use std::sync::Arc;

use half::f16;
use lamella_codec::Knowledge;
use lamella_math::matrix::{Layout, multiply_add};
use lamella_math::{Codebook, KMeans, SecondMoment, solve_positive};
use lamella_quant::feedback::{Chunk, ColumnQuantizer, ROWS_PER_CHUNK, sweep};

pub use claim::measure;
pub use form::{Coded, Form};

/// Which way vectors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Along the outputs of one input: VPTQ.
    Outputs,
    /// Along the inputs of one output, whole vectors quantised at once: GPTVQ's order.
    Inputs,
}

/// Columns that share codebooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf {
    /// Positions of the sweep.
    pub positions: std::ops::Range<usize>,
    /// Weights of a vector.
    pub vector: usize,
    /// Centroids of the main codebook.
    pub centroids: usize,
    /// Centroids of the residual codebook, 0 for none.
    pub residual: usize,
}

/// The centroids of a shelf, rounded to 16-bit floats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Books {
    /// `[centroids, vector]`.
    pub main: Vec<f32>,
    /// `[residual, vector]`.
    pub residual: Vec<f32>,
}

/// Smallest value and range of a column: `w = minimum + range * normalised`.
pub type Span = (f32, f32);

/// Codebooks of more centroids are not tuned: the normal equations have their square.
const MOST_TUNED: usize = 1024;

/// A matrix in the order of the sweep with all the solver needs.
pub struct Problem<'a> {
    /// `[rows, columns]`.
    pub weights: &'a [f32],
    /// Columns.
    pub columns: usize,
    /// `U` in the order of the sweep; empty for the identity.
    pub upper: &'a [f32],
    /// `H_jj` in the order of the sweep; 1 where the inputs are not known.
    pub diagonal: &'a [f32],
    /// The columns' spans; `(0, 1)` without normalisation.
    pub spans: &'a [Span],
    /// Which way vectors run.
    pub axis: Axis,
}

fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|value| f16::from_f32(value).to_f32()).collect()
}

/// One sweep with given codebooks.
struct Pass<'a> {
    problem: &'a Problem<'a>,
    shelves: &'a [Shelf],
    searches: &'a [(Codebook, Codebook)],
    books: &'a [Books],
    /// Shelf of each position.
    shelf_of: &'a [usize],
    /// Inverse squared diagonal of `U`, for vectors across columns.
    importance: &'a [f32],
    /// Whether what the main codebook leaves is kept.
    collects: bool,
    codes: Vec<(u16, u16)>,
    left: Vec<f32>,
    pending: Vec<f32>,
    scratch: Vec<f32>,
    vector: Vec<f32>,
}

impl Pass<'_> {
    /// Replaces `self.vector` by its nearest sum of centroids.
    fn round(&mut self, shelf: usize, weights: &[f32]) {
        let width = self.shelves[shelf].vector;
        let (main, residual) = &self.searches[shelf];
        let first = main.nearest_weighted(&self.vector, weights, &mut self.scratch);
        let centroid = &self.books[shelf].main[first * width..];
        let mut rest: Vec<f32> = self.vector.iter().zip(centroid).map(|(v, c)| v - c).collect();
        if self.collects {
            let missing = width - rest.len();
            self.left.extend(rest.iter().copied().chain(std::iter::repeat_n(0.0, missing)));
        }
        let mut second = 0;
        if self.shelves[shelf].residual > 0 && !self.collects {
            second = residual.nearest_weighted(&rest, weights, &mut self.scratch);
            let centroid = &self.books[shelf].residual[second * width..];
            rest.iter_mut().zip(centroid).for_each(|(r, c)| *r = *c);
        } else {
            rest.fill(0.0);
        }
        self.vector.iter_mut().zip(centroid.iter().zip(&rest)).for_each(|(v, (c, r))| *v = c + r);
        self.codes.push((first as u16, second as u16));
    }
}

impl ColumnQuantizer for Pass<'_> {
    fn begin_block(&mut self, chunk: &Chunk<'_>, columns: std::ops::Range<usize>) {
        if self.problem.axis == Axis::Outputs {
            return;
        }
        let spans = self.problem.spans;
        self.pending = vec![0.0; columns.len() * chunk.rows];
        let weights = &self.importance[columns.clone()];
        for row in 0..chunk.rows {
            let normalised = |j: usize| (chunk.column(j)[row] - spans[j].0) / spans[j].1;
            self.vector = columns.clone().map(normalised).collect();
            self.round(0, weights);
            for (place, column) in columns.clone().enumerate() {
                let (minimum, range) = spans[column];
                self.pending[place * chunk.rows + row] = minimum + range * self.vector[place];
            }
        }
    }

    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let shelf = self.shelf_of[column];
        let width = self.shelves[shelf].vector;
        if self.problem.axis == Axis::Inputs {
            let place = column % width;
            values.copy_from_slice(&self.pending[place * values.len()..][..values.len()]);
            return;
        }
        let (minimum, range) = self.problem.spans[column];
        for piece in values.chunks_mut(width) {
            self.vector.clear();
            self.vector.extend(piece.iter().map(|value| (value - minimum) / range));
            self.round(shelf, &[]);
            piece.iter_mut().zip(&self.vector).for_each(|(value, v)| *value = minimum + range * v);
        }
    }
}

impl Problem<'_> {
    fn rows(&self) -> usize {
        self.weights.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Vectors of a shelf from the original weights, and the importance of each.
    fn vectors(&self, shelf: &Shelf) -> (Vec<f32>, Vec<f32>) {
        let (rows, width) = (self.rows(), shelf.vector);
        let at = |row: usize, column: usize| match (row < rows, column < shelf.positions.end) {
            (true, true) => {
                let (minimum, range) = self.spans[column];
                (self.weights[row * self.columns + column] - minimum) / range
            }
            _ => 0.0,
        };
        let weight = |column: usize| self.diagonal[column] * self.spans[column].1 * self.spans[column].1;
        let (mut vectors, mut weights) = (Vec::new(), Vec::new());
        match self.axis {
            Axis::Outputs => {
                for column in shelf.positions.clone() {
                    for start in (0..rows).step_by(width) {
                        vectors.extend((start..start + width).map(|row| at(row, column)));
                        weights.push(weight(column));
                    }
                }
            }
            Axis::Inputs => {
                for start in shelf.positions.clone().step_by(width) {
                    let mean =
                        (start..(start + width).min(self.columns)).map(weight).sum::<f32>() / width as f32;
                    for row in 0..rows {
                        vectors.extend((start..start + width).map(|column| at(row, column)));
                        weights.push(mean);
                    }
                }
            }
        }
        (vectors, weights)
    }

    /// Main codebooks by k-means over the original weights.
    pub fn fit(&self, shelves: &[Shelf], fit: &KMeans, is_weighted: bool) -> Vec<Books> {
        shelves
            .iter()
            .map(|shelf| {
                let (vectors, weights) = self.vectors(shelf);
                let weights = if is_weighted { weights } else { Vec::new() };
                let means = KMeans { clusters: shelf.centroids, ..*fit };
                let main = rounded(means.fit(&vectors, shelf.vector, &weights));
                Books { main, residual: vec![0.0; shelf.residual * shelf.vector] }
            })
            .collect()
    }

    /// The sweep; with `collects`, the main codebooks only, and what they leave of each vector.
    pub fn sweep(&self, shelves: &[Shelf], books: &[Books], collects: bool) -> (Vec<Coded>, Vec<Vec<f32>>) {
        let searches: Vec<(Codebook, Codebook)> = shelves
            .iter()
            .zip(books)
            .map(|(s, b)| (Codebook::new(&b.main, s.vector), Codebook::new(&b.residual, s.vector)))
            .collect();
        let mut shelf_of = vec![0; self.columns];
        for (index, shelf) in shelves.iter().enumerate() {
            shelf_of[shelf.positions.clone()].fill(index);
        }
        let importance: Vec<f32> = (0..self.columns)
            .map(|j| match self.upper.get(j * self.columns + j) {
                Some(u) => self.spans[j].1 * self.spans[j].1 / (u * u),
                None => 1.0,
            })
            .collect();
        let block = if self.axis == Axis::Inputs { shelves[0].vector } else { 0 };
        let mut weights = self.weights.to_vec();
        let passes = sweep(&mut weights, self.columns, self.upper, block, |_, _| Pass {
            problem: self,
            shelves,
            searches: &searches,
            books,
            shelf_of: &shelf_of,
            importance: &importance,
            collects,
            codes: Vec::new(),
            left: Vec::new(),
            pending: Vec::new(),
            scratch: Vec::new(),
            vector: Vec::new(),
        });
        let (mut coded, mut left) = (Vec::new(), vec![Vec::new(); shelves.len()]);
        for (index, shelf) in shelves.iter().enumerate() {
            let mut codes = Coded::empty(shelf, self.rows(), self.axis);
            for (chunk, pass) in passes.iter().enumerate() {
                let rows = (self.rows() - chunk * ROWS_PER_CHUNK).min(ROWS_PER_CHUNK);
                let (mut at, mut left_at) = (0, 0);
                let columns: Vec<usize> = match self.axis {
                    Axis::Outputs => (0..self.columns).collect(),
                    Axis::Inputs => (0..self.columns).step_by(shelf.vector).collect(),
                };
                for column in columns {
                    let own = shelf_of[column] == index;
                    let width = shelves[shelf_of[column]].vector;
                    let pieces = if self.axis == Axis::Outputs { rows.div_ceil(width) } else { rows };
                    for piece in 0..pieces {
                        if own {
                            let per_chunk = if self.axis == Axis::Outputs {
                                ROWS_PER_CHUNK / width
                            } else {
                                ROWS_PER_CHUNK
                            };
                            codes.set(column, chunk * per_chunk + piece, pass.codes[at]);
                            if collects {
                                left[index].extend_from_slice(&pass.left[left_at..left_at + width]);
                            }
                        }
                        at += 1;
                        left_at += width;
                    }
                }
            }
            coded.push(codes);
        }
        (coded, left)
    }

    /// Residual codebooks by k-means over what the main ones leave; equal weights, since a chunk's rows mix columns.
    pub fn fit_residuals(&self, shelves: &[Shelf], books: &mut [Books], fit: &KMeans) {
        if shelves.iter().all(|shelf| shelf.residual == 0) {
            return;
        }
        let (_, left) = self.sweep(shelves, books, true);
        for ((shelf, books), left) in shelves.iter().zip(books).zip(&left) {
            let means = KMeans { clusters: shelf.residual, ..*fit };
            books.residual = rounded(means.fit(left, shelf.vector, &self.left_weights(shelf)));
        }
    }

    /// The importance of each vector in the order in which [`Problem::sweep`] leaves them.
    fn left_weights(&self, shelf: &Shelf) -> Vec<f32> {
        let rows = self.rows();
        let weight = |column: usize| self.diagonal[column] * self.spans[column].1 * self.spans[column].1;
        let step = if self.axis == Axis::Inputs { shelf.vector } else { 1 };
        let mut weights = Vec::new();
        for first in (0..rows).step_by(ROWS_PER_CHUNK) {
            let rows = (rows - first).min(ROWS_PER_CHUNK);
            let pieces = if self.axis == Axis::Outputs { rows.div_ceil(shelf.vector) } else { rows };
            for column in shelf.positions.clone().step_by(step) {
                weights.extend(std::iter::repeat_n(weight(column), pieces));
            }
        }
        weights
    }

    /// Moves centroids to where, codes fixed, the error under the second moment is least: step 6 without gradients.
    /// `rebuild` gives the matrix that codes and books stand for.
    pub fn tune(
        &self,
        form: &Form,
        books: &mut Vec<Books>,
        coded: &[Coded],
        moment: &SecondMoment,
        order: &[u32],
    ) {
        let n = self.columns;
        let at = |p: usize, q: usize| f64::from(moment.sum()[order[p] as usize * n + order[q] as usize]);
        let mut in_order = vec![0.0f32; n * n];
        for p in 0..n {
            for q in 0..n {
                in_order[p * n + q] = at(p, q) as f32;
            }
        }
        let moment = SecondMoment::from_sum(n, moment.tokens(), in_order);
        let Some(moment) = moment.map(Arc::new) else { return };
        let knowledge = Knowledge::of_inputs(Arc::clone(&moment));
        let loss = |books: &[Books]| {
            let values = form.values(books, coded, self.spans);
            crate::distortion::distortion(self.weights, &values, n, &knowledge)
        };
        let mut least = loss(books);
        for index in 0..form.shelves.len() {
            for is_residual in [false, true] {
                let shelf = &form.shelves[index];
                let k = if is_residual { shelf.residual } else { shelf.centroids };
                if k == 0 || k > MOST_TUNED {
                    continue;
                }
                let values = form.values(books, coded, self.spans);
                let error: Vec<f32> = self.weights.iter().zip(&values).map(|(w, v)| w - v).collect();
                let Some(step) = self.step(shelf, &coded[index], is_residual, k, &error, &moment) else {
                    continue;
                };
                let mut moved = books.clone();
                let book = if is_residual { &mut moved[index].residual } else { &mut moved[index].main };
                book.iter_mut().zip(&step).for_each(|(c, s)| *c = f16::from_f32(*c + *s as f32).to_f32());
                let found = loss(&moved);
                if found < least && moved.iter().all(Books::is_finite) {
                    (least, *books) = (found, moved);
                }
            }
        }
    }

    /// The move of one codebook that removes most of `error`: normal equations over its centroids.
    fn step(
        &self,
        shelf: &Shelf,
        coded: &Coded,
        is_residual: bool,
        k: usize,
        error: &[f32],
        moment: &SecondMoment,
    ) -> Option<Vec<f64>> {
        let (rows, n, v) = (self.rows(), self.columns, shelf.vector);
        let mut pulled = vec![0.0f32; rows * n];
        let (shape, square) = (Layout::row_major(rows, n), Layout::row_major(n, n));
        multiply_add(&mut pulled, shape, 0.0, error, shape, moment.sum(), square, 1.0);
        let (mut normal, mut right) = (vec![0.0f64; k * k], vec![0.0f64; k * v]);
        let code = |column: usize, piece: usize| {
            let (main, residual) = coded.get(column, piece);
            usize::from(if is_residual { residual } else { main })
        };
        for piece in 0..rows.div_ceil(v) {
            for p in shelf.positions.clone() {
                let (a, range) = (code(p, piece), f64::from(self.spans[p].1));
                for r in 0..v.min(rows - piece * v) {
                    right[a * v + r] += range * f64::from(pulled[(piece * v + r) * n + p]);
                }
                let row = &mut normal[a * k..(a + 1) * k];
                let moments = &moment.sum()[p * n..(p + 1) * n];
                for q in shelf.positions.clone() {
                    row[code(q, piece)] += range * f64::from(self.spans[q].1) * f64::from(moments[q]);
                }
            }
        }
        let ridge = 1e-6 * (0..k).map(|a| normal[a * k + a]).sum::<f64>() / k as f64;
        (0..k).for_each(|a| normal[a * k + a] += ridge.max(1e-30));
        solve_positive(&normal, k, &right, v)
    }
}

impl Books {
    /// Whether every centroid fits 16-bit floats.
    pub fn is_finite(&self) -> bool {
        self.main.iter().chain(&self.residual).all(|value| value.is_finite())
    }
}
