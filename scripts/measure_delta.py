#!/usr/bin/env python3
"""Measures a DELTA checkpoint of 500 MB with 1 % of its elements changed, beside the network's way in Python.

    scripts/measure_delta.py --python PYTHON [--rounds N] [--release]

PYTHON must have torch, numpy, safetensors, zstandard and xxhash. The two take turns in one run. What Python does is written
after the description of the reference's consumer (decode, apply to a copy of the weights, hash, load), with the cheapest way
known for each step: the decoding is vectorised, nothing is copied for the hash.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def decode(body):
    import numpy
    import torch

    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    data = memoryview(body)[4 + length :]
    changes = {}
    for entry in header["tensors"]:
        shape, start = entry["shape"], entry["indices_offset"]
        middle = start + entry["rows_size"]
        rows = numpy.frombuffer(data[start:middle], entry["row_dtype"]).astype(numpy.int64)
        columns = numpy.frombuffer(data[middle : middle + entry["cols_size"]], entry["col_dtype"]).astype(numpy.int64)
        # Columns begin anew with every row: the sum up to before a row's first entry is taken off again.
        first = rows != 0
        first[:1] = True
        sums = numpy.cumsum(columns)
        starts = numpy.flatnonzero(first)
        before = sums[starts] - columns[starts]
        columns = sums - numpy.repeat(before, numpy.diff(numpy.append(starts, len(rows))))
        width = 1
        for side in shape[1:]:
            width *= side
        positions = torch.from_numpy(numpy.cumsum(rows) * width + columns)
        offset = entry["values_offset"]
        values = torch.frombuffer(bytearray(data[offset : offset + entry["values_size"]]), dtype=getattr(torch, entry["value_dtype"]))
        changes[entry["name"]] = positions, values
    return changes


def apply(state, changes):
    changed = {}
    for name, tensor in state.items():
        changed[name] = tensor.clone()
        if name in changes:
            positions, values = changes[name]
            changed[name].view(-1)[positions] = values
    return changed


def weights_hash(state):
    import torch
    import xxhash

    hasher = xxhash.xxh3_128()
    for name in sorted(state):
        hasher.update(state[name].contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def status(field):
    """A field of this process's status in MB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6


def consume(base, delta, want):
    """One roll of a process that holds `base`, then what it writes to the disk; prints seconds from the start and MB."""
    import tempfile

    import torch
    import zstandard
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(2)
    live = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
    # Resets the peak.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    began = time.perf_counter()
    packed = delta.read_bytes()
    hashlib.sha256(packed).hexdigest()
    changes = decode(zstandard.ZstdDecompressor().decompress(packed))
    decoded = time.perf_counter() - began
    changed = apply(live, changes)
    applied = time.perf_counter() - began
    assert weights_hash(changed) == want
    hashed = time.perf_counter() - began
    for name, tensor in changed.items():
        live[name].copy_(tensor)
    resident = time.perf_counter() - began
    more = status("VmHWM") - before
    del live, changed
    # The other way: from a directory to a directory.
    with tempfile.TemporaryDirectory(dir=base.parent) as folder:
        began = time.perf_counter()
        for file in base.iterdir():
            hashlib.sha256(file.read_bytes()).hexdigest()
        state = load_file(base / "model.safetensors")
        packed = delta.read_bytes()
        hashlib.sha256(packed).hexdigest()
        changed = apply(state, decode(zstandard.ZstdDecompressor().decompress(packed)))
        assert weights_hash(changed) == want
        target = pathlib.Path(folder) / "model.safetensors"
        save_file(changed, target, metadata={"format": "pt"})
        hashlib.sha256(target.read_bytes()).hexdigest()
        directory = time.perf_counter() - began
    figures = dict(decoded=decoded, applied=applied, hashed=hashed, resident=resident, directory=directory, peak=more)
    print(json.dumps(figures))


def measure(python, rounds, release, more=()):
    """The benchmark's title and figures, round by round."""
    command = ["cargo", "test", "--quiet", *(["--release"] if release else []), "--package", "grail-tests", "--bench", "delta"]
    environment = dict(os.environ, MEASURE_PYTHON=str(python), MEASURE_ROUNDS=rounds, **dict(more))
    text = subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
    title, figures = text.strip().splitlines()[-2:]
    return title, json.loads(figures)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", type=pathlib.Path)
    options.add_argument("--rounds", default="5")
    options.add_argument("--release", action="store_true", help="build with the release profile, not that of the tests")
    options.add_argument("--consume", nargs=3, metavar=("BASE", "DELTA", "HASH"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.consume:
        base, delta, want = chosen.consume
        return consume(pathlib.Path(base), pathlib.Path(delta), want)
    if not chosen.python:
        options.error("--python is needed: a Python with torch, numpy, safetensors, zstandard and xxhash")
    title, measured = measure(chosen.python, chosen.rounds, chosen.release)
    # Memory is measured in a run of its own: glibc is told to give back at once what is freed, so that nothing that the process
    # had before is used again unseen. That costs time.
    eager = dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    _, memory = measure(chosen.python, "2", chosen.release, eager)
    for side in measured:
        for round_ in measured[side]:
            round_["peak"] = max(other["peak"] for other in memory[side])
    best = lambda side, name: min((round_[name] for round_ in measured[side] if name in round_), default=None)
    print(f"{title}; best of {chosen.rounds} rounds, in turns")
    print(f"{'':<58}{'here':>10}{'Python':>10}{'ratio':>8}")
    rows = [
        ("downloaded from a local server, s", "downloaded"),
        ("decoded (here: and written for the workers), s", "decoded"),
        ("resident and the hash confirmed, s", "resident"),
        ("directory complete and hashed, s", "directory"),
        ("peak memory above what was resident, MB", "peak"),
        ("bytes read, MB", "read"),
    ]
    for label, name in rows:
        here, python = best("ours", name), best("theirs", name)
        ratio = f"{python / here:>7.1f}x" if here and python and name != "peak" else ""
        beside = f"{python:>10.3f}" if python else f"{'':>10}"
        print(f"{label:<58}{here:>10.3f}{beside}{ratio}")


if __name__ == "__main__":
    main()
