"""Options of a prediction of where an aligned model differs from its base, and the prediction.

The prompts are new: those that the diff has read or the adapter was trained on are left out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rahf.commands.options.held_out import held_out, held_out_options
from rahf.commands.options.models import load

if TYPE_CHECKING:
    from rahf.interpret.features.responses import HeldOut


def prediction_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prediction of where an aligned model differs")
    option = group.add_argument
    option("--predict", metavar="FILE", type=Path, help="features.json of rahf features diff")
    option(
        "--predict_from",
        choices=("prompt", "response"),
        default="prompt",
        help="what the judge reads: the prompt, or prompt and response (default: prompt)",
    )
    option("--chat_template", metavar="FILE", help="chat template (default: the tokenizer's)")
    held_out_options(group, required=False)


def predictions(
    options: argparse.Namespace, means_of: Callable[[argparse.Namespace], Any]
) -> tuple[dict[str, Any], str]:
    """Return what the sentences of moved features predict of unseen prompts, and its table."""
    from rahf.commands.options.dictionaries import dictionary_of
    from rahf.interpret.explanations.predict import (
        measure_difference,
        moved_with,
        predict,
        prompts_asked,
    )
    from rahf.interpret.explanations.records import settings_of
    from rahf.interpret.features.responses import HeldOut
    from rahf.models.adapters import pad_id
    from rahf.report.explanations import predictions_table

    named = settings_of(options.folder)["dictionary"]
    diff = _diff(options, named)
    means = means_of(options)
    moved = moved_with(diff["features"], means.records, options.seed)
    of = argparse.Namespace(**{**vars(options), "model": diff["model"], "base": None})
    model, tokenizer = load(of)
    given = [HeldOut(*row) for row in held_out(options, tokenizer)]
    rows, unseen = _unseen(given, diff, _trained_on(diff["model"], options, tokenizer))
    differing = measure_difference(
        model.eval(),
        dictionary_of(options, named),
        [each.feature for each in moved],
        rows,
        pad_id(tokenizer),
        tokenizer.all_special_ids,
        options.batch_size,
    )
    read = prompts_asked(
        rows, differing.prompts, means.texts, whole=options.predict_from != "prompt"
    )
    figures = predict(moved, read, differing, means.judged)
    named_by = {"judge": options.judge, "model": diff["model"], "dictionary": named}
    return named_by | {"unseen": unseen} | figures, predictions_table(figures)


def _diff(options: argparse.Namespace, dictionary: str) -> dict[str, Any]:
    """Return what rahf features diff found with a dictionary.

    Raises:
        ValueError: the file is not one of it, or of another dictionary.
    """
    from rahf.artifacts import read_object

    diff = read_object(options.predict, features=list, dictionary=str, model=str)
    if diff["dictionary"] != dictionary:
        raise ValueError(
            f"{options.predict} is of the dictionary {diff['dictionary']}, {options.folder} "
            f"explains features of {dictionary}: give a diff of that dictionary."
        )
    return diff


def _unseen(
    given: Sequence["HeldOut"], diff: dict[str, Any], trained: set[str] | None
) -> tuple[list["HeldOut"], dict[str, int | None]]:
    """Return the responses to prompts that are new, and how many prompts are not.

    Args:
        trained: digests of the prompts that the adapter was trained on; None: not known.

    Raises:
        ValueError: no prompt is new.
    """
    known = {"read_by_diff": diff.get("prompts_read"), "trained_on": trained}
    if known["read_by_diff"] is None:
        _note("the diff, of an earlier version, has no record of the prompts that it read")
    prompts = {each.digest for each in given}
    counts = {
        name: None if found is None else len(prompts & {*found}) for name, found in known.items()
    }
    seen = {digest for found in known.values() if found is not None for digest in found}
    rows = [each for each in given if each.digest not in seen]
    left_out = len(prompts & seen)
    told = (
        f"{left_out} of {len(prompts)} prompts are not new: {counts['read_by_diff'] or 0} were "
        f"read by the diff, {counts['trained_on'] or 0} trained on"
    )
    if not rows:
        raise ValueError(f"{told}. Nothing can be predicted of them: give other prompts.")
    if left_out:
        _note(f"{told}; they are left out")
    return rows, {"given": len(prompts), **counts}


def _trained_on(adapter: str, options: argparse.Namespace, tokenizer) -> set[str] | None:
    """Return digests of the prompts that an adapter was trained on, from its record.

    None, after a note that says why: they are not known.
    """
    from rahf.data.tokenization import tokenize_pairs
    from rahf.influence.trained import read_training
    from rahf.interpret.features.responses import digest_of
    from rahf.pipeline.inputs import load_split

    try:
        training = read_training(adapter)
        recipe = training.recipe
        pairs = load_split(recipe, recipe.data.dataset_train_split)
    except (ValueError, OSError) as error:
        _note(f"the prompts that {adapter} was trained on are not known, and not left out: {error}")
        return None
    if training.unchecked:
        _note(f"the record of {adapter} has no identity of its pairs: those of now are compared")
    rows, _ = tokenize_pairs(pairs, tokenizer, chat_template=options.chat_template)
    return {digest_of(ids) for ids in rows["prompt_ids"][:]}


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
