//! The calibration pass.

use std::collections::BTreeMap;

use lamella_codec::TensorSource;

use super::{Detail, InputAccumulator, InputStatistics, Progress, Sink, StatisticsError};
use crate::{Hidden, Network, Observer, Positions};

/// How a calibration pass is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationOptions {
    /// What is kept of every input key; the default keeps the full second moment.
    pub detail: Detail,
    /// Bytes of hidden state that go through a block at a time. More than this, and a network that is not resident
    /// reads every block once per part. Default 256 MiB.
    pub batch_bytes: usize,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self { detail: Detail::Full, batch_bytes: 256 << 20 }
    }
}

/// Collects what a block shows, one accumulator per input key.
struct Collector {
    detail: Detail,
    seen: BTreeMap<String, InputAccumulator>,
}

impl Observer for Collector {
    fn observe(&mut self, input: &str, features: usize, rows: &[f32]) {
        if let Some(accumulator) = self.seen.get_mut(input) {
            accumulator.push(rows);
        } else {
            let mut accumulator = InputAccumulator::new(features, self.detail);
            accumulator.push(rows);
            self.seen.insert(input.to_owned(), accumulator);
        }
    }
}

impl Collector {
    fn new(detail: Detail) -> Self {
        Self { detail, seen: BTreeMap::new() }
    }

    /// Finishes every key in order, checks it and hands it on.
    fn drain(
        self,
        mut take: impl FnMut(&str, InputStatistics) -> Result<(), StatisticsError>,
    ) -> Result<(), StatisticsError> {
        for (key, accumulator) in self.seen {
            let seen = accumulator.finish();
            seen.check_finite(&key)?;
            take(&key, seen)?;
        }
        Ok(())
    }
}

/// Runs one block over batches and returns what its linears saw; the batches come out behind the block.
///
/// `source` gives other weights than the network's own: the already quantised blocks of a sequential pass. Every
/// batch reads the block again unless the network is resident.
///
/// # Errors
/// Arrays that cannot be read; inputs that are not finite.
pub fn observe_block(
    network: &Network,
    index: usize,
    batches: &mut [Hidden],
    source: Option<&dyn TensorSource>,
    detail: Detail,
) -> Result<BTreeMap<String, InputStatistics>, StatisticsError> {
    let mut found = BTreeMap::new();
    run_block(network, index, batches, source, detail)?.drain(|key, seen| {
        found.insert(key.to_owned(), seen);
        Ok(())
    })?;
    Ok(found)
}

fn run_block(
    network: &Network,
    index: usize,
    batches: &mut [Hidden],
    source: Option<&dyn TensorSource>,
    detail: Detail,
) -> Result<Collector, StatisticsError> {
    let mut collector = Collector::new(detail);
    for hidden in batches {
        match source {
            None => network.block(index, hidden, Some(&mut collector))?,
            Some(source) => network.block_with(index, source, hidden, Some(&mut collector))?,
        }
    }
    Ok(collector)
}

/// Takes the statistics of a network over token sequences, block by block.
///
/// Memory holds the hidden states of all tokens (`4 tokens hidden_size` bytes and a few times a batch's worth), one
/// block's weights unless the network is resident, and one block's statistics beside what the sink keeps. The sink
/// gets every input key of the first block, sorted, then of the second, at last the head's; then the use of the
/// embeddings' rows. Experts that no token was routed to do not come: see [`super::Statistics::unreached`].
///
/// `progress` counts blocks.
///
/// # Errors
/// No tokens; tokens outside the vocabulary; arrays that cannot be read; inputs that are not finite; a sink that
/// fails.
pub fn calibrate(
    network: &Network,
    sequences: &[Vec<u32>],
    options: &CalibrationOptions,
    sink: &mut dyn Sink,
    progress: &Progress<'_>,
) -> Result<(), StatisticsError> {
    if sequences.iter().all(Vec::is_empty) {
        return Err(StatisticsError::NoTokens { message: "no sequence holds a token".to_owned() });
    }
    let total = network.n_blocks() as u64 + 1;
    progress(0, total, "embeddings");
    let row_bytes = 4 * network.hidden_size().max(1);
    let mut batches: Vec<Hidden> = batch_ranges(sequences, (options.batch_bytes / row_bytes).max(1))
        .into_iter()
        .map(|range| network.begin(&sequences[range]))
        .collect::<Result<_, _>>()?;
    for index in 0..network.n_blocks() {
        progress(index as u64, total, &format!("block {index}"));
        run_block(network, index, &mut batches, None, options.detail)?
            .drain(|key, seen| sink.accept_input(key, seen))?;
    }
    progress(total - 1, total, "head");
    let mut collector = Collector::new(options.detail);
    for hidden in &batches {
        network.observe_head(hidden, &mut collector)?;
    }
    collector.drain(|key, seen| sink.accept_input(key, seen))?;
    for (name, counts) in row_usage(network, sequences) {
        sink.accept_row_usage(&name, counts)?;
    }
    progress(total, total, "done");
    Ok(())
}

/// Ranges of sequences of at most `tokens` tokens together, at least one sequence each.
fn batch_ranges(sequences: &[Vec<u32>], tokens: usize) -> Vec<std::ops::Range<usize>> {
    let (mut ranges, mut start, mut held) = (Vec::new(), 0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        if index > start && held + sequence.len() > tokens {
            ranges.push(start..index);
            (start, held) = (index, 0);
        }
        held += sequence.len();
    }
    ranges.push(start..sequences.len());
    ranges
}

/// How often each row of every embedding is looked up.
fn row_usage(network: &Network, sequences: &[Vec<u32>]) -> Vec<(String, Vec<f64>)> {
    let names = network.embeddings();
    let offset = match &network.config().positions {
        Positions::Learned { offset, .. } => Some(*offset),
        _ => None,
    };
    let mut tables = names.into_iter();
    let mut usage = Vec::new();
    let mut count = |name: Option<String>, rows: &mut dyn Iterator<Item = usize>| {
        let Some(name) = name else { return };
        let extent = network.source().spec(&name).and_then(|spec| spec.shape.first().copied()).unwrap_or(0);
        let mut counts = vec![0.0; extent];
        for row in rows {
            if let Some(count) = counts.get_mut(row) {
                *count += 1.0;
            }
        }
        usage.push((name, counts));
    };
    count(tables.next(), &mut sequences.iter().flatten().map(|&token| token as usize));
    if let Some(offset) = offset {
        count(tables.next(), &mut sequences.iter().flat_map(|sequence| offset..offset + sequence.len()));
    }
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    count(tables.next(), &mut std::iter::repeat_n(0, tokens));
    usage
}
