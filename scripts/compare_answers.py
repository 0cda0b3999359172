#!/usr/bin/env python3
"""Asks sympy about pairs of mathematical answers what grail-environments answers, and tells where the two differ.

    cargo build --workspace --example compare_answers
    PYTHON_WITH_SYMPY scripts/compare_answers.py target/debug/examples/compare_answers --pairs 20000 --seed 1
    PYTHON_WITH_SYMPY scripts/compare_answers.py target/debug/examples/compare_answers --file tests/vectors/env/math_equivalence.jsonl

Python is 3.11 and sympy 1.14, as the network has them. Pairs are generated (numbers, expressions, texts as models write them,
broken texts), or read from a file of JSON lines with `pred` and `gold`. "Equal" and "NotEqual" must be sympy's answer;
"NotCovered" may be anything, and is counted. Nothing in here is safe: sympy's parser evaluates what it is given, so only
generated texts belong here. Exit code 1: some pair differs.
"""

import argparse
import collections
import json
import multiprocessing
import random
import re
import signal
import subprocess
import sys
import warnings

SECONDS = 4


def normalise(text):
    text = text.strip().replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac")
    text = re.sub(r"\\left\b", "", text)
    text = re.sub(r"\\right\b", "", text)
    for space in (r"\,", r"\!", r"\;", r"\:"):
        text = text.replace(space, "")
    return re.sub(r"\s+", "", text).lower()


def numeric(left, right):
    try:
        return abs(float(left) - float(right)) < 1e-6
    except (ValueError, OverflowError):
        return False


class Slow(BaseException):
    pass


def alarm(*_):
    raise Slow


def reference(pair):
    """Equal or not as the reference has it, or None where sympy takes too long."""
    from sympy import simplify
    from sympy.parsing.sympy_parser import parse_expr

    left, right = pair
    if not left or not right:
        return False
    left, right = normalise(left), normalise(right)
    if left == right or numeric(left, right):
        return True
    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        return bool(simplify(parse_expr(left) - parse_expr(right)) == 0)
    except Exception:
        return False
    except Slow:
        return None
    finally:
        signal.alarm(0)


class Texts:
    """Texts of all kinds, and others that mean the same or nearly."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def choose(self, *values):
        return self.random.choice(values)

    def number(self):
        integer = self.random.randint
        return self.choose(
            str(integer(0, 9)), str(integer(0, 9)), str(integer(0, 200)), f"{integer(0, 50)}.{integer(0, 999)}",
            f"{integer(1, 99)}/{integer(1, 12)}", f"0.{integer(1, 9)}", f"{integer(0, 9)}.", f".{integer(0, 99)}", f"{integer(1, 9)}e{integer(-3, 5)}",
            f"{integer(0, 9)}.5", f"{integer(0, 9)}.25", "0", "1", "2", f"1_{integer(100, 999)}", "0x1f", "0b101", "1.0", "2.0",
            f"{integer(1, 99)},{integer(100, 999)}", f"{self.random.random()}", f"{integer(1, 30)}/{self.choose(3, 7, 11)}")

    def name(self):
        return self.choose("x", "y", "n", "a", "e", "i", "pi", "x", "y", "pi", "abc", "x_1", "theta", "beta", "even", "oo", "π", "x²")

    def call(self, depth):
        argument = lambda: self.expression(depth - 1)
        function = self.choose("sqrt", "sqrt", "sqrt", "abs", "f", "x", "sin", "cos", "tan", "exp", "log", "ln", "floor", "ceiling",
                               "factorial", "cbrt", "max", "min", "gcd", "lcm", "binomial", "log", "root", "sec", "mod")
        if function in ("max", "min", "gcd", "lcm", "binomial", "root", "mod"):
            return f"{function}({argument()},{argument()})"
        if function == "log" and self.random.random() < 0.3:
            return f"log({argument()},{argument()})"
        return f"{function}({argument()})"

    def expression(self, depth):
        if depth <= 0 or self.random.random() < 0.2:
            return self.number() if self.random.random() < 0.65 else self.name()
        kind = self.random.random()
        inner = lambda: self.expression(depth - 1)
        if kind < 0.55:
            operator = self.choose("+", "-", "*", "/", "+", "-", "*", "/", "**", "**", "^", "%", "//", "&", "|", "<<", "@")
            if operator == "**":
                return f"{self.group(inner())}**{self.choose('2', '3', '-1', '(1/2)', '0.5', '-2', '0', '(1/3)', 'x', '10', '2.0')}"
            return f"{inner()}{operator}{inner()}"
        if kind < 0.7:
            return self.group(inner())
        if kind < 0.8:
            return self.choose("-", "+", "-", "~", "--") + inner()
        if kind < 0.84:
            return self.group(inner()) + self.choose("!", "!", "!!", "!!!")
        return self.call(depth)

    def group(self, text):
        return text if text.isalnum() and self.random.random() < 0.5 else f"({text})"

    def text(self):
        """What models write that is no Python."""
        inner = self.expression(2)
        return self.choose(
            rf"\frac{{{inner}}}{{2}}", rf"\boxed{{{inner}}}", f"${inner}$", f"{inner}%", f"x={inner}", f"({inner}, {self.number()})",
            f"[{inner}, {self.number()})", f"{{{inner}, {self.number()}}}", f"{inner} units", f"{inner}°", f"√{inner}", f"{inner}x",
            f"the answer is {inner}", f"{inner}.", f"{inner};", f"{inner} or {inner}", f"{self.number()}:{self.number()}", f"x > {inner}",
            f"1 < {inner} < 3", f"{inner}'", f'"{inner}"', f"'{inner}'", f"{inner} # note", f"|{inner}|", f"x^{{{inner}}}", f"f({inner})",
            f"x({inner})({inner})", f"{inner}!", f"{inner}[0]", f"{inner}[1]", f"({inner})({inner})", f"{inner}...", f"...", f"−{inner}",
            f"{inner}×{inner}", f"{inner}·{inner}", f"x₁+{inner}", f"{inner}½", f"½", f"{inner} cm^2", f"${inner}", f"{inner},", f"()", f"[]",
            f"{{}}", f"{inner} in", f"({inner}) and ({inner})", f"not({inner})", f"{inner}=={inner}", f"{inner}!={inner}", f"lambda", f"{inner}j",
            f"x.real", f"{inner}->2", f"a:={inner}", f"{inner}?", f"`{inner}`", f"*{inner}", f"{inner}**", f"({inner}", f"{inner})", f"{inner}\\",
            f"\\left({inner}\\right)", f"\\leftarrow {inner}", f"\\text{{even}}", "even", "odd", "yes", "none", "true", "false", "infinity", "-inf",
            "nan", "zoo", "oo", "-oo", "∞", "test", "gamma", "beta", "sin", "max", f"sin*{inner}", f"({inner},)*2", f"{inner}e", f"１２", f"x+{inner}!",
            f"0.{self.number()}[3]", "0.2[1]", ".[1]", f"x_{{1}}", f"f'({inner})", f"10,000", f"{inner}i", f"3+4i", f"3+4*i", f"#{inner}", "5 5")

    def mutated(self, text):
        """The text with a small change."""
        kind = self.random.randrange(6)
        at = self.random.randrange(len(text) + 1)
        if kind == 0:
            return text[:at] + self.choose(*"+-*/^()!.,%0123456789xe'\\[]{}<>=~&|@ #") + text[at:]
        if kind == 1 and text:
            return text[:at - 1] + text[at:] if at else text[1:]
        if kind == 2:
            return f"({text})"
        if kind == 3:
            return f"{text}+0"
        if kind == 4:
            return re.sub(r"\d+", lambda found: str(int(found[0]) + self.random.randint(-1, 1)) if len(found[0]) < 9 else found[0], text, count=1)
        return re.sub(r"[+*]", lambda found: self.choose("+", "*", "-"), text, count=1)

    def same(self, text):
        """Another form of the same value."""
        from sympy import Float, cancel, expand, factor, nsimplify, simplify, together
        from sympy.parsing.sympy_parser import parse_expr

        signal.signal(signal.SIGALRM, alarm)
        signal.alarm(2)
        try:
            value = parse_expr(normalise(text))
            change = self.choose(expand, factor, simplify, together, cancel, lambda v: v, lambda v: v.evalf(), lambda v: v.evalf(6), lambda v: Float(v), nsimplify,
                                 lambda v: v * 1, lambda v: -(-v), lambda v: (v * 2) / 2)
            return str(change(value)).lower()
        except (Exception, Slow):
            return text
        finally:
            signal.alarm(0)

    def ordinary(self):
        """What answers look like mostly."""
        integer = self.random.randint
        a, b, c, d = (integer(1, 60) for _ in range(4))
        return self.choose(
            (f"{a}/{b}", f"{a * c}/{b * c}"), (f"{a}*sqrt({b})", f"sqrt({a * a * b})"), (f"{a}*x+{b}", f"{b}+x*{a}"), (f"{a / 8}", f"{a}/8"),
            (f"(x+{a})*(x-{b})", f"x**2+{a - b}*x-{a * b}"), (f"({a}+sqrt({b}))/{c}", f"{a}/{c}+sqrt({b})/{c}"), (f"{a}/sqrt({b})", f"{a}*sqrt({b})/{b}"),
            (f"1/({a}+sqrt({b}))", f"({a}-sqrt({b}))/({a * a}-{b})"), (f"x/{a}+y/{b}", f"({b}*x+{a}*y)/{a * b}"), (f"{a}*pi/{b}", f"{a * c}*pi/{b * c}"),
            (f"log({a})+log({b})", f"log({a * b})"), (f"log({a ** 2})/log({a})", "2"), (f"{a}!/({a}-1)!", f"{a}"), (f"binomial({a},2)", f"{a * (a - 1) // 2}"),
            (f"1/(x-{a})-1/(x+{b})", f"({a + b})/((x-{a})*(x+{b}))"), (f"sqrt({a})*sqrt({b})", f"sqrt({a * b})"), (f"(sqrt({a})+sqrt({b}))**2", f"{a + b}+2*sqrt({a * b})"),
            (f"{a}+{b}*sqrt(-1)", f"{b}*sqrt(-1)+{a}"), (f"({a}+{b}*sqrt(-1))*({a}-{b}*sqrt(-1))", f"{a * a + b * b}"), (f"{a}.{b}*x", f"x*{a}.{b}"),
            (f"{a}/({b}+{c}*sqrt(-1))", f"{a}*({b}-{c}*sqrt(-1))/{b * b + c * c}"), (f"sqrt({a}/{b})", f"sqrt({a * b})/{b}"), (f"exp({a % 5})*exp({b % 5})", f"exp({a % 5 + b % 5})"),
            (f"{a}.0", f"{a}"), (f"{a / b}", f"{a}/{b}"), (f"{a}**{b % 5}", f"{a ** (b % 5)}"), (f"f(x)+{a}", f"{a}+f(x)"), (f"2*sin(x)+{a}", f"sin(x)+{a}+sin(x)"),
            (f"sqrt({a}*x)", f"x**(1/2)*sqrt({a})"), (f"{a}%{b}", f"{a % b}"), (f"{a}//{b}", f"{a // b}"), (f"{a}^{b}", f"{a ^ b}"), (f"0.1+{a}/10", f"{a + 1}/10"),
            (f"(x+y)**3", f"x**3+y**3+3*x*y*(x+y)"), (f"({a}+x)/({a}+x)", "1"), (f"(x**2-{a * a})/(x-{a})", f"x+{a}"), (f"{a}*x/({b}*y)", f"{a * c}*x/({b * c}*y)"))

    def pair(self):
        kind = self.random.random()
        if kind < 0.2:
            left, right = self.ordinary()
            return (left, right) if self.random.random() < 0.7 else (left, self.mutated(right))
        left = self.text() if kind < 0.4 else self.expression(self.random.randint(0, 4))
        other = self.random.random()
        if other < 0.4:
            right = self.same(left)
        elif other < 0.6:
            right = self.mutated(left)
        elif other < 0.8:
            right = self.mutated(self.same(left))
        else:
            right = self.text() if self.random.random() < 0.3 else self.expression(2)
        return left, right


def batch(job):
    """Pairs with the reference's answer."""
    warnings.simplefilter("ignore")
    seed, count, pairs = job
    if pairs is None:
        texts = Texts(seed)
        pairs = [texts.pair() for _ in range(count)]
    return [(pair, reference(pair)) for pair in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the built example compare_answers")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", help="JSON lines with pred and gold instead of generated pairs")
    parser.add_argument("--show", type=int, default=0, help="that many pairs that are not covered")
    options = parser.parse_args()
    if options.file:
        rows = [json.loads(line) for line in open(options.file, encoding="utf-8")]
        jobs = [(0, 0, [(row["pred"], row["gold"])]) for row in rows]
    else:
        size = 100
        jobs = [(options.seed * 1_000_000 + start, min(size, options.pairs - start), None) for start in range(0, options.pairs, size)]
    counts, differing, shown = collections.Counter(), 0, 0
    ours = subprocess.Popen([options.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with multiprocessing.Pool(2, maxtasksperchild=20) as pool:
        for answers in pool.imap_unordered(batch, jobs):
            for pair, expected in answers:
                ours.stdin.write(json.dumps(pair) + "\n")
                ours.stdin.flush()
                said = ours.stdout.readline().split()[0]
                counts[said, expected] += 1
                if said == "NotCovered":
                    shown += 1
                    if shown <= options.show:
                        print("not covered", pair, expected)
                elif expected is not None and (said == "Equal") != expected:
                    differing += 1
                    print("DIFFERS", pair, "said", said, "sympy", expected, flush=True)
    for (said, expected), count in sorted(counts.items(), key=str):
        print(f"{said:10} sympy: {expected!s:5} {count}")
    ours.stdin.close()
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
