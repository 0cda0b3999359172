#!/usr/bin/env python3
"""Writes the demo's problems in the form of MATH: a folder per configuration, the answer in a box.

    python3 demo/as_math.py OUT          # OUT/algebra/train.jsonl, OUT/algebra/test.jsonl and so on

The 700 and 200 problems are dealt out in turn; of the 700, 500 become the split `val`, as the protocol has it.
"""

import json
import pathlib
import sys

DEMO = pathlib.Path(__file__).resolve().parent
CONFIGS = ["algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus"]


def as_math(row, config):
    worked, answer = row["answer"].rsplit("####", 1)
    return {"problem": row["question"], "level": "Level 1", "type": config.replace("_", " ").title(), "solution": f"{worked}$\\boxed{{{answer.strip()}}}$"}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (DEMO / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for place, config in enumerate(CONFIGS):
            folder = pathlib.Path(sys.argv[1]) / config
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(as_math(row, config)) + "\n" for row in rows[place :: len(CONFIGS)]]
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
