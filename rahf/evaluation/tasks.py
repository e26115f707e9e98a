"""Tasks of the language model evaluation harness (lm-evaluation-harness), in this process and, with
task files of one's own, offline.

Knows the harness and a model; which tasks there are is the harness's business.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.evaluation.intervals import check_finite, mean_estimate, share_estimate
from rahf.generation.answers import answering

PLAIN = "tag:yaml.org,2002:"
"""The beginning of the tags of plain values."""

SHOWN = 200
"""Characters of a parser's message that an error shows."""

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def run_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    few_shot: int | None = None,
    chat: bool = False,
    trust_code: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each task, by the harness's own names (`acc,none`), with `intervals`.

    None is a figure that is not finite.

    Args:
        task_folder: YAML files of tasks besides the harness's own. Where they hold every task
            named, nothing else is read.
        limit: questions of each task, from its start; None: all.
        chat: put questions in the chat template.
        trust_code: let files in `task_folder` run Python (`!function`).

    Raises:
        ValueError: no harness; unknown task; a file would run Python; a log-likelihood is NaN.
    """
    harness, manager = _harness(), _manager(tasks, task_folder, trust_code)
    with answering(model), same_random_numbers(), no_commit_asked_for(harness.evaluator):
        found = harness.simple_evaluate(
            _wrapped(model, tokenizer, batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=few_shot,
            apply_chat_template=chat,
            bootstrap_iters=0,
            **dict.fromkeys(SEEDS, 0),
        )
    return _by_task(found["results"], found["samples"])


def check_no_code(folder: Path) -> None:
    """Raise ValueError where a task file in `folder`, or one that it includes, runs Python."""
    waiting, seen = sorted(folder.rglob("*.yaml")), set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or not path.is_file():  # what is missing is the harness's to report
            continue
        seen.add(path)
        try:
            nodes = list(_nodes(yaml.compose(path.read_text(encoding="utf-8"))))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            line = " ".join(str(error).split())[:SHOWN]
            raise ValueError(f"--task_folder: {path} is not YAML: {line}") from None
        for node in nodes:
            if not node.tag.startswith(PLAIN) or node.tag.startswith(f"{PLAIN}python/"):
                raise ValueError(
                    f"--task_folder: {path}, line {node.start_mark.line + 1}: {node.tag} runs "
                    "Python code. Read it, and give --trust_remote_code if you trust it."
                )
        waiting += [path.parent / name for node in nodes for name in _included(node)]


def _included(node: yaml.Node) -> list[str]:
    """Return the files that a mapping includes."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    given = [value for key, value in pairs if key.value == "include"]
    return [part.value for value in given for part in _nodes(value) if isinstance(part.value, str)]


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Yield every node of a document once; an alias is the node it stands for."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore the state of every generator of random numbers, all of which the harness seeds."""
    state = random.getstate(), np.random.get_state()  # noqa: NPY002  (the one that it sets)
    with torch.random.fork_rng():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002


@contextmanager
def no_commit_asked_for(evaluator: ModuleType) -> Iterator[None]:
    """Keep the harness from requesting the commit of the current folder from git, which prints an
    error on the terminal where that folder is no repository.
    """
    asked = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked


def _harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.evaluator
    except ModuleNotFoundError:
        raise ValueError(
            "tasks need lm-evaluation-harness, which is not installed: pip install 'rahf[eval]'"
        ) from None
    return lm_eval


def _wrapped(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _manager(tasks: Sequence[str], folder: Path | None, trust_code: bool) -> Any:
    """Return the harness's list of tasks, or the folder's if it holds all of `tasks`.

    Raises:
        ValueError: a task is in neither; a file of the folder would run Python.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None and not trust_code:
        check_no_code(folder)
    manager = None
    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
    if manager is None or not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=str(folder)) if folder else TaskManager()
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"unknown task {', '.join(unknown)}; `lm-eval ls tasks` lists the harness's own, and a "
            "folder of task files is given as --task_folder."
        )
    return manager


def _by_task(
    results: Mapping[str, dict[str, Any]], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Return the figures of each task with their intervals, if every log-likelihood is finite."""
    _check_samples(samples)
    return {
        task: _figures(each) | intervals(each, samples.get(task, ()))
        for task, each in results.items()
    }


def _check_samples(by_task: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for task, samples in by_task.items():
        read = [*_numbers([sample["resps"] for sample in samples])]
        check_finite(read, f"task {task}: the log-likelihood of answer")


def _numbers(values: Any) -> Iterator[float]:
    """Yield the numbers in lists of lists; a log-likelihood comes with whether it is greedy."""
    if isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, float):
        yield values


def intervals(
    values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Return the 95 % interval over questions of each figure that is their mean, under a name of
    its own: `acc,none_interval`.

    Args:
        values: figures by `metric,filter`.
        samples: what the harness keeps of each question: its filter, and a value by metric.
    """
    found = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        of_kind = [sample for sample in samples if sample.get("filter", kind) == kind]
        read = [sample.get(metric) for sample in of_kind]
        if not read or not all(isinstance(each, int | float | np.number) for each in read):
            continue
        each_question = np.asarray(read, dtype=float)
        # Of some metrics the harness's figure is no mean: a perplexity, an F1 over all questions.
        if not np.isfinite(each_question).all() or not np.isclose(each_question.mean(), value):
            continue
        estimate = (share_estimate if {*read} <= {0, 1} else mean_estimate)(each_question.tolist())
        if estimate is not None and np.isfinite(estimate.low):
            found[f"{key}_interval"] = [estimate.low, estimate.high]
    return found


def _figures(values: dict[str, Any]) -> dict[str, float | None]:
    return {
        key: value if math.isfinite(value) else None
        for key, value in values.items()
        if isinstance(value, int | float)
    }
