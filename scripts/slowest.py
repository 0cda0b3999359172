#!/usr/bin/env python3
"""Prints which test programs of a run took longest, so that time is saved where it goes.

    slowest.py LOG

LOG is what `cargo test` printed: each program is announced ("Running mining.rs (…)") and says at its end how long it took, in the
words of cargo's harness ("finished in 1.20s") or of the scenarios' ("14 of 14 scenarios held, 76 s.").
"""

import pathlib
import re
import sys

BEGUN = re.compile(r"^ *(?:Running|Doc-tests) (.+?)(?: \((?:.*/)?([^/]+?)-[0-9a-f]+\))?$")
TOOK = re.compile(r"(?:finished in |held, )([0-9.]+) ?s")
SHOWN = 12


def times(log):
    """Seconds of each program, by its name, in the order of the log."""
    found, name = {}, None
    for line in log.splitlines():
        if begun := BEGUN.match(line):
            source, program = begun.groups()
            name = f"{program}: {source}" if program else source
        elif name and (took := TOOK.search(line)):
            found[name] = found.get(name, 0.0) + float(took.group(1))
    return found


def main():
    found = times(pathlib.Path(sys.argv[1]).read_text(errors="replace"))
    print(f"\n{len(found)} test programs took {sum(found.values()):.0f} s; the longest:")
    for name, seconds in sorted(found.items(), key=lambda row: -row[1])[:SHOWN]:
        print(f"  {seconds:6.1f} s  {name}")


if __name__ == "__main__":
    main()
