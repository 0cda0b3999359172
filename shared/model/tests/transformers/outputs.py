"""Writes small random models and what transformers computes with them, for transformers/main.rs to compare with.

    outputs.py FOLDER

FOLDER gets a checkpoint per model and beside it, per type to compute in, hidden states and logits of every batch;
FOLDER/models.json says what there is. Nothing is decided there: every case is listed here.
"""

import itertools
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(2)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NAMES = {F32: "f32", BF16: "bf16", F16: "f16"}
# Models that are computed with eager attention too: one of each family, with a window, in all three types.
EAGER = ["qwen2", "qwen2-sliding", "qwen3", "llama"]

TINY = dict(vocab_size=300, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0, eos_token_id=2)
# The width of a model of half a billion parameters, where kernels split their work as they do in production.
MIDDLE = dict(TINY, vocab_size=32000, hidden_size=896, intermediate_size=1792, num_hidden_layers=4, num_attention_heads=14)
SLIDING = dict(use_sliding_window=True, sliding_window=12)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", factor=2.5)

# Name, configuration, the type of the files, the types to compute in.
MODELS = [
    ("qwen2", Qwen2Config(**TINY, rope_theta=1e6), F32, [F32, BF16, F16]),
    ("qwen2-tied", Qwen2Config(**TINY, tie_word_embeddings=True), BF16, [F32, BF16]),
    ("qwen2-sliding", Qwen2Config(**TINY, **SLIDING, max_window_layers=1), F32, [F32, BF16, F16]),
    ("qwen2-linear", Qwen2Config(**TINY, rope_scaling=LINEAR), F16, [F32, BF16]),
    ("qwen3", Qwen3Config(**TINY, head_dim=48), F32, [F32, BF16, F16]),
    ("qwen3-biased-tied", Qwen3Config(**TINY, head_dim=16, attention_bias=True, tie_word_embeddings=True), BF16, [F32, BF16]),
    ("qwen3-layer-types", Qwen3Config(**TINY, **SLIDING, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
     F32, [F32, BF16]),
    ("llama", LlamaConfig(**TINY, rms_norm_eps=1e-5), F32, [F32, BF16, F16]),
    ("llama3-tied", LlamaConfig(**TINY, rope_theta=5e5, rope_scaling=LLAMA3, tie_word_embeddings=True), BF16, [F32, BF16, F16]),
    ("llama-biased", LlamaConfig(**TINY, attention_bias=True, mlp_bias=True, head_dim=24), F16, [F32, BF16, F16]),
    ("llama-one-group", LlamaConfig(**dict(TINY, num_key_value_heads=4), rope_scaling=LINEAR), F32, [F32, BF16]),
    ("qwen2-middle", Qwen2Config(**MIDDLE, tie_word_embeddings=True), BF16, [F32, BF16]),
    ("qwen3-middle", Qwen3Config(**MIDDLE, head_dim=128), BF16, [F32, BF16]),
    ("llama-middle", LlamaConfig(**MIDDLE, rope_scaling=LLAMA3), BF16, [F32, BF16]),
]

CHUNK = 16
# Lengths of the sequences of each batch. Equal lengths have no mask and another kernel; 12 is the sliding window; attention
# goes over keys in blocks of 512.
TINY_BATCHES = {"unequal": [40 - 7 * row % 33 for row in range(CHUNK + 4)], "equal": [24] * CHUNK, "window": [12] * 3,
                "short": [11] * 2, "long": [600, 530], "alone": [600], "token": [1]}
MIDDLE_BATCHES = {"unequal": [20 - 3 * row % 16 for row in range(CHUNK)], "equal": [9] * CHUNK, "alone": [37], "token": [1]}


def random_model(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms too, which are zeros and ones otherwise.
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3 if parameter.dim() == 1 else config.hidden_size**-0.5)
    return model


def run(model, sequences):
    longest = max(len(tokens) for tokens in sequences)
    ids = torch.tensor([tokens + [model.config.pad_token_id] * (longest - len(tokens)) for tokens in sequences])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in sequences])
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden, model.lm_head(hidden)


def outputs(folder, dtype, attention, batches):
    # Not model.to(dtype), which would also narrow the rotary frequencies.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    for parameter in model.parameters():
        # A file's tensors lie where its header ends; kernels for one row differ with the alignment, and ours are aligned.
        parameter.data = parameter.data.clone()
    tensors = {}
    with torch.inference_mode():
        for batch, sequences in batches.items():
            for start in range(0, len(sequences), CHUNK):
                hidden, logits = run(model, sequences[start:start + CHUNK])
                tensors[f"{batch}.{start}.hidden"], tensors[f"{batch}.{start}.logits"] = hidden, logits
    return tensors


def main():
    root = pathlib.Path(sys.argv[1])
    models = []
    for seed, (name, config, stored, kinds) in enumerate(MODELS):
        random_model(config, seed).to(stored).save_pretrained(root / name)
        lengths = MIDDLE_BATCHES if config.hidden_size == MIDDLE["hidden_size"] else TINY_BATCHES
        batches = {batch: [torch.randint(config.vocab_size, (length,)).tolist() for length in rows] for batch, rows in lengths.items()}
        attentions = ["sdpa", "eager"] if name in EAGER else ["sdpa"]
        for kind, attention in itertools.product(kinds, attentions):
            file = root / name / f"outputs-{NAMES[kind]}-{attention}.safetensors"
            save_file(outputs(root / name, kind, attention, batches), file)
        models.append({"name": name, "attentions": attentions, "precisions": [NAMES[kind] for kind in kinds], "batches": batches})
    (root / "models.json").write_text(json.dumps(models))


if __name__ == "__main__":
    main()
