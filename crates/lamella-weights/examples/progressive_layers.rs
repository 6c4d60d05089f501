//! Loss against bits of one large synthetic layer: every bit of one progressive array, one-size scalar and trellis
//! codings, and naive stacking (the remaining error coded by another noise-shaped pass).
//!
//! ```text
//! cargo run --release -p lamella-weights --example progressive_layers -- ROWS COLUMNS [RANK] [TRELLIS] [TURNS]
//! ```
//!
//! Weights are Gaussian. The inputs' second moment has eigenvalues `i^-1.1`, eigenvectors that three rounds of random
//! signs and Hadamard transforms make (columns are a power of two), and log-normal scales per channel. Losses are
//! relative to storing nothing; `overhead` is what the progressive prefix takes more than a scalar coding of equal loss.
//! Decoding is the median of TURNS (5) on one thread; with none it is left out.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring program")]

use std::sync::Arc;
use std::time::Instant;

use lamella_codec::{Array, ArraySpec, Catalogue, Dtype, Encoded, Knowledge, Rate};
use lamella_math::SecondMoment;
use lamella_weights::systems::codecs;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| ((bits >> 40) as f32 + 0.5) / (1u32 << 24) as f32;
        let (a, b) = (uniform(self.next()), uniform(self.next()));
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    }
}

/// Rows become their Hadamard transforms, scaled to keep lengths.
fn hadamard(matrix: &mut [f32], n: usize) {
    let scale = 1.0 / (n as f32).sqrt();
    for row in matrix.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in row.chunks_exact_mut(2 * half) {
                let (left, right) = pair.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        row.iter_mut().for_each(|v| *v *= scale);
    }
}

fn moment(n: usize, random: &mut Random) -> SecondMoment {
    let mut h = vec![0.0f32; n * n];
    (0..n).for_each(|i| h[i * n + i] = ((i + 1) as f32).powf(-1.1));
    for _ in 0..3 {
        let signs: Vec<f32> = (0..n).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        // Q H Q^T by transforming rows, transposing, and again.
        for _ in 0..2 {
            h.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&signs).for_each(|(v, s)| *v *= s));
            hadamard(&mut h, n);
            h = lamella_quant::feedback::transpose(&h, n, n);
        }
    }
    let scales: Vec<f32> = (0..n).map(|_| (0.5 * random.normal()).exp()).collect();
    for i in 0..n {
        for j in 0..n {
            h[i * n + j] *= scales[i] * scales[j];
        }
    }
    SecondMoment::from_sum(n, 1, h).unwrap()
}

fn last(encoded: &Encoded) -> f64 {
    encoded.layers.last().unwrap().distortion / encoded.distortion_of_zeros
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|text| text.parse().unwrap()).collect();
    let at = |index: usize, default: usize| arguments.get(index).copied().unwrap_or(default);
    let (rows, columns, rank, trellis) = (at(0, 1024), at(1, 1024), at(2, 64), at(3, 0));
    let mut random = Random(7);
    let values: Vec<f32> = (0..rows * columns).map(|_| 0.02 * random.normal()).collect();
    let knowledge = Knowledge::of_inputs(Arc::new(moment(columns, &mut random)));
    let spec = ArraySpec::new("layer", vec![rows, columns], Dtype::F32);
    let array = Array::from_f32(spec.clone(), &values).unwrap();
    let catalogue = Catalogue::new(Vec::new(), codecs());
    let codec = |text: &str| catalogue.codec(&text.parse().unwrap()).unwrap();
    let bits = |bytes: usize| bytes as f64 * 8.0 / (rows * columns) as f64;
    println!("layer {rows} x {columns}, power-law spectrum i^-1.1; progressive(rank={rank})");
    let mut scalar = Vec::new();
    for (name, text) in [("scalar", "house(trellis=0)"), ("trellis", "house")] {
        if name == "trellis" && trellis == 0 {
            continue;
        }
        for step in [2.0, 0.7, 0.25, 0.09f64] {
            let encoded = codec(text).encode(&array, &knowledge, Rate::Step(step)).unwrap();
            println!("{name:8} {:7.3} bits  loss {:.6}", bits(encoded.size_bytes()), last(&encoded));
            if name == "scalar" {
                scalar.push((bits(encoded.size_bytes()), last(&encoded).log2()));
            }
        }
    }
    // Bits of a scalar coding at a loss, straight lines between the measured ones.
    let scalar_bits = |loss: f64| {
        let upper = scalar.iter().position(|point| point.1 < loss.log2()).unwrap_or(scalar.len() - 1).max(1);
        let (a, b) = (scalar[upper - 1], scalar[upper]);
        a.0 + (loss.log2() - a.1) * (b.0 - a.0) / (b.1 - a.1)
    };
    let progressive = codec(&format!("progressive(rank={rank})"));
    let started = Instant::now();
    let encoded = progressive.encode(&array, &knowledge, Rate::Step(0.09)).unwrap();
    println!("progressive coded in {:.1} s", started.elapsed().as_secs_f64());
    let (mut bytes, mut payloads) = (0, Vec::<&[u8]>::new());
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let decode = |payloads: &[&[u8]]| -> String {
        let turn = |_| {
            let started = Instant::now();
            let decoded = one.install(|| progressive.decode(&spec, payloads).unwrap());
            decoded.bytes.len() as f64 / 1e6 / started.elapsed().as_secs_f64()
        };
        let mut speeds: Vec<f64> = (0..at(4, 5)).map(turn).collect();
        speeds.sort_by(f64::total_cmp);
        let median = speeds.get(speeds.len() / 2);
        median.map_or(String::new(), |median| format!("  decodes at {median:.0} MB/s of f32"))
    };
    for layer in &encoded.layers {
        bytes += layer.payload.len();
        payloads.push(&layer.payload);
        let loss = layer.distortion / encoded.distortion_of_zeros;
        println!(
            "prefix   {:7.3} bits  loss {loss:.6}  overhead {:+.3}{}",
            bits(bytes),
            bits(bytes) - scalar_bits(loss),
            decode(&payloads),
        );
    }
    // Naive stacking: the remaining error, coded like weights of its own.
    let house = codec("house(trellis=0)");
    let coarse = house.encode(&array, &knowledge, Rate::Step(1.0)).unwrap();
    let read = house.decode(&spec, &[&coarse.layers[0].payload]).unwrap().to_f32().unwrap();
    let error: Vec<f32> = values.iter().zip(&read).map(|(w, v)| w - v).collect();
    let error = Array::from_f32(spec.clone(), &error).unwrap();
    for step in [1.0, 0.35f64] {
        let finer = house.encode(&error, &knowledge, Rate::Step(step)).unwrap();
        let loss = finer.layers[0].distortion / coarse.distortion_of_zeros;
        let used = bits(coarse.size_bytes() + finer.size_bytes());
        println!("stacked  {used:7.3} bits  loss {loss:.6}  overhead {:+.3}", used - scalar_bits(loss));
    }
}
