"""Writes assets/stories260k/calibration.txt and evaluation.txt: stories sampled from the model itself.

    pip install torch transformers
    python tools/make_stories_texts.py assets/stories260k

Stories are drawn at temperature 1.0 with no other cut of the distribution, each from its own seed, until a file
holds 40,000 bytes: seeds 1, 2, 3, ... for calibration, 1,000,001, ... for evaluation. A story ends at the
model's next begin or end token or after 480 tokens; stories are separated by a blank line. Sampling runs in
double precision on one thread, so the files come out the same on every machine that has the same generator.
"""

import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BYTES_PER_FILE = 40_000
LONGEST_STORY_TOKENS = 480
BATCH = 16


def sample_stories(model, tokenizer, seeds):
    """One story per seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens = torch.full((len(seeds), 1), tokenizer.bos_token_id)
    is_open = [True] * len(seeds)
    stories = [[] for _ in seeds]
    cache, last = None, tokens
    for _ in range(LONGEST_STORY_TOKENS):
        out = model(last, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        probabilities = torch.softmax(out.logits[:, -1].double(), dim=-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator).item()
            for row, generator in zip(probabilities, generators)
        ]
        for i, token in enumerate(drawn):
            if token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
                is_open[i] = False
            elif is_open[i]:
                stories[i].append(token)
        if not any(is_open):
            break
        last = torch.tensor(drawn)[:, None]
    return [tokenizer.decode(story).strip() for story in stories]


def write_text(model, tokenizer, path, first_seed):
    """Samples until the file is long enough."""
    stories, n_bytes, seed = [], 0, first_seed
    while n_bytes < BYTES_PER_FILE:
        for story in sample_stories(model, tokenizer, range(seed, seed + BATCH)):
            if n_bytes < BYTES_PER_FILE:
                stories.append(story)
                n_bytes += len(story.encode()) + 2
        seed += BATCH
    path.write_text("\n\n".join(stories) + "\n", encoding="utf-8", newline="\n")
    print(f"{path}: {len(stories)} stories, {path.stat().st_size} bytes")


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "assets/stories260k")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, local_files_only=True).eval()
    with torch.no_grad():
        write_text(model, tokenizer, directory / "calibration.txt", 1)
        write_text(model, tokenizer, directory / "evaluation.txt", 1_000_001)


if __name__ == "__main__":
    main()
