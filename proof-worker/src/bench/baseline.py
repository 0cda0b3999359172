"""A miner's proof pass as the reference orders it, on transformers: the yardstick of `grail-proof-worker bench`.

    baseline.py SOCKET MODEL JOB.json OUT.safetensors THREADS DTYPE DEVICE

Padded batches of 16 in the given order, hidden states and logits of all positions, then per sequence the sketches of every
token and the f32 log-probabilities of the completion in chunks of 512 rows. For every line on the socket one pass is timed and
answered with {"seconds": …}; OUT then holds the pass's numbers. The end of the socket ends the program.
"""

import json
import socket
import sys
import time

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

Q = 2**31 - 1
THRESHOLDS = [2 ** (1.25 * n) - 1 for n in range(1, 8)]


def sketches(hidden, coefficients):
    """One sketch per row: the 16 largest magnitudes, by position, as log-magnitude buckets times coefficients."""
    return from_indices(hidden, torch.topk(hidden.abs(), 16, dim=-1).indices, coefficients)


def from_indices(hidden, largest, coefficients):
    values = hidden.gather(-1, largest.sort(dim=-1).values).float()
    magnitude = values.abs()
    buckets = torch.where(magnitude < 1e-6, 0, (torch.log2(magnitude.double() + 1) * 0.8).trunc().clamp(0, 7))
    sums = (buckets * values.sign()).float() @ coefficients
    return sums.long() % Q


def lowest_first(hidden, coefficients):
    """The same with the lowest index first among equal magnitudes, which `topk` leaves open: what other programs can repeat."""
    order = torch.sort(hidden.abs(), dim=-1, descending=True, stable=True).indices[..., :16]
    return from_indices(hidden, order, coefficients)


def one_pass(model, device, sequences, prompt, coefficients):
    found_sketches, found_logprobs, states = [], [], []
    for start in range(0, len(sequences), 16):
        batch = sequences[start : start + 16]
        longest = max(map(len, batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(device), mask.to(device)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
        for row, tokens in enumerate(batch):
            found_sketches.append(sketches(hidden[row, : len(tokens)], coefficients).cpu())
            states.append(hidden[row, : len(tokens)])
            chosen = ids[row, prompt : len(tokens)].unsqueeze(1)
            rows = logits[row, prompt - 1 : len(tokens) - 1]
            pieces = [
                torch.log_softmax(rows[at : at + 512].float(), -1).gather(1, chosen[at : at + 512]).squeeze(1)
                for at in range(0, len(rows), 512)
            ]
            found_logprobs.append(torch.cat(pieces).cpu())
    return torch.cat(found_logprobs), states


def main():
    socket_path, model_path, job_path, out_path, threads, dtype, device = sys.argv[1:8]
    torch.set_num_threads(int(threads))
    with open(job_path) as file:
        job = json.load(file)
    kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=kind, attn_implementation="sdpa").to(device).eval()
    coefficients = torch.tensor(job["coefficients"], dtype=torch.float32, device=device)
    with socket.socket(socket.AF_UNIX) as link, torch.inference_mode():
        link.connect(socket_path)
        stream = link.makefile("rw")
        print(json.dumps({"torch": torch.__version__}), file=stream, flush=True)
        for _ in stream:
            begun = time.perf_counter()
            found = one_pass(model, device, job["sequences"], job["prompt"], coefficients)
            seconds = time.perf_counter() - begun
            again = torch.cat([lowest_first(states, coefficients) for states in found[1]]).cpu()
            save_file({"sketches": again, "logprobs": found[0].contiguous()}, out_path)
            print(json.dumps({"seconds": seconds}), file=stream, flush=True)


main()
