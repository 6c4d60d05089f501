//! Speed of lossless coding inside one process, for `bench/lossless.py`.
//!
//! `cargo run --release -p lamella-weights --example lossless_speed -- FILE.safetensors` codes and decodes every array
//! of the file in turns, with one thread and with two, checks each output and prints one line of JSON: bytes, coded
//! bytes, and the least processor seconds of the busiest thread. Processor time is the kernel's own account of each
//! thread, so that other programs on the machine do not count.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement stops where it cannot go on")]

use lamella_codec::{Array, TensorSource};
use lamella_weights::lossless::{Planes, encode};
use rayon::prelude::*;

const TURNS: usize = 5;

/// Nanoseconds that each worker has run.
fn processor_time(pool: &rayon::ThreadPool) -> Vec<u64> {
    pool.broadcast(|_| {
        let text = fs_err::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    })
}

/// Seconds of the busiest worker.
fn timed<T>(pool: &rayon::ThreadPool, work: impl FnOnce() -> T + Send) -> (T, f64)
where
    T: Send,
{
    let before = processor_time(pool);
    let result = pool.install(work);
    let after = processor_time(pool);
    let busiest = before.iter().zip(&after).map(|(before, after)| after - before).max().unwrap();
    (result, busiest as f64 * 1e-9)
}

fn main() {
    let path = std::env::args().nth(1).expect("usage: lossless_speed FILE.safetensors");
    let model = lamella_io::SafetensorsFile::open(&path).unwrap();
    let arrays: Vec<Array<'_>> = model.arrays().iter().map(|spec| model.array(&spec.name).unwrap()).collect();
    let total: usize = arrays.iter().map(|array| array.bytes.len()).sum();
    let coded: Vec<Vec<u8>> = arrays.iter().map(|array| encode(&array.spec, &array.bytes).unwrap()).collect();
    for (array, coded) in arrays.iter().zip(&coded) {
        assert!(Planes::parse(&array.spec, coded).unwrap().decode().unwrap()[..] == array.bytes[..]);
    }
    let mut line = format!("{{\"bytes\": {total}");
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut encoding, mut decoding, mut coded_bytes) = (f64::INFINITY, f64::INFINITY, 0);
        // Memory that a caller keeps from model to model: no page of it is touched for the first time.
        let (mut kept, mut decoding_kept) = (Vec::new(), f64::INFINITY);
        kept.extend(arrays.iter().map(|array| vec![1u8; array.bytes.len()]));
        for _ in 0..TURNS {
            // Arrays come and go side by side, as in the program: what one gives back the next one uses.
            let (bytes, seconds) = timed(&pool, || {
                arrays.par_iter().map(|array| encode(&array.spec, &array.bytes).unwrap().len()).sum()
            });
            encoding = encoding.min(seconds);
            coded_bytes = bytes;
            let decode = |(array, coded): (&Array<'_>, &Vec<u8>)| {
                std::hint::black_box(Planes::parse(&array.spec, coded).unwrap().decode().unwrap()).len()
            };
            let (decoded, seconds) =
                timed(&pool, || arrays.par_iter().zip(&coded).map(decode).sum::<usize>());
            decoding = decoding.min(seconds);
            assert_eq!(decoded, total);
            let ((), seconds) = timed(&pool, || {
                arrays.par_iter().zip(&coded).zip(&mut kept).for_each(|((array, coded), kept)| {
                    Planes::parse(&array.spec, coded).unwrap().decode_to(kept).unwrap();
                });
            });
            decoding_kept = decoding_kept.min(seconds);
            assert!(arrays.iter().zip(&kept).all(|(array, kept)| array.bytes[..] == kept[..]));
        }
        line += &format!(
            ", \"coded_{threads}\": {coded_bytes}, \"encode_{threads}\": {encoding:.5}, \"decode_{threads}\": {decoding:.5}, \
             \"kept_{threads}\": {decoding_kept:.5}"
        );
    }
    println!("{line}}}");
}
