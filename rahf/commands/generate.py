"""`rahf generate`: a model's responses to the prompts of a file, or to those given."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rahf.commands.options.models import content, identity, load, model_options
from rahf.commands.options.steering import (
    check_strengths,
    steering,
    steering_identity,
    steering_options,
)

if TYPE_CHECKING:
    from rahf.data.prompts import PromptForm
    from rahf.generation.decoding import Decoding

EPILOG = """\
Prompts: records (jsonl, json, csv, also gzipped) with `prompt` or `messages` (text, messages, or
a "Human: ... Assistant:" transcript), or with AlpacaEval's `instruction`.
Responses: a name ending in .jsonl holds prompt, generator, response, tokens, finished; one ending
in .json is AlpacaEval's layout. The same command resumes a run that was stopped.
With --prompt the answers of the base and of the aligned model are printed side by side."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompts", metavar="FILE", type=Path, help="the prompts")
    given.add_argument(
        "--prompt", metavar="TEXT", action="append", help="prompt; may be given again for several"
    )
    option("--output", metavar="FILE", type=Path, help="file for --prompts, .jsonl or .json")
    option("--generator", metavar="NAME", help="generator named in the file (default: the model)")
    option("--limit", metavar="N", type="count", help="answer the first N prompts")
    option(
        "--urial",
        metavar="FILE",
        nargs="?",
        const=OWN_URIAL,
        help="in-context alignment of a base model: instruction and examples in front of every "
        "prompt, ours or those of FILE, in place of the chat template",
    )
    option(
        "--batch_size", metavar="N", type="count", default=16, help="prompts at once (default: 16)"
    )
    decoding_options(parser)
    steering_options(parser)


OWN_URIAL = "ours"


def decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `Decoding` as options."""
    option = parser.add_argument
    option(
        "--max_new_tokens",
        metavar="N",
        type="count",
        default=512,
        help="tokens of a response, at most (default: 512)",
    )
    option(
        "--temperature",
        metavar="T",
        type="number from zero",
        default=0.0,
        help="temperature of the sampling; 0: greedy (default: 0)",
    )
    option(
        "--top_p",
        metavar="P",
        type="share",
        default=1.0,
        help="share of probability to draw from (default: 1)",
    )
    option(
        "--top_k",
        metavar="K",
        type="count from zero",
        default=0,
        help="likeliest tokens to draw from; 0: all (default: 0)",
    )
    option("--seed", metavar="N", type="seed", default=0, help="seed of the sampling (default: 0)")


def run(options: argparse.Namespace) -> int:
    check_strengths(options)
    if options.prompt:
        return _print_answers(options)
    if options.output is None:
        raise ValueError("--prompts needs --output FILE; --prompt TEXT prints the answers")
    from rahf.data.prompts import read_prompts, refuse_rendered, response_layout
    from rahf.generation.responses import write_responses

    response_layout(options.output)  # a wrong name is refused before anything is loaded
    prompts = read_prompts(options.prompts)[: options.limit]
    decoding = decoding_of(options)
    model, tokenizer = load(options)
    if options.urial is None:
        chats = [prompt.messages for prompt in prompts]
        refuse_rendered(options.prompts, chats, tokenizer, options.chat_template)
    with steering(options, model):
        counts = write_responses(
            model,
            tokenizer,
            prompts,
            prompt_form(options, tokenizer),
            decoding,
            options.output,
            generator=options.generator or generator_name(options),
            made_with={**identity(options), **steering_identity(options)},
            made_from=content(options),
            made_by=options.command,
            batch_size=options.batch_size,
        )
    print(
        f"{options.output}: {counts['responses']} responses, {counts['finished']} ended by "
        f"themselves, {counts['mean_tokens']:.1f} tokens each; {counts['made_now']} made now in "
        f"{counts['seconds']:.0f} s"
    )
    return 0


def _print_answers(options: argparse.Namespace) -> int:
    """Print the answers to each --prompt, those of the base beside those of the aligned model."""
    for name in ("output", "limit", "generator"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for the prompts of a file; omit it beside --prompt")
    from rahf.commands.options.sides import answers_of, sides
    from rahf.report.columns import columns

    loaded = load(options)
    shown = sides(options, loaded)
    form, decoding = prompt_form(options, loaded.tokenizer), decoding_of(options)
    for prompt in options.prompt:
        chat = [{"role": "user", "content": prompt}]
        answers = answers_of(shown, dict.fromkeys(shown, chat), loaded, form, decoding)
        print(f"> {prompt}\n\n{columns(answers)}\n", flush=True)
    return 0


def decoding_of(options: argparse.Namespace) -> "Decoding":
    """Return the settings of `decoding_options`."""
    from rahf.generation.decoding import Decoding

    return Decoding(**{name: getattr(options, name) for name in Decoding.__dataclass_fields__})


def generator_name(options: argparse.Namespace) -> str:
    """Return the name of the generator in the file where the user gives no name."""
    return Path(options.model).name + ("" if options.urial is None else "+urial")


def prompt_form(options: argparse.Namespace, tokenizer) -> "PromptForm":
    """Return the chat template's form, or URIAL's with --urial."""
    if options.urial is None:
        from rahf.data.prompts import chat_prompt_form

        return chat_prompt_form(tokenizer, options.chat_template)
    from rahf.generation.urial import own_urial, read_urial, urial_prompt_form

    urial = own_urial() if options.urial == OWN_URIAL else read_urial(options.urial)
    return urial_prompt_form(tokenizer, urial)
