#!/usr/bin/env python3
"""Lists once more what a run of the tests has skipped, and fails where CI skips what is not in tests/expected-skips.txt.

    skips.py LOG [LIST]

A skip is a line with the word SKIPPED, one of the conformance vectors' counts ("12 skipped: why"), or a test that cargo calls
ignored. LIST has one pattern a line, in which * stands for anything; a line that begins with # says why. Outside CI (the variable
CI is not set, or "false") an unexpected skip is only told.
"""

import fnmatch
import os
import pathlib
import re
import sys

SKIP = re.compile(r"\bSKIPPED\b|^\d+ skipped: \S|^test .* \.\.\. ignored\b")
LIST = pathlib.Path(__file__).resolve().parent.parent / "tests" / "expected-skips.txt"


# What the harness may have begun the line with.
BEGUN = re.compile(r"^test \S+ \.\.\. (?=SKIPPED )")


def skips(log):
    """Every line that tells a skip, with single blanks, in order and once."""
    lines = (BEGUN.sub("", " ".join(line.split())) for line in log.splitlines())
    return list(dict.fromkeys(line for line in lines if SKIP.search(line)))


def patterns(text):
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def expected(line, known):
    # In names of files and types brackets are themselves.
    return any(fnmatch.fnmatchcase(line, pattern.replace("[", "[[]")) for pattern in known)


def main():
    log = pathlib.Path(sys.argv[1]).read_text(errors="replace")
    known = patterns(pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else LIST).read_text())
    found = skips(log)
    unexpected = [line for line in found if not expected(line, known)]
    print(f"\n{len(found)} skipped, {len(unexpected)} of them not expected:")
    for line in found:
        print(f"  {'NOT EXPECTED  ' if line in unexpected else ''}{line}")
    if unexpected and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        print("CI does not skip what is not in tests/expected-skips.txt: mend the machine, or add a line there that says why.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
