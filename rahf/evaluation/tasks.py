"""Tasks of the language model evaluation harness (lm-evaluation-harness), in this process and, with
task files of one's own, offline.

Knows the harness and a model; which tasks there are is the harness's business.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.generation.answers import answering


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
) -> dict[str, dict[str, float]]:
    """Figures of each task, by the harness's own names (`acc,none`, `acc_stderr,none`).

    Args:
        task_folder: YAML files of tasks that are known besides the harness's own. Where every task
            named is among them, nothing else is looked at.
        limit: questions of each task, from its start; None: all.
        chat: put questions in the chat template.

    Raises:
        ValueError: the harness is not installed; a task is unknown.
    """
    try:
        import lm_eval.evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError:
        raise ValueError(
            "tasks need lm-evaluation-harness, which is not installed: pip install 'rahf[eval]'"
        ) from None
    manager = _manager(TaskManager, tasks, task_folder)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"unknown task {', '.join(unknown)}; `lm-eval ls tasks` lists the harness's own, and a "
            "folder of task files is given as --task_folder."
        )
    with answering(model), same_random_numbers(), no_commit_asked_for(lm_eval.evaluator):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = lm_eval.simple_evaluate(
            wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=few_shot,
            apply_chat_template=chat,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
            bootstrap_iters=0,
        )
    return {task: _figures(values) for task, values in found["results"].items()}


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Random numbers go on afterwards as if the harness, which sets every seed, had not run."""
    state = random.getstate(), np.random.get_state()  # noqa: NPY002  (the one that it sets)
    with torch.random.fork_rng():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002


@contextmanager
def no_commit_asked_for(evaluator: ModuleType) -> Iterator[None]:
    """Keep the harness from asking git for the commit of the current folder, which git answers
    with an error on the terminal where that folder is no repository.
    """
    asked = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked


def _manager(manager: type, tasks: Sequence[str], folder: Path | None) -> Any:
    """The harness's list of tasks: the folder's alone where it holds all that are asked for."""
    if folder is None:
        return manager()
    own = manager(include_path=str(folder), include_defaults=False)
    return own if set(tasks) <= set(own.all_tasks) else manager(include_path=str(folder))


def _figures(values: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
