//! Other dtypes, shards, tied weights, and files that nobody knows.

use std::path::Path;

use lamella::codec::{Array, ArraySpec, Dtype};

use crate::support::{
    arrays, at, done, index_path, judged, lamella, model_of, number, refused, scratch, text, write,
};

fn recipe_of<'a>(report: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let arrays = report["arrays"].as_array().unwrap();
    arrays.iter().find(|array| array["name"] == name).unwrap_or_else(|| panic!("no `{name}` in the report"))
}

#[test]
fn sixteen_bit_models_come_back_in_their_own_type() {
    for dtype in [Dtype::BF16, Dtype::F16] {
        let arrays = arrays(dtype);
        let directory = model_of(&[("model.safetensors", &arrays)]);
        let output = at(&directory, "small.lam");
        let bytes = std::fs::metadata(directory.path().join("model.safetensors")).unwrap().len() as f64;
        let report = done(&[
            "compress",
            text(&directory),
            "--allocate",
            "uniform",
            "--recipe",
            "house(trellis=3)",
            "--size",
            "30%",
            "-o",
            &output,
            "--json",
        ])
        .json();
        assert!(number(&report, "bytes") <= 0.3 * bytes && number(&report, "bytes") >= 0.297 * bytes);
        let kl = number(&judged(&output, text(&directory)), "kl");
        println!("{}: kl {kl} at 30 % of the weight file", dtype.name());
        assert!(kl > 0.0 && kl < 0.05, "{kl}");
        let expanded = at(&directory, "expanded");
        done(&["expand", &output, "-o", &expanded]);
        let back = lamella::io::open_model(&expanded).unwrap();
        let back = lamella::codec::TensorSource::arrays(&back).to_vec();
        assert_eq!(back.len(), arrays.len());
        assert!(back.iter().all(|spec| spec.dtype == dtype), "{back:?}");
        assert_eq!(
            std::fs::metadata(Path::new(&expanded).join("model.safetensors")).unwrap().len() as f64,
            bytes
        );
    }
}

#[test]
fn shards_are_read_by_their_index_and_come_back_as_shards() {
    let all = arrays(Dtype::F32);
    let (first, second) = all.split_at(20);
    let shards = [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)];
    let directory = model_of(&shards);
    let output = at(&directory, "sharded.lam");
    done(&[
        "compress",
        text(&directory),
        "--allocate",
        "uniform",
        "--recipe",
        "house(trellis=3)",
        "--size",
        "20%",
        "-o",
        &output,
    ]);
    let expanded = at(&directory, "expanded");
    done(&["expand", &output, "-o", &expanded]);
    for (name, arrays) in shards {
        let shard = lamella::io::open_model(&format!("{expanded}/{name}")).unwrap();
        assert_eq!(lamella::codec::TensorSource::arrays(&shard).len(), arrays.len(), "{name}");
    }
    assert_eq!(done(&["diff", &output, &expanded, "--json"]).json()["same"], true);
    let index = std::fs::read(index_path(&directory)).unwrap();
    assert!(std::fs::read(Path::new(&expanded).join("model.safetensors.index.json")).unwrap() == index);
    std::fs::remove_file(directory.path().join(shards[1].0)).unwrap();
    refused(&["plan", text(&directory), "--size", "20%"], &["model-00002-of-00002.safetensors"]);
}

#[test]
fn twins_are_stored_once_and_counted_once() {
    let mut all = arrays(Dtype::F32);
    let embedding = all.iter().find(|array| array.spec.name == "model.embed_tokens.weight").unwrap();
    let head = ArraySpec::new("lm_head.weight", embedding.spec.shape.clone(), Dtype::F32);
    all.push(Array::new(head, embedding.bytes.to_vec()).unwrap());
    let directory = model_of(&[("model.safetensors", &all)]);
    let config = directory.path().join("config.json");
    let untied = std::fs::read_to_string(&config)
        .unwrap()
        .replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    std::fs::write(&config, untied).unwrap();
    let output = at(&directory, "twins.lam");
    let report = done(&[
        "compress",
        text(&directory),
        "--allocate",
        "uniform",
        "--recipe",
        "house(trellis=3)",
        "--size",
        "150KB",
        "-o",
        &output,
        "--json",
    ])
    .json();
    assert_eq!(number(&report, "weights"), 260_032.0);
    let twins = ["lm_head.weight", "model.embed_tokens.weight"].map(|name| recipe_of(&report, name));
    let stored_once =
        twins.iter().filter(|row| row["reason"].as_str().unwrap().starts_with("the same numbers as"));
    assert_eq!(stored_once.count(), 1, "{twins:?}");
    let kl = number(&judged(&output, text(&directory)), "kl");
    assert!(kl < 0.05, "{kl}");
    let expanded = at(&directory, "expanded");
    done(&["expand", &output, "-o", &expanded]);
    let back = lamella::io::open_model(&expanded).unwrap();
    let bytes = |name: &str| lamella::codec::TensorSource::array(&back, name).unwrap().bytes.to_vec();
    assert!(bytes("lm_head.weight") == bytes("model.embed_tokens.weight"));
}

/// Numbers like a weight's: spread 0.05, different in every array.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| 0.1 * (uniform() + uniform() + uniform())).collect()
}

#[test]
fn an_unknown_file_compresses_with_a_warning_and_nothing_is_skipped() {
    let directory = scratch();
    let floats = |name: &str, shape: &[usize], dtype, seed| {
        let values = numbers(shape.iter().product(), seed);
        Array::from_f32(ArraySpec::new(name, shape.to_vec(), dtype), &values).unwrap()
    };
    let mut broken = numbers(40 * 40, 9);
    broken[77] = f32::NAN;
    let tokens: Vec<u8> = (0..100u64).flat_map(|i| (i * i).to_le_bytes()).collect();
    let all = [
        floats("alpha", &[200, 96], Dtype::F32, 1),
        floats("beta", &[64, 300], Dtype::BF16, 2),
        floats("convolution", &[16, 8, 3, 3], Dtype::F32, 3),
        floats("bias", &[300], Dtype::F32, 4),
        floats("nothing", &[0, 5], Dtype::F32, 5),
        floats("wide", &[3, 700], Dtype::F16, 6),
        floats("tall", &[900, 1], Dtype::F32, 7),
        Array::from_f32(ArraySpec::new("broken", vec![40, 40], Dtype::F32), &broken).unwrap(),
        Array::new(ArraySpec::new("tokens", vec![10, 10], Dtype::I64), tokens).unwrap(),
        Array::from_f32(ArraySpec::new("scalar", vec![], Dtype::F32), &[2.5]).unwrap(),
    ];
    let file = directory.path().join("odd.safetensors");
    write(&file, &all);
    let (file, output) = (file.to_str().unwrap(), at(&directory, "odd.lam"));
    let ran =
        done(&["compress", file, "--size", "25KB", "--recipe", "house(trellis=3)", "-o", &output, "--json"]);
    assert!(ran.err.contains("warning: the model's architecture is not known"), "{ran:?}");
    let report = ran.json();
    let bytes = number(&report, "bytes");
    assert!((24_750.0..=25_000.0).contains(&bytes), "{bytes}");
    assert!(report["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty()));
    assert_eq!(report["arrays"].as_array().unwrap().len(), all.len());
    let matrices = ["alpha", "beta", "convolution", "wide", "tall"];
    for array in &all {
        let row = recipe_of(&report, &array.spec.name);
        if matrices.contains(&array.spec.name.as_str()) {
            assert_eq!(row["recipe"], "house(trellis=3)", "{row}");
        } else {
            assert_eq!(row["recipe"], "exact", "{row}");
            assert_ne!(row["reason"], "", "{row}");
        }
    }
    for (name, reason) in
        [("broken", "not finite"), ("bias", "1 axis"), ("tokens", "not floating"), ("nothing", "empty")]
    {
        let row = recipe_of(&report, name);
        assert!(row["reason"].as_str().unwrap().contains(reason), "{row}");
    }
    let diff = lamella(&["diff", &output, file, "--json"]);
    assert_eq!(diff.code, Some(1), "{diff:?}");
    for row in diff.json()["arrays"].as_array().unwrap() {
        let is_matrix = matrices.contains(&row["name"].as_str().unwrap());
        assert_eq!(row["state"], if is_matrix { "other numbers" } else { "same" }, "{row}");
    }
    for recipe in ["rtn(bits=3)", "gptq(bits=3)"] {
        done(&["compress", file, "--recipe", recipe, "-o", &output, "--overwrite"]);
    }
    let exact = done(&["compress", file, "--recipe", "exact", "-o", &output, "--overwrite", "--json"]).json();
    assert!(number(&exact, "bytes") < std::fs::metadata(file).unwrap().len() as f64);
    assert_eq!(lamella(&["diff", &output, file]).code, Some(0));
}

/// A matrix with few rows and very many columns must not cost their square.
#[test]
fn a_wide_matrix_costs_what_it_holds() {
    let directory = scratch();
    let file = directory.path().join("wide.safetensors");
    let wide = ArraySpec::new("wide", vec![2, 60_000], Dtype::F32);
    write(&file, &[Array::from_f32(wide, &numbers(120_000, 3)).unwrap()]);
    let output = at(&directory, "wide.lam");
    done(&["compress", file.to_str().unwrap(), "--recipe", "gptq(bits=4)", "-o", &output]);
}
