//! Laws of the entropy-coded sweep.

use super::*;

fn noise(length: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            let mut total = 0.0;
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                total += (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            }
            total
        })
        .collect()
}

fn settings(memory_bits: u32, lambda: f32) -> EntropyCoded {
    EntropyCoded {
        lambda,
        trellis: Trellis::new(memory_bits).unwrap(),
        passes: 2,
        offset_groups: 4,
        largest: None,
    }
}

fn factor(columns: usize) -> Vec<f32> {
    let mut upper = vec![0.0; columns * columns];
    for row in 0..columns {
        upper[row * columns + row] = 0.5 + ((row * 7) % 5) as f32 / 4.0;
        for column in row + 1..columns {
            upper[row * columns + column] = ((row * 7 + column * 3) % 11) as f32 / 32.0 - 0.15;
        }
    }
    upper
}

fn steps(columns: usize, rows: usize, size: f32) -> Steps {
    Steps {
        columns: (0..columns).map(|column| size * (0.5 + ((column * 7) % 5) as f32 / 4.0)).collect(),
        rows: (0..rows).map(|row| if row % 3 == 0 { 2.0 } else { 1.0 }).collect(),
        groups: (0..columns).map(|column| (column % 4) as u8).collect(),
    }
}

#[test]
fn without_lambda_trellis_and_offsets_it_rounds_to_nearest() {
    let (rows, columns) = (70, 9);
    let weights = noise(rows * columns);
    let identity: Vec<f32> =
        (0..columns * columns).map(|i| f32::from(u8::from(i % (columns + 1) == 0))).collect();
    let steps = Steps { columns: vec![0.25; columns], rows: Vec::new(), groups: vec![0; columns] };
    let swept = entropy_coded(
        &weights,
        columns,
        &identity,
        &steps,
        EntropyCoded { offset_groups: 0, ..settings(0, 0.0) },
    );
    for row in 0..rows {
        for column in 0..columns {
            let weight = weights[row * columns + column];
            assert_eq!(swept.codes[column * rows + row], (weight / 0.25).round() as i32);
        }
    }
}

#[test]
fn codes_and_state_machine_give_the_reconstruction() {
    let (rows, columns) = (150, 40);
    let weights = noise(rows * columns);
    for memory_bits in [0, 3, 6] {
        let (steps, settings) = (steps(columns, rows, 0.3), settings(memory_bits, 0.1));
        let swept = entropy_coded(&weights, columns, &factor(columns), &steps, settings);
        let mut states = vec![0u32; rows.div_ceil(crate::feedback::ROWS_PER_CHUNK)];
        for column in 0..columns {
            let offsets = swept.offsets.of_group(usize::from(steps.groups[column]));
            for row in 0..rows {
                let state = &mut states[row / crate::feedback::ROWS_PER_CHUNK];
                let code = swept.codes[column * rows + row];
                let value = level(code, settings.trellis.quantizer(*state), &offsets)
                    * (steps.columns[column] * steps.rows[row]);
                assert_eq!(value, swept.reconstruction[row * columns + column]);
                *state = settings.trellis.next(*state, code.unsigned_abs());
            }
        }
    }
}

#[test]
fn a_trellis_and_lambda_lower_the_lagrangian() {
    let (rows, columns) = (256, 64);
    let weights = noise(rows * columns);
    let (factor, steps) = (factor(columns), steps(columns, 0, 0.5));
    let cost = |memory_bits, lambda| {
        let swept = entropy_coded(&weights, columns, &factor, &steps, settings(memory_bits, lambda));
        // Loss per weight in common steps squared, and what a bit is worth at this rate.
        swept.loss / 0.25 + 0.11 * swept.bits
    };
    let (plain, weighed, trellis) = (cost(0, 0.0), cost(0, 0.1), cost(6, 0.1));
    assert!(weighed < plain && trellis < weighed, "{plain} {weighed} {trellis}");
}

#[test]
fn thread_count_leaves_no_trace() {
    let (rows, columns) = (200, 33);
    let weights = noise(rows * columns);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            entropy_coded(&weights, columns, &factor(columns), &steps(columns, rows, 0.2), settings(4, 0.1))
        })
    };
    let (one, four) = (run(1), run(4));
    assert_eq!(one.codes, four.codes);
    assert_eq!(one.loss.to_bits(), four.loss.to_bits());
}
