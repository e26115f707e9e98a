"""The stage `evaluation`: base, teachers and policy on the same held-out data, and their answers
before the judge.

Loads, measures and saves; how a model is measured is in `evaluation.measures`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.artifacts import ANSWERS_FILE, TEXTS_FILE, write_lines
from rahf.data.pairs import usable_pairs
from rahf.data.prompts import chat_prompt_form, read_chats
from rahf.evaluation.agreement import LENGTH, agreements, changes
from rahf.evaluation.measures import (
    HeldOut,
    Measures,
    measure_model,
    model_figures,
    preferences_of,
)
from rahf.evaluation.scores import (
    JUDGED,
    Judging,
    judged_figures,
    outcomes_of,
    speaking,
    wanted_side,
)
from rahf.judges.by_name import NamedJudge, comparing_judge
from rahf.models.adapters import POLICY, frozen_pass, is_adapter, put_adapter
from rahf.pipeline.inputs import (
    load_base,
    load_split,
    load_tokenizer,
    measured_split,
    teachers_of,
    test_rows,
    unrelated_texts,
)
from rahf.recipe.judge_options import JudgeOptions
from rahf.recipe.recipe import Recipe


def evaluate_models(
    recipe: Recipe, folder: Path, aligned: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Measure every model, let the judge score its answers, and write both to `folder`.

    Only the first process judges: a judge may cost money, and its verdicts are in one file. An
    empty answer counts as the base's, where the base is measured.

    Args:
        aligned: metrics of the alignment, which has measured the policy's preferences.
    """
    tokenizer, is_main = load_tokenizer(recipe), PartialState().is_main_process
    held_out = held_out_of(recipe, tokenizer)
    judging = recipe.evaluation.judge and held_out.chats and is_main
    judgings = _judgings(recipe, folder) if judging else []
    measured = measure_models(recipe, tokenizer, held_out)
    answers = read_answers(measured)
    scores = {judging.name: scores_of(judging, held_out, answers) for judging in judgings}
    if is_main:
        _save_answers(folder / ANSWERS_FILE, held_out, measured, scores)
        _save_texts(folder / TEXTS_FILE, measured)
    figures = {}
    for name, measures in measured.items():
        judged = [
            judged_figures(scores[judging.name][name], judging.sign, judging.neutral)
            if name in scores[judging.name]
            else dict.fromkeys(JUDGED)
            for judging in judgings
        ]
        figures[name] = model_figures(measures, judged[0] if judged else dict.fromkeys(JUDGED))
        if judgings:
            wanted = "higher" if judgings[0].sign > 0 else "lower"
            figures[name] |= {"judge": judgings[0].name, "wanted": wanted}
        if len(judgings) > 1:
            figures[name]["judges"] = dict(zip(scores, judged, strict=True))
    if len(judgings) > 1 and len(measured) > 1 and "base" in measured:
        figures[name]["agreement"] = _agreement(judgings, scores, answers)
    if "policy" in figures:
        figures["policy"] |= preferences_of(aligned, len(held_out.pairs))
    return figures


def _judgings(recipe: Recipe, folder: Path) -> list[Judging]:
    """Return the judges of the recipe; without a difference, the upper side is wanted."""
    split = measured_split(recipe)
    pairs = usable_pairs(load_split(recipe, split)) if split else None
    found = judgings_of(recipe.evaluation, folder, pairs)
    return [judging._replace(sign=judging.sign or 1) for judging in found]


def read_answers(measured: Mapping[str, Measures]) -> dict[str, Sequence[str]]:
    """Return the answers that judges read, by model."""
    answers = {name: measures.answers for name, measures in measured.items()}
    base = answers.get("base")
    return {name: speaking(said, base or said) for name, said in answers.items()}


def _agreement(
    judgings: Sequence[Judging],
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    answers: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Return how far judges, and length, agree over the answers of all models but the base."""
    others = [name for name in answers if name != "base"]
    ties = [0.5] * len(answers["base"])
    found = {
        judging.name: changes(
            [scores[judging.name][name] for name in others],
            ties if judging.compares else scores[judging.name]["base"],
            judging.sign,
        )
        for judging in judgings
    }
    sizes = {name: list(map(len, said)) for name, said in answers.items()}
    found.setdefault(LENGTH, changes([sizes[name] for name in others], sizes["base"], 1))
    return agreements(found)


def held_out_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Return the held-out data that all rows of the final table are measured on."""
    options = recipe.evaluation
    rows = test_rows(recipe, tokenizer) or ()
    if options.prompts:
        chats = read_chats(options.prompts, tokenizer, recipe.data.chat_template)
    else:
        chats = _held_out_chats(recipe, {row["row"] for row in rows})
    return HeldOut(
        rows,
        chats,
        chat_prompt_form(tokenizer, recipe.data.chat_template),
        unrelated_texts(recipe, tokenizer),
        options.max_new_tokens,
    )


def _held_out_chats(recipe: Recipe, kept: Set[int]) -> list[Any]:
    """Return the first held-out prompts, each once, of the pairs that are measured."""
    split, wanted = measured_split(recipe), recipe.evaluation.held_out_prompts
    if split is None or not wanted:
        return []
    pairs = load_split(recipe, split)
    chats = {}
    for row, chat in zip(pairs["row"], pairs["prompt"], strict=True):
        if row in kept and len(chats) < wanted:
            chats.setdefault(json.dumps(chat), chat)
    return list(chats.values())


def judgings_of(options: JudgeOptions, folder: Path, pairs: Dataset | None) -> list[Judging]:
    """Return the judges that a section of a recipe names, with the verdicts kept in `folder`.

    Args:
        pairs: show which side of the judge's scale is wanted; None: the upper one.
    """
    needs = {"url": options.url, "workers": options.workers, "label": options.label}
    device, found = PartialState().device, []
    for name in options.judges:
        named = NamedJudge(name, device, **needs, encoder=options.encoder)
        judge, own = comparing_judge(named), named.verdicts_in(folder)
        # References are those of the test prompts, and a higher score is wanted.
        sign = wanted_side(judge, own, pairs) if pairs and not named.has_side else 1
        found.append(Judging(judge, own, sign, named.neutral, name))
    return found


def measure_models(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut
) -> dict[str, Measures]:
    """Measure the rows of the table, loaded one at a time; see `evaluate_models`."""
    measured = {}
    for name, model in models_to_measure(recipe):
        part = dataclasses.replace(held_out, pairs=()) if name == "policy" else held_out
        [measured[name]] = measure_model(model, tokenizer, part, progress=name)
    return measured


def models_to_measure(recipe: Recipe) -> Iterator[tuple[str, nn.Module]]:
    """Load the rows of the table one at a time: adapters of one base, or full models."""
    wanted = recipe.evaluation.models
    model = put_adapter(load_base(recipe), recipe.output_dir)
    if "base" in wanted:
        with frozen_pass(model, None):
            yield "base", model
    for name, path in teachers_of(recipe).items() if "teachers" in wanted else ():
        if is_adapter(path):
            put_adapter(model, path, name)
            with frozen_pass(model, name):
                yield name, model
        else:
            yield name, load_base(recipe, path)
    if "policy" in wanted:
        with frozen_pass(model, POLICY):
            yield "policy", model


def scores_of(
    judging: Judging, held_out: HeldOut, answers: Mapping[str, Sequence[str]]
) -> dict[str, list[float | None]]:
    """Return the judge's score of every answer, by model; a chooser has none for the base."""
    base = answers["base"] if judging.compares else ()
    return {
        name: [
            outcome.value
            for outcome in outcomes_of(judging.judge, judging.verdicts, held_out.chats, said, base)
        ]
        for name, said in answers.items()
        if not (judging.compares and name == "base")
    }


def _save_answers(
    path: Path,
    held_out: HeldOut,
    measured: Mapping[str, Measures],
    scores: Mapping[str, Mapping[str, list[float | None]]],
) -> None:
    """Write a line a prompt, with the answers and the scores of all models.

    Args:
        scores: by judge and model; all of them are written where there are several judges.
    """
    answers = {name: measures.answers for name, measures in measured.items()}
    first = next(iter(scores.values()), {})

    def of(values: Mapping[str, Sequence[Any]], index: int) -> dict[str, Any]:
        return {name: each[index] for name, each in values.items()}

    write_lines(
        path,
        (
            {"prompt": chat[-1]["content"], "answers": of(answers, index)}
            | ({"scores": of(first, index)} if first else {})
            | (
                {"by_judge": {judge: of(each, index) for judge, each in scores.items()}}
                if len(scores) > 1
                else {}
            )
            for index, chat in enumerate(held_out.chats)
        ),
    )


def _save_texts(path: Path, measured: Mapping[str, Measures]) -> None:
    """Write a line an unrelated text: its tokens, and each model's loss, nats summed over them."""
    tokens = next(iter(measured.values())).text_tokens if measured else []
    losses = {name: measures.text_loss for name, measures in measured.items()}
    write_lines(
        path,
        (
            {"tokens": count, "loss": {name: each[index] for name, each in losses.items()}}
            for index, count in enumerate(tokens)
        ),
    )
