//! Every codec of the wing keeps the laws that all codecs keep, whatever it is handed.
//!
//! A codec that is registered and has no line in [`recipes`] fails the first test, so that none is forgotten.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it measured, and panics where it cannot go on"
)]

use lamella_codec::Catalogue;
use lamella_codec::suite::{Cases, check_recipe};
use lamella_weights::systems::codecs;

/// Recipes per codec: the defaults, the narrowest and widest forms, every way to store a grid or an order.
fn recipes(codec: &str) -> Option<&'static [&'static str]> {
    Some(match codec {
        "exact" => &["exact"],
        "rtn" => &["rtn(bits=2, group_size=32, zero=integer)", "rtn(bits=4)", "rtn(bits=8, group_size=1)"],
        "gptq" => &[
            "gptq(bits=3)",
            "gptq(bits=4, group_size=16, groups=dynamic, order=activation)",
            "gptq(bits=2, group_size=32, zero=integer, order=activation)",
        ],
        "house" => &[
            "house(bits=3)",
            "house(bits=2, trellis=0, passes=1)",
            "house(bits=2, trellis=8, passes=1)",
            "house(execute=int4)",
            "house(execute=int8)",
        ],
        "elutq" => &[
            "elutq",
            "elutq(bits=3, group_size=16, fit=gradient)",
            "elutq(bits=1, group_size=8, repick=false)",
            "elutq(execute=codes, bits=3, group_size=32)",
        ],
        "decoupleq" => &["decoupleq", "decoupleq(bits=3, group_size=16, shrinks=20)"],
        "spqr" => &[
            "spqr",
            "spqr(bits=4, threshold=0.05, order=natural)",
            "spqr(bits=2, scale_bits=16, group_size=5)",
            "spqr(execute=codes, bits=4, order=natural)",
        ],
        "progressive" => &[
            "progressive",
            "progressive(bits=3, base=3, rank=4, threshold=0.5)",
            "progressive(bits=7, base=3, rank=4, tables=static)",
        ],
        "bitstack" => &["bitstack", "bitstack(blocks=3, rank=2)"],
        "vptq" => &[
            "vptq(vector=2, centroids=16)",
            "vptq(vector=4, centroids=8, residual=4, order=activation, outliers=0.1, outlier_centroids=8, normalize=true)",
            "vptq(vector=2, centroids=8, axis=inputs)",
            "vptq(vector=16, centroids=5, groups=3, feedback=false)",
        ],
        "olive" => &["olive", "olive(bits=8, scale=array)", "olive(grid=flint, outliers=false)"],
        "mixllm" => {
            &["mixllm", "mixllm(share=0.5, group_size=32, choice=array)", "mixllm(share=100%, choice=random)"]
        }
        "bfp" => &["bfp", "bfp(bits=8, block=3, head=5, sort=true)", "bfp(bits=12, block=1)"],
        _ => return None,
    })
}

fn catalogue() -> Catalogue {
    Catalogue::new(Vec::new(), codecs())
}

fn check(codec: &str) {
    let catalogue = catalogue();
    let cases = match codec {
        "exact" => Cases::exact(),
        // Activations of 8 bits, and tables of 16-bit numbers.
        "house" | "mixllm" | "elutq" => Cases::default().with_execution_tolerance(0.01),
        _ => Cases::default(),
    };
    let mut n_executed = 0;
    for recipe in recipes(codec).unwrap() {
        match check_recipe(&catalogue, recipe, &cases) {
            Ok(checked) => {
                println!("{recipe}: {checked:?}");
                assert!(
                    checked.n_arrays >= 20 && checked.n_damaged >= 200,
                    "{recipe} was hardly run: {checked:?}"
                );
                n_executed += checked.n_executed;
            }
            Err(broken) => panic!("{broken}"),
        }
    }
    let registrations = codecs();
    let own = registrations.iter().find(|registration| registration.name == codec).unwrap();
    let executes = own.arguments.iter().any(|argument| argument.0 == "execute");
    assert_eq!(n_executed > 0, executes, "`{codec}`: linears that ran from codes");
}

#[test]
fn every_registered_codec_has_recipes_and_a_test() {
    let tested = ["exact", "gptq", "house", "progressive", "rtn"];
    for registration in codecs() {
        let name = registration.name;
        assert!(
            recipes(name).is_some_and(|recipes| !recipes.is_empty()),
            "`{name}` has no recipe in this file"
        );
        if !tested.contains(&name) {
            check(name);
        }
    }
}

#[test]
fn exact_keeps_the_laws() {
    check("exact");
}

#[test]
fn rtn_keeps_the_laws() {
    check("rtn");
}

#[test]
fn gptq_keeps_the_laws() {
    check("gptq");
}

#[test]
fn house_keeps_the_laws() {
    check("house");
}

#[test]
fn progressive_keeps_the_laws() {
    check("progressive");
}

#[test]
fn values_beyond_sixteen_bit_scales_are_refused_by_name() {
    use lamella_codec::{Array, ArraySpec, Dtype, Knowledge, Rate};
    let mut values = vec![0.5f32; 6 * 20];
    values[3 * 20 + 7] = -2e30;
    let array = Array::from_f32(ArraySpec::new("layers.0.up", vec![6, 20], Dtype::F32), &values).unwrap();
    for text in ["rtn(bits=4)", "gptq(bits=3)", "gptq(bits=3, zero=integer, groups=dynamic)"] {
        let codec = catalogue().codec(&text.parse().unwrap()).unwrap();
        let error = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap_err().to_string();
        assert!(error.contains("`layers.0.up`") && error.contains("-2e30 at [3, 7]"), "{text}: {error}");
    }
}

/// Reconstructions stay finite in narrow types, whose largest number a grid's last level may pass.
#[test]
fn the_largest_sixteen_bit_floats_come_back_finite() {
    use lamella_codec::{Array, ArraySpec, Dtype, Knowledge, Rate};
    for dtype in [Dtype::F16, Dtype::F8E4M3, Dtype::F8E5M2] {
        let top = match dtype {
            Dtype::F16 => 65_504.0,
            Dtype::F8E4M3 => 448.0,
            _ => 57_344.0f32,
        };
        let values: Vec<f32> = (0..4 * 32).map(|i| top * [1.0, -1.0, 0.3, -0.7, 0.99][i % 5]).collect();
        let array = Array::from_f32(ArraySpec::new("w", vec![4, 32], dtype), &values).unwrap();
        for text in
            ["rtn(bits=3)", "rtn(bits=2, zero=integer)", "gptq(bits=3, group_size=16)", "house(bits=2)"]
        {
            let codec = catalogue().codec(&text.parse().unwrap()).unwrap();
            let encoded = codec.encode(&array, &Knowledge::default(), Rate::Recipe).unwrap();
            let decoded = codec.decode(&array.spec, &[&encoded.layers[0].payload]).unwrap();
            assert_eq!(decoded.first_non_finite(), None, "{text} {}", dtype.name());
        }
    }
}
