//! The stored form of VPTQ: codebooks and packed indices.

use half::f16;
use lamella_entropy::bits::{pack, packed_bytes, unpack};

use super::{Axis, Books, Shelf, Span};

/// Indices of a shelf: main and residual, for each column (or group of columns) and piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coded {
    first: usize,
    step: usize,
    pieces: usize,
    codes: Vec<(u16, u16)>,
}

impl Coded {
    /// No index yet, for a shelf of a matrix with so many rows.
    pub fn empty(shelf: &Shelf, rows: usize, axis: Axis) -> Self {
        let (step, pieces) = match axis {
            Axis::Outputs => (1, rows.div_ceil(shelf.vector)),
            Axis::Inputs => (shelf.vector, rows),
        };
        let groups = shelf.positions.len().div_ceil(step);
        Self { first: shelf.positions.start, step, pieces, codes: vec![(0, 0); groups * pieces] }
    }
    /// The indices at a position of the sweep.
    pub fn get(&self, column: usize, piece: usize) -> (u16, u16) {
        self.codes[(column - self.first) / self.step * self.pieces + piece]
    }
    /// Sets them.
    pub fn set(&mut self, column: usize, piece: usize, codes: (u16, u16)) {
        self.codes[(column - self.first) / self.step * self.pieces + piece] = codes;
    }
}

/// What a decoder must know beside the payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Columns that share codebooks, in the order of the sweep.
    pub shelves: Vec<Shelf>,
    /// Which way vectors run.
    pub axis: Axis,
    /// Whether columns are normalised.
    pub is_normalized: bool,
    /// Whether an order of columns is stored.
    pub has_order: bool,
}

/// What a payload holds.
pub type Read = (Vec<Books>, Vec<Coded>, Vec<Span>, Vec<u32>);

fn width(centroids: usize) -> u32 {
    usize::BITS - centroids.saturating_sub(1).leading_zeros()
}

impl Form {
    fn order_width(&self) -> usize {
        if self.columns <= 1 << 16 { 2 } else { 4 }
    }

    /// Indices of a shelf.
    fn count(&self, shelf: &Shelf) -> Option<usize> {
        match self.axis {
            Axis::Outputs => shelf.positions.len().checked_mul(self.rows.div_ceil(shelf.vector)),
            Axis::Inputs => shelf.positions.len().div_ceil(shelf.vector).checked_mul(self.rows),
        }
    }

    /// Bytes of the payload; `None` where they cannot be counted.
    pub fn stored_bytes(&self) -> Option<usize> {
        let order = if self.has_order { self.columns.checked_mul(self.order_width())? } else { 0 };
        let spans = if self.is_normalized { self.columns.checked_mul(4)? } else { 0 };
        let mut sum = order.checked_add(spans)?;
        for shelf in &self.shelves {
            let count = self.count(shelf)?;
            for centroids in [shelf.centroids, shelf.residual] {
                count.checked_mul(16)?;
                sum = sum.checked_add(centroids * shelf.vector * 2)?;
                sum = sum.checked_add(packed_bytes(count, width(centroids)))?;
            }
        }
        Some(sum)
    }

    /// Writes everything.
    ///
    /// # Errors
    /// An index that does not fit its width: a solver's mistake.
    pub fn encode(
        &self,
        books: &[Books],
        coded: &[Coded],
        spans: &[Span],
        order: &[u32],
    ) -> Result<Vec<u8>, String> {
        let mut payload = Vec::with_capacity(self.stored_bytes().unwrap_or(0));
        let float = |payload: &mut Vec<u8>, value: f32| {
            payload.extend_from_slice(&f16::from_f32(value).to_le_bytes());
        };
        if self.has_order {
            let width = self.order_width();
            order.iter().for_each(|column| payload.extend_from_slice(&column.to_le_bytes()[..width]));
        }
        if self.is_normalized {
            for &(minimum, range) in spans {
                float(&mut payload, minimum);
                float(&mut payload, range);
            }
        }
        for ((shelf, books), coded) in self.shelves.iter().zip(books).zip(coded) {
            books.main.iter().chain(&books.residual).for_each(|&value| float(&mut payload, value));
            let main: Vec<u16> = coded.codes.iter().map(|code| code.0).collect();
            payload.extend(pack(&main, width(shelf.centroids)).map_err(|error| error.to_string())?);
            if shelf.residual > 0 {
                let residual: Vec<u16> = coded.codes.iter().map(|code| code.1).collect();
                payload.extend(pack(&residual, width(shelf.residual)).map_err(|error| error.to_string())?);
            }
        }
        Ok(payload)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// A sentence with the numbers that do not fit.
    pub fn decode(&self, payload: &[u8]) -> Result<Read, String> {
        let needed = self.stored_bytes().ok_or("its weights are too many to count")?;
        if needed != payload.len() {
            return Err(format!("needs {needed} bytes, found {}", payload.len()));
        }
        if self.rows == 0 || self.columns == 0 {
            return Err("it holds no weight".to_owned());
        }
        let mut rest = payload;
        let mut take = |bytes: usize| {
            let (taken, left) = rest.split_at(bytes);
            rest = left;
            taken
        };
        let floats = |bytes: &[u8]| -> Result<Vec<f32>, String> {
            let read = bytes.as_chunks::<2>().0.iter().map(|&pair| f16::from_le_bytes(pair).to_f32());
            let read: Vec<f32> = read.collect();
            match read.iter().all(|value| value.is_finite()) {
                true => Ok(read),
                false => Err("a 16-bit float is not finite".to_owned()),
            }
        };
        let mut order: Vec<u32> = Vec::new();
        if self.has_order {
            let width = self.order_width();
            let mut seen = vec![false; self.columns];
            for chunk in take(self.columns * width).chunks_exact(width) {
                let column = chunk.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte));
                match seen.get_mut(column as usize) {
                    Some(slot) if !*slot => *slot = true,
                    _ => {
                        return Err(format!("column {column} of {} stands twice in the order", self.columns));
                    }
                }
                order.push(column);
            }
        } else {
            order.extend(0..self.columns as u32);
        }
        let spans: Vec<Span> = match self.is_normalized {
            true => floats(take(4 * self.columns))?.as_chunks::<2>().0.iter().map(|s| (s[0], s[1])).collect(),
            false => vec![(0.0, 1.0); self.columns],
        };
        let (mut books, mut coded) = (Vec::new(), Vec::new());
        for shelf in &self.shelves {
            let main = floats(take(2 * shelf.centroids * shelf.vector))?;
            let residual = floats(take(2 * shelf.residual * shelf.vector))?;
            let mut codes = Coded::empty(shelf, self.rows, self.axis);
            let count = codes.codes.len();
            for (part, centroids) in [shelf.centroids, shelf.residual].into_iter().enumerate() {
                if centroids == 0 {
                    continue;
                }
                let width = width(centroids);
                let read = match width {
                    0 => vec![0; count],
                    _ => unpack(take(packed_bytes(count, width)), width, count).map_err(|e| e.to_string())?,
                };
                for (code, value) in codes.codes.iter_mut().zip(read) {
                    if usize::from(value) >= centroids {
                        return Err(format!("index {value} of {centroids} centroids"));
                    }
                    *(if part == 0 { &mut code.0 } else { &mut code.1 }) = value;
                }
            }
            books.push(Books { main, residual });
            coded.push(codes);
        }
        Ok((books, coded, spans, order))
    }

    /// The matrix in the order of the sweep.
    pub fn values(&self, books: &[Books], coded: &[Coded], spans: &[Span]) -> Vec<f32> {
        let mut values = vec![0.0f32; self.rows * self.columns];
        for ((shelf, books), coded) in self.shelves.iter().zip(books).zip(coded) {
            let v = shelf.vector;
            for column in shelf.positions.clone() {
                let (minimum, range) = spans[column];
                for row in 0..self.rows {
                    let (piece, place) = match self.axis {
                        Axis::Outputs => (row / v, row % v),
                        Axis::Inputs => (row, (column - shelf.positions.start) % v),
                    };
                    let (main, residual) = coded.get(column, piece);
                    let mut value = books.main[usize::from(main) * v + place];
                    if shelf.residual > 0 {
                        value += books.residual[usize::from(residual) * v + place];
                    }
                    values[row * self.columns + column] = minimum + range * value;
                }
            }
        }
        values
    }
}
