"""`rahf compare`: choose each row's trial, train it with every seed, measure all rows, tell.

Everything is kept in `compare` of the recipe's output folder; a run that was stopped goes on there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from peft import PeftModel

from rahf.adapters import fingerprint, load_classifier, load_tokenizer_of
from rahf.artifacts import read_json, write_json, write_lines, write_text
from rahf.comparison.curves import curves_of, everything, line, points, read_at
from rahf.comparison.held_out import asked_of, under_urial, wanted_side, with_validation
from rahf.comparison.rows import UNTRAINED, RowRun, Trained, row_run, train_row
from rahf.evaluation.judges import Judge, prompt_hash
from rahf.evaluation.model_judges import RewardJudge
from rahf.evaluation.rules import rule
from rahf.evaluation.strengths import Asked, measure_strengths
from rahf.loading import load_base, load_tokenizer
from rahf.recipe.combinations import kind_of_row
from rahf.recipe.reading import Recipe
from rahf.report.comparison import comparison_table, row_figures
from rahf.report.tradeoff import change_within, tradeoff_figure
from rahf.urial import own_urial, read_urial, urial_prompt_form


class Measured(NamedTuple):
    """One row as it stands in the table."""

    trial: int
    by_seed: list[list[dict[str, Any]]]  # measures at each strength
    costs: list[dict[str, float]]  # of the training, a seed


class Comparison:
    """The recipe, the models that are measured, and where everything is kept."""

    def __init__(self, recipe: Recipe):
        self.options, self.folder = recipe.compare, recipe.output_dir / "compare"
        self.given = recipe
        self.recipe = with_validation(recipe, self.folder / "data")
        self.runs = {
            (name, trial, seed): self._row_run(name, trial, seed)
            for name in self.options.rows
            if kind_of_row(name) not in UNTRAINED
            for trial in range(len(self.trials(name)))
            for seed in self.options.seeds
        }
        self.tokenizer = load_tokenizer(recipe)
        self.judge = scorer(self.options.judge)
        self.sign = wanted_side(self.recipe, self.judge)

    def trials(self, name: str) -> list[dict[str, Any]]:
        """The settings that are tried for a row; one empty one where it is not tuned."""
        return self.options.trials.get(name, [{}])

    def _row_run(self, name: str, trial: int, seed: int) -> RowRun:
        settings = self.trials(name)[trial]
        # Named by its settings, so that a list of trials may be changed and what is there is kept.
        key = prompt_hash(json.dumps({**self.options.rows[name], **settings}, sort_keys=True))[:8]
        folder = self.folder / "runs" / name / key / f"seed-{seed}"
        return row_run(self.recipe, name, settings, seed, folder)

    def train(self, name: str, trial: int, seed: int) -> Trained:
        return train_row(self.runs[name, trial, seed], self.folder / "teachers")

    def asked(self, part: str) -> Asked:
        validation = self.folder / "data" if self.options.trials else None
        return asked_of(self.given, self.tokenizer, self.judge, part, validation)

    def under_urial(self, asked: Asked) -> Asked:
        urial = read_urial(self.options.urial) if self.options.urial else own_urial()
        return under_urial(asked, urial_prompt_form(self.tokenizer, urial))

    def measures(
        self, part: str, asked: Asked, name: str, trained: Trained | None
    ) -> list[dict[str, Any]]:
        """The measures of one adapter, or of the base; measured once."""
        strengths = self.options.strengths if trained else [0.0]
        made_with = {
            "strengths": strengths,
            "judge": asked.judge.id,
            "max_new_tokens": asked.max_new_tokens,
            "weights": fingerprint(trained.adapter) if trained else [],
            "asked": prompt_hash(json.dumps([asked.chats, list(asked.texts), asked.form.name])),
        }
        home = trained.adapter.relative_to(self.folder) if trained else name
        path = self.folder / part / home / "measures.json"
        if path.exists() and (known := read_json(path))["made_with"] == made_with:
            return known["measures"]
        print(f"{name}: measuring on {part}", flush=True)
        model = load_base(self.recipe)
        if trained:
            model = PeftModel.from_pretrained(model, trained.adapter)
        found = measure_strengths(model.eval(), self.tokenizer, asked, strengths)
        measures = [each.as_dict() for each in found]
        write_json(path, {"made_with": made_with, "measures": measures})
        return measures


def scorer(name: str) -> Judge:
    """A judge of single answers by its name.

    Raises:
        ValueError: no such judge.
    """
    kind, _, model = name.partition(":")
    if kind != "reward":
        return rule(name)
    judge_id = " ".join([model, *fingerprint(model)])
    loaded = load_classifier(model, {"dtype": "auto"}, PartialState().device)
    return RewardJudge(loaded, load_tokenizer_of(model), judge_id)


def compare(recipe: Recipe) -> None:
    """Run the comparison of `recipe.compare` and print its table.

    Raises:
        ValueError: settings of a row that make no recipe, told before anything is run; several
            processes.
    """
    if PartialState(cpu=recipe.training.get("use_cpu", False)).num_processes > 1:
        raise ValueError("rahf compare runs in one process; start it without accelerate launch")
    comparison = Comparison(recipe)
    chosen = {
        name: choose_trial(comparison, name)
        for name in comparison.options.rows
        if kind_of_row(name) not in UNTRAINED
    }
    asked, rows = comparison.asked("test"), {}
    for name in comparison.options.rows:
        kind = kind_of_row(name)
        if kind in UNTRAINED:
            given = asked if kind == "base" else comparison.under_urial(asked)
            rows[name] = Measured(0, [comparison.measures("test", given, name, None)], [])
            continue
        trained = [comparison.train(name, chosen[name], seed) for seed in comparison.options.seeds]
        measures = [comparison.measures("test", asked, name, each) for each in trained]
        rows[name] = Measured(chosen[name], measures, [each.cost for each in trained])
    tell(comparison, rows)


def choose_trial(comparison: Comparison, name: str) -> int:
    """The trial with the most change at the budget, on held-out training prompts, first seed."""
    options, trials = comparison.options, comparison.trials(name)
    if len(trials) == 1:
        return 0
    path = comparison.folder / "trials" / f"{name}.json"
    asked = comparison.asked("validation")
    base = curves_of([comparison.measures("validation", asked, "base", None)])
    results = []
    for trial, settings in enumerate(trials):
        trained = comparison.train(name, trial, options.seeds[0])
        curves = curves_of([comparison.measures("validation", asked, name, trained)])
        found = line(curves, base, everything(curves), options.cost, comparison.sign)
        change = change_within(found, options.budget)
        results.append({"settings": settings, "change": change, "line": found})
        print(f"{name}, trial {trial} {settings}: {change:+.3f} at {options.budget:g}", flush=True)
        write_json(path, results)
    return max(range(len(trials)), key=lambda trial: results[trial]["change"])


def tell(comparison: Comparison, rows: dict[str, Measured]) -> None:
    """Write and print what the rows have come to."""
    options, folder = comparison.options, comparison.folder
    curves = {name: curves_of(row.by_seed) for name, row in rows.items()}
    [base] = [name for name in rows if kind_of_row(name) == "base"][:1]
    others = {name: row for name, row in curves.items() if name != base}
    readings, differences = read_at(
        others, curves[base], options.budget, options.cost, comparison.sign
    )
    lines = {
        name: points(row, curves[base], options.cost, comparison.sign)
        for name, row in others.items()
    }
    table = {
        name: row_figures(row.by_seed, row.costs, rows[base].by_seed[0])
        | ({"at_budget": readings[name]._asdict()} if name in readings else {})
        for name, row in rows.items()
    }
    text = comparison_table(table, options.cost, options.budget)
    settings = {
        name: {**options.rows[name], **comparison.trials(name)[row.trial]}
        for name, row in rows.items()
    }
    write_json(
        folder / "comparison.json",
        {
            "judge": comparison.judge.id,
            "wanted_side": comparison.sign,
            "cost": options.cost,
            "budget": options.budget,
            "settings": settings,
            "rows": table,
            "differences": [
                {"row": one, "against": other, **found._asdict()}
                for (one, other), found in differences.items()
            ],
        },
    )
    write_text(folder / "comparison.md", text + "\n")
    write_lines(
        folder / "points.jsonl",
        (
            {"method": name, "strength": point.label, "cost": point.cost, "change": point.change}
            | {"low": point.low, "high": point.high}
            for name, found in lines.items()
            for point in found
        ),
    )
    tradeoff_figure(lines, folder / "tradeoff.png", cost=COST_LABELS[options.cost])
    _write_answers(comparison, rows, folder / "answers.jsonl")
    print(f"\n{text}\n\nresults: {folder}")


COST_LABELS = {
    "loss": "loss of ability (nats per token on unrelated text)",
    "kl": "KL from the base on unrelated text (nats per token)",
}


def _write_answers(comparison: Comparison, rows: dict[str, Measured], path: Path) -> None:
    """The first seed's answers at strength 1, or at the strength nearest to it."""
    chats: Sequence[Any] = comparison.asked("test").chats
    answers = {
        name: min(row.by_seed[0], key=lambda point: abs(point["strength"] - 1))["answers"]
        for name, row in rows.items()
    }
    write_lines(
        path,
        (
            {"prompt": chat, "answers": {name: given[index] for name, given in answers.items()}}
            for index, chat in enumerate(chats)
        ),
    )
