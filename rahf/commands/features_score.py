"""`rahf features score`: how far explanations can be trusted, beside two nulls."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rahf.commands.options.explanations import asking_options, named_model, prices
from rahf.commands.options.figures import print_figures
from rahf.commands.options.models import content, device, load, loading, model_options
from rahf.commands.options.prediction import prediction_options, predictions
from rahf.judges.names import ENCODER

SCORERS = ("detection", "fuzzing", "surprisal", "embedding", "intervention", "round_trip")
"""As `interpret.explanations.scorers` has them, which needs torch."""

DEFAULT = ("detection", "fuzzing", "round_trip")
NEUTRAL_TOKENS = 64
"""Tokens of a neutral text that a strength is solved on."""

EPILOG = """\
FOLDER is that of rahf features explain. detection: does a text activate the feature? fuzzing: are
these its tokens? surprisal: does the explanation lower a language model's loss on activating texts?
embedding: is it near them? intervention: which texts were written while the feature was pinned?
round_trip: how much of the activation does the judge predict? Each is compared with the explanation
of another feature and with random directions. Judges: rule (checks sentences of the statistics
explainer, no model), choice:NAME (a language model here), api:MODEL.
With --predict the explanations of moved features are asked about unseen prompts instead."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option("folder", metavar="FOLDER", type=Path, help="folder of rahf features explain")
    option(
        "--scorer",
        metavar="NAME",
        choices=SCORERS,
        action="append",
        help=f"may be given again: {', '.join(SCORERS)} (default: {', '.join(DEFAULT)})",
    )
    option(
        "--units",
        metavar="N",
        type="count",
        help="features, directions and random directions scored, at most so many each (default: "
        "all)",
    )
    option("--batch_size", metavar="N", type="count", default=8, help="texts at once (default: 8)")
    option("--seed", metavar="N", type="seed", default=0, help="seed of the nulls (default: 0)")
    option("--output", metavar="FILE", type=Path, help="scores (default: FOLDER/scores.jsonl)")
    option("--dry_run", action="store_true", help="report the cost, and stop")
    _model_options(parser)
    prediction_options(parser)
    asking_options(parser)
    model_options(parser, named=False)


def _model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scorers."""
    option = parser.add_argument
    option("--judge", metavar="JUDGE", default="rule", help="rule, choice:NAME, api:MODEL")
    option(
        "--encoder",
        metavar="NAME",
        default=ENCODER,
        help="encoder of the scorer embedding (default: %(default)s)",
    )
    option(
        "--reader", metavar="NAME", help="model of the scorer surprisal (default: the explained)"
    )
    option(
        "--neutral",
        metavar="FILE",
        type=Path,
        help="texts for the scorer intervention: records with a `text`",
    )
    option(
        "--kl",
        metavar="NATS",
        type="positive number",
        default=0.3,
        help="divergence on neutral text at which all are pinned (default: 0.3)",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone

    with nullcontext() if options.dry_run else alone(options.folder, wait=False):
        return _scored(options)


def _scored(options: argparse.Namespace) -> int:
    from rahf.artifacts import read_lines
    from rahf.generation.record_file import record_file
    from rahf.interpret.explanations.records import SCORES_FILE
    from rahf.report.explanations import cost_text, explained_table, scores_table

    costs = prices(options)
    _check(options)
    if options.predict is not None:
        return print_figures(options, lambda options: predictions(options, _means))
    path = options.output or options.folder / SCORES_FILE
    means = _means(options)
    _print_cost(options, means, costs)
    if options.dry_run:
        return 0
    with record_file(path, _settings(options), _made_from(options), options.command) as file:
        if not file.complete:
            file.begin()
            _write(options, means, file, costs)
    results = file.results()
    print(explained_table(read_lines(path), results["units"]))
    print(f"\n{scores_table(results['summary'])}\n")
    if options.judge != "rule":
        print(cost_text(results["cost"], len(means.records), f"{options.judge}, asked"))
    print(f"scores: {path}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is loaded."""
    wanted = _scorers(options)
    if "intervention" in wanted and options.neutral is None:
        raise ValueError(
            "--scorer intervention pins features at a --kl on neutral text: give --neutral FILE."
        )
    if options.predict is not None and options.pairs is None and options.responses is None:
        raise ValueError("--predict is about unseen prompts: give --pairs or --responses.")
    given = {"--pairs": options.pairs, "--responses": options.responses}
    unread = [name for name, value in given.items() if value is not None]
    if unread and options.predict is None:
        raise ValueError(f"{unread[0]} is read with --predict only: give --predict too.")


def _scorers(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(options.scorer or DEFAULT))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    from rahf.interpret.explanations.records import settings_of

    names = ("judge", "url", "encoder", "reader", "kl", "seed", "dtype")
    return {
        **{name: getattr(options, name) for name in names},
        "neutral": None if options.neutral is None else str(options.neutral),
        "scorers": _scorers(options),
        "units": options.units,
        "explained": settings_of(options.folder),
    }


def _made_from(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the identity of what the explanations were made from, and of themselves."""
    from rahf.artifacts import identity_of
    from rahf.interpret.explanations.records import EXPLANATIONS_FILE, made_from

    path = options.folder / EXPLANATIONS_FILE
    neutral = None if options.neutral is None else identity_of(options.neutral)
    return {**made_from(options.folder), "explanations": identity_of(path), "neutral": neutral}


def _means(options: argparse.Namespace):
    """Return what scorers are made of; models are loaded when a scorer needs them."""
    from rahf.interpret.explanations.judging import fit_judge
    from rahf.interpret.explanations.records import (
        check_content,
        first_of_each_kind,
        read_records,
        verdicts_in,
    )
    from rahf.interpret.explanations.scorers import Means
    from rahf.interpret.explanations.tokens import TokenTexts
    from rahf.interpret.explanations.values import Judged
    from rahf.judges.references import load_encoder

    every = read_records(options.folder)
    records = first_of_each_kind(every, options.units)
    check_content(options.folder, content(_explained(options)))
    judge = fit_judge(named_model(options, options.judge))
    kept = verdicts_in(options.folder, kept=True)
    return Means(
        records,
        TokenTexts(_tokenizer(options)),
        Judged(judge, verdicts_in(options.folder, kept=False) if options.judge == "rule" else kept),
        lambda: Judged(_surprisal(options), kept),
        lambda: load_encoder(options.encoder, loading(options), device(options)),
        lambda: _steered(options, every, {record.unit for record in records}),
    )


def _explained(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the model that was explained."""
    from rahf.interpret.explanations.records import settings_of

    made = settings_of(options.folder)
    return argparse.Namespace(**{**vars(options), "model": made["model"], "base": made["base"]})


def _tokenizer(options: argparse.Namespace):
    from rahf.models.adapters import load_tokenizer_of

    of = _explained(options)
    return load_tokenizer_of(of.model, of.base, trust_remote_code=options.trust_remote_code)


def _surprisal(options: argparse.Namespace):
    """Return the judge that measures losses; its model is loaded when a loss is not known yet."""
    from rahf.interpret.explanations.values import SurprisalJudge, surprisal_text
    from rahf.judges.by_name import LoadedWhenAsked
    from rahf.judges.judge import id_of_model
    from rahf.models.adapters import base_of

    of = _explained(options)
    name = options.reader or of.model
    known = f"surprisal of {id_of_model(name, options.dtype, base_of(name))}"

    def build() -> SurprisalJudge:
        model, tokenizer = load(of, options.reader)
        return SurprisalJudge(known, model.eval(), tokenizer, options.batch_size)

    return LoadedWhenAsked(known, 1, surprisal_text, build)


def _steered(options: argparse.Namespace, records, units):
    """Return the texts of pinned `units`, written now unless the folder has them."""
    from rahf.commands.options.dictionaries import dictionary_of
    from rahf.data.tokenization import tokenize_texts
    from rahf.generation.record_file import record_file
    from rahf.interpret.explanations.records import (
        STEERED_FILE,
        places_of,
        read_vectors,
        settings_of,
    )
    from rahf.interpret.explanations.scorers import CONTINUED
    from rahf.interpret.explanations.steered import Steering, write_steered

    made = settings_of(options.folder)
    model, tokenizer = load(_explained(options))
    named = made["dictionary"]
    dictionary = dictionary_of(options, named) if named else None
    texts = tokenize_texts(options.neutral, tokenizer, rows=CONTINUED, tokens=NEUTRAL_TOKENS)
    settings = {key: made[key] for key in ("model", "base", "dictionary")}
    settings |= {"kl": options.kl, "neutral": texts, "dtype": options.dtype}
    settings |= {"units": options.units}
    steering = Steering(model.eval(), tokenizer, texts, options.kl, batch_size=options.batch_size)
    vectors = read_vectors(options.folder, device(options))
    path, made_from = options.folder / STEERED_FILE, _made_from(options)
    with record_file(path, settings, made_from, options.command) as file:
        places = places_of(records, vectors, dictionary)
        wanted = [p for record, p in zip(records, places, strict=True) if record.unit in units]
        return write_steered(steering, wanted, file)


def _write(options: argparse.Namespace, means, file, costs) -> None:
    """Score, and write the scores with their means and cost."""
    from rahf.interpret.explanations.explaining import explain_figures
    from rahf.interpret.explanations.records import lines_of
    from rahf.interpret.explanations.score import score_units, shuffled, summary
    from rahf.interpret.explanations.scorers import scorer_of

    records, others = means.records, shuffled(means.records, options.seed)
    scores, measures = {}, {}
    for name in _scorers(options):
        scorer = scorer_of(name, means)
        scores[name], measures[name] = score_units(records, scorer, others), scorer.measure
    by_unit = [{name: rows[row] for name, rows in scores.items()} for row in range(len(records))]
    lines = lines_of(records, scores=by_unit, shuffled=others)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    cost = means.judged.cost.as_dict(costs)
    means_of = summary(records, scores, measures)
    file.finish(text, summary=means_of, units=explain_figures(lines), cost=cost)


def _print_cost(options: argparse.Namespace, means, costs) -> None:
    """Print what the judge will cost, before it is asked."""
    from rahf.interpret.explanations.score import shuffled
    from rahf.interpret.explanations.scorers import estimated_cost
    from rahf.report.explanations import cost_text

    if options.judge == "rule":
        print("the rule needs no language model: its scores cost nothing")
        return
    others = shuffled(means.records, options.seed)
    cost = estimated_cost(_scorers(options), means, others).as_dict(costs)
    print(cost_text(cost, len(means.records), f"{options.judge}, estimate"))
