#!/usr/bin/env python3
"""Seeded generator of word problems in the form of GSM8K, for the demo's data set and the demo model's training.

    python3 demo/problems.py --seed 1 --count 700 --out demo/gsm8k/train.jsonl

Every row is {"question": ..., "answer": "<one equation per sentence> #### N"}. The sentences before `####` are what the
demo model is taught to write as its reasoning. Numbers are non-negative integers, the text is ASCII. The same seed
gives the same rows on every machine and Python 3 version: only `random()` is drawn, whose sequence Python guarantees.
"""

import argparse
import json
import pathlib
import random

NAMES = ["Tom", "Anna", "Ben", "Clara", "David", "Ella", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Mia"]
THINGS = ["apples", "books", "coins", "marbles", "pencils", "stickers", "cards", "shells", "eggs", "stamps"]
HOLDERS = ["boxes", "bags", "baskets", "jars", "trays"]
PLACES = ["the market", "the school", "the garden", "the library", "the park"]


def pick(rng, items):
    """One of `items`."""
    return items[int(rng.random() * len(items))]


def between(rng, low, high):
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def two_names(rng):
    """Two different names."""
    first = int(rng.random() * len(NAMES))
    step = 1 + int(rng.random() * (len(NAMES) - 1))
    return NAMES[first], NAMES[(first + step) % len(NAMES)]


def buy_then_give(rng):
    """a + b - c."""
    name, other = two_names(rng)
    thing, a, b = pick(rng, THINGS), between(rng, 5, 40), between(rng, 2, 40)
    c = between(rng, 2, min(40, a + b))
    total = a + b
    return (
        f"{name} has {a} {thing} and buys {b} more. Then {name} gives {c} {thing} to {other}. "
        f"How many {thing} does {name} have now?",
        f"{name} has {a} {thing} and buys {b} more. {a} + {b} = {total}. "
        f"{name} gives {c} to {other}. {total} - {c} = {total - c}.",
        total - c,
    )


def find_then_find(rng):
    """a + b + c."""
    name, thing, place = pick(rng, NAMES), pick(rng, THINGS), pick(rng, PLACES)
    a, b, c = between(rng, 2, 30), between(rng, 2, 30), between(rng, 2, 39)
    return (
        f"On Monday {name} finds {a} {thing} in {place}. On Tuesday {name} finds {b} more, and on Friday {c} more. "
        f"How many {thing} is that?",
        f"On Monday and Tuesday {name} finds {a} and {b} {thing}. {a} + {b} = {a + b}. "
        f"On Friday {name} finds {c} more. {a + b} + {c} = {a + b + c}.",
        a + b + c,
    )


def lose_twice(rng):
    """a - b - c."""
    name, thing, place = pick(rng, NAMES), pick(rng, THINGS), pick(rng, PLACES)
    a = between(rng, 12, 40)
    b = between(rng, 2, a - 6)
    c = between(rng, 2, a - b)
    return (
        f"{name} takes {a} {thing} to {place}. {name} loses {b} of them and sells {c} of them. "
        f"How many {thing} does {name} still have?",
        f"{name} takes {a} {thing} and loses {b} of them. {a} - {b} = {a - b}. "
        f"{name} sells {c} of them. {a - b} - {c} = {a - b - c}.",
        a - b - c,
    )


def holders(rng):
    """a * b."""
    name, thing, holder = pick(rng, NAMES), pick(rng, THINGS), pick(rng, HOLDERS)
    a, b = between(rng, 2, 9), between(rng, 2, 10)
    return (
        f"{name} has {a} {holder}. There are {b} {thing} in each of the {holder}. "
        f"How many {thing} does {name} have in total?",
        f"{name} has {a} {holder} and there are {b} {thing} in each of them. "
        f"The total is {a} times {b}. {a} * {b} = {a * b}.",
        a * b,
    )


def holders_and_more(rng):
    """a * b + c."""
    name, thing, holder = pick(rng, NAMES), pick(rng, THINGS), pick(rng, HOLDERS)
    a, b, c = between(rng, 2, 8), between(rng, 2, 8), between(rng, 2, 35)
    return (
        f"{name} fills {a} {holder} with {b} {thing} each and has {c} {thing} left over. "
        f"How many {thing} did {name} have at first?",
        f"{name} fills {a} {holder} with {b} {thing} each. {a} * {b} = {a * b}. "
        f"There are {c} left over. {a * b} + {c} = {a * b + c}.",
        a * b + c,
    )


def share(rng):
    """total / friends."""
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    friends, each = between(rng, 2, 9), between(rng, 2, 10)
    total = friends * each
    return (
        f"{name} shares {total} {thing} equally among {friends} friends. How many {thing} does each of the friends get?",
        f"{name} has {total} {thing} and shares them equally among {friends} friends. "
        f"Each of them gets {total} divided by {friends}. {total} / {friends} = {each}.",
        each,
    )


def share_after_eating(rng):
    """(rest + gone - gone) / parts."""
    name, thing, holder = pick(rng, NAMES), pick(rng, THINGS), pick(rng, HOLDERS)
    parts, each = between(rng, 2, 6), between(rng, 2, 6)
    rest, gone = parts * each, between(rng, 2, 20)
    return (
        f"{name} has {rest + gone} {thing}, gives away {gone} and puts the rest equally into {parts} {holder}. "
        f"How many {thing} are in each?",
        f"{name} has {rest + gone} {thing} and gives away {gone}. {rest + gone} - {gone} = {rest}. "
        f"The rest goes into {parts} {holder}. {rest} / {parts} = {each}.",
        each,
    )


def price(rng):
    """money - a * b."""
    name, thing, place = pick(rng, NAMES), pick(rng, THINGS), pick(rng, PLACES)
    a, b = between(rng, 2, 9), between(rng, 2, 9)
    money = min(99, a * b + between(rng, 0, 30))
    return (
        f"{name} goes to {place} with {money} dollars and buys {a} {thing} for {b} dollars each. "
        f"How many dollars does {name} have left?",
        f"{name} buys {a} {thing} for {b} dollars each. {a} * {b} = {a * b}. "
        f"{name} had {money} dollars. {money} - {a * b} = {money - a * b}.",
        money - a * b,
    )


def more_than(rng):
    """a + (a + b)."""
    name, other = two_names(rng)
    thing, a, b = pick(rng, THINGS), between(rng, 3, 34), between(rng, 2, 30)
    return (
        f"{name} has {a} {thing}. {other} has {b} {thing} more than {name}. "
        f"How many {thing} do {name} and {other} have together?",
        f"{other} has {b} {thing} more than {name}, who has {a}. {a} + {b} = {a + b}. "
        f"Together they have {a} and {a + b}. {a} + {a + b} = {a + a + b}.",
        a + a + b,
    )


def fewer_than(rng):
    """a + (a - b)."""
    name, other = two_names(rng)
    thing, a = pick(rng, THINGS), between(rng, 10, 40)
    b = between(rng, 2, a - 3)
    return (
        f"{name} has {a} {thing}. {other} has {b} {thing} fewer than {name}. "
        f"How many {thing} do {name} and {other} have together?",
        f"{other} has {b} {thing} fewer than {name}, who has {a}. {a} - {b} = {a - b}. "
        f"Together they have {a} and {a - b}. {a} + {a - b} = {a + a - b}.",
        a + a - b,
    )


def per_day(rng):
    """a * days - b."""
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    days, a = between(rng, 2, 9), between(rng, 2, 9)
    b = between(rng, 2, days * a - 1)
    return (
        f"{name} collects {a} {thing} every day for {days} days and then sells {b} of them. "
        f"How many {thing} does {name} keep?",
        f"{name} collects {a} {thing} every day for {days} days. {a} * {days} = {a * days}. "
        f"{name} sells {b} of them. {a * days} - {b} = {a * days - b}.",
        a * days - b,
    )


def times_as_many(rng):
    """k * a + c."""
    name, other = two_names(rng)
    thing, a, k, c = pick(rng, THINGS), between(rng, 2, 12), between(rng, 2, 5), between(rng, 2, 30)
    return (
        f"{name} has {a} {thing}. {other} has {k} times as many {thing} and then gets {c} more. "
        f"How many {thing} does {other} have?",
        f"{other} has {k} times as many {thing} as {name}, who has {a}. {k} * {a} = {k * a}. "
        f"Then {other} gets {c} more. {k * a} + {c} = {k * a + c}.",
        k * a + c,
    )


TEMPLATES = [
    buy_then_give,
    find_then_find,
    lose_twice,
    holders,
    holders_and_more,
    share,
    share_after_eating,
    price,
    more_than,
    fewer_than,
    per_day,
    times_as_many,
]


def problem(rng):
    """One problem as a row of the data set; `rng` is a random.Random."""
    question, reasoning, result = pick(rng, TEMPLATES)(rng)
    return {"question": question, "answer": f"{reasoning} #### {result}"}


def rows(seed, count):
    """`count` problems from one seed, in order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    return [problem(rng) for _ in range(count)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--count", type=int, default=700)
    arguments.add_argument("--out", type=pathlib.Path, required=True, help="a .jsonl file; its folder is made if needed")
    options = arguments.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="ascii", newline="\n") as out:
        for row in rows(options.seed, options.count):
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
