//! What BitStack claims, measured.

use lamella_codec::{Array, Claim, ClaimContext, Knowledge, Rate};
use lamella_file::File;
use lamella_math::low_rank_pair;

use crate::claims::{ClaimBench, Error, GPTQ_SETTINGS, Replaced, Shown, worst};
use crate::distortion::distortion;

/// The claim's figures of one seed.
#[derive(Default)]
struct Figures {
    /// Perplexities along the stack.
    along: Vec<f64>,
    /// Perplexity over GPTQ's at about 2 and 4 bits.
    against_gptq: Vec<f64>,
    /// Perplexity over that of the arrays' own order, by the paper's order and by the file's, between levels.
    sorted: Vec<(f64, f64)>,
}

/// Runs the claim.
///
/// # Errors
/// Files that cannot be read or written.
pub fn measure(context: &ClaimContext) -> Result<Claim, Error> {
    let (bench, mut shown) = (ClaimBench::new(context)?, Shown::default());
    // Scaled to the size of the matrices: a quarter of a bit per weight for factors at 256 x 256, half at 64 x 64.
    let (rank, levels) = if bench.model == "wiki5m" { (2, 4) } else { (1, 3) };
    // Sizes between one block of each array and the whole stack.
    let budgets = if bench.is_full() { 8 } else { 4 };
    let (mut all, mut headline) = (Vec::new(), (0.0, 0.0, f64::NEG_INFINITY));
    for seed in bench.seeds() {
        let recipe = format!("bitstack(blocks={levels}, rank={rank})");
        let whole = bench.measure(seed, &recipe)?;
        let mut figures = Figures::default();
        let path = bench.scratch("whole.lam");
        fs_err::rename(bench.file(), &path)?;
        let least = bench.measure(seed, &format!("bitstack(blocks=1, rank={rank})"))?;
        if seed == 0 {
            shown.note(&format!(
                "{}: rank {rank}, {:.2} to {:.2} bits, original perplexity {:.3}",
                bench.scope(),
                least.linear_bits,
                whole.linear_bits,
                bench.original_perplexity
            ));
        }
        let file = File::open(&path)?;
        let cut = |bytes: u64| {
            let short = bench.scratch("short.lam");
            file.cut(bytes)?.write(&short)?;
            bench.measure_file(&short, "bitstack, cut")
        };
        let step = (whole.file_bytes - least.file_bytes) / budgets;
        for budget in 1..budgets {
            let found = cut(least.file_bytes + 512 + budget * step)?;
            figures.along.push(found.perplexity);
        }
        figures.along.push(whole.perplexity);
        for bits in [2.0, 4.0] {
            let weights = whole.linear_bytes as f64 * 8.0 / whole.linear_bits;
            let bytes = whole.file_bytes - whole.linear_bytes + (weights * bits / 8.0) as u64;
            let system = if bytes < whole.file_bytes { cut(bytes)? } else { whole.clone() };
            // At 4 bits the stack is to be no better: one setting is the harder test, and quick.
            let settings =
                if bits == 2.0 || bench.is_full() { &GPTQ_SETTINGS[..] } else { &GPTQ_SETTINGS[3..4] };
            let gptq = bench.gptq_at(seed, &system, settings)?;
            let best = gptq.by_kl();
            if seed == 0 {
                shown.note(&format!(
                    "at {:.2} bits perplexity {:.3}, {} in {:.2} bits {:.3}",
                    system.linear_bits, system.perplexity, best.recipe, best.linear_bits, best.perplexity
                ));
            }
            let ratio = system.perplexity / best.perplexity;
            figures.against_gptq.push(ratio);
            if bits == 2.0 && ratio > headline.2 {
                headline = (system.perplexity, best.perplexity, ratio);
            }
        }
        figures.sorted = orders(&bench, seed, &recipe, levels, &file)?;
        all.push(figures);
    }
    report(&bench, &mut shown, &all, rank)?;
    Ok(shown.claim(
        &crate::systems::bitstack(),
        "perplexity",
        ("best of six gptq at 2 bits", headline.1),
        headline.0,
    ))
}

fn report(bench: &ClaimBench, shown: &mut Shown, all: &[Figures], rank: usize) -> Result<(), Error> {
    let rises = |along: &[f64]| along.array_windows::<2>().filter(|pair| pair[1] >= pair[0]).count();
    let n_rises: usize = all.iter().map(|figures| rises(&figures.along)).sum();
    let along: Vec<String> = all[0].along.iter().map(|perplexity| format!("{perplexity:.2}")).collect();
    shown.line(
        n_rises == 0,
        &format!("(1) perplexity along the stack: {}; {n_rises} rises in all seeds", along.join(" ")),
    );
    let (better, n, ratio) = signs_against_plain(bench, rank)?;
    shown.line(
        better == n,
        &format!("(2) one block's error below that of plain low rank of equal bytes on {better} of {n} linears, mean ratio {ratio:.3}"),
    );
    let at = |index: usize| -> Vec<f64> { all.iter().map(|figures| figures.against_gptq[index]).collect() };
    let (two, text) = worst(&at(0));
    shown.line(two < 1.0, &format!("(3) perplexity over gptq's at 2 bits: {text}"));
    let fours = at(1);
    let least = fours.iter().copied().fold(f64::INFINITY, f64::min);
    shown.line(
        least > 0.98,
        &format!("(3) about equal or worse at 4 bits: perplexity over gptq's {}", worst(&fours).1),
    );
    for (index, name) in
        ["by one raised layer's perplexity", "by gain per byte, as files are"].iter().enumerate()
    {
        let ratios: Vec<f64> =
            all.iter().flat_map(|f| &f.sorted).map(|pair| if index == 0 { pair.0 } else { pair.1 }).collect();
        let (most, text) = worst(&ratios);
        shown.line(
            most < 1.0,
            &format!("(4) perplexity sorted {name}, over unsorted, between levels: {text}"),
        );
    }
    Ok(())
}

/// Linears on which one block is better than the plain low-rank pair of the same bytes, and the mean ratio of errors.
fn signs_against_plain(bench: &ClaimBench, rank: usize) -> Result<(usize, usize, f64), Error> {
    let codec = bench.catalogue.codec(&format!("bitstack(blocks=1, rank={rank}, scaled=false)").parse()?)?;
    let (mut better, mut ratios) = (0, 0.0);
    let knowledge = Knowledge::default();
    for array in bench.originals() {
        let (rows, columns) = array.spec.matrix().ok_or("a linear has not 2 axes")?;
        let values = array.to_f32()?;
        let block = codec.encode(array, &knowledge, Rate::Recipe)?;
        let numbers: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        // 16 bits per factor: the signs' bytes buy this many triplets more.
        let plain_rank = block.size_bytes().div_ceil(2 * (rows + columns));
        let pair =
            low_rank_pair(&numbers, rows, columns, plain_rank).ok_or("no singular value decomposition")?;
        let product = |i: usize| -> f32 {
            let k = pair.rank;
            (0..k)
                .map(|t| pair.left[i / columns * k + t] * pair.right[t * columns + i % columns])
                .sum::<f64>() as f32
        };
        let plain: Vec<f32> = (0..values.len()).map(product).collect();
        let ratio = block.layers[0].distortion / distortion(&values, &plain, columns, &knowledge);
        better += usize::from(ratio < 1.0);
        ratios += ratio;
    }
    let n = bench.originals().len();
    Ok((better, n, ratios / n.max(1) as f64))
}

/// Perplexities between levels over those of the arrays' own order: by the paper's order, and of the cut file.
fn orders(
    bench: &ClaimBench,
    seed: usize,
    recipe: &str,
    levels: usize,
    file: &File,
) -> Result<Vec<(f64, f64)>, Error> {
    let codec = bench.catalogue.codec(&recipe.parse()?)?;
    // stacks[linear][level]: the array at so many blocks, and its bytes.
    let mut stacks: Vec<Vec<(Array<'static>, u64)>> = Vec::new();
    for (array, knowledge) in bench.originals().iter().zip(bench.knowledge(seed)) {
        let encoded = codec.encode(array, knowledge, Rate::Recipe)?;
        let layers: Vec<&[u8]> = encoded.layers.iter().map(|layer| &layer.payload[..]).collect();
        let decoded = (1..=levels).map(|level| {
            let n = level.min(layers.len());
            let bytes: usize = layers[..n].iter().map(|layer| layer.len()).sum();
            Ok((codec.decode(&array.spec, &layers[..n])?, bytes as u64))
        });
        stacks.push(decoded.collect::<Result<_, Error>>()?);
    }
    let source = |state: &[usize]| Replaced {
        below: &**bench.network().source(),
        above: stacks.iter().zip(state).map(|(stack, &level)| &stack[level].0).collect(),
    };
    let bytes =
        |state: &[usize]| -> u64 { stacks.iter().zip(state).map(|(stack, &level)| stack[level].1).sum() };
    let mut sequences = bench.sequences(seed)?;
    sequences.truncate(2);
    let all = file.length_bytes() - bytes(&vec![levels - 1; stacks.len()]);
    let mut found = Vec::new();
    for level in 0..levels - 1 {
        let below = vec![level; stacks.len()];
        let mut order: Vec<(f64, usize)> = Vec::new();
        for linear in 0..stacks.len() {
            let mut state = below.clone();
            state[linear] += 1;
            order.push((bench.likelihood(&source(&state), &sequences)?, linear));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The longest prefix of each order within half of the level's bytes.
        let half = (bytes(&below) + bytes(&vec![level + 1; stacks.len()])) / 2;
        let prefix = |order: &mut dyn Iterator<Item = usize>| {
            let mut state = below.clone();
            for linear in order {
                state[linear] += 1;
                if bytes(&state) > half {
                    state[linear] -= 1;
                    break;
                }
            }
            state
        };
        let sorted = prefix(&mut order.iter().map(|entry| entry.1));
        let unsorted = prefix(&mut (0..stacks.len()));
        let loss = |state: &[usize]| bench.likelihood(&source(state), bench.unseen());
        let plain = loss(&unsorted)?;
        let cut = bench.scratch("between.lam");
        file.cut(all + half)?.write(&cut)?;
        let coded = crate::open::CodedModel::open(&cut, &bench.catalogue)?;
        let by_gain = bench.likelihood(&coded, bench.unseen())?;
        found.push(((loss(&sorted)? - plain).exp(), (by_gain - plain).exp()));
    }
    Ok(found)
}
