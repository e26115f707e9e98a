"""`rahf compare`: choose each row's trial, train it with every seed, measure all rows, tell.

Everything is kept in `compare` of the recipe's output folder; a run that was stopped goes on there,
and several may do rows of it at once.
"""

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from rahf.artifacts import alone, read_json, write_json
from rahf.comparison.curves import change_at_most, curves_of, everything, line, readable
from rahf.comparison.held_out import asked_of, under_urial, with_validation
from rahf.comparison.judging import outcomes_of, wanted_side, without_loops
from rahf.comparison.results import Measured, tell
from rahf.comparison.row_recipes import UNTRAINED, RowRun, check_comparison, row_run
from rahf.comparison.training import Trained, train_row
from rahf.data.pairs import usable_pairs
from rahf.evaluation.strengths import Asked, measure_strengths
from rahf.generation.urial import own_urial, read_urial, urial_prompt_form
from rahf.judges.by_name import NamedJudge, comparing_judge
from rahf.judges.judge import Judge, Verdicts, prompt_hash
from rahf.judges.names import parse_judge
from rahf.models.adapters import fingerprint
from rahf.pipeline.inputs import load_base, load_split, load_tokenizer
from rahf.recipe.comparison_options import kind_of_row
from rahf.recipe.recipe import Recipe, RecipeError


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
        self.tokenizer, self._asked = load_tokenizer(recipe), {}
        self.base = next(name for name in self.options.rows if kind_of_row(name) == "base")
        self.judge = self._judge()
        kept = None if parse_judge(self.options.judge).is_rule else self.folder / "verdicts.jsonl"
        self.verdicts = Verdicts(kept)
        pairs = usable_pairs(load_split(self.recipe, self.recipe.data.dataset_train_split))
        self.sign = wanted_side(self.judge, self.verdicts, pairs)

    def _judge(self) -> Judge:
        options = self.options
        named = NamedJudge(
            options.judge,
            PartialState().device,
            url=options.url,
            workers=options.workers,
            label=options.label,
        )
        return comparing_judge(named)

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
        if part not in self._asked:
            validation = self.folder / "data" if self.options.trials else None
            self._asked[part] = asked_of(self.given, self.tokenizer, part, validation)
        return self._asked[part]

    def under_urial(self, asked: Asked) -> Asked:
        urial = read_urial(self.options.urial) if self.options.urial else own_urial()
        return under_urial(asked, urial_prompt_form(self.tokenizer, urial))

    def measures(
        self, part: str, asked: Asked, name: str, trained: Trained | None
    ) -> list[dict[str, Any]]:
        """The measures of one adapter, or of the base, with the judge's `scores`, and the
        verdicts behind each.
        """
        found = self._measured(part, asked, name, trained)
        chats, limit = [*asked.chats] * len(found), self.options.repetition_limit
        answers, base = [answer for point in found for answer in point["answers"]], []
        if self.judge.responses == 2 or limit < 1:
            # Those to the same prompts in their usual form, whatever form `asked` has.
            [untouched] = self._measured(part, self.asked(part), self.base, None)
            base = untouched["answers"] * len(found)
        if limit < 1:
            answers = without_loops(answers, base, limit)
        outcomes = outcomes_of(self.judge, self.verdicts, chats, answers, base)
        count = len(asked.chats)
        parts = [outcomes[at : at + count] for at in range(0, len(outcomes), count)]
        return [
            {
                **point,
                "scores": [outcome.value for outcome in part],
                "verdicts": [outcome.orders for outcome in part],
            }
            for point, part in zip(found, parts, strict=True)
        ]

    def _measured(
        self, part: str, asked: Asked, name: str, trained: Trained | None
    ) -> list[dict[str, Any]]:
        """All that needs the model itself; measured once, whoever judges."""
        strengths = self.options.strengths if trained else [0.0]
        made_with = {
            "max_new_tokens": asked.max_new_tokens,
            "weights": fingerprint(trained.adapter) if trained else [],
            "asked": prompt_hash(json.dumps([asked.chats, list(asked.texts), asked.form.name])),
        }
        home = trained.adapter.relative_to(self.folder) if trained else name
        path = self.folder / part / home / "measures.json"
        with alone(path):
            known = _known_measures(path, made_with)
            missing = [strength for strength in strengths if strength not in known]
            if missing:
                print(f"{name}: measuring on {part}", flush=True)
                model = load_base(self.recipe)
                if trained:
                    model = PeftModel.from_pretrained(model, trained.adapter)
                found = measure_strengths(model.eval(), self.tokenizer, asked, missing)
                known |= {each.strength: each.as_dict() for each in found}
                write_json(path, {"made_with": made_with, "measures": list(known.values())})
        return [known[strength] for strength in strengths]


def _known_measures(path: Path, made_with: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """What was measured before with the same weights on the same prompts and texts, by strength."""
    if not path.exists():
        return {}
    record = read_json(path)
    record["made_with"].pop("strengths", None)  # of versions that measured all of them or none
    if record["made_with"] != made_with:
        return {}
    return {point["strength"]: point for point in record["measures"]}


def compare(recipe: Recipe, only: Sequence[str] = ()) -> None:
    """Run the comparison of `recipe.compare` and print its table.

    Args:
        only: rows to train and measure, without a table: a part of the comparison, beside which
            other processes may do other parts.

    Raises:
        ValueError: settings of a row that make no recipe, or a judge that does not work, told
            before anything is trained; several ranks; `only` names a row that there is not.
    """
    unknown = [name for name in only if name not in recipe.compare.rows]
    if unknown:
        raise ValueError(
            f"--only {','.join(unknown)}: no such row; compare.rows has "
            f"{', '.join(recipe.compare.rows)}"
        )
    if PartialState(cpu=recipe.training.get("use_cpu", False)).num_processes > 1:
        raise ValueError("rahf compare runs in one process; start it without accelerate launch")
    comparison = Comparison(recipe)
    names = only or comparison.options.rows
    chosen = {
        name: choose_trial(comparison, name) for name in names if kind_of_row(name) not in UNTRAINED
    }
    asked, rows = comparison.asked("test"), {}
    for name in names:
        kind = kind_of_row(name)
        if kind in UNTRAINED:
            given = asked if kind == "base" else comparison.under_urial(asked)
            rows[name] = Measured(0, [comparison.measures("test", given, name, None)], [])
            continue
        trained = [comparison.train(name, chosen[name], seed) for seed in comparison.options.seeds]
        measures = [comparison.measures("test", asked, name, each) for each in trained]
        rows[name] = Measured(chosen[name], measures, [each.cost for each in trained])
    if only:
        print(f"measured: {', '.join(only)}. Once all rows are: the same command without --only")
        return
    tell(comparison, rows)


def choose_trial(comparison: Comparison, name: str) -> int:
    """The trial with the most change at the budget, on held-out training prompts, first seed."""
    options, trials = comparison.options, comparison.trials(name)
    if len(trials) == 1:
        return 0
    path = comparison.folder / "trials" / f"{name}.json"
    asked = comparison.asked("validation")
    base = curves_of([comparison.measures("validation", asked, comparison.base, None)])
    results = []
    for trial, settings in enumerate(trials):
        trained = comparison.train(name, trial, options.seeds[0])
        curves = curves_of([comparison.measures("validation", asked, name, trained)])
        found = line(curves, base, everything(curves), options.cost, comparison.sign)
        change = change_at_most(found, options.budget)
        known = None if isnan(change) else change
        results.append({"settings": settings, "change": known, "line": readable(found)})
        print(f"{name}, trial {trial} {settings}: {change:+.3f} at {options.budget:g}", flush=True)
        write_json(path, results)
    judged = [trial for trial, result in enumerate(results) if result["change"] is not None]
    if not judged:
        raise ValueError(
            f"compare.judge: nothing that {comparison.judge.id} said of the trials of {name} could "
            f"be read; its words are in {comparison.folder / 'verdicts.jsonl'}"
        )
    return max(judged, key=lambda trial: results[trial]["change"])
