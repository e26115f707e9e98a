"""Sections of a training: what was aligned and how, per layer, its results, the guards."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rahf.report.page.blocks import Answer, Answers, Command, Folded, Section, Table
from rahf.report.page.charts import curves
from rahf.report.page.figures import (
    NOTHING,
    cut,
    duration,
    interval,
    left_out,
    plain,
    prompt_text,
    share,
    signed,
    spread_over,
)
from rahf.report.page.reading import Run, last_reading, number
from rahf.report.secrets import HIDDEN, NAMES, without_secrets

ANSWERS_SHOWN = 8
"""Prompts whose answers are shown, evenly over the file; as many again where the score fell."""

GIB = 2**30

ASKED_FOR = {
    "method": "method",
    "model_name_or_path": "base model",
    "dataset_name": "preference pairs",
    "alpha": "alpha, strength of the shift",
    "target_layers": "target layers",
    "shift": "shift",
    "max_steps": "steps",
    "learning_rate": "learning rate",
    "lora_r": "LoRA rank",
    "seed": "seed",
}
"""Settings at the top of the section; the others are behind a heading."""


def made_section(runs: Sequence[Run]) -> Section | None:
    """Return what was aligned and how."""
    blocks: list[Any] = []
    for run in runs:
        if not run.settings:
            continue
        rows = [
            [title, _setting(run.settings[key])]
            for key, title in ASKED_FOR.items()
            if run.settings.get(key) is not None
        ]
        rows += _costs(run)
        every = [[key, _setting(value, key)] for key, value in sorted(run.settings.items())]
        blocks += [
            Table(str(run.folder), ["setting", "value"], rows),
            Folded("every setting", [Table("", ["key", "value"], every)]),
            Command("trained by", run.command),
            *([Command("trains it again", run.repeat)] if run.repeat else []),
        ]
    lead = "The training as its recipe has it; time and memory were measured once, in this run."
    return Section("made", "What was aligned, and how", lead, blocks) if blocks else None


def _setting(value: Any, key: str = "") -> str:
    """Return a setting as text, without the secrets that a recipe should not hold."""
    if isinstance(value, dict):
        return cut(", ".join(f"{key}: {_setting(each, key)}" for key, each in value.items()), 400)
    if isinstance(value, list):
        return cut(", ".join(_setting(each, key) for each in value), 400)
    if isinstance(value, str):
        value = HIDDEN if NAMES.search(str(key)) else without_secrets(value)
    return NOTHING if value is None else cut(value, 400)


def _costs(run: Run) -> list[list[str]]:
    training, rows = run.training.get("training"), []
    if isinstance(training, dict) and "train_runtime" in training:
        rows.append(["time of the alignment", duration(training["train_runtime"])])
    if "peak_memory" in run.training:
        rows.append(["peak memory", f"{number(run.training['peak_memory']) / GIB:.2f} GiB"])
    return rows


def layers_section(runs: Sequence[Run]) -> Section | None:
    """Return the loss over the steps, and the reached share of the shift in each layer."""
    blocks: list[Any] = []
    losses = {
        str(run.folder): [
            (number(line["step"]), float(line["loss"]))
            for line in run.log
            if "loss" in line and "step" in line
        ]
        for run in runs
    }
    chart = curves("Training loss (one run, no interval)", LOSS, ("step", "loss"), losses)
    blocks += [chart] if chart else []
    reached = {str(run.folder): _points(run.metrics) for run in runs}
    axes = ("layer", "share")
    label = "share of the requested shift that the policy reached on held-out pairs, by layer"
    chart = curves("Reached shift per layer", label, axes, reached, from_zero=True)
    blocks += [chart] if chart else []
    for run in runs:
        rows = [
            [f"{layer:.0f}", *(_of_layer(run.metrics, kind, layer) for kind in KINDS)]
            for layer in _by_layer(run.metrics, "reached")
        ]
        if rows:
            header = ["layer", "share of the shift reached [95 %]", "cosine with the shift [95 %]"]
            blocks.append(Folded(f"the figures of {run.folder}", [Table("", header, rows)]))
    if not blocks:
        return None
    blocks += [Command("measured by", run.command or run.repeat) for run in runs]
    lead = (
        "1 is the full shift that was requested; intervals are over the held-out pairs. The loss "
        "is the mean over the batches since the line of the log before, of a single training."
    )
    return Section("layers", "Loss, and shift per layer", lead, blocks)


KINDS = ("reached", "cosine")
LOSS = "loss by optimiser step, of one run, without an interval"


def _by_layer(metrics: Mapping[str, Any], kind: str) -> dict[int, float]:
    """Return a figure of each layer, in their order."""
    prefix = f"eval_repr/{kind}/layer_"
    found = {
        int(key.removeprefix(prefix)): number(value)
        for key, value in metrics.items()
        if key.startswith(prefix)
    }
    return dict(sorted(found.items()))


def _points(metrics: Mapping[str, Any]) -> list[tuple[float, ...]]:
    """Return the reached share of each layer, with both ends of its interval where it has one."""
    low, high = (_by_layer(metrics, f"reached_{end}") for end in ("low", "high"))
    return [
        (layer, value, *(each[layer] for each in (low, high) if layer in low.keys() & high.keys()))
        for layer, value in _by_layer(metrics, "reached").items()
    ]


def _of_layer(metrics: Mapping[str, Any], kind: str, layer: int) -> str:
    value, low, high = (
        _by_layer(metrics, name).get(layer) for name in (kind, f"{kind}_low", f"{kind}_high")
    )
    form = partial(plain, digits=2)
    return NOTHING if value is None else f"{form(value)} {interval(low, high, form)}"


def results_section(runs: Sequence[Run]) -> Section | None:
    """Return the figures of base, teachers and policy, and answers side by side."""
    blocks: list[Any] = []
    for run in runs:
        models = run.metrics.get("models") or {}
        if models:
            blocks.append(_models(run, models))
        if run.answers:
            blocks += _answers(run)
        if models or run.answers:
            blocks.append(Command("measured by", run.measured_by or run.repeat))
    lead = "The same held-out prompts, pairs and texts for every model; answers are greedy."
    return Section("answers", "Answers before and after", lead, blocks) if blocks else None


def _models(run: Run, models: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, row in models.items():
        accuracy, ends = row.get("preference_accuracy"), row.get("preference_accuracy_interval")
        judged, error = row.get("judged_mean"), row.get("judged_se")
        known = judged is not None and error is not None
        judged_ends = (judged - 1.96 * error, judged + 1.96 * error) if known else (None, None)
        rows.append(
            [
                name,
                f"{share(accuracy)} {interval(*ends, share)}" if ends else share(accuracy),
                f"{signed(judged)} {interval(*judged_ends, signed)}" if known else signed(judged),
                _side(row, "shows_wanted"),
                _side(row, "shows_opposite"),
                plain(row.get("unrelated_loss"), 4),
            ]
        )
    policy = next(reversed(models.values()))
    header = ["model", "preference accuracy", "judged mean", "answers: wanted", "opposite"]
    note = f"{policy.get('answers', 0)} answers a model."
    if policy.get("judge"):
        note += f" Judge: {policy['judge']}; wanted: {policy.get('wanted', 'higher')} scores."
    note += " Brackets are 95 % intervals; the audit has the interval of the change of the loss."
    return Table(str(run.folder), [*header, "loss on unrelated text"], rows, note)


def _side(row: Mapping[str, Any], key: str) -> str:
    ends = row.get(f"{key}_interval")
    return f"{share(row.get(key))} {interval(*ends, share)}" if ends else share(row.get(key))


def _answers(run: Run) -> list[Any]:
    rows = list(run.answers)
    wanted = spread_over(rows, ANSWERS_SHOWN)
    where = run.folder / "evaluation" / "answers.jsonl"
    note = left_out(len(rows), len(wanted), where, "prompts")
    found: list[Any] = [Answers("Evenly over the prompts", [*map(_answer, wanted)], note)]
    policy = (run.metrics.get("models") or {}).get("policy", {})
    sign = -1 if policy.get("wanted") == "lower" else 1

    def gain(row: Mapping[str, Any]) -> float:
        return sign * (row["scores"]["policy"] - row["scores"]["base"])

    scored = [row for row in rows if _scored(row)]
    fell = sorted((row for row in scored if gain(row) < 0), key=gain)
    if fell:
        shown = [_answer(row) for row in fell[:ANSWERS_SHOWN]]
        title = f"Where the score fell: {len(fell)} of {len(scored)} prompts"
        note = left_out(len(fell), len(shown), where, "prompts")
        found.append(Folded(title, [Answers("", shown, note)]))
    return found


def _scored(row: Mapping[str, Any]) -> bool:
    scores = row.get("scores") or {}
    return all(isinstance(scores.get(name), int | float) for name in ("base", "policy"))


SHOWN_MODELS = ("base", "policy")


def _answer(row: Mapping[str, Any]) -> Answer:
    scores = row.get("scores") or {}
    shown = [
        (name, cut(row["answers"][name]), signed(scores.get(name)) if name in scores else "")
        for name in SHOWN_MODELS
        if name in row["answers"]
    ]
    return Answer(prompt_text(row["prompt"]), shown)


def guards_section(runs: Sequence[Run]) -> Section | None:
    """Return what a monitor saw during each training."""
    blocks: list[Any] = []
    for run in runs:
        last = last_reading(run.log)
        if not last:
            continue
        given = {
            name: [
                tuple(number(line[key]) for key in ("step", *_keys(name)))
                for line in run.log
                if f"directions/{name}" in line and "step" in line
            ]
            for name in last
        }
        axes = ("step", "movement")
        label = "mean movement of fixed answers along each watched direction, with 95 % intervals"
        chart = curves(f"Movement during {run.folder}", label, axes, given)
        rows = [
            [name, f"{signed(mean)} {interval(*ends, signed)}", _layer_range(run.log, name)]
            for name, (mean, *ends) in last.items()
        ]
        header = ["watched", "movement at the end [95 %]", "layers, least to most"]
        note = "1 is the mean difference that the direction was fitted to."
        blocks += [*([chart] if chart else []), Table("", header, rows, note)]
        blocks.append(Command("watched by", run.command))
    lead = "Directions that DirectionMonitor watched: fixed held-out answers, read while training."
    return Section("guards", "What the guards saw", lead, blocks) if blocks else None


def _keys(name: str) -> tuple[str, str, str]:
    key = f"directions/{name}"
    return key, f"{key}/low", f"{key}/high"


def _layer_range(log: Sequence[Mapping[str, Any]], name: str) -> str:
    prefix = f"directions/{name}/layer_"
    line = next((line for line in reversed(log) if f"directions/{name}" in line), {})
    found = [number(value) for key, value in line.items() if key.startswith(prefix)]
    return f"{signed(min(found))} to {signed(max(found))}" if found else NOTHING
