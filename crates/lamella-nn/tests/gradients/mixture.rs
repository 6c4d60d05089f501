//! The trained mixture that comes with the project.

use std::path::Path;
use std::sync::Arc;

use lamella_io::ModelDirectory;
use lamella_lm::Model;
use lamella_nn::{Pooling, Trained, read};

#[test]
#[allow(clippy::print_stdout, reason = "the test says what it measured")]
fn the_mixture_that_comes_with_the_project_predicts_and_uses_its_experts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/bard-moe");
    let directory = Arc::new(ModelDirectory::open(&path).unwrap());
    assert!(directory.weight_bytes() < 1_000_000);
    let side_files = directory.side_files().unwrap().into_iter().collect();
    let model = Model::open(directory.clone(), &side_files).unwrap();
    let text = fs_err::read_to_string(directory.evaluation_text().unwrap()).unwrap();
    let tokens = model.tokenizer.as_ref().unwrap().encode(&text, false).unwrap();
    let windows: Vec<&[u32]> = tokens.chunks_exact(128).take(32).collect();
    let named = read(&model.network, &*directory, 128, Pooling::Mean, Trained::Vectors).unwrap();
    let perplexity = named.network.next_token_loss(&windows).unwrap().exp();
    let usage = named.network.expert_usage(&windows).unwrap();
    println!("held-out perplexity {perplexity:.2} of {} tokens", model.network.vocab_size());
    for (block, shares) in usage.iter().enumerate() {
        let shares: Vec<String> = shares.iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
        println!("block {block}: % of choices by expert: {}", shares.join(" "));
    }
    // 512 tokens guessed alike give 512.
    assert!(perplexity < 30.0, "{perplexity}");
    assert!(usage.len() == 3 && usage.iter().flatten().all(|&share| share > 0.03), "{usage:?}");
}
