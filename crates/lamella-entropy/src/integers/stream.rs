//! Codes to symbols to bytes, and back.

use super::Columns;
use super::fit::{CodedModel, FittedModels, Model};
use super::header::{Fields, table_of};
use crate::bits::golomb::{read_exp_golomb, write_exp_golomb};
use crate::bits::{BitReader, BitWriter};
use crate::error::{Error, Result, corrupt};
use crate::models::Frequencies;
use crate::range::{RangeDecoder, RangeEncoder};
use crate::rans::{self, Assignment, DecodeTables, EncodeTables, Lanes, Run};
use crate::varint::{read_varint, take, write_varint};

/// Codes columns with models fitted to them.
///
/// # Errors
/// None for valid columns; the type leaves room.
pub fn encode(columns: &Columns<'_>) -> Result<Vec<u8>> {
    encode_with(columns, &super::fit(columns)?)
}

/// Codes columns with given models.
///
/// # Errors
/// [`Error::UncodableSymbol`] for a code (position in column order) that its model cannot express; never for the
/// columns the models were fitted to by [`super::fit`].
pub fn encode_with(columns: &Columns<'_>, fitted: &FittedModels) -> Result<Vec<u8>> {
    if columns.codes().is_empty() {
        return Ok(Vec::new());
    }
    // Tables as the decoder will have them; models without symbols have none.
    let mut tables: Vec<Frequencies> = Vec::new();
    let mut slots = Vec::with_capacity(fitted.models.len());
    for model in &fitted.models {
        slots.push(tables.len());
        if let Model::Coded(model) = model {
            tables.push(table_of(model)?);
        }
    }
    let (symbols, runs, raw) = to_symbols(columns, fitted, &slots)?;
    let raw = raw.finish();
    let ideal_bits: f64 = ideal_bits(&symbols, &runs, &tables);
    let lanes = Lanes::for_payload((ideal_bits / 8.0) as usize);
    let mut payload = Vec::new();
    if !symbols.is_empty() {
        rans::encode_chunks(
            &mut payload,
            &symbols,
            lanes,
            &EncodeTables::new(&tables)?,
            &Assignment::Runs(&runs),
        )?;
    }
    let header = write_header(fitted, lanes, !raw.is_empty());
    let mut bytes = Vec::with_capacity(header.len() + payload.len() + raw.len() + 8);
    write_varint(&mut bytes, header.len() as u64);
    bytes.extend_from_slice(&header);
    if !raw.is_empty() {
        write_varint(&mut bytes, payload.len() as u64);
    }
    bytes.extend_from_slice(&payload);
    bytes.extend_from_slice(&raw);
    Ok(bytes)
}

fn ideal_bits(symbols: &[u8], runs: &[Run], tables: &[Frequencies]) -> f64 {
    let mut counts = vec![0u64; 256 * tables.len()];
    let mut start = 0;
    for run in runs {
        let counts = &mut counts[256 * run.table..256 * (run.table + 1)];
        symbols[start..start + run.length].iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
        start += run.length;
    }
    let cost =
        |(table, counts): (&Frequencies, &[u64])| table.cost_fixed(counts).unwrap_or(0) as f64 / 65536.0;
    tables.iter().zip(counts.chunks(256)).map(cost).sum()
}

fn to_symbols(
    columns: &Columns<'_>,
    fitted: &FittedModels,
    slots: &[usize],
) -> Result<(Vec<u8>, Vec<Run>, BitWriter)> {
    let mut symbols = Vec::with_capacity(columns.codes().len());
    let mut runs: Vec<Run> = Vec::new();
    let mut raw = BitWriter::new();
    for (index, (class, codes)) in columns.iter().enumerate() {
        let position = index * columns.column_length();
        let slot = fitted.classes.binary_search_by_key(&class, |&(c, _)| c);
        let Ok(slot) = slot else {
            return Err(Error::OutOfRange {
                name: "column class",
                found: i64::from(class),
                low: 0,
                high: 255,
            });
        };
        let model_index = fitted.classes[slot].1;
        let Model::Coded(model) = &fitted.models[model_index] else {
            if let Some(offset) = codes.iter().position(|&code| code != 0) {
                return Err(Error::UncodableSymbol {
                    symbol: codes[offset] as u32,
                    position: position + offset,
                });
            }
            continue;
        };
        push_run(&mut runs, codes.len(), slots[model_index]);
        let radius = i64::from(model.radius);
        for (offset, &code) in codes.iter().enumerate() {
            let cell = i64::from(code >> model.shift);
            if cell.abs() <= radius {
                symbols.push((cell + radius) as u8);
            } else if model.has_escape {
                symbols.push((2 * radius + 1) as u8);
                raw.write(u32::from(cell < 0), 1);
                write_exp_golomb(
                    &mut raw,
                    (cell.abs() - radius - 1) as u32,
                    CodedModel::escape_order(model.radius),
                );
            } else {
                return Err(Error::UncodableSymbol { symbol: code as u32, position: position + offset });
            }
            if model.shift > 0 {
                raw.write(code as u32, model.shift);
            }
        }
    }
    Ok((symbols, runs, raw))
}

fn push_run(runs: &mut Vec<Run>, length: usize, table: usize) {
    match runs.last_mut() {
        Some(run) if run.table == table => run.length += length,
        _ => runs.push(Run { length, table }),
    }
}

fn write_header(fitted: &FittedModels, lanes: Lanes, has_raw: bool) -> Vec<u8> {
    let mut encoder = RangeEncoder::new();
    encoder.encode_raw(u32::from(lanes.index()), 2);
    encoder.encode_raw(u32::from(has_raw), 1);
    let mut fields = Fields::default();
    let mut known = 0;
    for &(_, index) in &fitted.classes {
        fields.write_index(&mut encoder, index, known);
        if index == known {
            fields.write_model(&mut encoder, &fitted.models[index]);
            known += 1;
        }
    }
    encoder.finish()
}

/// Decodes the codes of `classes.len()` columns of `column_length` codes, in column order.
///
/// Allocates about five bytes per code, of which there are at most `max_output`, which the caller chooses.
///
/// # Errors
/// [`Error::OutputTooLarge`] above `max_output`; [`Error::Truncated`], [`Error::Corrupt`] and others for bytes that
/// [`encode`] did not write.
pub fn decode(bytes: &[u8], column_length: usize, classes: &[u8], max_output: usize) -> Result<Vec<i32>> {
    let needed = column_length as u128 * classes.len() as u128;
    if needed > max_output as u128 {
        let needed = u64::try_from(needed).unwrap_or(u64::MAX);
        return Err(Error::OutputTooLarge { needed, allowed: max_output as u64 });
    }
    if needed == 0 {
        return if bytes.is_empty() { Ok(Vec::new()) } else { Err(corrupt("bytes left over")) };
    }
    let mut input = bytes;
    let header_length = usize::try_from(read_varint(&mut input)?).unwrap_or(usize::MAX);
    let header = take(&mut input, header_length)?;
    let (lanes, has_raw, models, of_class) = read_header(header, classes)?;
    let payload = if has_raw {
        let length = usize::try_from(read_varint(&mut input)?).unwrap_or(usize::MAX);
        take(&mut input, length)?
    } else {
        std::mem::take(&mut input)
    };
    let mut tables = Vec::new();
    let mut slots = Vec::with_capacity(models.len());
    for model in &models {
        slots.push(tables.len());
        if let Model::Coded(model) = model {
            tables.push(model.frequencies.clone());
        }
    }
    let mut runs = Vec::new();
    for &class in classes {
        let index = of_class[usize::from(class)];
        if matches!(models[index], Model::Coded(_)) {
            push_run(&mut runs, column_length, slots[index]);
        }
    }
    let mut symbols = vec![0u8; runs.iter().map(|run| run.length).sum()];
    if symbols.is_empty() {
        if !payload.is_empty() {
            return Err(corrupt("payload of columns that are all zero"));
        }
    } else {
        rans::decode_chunks(
            payload,
            lanes,
            &DecodeTables::new(&tables)?,
            &Assignment::Runs(&runs),
            &mut symbols,
        )?;
    }
    let mut codes = vec![0i32; needed as usize];
    let mut raw = BitReader::new(input);
    let mut rest = symbols.as_slice();
    for (&class, column) in classes.iter().zip(codes.chunks_exact_mut(column_length)) {
        if let Model::Coded(model) = &models[of_class[usize::from(class)]] {
            let (these, others) = rest.split_at(column_length);
            rest = others;
            from_symbols(these, model, &mut raw, column)?;
        }
    }
    if raw.remaining_bits() >= 8 {
        return Err(corrupt("raw bits left over"));
    }
    Ok(codes)
}

fn from_symbols(
    symbols: &[u8],
    model: &CodedModel,
    raw: &mut BitReader<'_>,
    column: &mut [i32],
) -> Result<()> {
    let radius = model.radius as i32;
    if model.shift == 0 {
        for (code, &symbol) in column.iter_mut().zip(symbols) {
            *code = i32::from(symbol) - radius;
        }
        let escape = (2 * radius + 1) as u8;
        if !model.has_escape || !symbols.contains(&escape) {
            return Ok(());
        }
    }
    for (code, &symbol) in column.iter_mut().zip(symbols) {
        let mut cell = i64::from(symbol) - i64::from(radius);
        if model.has_escape && cell > i64::from(radius) {
            let negative = raw.read(1)? == 1;
            let beyond = read_exp_golomb(raw, CodedModel::escape_order(model.radius))?;
            let magnitude = i64::from(beyond) + i64::from(radius) + 1;
            cell = if negative { -magnitude } else { magnitude };
        }
        let low = if model.shift > 0 { raw.read(model.shift)? } else { 0 };
        let value = (cell << model.shift) | i64::from(low);
        *code = i32::try_from(value).map_err(|_| corrupt("code above 32 bits"))?;
    }
    Ok(())
}

type Header = (Lanes, bool, Vec<Model>, [usize; 256]);

fn read_header(bytes: &[u8], classes: &[u8]) -> Result<Header> {
    let mut decoder = RangeDecoder::new(bytes);
    let lanes = Lanes::ALL[decoder.decode_raw(2) as usize & 3];
    let has_raw = decoder.decode_raw(1) == 1;
    let mut present = [false; 256];
    for &class in classes {
        present[usize::from(class)] = true;
    }
    let mut fields = Fields::default();
    let mut models = Vec::new();
    let mut of_class = [0usize; 256];
    for class in (0..256).filter(|&class| present[class]) {
        let index = fields.read_index(&mut decoder, models.len())?;
        if index == models.len() {
            models.push(fields.read_model(&mut decoder)?);
        }
        of_class[class] = index;
    }
    if decoder.overrun() > 4 {
        return Err(Error::Truncated { needed: bytes.len() + 1, found: bytes.len() });
    }
    Ok((lanes, has_raw, models, of_class))
}
