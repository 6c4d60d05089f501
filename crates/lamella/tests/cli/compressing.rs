//! Sizes, bits, qualities and recipes; every figure is read from the written file by a fresh process.

use serde_json::Value;

use crate::support::{at, done, judged, model, number, scratch, short_text, story};

const MODEL_BYTES: f64 = 1_044_992.0;
/// A trellis of few states, where it is not the loss that is tested.
const LIGHT: [&str; 2] = ["--recipe", "house(trellis=3)"];

/// Compresses with one relative step: measuring sensitivities takes longer than all the rest.
fn compress(arguments: &[&str]) -> Value {
    done(&[&["compress", model(), "--allocate", "uniform", "--json", "--quiet"], arguments].concat()).json()
}

fn bytes_of(path: &str) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn the_whole_file_lands_within_one_per_cent_below_the_size() {
    let directory = scratch();
    for (size, target) in [
        ("160KB", 160_000.0),
        ("15%", 0.15 * MODEL_BYTES),
        ("10%", 0.10 * MODEL_BYTES),
        ("7.5%", 0.075 * MODEL_BYTES),
    ] {
        let path = at(&directory, &format!("{size}.lam"));
        let report = compress(&["--size", size, "-o", &path]);
        let bytes = bytes_of(&path) as f64;
        println!("{size}: {bytes} of {target}");
        assert!(bytes <= target && bytes >= 0.99 * target, "{size}: {bytes} of {target}");
        assert_eq!(number(&report, "bytes"), bytes);
        assert_eq!(number(&report, "target_bytes"), target.floor());
        let left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.extension().is_some_and(|end| end == "lam")), "{left:?}");
    }
}

#[test]
fn the_report_has_every_field_and_every_array() {
    let directory = scratch();
    let report = compress(&[&["--bits", "4", "-o", &at(&directory, "four.lam")], &LIGHT[..]].concat());
    for key in ["bytes", "target_bytes", "seconds", "weights", "bits_per_weight", "linear_bits_per_weight"] {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    let bits = number(&report, "bits_per_weight");
    assert!((3.96..=4.0).contains(&bits), "{bits}");
    let arrays = report["arrays"].as_array().unwrap();
    assert_eq!(arrays.len(), 47);
    for array in arrays {
        assert!(
            array["name"].is_string() && array["recipe"].is_string() && array["reason"].is_string(),
            "{array}"
        );
        assert!(array["shape"].as_array().is_some_and(|shape| !shape.is_empty()), "{array}");
        assert!(number(array, "bytes") > 0.0 && number(array, "bits_per_weight") > 0.0, "{array}");
        assert!(number(array, "predicted_loss") >= 0.0, "{array}");
        let is_exact = array["recipe"] == "exact";
        assert_eq!(is_exact, array["reason"] != "", "what stays exact says why: {array}");
    }
}

#[test]
fn eval_reads_the_written_file_and_prints_every_figure() {
    let report = judged(story(), model());
    for key in
        ["bits_per_weight", "linear_bits_per_weight", "kl", "perplexity", "reference_perplexity", "tokens"]
    {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    assert_eq!(number(&report, "bytes"), bytes_of(story()) as f64);
    assert_eq!(number(&report, "weights"), 260_032.0);
    assert!((0.9..=1.0).contains(&number(&report, "top1_agreement")), "{report}");
    let length = bytes_of(story());
    assert!((158_400..=160_000).contains(&length), "{length}");
    // Measured allocation and its polish are worth far more than the bytes say.
    let directory = scratch();
    let uniform = at(&directory, "uniform.lam");
    compress(&["--size", "160KB", "-o", &uniform]);
    let (kl, uniform) = (number(&report, "kl"), number(&judged(&uniform, model()), "kl"));
    println!("kl in 160,000 bytes: {kl}, with one relative step {uniform}");
    assert!(kl < 0.75 * uniform && kl < 0.02, "{kl} {uniform}");
    let ratio = number(&report, "perplexity") / number(&report, "reference_perplexity");
    assert!((0.98..1.05).contains(&ratio), "{report}");
    // The original against itself: nothing is lost, whatever the path.
    let same = judged(model(), model());
    assert_eq!(number(&same, "kl"), 0.0);
    assert_eq!(number(&same, "top1_agreement"), 1.0);
}

#[test]
fn one_and_two_threads_write_the_same_bytes() {
    let directory = scratch();
    // Sensitivities are measured, too, on what a short text has behind 256 tokens.
    let short = short_text(&directory);
    let measured = ["1", "2"].map(|threads| {
        let path = at(&directory, &format!("measured{threads}.lam"));
        let text = ["--calibrate", &short, "--tokens", "256", "--threads", threads, "-o", &path];
        done(&[&["compress", model(), "--size", "160KB"], &text[..]].concat());
        std::fs::read(&path).unwrap()
    });
    assert!(measured[0] == measured[1]);
    for recipe in ["house(bits=3, trellis=0)", "gptq(bits=3, order=activation)"] {
        let paths = ["1", "3"].map(|threads| {
            let path = at(&directory, &format!("{}{threads}.lam", &recipe[..4]));
            compress(&["--recipe", recipe, "--threads", threads, "-o", &path]);
            std::fs::read(&path).unwrap()
        });
        assert!(paths[0] == paths[1], "{recipe}");
    }
}

#[test]
fn rules_and_keeps_decide_single_arrays() {
    let directory = scratch();
    let path = at(&directory, "ruled.lam");
    let rules = ["--rule", "*.q_proj.weight=rtn(bits=4, group_size=32)", "--keep", "*layers.0.*"];
    let report = compress(&[&["--size", "25%", "-o", &path], &rules[..], &LIGHT].concat());
    let arrays = report["arrays"].as_array().unwrap();
    let of = |name: &str| arrays.iter().find(|array| array["name"] == name).unwrap().clone();
    assert_eq!(of("model.layers.0.self_attn.q_proj.weight")["recipe"], "exact");
    assert_eq!(of("model.layers.1.self_attn.q_proj.weight")["recipe"], "rtn(bits=4, group_size=32)");
    assert_eq!(of("model.layers.1.self_attn.q_proj.weight")["reason"], "rule `*.q_proj.weight`");
    assert_eq!(of("model.layers.1.mlp.up_proj.weight")["recipe"], "house(trellis=3)");
    assert!(bytes_of(&path) as f64 <= 0.25 * MODEL_BYTES);
    let inspected = done(&["inspect", &path, "--json"]).json();
    let stored = inspected["arrays"].as_array().unwrap().iter().find(|array| {
        array["name"] == "model.layers.1.self_attn.q_proj.weight"
            || array["spec"]["name"] == "model.layers.1.self_attn.q_proj.weight"
    });
    assert_eq!(stored.unwrap()["recipe"], "rtn(bits=4, group_size=32)");
}

#[test]
fn plain_recipes_go_through_the_same_doors() {
    let directory = scratch();
    let mut losses = Vec::new();
    for recipe in ["rtn(bits=4, group_size=32)", "gptq(bits=4, group_size=32)"] {
        let path = at(&directory, &recipe[..4]);
        let report = compress(&["--recipe", recipe, "-o", &path]);
        assert_eq!(report["recipe"], recipe);
        let plan = done(&["plan", model(), "--recipe", recipe, "--json", "--quiet"]).json();
        assert_eq!(
            number(&plan, "bytes"),
            bytes_of(&path) as f64,
            "a fixed recipe's size is known before it is coded"
        );
        losses.push(number(&judged(&path, model()), "kl"));
    }
    println!("kl at 4 bits in groups of 32: rtn {}, gptq {}", losses[0], losses[1]);
    assert!(losses[1] > 0.0 && losses[1] < losses[0], "{losses:?}");
}

#[test]
fn a_quality_is_met_by_the_written_file() {
    let directory = scratch();
    let path = at(&directory, "quality.lam");
    let quick = ["--recipe", "house(trellis=0, passes=1)", "--tokens", "2048"];
    let report = compress(&[&["--quality", "kl=0.05", "-o", &path], &quick[..]].concat());
    let kl = number(&judged(&path, model()), "kl");
    println!("kl=0.05: {kl} at {} bytes", bytes_of(&path));
    assert!(kl <= 0.05 && kl > 0.04, "{kl}");
    assert_eq!(number(&report, "bytes"), bytes_of(&path) as f64);
}

#[test]
fn a_sequential_pass_meets_the_size_too() {
    let directory = scratch();
    let path = at(&directory, "sequential.lam");
    compress(&[&["--size", "10%", "--sequential", "-o", &path], &LIGHT[..]].concat());
    let (bytes, target) = (bytes_of(&path) as f64, 0.1 * MODEL_BYTES);
    assert!(bytes <= target && bytes >= 0.99 * target, "{bytes} of {target}");
    let plain = at(&directory, "plain.lam");
    compress(&[&["--size", "10%", "-o", &plain], &LIGHT[..]].concat());
    let (sequential, plain) = (number(&judged(&path, model()), "kl"), number(&judged(&plain, model()), "kl"));
    println!("kl at 10 %: sequential {sequential}, one pass {plain}");
    assert!(sequential < 1.5 * plain, "{sequential} {plain}");
}
