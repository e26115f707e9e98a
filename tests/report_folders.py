"""Output folders as commands leave them, with hostile texts, for tests of the page."""

import json
from pathlib import Path

import numpy as np
import yaml

HOSTILE = (
    "<script>alert('x')</script> & </style> \u202eevil\u202c \x1b[31m \x00 \"quoted\" {{ 7*7 }}"
)


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(
    folder: Path, shift: float = 0.0, prompts: int = 40, seed: int = 0, texts: int = 12
) -> Path:
    """Write a training whose answers are longer by `shift` words, and warmer."""
    random = np.random.default_rng(seed)
    common = np.random.default_rng(9)
    layers = {
        f"eval_repr/{kind}/layer_{layer}": 0.1 * layer
        for layer in (3, 4, 5)
        for kind in ("reached", "cosine")
    }
    for kind in ("reached", "cosine"):
        layers |= {f"eval_repr/{kind}_low/layer_{layer}": 0.08 * layer for layer in (3, 4)}
        layers |= {f"eval_repr/{kind}_high/layer_{layer}": 0.12 * layer for layer in (3, 4)}
    model = {"preference_accuracy": 0.7, "preference_accuracy_interval": [0.6, 0.8], "answers": 40}
    model |= {"judged_mean": 0.2, "judged_se": 0.05, "shows_wanted": 0.5, "shows_opposite": 0.1}
    model |= {"unrelated_loss": 3.1, "judge": "lexicon", "wanted": "higher"}
    write(folder / "metrics.json", {**layers, "models": {"base": model, "policy": model}})
    write(
        folder / "stage.json",
        {
            "complete": True,
            "command": f"rahf align {HOSTILE}",
            "training": {"train_runtime": 4.0},
            "settings": {},
        },
    )
    write(folder / "evaluation/stage.json", {"complete": True, "command": "rahf align mine.yaml"})
    settings = {"method": "dual", "alpha": 2, "model_name_or_path": HOSTILE, "seed": 0}
    settings["evaluation"] = {"judge": "lexicon", "prompts": "p.jsonl"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    monitored = {"directions/tone": 0.4, "directions/tone/low": 0.3, "directions/tone/high": 0.5}
    monitored |= {"directions/tone/layer_3": 0.2, "directions/tone/layer_4": 0.6}
    log = [{"loss": 1 / step, "step": step} for step in range(1, 6)]
    write_lines(folder / "log.jsonl", [*log, {**monitored, "step": 2}, {**monitored, "step": 5}])
    rows = []
    for place in range(prompts):
        words = int(common.integers(8, 20))
        longer = max(1, words + round(shift + random.normal(0, 1.0)))
        before, after = (" ".join(f"w{n}" for n in range(each)) for each in (words, longer))
        scores = {"base": common.normal(), "policy": 0.8 + random.normal()}
        judged = {"lexicon": scores, "regex:x": {"base": 0.0, "policy": float(place % 7 == 0)}}
        rows.append(
            {
                "prompt": f"{place} {HOSTILE}",
                "answers": {"base": f"{before} {HOSTILE}", "policy": f"{after} {HOSTILE}"},
                "scores": scores,
                "by_judge": judged,
            }
        )
    write_lines(folder / "evaluation/answers.jsonl", rows)
    losses = [float(30 + common.normal()) for _ in range(texts)]
    measured = [
        {"tokens": 10, "loss": {"base": loss, "policy": loss + 0.2 + random.normal(0, 0.05)}}
        for loss in losses
    ]
    write_lines(folder / "evaluation/texts.jsonl", measured)
    return folder


def feature(number: int, moved: bool) -> dict:
    return {
        "feature": number,
        "effect": 0.5,
        "low": 0.3,
        "high": 0.7,
        "q": 0.001 if moved else 0.4,
        "size": 0.6,
        "placebo_size": [0.1],
        "moved": moved,
        "seeds_alike": [1, 2],
        "rate": [0.1, 0.2],
        "tracks": [],
        "raises": [" warm", HOSTILE],
        "explanation": HOSTILE,
        "scores": {},
    }


def write_diff(folder: Path, features: int = 12) -> Path:
    estimate = {"mean": 0.1, "low": 0.05, "high": 0.2}
    write(
        folder / "features.json",
        {
            "made_by": "rahf features diff",
            "command": "rahf features diff",
            "model": "out",
            "dictionary": HOSTILE,
            "prompts": 120,
            "tokens": 900,
            "features_tested": 400,
            "moved": {"default": 9},
            "beyond_placebo": 7,
            "beyond_of_placebos": 2.5,
            "placebo_band": 0.2,
            "fits_aligned_worse": False,
            "token_kl": estimate,
            "features": [feature(n, n < 6) for n in range(features)],
        },
    )
    return folder


def write_comparison(folder: Path) -> Path:
    change = {"change": 0.4, "low": 0.1, "high": 0.7, "reached": True}
    row = {
        "seeds": 2,
        "judged_mean": {"mean": 0.5, "sd": 0.1},
        "ability_loss": {"mean": 0.01, "sd": 0},
        "kl": {"mean": 0.02},
        "repetition": {"mean": 0.1},
        "training_seconds": {"mean": 9.0},
        "peak_memory": 2**30,
        "at_budget": change,
    }
    rows = {"base": {"judged_mean": {"mean": 0.1}}, "dpo": row, "dual": row, HOSTILE: row}
    difference = {"row": "dual", "against": "dpo", **change}
    write(
        folder / "comparison.json",
        {
            "made_by": "rahf compare",
            "command": "rahf compare mine.yaml",
            "judge": "lexicon",
            "cost": "loss",
            "budget": 0.05,
            "rows": rows,
            "differences": [difference, {**difference, "against": HOSTILE}],
            "readings": [],
        },
    )
    points = [
        {"method": name, "strength": "1", "cost": cost, "change": cost * 3, "low": 0, "high": 1}
        for name in ("dpo", HOSTILE)
        for cost in (0.01, 0.04)
    ]
    write_lines(folder / "points.jsonl", points)
    return folder


def write_shift(folder: Path, responses: int = 3) -> Path:
    estimate = {"mean": 0.3, "low": 0.2, "high": 0.4}
    shares = {
        "tokens": 40,
        "unshifted": estimate,
        "marginal": estimate,
        "shifted": estimate,
        "kl": estimate,
        "aligned_first_choice": 1.0,
    }
    top = {
        "token": HOSTILE,
        "kind": "word",
        "shifted": 3,
        "occurrences": 4,
        "kl": 1.0,
        "base_would_say": "\u202e",
    }
    write(
        folder / "summary.json",
        {
            "made_by": "rahf shift",
            "command": "rahf shift",
            "responses": responses,
            **shares,
            "by_kind": {"word": shares},
            "end_of_text": {"tokens": 0},
            "by_position": [],
            "top_shifted": [top],
        },
    )
    record = {
        "row": 0,
        "prompt": HOSTILE,
        "pieces": [" a", HOSTILE, "\n", ""],
        "kind": ["word", "word", "blank", "end"],
        "bucket": ["unshifted", "shifted", "marginal", "unshifted"],
        "base_rank": [1, 9, 2, 1],
        "kl": [0.0, 2.0, 0.4, 0.0],
        "base_choice": ["a", "\x07", "c", ""],
    }
    write_lines(folder / "shift.jsonl", [record] * responses)
    return folder


def write_influence(folder: Path, pairs: int = 4, queries: int = 2) -> Path:
    rows = [
        {"side": "chosen", "pieces": [HOSTILE, " b"], "update": [0.1, 0.2], "output": [0.1, 0.2]}
    ]
    pair = {"row": 3, "change": -0.4, "through": {}, "ranks": {}, "details": [{"rows": rows}]}
    record = {
        "query": HOSTILE,
        "value": 1.0,
        "pairs": [pair, {"row": 4, "change": 0.2}] * (pairs // 2),
    }
    write(
        folder / "summary.json",
        {
            "made_by": "rahf influence score",
            "command": "rahf influence score",
            "adapter": "out",
            "unit": "nats",
            "curvature": "ekfac",
            "notes": [HOSTILE],
            "layers": {},
            "agreement": {},
        },
    )
    write_lines(folder / "queries.jsonl", [record] * queries)
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    single = {"mean": -0.3, "low": None, "high": None}
    write_made(
        folder / "validation.json",
        "rahf influence validate --adapter out",
        adapter="out",
        curvature="ekfac",
        cpu_seconds=3.0,
        steps={"correlation": 0.99, "slope": 1.01, "pairs": 5},
        datamodelling={"influence": estimate, HOSTILE: None},
        leave_out={"supporters": {"predicted": -0.4, "measured": single}},
        flips={"flipped": 2, "pairs": 9, "auc": {"influence": estimate}},
    )
    return folder


def write_made(path: Path, command: str, **figures) -> None:
    """Write figures with the command line that made them."""
    words = [word for word in command.split() if word.isalpha()]
    name = next(" ".join(words[:count]) for count in (3, 2) if " ".join(words[:count]) in COMMANDS)
    write(path, {"made_by": name, **figures, "command": command})


COMMANDS = {
    "rahf evaluate preferences",
    "rahf evaluate responses",
    "rahf evaluate tasks",
    "rahf influence clean",
    "rahf influence validate",
    "rahf screen",
    "rahf sweep",
}


def write_measured(out: Path, rows: int) -> None:
    """Write what was measured or forecast beside a training."""
    estimate, one = {"mean": 0.5, "low": 0.1, "high": 0.9}, {"mean": 0.5, "low": None, "high": None}
    measure = {"accuracy": estimate, "margin": estimate}
    write_made(
        out / "preferences.json",
        "rahf evaluate preferences --model out",
        model="out",
        pairs=50,
        dropped_pairs=0,
        sum=measure,
        per_token=measure,
        per_byte=measure,
        longer_is_chosen=estimate,
        implicit_reward=measure,
    )
    judged = {"judge": HOSTILE, "missing": 1}
    score = {**judged, "responses": 40, "distinct": 9, "score": estimate}
    write_made(out / "scores.json", "rahf evaluate responses --judge length", **score)
    marks = {"helpful": {"missing": 0, **estimate}, HOSTILE: {"missing": 4}}
    aspects = {"judge": "api:m", "responses": 40, "aspects": marks}
    write_made(out / "aspects.json", "rahf evaluate responses --aspects", **aspects)
    wins = {**judged, "first": "a", "second": HOSTILE, "prompts": 40, "wins": 20, "ties": 9}
    wins |= {"losses": 11, "win_rate": estimate, "win_rate_at_equal_length": estimate}
    wins |= {"longer_wins": None, "characters": [90.0, 80.0], "first_place_preferred": 0.6}
    wins |= {"first_place_preferred_interval": [0.5, 0.7], "orders_agree": 0.8}
    wins |= {"orders_agree_interval": [0.7, 0.9], "contests": 39}
    write_made(out / "wins.json", "rahf evaluate responses --against b.jsonl", **wins)
    figures = {"acc,none": 0.5, "acc,none_interval": [0.25, 0.75], "word_perplexity,none": 9.0}
    tasks = {"arc": figures, HOSTILE: {"f1,none": None}}
    made = {"model": "out", "made_from": {}}
    write_made(out / "tasks.json", "rahf evaluate tasks --tasks arc", **made, tasks=tasks)
    arm = {"rows": [], "accuracy": estimate, "gained": one, "margin": estimate}
    arm |= {"margin_gained": one, "by_seed": {}}
    better = {**arm, "rows": [1, 2], "gained": estimate, "margin_gained": estimate}
    arms = {"all pairs": arm, "drop worst": better}
    cleaning = {"adapter": "out", "pairs": 90, "changed": 2, "arms": arms}
    write_made(out / "cleaning/cleaning.json", "rahf influence clean --adapter out", **cleaning)
    direction = {**estimate, "verdict": "will rise", "q": 0.01, "random": [-0.1, 0.1]}
    direction |= {"shuffled": [-0.2, 0.2], "texts": {}, "p": 0.001}
    screened = {"data": HOSTILE, "kind": "pairs", "rows": 80, "rows_found": 80, "prompts": 40}
    screened |= {"characters": one, "directions": {"tone": direction, HOSTILE: direction}}
    write_made(out / "screen/summary.json", "rahf screen PAIRS --model base", **screened)
    points = [
        {"point": {"alpha": str(alpha)}, "results": {"reached": 0.1 * alpha}}
        for alpha in range(min(rows, 200))
    ]
    write_made(out / "sweep/results.json", "rahf sweep mine.yaml --alpha 1,2", points=points)


def write_everything(root: Path, rows: int = 12) -> Path:
    """Write an output folder with results of every kind, and three placebos."""
    out = write_run(root / "out", shift=6.0, prompts=max(40, rows))
    write_diff(out / "diff", rows)
    write_comparison(out / "compare")
    write_shift(out / "shift", rows)
    write_influence(out / "influence", min(rows, 20), rows)
    write_measured(out, rows)
    for seed in (1, 2, 3):
        write_run(out / f"placebo/{seed}/adapter", prompts=max(40, rows), seed=seed)
    return out
