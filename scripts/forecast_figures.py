"""Tables of `forecast_experiment.py`: what the monitor and the forecast were worth, with intervals.

    python scripts/forecast_figures.py out/forecast --data DATA

Every figure compares runs of one kind of training with each other, SFT with SFT and DPO with DPO,
and joins the kinds. Intervals are bootstraps over runs within their kind.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forecast_data import TRAITS, Design, given_rows, rows_of_set
from forecast_experiment import BANK, PLACEBOS
from scipy.stats import rankdata

from rahf.artifacts import read_json, write_json
from rahf.guards.texts import WordClassifier
from rahf.report.tables import markdown

DRAWS = 2000
DEVIATIONS = 2
"""A trait has changed where its margin rose further than in runs of this kind without rows of the
trait: by so many of their standard deviations above their mean."""
OPPOSITE = {"bank_tone"}  # leads away from its trait: warm, where the trait is sour


def ranks(values: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return ranks within a kind, centred and of unit variance."""
    found = np.zeros(len(values))
    for each in np.unique(kind):
        rank = rankdata(values[kind == each])
        found[kind == each] = (rank - rank.mean()) / (rank.std() or 1)
    return found


def spearman(score: np.ndarray, change: np.ndarray, kind: np.ndarray) -> float:
    """Return the mean over kinds of Spearman's correlation; 0 where all scores are equal."""
    return float((ranks(score, kind) * ranks(change, kind)).mean())


def area(score: np.ndarray, changed: np.ndarray, kind: np.ndarray) -> float:
    """Return the share of pairs of runs, one changed and one not, that the score orders."""
    won, pairs = 0.0, 0
    for each in np.unique(kind):
        high = score[(kind == each) & (changed > 0)]
        low = score[(kind == each) & (changed == 0)]
        won += (np.sign(high[:, None] - low[None]) + 1).sum() / 2
        pairs += len(high) * len(low)
    return won / pairs if pairs else np.nan


def interval(figure: Callable[[np.ndarray], float], kind: np.ndarray) -> list[float]:
    """Return a figure of the runs at given places, with its 95 % interval over runs."""
    drawn, places = np.random.default_rng(0), np.arange(len(kind))
    of_kind = [places[kind == each] for each in np.unique(kind)]
    values = [
        figure(np.concatenate([drawn.choice(each, len(each)) for each in of_kind]))
        for _ in range(DRAWS)
    ]
    low, high = np.nanquantile(values, (0.025, 0.975))
    return [figure(places), float(low), float(high)]


def shown(values: Sequence[float]) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*values)


def band(values: Sequence[float]) -> str:
    return f"{np.mean(values):+.2f} [{min(values):+.2f}, {max(values):+.2f}]"


class Results:
    """All runs, and what they did to each trait."""

    def __init__(self, folder: Path):
        self.base = read_json(folder / "base.json")
        self.runs = [read_json(path) for path in sorted((folder / "runs").glob("*.json"))]
        self.kind = np.array([run["design"]["kind"] for run in self.runs])

    def moved(self, run: Mapping[str, Any], trait: str) -> float:
        return float(np.mean(run["margins"][trait]) - np.mean(self.base["margins"][trait]))

    def changes(self, trait: str) -> np.ndarray:
        return np.array([self.moved(run, trait) for run in self.runs])

    def changed(self, trait: str) -> np.ndarray:
        """Return 1 for runs whose trait has changed."""
        change, limits = self.changes(trait), np.zeros(len(self.runs))
        without = np.array([trait not in run["design"]["shares"] for run in self.runs])
        for kind in np.unique(self.kind):
            band = change[without & (self.kind == kind)]
            limits[self.kind == kind] = band.mean() + DEVIATIONS * band.std(ddof=1)
        return (change > limits).astype(float)

    def readings(self, name: str, quarter: int = 0) -> np.ndarray:
        read = np.array([run["watch"]["readings"][quarter][name] for run in self.runs])
        return -read if name in OPPOSITE else read

    def forecasts(self, name: str) -> np.ndarray:
        effects = np.array([run["forecast"]["effects"][name][0] for run in self.runs])
        return -effects if name in OPPOSITE else effects

    def texts(self, name: str) -> dict[str, np.ndarray]:
        """Return the figures of the screened texts by kind; length is one of every trait."""
        kinds = self.runs[0]["forecast"]["texts"][name]
        sign = -1 if name in OPPOSITE else 1
        found = {
            each: sign * np.array([r["forecast"]["texts"][name][each]["mean"] for r in self.runs])
            for each in kinds
        }
        return found | {
            "length": np.array([r["forecast"]["characters"]["mean"] for r in self.runs])
        }

    def share(self, part: str, kind: str) -> float:
        """Return the time of watching or of the forecast as a share of that of the training."""
        runs = [run for run in self.runs if run["design"]["kind"] == kind]
        return sum(run[part]["seconds"] for run in runs) / sum(run["seconds"] for run in runs)


def directions_of(trait: str) -> list[str]:
    return [trait, *(f"bank_{name}" for name, of in BANK.items() if of == trait)]


def watch_table(results: Results) -> str:
    header = ["trait", "direction", "changed", "AUC", "placebos", "Spearman", "placebos"]
    rows, kind = [], results.kind
    for trait in TRAITS:
        changed, change = results.changed(trait), results.changes(trait)
        others = [results.readings(f"{trait}_{n}") for n in range(PLACEBOS)]
        for name in directions_of(trait):
            read = results.readings(name)
            rows.append([
                trait, name, f"{changed.sum():.0f} of {len(changed)}",
                shown(interval(lambda p, r=read, c=changed: area(r[p], c[p], kind[p]), kind)),
                band([area(each, changed, kind) for each in others]),
                shown(interval(lambda p, r=read, c=change: spearman(r[p], c[p], kind[p]), kind)),
                band([spearman(each, change, kind) for each in others]),
            ])  # fmt: skip
    rows.append(["all", "of pairs", "", shown(joined(results)), "", "", ""])
    return markdown(header, rows)


def joined(results: Results) -> list[float]:
    """Return the mean over traits of the AUC, with its interval over runs."""
    kind = results.kind
    given = [(results.readings(trait), results.changed(trait)) for trait in TRAITS]
    return interval(
        lambda p: float(np.nanmean([area(r[p], c[p], kind[p]) for r, c in given])), kind
    )


def whole_texts(results: Results, data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return what the texts of all rows show, not only of those that were screened: by trait the
    difference of the two sides in preferences, the response in SFT.
    """
    given, found = given_rows(data), {}
    rows = [rows_of_set(given, Design(**run["design"])) for run in results.runs]
    for trait in TRAITS:
        sides = ([row[side] for row in given.fitted[trait]] for side in ("chosen", "rejected"))
        scores = {"classifier": WordClassifier(*sides).score, "length": len}
        found[trait] = {
            name: np.array(
                [mean_score(score, *of_run) for of_run in zip(rows, results.kind, strict=True)]
            )
            for name, score in scores.items()
        }
    return found


def mean_score(score: Callable[[str], float], rows: Sequence[dict], kind: str) -> float:
    second = "rejected" if kind == "dpo" else None
    return float(np.mean([score(r["chosen"]) - (score(r[second]) if second else 0) for r in rows]))


def forecast_table(results: Results, data: Path) -> str:
    header = ["trait", "direction", "states", "placebos", "best of the texts", "", "states - texts"]
    header += ["best of the texts of all rows", "", "states - texts"]
    rows, kind, whole = [], results.kind, whole_texts(results, data)
    for trait in TRAITS:
        change = results.changes(trait)
        others = [
            np.array([run["forecast"]["placebos"][f"{trait}_{n}"] for run in results.runs])
            for n in range(PLACEBOS)
        ]
        for name in directions_of(trait):
            states = results.forecasts(name)
            cells = [trait, name, correlated(states, change, kind),
                     band([spearman(each, change, kind) for each in others])]  # fmt: skip
            for texts in (results.texts(name), whole[trait]):
                best = max(texts, key=lambda each: spearman(texts[each], change, kind))
                difference = interval(
                    lambda p, s=states, t=texts[best], c=change: (
                        spearman(s[p], c[p], kind[p]) - spearman(t[p], c[p], kind[p])
                    ),
                    kind,
                )
                cells += [correlated(texts[best], change, kind), best, shown(difference)]
            rows.append(cells)
    return markdown(header, rows)


def correlated(score: np.ndarray, change: np.ndarray, kind: np.ndarray) -> str:
    return shown(interval(lambda p: spearman(score[p], change[p], kind[p]), kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    results = Results(options.folder)
    print(f"{len(results.runs)} runs\n\n{watch_table(results)}\n")
    print(forecast_table(results, options.data))
    for part in ("watch", "forecast"):
        shares = [f"{kind} {results.share(part, kind):.3f}" for kind in np.unique(results.kind)]
        print(f"{part}, share of the training's time: {', '.join(shares)}")
    write_json(options.folder / "changes.json", {
        trait: {
            run["design"]["name"]: [run["design"]["shares"].get(trait, 0.0), value]
            for run, value in zip(results.runs, results.changes(trait).tolist(), strict=True)
        }
        for trait in TRAITS
    })  # fmt: skip


if __name__ == "__main__":
    main()
