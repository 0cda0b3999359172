#!/usr/bin/env python3
"""Measures the proof worker on this machine, GPU or not, and writes docs/measurements/<machine>.md: one call does it all.

    scripts/measure.py [--programs DIR] [--python PYTHON] [--rounds N] [--out FILE]

Speed of every mode beside transformers in one run; how far their proofs lie apart; memory as predicted and as taken; start and
reload; and on a GPU also a model of a 7B's shape, a device named by its UUID, and proofs with little memory left. On the CPU modes
and transformers alternate. On a GPU each is alone on the card, one after the other, because they would take each other's memory.

It needs no network and builds nothing: `cargo build --release --package grail-proof-worker` and `scripts/setup.py --reference` come
first. On a GPU PYTHON must have torch 2.11.0 for CUDA and transformers 4.57.1; its libtorch is the one the worker then loads.
scripts/gpu.sh says in eight minutes whether a GPU is worth this one.
"""

import argparse
import os
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEVEN_B = "--hidden 3584 --layers 28 --intermediate 18944 --heads 28 --kv-heads 4 --vocabulary 152064".split()
# A mean of 1,500 tokens with the prompt.
LONG = "--groups 4 --prompt 200 --median 1150 --sigma 0.5 --longest 4096".split()


def output(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout.strip()


def gpus():
    if not shutil.which("nvidia-smi"):
        return []
    listed = output("nvidia-smi", "--query-gpu=uuid,name,driver_version", "--format=csv,noheader")
    return [line.split(", ") for line in listed.splitlines()]


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    # What decides the speed of bf16 products, and how far the ways of composing a batch lie apart.
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    matrix = "with AMX" if "amx_bf16" in flags else "without AMX"
    return f"{names[0]} {matrix}, {os.cpu_count()} cores" if names else platform.processor()


def bench(worker, python, environment, *arguments):
    command = [str(worker), "bench", "--python", str(python), *arguments]
    print("$", *command, flush=True)
    done = subprocess.run(command, text=True, env=environment, stdout=subprocess.PIPE)
    # A measurement that fails is a result as well, and must not cost the others.
    return done.stdout.strip() if done.returncode == 0 else f"failed with exit code {done.returncode}, see the output above"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", type=pathlib.Path, default=ROOT / ".venv-reference/bin/python")
    options.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release")
    options.add_argument("--rounds", default="5")
    options.add_argument("--out", type=pathlib.Path, help="the page; default docs/measurements/<machine>.md")
    chosen = options.parse_args()
    worker = chosen.programs / "grail-proof-worker"
    for needed, remedy in [
        (worker, "build it (cargo build --release --package grail-proof-worker), or name its folder with --programs"),
        (chosen.python, "make it (scripts/setup.py --reference), or name one with torch and transformers with --python"),
    ]:
        if not needed.exists():
            sys.exit(f"{needed} is not there; {remedy}")
    found, environment = gpus(), dict(os.environ, HF_HUB_OFFLINE="1")
    rounds = ["--rounds", chosen.rounds]
    sections = []
    if found:
        libraries = output(str(chosen.python), "-c", "import torch, os; print(os.path.join(torch.__path__[0], 'lib'))")
        environment["LD_LIBRARY_PATH"] = libraries
        # By UUID, as the supervisor may name it.
        environment["CUDA_VISIBLE_DEVICES"] = found[0][0]
        sections.append(("A 7B's shape", bench(worker, chosen.python, environment, "--in-turn", *SEVEN_B, *LONG, *rounds)))
        host = dict(environment, CUDA_VISIBLE_DEVICES="")
        sections.append(("The same host's processor", bench(worker, chosen.python, host, *rounds)))
    alone = ["--in-turn"] if found else []
    sections.insert(0, ("Small model, one group of 16", bench(worker, chosen.python, environment, *alone, *rounds)))
    name = found[0][1] if found else "cpu"
    title = f"{name}, driver {found[0][2]}" if found else f"{processor()}; not measured on a GPU"
    page = chosen.out or ROOT / "docs/measurements" / (name.lower().replace(" ", "-") + ".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    commit = output("git", "rev-parse", "--short", "HEAD", cwd=ROOT)
    text = f"# Proof worker on {title}\n\nMade by `scripts/measure.py` at commit {commit}.\n"
    for heading, measured in sections:
        text += f"\n## {heading}\n\n```\n{measured}\n```\n"
    page.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
