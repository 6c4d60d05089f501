use lamella_entropy::rans;
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap(); s.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9 }
fn main() { rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run) }
fn run() {
    let mut seed = 1u64;
    let mut next = || { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; seed };
    let n = 16 << 20;
    let symbols: Vec<u8> = (0..n).map(|_| { let mut s = 0.0; let a = next(); let b = next(); for i in 0..6 { s += ((a >> (10*i)) & 1023) as f64 + ((b >> (10*i)) & 1023) as f64; } ((s / 1023.0 - 6.0) * 3.87 + 128.0).round() as u8 }).collect();
    let mut counts = [0u64; 256]; symbols.iter().for_each(|&s| counts[s as usize] += 1);
    let h: f64 = counts.iter().filter(|&&c| c > 0).map(|&c| -(c as f64) * (c as f64 / n as f64).log2()).sum::<f64>();
    let bytes = rans::encode(&symbols).unwrap();
    println!("size {} over entropy {:.5}", bytes.len(), bytes.len() as f64 / (h / 8.0) - 1.0);
    let z = zstd::bulk::compress(&symbols, 1).unwrap();
    let mut out = vec![1u8; n];
    let mut zc = vec![1u8; n + 1000];
    let mut best = [f64::MAX; 5];
    for _ in 0..9 {
        let mut time = |i: usize, f: &mut dyn FnMut()| { let t = cpu(); f(); best[i] = best[i].min(cpu() - t); };
        time(0, &mut || { std::hint::black_box(rans::encode(&symbols).unwrap()); });
        time(1, &mut || { zstd::bulk::compress_to_buffer(&symbols, &mut zc, 1).unwrap(); });
        time(2, &mut || { rans::decode_into(&bytes, &mut out).unwrap(); });
        assert!(out == symbols);
        time(3, &mut || { zstd::bulk::decompress_to_buffer(&z, &mut out).unwrap(); });
        time(4, &mut || { std::hint::black_box(&mut counts).fill(0); for &s in &symbols { counts[s as usize] += 1 } std::hint::black_box(&counts); });
    }
    let g = |i: usize| n as f64 / best[i] / 1e9;
    println!("encode {:.3} zstd {:.3} ratio {:.2}; decode {:.3} zstd {:.3} ratio {:.2}; naive hist {:.3}; size ratio {:.4}", g(0), g(1), g(0)/g(1), g(2), g(3), g(2)/g(3), g(4), bytes.len() as f64 / z.len() as f64);
}
