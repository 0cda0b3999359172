#!/usr/bin/env python3
"""Holds the hidden states that `grail-proof-worker check fidelity --states` wrote against transformers' on the same device.

    gpu_transformers.py MODEL STATES.safetensors cpu|cuda

Two comparisons: each sequence alone, where no padding and no mask decides which kernel is taken, and the padded batch. The first
must be equal to the last bit. The last line says how it went; exit code 0 for that, 1 where it is not so.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def told(name, got, want):
    equal = torch.equal(got, want)
    apart = (got.float() - want.float()).abs().max().item()
    print(f"{name}: {'equal' if equal else f'up to {apart:.6f} apart'}")
    return equal


def main(directory, states, device):
    # What the proof worker computes without; it would be taken first on Hopper.
    torch.backends.cuda.enable_cudnn_sdp(False)
    found = load_file(states)
    kind = found["batch"].dtype
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kind, attn_implementation="sdpa").to(device).eval()
    rows = [found[f"ids.{row}"] for row in range(len(found["batch"]))]
    longest = max(map(len, rows))
    print(f"torch {torch.__version__} on {device}, {kind}, {len(rows)} sequences, the longest of {longest} tokens")
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    equal = 0
    with torch.no_grad():
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            alone = model.model(input_ids=tokens[None].to(device), use_cache=False).last_hidden_state.cpu()
            equal += told(f"sequence {row} alone, {len(tokens)} tokens", found[f"alone.{row}"], alone)
        batch = model.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state.cpu()
    real = mask.bool()
    padded = told("the padded batch, where it is no padding", found["batch"][real], batch[real])
    alone = f"{equal} of {len(rows)} sequences alone and {'' if padded else 'not '}the padded batch are transformers' to the last bit"
    print(f"passed: {alone}" if equal == len(rows) else f"FAILED: {alone}")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
