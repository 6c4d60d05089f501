#!/usr/bin/env python3
"""Makes the golden files of lamella-lm: what `transformers` computes, kept small.

    pip install torch transformers tokenizers safetensors numpy
    python tools/golden.py                                   # random models and wiki5m
    python tools/golden.py --minilm DIR                      # the same and MiniLM's embeddings
    python tools/golden.py --only qwen3,mistral              # some of the random models

Random models are seeded per tensor name with numpy's PCG64, so every run writes the same weights on
every machine; the outputs repeat to float32 rounding. Weights are scaled so that logits have a standard
deviation above 1 and attention is far from uniform, because a test on near-zero weights passes whatever
the code does. For the same reason every model is run again with each of its features switched off; the
change, in units of the logits' standard deviation, is printed and stored in `manifest.json`. A model
whose feature changes less than 1e-2 (a hundred times the tests' tolerance; 2e-4 for the two forms of gelu,
which nowhere differ by more than 5e-4) is refused.

The directory's README.md says what each file holds.
"""

import argparse
import copy
import json
import logging
import math
import os
import shutil
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

logging.disable(logging.WARNING)
tf.utils.logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parent.parent
VOCAB, HIDDEN, SEQUENCE = 48, 32, 64
LEAST_CHANGE = 1e-2      # of the logits' standard deviation, when a feature is switched off
LEAST_GELU_CHANGE = 2e-4  # the two forms of gelu differ by less than 5e-4 anywhere
LEAST_MARGIN = 2e-3      # between the last expert chosen and the first one left out, in router logits

# ---------------------------------------------------------------------------- random weights


def generator(*names):
    """A numpy generator whose seed is a hash of the names: independent of order and of library versions."""
    return np.random.Generator(np.random.PCG64(zlib.crc32("/".join(map(str, names)).encode())))


def randomise(model, name, seed):
    """Fills every parameter; see the module's text for why these gains."""
    for key, parameter in model.named_parameters():
        draw = generator(name, seed, key)
        shape = tuple(parameter.shape)
        conv1d = key.endswith("weight") and parameter.ndim == 2 and model.config.model_type == "gpt2" and ".h." in key
        in_features = shape[0] if conv1d else shape[-1]
        if "q_norm" in key or "k_norm" in key:
            values = draw.uniform(0.6, 2.2, shape)
        elif parameter.ndim == 1 and key.endswith("weight"):       # layer norms, root-mean-square norms
            values = draw.uniform(0.5, 1.5, shape)
        elif key.endswith("bias"):
            values = 0.5 * draw.standard_normal(shape)
        elif "embed" in key or "wte" in key or "wpe" in key:
            values = 0.6 * draw.standard_normal(shape)
        else:
            query_or_key = any(part in key for part in ("q_proj", "k_proj", "query", "key", "c_attn"))
            router = key.endswith(("mlp.gate.weight", "lm_head.weight"))
            gain = 1.6 if query_or_key else 2.0 if router else 1.2
            values = gain / math.sqrt(in_features) * draw.standard_normal(shape)
        parameter.data = torch.from_numpy(values.astype(np.float32))
    model.tie_weights()


def tokens_of(name):
    return [int(t) for t in generator(name, "tokens").integers(3, VOCAB, SEQUENCE)]


# ---------------------------------------------------------------------------- features, switched off


def with_config(**changes):
    """The same weights under a changed configuration."""
    def off(model, rebuild):
        config = copy.deepcopy(model.config)
        for key, value in changes.items():
            setattr(config, key, value)
        return rebuild(config)
    return off


def zeroed(*parts):
    """The same model with every parameter set to zero whose name holds one of `parts`."""
    def off(model, rebuild):
        other = rebuild(copy.deepcopy(model.config))
        hit = 0
        for key, parameter in other.named_parameters():
            if any(part in key for part in parts):
                parameter.data = torch.zeros_like(parameter)
                hit += 1
        assert hit, parts
        return other
    return off


def without_modules(*names):
    """The same model with the modules of these names replaced by the identity."""
    def off(model, rebuild):
        other = rebuild(copy.deepcopy(model.config))
        for module in list(other.modules()):
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, torch.nn.Identity())
        return other
    return off


def tiled_heads(model, rebuild):
    """Query head h reads key/value head h mod kv_heads in place of h div (heads / kv_heads)."""
    other = rebuild(copy.deepcopy(model.config))
    heads, kv_heads = other.config.num_attention_heads, other.config.num_key_value_heads
    order = [kv + group * kv_heads for kv in range(kv_heads) for group in range(heads // kv_heads)]
    for layer in other.model.layers:
        attention = layer.self_attn
        size = attention.head_dim
        rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in order])
        attention.q_proj.weight.data = attention.q_proj.weight.data[rows]
        if attention.q_proj.bias is not None:
            attention.q_proj.bias.data = attention.q_proj.bias.data[rows]
        attention.o_proj.weight.data = attention.o_proj.weight.data[:, rows]
    return other


def no_rope(model, rebuild):
    other = rebuild(copy.deepcopy(model.config))
    other.model.rotary_emb.inv_freq.zero_()
    other.model.rotary_emb.original_inv_freq = other.model.rotary_emb.inv_freq
    other.model.rotary_emb.rope_type = "default"
    return other


# ---------------------------------------------------------------------------- the random models

BASE = dict(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
NARROW = {**BASE, "intermediate_size": 16}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)
ENCODER = dict(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=40, num_hidden_layers=2,
               num_attention_heads=4, max_position_embeddings=72)
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def scaled_rope(rope_type, **values):
    return dict(rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, **values})


ROPE_OFF = {"rope scaling": with_config(rope_parameters=PLAIN_ROPE)}
GROUPED = {"grouped key/value heads": tiled_heads, "rope": no_rope}
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(factor=4.0, original_max_position_embeddings=32)

# name: (configuration class, its arguments, features, spelling of config.json)
# The spelling `legacy` writes `rope_theta` and `rope_scaling`, as checkpoints did before transformers 5.
MODELS = {
    "llama": (tf.LlamaConfig, BASE, GROUPED, "legacy"),
    "llama_bias": (tf.LlamaConfig, {**BASE, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
                   {"attention bias": zeroed("q_proj.bias", "k_proj.bias", "v_proj.bias"),
                    "output bias": zeroed("o_proj.bias"),
                    "mlp bias": zeroed("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")},
                   "current"),
    "llama_rope_llama3": (tf.LlamaConfig, {**NARROW, **scaled_rope("llama3", **LLAMA3)}, ROPE_OFF, "legacy"),
    "llama_rope_linear": (tf.LlamaConfig, {**NARROW, **scaled_rope("linear", factor=4.0)}, ROPE_OFF, "legacy"),
    "llama_rope_dynamic": (tf.LlamaConfig, {**NARROW, "max_position_embeddings": 32, **scaled_rope("dynamic", factor=2.0)},
                           ROPE_OFF, "legacy"),
    "llama_rope_yarn": (tf.LlamaConfig, {**NARROW, **scaled_rope("yarn", **YARN)},
                        {**ROPE_OFF, "attention factor": with_config(**scaled_rope("yarn", **YARN, attention_factor=1.0))}, "current"),
    "mistral": (tf.MistralConfig, {**BASE, "sliding_window": 16, "head_dim": 16},
                {"window": with_config(sliding_window=None), "window one longer": with_config(sliding_window=17), **GROUPED}, "current"),
    "qwen2": (tf.Qwen2Config, {**BASE, "tie_word_embeddings": True},
              {"bias": zeroed("_proj.bias"), **GROUPED}, "legacy"),
    "qwen2_window": (tf.Qwen2Config, {**NARROW, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
                     {"window": with_config(layer_types=["full_attention"] * 2),
                      "window in upper layers only": with_config(layer_types=["sliding_attention"] * 2)}, "current"),
    "qwen3": (tf.Qwen3Config, {**BASE, "head_dim": 16, "tie_word_embeddings": True},
              {"qk-norm": without_modules("q_norm", "k_norm"), **GROUPED}, "current"),
    "gpt2": (tf.GPT2Config, dict(vocab_size=VOCAB, n_embd=HIDDEN, n_inner=None, n_layer=2, n_head=4, n_positions=72,
                                 bos_token_id=1, eos_token_id=2),
             {"bias": zeroed("c_attn.bias", "c_proj.bias", "c_fc.bias"), "norm bias": zeroed("ln_1.bias", "ln_2.bias", "ln_f.bias"),
              "positions": zeroed("wpe"), "tanh form of gelu": with_config(activation_function="gelu")}, "current"),
    "mixtral": (tf.MixtralConfig, {**NARROW, "num_local_experts": 4, "num_experts_per_tok": 2},
                {"second expert": with_config(num_experts_per_tok=1), **GROUPED}, "current"),
    "qwen2_moe": (tf.Qwen2MoeConfig, {**BASE, **EXPERTS, "shared_expert_intermediate_size": 20, "norm_topk_prob": False},
                  {"shared expert": zeroed("shared_expert.down_proj"), "shared expert's gate": zeroed("shared_expert_gate"),
                   "unnormalised routing": with_config(norm_topk_prob=True), "bias": zeroed("_proj.bias")}, "current"),
    "qwen3_moe": (tf.Qwen3MoeConfig, {**BASE, **EXPERTS, "norm_topk_prob": True, "head_dim": 16, "mlp_only_layers": [0]},
                  {"normalised routing": with_config(norm_topk_prob=False), "qk-norm": without_modules("q_norm", "k_norm"),
                   **GROUPED}, "current"),
    "bert": (tf.BertConfig, {**ENCODER, "pad_token_id": 0},
             {"token types": zeroed("token_type_embeddings"), "positions": zeroed("position_embeddings"),
              "erf form of gelu": with_config(hidden_act="gelu_new"),
              "bias": zeroed("dense.bias", "query.bias", "key.bias", "value.bias")}, "current"),
    "roberta": (tf.RobertaConfig, {**ENCODER, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                                   "bos_token_id": 0, "eos_token_id": 2},
                {"positions from pad + 1": with_config(pad_token_id=0), "positions": zeroed("position_embeddings")}, "current"),
}


def build(config, name, seed):
    encoder = isinstance(config, (tf.BertConfig, tf.RobertaConfig))
    config._attn_implementation = config._experts_implementation = "eager"
    model = tf.AutoModel.from_config(config, add_pooling_layer=False) if encoder else tf.AutoModelForCausalLM.from_config(config)
    model = model.float().eval()
    randomise(model, name, seed)
    return model


@torch.no_grad()
def outputs(model, tokens, token_types=None):
    """Logits [tokens, vocab], or last hidden states [tokens, hidden] of an encoder; f32."""
    extra = {} if token_types is None else {"token_type_ids": torch.tensor([token_types])}
    out = model(torch.tensor([tokens]), **extra)
    return (out.logits if "logits" in out else out.last_hidden_state)[0].double()


@torch.no_grad()
def attention_peak(model, tokens, token_types):
    """Mean over heads and positions of the largest attention weight; uniform attention over 64 tokens has .07 to .02."""
    extra = {} if token_types is None else {"token_type_ids": torch.tensor([token_types])}
    maps = model(torch.tensor([tokens]), output_attentions=True, **extra).attentions
    return torch.stack(maps)[..., SEQUENCE // 2:, :].amax(-1).mean().item()


def routing_margin(model, tokens):
    """The smallest gap between the last chosen and the first refused expert, in router logits; None without experts."""
    margins = []

    def watch(module, inputs, result):
        scores = torch.nn.functional.linear(inputs[0].reshape(-1, HIDDEN).float(), module.weight)
        ordered = scores.sort(-1, descending=True).values
        margins.append((ordered[:, 1] - ordered[:, 2]).min().item())

    hooks = [module.register_forward_hook(watch) for key, module in model.named_modules()
             if key.endswith("mlp.gate") and hasattr(module, "weight")]
    outputs(model, tokens)
    for hook in hooks:
        hook.remove()
    return min(margins) if margins else None


def legacy_spelling(path):
    """Rewrites `rope_parameters` as `rope_theta` and `rope_scaling`, and `dtype` as `torch_dtype`."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] in ("linear", "dynamic"):      # the oldest spelling of all
        rope["type"] = rope.pop("rope_type")
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_array(path, array):
    """Raw little-endian f32, row-major; the shape stands in manifest.json."""
    path.write_bytes(np.ascontiguousarray(array, dtype="<f4").tobytes())


def make_random(name, directory):
    """One directory per model, its line of the manifest as result."""
    config_class, arguments, features, spelling = MODELS[name]
    tokens = tokens_of(name)
    token_types = [0] * (SEQUENCE // 3) + [1] * (SEQUENCE - SEQUENCE // 3) if name == "bert" else None
    for seed in range(200):
        model = build(config_class(**arguments), name, seed)
        margin = routing_margin(model, tokens)
        if margin is None or margin > LEAST_MARGIN:
            break
    expected = outputs(model, tokens, token_types)
    deviation = expected.std().item()
    assert deviation >= 1 or token_types or name == "roberta", (name, deviation)

    target = directory / name
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    weights = target / "model.safetensors"
    save_file(dict(sorted(load_file(weights).items())), weights, {"format": "pt"})
    weights.chmod(0o644)
    if spelling == "legacy":
        legacy_spelling(target / "config.json")
    if name == "qwen3_moe":     # published checkpoints write `num_experts`
        path = target / "config.json"
        path.write_text(path.read_text().replace("num_local_experts", "num_experts"))
    loader = tf.AutoModelForCausalLM if "logits" in model(torch.tensor([tokens])) else tf.AutoModel
    experts = {} if margin is None else {"experts_implementation": "eager"}
    reread = loader.from_pretrained(target, attn_implementation="eager", **experts).eval()
    assert torch.equal(outputs(reread, tokens, token_types), expected), f"{name}: the written files give other outputs"

    record = {"tokens": tokens, **({"token_types": token_types} if token_types else {})}
    (target / "tokens.json").write_text(json.dumps(record) + "\n")
    kind = "logits" if loader is tf.AutoModelForCausalLM else "hidden"
    write_array(target / f"{kind}.bin", expected.numpy())

    changes = {}
    for feature, switch_off in features.items():
        other = switch_off(model, lambda config: build(config, name, seed))
        changes[feature] = (outputs(other, tokens, token_types) - expected).abs().max().item() / deviation
        assert changes[feature] > (LEAST_GELU_CHANGE if "gelu" in feature else LEAST_CHANGE), (name, feature, changes[feature])
    noise = (outputs(copy.deepcopy(model).double(), tokens, token_types) - expected).abs().max().item() / deviation
    line = {"name": name, "output": f"{kind}.bin", "shape": list(expected.shape), "standard_deviation": round(deviation, 4),
            "attention_peak": round(attention_peak(model, tokens, token_types), 3),
            "float64_difference": float(f"{noise:.1e}"), "seed": seed}
    if margin is not None:
        line["routing_margin"] = round(margin, 4)
    line["largest_change_without"] = {feature: float(f"{change:.2g}") for feature, change in changes.items()}
    print(json.dumps(line))
    return line


# ---------------------------------------------------------------------------- trained models

PROMPT = ("The river had risen in the night , and by the morning the old bridge below the mill was under water . "
          "A small crowd of people stood on the bank and watched the carts turn back to the town . "
          "In 1847 the company built a second bridge of stone , which was wider than the first and is still in use today .")
SENTENCES = [
    "A thin layer of nacre.",
    "The weights of a neural network are mostly noise, and noise is expensive to store.",
    "Where is the nearest railway station?",
    "Crème brûlée, naïve café, Ångström: accents are stripped.",
    "漢字 and かな, 100% of 3.14 (roughly); e-mail: someone@example.org!",
    "unbelievablyextraordinarilylongcompoundwordthatnobodywrites",
    "quantise",
    " ".join(f"Sentence number {n} only makes the text longer than the limit of tokens." for n in range(12)),
]


def make_wiki5m(data, directory):
    """Token ids of a 64-token prompt, whole logits at five positions, log-sum-exp and next-token logits at all."""
    source = data / "lm" / "wiki5m"
    tokens = Tokenizer.from_file(str(source / "tokenizer.json")).encode(PROMPT, add_special_tokens=False).ids
    assert len(tokens) >= 65, len(tokens)
    prompt, follower = tokens[:64], tokens[1:65]
    model = tf.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").float().eval()
    logits = outputs(model, prompt)
    noise = (outputs(copy.deepcopy(model).double(), prompt) - logits).abs().max().item()
    positions = [0, 1, 15, 38, 63]
    target = directory / "wiki5m"
    target.mkdir(parents=True, exist_ok=True)
    record = {"text": PROMPT, "text_tokens": tokens, "tokens": prompt, "positions": positions}
    (target / "tokens.json").write_text(json.dumps(record) + "\n")
    write_array(target / "logits.bin", logits[positions].numpy())
    next_logits = logits.gather(-1, torch.tensor(follower)[:, None])[:, 0]
    write_array(target / "scores.bin", torch.stack([torch.logsumexp(logits, -1), next_logits], -1).numpy())
    line = {"name": "wiki5m", "output": "logits.bin", "shape": [len(positions), logits.shape[1]], "scores_shape": [64, 2],
            "standard_deviation": round(logits.std().item(), 4), "float64_difference": float(f"{noise:.1e}")}
    print(json.dumps(line))
    return line


@torch.no_grad()
def make_minilm(source, directory):
    """Token ids and unit-norm mean-pooled embeddings of eight sentences, at most 128 tokens each."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    model = tf.AutoModel.from_pretrained(source, attn_implementation="eager").float().eval()
    texts, embeddings = [], []
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence).ids
        embedding = outputs(model, ids).mean(0)
        texts.append({"text": sentence, "tokens": ids})
        embeddings.append(embedding / embedding.norm())
    target = directory / "minilm"
    target.mkdir(parents=True, exist_ok=True)
    (target / "sentences.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    write_array(target / "embeddings.bin", torch.stack(embeddings).numpy())
    line = {"name": "minilm", "output": "embeddings.bin", "shape": [len(texts), embeddings[0].numel()]}
    print(json.dumps(line))
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "crates/lamella-lm/tests/golden")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LAMELLA_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--minilm", type=Path, help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--only", help="names separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    names = arguments.only.split(",") if arguments.only else [*MODELS, "wiki5m", "minilm"]
    manifest_path = arguments.out / "manifest.json"
    lines = {line["name"]: line for line in json.loads(manifest_path.read_text())["models"]} if manifest_path.exists() else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == "wiki5m":
            lines[name] = make_wiki5m(arguments.data, arguments.out)
        elif name == "minilm":
            if arguments.minilm:
                lines[name] = make_minilm(arguments.minilm, arguments.out)
        else:
            lines[name] = make_random(name, arguments.out)
    order = [*MODELS, "wiki5m", "minilm"]
    manifest = {"transformers": tf.__version__, "torch": torch.__version__.split("+")[0],
                "models": [lines[name] for name in order if name in lines]}
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")
    total = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{total} bytes in {arguments.out}")


if __name__ == "__main__":
    main()
