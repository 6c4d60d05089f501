//! Kills at every step.

use lamella_codec::{ArraySpec, Dtype};

use super::*;
use crate::{ArrayEntry, File, Shard, Storage};

fn layers(seed: usize) -> Vec<EncodedLayer> {
    (0..1 + seed % 3)
        .map(|ordinal| EncodedLayer {
            payload: (0..40 * (seed + 1) + ordinal).map(|i| (i * 31 + seed) as u8).collect(),
            distortion: 10.0 / (ordinal + 1) as f64,
            is_mapped: seed % 2 == 1,
        })
        .collect()
}

fn manifest() -> Manifest {
    let array = |name: &str, storage| ArrayEntry {
        spec: ArraySpec::new(name, vec![4, 4], Dtype::F32),
        recipe: 0,
        shard: 0,
        storage,
    };
    Manifest {
        recipes: vec!["exact".to_owned()],
        arrays: vec![
            array("a.0.w", Storage::Own),
            array("a.0.n", Storage::Bundle(0)),
            array("a.1.w", Storage::Own),
            array("a.1.n", Storage::Bundle(0)),
            array("head", Storage::AliasOf(0)),
        ],
        shards: vec![Shard { name: "model.safetensors".to_owned(), metadata: Vec::new() }],
        ..Manifest::default()
    }
}

/// One run of a job: codes what is not finished, then assembles. Counts what it coded.
fn run(disk: Disk, out: &Path, coded: &mut Vec<usize>) -> Result<(), FileError> {
    let spool = Spool::open_on(disk, out, "job")?;
    for (index, array) in ["a.0.w", "a.0.n", "a.1.w"].into_iter().enumerate() {
        if spool.finished(array)?.is_none() {
            spool.store(array, &layers(index), "note")?;
            coded.push(index);
        }
    }
    let order = spool.order_by_gain(&manifest(), |_| 1.0)?;
    let size = spool.size_of(&manifest(), &order)?;
    assert_eq!(spool.assemble(manifest(), &[], &order)?, size);
    Ok(())
}

#[test]
fn a_kill_at_any_step_costs_no_finished_array_and_no_byte() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole.lam");
    run(Disk::new(), &whole, &mut Vec::new()).unwrap();
    let whole = fs_err::read(whole).unwrap();
    let mut kills = 0;
    for steps in 0.. {
        let out = directory.path().join(format!("{steps}.lam"));
        let mut coded = Vec::new();
        let first = run(Disk::with_steps(steps), &out, &mut coded);
        // Whatever is there under the final name is whole.
        let was_renamed = out.exists();
        if was_renamed {
            assert_eq!(fs_err::read(&out).unwrap(), whole);
        }
        let mut coded_again = Vec::new();
        if first.is_err() {
            kills += 1;
            run(Disk::new(), &out, &mut coded_again).unwrap();
        }
        assert_eq!(fs_err::read(&out).unwrap(), whole, "killed after {steps} steps");
        if !was_renamed {
            assert!(coded_again.iter().all(|index| !coded.contains(index)), "killed after {steps} steps");
        }
        assert!(!out.with_extension("lam.part").exists());
        if first.is_ok() {
            break;
        }
    }
    assert!(kills > 25, "{kills}");
}

#[test]
fn a_kill_while_discarding_never_mixes_jobs() {
    let directory = tempfile::tempdir().unwrap();
    for steps in 0..20 {
        let out = directory.path().join(format!("{steps}.lam"));
        let spool = Spool::open(&out, "old job").unwrap();
        spool.store("a.0.w", &layers(5), "").unwrap();
        spool.store("a.0.n", &layers(5), "").unwrap();
        drop(spool);
        drop(Spool::open_on(Disk::with_steps(steps), &out, "job"));
        let spool = Spool::open(&out, "job").unwrap();
        assert!(spool.finished("a.0.w").unwrap().is_none());
        assert!(spool.finished("a.0.n").unwrap().is_none());
    }
}

#[test]
fn the_start_says_what_was_found() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.lam");
    let spool = Spool::open(&out, "one").unwrap();
    assert_eq!(*spool.start(), SpoolStart::Fresh);
    spool.store("w", &layers(2), "step 0.25").unwrap();
    assert!(matches!(Spool::open(&out, "one"), Err(FileError::SpoolInUse { .. })));
    drop(spool);
    let spool = Spool::open(&out, "one").unwrap();
    assert_eq!(*spool.start(), SpoolStart::Resumed { finished: 1 });
    assert_eq!(spool.finished("w").unwrap().unwrap(), layers(2));
    assert_eq!(spool.note("w").unwrap().unwrap(), "step 0.25");
    assert_eq!(spool.finished("v").unwrap(), None);
    drop(spool);
    let spool = Spool::open(&out, "two").unwrap();
    assert_eq!(*spool.start(), SpoolStart::Discarded { previous: "one".to_owned(), finished: 1 });
    assert_eq!(spool.finished("w").unwrap(), None);
    let missing = spool.order_by_gain(&manifest(), |_| 1.0).unwrap_err();
    assert!(missing.to_string().starts_with("array `a.0.w` has no finished layer"), "{missing}");
    spool.discard().unwrap();
    assert!(!out.with_extension("lam.part").exists());
}

#[test]
fn a_damaged_record_counts_as_unfinished() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.lam");
    let spool = Spool::open(&out, "one").unwrap();
    spool.store("w", &layers(1), "").unwrap();
    let path = spool.path("w");
    let good = fs_err::read(&path).unwrap();
    for position in 0..good.len() {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        fs_err::write(&path, &bad).unwrap();
        assert_eq!(spool.finished("w").unwrap(), None, "byte {position}");
        fs_err::write(&path, &good[..position]).unwrap();
        assert_eq!(spool.finished("w").unwrap(), None, "cut at {position}");
    }
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.lam");
    let part = directory.path().join("x.lam.part");
    fs_err::create_dir(&part).unwrap();
    fs_err::write(part.join("thesis.tex"), "important").unwrap();
    let error = Spool::open(&out, "one").unwrap_err();
    assert!(matches!(error, FileError::ForeignSpool { .. }), "{error}");
    assert!(part.join("thesis.tex").exists());
}

#[test]
fn an_assembled_file_holds_what_was_stored() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.lam");
    run(Disk::new(), &out, &mut Vec::new()).unwrap();
    let file = File::open(&out).unwrap();
    let payloads: Vec<Vec<u8>> = layers(1).into_iter().map(|layer| layer.payload).collect();
    assert_eq!(file.layers_of("a.1.n").unwrap(), payloads);
    assert_eq!(file.locate("a.1.n").unwrap().elements, 16..32);
    assert_eq!(file.layers_of("head").unwrap(), [layers(0)[0].payload.clone()]);
    file.verify(|_| {}).unwrap();
}
