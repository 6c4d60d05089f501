//! Lists what a checkpoint holds: `cargo run -p lamella-io --example list_arrays -- PATH_OR_NAME`.

use std::error::Error;
use std::io::Write;

use lamella_codec::TensorSource;

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: list_arrays PATH_OR_NAME")?;
    let model = lamella_io::open_model(&name)?;
    let mut out = std::io::stdout().lock();
    for spec in model.arrays() {
        writeln!(out, "{:8} {:?} {}", spec.dtype.name(), spec.shape, spec.name)?;
    }
    for (name, bytes) in model.side_files()? {
        writeln!(out, "side file {name}: {} bytes", bytes.len())?;
    }
    for left_out in model.left_out() {
        writeln!(out, "left out {}: {}", left_out.name, left_out.reason)?;
    }
    writeln!(out, "{} bytes of weights", model.weight_bytes())?;
    Ok(())
}
