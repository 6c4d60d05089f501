//! Writes the Hugging Face directory `assets/stories260k` out of llama2.c's stories260K.
//!
//! ```text
//! cargo run --release -p lamella-io --example convert_stories260k -- stories260K.bin assets/stories260k
//! ```
//!
//! `tokenizer.bin` must lie beside the checkpoint. Weights stay `f32`, bit for bit; only the order of rows in the
//! query and key projections changes (see the documentation of `Llama2cFile`).

use std::error::Error;
use std::path::PathBuf;

use lamella_codec::TensorSource;
use lamella_io::{Llama2cFile, ModelDirectory, SafetensorsWriter};
use serde_json::json;

const LICENSE: &str = "\
MIT License

Copyright (c) 2023 Andrej

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the \"Software\"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
";

const NOTICE: &str = "\
stories260K, a Llama of 260,032 weights trained on TinyStories by Andrej
Karpathy (github.com/karpathy/llama2.c, huggingface.co/karpathy/tinyllamas),
both under the MIT License; see LICENSE in this directory.

The weights were converted from llama2.c's checkpoint to safetensors, with the
rows of the query and key projections reordered for the Hugging Face layout,
and tokenizer.bin to tokenizer.json, by the program
crates/lamella-io/examples/convert_stories260k.rs. calibration.txt and
evaluation.txt were sampled from the model itself by
tools/make_stories_texts.py.
";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [checkpoint, destination] = &arguments[..] else {
        return Err("usage: convert_stories260k CHECKPOINT.bin DIRECTORY".into());
    };
    fs_err::create_dir_all(destination)?;

    let weights = Llama2cFile::open(checkpoint)?;
    let path = destination.join("model.safetensors");
    let mut writer = SafetensorsWriter::create(path, &[("format", "pt")], weights.arrays())?;
    for spec in weights.arrays() {
        writer.write(&weights.array(&spec.name)?)?;
    }
    writer.finish()?;

    // `config.json` and `tokenizer.json`.
    for (name, text) in ModelDirectory::open(checkpoint)?.side_files()? {
        fs_err::write(destination.join(name), text)?;
    }
    let generation = json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2});
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false
    });
    for (name, value) in [("generation_config.json", generation), ("tokenizer_config.json", tokenizer)] {
        fs_err::write(destination.join(name), format!("{value:#}\n"))?;
    }
    fs_err::write(destination.join("LICENSE"), LICENSE)?;
    fs_err::write(destination.join("NOTICE"), NOTICE)?;
    Ok(())
}
