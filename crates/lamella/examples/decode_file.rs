//! How fast every array of a `.lam` file is decoded, as JSON: the yardstick of `tools/measure_python.py`.
//!
//! ```text
//! cargo run --release -p lamella --example decode_file -- MODEL.lam [ROUNDS]
//! ```

#![allow(clippy::print_stdout, reason = "a measuring program")]

use std::path::Path;
use std::time::Instant;

use lamella::codec::TensorSource;
use lamella::weights::open::CodedModel;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which file? decode_file MODEL.lam [ROUNDS]")?;
    let rounds: usize = arguments.next().map_or(Ok(9), |text| text.parse())?;
    let model = CodedModel::open(Path::new(&path), &lamella::catalogue())?;
    let (mut seconds, mut bytes) = (Vec::new(), 0);
    for _ in 0..rounds.max(1) {
        let started = Instant::now();
        bytes = 0;
        for spec in model.arrays() {
            bytes += std::hint::black_box(model.array(&spec.name)?).bytes.len();
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    println!("{{\"bytes\": {bytes}, \"seconds\": {:.6}}}", seconds[seconds.len() / 2]);
    Ok(())
}
