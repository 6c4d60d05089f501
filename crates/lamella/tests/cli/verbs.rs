//! Every verb on one file.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{at, done, lamella, model, number, refused, scratch, story};

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn run_prints_the_same_text_every_time() {
    let arguments = ["run", story(), "Once upon a time", "--max-tokens", "60"];
    let first = done(&arguments).out;
    println!("{first}");
    assert!(first.starts_with("Once upon a time, there was a"), "{first}");
    assert!(first.len() > 100);
    assert_eq!(done(&arguments).out, first);
    assert_eq!(done(&[&arguments[..], &["--threads", "1"]].concat()).out, first);
    let drawn =
        ["run", story(), "Once", "--temperature", "0.9", "--seed", "3", "--max-tokens", "40", "--json"];
    let (one, two) = (done(&drawn).json(), done(&drawn).json());
    assert_eq!((&one["text"], &one["tokens"]), (&two["text"], &two["tokens"]));
    let generated = one["tokens"].as_array().unwrap().len();
    assert!((1..=40).contains(&generated), "{one}");
}

/// The numbers of a one-dimensional NumPy file of 32-bit floats.
fn npy(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && start.is_multiple_of(64));
    bytes[start..].as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect()
}

#[test]
fn packed_integers_run_like_the_decoded_file() {
    let directory = scratch();
    let [original, logits, dense] =
        ["original.npy", "packed.npy", "dense.npy"].map(|name| at(&directory, name));
    let prompt = "Once upon a time, there was a little";
    let asked = |model: &str, logits: &str| {
        done(&["run", model, prompt, "--max-tokens", "0", "--logits", logits]);
        npy(logits)
    };
    let original = asked(model(), &original);
    for (execute, bits, resident) in [("int4", "3.6", 0.75), ("int8", "4.5", 1.3)] {
        let (file, expanded) = (at(&directory, &format!("{execute}.lam")), at(&directory, execute));
        let recipe = format!("house(execute={execute}, passes=1)");
        let uniform = ["--allocate", "uniform", "--recipe", &recipe, "--bits", bits, "-o", &file];
        done(&[&["compress", model()][..], &uniform[..]].concat());
        done(&["expand", &file, "-o", &expanded]);
        let (packed, dense) = (asked(&file, &logits), asked(&expanded, &dense));
        let distance = |left: &[f32], right: &[f32]| -> f32 {
            let squares: f32 = left.iter().zip(right).map(|(a, b)| (a - b) * (a - b)).sum();
            (squares / left.len() as f32).sqrt()
        };
        let spread = distance(&dense, &vec![dense.iter().sum::<f32>() / dense.len() as f32; dense.len()]);
        let (rounding, coding) = (distance(&packed, &dense), distance(&dense, &original));
        println!("{execute}: spread {spread}, coded {coding}, activations rounded {rounding}");
        assert!(rounding < 0.05 * spread, "{execute}: {rounding} of {spread}");
        let ran = done(&["run", &file, prompt, "--max-tokens", "20", "--json"]).json();
        let weights = number(
            &done(&["eval", &file, "--against", model(), "--tokens", "600", "--json"]).json(),
            "weights",
        );
        let bytes = number(&ran, "resident_bytes");
        assert!(bytes < resident * weights, "{execute}: {bytes} bytes for {weights} weights");
        assert!(number(&ran, "tokens_per_second") > 0.0);
    }
}

#[test]
fn plan_says_what_compress_would_do_and_writes_nothing() {
    let directory = scratch();
    let uniform = ["plan", model(), "--size", "12%", "--allocate", "uniform", "--recipe", "house(trellis=3)"];
    let plan = done(&[&uniform[..], &["--json"]].concat()).json();
    let target = number(&plan, "target_bytes");
    let bytes = number(&plan, "bytes");
    assert!(bytes <= target && bytes > 0.97 * target, "{bytes} of {target}");
    assert_eq!(plan["arrays"].as_array().unwrap().len(), 47);
    let output = at(&directory, "dry.lam");
    done(&[
        "compress",
        model(),
        "--size",
        "12%",
        "--allocate",
        "uniform",
        "--recipe",
        "house(trellis=3)",
        "--dry-run",
        "-o",
        &output,
    ]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let table = done(&uniform).out;
    assert!(table.contains("model.layers.4.mlp.down_proj.weight") && table.contains("predicted"), "{table}");
}

#[test]
fn inspect_and_verify_agree_with_the_file() {
    let inspected = done(&["inspect", story(), "--json"]).json();
    let length = std::fs::metadata(story()).unwrap().len() as f64;
    assert_eq!(number(&inspected, "bytes"), length);
    assert_eq!(inspected["budget"], "--size 160KB");
    assert_eq!(inspected["arrays"].as_array().unwrap().len(), 47);
    assert!(number(&inspected, "smallest_complete_bytes") <= length);
    assert!(done(&["inspect", story()]).out.contains("house"));
    let verified = done(&["verify", story(), "--json"]).json();
    assert_eq!(number(&verified, "bytes"), length);
    assert_eq!(verified["whole_layers"], verified["layers"]);
    assert_eq!(number(&verified, "unused_bytes"), 0.0);
}

#[test]
fn expand_gives_the_coded_numbers_back_and_diff_says_which_arrays_lost_some() {
    let directory = scratch();
    let expanded = at(&directory, "expanded");
    let report = done(&["expand", story(), "-o", &expanded, "--json"]).json();
    let files: BTreeSet<&str> = names(&report["files"]).into_iter().collect();
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert!(files.contains(name), "{files:?}");
        assert!(std::path::Path::new(&expanded).join(name).is_file(), "{name}");
    }
    let original = |name: &str| std::fs::read(format!("{}/{name}", model())).unwrap();
    assert!(std::fs::read(format!("{expanded}/tokenizer.json")).unwrap() == original("tokenizer.json"));
    let same = done(&["diff", story(), &expanded, "--json"]).json();
    assert_eq!(same["same"], true);
    let ran = lamella(&["diff", &expanded, model(), "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report = ran.json();
    assert_eq!(report["same"], false);
    let rows = report["arrays"].as_array().unwrap();
    assert_eq!(rows.len(), 47);
    for row in rows {
        let is_matrix = !row["name"].as_str().unwrap().ends_with("norm.weight");
        assert_eq!(row["state"], if is_matrix { "other numbers" } else { "same" }, "{row}");
        assert!(!is_matrix || (1e-6..0.1).contains(&number(row, "relative_error")), "{row}");
    }
    assert_eq!(lamella(&["diff", story(), model()]).code, Some(1));
    assert_eq!(lamella(&["diff", model(), model()]).code, Some(0));
}

#[test]
fn cut_keeps_whole_layers_or_says_why_not() {
    let directory = scratch();
    let output = at(&directory, "cut.lam");
    refused(&["cut", story(), "--size", "1000", "-o", &output], &["story.lam"]);
    refused(&["cut", story(), "--size", "999KB", "-o", &output], &["nothing to cut"]);
    assert!(!std::path::Path::new(&output).exists());
    let inspected = done(&["inspect", story(), "--json"]).json();
    let (all, smallest) = (number(&inspected, "bytes"), number(&inspected, "smallest_complete_bytes"));
    let size = format!("{}", smallest as u64);
    let ran = lamella(&["cut", story(), "--size", &size, "-o", &output, "--json"]);
    if smallest < all && ran.code == Some(0) {
        assert!(std::fs::metadata(&output).unwrap().len() as f64 <= smallest);
        done(&["verify", &output]);
    } else {
        assert!(ran.code == Some(2) && ran.err.contains("cut"), "{ran:?}");
    }
}

#[test]
fn a_fine_file_is_coded_anew_instead_of_cut() {
    let directory = scratch();
    let path = |name: &str| at(&directory, name);
    let (master, statistics, small) = (path("master.lam"), path("story.stats"), path("small.lam"));
    let compress = ["compress", model(), "--bits", "7", "--allocate", "uniform", "-o", &master];
    done(&[&compress[..], &["--statistics", &statistics]].concat());
    // It has one layer an array, so that there is nothing to cut.
    refused(&["cut", &master, "--bits", "3", "-o", &small], &["nothing to cut"]);
    let cut = ["cut", &master, "--bits", "3", "--reencode", "--statistics", &statistics, "-o", &small];
    let planned = done(&[&cut[..], &["--dry-run", "--json"]].concat()).json();
    assert!(number(&planned, "bits_per_weight") < 3.001 && !std::path::Path::new(&small).exists());
    let report = done(&[&cut[..], &["--json"]].concat()).json();
    assert!((2.9..3.001).contains(&number(&report, "bits_per_weight")), "{report}");
    done(&["verify", &small]);
    let loss = |file: &str| {
        let judged = done(&["eval", file, "--against", model(), "--tokens", "2048", "--json"]).json();
        number(&judged, "kl")
    };
    // Nearly as good as coding the original at that size.
    let own = path("own.lam");
    let compress = ["compress", model(), "--bits", "3", "--allocate", "uniform", "-o", &own];
    done(&[&compress[..], &["--statistics", &statistics]].concat());
    let (anew, direct) = (loss(&small), loss(&own));
    assert!(anew < 1.15 * direct, "{anew} against {direct}");
    // Nothing is left beside the outputs.
    let left = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".lamella-")));
    refused(&["cut", &master, "--bits", "3", "--statistics", &statistics, "-o", &own], &["--reencode"]);
    let missing = path("none.stats");
    let cut = ["cut", &master, "--bits", "3", "--reencode", "--statistics", &missing, "-o", &path("no.lam")];
    refused(&cut, &["no statistics at", "none.stats"]);
}

/// Every array of a model that is read on, against those of the same prefix opened afresh.
fn assert_grown_equals_fresh(whole: &str, complete: u64, all: u64) {
    use lamella::codec::TensorSource as _;
    use lamella::file::File;
    use lamella::weights::open::CodedModel;
    let catalogue = lamella::catalogue();
    let prefix = |share: u64| File::open_prefix(whole, complete + (all - complete) * share / 5).unwrap();
    let mut growing = CodedModel::new(prefix(0), &catalogue).unwrap().growing();
    for share in 0..=5 {
        growing = growing.grown(prefix(share), &catalogue).unwrap();
        let fresh = CodedModel::new(prefix(share), &catalogue).unwrap();
        for spec in fresh.arrays() {
            let (grown, fresh) = (growing.array(&spec.name).unwrap(), fresh.array(&spec.name).unwrap());
            assert!(grown == fresh, "`{}` at {share} fifths", spec.name);
        }
    }
    assert!(growing.grown(prefix(3), &catalogue).is_err());
}

#[test]
fn a_budget_runs_a_prefix_like_a_file_that_ends_there() {
    let directory = scratch();
    let path = |name: &str| at(&directory, name);
    let (whole, part) = (path("story.lam"), path("part.lam"));
    done(&["compress", model(), "--recipe", "progressive(bits=4)", "--allocate", "uniform", "-o", &whole]);
    let logits = |model: &str, name: &str, more: &[&str]| {
        let out = path(name);
        let arguments = ["run", model, "Once upon a time", "--max-tokens", "0", "--logits", &out];
        let ran = done(&[&arguments[..], more].concat());
        (npy(&out), ran.err)
    };
    // What is known of inputs is stored once for the arrays that share them.
    let file = lamella::file::File::open(std::path::Path::new(&whole)).unwrap();
    let names = |target| {
        file.targets().members(target).iter().map(|&member| &file.arrays()[member as usize].spec.name)
    };
    let stacks: Vec<Vec<&String>> = (0..file.targets().len())
        .map(|target| names(target).collect())
        .filter(|names: &Vec<_>| names.len() == 3)
        .collect();
    let roles = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];
    let is_attention =
        |names: &Vec<&String>| roles.iter().all(|role| names.iter().any(|name| name.ends_with(role)));
    assert!(stacks.len() == 5 && stacks.iter().all(is_attention), "{stacks:?}");
    let complete = number(&done(&["inspect", &whole, "--json"]).json(), "smallest_complete_bytes") as u64;
    let all = std::fs::metadata(&whole).unwrap().len();
    let budget = ((complete + all) / 2).to_string();
    std::fs::write(&part, &std::fs::read(&whole).unwrap()[..((complete + all) / 2) as usize]).unwrap();
    let (budgeted, said) = logits(&whole, "budget.npy", &["--budget", &budget]);
    assert!(said.contains("layers; usable after"), "{said}");
    assert_eq!(budgeted, logits(&part, "part.npy", &[]).0);
    assert_ne!(budgeted, logits(&whole, "whole.npy", &[]).0);
    assert_eq!(logits(&whole, "all.npy", &["--budget", "100%"]).0, logits(&whole, "whole.npy", &[]).0);
    assert_grown_equals_fresh(&whole, complete, all);
    // Reading on gives what the longer prefix gives.
    let (grown, said) = logits(&whole, "grown.npy", &["--budget", &complete.to_string(), "--then", &budget]);
    assert!(said.contains("upgraded after"), "{said}");
    assert_eq!(grown, budgeted);
    refused(&["run", &whole, "Once", "--budget", "90%", "--then", "80%"], &["is less than"]);
    refused(&["run", &whole, "Once", "--budget", &(complete - 1).to_string()], &["smallest complete"]);
    refused(&["run", model(), "Once", "--budget", "50%"], &["only those can be read in part"]);
}

#[test]
fn the_catalogue_has_every_system_and_claims_have_one_shape() {
    let report = done(&["systems", "--json"]).json();
    let systems = report["systems"].as_array().unwrap();
    assert_eq!(systems.len(), 169);
    for (number, system) in systems.iter().enumerate() {
        assert_eq!(system["id"], format!("S{:03}", number + 1));
        for key in ["name", "wing", "compresses", "state"] {
            assert!(system[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {system}");
        }
        assert!(system["state"] == "built" || system["state"] == "planned", "{system}");
    }
    let codecs = names(&report["codecs"]);
    assert!(["exact", "gptq", "house", "rtn"].iter().all(|name| codecs.contains(name)), "{codecs:?}");
    assert_eq!(done(&["systems"]).out.lines().filter(|line| line.starts_with('S')).count(), 169);
    let weights = done(&["systems", "--wing", "weights", "--json"]).json();
    // 44 of the index, and S153, whose allocator for gradients the weight wing measures.
    assert_eq!(weights["systems"].as_array().unwrap().len(), 45);
    let planned = systems.iter().find(|system| system["state"] == "planned").unwrap();
    refused(&["reproduce", planned["id"].as_str().unwrap()], &["is planned, not built", "hint: "]);

    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    // Two short ones; the wings' own tests run them all.
    let ran = lamella(&["reproduce", "S029", "S044", "--json", "--assets", assets]);
    assert!(ran.code == Some(0) || ran.code == Some(1), "{ran:?}");
    let report = ran.json();
    assert_eq!(report["schema"], 1);
    let claims = report["claims"].as_array().unwrap();
    assert_eq!(claims.len(), 2);
    assert_eq!(ran.code == Some(0), claims.iter().all(|claim| claim["holds"] == true));
    for claim in claims {
        for key in ["id", "name", "wing", "claim", "metric", "baseline_name", "reason"] {
            assert!(claim[key].is_string(), "{key}: {claim}");
        }
        for key in ["baseline", "measured", "seconds"] {
            assert!(claim[key].is_number(), "{key}: {claim}");
        }
    }
}
