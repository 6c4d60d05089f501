//! What cannot be done is refused with exit code 2, by name, with a hint, and before anything expensive.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{at, command, done, lamella, model, refused, scratch, story};

#[test]
fn a_pattern_that_matches_nothing_is_named_with_examples() {
    let directory = scratch();
    let output = at(&directory, "never.lam");
    for rule in [["--keep", "*nothing*"], ["--rule", "*nothing*=exact"]] {
        let arguments = [&["compress", model(), "--size", "20%", "-o", &output], &rule[..]].concat();
        refused(&arguments, &["`*nothing*` matches no array", "model.embed_tokens.weight", "hint: "]);
    }
    assert!(!std::path::Path::new(&output).exists());
}

#[test]
fn too_small_a_size_is_refused_before_calibration_and_the_size_it_names_is_reached() {
    let directory = scratch();
    let output = at(&directory, "small.lam");
    // The calibration text does not exist: an error about it would mean that calibration came first.
    let missing = at(&directory, "missing.txt");
    let arguments = ["compress", model(), "--size", "9KB", "--calibrate", &missing, "-o", &output];
    let ran =
        refused(&arguments, &["9000 bytes cannot be met: the smallest file of these recipes is ", "hint: "]);
    let smallest = ran.err.split("these recipes is ").nth(1).unwrap().split(' ').next().unwrap();
    let smallest: f64 = smallest.parse().unwrap();
    println!("the smallest file named: {smallest} bytes");
    // The figure comes from a sample of rows.
    let above = format!("{}", (smallest * 1.05) as u64);
    done(&[
        "compress",
        model(),
        "--allocate",
        "uniform",
        "--recipe",
        "house(trellis=3)",
        "--size",
        &above,
        "-o",
        &output,
    ]);
    let ran = refused(
        &["compress", model(), "--bits", "0.01", "-o", &output, "--overwrite"],
        &["bits per weight cannot be met"],
    );
    assert!(!ran.err.contains("calibrat"), "{ran:?}");
    let fixed =
        ["compress", model(), "--size", "100KB", "--recipe", "rtn(bits=8)", "-o", &output, "--overwrite"];
    refused(&fixed, &["no array's recipe has a free rate", "hint: "]);
}

#[test]
fn an_output_that_exists_is_kept_unless_told() {
    let directory = scratch();
    let output = at(&directory, "kept.lam");
    std::fs::write(&output, "mine").unwrap();
    let arguments = ["compress", model(), "--recipe", "rtn(bits=3)", "-o", &output];
    refused(&arguments, &["exists", "hint: `--overwrite`"]);
    assert_eq!(std::fs::read(&output).unwrap(), b"mine");
    done(&[&arguments[..], &["--overwrite"]].concat());
    assert!(std::fs::metadata(&output).unwrap().len() > 100_000);
    refused(
        &["compress", model(), "--size", "20%", "-o", directory.path().to_str().unwrap()],
        &["is a directory"],
    );
    refused(&["expand", story(), "-o", directory.path().to_str().unwrap()], &["is not empty"]);
}

#[test]
fn wrong_usage_is_exit_code_two() {
    for (arguments, text) in [
        (&["compres"][..], "compress"),
        (&["compress", model(), "--size", "20%", "--bits", "3"], "--bits"),
        (&["compress", model(), "--size", "twenty", "-o", "x.lam"], "twenty"),
        (&["compress", model(), "--quality", "psnr=3", "-o", "x.lam"], "psnr=3"),
        (&["compress", model(), "--recipe", "house(bits=99)", "-o", "x.lam"], "`bits` is 99"),
        (&["compress", model(), "--recipe", "house(bit=3)", "-o", "x.lam"], "`bit`"),
        (&["compress", model(), "--recipe", "hose", "-o", "x.lam"], "no codec is named `hose`"),
        (&["compress", "no/such/directory", "--size", "20%"], "no/such/directory"),
        (&["compress", model(), "--size", "20%", "--threads", "0", "-o", "x.lam"], "`--threads` is 0"),
        (&["eval", story()], "no text to evaluate on"),
        (&["inspect", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], "Cargo.toml"),
        (&["verify", "no-such-file.lam"], "no-such-file.lam"),
        (&["reproduce"], "ID"),
        (&["reproduce", "S999"], "`S999`"),
        (&["systems", "--wing", "roof"], "no wing is called `roof`"),
    ] {
        refused(arguments, &[text]);
    }
    for arguments in [&["--help"][..], &["--version"], &["compress", "--help"], &["reproduce", "--help"]] {
        assert!(!done(arguments).out.is_empty());
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for arguments in
        [&["systems"][..], &["systems", "--json"], &["inspect", story()], &["run", story(), "Once"]]
    {
        let mut child = command(arguments).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_job_ends_with_130_and_leaves_no_half_file() {
    let directory = scratch();
    let output = at(&directory, "interrupted.lam");
    // Longer than any machine takes to start a process.
    let arguments = ["compress", model(), "--quality", "kl=0.001", "-o", &output];
    let mut child = command(&arguments).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    if std::path::Path::new(&output).exists() {
        done(&["verify", &output]);
    }
}

#[test]
fn damage_is_named() {
    let directory = scratch();
    let path = at(&directory, "damaged.lam");
    let mut bytes = std::fs::read(story()).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    for verb in ["verify", "eval", "run", "expand"] {
        let target = at(&directory, "expanded");
        let arguments = match verb {
            "eval" => vec!["eval", &path, "--against", model()],
            "run" => vec!["run", &path, "Once"],
            "expand" => vec!["expand", &path, "-o", &target],
            _ => vec![verb, &path],
        };
        refused(&arguments, &["fails its checksum", "array `", "hint: "]);
        assert!(!std::path::Path::new(&target).exists());
    }
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let ran = lamella(&["run", &path, "Once"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("ends before array `model."), "{ran:?}");
}
