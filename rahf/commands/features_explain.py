"""`rahf features explain`: one sentence on each feature or direction, from texts in which it is
active.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rahf.commands.options.corpora import corpus_options
from rahf.commands.options.explanations import asking_options, named_model, prices
from rahf.commands.options.models import content, device, identity, load, model_options

if TYPE_CHECKING:
    from rahf.interpret.explanations.explaining import Job

EPILOG = """\
One pass over the text encodes all features. Half of the documents are shown to the explainer, the
other half is kept for rahf features score. --random directions are explained the same way: their
scores are the null. A killed run resumes."""

FILES_OF = ("text", "dictionary", "directions")

READ_AFTER = ("explainer", "url", "window", "shown", "scored", "quantiles")
"""Settings that the pass over the text does not depend on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    model_options(parser)
    option = parser.add_argument
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option("--dry_run", action="store_true", help="report time and cost, and stop")
    _what_is_explained(parser)
    corpus_options(parser)
    option(
        "--explainer",
        metavar="NAME",
        default="statistics",
        help="statistics, local:NAME (a language model here), or api:MODEL (default: statistics)",
    )
    for name, default, text in (
        ("--window", 32, "tokens of an example"),
        ("--shown", 30, "activating examples that the explainer is shown"),
        ("--scored", 20, "activating examples kept for the scores"),
        ("--quantiles", 5, "quantiles of the activation that examples are drawn from"),
    ):
        option(
            name, metavar="N", type="count", default=default, help=f"{text} (default: {default})"
        )
    asking_options(parser)


def _what_is_explained(parser: argparse.ArgumentParser) -> None:
    option, which = parser.add_argument, parser.add_mutually_exclusive_group()
    option("--dictionary", metavar="NAME", help="folder of a dictionary, or sae-lens:RELEASE:ID")
    option("--directions", metavar="FILE", help="directions or their folder, each layer one unit")
    which.add_argument(
        "--feature",
        metavar="N",
        type="count from zero",
        action="append",
        help="number of a feature; may be given again",
    )
    which.add_argument(
        "--moved",
        metavar="FILE",
        type=Path,
        help="features.json of rahf features diff: its features",
    )
    which.add_argument(
        "--draw",
        metavar="N",
        type="count",
        default=200,
        help="number of features drawn at random (default: 200)",
    )
    option(
        "--random",
        metavar="N",
        type="count from zero",
        default=20,
        help="random directions explained beside them (default: 20)",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone

    with nullcontext() if options.dry_run else alone(options.output, wait=False):
        return _explained(options)


def _explained(options: argparse.Namespace) -> int:
    from rahf.artifacts import read_lines
    from rahf.generation.record_file import record_file
    from rahf.interpret.explanations.cost import cost_of
    from rahf.interpret.explanations.explaining import explain, explain_figures
    from rahf.interpret.explanations.records import EXPLANATIONS_FILE
    from rahf.report.explanations import cost_text, explained_table

    costs = prices(options)
    if options.dictionary is None and options.directions is None:
        raise ValueError("give --dictionary, --directions, or both: what is to be explained.")
    tokenizer, job = _job(options)
    explainer = _explainer(options, tokenizer, job)
    _print_cost(options, job, costs)
    if options.dry_run:
        return 0
    path, made_from = options.output / EXPLANATIONS_FILE, _made_from(options)
    settings = _settings(options, job)
    read = {key: value for key, value in settings.items() if key not in READ_AFTER}
    job = job._replace(made_with={"settings": read, "made_from": made_from})
    with record_file(path, settings, made_from, options.command) as file:
        if not file.complete:
            explain(job, explainer, file)
            file.finish("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in file.records))
    lines = read_lines(path)
    print(explained_table(lines, explain_figures(lines)))
    if options.explainer != "statistics":
        print(cost_text(cost_of(lines).as_dict(costs), len(lines), "asked"))
    print(f"explanations: {path}")
    return 0


def _made_from(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the identity of all that is read."""
    from rahf.artifacts import identity_of

    named = {name: getattr(options, name) for name in FILES_OF}
    return content(options) | {
        name: (identity_of(given) or given) if given else None for name, given in named.items()
    }


def _settings(options: argparse.Namespace, job: "Job") -> dict[str, Any]:
    names = ("base", "column", "split", "tokens", "length", "seed", "random", "explainer", "url")
    names += ("window", "shown", "scored", "quantiles", *FILES_OF)
    given = job.wanted.directions
    return {
        **identity(options),
        **{name: getattr(options, name) for name in names},
        "latents": list(job.wanted.latents),
        "fingerprint": None if given is None else given.fingerprint(),
    }


def _job(options: argparse.Namespace):
    """Return the tokenizer, and the model with the text that it reads.

    Raises:
        ValueError: a dictionary or directions of another model, or that do not go together.
    """
    from rahf.interpret.explanations.examples import Drawing
    from rahf.interpret.explanations.explaining import Job
    from rahf.interpret.features.corpus import corpus_of_texts, texts_of

    wanted = _wanted(options)
    model, tokenizer = load(options)
    texts = texts_of(options.text, options.split, options.column)
    corpus = corpus_of_texts(texts, tokenizer, tokens=options.tokens, length=options.length)
    drawing = Drawing(
        options.shown, options.scored, options.quantiles, options.window, options.seed
    )
    return tokenizer, Job(
        _reader(options, model, tokenizer, wanted), corpus, wanted, drawing, options.output
    )


def _reader(options: argparse.Namespace, model, tokenizer, wanted):
    from peft import PeftModel

    from rahf.interpret.features.bases import check_base
    from rahf.interpret.features.streams import StateReader
    from rahf.models.adapters import POLICY, depth_of, pad_id

    dictionary, directions = wanted.dictionary, wanted.directions
    layers, site, kind, adapter = set(), "residual", "states", None
    if dictionary is not None:
        check_base(dictionary, model)
        origin = dictionary.origin
        layers, site, kind = {origin.layer}, origin.site, origin.kind
        adapter = POLICY if origin.adapter else None
    if kind == "differences" and not isinstance(model, PeftModel):
        raise ValueError(
            f"the dictionary is of differences that an adapter makes, but {options.model} is a "
            "full model: give the adapter."
        )
    if directions is not None:
        if (site, kind) != ("residual", "states"):
            raise ValueError(
                "directions are of the residual stream, the dictionary is of something else: "
                "explain them in two folders."
            )
        directions.check_model(model.config.get_text_config().hidden_size, depth_of(model))
        layers |= set(directions.layers)
    place = (tuple(sorted(layers)), site, kind, pad_id(tokenizer), options.batch_size)
    return StateReader(model, *place, adapter)


def _wanted(options: argparse.Namespace):
    import numpy as np

    from rahf.directions.vectors import Directions
    from rahf.interpret.explanations.explaining import Wanted
    from rahf.interpret.explanations.units import feature_part
    from rahf.interpret.features.checkpoints import load_dictionary

    dictionary, latents = None, []
    if options.dictionary is not None:
        dictionary = load_dictionary(options.dictionary, device(options))
        drawn = np.random.default_rng([options.seed, 6]).permutation(dictionary.latents)
        latents = options.feature or sorted(drawn[: options.draw].tolist())
        if options.moved is not None:
            latents = _moved(options)
        feature_part(dictionary, latents)  # refused before a model is loaded
    directions = Directions.load(options.directions) if options.directions else None
    return Wanted(dictionary, latents, directions, options.random, options.seed)


def _moved(options: argparse.Namespace) -> list[int]:
    """Return the features that a diff lists."""
    from rahf.artifacts import read_object

    found = read_object(options.moved, features=list, dictionary=str)
    if found["dictionary"] != options.dictionary:
        raise ValueError(
            f"{options.moved} is of the dictionary {found['dictionary']}, not {options.dictionary}."
        )
    return [row["feature"] for row in found["features"]]


def _explainer(options: argparse.Namespace, tokenizer, job: "Job"):
    """Return what makes the explainer from windows of any text; a wrong name raises here."""
    from rahf.interpret.explanations.language_model import LanguageModel, reply_of, writer
    from rahf.interpret.explanations.records import verdicts_in
    from rahf.interpret.explanations.statistics import Statistics
    from rahf.interpret.explanations.tokens import TokenTexts
    from rahf.interpret.explanations.vectors import effects_of

    texts = TokenTexts(tokenizer)
    if options.explainer == "statistics":
        return lambda background: Statistics(texts, background)
    judge = writer(named_model(options, options.explainer))
    reply = reply_of(options.explainer)

    def made(_background) -> LanguageModel:
        kept = verdicts_in(options.output, kept=True)
        return LanguageModel(
            judge, texts, kept, reply, lambda vectors: effects_of(job.reader.model, vectors, texts)
        )

    return made


def _print_cost(options: argparse.Namespace, job: "Job", costs) -> None:
    """Print what the run will take, before it starts."""
    from rahf.interpret.explanations.cost import Cost
    from rahf.interpret.explanations.explaining import pass_seconds
    from rahf.interpret.explanations.language_model import prompt_tokens
    from rahf.report.explanations import cost_text

    tokens, seconds = int(job.corpus.read.sum()), pass_seconds(job) if options.dry_run else None
    took = "" if seconds is None else f", about {seconds / 60:.1f} minutes for all units"
    print(f"one pass over {tokens:,} tokens{took}")
    if options.explainer != "statistics":
        cost = Cost(1000, *(1000 * n for n in prompt_tokens(job.drawing)))
        print(cost_text(cost.as_dict(costs), 1000, "estimate"))
