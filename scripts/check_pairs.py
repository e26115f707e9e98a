"""Check the preference pairs of a folder and print what is measured about them.

The folder holds JSONL files, one split a file, with the keys `prompt`, `chosen`, `rejected` and
`subject`. Printed for each split: counts, lengths in words, how often the longer side is the
chosen one, and how the VADER lexicon scores the two sides. The exit status is 1 when a row is
broken, a row occurs twice, or a prompt of one split occurs in another.

The lexicon counts words that carry a tone. It does not measure whether an answer fits its prompt or
whether the two sides differ in more than tone: that takes a reader.
"""

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

FIELDS = ("prompt", "chosen", "rejected", "subject")


def read_rows(path: Path) -> tuple[list[dict], list[str]]:
    """Return the usable rows of a JSONL file, and what is wrong with the others."""
    rows, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{place}: not a JSON object ({error})")
            continue
        if not isinstance(row, dict):
            problems.append(f"{place}: not a JSON object")
            continue
        bad = [f for f in FIELDS if not isinstance(row.get(f), str) or not row[f].strip()]
        if bad:
            problems.append(f"{place}: missing or empty: {', '.join(bad)}")
        elif normal(row["chosen"]) == normal(row["rejected"]):
            problems.append(f"{place}: chosen and rejected are the same")
        else:
            rows.append(row)
    return rows, problems


def normal(text: str) -> str:
    """Lower-case words only, so that case and punctuation do not hide a repetition."""
    return " ".join(re.findall(r"\w+", text.lower()))


def length(text: str) -> int:
    return len(text.split())


def repeated_answers(name: str, rows: list[dict]) -> list[str]:
    """Return the answers that occur in two rows of a split, whatever the prompts."""
    seen = Counter(normal(row[side]) for row in rows for side in ("chosen", "rejected"))
    return [f"{name}: {n} rows share the answer {text!r}" for text, n in seen.items() if n > 1]


def overlaps(splits: dict[str, list[dict]], limit: float) -> list[str]:
    """Return prompts and answers that two splits share, and prompts that are nearly the same."""
    problems = []
    for one, other in combinations(splits, 2):
        for field in ("prompt", "chosen", "rejected"):
            shared = {normal(r[field]) for r in splits[one]} & {
                normal(r[field]) for r in splits[other]
            }
            problems += [f"{one} and {other} share the {field} {text!r}" for text in sorted(shared)]
        left, right = ({normal(r["prompt"]) for r in splits[name]} for name in (one, other))
        for a in sorted(left):
            for b in sorted(right - {a}):
                if likeness(a, b) >= limit:
                    problems.append(f"{one} and {other}: prompts alike: {a!r} / {b!r}")
    return problems


def likeness(a: str, b: str) -> float:
    """Return the words shared by two prompts as a share of all their words (Jaccard)."""
    first, second = set(a.split()), set(b.split())
    return len(first & second) / len(first | second)


def report(name: str, rows: list[dict], analyzer: SentimentIntensityAnalyzer) -> None:
    """Print the facts of one split."""
    print(f"{name}: {len(rows)} pairs, {len({normal(r['prompt']) for r in rows})} distinct prompts")
    subjects = Counter(row["subject"] for row in rows)
    print("  subjects: " + ", ".join(f"{s} {n}" for s, n in sorted(subjects.items())))
    kinds = Counter(row["split_kind"] for row in rows if "split_kind" in row)
    if kinds:
        print("  split_kind: " + ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())))
    words, scores = {}, {}
    for side in ("chosen", "rejected"):
        words[side] = [length(row[side]) for row in rows]
        scores[side] = [analyzer.polarity_scores(row[side])["compound"] for row in rows]
        print(
            f"  {side}: words mean {statistics.mean(words[side]):.1f},"
            f" median {statistics.median(words[side]):.0f},"
            f" {min(words[side])} to {max(words[side])};"
            f" compound mean {statistics.mean(scores[side]):+.2f}"
        )
    gaps = [a - b for a, b in zip(words["chosen"], words["rejected"], strict=True)]
    print(
        f"  longer side is the chosen one: {share([g > 0 for g in gaps if g])} of the pairs that"
        f" differ in length; same length: {share([g == 0 for g in gaps])};"
        f" largest difference {max(map(abs, gaps))} words"
    )
    moves = [a - b for a, b in zip(scores["chosen"], scores["rejected"], strict=True)]
    print(
        f"  chosen scores higher: {share([m > 0 for m in moves])} of pairs;"
        f" mean difference {statistics.mean(moves):.2f}, smallest {min(moves):.2f}"
    )
    firsts = Counter(normal(row["chosen"]).split()[0] for row in rows)
    print("  commonest first words, chosen: " + ", ".join(f"{w} {n}" for w, n in top(firsts)))
    firsts = Counter(normal(row["rejected"]).split()[0] for row in rows)
    print("  commonest first words, rejected: " + ", ".join(f"{w} {n}" for w, n in top(firsts)))


def top(counts: Counter) -> list[tuple[str, int]]:
    return counts.most_common(5)


def share(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.1f} %" if flags else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with one JSONL file per split")
    parser.add_argument(
        "--limit",
        type=float,
        default=0.8,
        help="share of common words from which two prompts count as alike (default: %(default)s)",
    )
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.jsonl"))
    if not files:
        parser.error(f"no .jsonl file in {options.folder}: give a folder such as recipes/data/tone")
    splits, problems = {}, []
    analyzer = SentimentIntensityAnalyzer()
    for path in files:
        rows, found = read_rows(path)
        problems += found + repeated_answers(path.name, rows)
        splits[path.name] = rows
        if rows:
            report(path.name, rows, analyzer)
        else:
            problems.append(f"{path.name}: no usable row")
    problems += overlaps(splits, options.limit)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
