//! Every gradient against finite differences, for every form of network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use lamella_nn::{
    Activation, AdamW, Block, FeedForward, Linear, Network, NetworkError, Norm, NormKind, Parts, Pooling,
    Reference, Rotation, Tables, cosine,
};

const HIDDEN: usize = 8;
const VOCAB: usize = 11;

/// Numbers around 0 with the given spread.
struct Numbers(u64);
impl Numbers {
    fn one(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    fn many(&mut self, n: usize, spread: f32) -> Vec<f32> {
        (0..n).map(|_| self.one() * spread).collect()
    }
}

/// What differs between families.
#[derive(Clone, Copy)]
struct Form {
    norm: NormKind,
    is_norm_first: bool,
    is_decoder: bool,
    is_gated: bool,
    has_bias: bool,
    has_head_norms: bool,
    is_joined: bool,
    kv_heads: usize,
    window: Option<usize>,
    has_rotation: bool,
    activation: Activation,
    pooling: Pooling,
}

const LLAMA: Form = Form {
    norm: NormKind::RootMeanSquare,
    is_norm_first: true,
    is_decoder: true,
    is_gated: true,
    has_bias: false,
    has_head_norms: false,
    is_joined: false,
    kv_heads: 1,
    window: None,
    has_rotation: true,
    activation: Activation::Silu,
    pooling: Pooling::Mean,
};
const QWEN: Form = Form { has_bias: true, has_head_norms: true, kv_heads: 2, window: Some(9), ..LLAMA };
const GPT: Form = Form {
    norm: NormKind::Layer,
    is_gated: false,
    has_bias: true,
    is_joined: true,
    kv_heads: 2,
    has_rotation: false,
    activation: Activation::GeluTanh,
    ..LLAMA
};
const BERT: Form =
    Form { is_norm_first: false, is_decoder: false, is_joined: false, activation: Activation::Gelu, ..GPT };
const FIRST: Form = Form { pooling: Pooling::First, ..BERT };

fn network(form: Form, seed: u64) -> Network {
    let mut numbers = Numbers(seed);
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    let mut keep = |vector: Vec<f32>| {
        vectors.push(vector);
        vectors.len() - 1
    };
    let (heads, d, wide) = (2, 4, 12);
    macro_rules! norm {
        ($width:expr) => {
            Norm {
                weight: keep(numbers.many($width, 0.4).iter().map(|x| 1.0 + x).collect()),
                bias: (form.norm == NormKind::Layer).then(|| keep(numbers.many($width, 0.3))),
            }
        };
    }
    macro_rules! linear {
        ($inputs:expr, $outputs:expr) => {
            Linear {
                weight: numbers.many($inputs * $outputs, 0.6).into(),
                in_features: $inputs,
                out_features: $outputs,
                bias: form.has_bias.then(|| keep(numbers.many($outputs, 0.3))),
            }
        };
    }
    let blocks = (0..2)
        .map(|_| Block {
            attention_norm: norm!(HIDDEN),
            query_key_value: if form.is_joined {
                vec![linear!(HIDDEN, (heads + 2 * form.kv_heads) * d)]
            } else {
                vec![
                    linear!(HIDDEN, heads * d),
                    linear!(HIDDEN, form.kv_heads * d),
                    linear!(HIDDEN, form.kv_heads * d),
                ]
            },
            head_norms: form.has_head_norms.then(|| (norm!(d), norm!(d))),
            output: linear!(heads * d, HIDDEN),
            window: form.window,
            feed_forward_norm: norm!(HIDDEN),
            feed_forward: FeedForward {
                gate: form.is_gated.then(|| linear!(HIDDEN, wide)),
                up: linear!(HIDDEN, wide),
                down: linear!(wide, HIDDEN),
            },
        })
        .collect();
    let embedding_norm = (!form.is_decoder).then(|| norm!(HIDDEN));
    let final_norm = form.is_decoder.then(|| norm!(HIDDEN));
    let head = form.is_decoder.then(|| linear!(HIDDEN, VOCAB));
    Network::new(Parts {
        hidden_size: HIDDEN,
        n_heads: heads,
        kv_heads: form.kv_heads,
        head_dim: d,
        is_causal: form.is_decoder,
        norm: form.norm,
        norm_epsilon: 1e-5,
        is_norm_first: form.is_norm_first,
        activation: form.activation,
        rotation: form.has_rotation.then(|| Rotation::new(&[1.0], 1.1, 80)),
        tables: Tables {
            tokens: numbers.many(VOCAB * HIDDEN, 1.0).into(),
            positions: (!form.has_rotation).then(|| (Arc::from(numbers.many(90 * HIDDEN, 0.3)), 2)),
            constant: (!form.is_decoder).then(|| numbers.many(HIDDEN, 0.2)),
        },
        embedding_norm,
        blocks,
        final_norm,
        head,
        pooling: form.pooling,
        vectors,
    })
    .unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    // One longer than the queries that attention takes at a time.
    [3usize, 70, 17].iter().map(|&n| (0..n).map(|i| ((i * i * 7 + n + i) % VOCAB) as u32).collect()).collect()
}

fn references(original: &Network, texts: &[Vec<u32>]) -> Vec<Reference> {
    texts.iter().map(|text| original.reference(text).unwrap()).collect()
}

fn check(name: &str, form: Form) {
    let (original, mut network) = (network(form, 1), network(form, 1));
    let mut numbers = Numbers(9);
    // Away from the minimum, where gradients are zero.
    for vector in network.vectors_mut() {
        vector.iter_mut().for_each(|x| *x += 0.3 * numbers.one());
    }
    let texts = texts();
    let references = references(&original, &texts);
    let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
    let (loss, gradient) = network.gradient(&original, &batch).unwrap();
    assert!((loss - network.loss(&original, &batch).unwrap()).abs() < 1e-9 && loss > 1e-3, "{name}: {loss}");
    let h = 0.01;
    for vector in 0..gradient.len() {
        let largest = gradient[vector].iter().fold(0.0f32, |most, g| most.max(g.abs()));
        let length = gradient[vector].len();
        for element in [0, length / 2, length - 1] {
            let mut at = |distance: f32| {
                let before = network.vectors()[vector][element];
                network.vectors_mut()[vector][element] = before + distance;
                let loss = network.loss(&original, &batch).unwrap();
                network.vectors_mut()[vector][element] = before;
                loss
            };
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
            let found = f64::from(gradient[vector][element]);
            let allowed = 2e-5 + 0.01 * f64::from(largest);
            assert!(
                (slope - found).abs() < allowed,
                "{name}: vector {vector}[{element}] {found} against {slope}"
            );
        }
    }
}

#[test]
fn gradients_of_grouped_queries_rotation_and_gates() {
    check("llama", LLAMA);
}

#[test]
fn gradients_of_head_norms_windows_and_biases() {
    check("qwen", QWEN);
}

#[test]
fn gradients_of_layer_norms_learned_positions_and_joined_projections() {
    check("gpt", GPT);
}

#[test]
fn gradients_of_encoders() {
    check("bert", BERT);
    check("first row", FIRST);
}

#[test]
fn the_original_is_at_distance_zero_from_itself() {
    for form in [LLAMA, BERT] {
        let network = network(form, 3);
        let texts = texts();
        let references = references(&network, &texts);
        let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
        let (loss, gradient) = network.gradient(&network, &batch).unwrap();
        assert!(loss.abs() < 1e-7, "{loss}");
        assert!(gradient.iter().flatten().all(|g| g.abs() < 1e-5));
    }
}

#[test]
fn descent_finds_back_what_was_displaced() {
    let original = network(BERT, 5);
    let mut tuned = original.clone();
    let mut numbers = Numbers(2);
    for vector in tuned.vectors_mut() {
        vector.iter_mut().for_each(|x| *x += 0.1 * numbers.one());
    }
    let texts = texts();
    let references = references(&original, &texts);
    let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
    let before = tuned.loss(&original, &batch).unwrap();
    let mut optimizer = AdamW::new(tuned.vectors());
    let rates = vec![0.02f32; tuned.vectors().len()];
    for step in 0..60 {
        let (_, gradient) = tuned.gradient(&original, &batch).unwrap();
        let rates: Vec<f32> = rates.iter().map(|rate| rate * cosine(step, 60)).collect();
        optimizer.step(tuned.vectors_mut(), &gradient, &rates);
    }
    let after = tuned.loss(&original, &batch).unwrap();
    assert!(after < 0.05 * before, "{before} to {after}");
}

#[test]
fn the_same_bits_on_one_thread_and_on_three() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (original, own) = (network(GPT, 1), network(GPT, 2));
        let texts = texts();
        let references = references(&original, &texts);
        let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
        pool.install(|| own.gradient(&original, &batch).unwrap())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let network = network(BERT, 1);
    assert_eq!(network.reference(&[99]).unwrap_err(), NetworkError::Token { token: 99, position: 0 });
    assert!(matches!(network.reference(&vec![1; 89]), Err(NetworkError::Token { position: 88, .. })));
    let rows = Reference::Rows(vec![0.0; HIDDEN]);
    assert_eq!(network.loss(&network, &[(&[1], &rows)]).unwrap_err(), NetworkError::Reference);
}
