"""The table at the end of a run against the files it reads, before anything is trained for it.

Knows neither torch nor the model; reads prompts, references and the unrelated texts it needs.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rahf.data.pairs import without_held_out
from rahf.data.prompts import prompt_text, read_prompts
from rahf.data.records import read_records
from rahf.data.sources import load_pairs
from rahf.judges.reference_file import read_references
from rahf.recipe.data_options import MOST_HELD_OUT
from rahf.recipe.held_out import HELD_OUT, held_out_split
from rahf.recipe.judge_options import JudgeOptions
from rahf.recipe.model_files import is_local, json_object, missing_file
from rahf.recipe.recipe import Recipe

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def evaluation_problems(recipe: Recipe) -> list[str]:
    """Return what the evaluation would refuse after the training."""
    options, problems, folder = recipe.evaluation, [], Path(recipe.model.model_name_or_path)
    if options.unrelated_text is not None and Path(options.unrelated_text).is_file():
        problems += _text_problems(Path(options.unrelated_text), options.unrelated_rows, folder)
    prompts: list[str] = []
    if options.prompts is not None and Path(options.prompts).is_file():
        try:
            prompts = [prompt_text(prompt.messages) for prompt in read_prompts(options.prompts)]
        except ValueError as error:
            problems.append(f"evaluation.prompts: {error}")
    if options.prompts is None and not options.held_out_prompts:
        return problems
    problems += judge_file_problems("evaluation", options, prompts)
    positions = _positions(folder)
    if positions is None:
        return problems
    longest = recipe.data.max_length
    longest = longest if isinstance(longest, int) else positions  # refused elsewhere
    if options.prompts is None and longest + options.max_new_tokens > positions:
        prompts = _held_out_prompts(recipe)
    return [*problems, *_position_problems(options.max_new_tokens, prompts, positions, folder)]


def _held_out_prompts(recipe: Recipe) -> list[str]:
    """Return the held-out prompts that are answered, of data that is here."""
    data, split = recipe.data, held_out_split(recipe.data)
    if split is None or data.datasets is not None or not is_local(data.dataset_name):
        return []
    share, named = split == HELD_OUT, {"name": data.dataset_config, "columns": data.columns}
    try:
        split = data.dataset_train_split if share else split
        pairs = load_pairs(data.dataset_name, split=split, **named)
    except ValueError:  # reported where the data is loaded
        return []
    if share:
        _, pairs = without_held_out(pairs, data.test_share, MOST_HELD_OUT)
    texts = dict.fromkeys(prompt_text(chat) for chat in pairs["prompt"])
    return list(texts)[: recipe.evaluation.held_out_prompts]


def compared_judge_problems(recipe: Recipe) -> list[str]:
    """Return what the judges of `compare` would refuse of their files and of the test prompts."""
    path, prompts = recipe.evaluation.prompts, []
    if path is not None and Path(path).is_file():
        with suppress(ValueError):  # reported with the evaluation
            prompts = [prompt_text(prompt.messages) for prompt in read_prompts(path)]
    return judge_file_problems("compare", recipe.compare, prompts)


def judge_file_problems(section: str, options: JudgeOptions, prompts: Sequence[str]) -> list[str]:
    """Return the problems of the files that the judges of a section read, beside the prompts."""
    if not isinstance(options, JudgeOptions):  # a section whose values were refused
        return []
    return [
        f"{section}.{line}"
        for name in map(str, options.judges)
        for line in _reference_problems(name, prompts, options.encoder)
    ]


def _text_problems(path: Path, rows: int, model: Path) -> list[str]:
    texts = []
    try:
        for place, record in islice(read_records(path), rows):
            if not isinstance(record.get("text"), str):
                return [
                    f"evaluation.unrelated_text: {place}: no text; every record needs a `text`. "
                    f"It has: {', '.join(record)}"
                ]
            texts.append(record["text"])
    except ValueError as error:
        return [f"evaluation.unrelated_text: {error}"]
    if not texts:
        return [f"evaluation.unrelated_text: {path} has no rows"]
    whole = (model / "tokenizer.json").is_file()
    if any(len(text.split()) > 1 for text in texts) or not whole or max(_sizes(texts, model)) > 1:
        return []
    return [f"evaluation.unrelated_text: {path} holds no text of at least two tokens"]


def _sizes(texts: Sequence[str], model: Path) -> list[int]:
    """Return the tokens of each text; [] where the tokenizer is not a file here."""
    if not texts or not (model / "tokenizer.json").is_file():
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def _reference_problems(judge: str, prompts: Sequence[str], encoder: str) -> list[str]:
    """Return the problems of a references judge with its encoder and with the prompts."""
    kind, _, file = judge.partition(":")
    if kind != "references" or not Path(file).is_file():
        return []
    missing = is_local(encoder) and not Path(encoder).exists()
    problems = [missing_file("encoder", encoder)] if missing else []
    try:
        known = read_references(Path(file))
    except ValueError:
        return problems  # reported with the judge
    without = [text for text in prompts if text not in known]
    if without:
        problems.append(
            f"judge: {file} has no reference answers to {len(without)} of the "
            f"{len(prompts)} prompts, such as {without[0][:120]!r}: add right and wrong ones, or "
            "name another judge"
        )
    return problems


def judge_problems(key: str, judge: str) -> list[str]:
    """Return why the file or folder of a judge, which is there, cannot be used."""
    kind, _, of = judge.partition(":")
    if kind == "references":
        try:
            read_references(Path(of))
        except ValueError as error:
            return [f"{key}: {error}"]
    config = Path(of, "config.json")
    if kind != "reward" or not is_local(of) or not config.is_file():
        return []
    try:
        built = json_object(config).get("architectures") or []
    except ValueError as error:
        return [f"{key}: {error}"]
    if not built or not all(str(name).endswith(_LANGUAGE_MODELS) for name in built):
        return []
    return [
        f"{key}: {of} is no reward model but a {built[0]}: give a sequence classifier, as rahf "
        "reward trains, or use the language model as choice:NAME"
    ]


def _positions(model: Path) -> int | None:
    """Return the positions of a model in a folder; None where they are not known."""
    if not (model / "config.json").is_file():
        return None
    try:
        config = json_object(model / "config.json")
    except ValueError:
        return None  # reported with the model
    config = config.get("text_config") or config
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return positions if isinstance(positions, int) else None


def _position_problems(
    new_tokens: int, prompts: Sequence[str], positions: int, model: Path
) -> list[str]:
    """Return whether an answer leaves room for the longest prompt, whose template adds more."""
    key = f"evaluation.max_new_tokens: {new_tokens}"
    if new_tokens >= positions:
        return [
            f"{key} leaves no room for a prompt within the model's {positions} positions: lower it"
        ]
    sizes = _sizes(prompts, model)
    longest = max(sizes, default=0)
    if longest + new_tokens <= positions:
        return []
    row = sizes.index(longest)
    return [
        f"{key} and the {longest} tokens of prompt {row + 1} ({prompts[row][:60]!r}) are more than "
        f"the model's {positions} positions: lower it, or omit that prompt"
    ]
