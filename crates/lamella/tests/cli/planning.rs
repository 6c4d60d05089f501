//! Plans that are edited and given back, ties, and the report for a browser.

use std::collections::BTreeSet;

use crate::support::{at, done, model, number, refused, scratch, short_text};

const COMMON: [&str; 4] = ["--size", "12%", "--recipe", "house(trellis=3)"];

#[test]
fn an_edited_plan_decides_recipes_and_steps() {
    let directory = scratch();
    let (plan, output, page) =
        (at(&directory, "plan.toml"), at(&directory, "m.lam"), at(&directory, "r.html"));
    let printed = done(&[&["plan", model(), "--toml", "--allocate", "uniform"], &COMMON[..]].concat()).out;
    assert_eq!(printed.matches("[[array]]").count(), 47, "{printed}");
    let (gate, down) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.4.mlp.down_proj.weight");
    let mut arrays: Vec<String> = printed.split("[[array]]").map(str::to_owned).collect();
    for array in &mut arrays {
        if array.contains(&format!("\"{gate}\"")) {
            *array = array.replace("step_ratio = 1.0", "step_ratio = 0.5");
        } else if array.contains(&format!("\"{down}\"")) {
            *array = array.replace("recipe = \"house(trellis=3)\"", "recipe = \"rtn(bits=3)\"");
        }
    }
    std::fs::write(&plan, arrays.join("[[array]]")).unwrap();
    let ran = ["compress", model(), "--plan", &plan, "-o", &output, "--report", &page, "--json"];
    let report = done(&ran).json();
    let target = number(&report, "target_bytes");
    assert!(number(&report, "bytes") <= target && number(&report, "bytes") >= 0.99 * target, "{report}");
    let row = |name: &str| {
        let mut rows = report["arrays"].as_array().unwrap().iter();
        rows.find(|row| row["name"] == name).unwrap()
    };
    assert_eq!(row(down)["recipe"], "rtn(bits=3)");
    assert_eq!(row(gate)["step_ratio"], 0.5);
    let twin = row("model.layers.0.mlp.up_proj.weight");
    assert!(number(row(gate), "bits_per_weight") > number(twin, "bits_per_weight") + 0.6, "{report}");
    let page = std::fs::read_to_string(&page).unwrap();
    // Bits of each array, predicted against measured; nothing from elsewhere.
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains(gate) && !page.contains("http-equiv") && !page.contains("src="));

    std::fs::write(&plan, printed.replace(down, "model.layers.9.mlp.down_proj.weight")).unwrap();
    refused(
        &["plan", model(), "--plan", &plan],
        &["model.layers.9.mlp.down_proj.weight", "matches no array"],
    );
    std::fs::write(&plan, printed.replace("step_ratio", "stepratio")).unwrap();
    refused(&["plan", model(), "--plan", &plan], &["is no plan", "stepratio", "hint: "]);
}

#[test]
fn tied_arrays_share_a_step_and_the_plan_foresees_loss_time_and_memory() {
    let directory = scratch();
    let page = at(&directory, "r.html");
    let tie = "*.q_proj.weight,*.k_proj.weight,*.v_proj.weight";
    let short = short_text(&directory);
    let text = ["--calibrate", &short, "--tokens", "256"];
    let asked = ["plan", model(), "--tie", tie, "--report", &page, "--json"];
    let arguments = [&asked, &COMMON[..], &text].concat();
    let report = done(&arguments).json();
    let ratios: BTreeSet<String> = report["arrays"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| {
            ["q_proj", "k_proj", "v_proj"].iter().any(|part| row["name"].as_str().unwrap().contains(part))
        })
        .map(|row| row["step_ratio"].to_string())
        .collect();
    assert_eq!(ratios.len(), 1, "{ratios:?}");
    let found = &report["allocation"];
    assert!(number(found, "loss") < number(found, "uniform_loss"), "{found}");
    assert_eq!(found["curve"].as_array().unwrap().len(), 10);
    let estimate = &report["estimate"];
    assert!(number(estimate, "seconds") > 0.0 && number(estimate, "memory_bytes") > 1e6, "{estimate}");
    assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<svg").count(), 2);
    refused(
        &["plan", model(), "--size", "12%", "--tie", "*.q_proj.weight,nothing"],
        &["`nothing` matches no array"],
    );
    refused(&["plan", model(), "--size", "12%", "--tie", "model.norm.weight"], &["fewer than two arrays"]);
}

#[test]
fn candidates_are_measured_once_and_the_plan_they_give_keeps_the_size() {
    let directory = scratch();
    let (plan, points) = (at(&directory, "plan.toml"), at(&directory, "points"));
    let short = short_text(&directory);
    let text = ["--calibrate", &short, "--tokens", "256"];
    let rest = [&["--candidate", "exact", "--points", &points, "--toml"], &text[..]].concat();
    let arguments = [&["plan", model()], &COMMON[..], &rest[..]].concat();
    let first = done(&arguments).out;
    let measured = std::fs::read_to_string(&points).unwrap();
    assert_eq!(measured.lines().count(), 36, "{measured}");
    // A kill in the middle of a line; then everything is there again and the plan is the same.
    let cut = &measured[..measured.len() - 40];
    std::fs::write(&points, cut).unwrap();
    assert_eq!(done(&[&arguments[..], &["--threads", "1"]].concat()).out, first);
    assert_eq!(std::fs::read_to_string(&points).unwrap().lines().count(), 36 + 1);
    std::fs::write(&plan, first).unwrap();
    let report = done(&[&["plan", model(), "--plan", &plan, "--json"], &text[..]].concat()).json();
    assert!(number(&report, "bytes") <= number(&report, "target_bytes"), "{report}");
}
