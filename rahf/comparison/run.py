"""`rahf compare`: choose each row's trial, train it with every seed, measure all rows, report.

Everything is kept in `compare` of the recipe's output folder; a run that was stopped resumes there,
and several processes may do rows of it at once.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from math import isnan
from typing import Any

from accelerate import PartialState

from rahf.artifacts import alone, write_json
from rahf.comparison.curves import change_at_most, curves_of, everything, line, readable
from rahf.comparison.held_out import held_out_part, under_urial, with_validation
from rahf.comparison.judging import judged
from rahf.comparison.measuring import measure_kept
from rahf.comparison.results import RowResult, write_results
from rahf.comparison.row_recipes import UNTRAINED, RowRun, check_comparison, row_run
from rahf.comparison.training import Trained, train_row
from rahf.data.pairs import usable_pairs
from rahf.evaluation.measures import HeldOut
from rahf.evaluation.scores import Judging
from rahf.generation.urial import own_urial, read_urial, urial_prompt_form
from rahf.judges.judge import prompt_hash
from rahf.pipeline.evaluation import judgings_of
from rahf.pipeline.inputs import load_base, load_split, load_tokenizer
from rahf.recipe.comparison_options import kind_of_row
from rahf.recipe.recipe import Recipe, RecipeError
from rahf.records.makers import refuse_other_maker


class Comparison:
    """The recipe, the models that are measured, and where everything is kept."""

    def __init__(self, recipe: Recipe):
        problems = check_comparison(recipe)
        if problems:
            raise RecipeError("compare", problems)
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
        self.tokenizer, self._held_out = load_tokenizer(recipe), {}
        self.base = next(name for name in self.options.rows if kind_of_row(name) == "base")
        pairs = usable_pairs(load_split(self.recipe, self.recipe.data.dataset_train_split))
        self.judgings = judgings_of(self.options, self.folder, pairs)
        self.judging = self.judgings[0]
        for judging in self.judgings:
            if judging.sign:
                self._check_known(judging)
                continue
            raise ValueError(
                f"compare.judge: {judging.judge.id} gives the chosen and the rejected "
                "responses of the training pairs the same mean: it does not separate them. "
                "Name another judge."
            )

    def _check_known(self, judging: Judging) -> None:
        """Raise ValueError, before any training, where a judge cannot read a test prompt."""
        if judging.name.startswith("references:"):
            for chat in self.held_out("test").chats:
                judging.judge.read(chat, "")

    def trials(self, name: str) -> list[dict[str, Any]]:
        """Return the settings that are tried for a row; an empty one where it is not tuned."""
        return self.options.trials.get(name, [{}])

    def _row_run(self, name: str, trial: int, seed: int) -> RowRun:
        settings = self.trials(name)[trial]
        # The name follows from the settings, so that finished trials stay valid in a changed list.
        key = prompt_hash(json.dumps({**self.options.rows[name], **settings}, sort_keys=True))[:8]
        folder = self.folder / "runs" / name / key / f"seed-{seed}"
        return row_run(self.recipe, name, settings, seed, folder)

    def train(self, name: str, trial: int, seed: int) -> Trained:
        return train_row(self.runs[name, trial, seed], self.folder / "teachers")

    def held_out(self, part: str) -> HeldOut:
        if part not in self._held_out:
            validation = self.folder / "data" if self.options.trials else None
            found = held_out_part(self.given, self.tokenizer, part, validation)
            self._held_out[part] = found
        return self._held_out[part]

    def under_urial(self, held_out: HeldOut) -> HeldOut:
        urial = read_urial(self.options.urial) if self.options.urial else own_urial()
        return under_urial(held_out, urial_prompt_form(self.tokenizer, urial))

    def measures(
        self, part: str, held_out: HeldOut, name: str, trained: Trained | None
    ) -> list[dict[str, Any]]:
        """Return the measures of one adapter, or of the base, with the judges' scores.

        Trials are read by the first judge only.
        """
        found = self._measured(part, held_out, name, trained)
        judgings = self.judgings if part == "test" else self.judgings[:1]
        limit, base = self.options.repetition_limit, []
        silent = any(not answer.strip() for point in found for answer in point["answers"])
        if silent or limit < 1 or any(judging.compares for judging in judgings):
            # The base's answers under its chat template, also where `held_out` has URIAL's form.
            [untouched] = self._measured(part, self.held_out(part), self.base, None)
            base = untouched["answers"]
        return judged(judgings, held_out.chats, found, base, limit)

    def _measured(
        self, part: str, held_out: HeldOut, name: str, trained: Trained | None
    ) -> list[dict[str, Any]]:
        """Return the measures that need the model."""
        home = trained.adapter.relative_to(self.folder) if trained else name
        return measure_kept(
            self.folder / part / home / "measures.json",
            partial(load_base, self.recipe),
            self.tokenizer,
            held_out,
            trained.adapter if trained else None,
            self.options.strengths if trained else [0.0],
            f"{name}: measuring on {part}",
        )


def compare(recipe: Recipe, only: Sequence[str] = ()) -> None:
    """Run the comparison of `recipe.compare` and print its table.

    Args:
        only: rows to train and measure, without a table; other processes may work on other rows at
            the same time.

    Raises:
        ValueError: settings of a row that make no recipe, or a judge that does not work, both
            reported before anything is trained; several ranks; `only` names an unknown row; another
            process makes the tables.
    """
    unknown = [name for name in only if name not in recipe.compare.rows]
    if unknown:
        raise ValueError(
            f"--only {','.join(unknown)}: no such row; compare.rows has "
            f"{', '.join(recipe.compare.rows)}"
        )
    if PartialState(cpu=recipe.training.get("use_cpu", False)).num_processes > 1:
        raise ValueError("rahf compare runs in one process; start it without accelerate launch")
    # Parts are made by several processes at once, the complete result and its tables by one.
    home = recipe.output_dir / "compare"
    refuse_other_maker(home, "rahf compare")
    with nullcontext() if only else alone(home, wait=False):
        _compare(Comparison(recipe), only)


def _compare(comparison: Comparison, only: Sequence[str]) -> None:
    names = only or comparison.options.rows
    chosen = {
        name: choose_trial(comparison, name) for name in names if kind_of_row(name) not in UNTRAINED
    }
    held_out, rows = comparison.held_out("test"), {}
    for name in names:
        kind = kind_of_row(name)
        settings = {**comparison.options.rows[name], **comparison.trials(name)[chosen.get(name, 0)]}
        if kind in UNTRAINED:
            given = held_out if kind == "base" else comparison.under_urial(held_out)
            rows[name] = RowResult(settings, [comparison.measures("test", given, name, None)], [])
            continue
        trained = [comparison.train(name, chosen[name], seed) for seed in comparison.options.seeds]
        measures = [comparison.measures("test", held_out, name, each) for each in trained]
        rows[name] = RowResult(settings, measures, [each.cost for each in trained])
    if only:
        print(f"measured: {', '.join(only)}. Once all rows are: the same command without --only")
        return
    write_results(comparison.folder, comparison.options, comparison.judgings, held_out.chats, rows)


def choose_trial(comparison: Comparison, name: str) -> int:
    """Return the trial with the most change at the budget, on held-out prompts, first seed."""
    options, trials = comparison.options, comparison.trials(name)
    if len(trials) == 1:
        return 0
    path = comparison.folder / "trials" / f"{name}.json"
    held_out = comparison.held_out("validation")
    base = curves_of([comparison.measures("validation", held_out, comparison.base, None)])
    results = []
    for trial, settings in enumerate(trials):
        trained = comparison.train(name, trial, options.seeds[0])
        curves = curves_of([comparison.measures("validation", held_out, name, trained)])
        found = line(curves, base, everything(curves), options.cost, comparison.judging.sign)
        change = change_at_most(found, options.budget)
        known = None if isnan(change) else change
        results.append({"settings": settings, "change": known, "line": readable(found)})
        print(f"{name}, trial {trial} {settings}: {change:+.3f} at {options.budget:g}", flush=True)
        write_json(path, results)
    readings = [trial for trial, result in enumerate(results) if result["change"] is not None]
    if not readings:
        raise ValueError(
            f"compare.judge: no verdict of {comparison.judging.judge.id} on the trials of {name} "
            f"could be read; its answers are in {comparison.folder / 'verdicts.jsonl'}"
        )
    return max(readings, key=lambda trial: results[trial]["change"])
