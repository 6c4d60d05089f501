//! Runs: the loss falls, an interrupted one ends as an uninterrupted one, what is written opens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lamella_codec::{Dtype, Progress, TensorSource};
use lamella_io::ModelDirectory;
use lamella_lm::statistics::{Provenance, Statistics};
use lamella_lm::{Model, Network, Tokenizer};
use lamella_nn::train::{Run, Schedule, Shape, Texts, TrainError, TrainReport, write_model};
use lamella_nn::{Named, Pooling, Trained, fisher, read};

/// Asks to stop after so many steps.
struct Stops(usize, AtomicUsize);

impl Progress for Stops {
    fn advance(&self, _stage: &str, done: u64, _total: u64, _current: &str) {
        self.1.store(done as usize, Ordering::Relaxed);
    }
    fn is_interrupted(&self) -> bool {
        self.1.load(Ordering::Relaxed) >= self.0
    }
}

const TEXT: &str = "the quick brown fox jumps over the lazy dog and runs away from the dog\n";

struct Set {
    texts: Texts,
    tokenizer: Tokenizer,
    tokenizer_json: String,
    shape: Shape,
    schedule: Schedule,
}

fn set(experts: usize) -> Set {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    fs_err::write(&path, TEXT.repeat(60)).unwrap();
    let texts = Texts::read(&path).unwrap();
    let tokenizer_json = Tokenizer::train(&[&texts.learned[0]], 280).unwrap();
    let tokenizer = Tokenizer::from_bytes(tokenizer_json.as_bytes()).unwrap();
    let shape = Shape {
        hidden_size: 16,
        n_blocks: 2,
        n_heads: 4,
        kv_heads: 2,
        intermediate_size: 24,
        vocab_size: tokenizer.vocab_size(),
        n_experts: experts,
        experts_per_token: 2,
        context: 16,
    };
    let schedule = Schedule {
        steps: 30,
        batch: 6,
        context: 16,
        rate: 0.01,
        warmup: 3,
        decay: 0.1,
        balance: 0.01,
        seed: 7,
        is_checkpointed: false,
        look_every: 10,
    };
    Set { texts, tokenizer, tokenizer_json, shape, schedule }
}

impl Set {
    fn begin(&self) -> (Arc<dyn TensorSource>, Named) {
        let source: Arc<dyn TensorSource> = Arc::new(self.shape.weights(self.schedule.seed).unwrap());
        let network = Network::open(&self.shape.config(), Arc::clone(&source)).unwrap();
        let named = read(&network, &*source, self.shape.context, Pooling::Mean, Trained::Everything).unwrap();
        (source, named)
    }

    fn run(
        &self,
        named: &mut Named,
        state: &Path,
        (resumes, stop): (bool, usize),
    ) -> Result<TrainReport, TrainError> {
        let (tokens, held_out) = self.texts.tokens(&self.tokenizer).unwrap();
        let run = Run {
            schedule: &self.schedule,
            tokens: &tokens,
            held_out: &held_out,
            decayed: vec![1.0; named.parameters.len()],
            state: state.to_owned(),
            resumes,
        };
        run.train(named, &Stops(stop, AtomicUsize::new(0)))
    }
}

#[test]
fn the_loss_falls_and_what_is_written_opens() {
    for experts in [0, 3] {
        let mut set = set(experts);
        set.schedule.steps = 60;
        let folder = tempfile::tempdir().unwrap();
        let (source, mut named) = set.begin();
        let report = set.run(&mut named, &folder.path().join("state"), (false, usize::MAX)).unwrap();
        let perplexity = report.held_out_perplexity.unwrap();
        let before = f64::from(u32::try_from(set.shape.vocab_size).unwrap());
        assert!(perplexity < before / 20.0, "{perplexity} of {before} tokens: {report:?}");
        assert_eq!(report.expert_usage.len(), if experts > 0 { 2 } else { 0 });
        assert!(report.expert_usage.iter().all(|shares| (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9));
        let side_files = [("tokenizer.json".to_owned(), set.tokenizer_json.clone().into_bytes())];
        let beside = (&set.shape.config(), &side_files[..]);
        write_model(folder.path(), &*source, &named, Dtype::F32, beside, &set.texts).unwrap();
        let directory = Arc::new(ModelDirectory::open(folder.path()).unwrap());
        let side_files = directory.side_files().unwrap().into_iter().collect();
        let model = Model::open(directory.clone(), &side_files).unwrap();
        let tokens = model.tokenizer.unwrap().encode("the lazy dog", false).unwrap();
        let theirs = model
            .network
            .logits(&model.network.forward(std::slice::from_ref(&tokens)).unwrap(), None)
            .unwrap();
        let ours = named.network.logits(&tokens).unwrap().unwrap();
        assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| (ours - theirs).abs() < 1e-3));
        assert!(directory.evaluation_text().is_some() && directory.calibration_text().is_some());
    }
}

#[test]
fn a_resumed_run_ends_as_an_uninterrupted_one_at_any_thread_count() {
    let set = set(2);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (_, mut whole) = set.begin();
    pool(1).install(|| set.run(&mut whole, &state, (false, usize::MAX))).unwrap();
    let (_, mut stopped) = set.begin();
    let stop = pool(3).install(|| set.run(&mut stopped, &state, (false, 11)));
    assert!(matches!(stop, Err(TrainError::Interrupted(_))));
    let (_, mut resumed) = set.begin();
    set.run(&mut resumed, &state, (true, usize::MAX)).unwrap();
    assert_eq!(resumed.network.parameters(), whole.network.parameters());
    let mut other = set;
    other.schedule.seed = 8;
    let error = other.run(&mut resumed, &state, (true, usize::MAX)).unwrap_err();
    assert!(error.to_string().contains("another schedule"), "{error}");
    let bytes = fs_err::read(&state).unwrap();
    fs_err::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    other.schedule.seed = 7;
    assert!(other.run(&mut resumed, &state, (true, usize::MAX)).is_err());
}

#[test]
fn a_rate_that_is_too_high_and_a_text_that_is_too_short_are_errors() {
    let mut set = set(0);
    set.schedule.rate = 1e30;
    let (_, mut named) = set.begin();
    let state = Path::new("unused");
    let error = set.run(&mut named, state, (false, usize::MAX)).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    set.texts.learned = vec!["dog".to_owned()];
    let error = set.run(&mut named, state, (false, usize::MAX)).unwrap_err();
    assert!(matches!(error, TrainError::TooLittleText { .. }), "{error}");
    set.shape.kv_heads = 3;
    assert!(set.shape.check().unwrap_err().to_string().contains("kv-heads"));
}

#[test]
fn fisher_information_is_the_square_of_finite_differences() {
    let set = set(2);
    let (_, mut named) = set.begin();
    let (tokens, _) = set.texts.tokens(&set.tokenizer).unwrap();
    let texts: Vec<&[u32]> = tokens.chunks_exact(16).take(3).collect();
    let provenance = || Provenance { model: "m".to_owned(), texts: Vec::new() };
    let (mut all, mut first, mut rest) =
        (Statistics::new(provenance()), Statistics::new(provenance()), Statistics::new(provenance()));
    let silent = |_: u64, _: u64, _: &str| {};
    fisher(&named, &texts, &mut all, &silent).unwrap();
    fisher(&named, &texts[..1], &mut first, &silent).unwrap();
    fisher(&named, &texts[1..], &mut rest, &silent).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics");
    first.merge_to_file(&rest, &path).unwrap();
    let merged = Statistics::open(&path).unwrap();
    let h = 0.01f32;
    for index in 0..named.parameters.len() {
        let name = named.parameters[index].name.clone();
        let found = all.fisher(&name).unwrap().unwrap();
        assert_eq!(found.tokens(), 45);
        let sums = merged.fisher(&name).unwrap().unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 + 1e-9 * a.abs();
        assert!(sums.sums().iter().zip(found.sums()).all(|(&a, &b)| close(a, b)), "{name}");
        // The element with the largest entry: the others' slopes drown in the loss's rounding.
        let largest =
            (0..found.sums().len()).max_by(|&a, &b| found.sums()[a].total_cmp(&found.sums()[b])).unwrap();
        let mut expected = 0.0;
        for text in &texts {
            let mut at = |distance: f32| {
                let before = named.network.parameters()[index][largest];
                named.network.parameters_mut()[index][largest] = before + distance;
                let loss = named.network.next_token_loss(&[text]).unwrap();
                named.network.parameters_mut()[index][largest] = before;
                loss * (text.len() - 1) as f64
            };
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
            expected += slope * slope;
        }
        let found = found.sums()[largest];
        assert!((found - expected).abs() < 0.03 * expected + 1e-6, "{name}: {found} against {expected}");
    }
}
