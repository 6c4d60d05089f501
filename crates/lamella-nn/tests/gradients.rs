//! Every gradient against finite differences, for every form of network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "gradients/mixture.rs"]
mod mixture;
#[path = "gradients/parity.rs"]
mod parity;
#[path = "gradients/training.rs"]
mod training;

use lamella_nn::{
    Activation, AdamW, Block, Dense, Experts, FeedForward, GradientOptions, Linear, Network, NetworkError,
    Norm, NormKind, Parts, Pooling, Reference, Rotation, Tables, Weight, cosine,
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
    /// Experts, and whether the chosen ones' probabilities are rescaled and there is a shared network.
    experts: Option<(usize, bool, bool)>,
    is_tied: bool,
    /// Whether matrices get gradients.
    trains: bool,
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
    experts: None,
    is_tied: false,
    trains: false,
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
const MIXTRAL: Form = Form { experts: Some((3, true, false)), ..LLAMA };
const QWEN_MIXTURE: Form = Form { experts: Some((3, false, true)), is_tied: true, ..QWEN };
const FIRST: Form = Form { pooling: Pooling::First, ..BERT };

/// Gathers parameters while a network is put together.
struct Maker {
    numbers: Numbers,
    parameters: Vec<Vec<f32>>,
    form: Form,
}

impl Maker {
    fn keep(&mut self, values: Vec<f32>) -> usize {
        self.parameters.push(values);
        self.parameters.len() - 1
    }
    fn norm(&mut self, width: usize) -> Norm {
        let weight = self.numbers.many(width, 0.4).iter().map(|x| 1.0 + x).collect();
        let weight = self.keep(weight);
        let bias = (self.form.norm == NormKind::Layer).then(|| {
            let bias = self.numbers.many(width, 0.3);
            self.keep(bias)
        });
        Norm { weight, bias }
    }
    fn matrix(&mut self, length: usize, spread: f32) -> Weight {
        let values = self.numbers.many(length, spread);
        if self.form.trains { Weight::Trained(self.keep(values)) } else { Weight::Constant(values.into()) }
    }
    fn linear(&mut self, in_features: usize, out_features: usize) -> Linear {
        let weight = self.matrix(in_features * out_features, 0.6);
        let bias = self.form.has_bias.then(|| {
            let bias = self.numbers.many(out_features, 0.3);
            self.keep(bias)
        });
        Linear { weight, in_features, out_features, bias }
    }
    fn dense(&mut self, wide: usize) -> Dense {
        Dense {
            gate: self.form.is_gated.then(|| self.linear(HIDDEN, wide)),
            up: self.linear(HIDDEN, wide),
            down: self.linear(wide, HIDDEN),
        }
    }
    fn feed_forward(&mut self, wide: usize) -> FeedForward {
        let Some((n_experts, is_normalized, is_shared)) = self.form.experts else {
            return FeedForward::Dense(self.dense(wide));
        };
        FeedForward::Experts(Experts {
            router: self.linear(HIDDEN, n_experts),
            experts: (0..n_experts).map(|_| self.dense(wide)).collect(),
            experts_per_token: 2,
            is_normalized,
            shared: is_shared.then(|| (self.dense(wide), self.linear(HIDDEN, 1))),
        })
    }
}

fn network(form: Form, seed: u64) -> Network {
    let mut make = Maker { numbers: Numbers(seed), parameters: Vec::new(), form };
    let (heads, d, wide) = (2, 4, 12);
    let blocks = (0..2)
        .map(|_| Block {
            attention_norm: make.norm(HIDDEN),
            query_key_value: if form.is_joined {
                vec![make.linear(HIDDEN, (heads + 2 * form.kv_heads) * d)]
            } else {
                vec![
                    make.linear(HIDDEN, heads * d),
                    make.linear(HIDDEN, form.kv_heads * d),
                    make.linear(HIDDEN, form.kv_heads * d),
                ]
            },
            head_norms: form.has_head_norms.then(|| (make.norm(d), make.norm(d))),
            output: make.linear(heads * d, HIDDEN),
            window: form.window,
            feed_forward_norm: make.norm(HIDDEN),
            feed_forward: make.feed_forward(wide),
        })
        .collect();
    let embedding_norm = (!form.is_decoder).then(|| make.norm(HIDDEN));
    let final_norm = form.is_decoder.then(|| make.norm(HIDDEN));
    let tokens = make.matrix(VOCAB * HIDDEN, 1.0);
    let head = form.is_decoder.then(|| match form.is_tied {
        true => Linear { weight: tokens.clone(), in_features: HIDDEN, out_features: VOCAB, bias: None },
        false => make.linear(HIDDEN, VOCAB),
    });
    let positions = (!form.has_rotation).then(|| (make.matrix(90 * HIDDEN, 0.3), 2));
    let constant = (!form.is_decoder).then(|| make.numbers.many(HIDDEN, 0.2));
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
        tables: Tables { tokens, positions, constant },
        embedding_norm,
        blocks,
        final_norm,
        head,
        pooling: form.pooling,
        parameters: make.parameters,
    })
    .unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    // One longer than the queries that attention takes at a time.
    [3usize, 70, 17].iter().map(|&n| (0..n).map(|i| ((i * i * 7 + n + i) % VOCAB) as u32).collect()).collect()
}

/// Shorter ones for mixtures, whose loss jumps where a token changes its experts.
fn texts_for(form: Form) -> Vec<Vec<u32>> {
    let mut texts = texts();
    if form.experts.is_some() {
        texts.iter_mut().for_each(|text| text.truncate(9));
    }
    texts
}

/// Which experts every token goes through, as shares over every beginning of every text.
fn routes(network: &Network, batch: &[&[u32]]) -> Vec<Vec<Vec<f64>>> {
    let beginnings = batch.iter().flat_map(|text| (1..=text.len()).map(|end| &text[..end]));
    beginnings.map(|beginning| network.expert_usage(&[beginning]).unwrap()).collect()
}

fn references(original: &Network, texts: &[Vec<u32>]) -> Vec<Reference> {
    texts.iter().map(|text| original.reference(text).unwrap()).collect()
}

fn check(name: &str, form: Form) {
    let (original, mut network) = (network(form, 1), network(form, 1));
    let mut numbers = Numbers(9);
    // Away from the minimum, where gradients are zero.
    for vector in network.parameters_mut() {
        vector.iter_mut().for_each(|x| *x += 0.3 * numbers.one());
    }
    let texts = texts_for(form);
    let references = references(&original, &texts);
    let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
    let (loss, gradient) = network.gradient(&original, &batch).unwrap();
    assert!((loss - network.loss(&original, &batch).unwrap()).abs() < 1e-9 && loss > 1e-3, "{name}: {loss}");
    let tokens: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
    let loss = |network: &Network| network.loss(&original, &batch).unwrap();
    slopes_agree(name, &mut network, &gradient, &tokens, loss);
}

/// Differences of four points against `gradient`, at three elements of every parameter. Elements that change a token's
/// experts within these points are left out; most do not.
fn slopes_agree(
    name: &str,
    network: &mut Network,
    gradient: &[Vec<f32>],
    batch: &[&[u32]],
    loss: impl Fn(&Network) -> f64,
) {
    let h = 0.01;
    let chosen = routes(network, batch);
    let (mut compared, mut left_out) = (0, 0);
    for index in 0..gradient.len() {
        let largest = gradient[index].iter().fold(0.0f32, |most, g| most.max(g.abs()));
        let length = gradient[index].len();
        for element in [0, length / 2, length - 1] {
            let mut is_smooth = true;
            let mut at = |distance: f32| {
                let before = network.parameters()[index][element];
                network.parameters_mut()[index][element] = before + distance;
                let loss = loss(network);
                is_smooth &= chosen.iter().all(Vec::is_empty) || routes(network, batch) == chosen;
                network.parameters_mut()[index][element] = before;
                loss
            };
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
            if !is_smooth {
                left_out += 1;
                continue;
            }
            compared += 1;
            let found = f64::from(gradient[index][element]);
            let allowed = 2e-5 + 0.01 * f64::from(largest);
            assert!(
                (slope - found).abs() < allowed,
                "{name}: parameter {index}[{element}] {found} against {slope}"
            );
        }
    }
    assert!(left_out * 4 < compared, "{name}: {left_out} left out, {compared} compared");
}

/// The loss over next tokens, with gradients in every matrix; plain and checkpointed, in groups and alone.
fn check_training(name: &str, form: Form) {
    let mut network = network(Form { trains: true, ..form }, 4);
    let texts = texts_for(form);
    let batch: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
    let found = network.next_token_gradient(&batch, GradientOptions::default()).unwrap();
    assert!((found.loss - network.next_token_loss(&batch).unwrap()).abs() < 1e-9 && found.loss > 1.0);
    let options = GradientOptions { is_checkpointed: true, ..GradientOptions::default() };
    assert_eq!(network.next_token_gradient(&batch, options).unwrap(), found, "{name}: checkpointed");
    let grouped = GradientOptions { group: 3, ..GradientOptions::default() };
    let grouped = network.next_token_gradient(&batch, grouped).unwrap();
    for (one, other) in grouped.gradient.iter().flatten().zip(found.gradient.iter().flatten()) {
        assert!((one - other).abs() < 1e-5 + 1e-4 * other.abs(), "{name}: {one} against {other}");
    }
    let loss = |network: &Network| network.next_token_loss(&batch).unwrap();
    slopes_agree(name, &mut network, &found.gradient, &batch, loss);
}

#[test]
fn matrices_of_every_decoder_learn() {
    for (name, form) in
        [("llama", LLAMA), ("qwen", QWEN), ("gpt", GPT), ("tied", Form { is_tied: true, ..GPT })]
    {
        check_training(name, form);
    }
}

#[test]
fn mixtures_of_experts_learn() {
    check_training("mixtral", MIXTRAL);
    check_training("qwen mixture", QWEN_MIXTURE);
}

#[test]
fn gradients_of_norms_around_experts() {
    check("mixtral", MIXTRAL);
    check("qwen mixture", QWEN_MIXTURE);
}

#[test]
fn matrices_are_distilled_too() {
    check("llama", Form { trains: true, ..LLAMA });
    check("bert", Form { trains: true, ..BERT });
}

#[test]
fn balance_pushes_probabilities_towards_experts_that_are_seldom_chosen() {
    let mut network = network(Form { trains: true, ..MIXTRAL }, 4);
    let texts = texts();
    let batch: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
    let found = |network: &Network, balance| {
        let options = GradientOptions { balance, ..GradientOptions::default() };
        network.next_token_gradient(&batch, options).unwrap()
    };
    let before = found(&network, 1.0).balance;
    assert!(before > 1.0 && before < 3.0, "{before}");
    for _ in 0..30 {
        let (with, without) = (found(&network, 1.0), found(&network, 0.0));
        for (values, (with, without)) in
            network.parameters_mut().iter_mut().zip(with.gradient.iter().zip(&without.gradient))
        {
            values.iter_mut().zip(with.iter().zip(without)).for_each(|(x, (a, b))| *x -= 0.3 * (a - b));
        }
    }
    let after = found(&network, 1.0).balance;
    assert!(after - 1.0 < 0.5 * (before - 1.0), "{before} to {after}");
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
    for vector in tuned.parameters_mut() {
        vector.iter_mut().for_each(|x| *x += 0.1 * numbers.one());
    }
    let texts = texts();
    let references = references(&original, &texts);
    let batch: Vec<(&[u32], &Reference)> = texts.iter().map(|text| &text[..]).zip(&references).collect();
    let before = tuned.loss(&original, &batch).unwrap();
    let mut optimizer = AdamW::new(tuned.parameters());
    let rates = vec![0.02f32; tuned.parameters().len()];
    for step in 0..60 {
        let (_, gradient) = tuned.gradient(&original, &batch).unwrap();
        let rates: Vec<f32> = rates.iter().map(|rate| rate * cosine(step, 60)).collect();
        optimizer.step(tuned.parameters_mut(), &gradient, &rates);
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
