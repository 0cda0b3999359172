#!/usr/bin/env python3
"""Circles of files: for every crate its lines, the files that use each other in a ring, and the files that are too long.

An arrow goes from a file to the file that defines what it names by `use` or by a path (`crate::`, `super::`, `self::`, a part's
name). What a module only passes on (`pub use part::Name`) is followed to where it is defined. A module and its own parts may use
each other, so arrows from a module to its parts close no circle; --parts prints those rings too. Tests do not count.
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Comments, texts, and characters that would look like the beginning of a text.
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|r(#+)".*?"\1|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.|[^\'\\])\'', re.S)
TEST = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*[^;{]*[;{]")
DECLARED = re.compile(r"\bmod (\w+);")
DEFINED = re.compile(r"\b(?:struct|enum|union|trait|type|const|static|fn|macro_rules!) (\w+)")
USED = re.compile(r"(\bpub(?:\([^)]*\))? )?\buse ([^;]+);")
PATH = re.compile(r"(?<![\w:])(?:\w+::)+\w+")


def without_tests(text):
    while found := TEST.search(text):
        depth, end = text[found.end() - 1] == "{", found.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[:found.start()] + text[end:]
    return text


def leaves(tree, prefix=()):
    """What a use tree names, each with the name it has here: `a::{b, c as d}` is a::b as b and a::c as d."""
    parts, depth = [""], 0
    for letter in tree:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        parts = parts + [""] if letter == "," and not depth else parts[:-1] + [parts[-1] + letter]
    for part in filter(str.strip, parts):
        head, brace, rest = part.partition("{")
        path, _, name = head.partition(" as ")
        path = prefix + tuple(filter(None, map(str.strip, path.split("::"))))
        path = path[:-1] if len(path) > 1 and path[-1] == "self" else path
        yield from leaves(rest.rsplit("}", 1)[0], path) if brace else [(name.strip() or path[-1], path)]


class Crate:
    """The modules of a crate's library and programs, by path."""

    def __init__(self, source):
        self.file, self.text, self.passes, self.source = {}, {}, {}, source
        for root in filter(pathlib.Path.is_file, [source / "lib.rs", source / "main.rs", *sorted(source.glob("bin/*.rs"))]):
            self.read((root.stem,), root)

    def read(self, module, file):
        text = without_tests(NOISE.sub(" ", file.read_text()))
        self.file[module], self.text[module] = file, text
        self.passes[module] = [leaf for public, tree in USED.findall(text) if public for leaf in leaves(tree)]
        folder = file.parent if len(module) == 1 or file.stem == "mod" else file.with_suffix("")
        for name in DECLARED.findall(text):
            for part in filter(pathlib.Path.is_file, (folder / f"{name}.rs", folder / name / "mod.rs")):
                self.read((*module, name), part)

    def defines(self, module, name):
        return name in DEFINED.findall(self.text[module])

    def origin(self, module, path, depth=0):
        """The module that defines what `path` names in `module`; None where this crate does not."""
        path = list(path)
        while path and path[0] in ("crate", "self", "super"):
            module = {"crate": module[:1], "self": module, "super": module[:-1]}[path.pop(0)]
        while path and (*module, path[0]) in self.file:
            module = (*module, path.pop(0))
        if path and module in self.file and not self.defines(module, path[0]) and depth < 8:
            for name, target in self.passes[module]:
                if name == path[0] and (found := self.origin(module, target, depth + 1)):
                    return found
                if name == "*" and (found := self.origin(module, (*target[:-1], path[0]), depth + 1)) and self.defines(found, path[0]):
                    return found
        return module if module in self.file else None

    def arrows(self, module, to_parts):
        own = USED.sub(lambda found: " " if found[1] else found[0], self.text[module])
        named = [path for _, tree in USED.findall(own) for _, path in leaves(tree)]
        named += [tuple(path.split("::")) for path in PATH.findall(USED.sub(" ", own))]
        here = [path for path in named if path[0] in ("crate", "self", "super") or (*module, path[0]) in self.file]
        found = {self.origin(module, path) for path in here} - {None, module}
        return {other for other in found if to_parts or other[: len(module)] != module}

    def circles(self, to_parts):
        arrows, reach = {module: self.arrows(module, to_parts) for module in self.file}, {}
        for module in arrows:
            seen, ahead = set(), [module]
            while ahead:
                new = arrows[ahead.pop()] - seen
                seen, ahead = seen | new, [*ahead, *new]
            reach[module] = seen
        rings = {frozenset(other for other in reach[one] if one in reach[other]) for one in reach if one in reach[one]}
        return sorted(", ".join(sorted(str(self.file[module].relative_to(self.source)) for module in ring)) for ring in rings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--circles", type=int, metavar="N", help="fail where there are more circles, or longer files")
    parser.add_argument("--lines", type=int, metavar="N", default=600, help="lines of a file at most (600)")
    parser.add_argument("--parts", action="store_true", help="print also the rings of a module and its parts")
    terms = parser.parse_args()
    circles, long = [], []
    for manifest in sorted(file for file in ROOT.glob("**/Cargo.toml") if not {"target", "third_party"} & set(file.parts)):
        if manifest.parent == ROOT:
            continue
        sources = [file for file in sorted(manifest.parent.glob("**/*.rs")) if "target" not in file.parts]
        sources = [file for file in sources if not any((up / "Cargo.toml").is_file() for up in file.parents
                                                       if manifest.parent in up.parents)]
        lines = {file: file.read_text().count("\n") for file in sources}
        print(f"{sum(lines.values()):7} lines  {manifest.parent.relative_to(ROOT)}")
        crate = Crate(manifest.parent / "src")
        for circle in crate.circles(to_parts=False):
            circles.append(circle)
            print(f"          circle: {circle}")
        for ring in crate.circles(to_parts=True) if terms.parts else []:
            print(f"          ring of a module and its parts: {ring}")
        long += [(file, count) for file, count in lines.items() if count > terms.lines]
    for file, count in long:
        print(f"{count:7} lines are more than {terms.lines}: {file.relative_to(ROOT)}")
    if terms.circles is not None and (len(circles) > terms.circles or long):
        sys.exit(f"{len(circles)} circles of files, {terms.circles} are allowed; {len(long)} files are too long.")


if __name__ == "__main__":
    main()
