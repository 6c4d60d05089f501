//! `lamella train lm`, and the other verbs on what it writes.

use crate::support::{at, done, refused, scratch};

fn text() -> String {
    (0..120)
        .map(|line| format!("line {line}: the dog sees the fox, and the fox sees {} dogs\n", line % 7))
        .collect()
}

const SMALL: [&str; 16] = [
    "--dim",
    "16",
    "--layers",
    "2",
    "--heads",
    "2",
    "--feed-forward",
    "24",
    "--context",
    "32",
    "--batch",
    "4",
    "--vocabulary",
    "300",
    "--steps",
    "40",
];

#[test]
fn a_trained_mixture_is_judged_continued_and_compressed() {
    let folder = scratch();
    std::fs::write(at(&folder, "text.txt"), text()).unwrap();
    let (input, output) = (at(&folder, "text.txt"), at(&folder, "model"));
    let mut arguments =
        vec!["train", "lm", &input, "-o", &output, "--experts", "4", "--dtype", "bf16", "--json"];
    arguments.extend(SMALL);
    let report = done(&arguments).json();
    let perplexity = report["held_out_perplexity"].as_f64().unwrap();
    assert!(perplexity > 1.0 && perplexity < 100.0, "{report}");
    assert_eq!(report["expert_usage"].as_array().unwrap().len(), 2);
    let judged = done(&["eval", &output, "--context", "32", "--stride", "32", "--json"]).json();
    let judged = judged["perplexity"].as_f64().unwrap();
    assert!(judged < 1.3 * perplexity + 1.0, "{judged} against {perplexity}");
    assert!(!done(&["run", &output, "line 3: the", "--max-tokens", "4"]).out.is_empty());
    let packed = at(&folder, "model.lam");
    done(&["compress", &output, "--bits", "5", "-o", &packed, "--quiet"]);
    done(&["verify", &packed]);
    // The same arguments give the same bytes; further training starts from what was written.
    let again = at(&folder, "again");
    arguments[4] = &again;
    arguments.extend(["--threads", "1"]);
    done(&arguments);
    let weights = |model: &str| std::fs::read(format!("{model}/model.safetensors")).unwrap();
    assert_eq!(weights(&again), weights(&output));
    let further = at(&folder, "further");
    let report = done(&[
        "train",
        "lm",
        &input,
        "-o",
        &further,
        "--from",
        &output,
        "--context",
        "32",
        "--steps",
        "10",
        "--batch",
        "2",
        "--lr",
        "0.0005",
        "--json",
    ])
    .json();
    assert!(report["held_out_perplexity"].as_f64().unwrap() < 1.2 * perplexity, "{report}");
    refused(&arguments[..14], &["exists", "--overwrite"]);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = scratch();
    std::fs::write(at(&folder, "text.txt"), text()).unwrap();
    std::fs::write(at(&folder, "noise.bin"), [0xff, 0xfe, 0x00]).unwrap();
    let (input, output) = (at(&folder, "text.txt"), at(&folder, "model"));
    let train = |extra: &[&str], says: &[&str]| {
        let mut arguments = vec!["train", "lm", &input, "-o", &output];
        arguments.extend(extra);
        refused(&arguments, says);
    };
    train(&["--dim", "30", "--heads", "4"], &["`dim` is 30", "4 heads"]);
    train(&["--experts", "4", "--top-k", "5"], &["`top-k` is 5", "1 to 4"]);
    train(&["--vocabulary", "100"], &["257"]);
    train(&["--lr", "2"], &["--lr"]);
    train(&["--context", "60000"], &["tokens, a window needs 60001"]);
    train(&["--resume"], &["holds no interrupted run"]);
    refused(&["train", "lm", &at(&folder, "noise.bin"), "-o", &output], &["noise.bin", "holds no text"]);
    refused(&["train", "lm", &at(&folder, "absent"), "-o", &output], &["absent"]);
    assert!(!folder.path().join("model").exists() && !folder.path().join("model.part").exists());
}
