//! Choosing a model for each class, and classes that share one.

use super::Columns;
use super::counts::{CellCounts, count};
use crate::bits::golomb::exp_golomb_bits;
use crate::error::Result;
use crate::models::header::{self, FittedTable};
use crate::models::{CellRange, Frequencies, Parametric, Shape, log2_fixed};

/// Precision of all tables of this module.
pub(super) const PROBABILITY_BITS: u32 = 12;
/// Greatest radius: 255 cells and an escape.
pub(super) const MAX_RADIUS: u32 = 127;

/// How the codes of some classes are coded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Model {
    /// All codes are zero.
    Zero,
    /// Symbols under a table.
    Coded(CodedModel),
}

/// Symbols `cell + radius`, one more for cells outside, and raw low bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodedModel {
    /// A cell holds `1 << shift` codes; the low bits are raw.
    pub shift: u32,
    /// Cells `-radius` to `radius` have a symbol each.
    pub radius: u32,
    /// Whether a last symbol stands for all other cells.
    pub has_escape: bool,
    /// The parametric table, used as it is or as prediction of a learned one.
    pub base: Parametric,
    /// For a learned table: exact frequencies and the precision they are stored with.
    pub learned: Option<(Frequencies, u32)>,
    /// The table in use.
    pub frequencies: Frequencies,
}

impl CodedModel {
    pub(super) fn cells(shift: u32, radius: u32) -> CellRange {
        CellRange { first: -i64::from(radius), count: 2 * radius as usize + 1, shift }
    }

    /// Order of the Exp-Golomb code of escaped magnitudes.
    pub(super) fn escape_order(radius: u32) -> u32 {
        (radius + 2).ilog2()
    }
}

/// Models of all classes that occur.
#[derive(Debug, Clone)]
pub struct FittedModels {
    pub(super) models: Vec<Model>,
    /// Class and index of its model, in the order of classes; indexes first occur in order.
    pub(super) classes: Vec<(u8, usize)>,
    estimated_bits: f64,
}

impl FittedModels {
    /// The distinct models.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model of a class, if the class occurred.
    pub fn model_of(&self, class: u8) -> Option<&Model> {
        let slot = self.classes.binary_search_by_key(&class, |&(c, _)| c).ok()?;
        self.models.get(self.classes[slot].1)
    }

    /// Estimated bits of headers and codes together, for the columns these models were fitted to.
    pub fn estimated_bits(&self) -> f64 {
        self.estimated_bits
    }

    /// Bits of one code in one class. Codes the model cannot express cost what an escape would.
    pub fn bits(&self, class: u8, code: i32) -> f32 {
        match self.model_of(class) {
            Some(Model::Coded(model)) => {
                let cell = i64::from(code) >> model.shift;
                let raw = model.shift as f32;
                if cell.unsigned_abs() <= u64::from(model.radius) {
                    let symbol = (cell + i64::from(model.radius)) as usize;
                    return raw + length(model.frequencies.code_length_fixed(symbol));
                }
                let escape = if model.has_escape { 2 * model.radius as usize + 1 } else { usize::MAX };
                let beyond = (cell.unsigned_abs() - u64::from(model.radius) - 1) as u32;
                let order = CodedModel::escape_order(model.radius);
                raw + length(model.frequencies.code_length_fixed(escape))
                    + 1.0
                    + exp_golomb_bits(beyond, order) as f32
            }
            _ if code == 0 => 0.0,
            _ => UNCODABLE_BITS + 2.0 + 2.0 * (code.unsigned_abs() as f32).log2(),
        }
    }

    /// Bits of the codes `-bound..=bound` in one class: entry `code + bound`.
    pub fn code_lengths(&self, class: u8, bound: u32) -> Vec<f32> {
        let bound = bound.min(1 << 16) as i32;
        (-bound..=bound).map(|code| self.bits(class, code)).collect()
    }
}

/// What a symbol of frequency zero is taken to cost: a little more than the rarest one.
const UNCODABLE_BITS: f32 = 14.0;

fn length(fixed: Option<u32>) -> f32 {
    fixed.map_or(UNCODABLE_BITS, |length| length as f32 / 65536.0)
}

/// Whether learned tables are tried or only estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    Full,
    Estimate,
}

struct Candidate {
    counts: CellCounts,
    model: Model,
    bits: f64,
}

/// Chooses models; neighbouring classes (in class order) share one while that saves bits.
pub(super) fn fit(columns: &Columns<'_>, effort: Effort) -> Result<FittedModels> {
    let counted = count(columns);
    let names: Vec<u8> = counted.iter().map(|&(class, _)| class).collect();
    let mut groups: Vec<(usize, Candidate)> = Vec::with_capacity(counted.len());
    for (_, counts) in counted {
        groups.push((1, candidate(counts, effort)?));
    }
    merge(&mut groups, effort)?;
    let mut models: Vec<Model> = Vec::new();
    let mut classes = Vec::with_capacity(names.len());
    let mut names = names.into_iter();
    // Two bytes for lengths and flags.
    let mut estimated_bits = if columns.codes().is_empty() { 0.0 } else { 16.0 };
    for (members, group) in groups {
        let existing =
            if group.model == Model::Zero { models.iter().position(|m| *m == Model::Zero) } else { None };
        let index = existing.unwrap_or_else(|| {
            models.push(group.model);
            models.len() - 1
        });
        classes.extend(names.by_ref().take(members).map(|class| (class, index)));
        estimated_bits += group.bits;
    }
    Ok(FittedModels { models, classes, estimated_bits })
}

fn merge(groups: &mut Vec<(usize, Candidate)>, effort: Effort) -> Result<()> {
    let try_pair = |left: &Candidate, right: &Candidate| -> Result<Option<(f64, Candidate)>> {
        if left.counts.shift != right.counts.shift || left.counts.is_zero() != right.counts.is_zero() {
            return Ok(None);
        }
        let both = candidate(left.counts.merged(&right.counts), effort)?;
        let gain = left.bits + right.bits - both.bits;
        Ok((gain > 0.0).then_some((gain, both)))
    };
    let mut pairs = Vec::with_capacity(groups.len());
    for pair in groups.windows(2) {
        pairs.push(try_pair(&pair[0].1, &pair[1].1)?);
    }
    loop {
        let best = (0..pairs.len())
            .filter(|&index| pairs[index].is_some())
            .max_by(|&a, &b| gain(&pairs[a]).total_cmp(&gain(&pairs[b])).then(b.cmp(&a)));
        let Some(index) = best else { return Ok(()) };
        let Some((_, both)) = pairs.remove(index) else { return Ok(()) };
        let right = groups.remove(index + 1);
        groups[index] = (groups[index].0 + right.0, both);
        if index > 0 {
            pairs[index - 1] = try_pair(&groups[index - 1].1, &groups[index].1)?;
        }
        if index < pairs.len() {
            pairs[index] = try_pair(&groups[index].1, &groups[index + 1].1)?;
        }
    }
}

fn gain(pair: &Option<(f64, Candidate)>) -> f64 {
    pair.as_ref().map_or(0.0, |&(gain, _)| gain)
}

/// The cheapest model for these counts.
fn candidate(counts: CellCounts, effort: Effort) -> Result<Candidate> {
    if counts.is_zero() {
        return Ok(Candidate { counts, model: Model::Zero, bits: 1.0 });
    }
    let greatest = counts.radius().clamp(1, MAX_RADIUS);
    let mut radii = vec![greatest];
    if effort == Effort::Full {
        for share in [8192, 2048, 512] {
            // The least radius that leaves at most one code in `share` outside.
            let mut outside = counts.outside.len() as u64;
            let mut radius = greatest;
            while radius > 1 {
                outside += counts.of(i64::from(radius)) + counts.of(-i64::from(radius));
                if outside * share > counts.total {
                    break;
                }
                radius -= 1;
            }
            if radii.last() != Some(&radius) {
                radii.push(radius);
            }
        }
    }
    let mut best: Option<(CodedModel, f64)> = None;
    for radius in radii {
        let (model, bits) = with_radius(&counts, radius, effort)?;
        if best.as_ref().is_none_or(|&(_, b)| bits < b) {
            best = Some((model, bits));
        }
    }
    let (model, bits) = best.ok_or(crate::error::corrupt("model"))?;
    Ok(Candidate { counts, model: Model::Coded(model), bits })
}

fn with_radius(counts: &CellCounts, radius: u32, effort: Effort) -> Result<(CodedModel, f64)> {
    let (mut symbols, escapes) = counts.symbols(radius);
    let has_escape = escapes > 0;
    let mut raw_bits = counts.total as f64 * f64::from(counts.shift);
    if has_escape {
        symbols.push(escapes);
        let order = CodedModel::escape_order(radius);
        for (magnitude, count) in counts.beyond(radius) {
            raw_bits += count as f64 * f64::from(1 + exp_golomb_bits(magnitude - radius - 1, order));
        }
    }
    let cells = CodedModel::cells(counts.shift, radius);
    let base = search(counts, &symbols, cells, has_escape);
    let plain = base.frequencies(cells, has_escape, PROBABILITY_BITS)?;
    let parametric_bits = plain.cost_fixed(&symbols).unwrap_or(u64::MAX) as f64 / 65536.0;
    // Shape, scale, dead zone, radius, flags: about 20 bits, somewhat less once the header has adapted.
    let side_bits = 18.0 + raw_bits;
    let mut model = CodedModel {
        shift: counts.shift,
        radius,
        has_escape,
        base,
        learned: None,
        frequencies: plain.clone(),
    };
    let mut bits = parametric_bits;
    match effort {
        Effort::Full => {
            let FittedTable { frequencies, exact, precision, total_bits, .. } =
                header::fit(&symbols, PROBABILITY_BITS, Some(&plain))?;
            if total_bits < parametric_bits {
                model.learned = Some((exact, precision));
                model.frequencies = frequencies;
                bits = total_bits;
            }
        }
        Effort::Estimate => {
            let exact = crate::models::normalize(&symbols, PROBABILITY_BITS)?;
            let entropy = exact.cost_fixed(&symbols).unwrap_or(u64::MAX) as f64 / 65536.0;
            let used = symbols.iter().filter(|&&count| count > 0).count();
            let learned = entropy + 2.5 * used as f64;
            if learned < parametric_bits {
                model.frequencies = exact;
                bits = learned;
            }
        }
    }
    Ok((model, bits + side_bits))
}

/// The parametric model with the least code length, by descent from the moments.
fn search(counts: &CellCounts, symbols: &[u64], cells: CellRange, has_escape: bool) -> Parametric {
    let cost = |model: &Parametric| -> u64 {
        let lengths = model.ideal_lengths(cells, has_escape);
        symbols
            .iter()
            .zip(lengths)
            .map(|(&count, length)| count.saturating_mul(u64::from(length)))
            .fold(0, u64::saturating_add)
    };
    let start = scale_from_moments(counts);
    let mut best = Parametric::new(Shape::Gaussian, start);
    let mut best_cost = u64::MAX;
    for shape in Shape::ALL {
        let mut here = Parametric { shape, ..best };
        if best_cost == u64::MAX {
            here.dead_zone = 0;
        }
        let mut here_cost = cost(&here);
        for stride in [8u8, 3, 1] {
            loop {
                let zone = 1.min(stride);
                let neighbours = [
                    Parametric { scale_index: here.scale_index.saturating_sub(stride), ..here },
                    Parametric { scale_index: here.scale_index.saturating_add(stride), ..here },
                    Parametric { dead_zone: here.dead_zone.saturating_sub(zone), ..here },
                    Parametric { dead_zone: (here.dead_zone + zone).min(7), ..here },
                ];
                let mut moved = false;
                for neighbour in neighbours {
                    let neighbour_cost = if neighbour == here { u64::MAX } else { cost(&neighbour) };
                    if neighbour_cost < here_cost {
                        (here, here_cost, moved) = (neighbour, neighbour_cost, true);
                    }
                }
                if !moved {
                    break;
                }
            }
        }
        if here_cost < best_cost {
            (best, best_cost) = (here, here_cost);
        }
    }
    best
}

fn scale_from_moments(counts: &CellCounts) -> u8 {
    let mut sum = 0u64;
    for cell in -super::counts::HALF..super::counts::HALF {
        let square = if counts.shift == 0 { 4 * cell * cell } else { (2 * cell + 1) * (2 * cell + 1) };
        sum = sum.saturating_add(counts.of(cell).saturating_mul(square as u64));
    }
    // Variance of cells in 1/4096, at least that of a 1/16 deviation.
    let variance = (u128::from(sum) * 1024 / u128::from(counts.total.max(1))).clamp(16, 1 << 60) as u64;
    // 16 * (log2(deviation) + 4), deviation in codes.
    let log = i64::from(log2_fixed(variance)) - (12 << 16);
    let index = 8 * log / 65536 + 64 + 16 * i64::from(counts.shift);
    index.clamp(0, 255) as u8
}
