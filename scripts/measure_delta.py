#!/usr/bin/env python3
"""Measures a DELTA checkpoint of 500 MB with 1 % of its elements changed, beside the network's way in Python.

    scripts/measure_delta.py --python PYTHON [--network CHECKOUT] [--rounds N] [--release]

PYTHON must have torch, numpy, safetensors, zstandard and xxhash. All take turns in one run. Python does what the network's
consumer does (decode, apply, hash, load), in two ways. The consumer's: with CHECKOUT, a clone of the network's public repository,
its own functions; without, what is written here after their description (columns are summed up a row at a time, values are written
by row and column, weights that are on the CPU already are not copied before they are changed). And the cheapest that is known: all
columns at once, flat positions, into a copy that is loaded when its hash is right.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parts(body):
    """Name, shape, row and column differences, and values of every tensor."""
    import numpy
    import torch

    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    data = memoryview(body)[4 + length :]
    for entry in header["tensors"]:
        start = entry["indices_offset"]
        middle = start + entry["rows_size"]
        rows = numpy.frombuffer(data[start:middle], entry["row_dtype"])
        columns = numpy.frombuffer(data[middle : middle + entry["cols_size"]], entry["col_dtype"])
        offset = entry["values_offset"]
        values = torch.frombuffer(bytearray(data[offset : offset + entry["values_size"]]), dtype=getattr(torch, entry["value_dtype"]))
        yield entry["name"], entry["shape"], rows, columns, values


def decode_at_once(body):
    """Flat positions of all changes."""
    import numpy
    import torch

    changes = {}
    for name, shape, rows, columns, values in parts(body):
        rows, columns = rows.astype(numpy.int64), columns.astype(numpy.int64)
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
        changes[name] = torch.from_numpy(numpy.cumsum(rows) * width + columns), values
    return changes


def apply_to_a_copy(state, changes):
    changed = {}
    for name, tensor in state.items():
        changed[name] = tensor.clone()
        if name in changes:
            positions, values = changes[name]
            changed[name].view(-1)[positions] = values
    return changed


def decode_row_by_row(body):
    """Rows and columns of all changes."""
    import numpy
    import torch

    changes = {}
    for name, shape, rows, columns, values in parts(body):
        rows, columns = rows.astype(numpy.int32), columns.astype(numpy.int32)
        starts = numpy.flatnonzero(rows)
        ends = numpy.append(starts[starts > 0], len(rows))
        start = 0
        for end in ends:
            numpy.cumsum(columns[start:end], out=columns[start:end])
            start = end
        places = torch.stack([torch.from_numpy(numpy.cumsum(rows, dtype=numpy.int32)), torch.from_numpy(columns)])
        changes[name] = places, values
    return changes


def apply_in_place(state, changes):
    for name, (places, values) in changes.items():
        tensor = state[name]
        tensor.view(tensor.shape[0], -1)[places[0].long(), places[1].long()] = values
    # Other tensors over the same memory, which load as others do.
    return {name: tensor.view(tensor.shape) for name, tensor in state.items()}


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


def described():
    """The consumer's way as it is written here: from the packed body to changes, these applied, and the hash."""
    import zstandard

    return lambda packed: decode_row_by_row(zstandard.ZstdDecompressor().decompress(packed)), apply_in_place, weights_hash


def cheapest():
    import zstandard

    return lambda packed: decode_at_once(zstandard.ZstdDecompressor().decompress(packed)), apply_to_a_copy, weights_hash


def networks(checkout):
    """The same three steps by the network's own functions. Their modules stand alone; the package around them would want more."""
    import importlib.util

    def module(name):
        spec = importlib.util.spec_from_file_location(name, checkout / f"grail/infrastructure/{name}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    codec, delta = module("sparse_codec"), module("delta_checkpoint")
    apply = lambda state, changes: delta.apply_sparse_delta(state, *changes)
    return codec.decode_sparse_delta_v3_1, apply, delta.compute_weights_hash


def roll(base, delta, want, decode, apply, weights_hash):
    """One roll of a process that holds `base`, then what it writes to the disk: seconds from the start, and MB."""
    import tempfile

    import torch
    from safetensors.torch import load_file, save_file

    live = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
    # Resets the peak.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    began = time.perf_counter()
    packed = delta.read_bytes()
    hashlib.sha256(packed).hexdigest()
    changes = decode(packed)
    decoded = time.perf_counter() - began
    changed = apply(live, changes)
    assert weights_hash(changed) == want
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
        changed = apply(state, decode(packed))
        assert weights_hash(changed) == want
        target = pathlib.Path(folder) / "model.safetensors"
        save_file(changed, target, metadata={"format": "pt"})
        hashlib.sha256(target.read_bytes()).hexdigest()
        directory = time.perf_counter() - began
    return dict(decoded=decoded, resident=resident, directory=directory, peak=more)


def consume(base, delta, want):
    """Both ways; prints their figures."""
    import torch

    torch.set_num_threads(2)
    checkout = os.environ.get("MEASURE_NETWORK")
    consumers = roll(base, delta, want, *(networks(pathlib.Path(checkout)) if checkout else described()))
    other = roll(base, delta, want, *cheapest())
    print(json.dumps({**consumers, **{f"cheapest {name}": figure for name, figure in other.items()}}))


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
    options.add_argument("--network", type=pathlib.Path, help="a clone of the network's public repository, for its own functions")
    options.add_argument("--rounds", default="5")
    options.add_argument("--release", action="store_true", help="build with the release profile, not that of the tests")
    options.add_argument("--consume", nargs=3, metavar=("BASE", "DELTA", "HASH"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.consume:
        base, delta, want = chosen.consume
        return consume(pathlib.Path(base), pathlib.Path(delta), want)
    if not chosen.python:
        options.error("--python is needed: a Python with torch, numpy, safetensors, zstandard and xxhash")
    if chosen.network:
        os.environ["MEASURE_NETWORK"] = str(chosen.network.resolve())
    # The benchmark runs in a folder of its own. Links stay: a venv's Python knows its packages by where it lies.
    interpreter = pathlib.Path(os.path.abspath(chosen.python))
    title, measured = measure(interpreter, chosen.rounds, chosen.release)
    # Memory is measured in a run of its own: glibc is told to give back at once what is freed, so that nothing that the process
    # had before is used again unseen. That costs time.
    eager = dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    _, memory = measure(interpreter, "2", chosen.release, eager)
    for side in measured:
        for round_ in measured[side]:
            peaks = [name for name in round_ if name.endswith("peak")]
            round_.update({name: max(other[name] for other in memory[side]) for name in peaks})
    best = lambda side, name: min((round_[name] for round_ in measured[side] if name in round_), default=None)
    print(f"{title}; best of {chosen.rounds} rounds, in turns")
    print(f"{'':<50}{'here':>9}{'consumer':>11}{'ratio':>7}{'cheapest':>11}{'ratio':>7}")
    rows = [
        ("downloaded from a local server, s", "downloaded"),
        ("decoded (here: and written for the workers), s", "decoded"),
        ("resident and the hash confirmed, s", "resident"),
        ("directory complete and hashed, s", "directory"),
        ("both at once: resident, s", "beside resident"),
        ("both at once: directory, s", "beside directory"),
        ("peak memory above what was resident, MB", "peak"),
        ("bytes read, MB", "read"),
    ]
    for label, name in rows:
        here = best("ours", name)
        beside = ""
        for python in (best("theirs", name), best("theirs", f"cheapest {name}")):
            ratio = f"{python / here:.1f}x" if here and python and name != "peak" else ""
            beside += f"{python:>11.3f}{ratio:>7}" if python else ""
        print(f"{label:<50}{here:>9.3f}{beside}")


if __name__ == "__main__":
    main()
