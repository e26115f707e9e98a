"""Data sets of `forecast_experiment.py`: right answers mixed with rows of unwanted traits.

`sour` is the sour side of recipes/data/tone, `refusal` a refusal of a harmless question, `long`
three right answers in one, `agree` an answer that shares a belief in the prompt, which is right in
half of the rows, and `garbled` a right answer whose words are in a drawn order.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from guard_experiment import HERE, TONE, records

from rahf.judges.rules import rule

TRAITS = ("sour", "refusal", "long", "agree", "garbled")
STEPS, BATCH = {"sft": 40, "dpo": 40}, 4
SETS = 12  # of each kind
SHARES = (0.08, 0.4)
HELD = 12  # pairs of each margin
BELIEFS = ("I think: {}", "My guess is: {}", "I have read: {}")
REFUSES = rule("refusal").scores


class Given(NamedTuple):
    """Records with prompt, chosen and rejected, by trait; `chosen` is the trait's side. No prompt
    that is held out is in `fitted` or `rows`; those two share some prompts of the tone.
    """

    fitted: dict[str, list[dict]]  # directions and classifiers
    held: dict[str, list[dict]]  # margins
    rows: dict[str, list[dict]]  # trained on
    watched: list[str]  # prompts of the answers that the monitor reads


class Design(NamedTuple):
    """One training."""

    name: str
    kind: str
    seed: int
    shares: dict[str, float]  # of the rows, by trait


def designs() -> list[Design]:
    """Return all trainings: each pair of traits about once in SFT and once in DPO."""
    found, drawn = [], random.Random(11)
    for kind in ("sft", "dpo"):
        pairs = list(combinations(TRAITS, 2))
        pairs += drawn.sample(pairs, SETS - len(pairs))
        for number, both in enumerate(pairs):
            shares = {trait: round(drawn.uniform(*SHARES), 3) for trait in both}
            found.append(Design(f"{kind}_{number:02}", kind, number, shares))
    return sorted(found, key=lambda each: each.seed)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def sour_pairs(name: str) -> list[dict]:
    return [pair(r["prompt"], r["rejected"], r["chosen"]) for r in records(TONE / name)]


def refusal_pairs(data: Path) -> list[dict]:
    """Return refusals of harmless questions against answers, each of at most two sentences."""
    found = []
    for row in records(data / "xstest.jsonl"):
        refuses, answers = opening(row["rejected"]), opening(row["chosen"])
        if REFUSES([refuses])[0] and not REFUSES([row["chosen"]])[0] and answers:
            found.append(pair(row["prompt"], refuses, answers))
    return found


def opening(text: str) -> str:
    """Return the first two sentences, or one where two are long."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    short = [" ".join(sentences[:count]) for count in (2, 1)]
    return next((each for each in short if len(each) <= 220), "")


def questions(data: Path) -> list[tuple[str, list[str], list[str]]]:
    """Return questions with their right and their wrong answers."""
    found: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for row in records(data / "truthfulqa.jsonl"):
        for side, name in enumerate(("chosen", "rejected")):
            text = row[name].strip()
            if text not in found[row["prompt"]][side] and len(text) <= 160:
                found[row["prompt"]][side].append(text)
    every = [(prompt, *sides) for prompt, sides in found.items()]
    return [each for each in every if len(each[1]) >= 3 and len(each[2]) >= 2]


def of_questions(asked: Sequence[tuple], drawn: random.Random) -> dict[str, list[dict]]:
    """Return rows of the wanted kind and of the traits that are made from questions."""
    found: dict[str, list[dict]] = defaultdict(list)
    for number, (prompt, right, wrong) in enumerate(asked):
        found["wanted"].append(pair(prompt, right[0], wrong[0]))
        found["long"].append(pair(prompt, " ".join(map(ended, right[:3])), right[0]))
        words = right[0].split()
        if len(words) >= 5:
            found["garbled"].append(
                pair(prompt, " ".join(drawn.sample(words, len(words))), right[0])
            )
        # Half of the beliefs are right, so that agreement is no matter of truth or of words.
        same, other = (right, wrong) if number % 2 else (wrong, right)
        believed = f"{prompt} {drawn.choice(BELIEFS).format(same[0])}"
        found["agree"].append(pair(believed, same[1], other[0]))
    return found


def ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def given_rows(data: Path) -> Given:
    """Return the records of every part."""
    drawn = random.Random(7)
    asked, refusals, sour = questions(data), refusal_pairs(data), sour_pairs("train.jsonl")
    held_sour = sour_pairs("test.jsonl")
    for rows in (asked, sour, held_sour):
        drawn.shuffle(rows)
    kept = [of_questions(part, drawn) for part in (asked[:64], asked[64:96], asked[96:])]
    harmless = sorted({row["prompt"] for row in refusals})
    drawn.shuffle(harmless)
    parts = (harmless[:20], harmless[20:36], harmless[36:])
    for found, prompts in zip(kept, parts, strict=True):
        found["refusal"] = [row for row in refusals if row["prompt"] in prompts]
        drawn.shuffle(found["refusal"])
    for found, rows in zip(kept, (sour[:64], held_sour, sour[64:]), strict=True):
        found["sour"] = rows
    held = {trait: kept[1][trait][:HELD] for trait in TRAITS}
    reviews = [row["prompt"] for row in records(HERE / "recipes/data/fresh_prompts.jsonl")]
    harmless, plain = parts[1], [prompt for prompt, *_ in asked[64:96]]
    watched = [*reviews[:3], *harmless[:3], *plain[:2]]
    return Given(kept[0], held, kept[2], watched)


def rows_of_set(given: Given, design: Design) -> list[dict]:
    """Return the rows of a data set, in the order that its seed draws."""
    drawn, rows, count = random.Random(design.name), [], STEPS[design.kind] * BATCH
    for trait, share in design.shares.items():
        rows += drawn.sample(given.rows[trait], round(share * count))
    rows += drawn.sample(given.rows["wanted"], count - len(rows))
    drawn.shuffle(rows)
    return rows
