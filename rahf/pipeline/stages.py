"""A stage is run once: its record holds what it was made with, and a second run reads it.

Knows ranks, records and costs; knows no recipe and no method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from rahf.artifacts import alone
from rahf.distributed.sharding import check_world
from rahf.records.command_line import command_line
from rahf.records.stage_record import StageRecord
from rahf.training.cost import PeakMemory


@contextmanager
def output_of_one_run(path: Path, cpu: bool = False) -> Iterator[None]:
    """Join the ranks of this run, and hold the lock of an output for all of them.

    Args:
        cpu: whether the ranks are on a CPU though there is a GPU.

    Raises:
        ValueError: the ranks are not connected; another run holds the lock. Every rank
            raises it, so that no rank waits for the others.
    """
    state, refused = PartialState(cpu=cpu), None
    check_world(state)
    with ExitStack() as held:
        if state.is_main_process:
            try:
                held.enter_context(alone(path, wait=False))
            except ValueError as error:
                refused = str(error)
        message = next(filter(None, gather_object([refused])), None)
        if message is not None:
            raise ValueError(message)
        yield


def is_complete(record: StageRecord, name: str) -> bool:
    """Return whether the stage is done, the same on every rank, and print it.

    Raises:
        ValueError: the folder holds the stage, finished or begun, made with other settings.
    """
    state = PartialState()
    complete, damage = record.is_complete(), record.damage()
    state.wait_for_everyone()
    if complete:
        state.print(f"{name}: complete in {record.folder}")
    elif damage is not None:
        state.print(f"{name}: not complete, since {damage}")
    return complete


def run_recorded(record: StageRecord, name: str, run: Callable[[], dict[str, Any]]) -> None:
    """Run what is not complete; `run` gives the figures that are kept in the record.

    The record also holds `peak_memory` (bytes; the largest of all ranks and of all starts of the
    stage), where the system reports it.
    """
    state = PartialState()
    state.print(f"{name}: writing {record.folder}")
    before = record.begun() if state.is_main_process else {}
    if state.is_main_process:
        record.begin(**before)
    memory = PeakMemory(state.device)
    try:
        results = run()
    except BaseException:  # also at a signal to stop, after which the stage is resumed
        if state.is_main_process:
            record.begin(**_largest([before, _peak(memory)]))
        raise
    peaks = gather_object([_peak(memory)])
    state.wait_for_everyone()
    if state.is_main_process:
        record.finish(**command_line(), **results, **_largest([before, *peaks]))


def _peak(memory: PeakMemory) -> dict[str, int]:
    peak = memory.so_far()
    return {} if peak is None else {"peak_memory": peak}


def _largest(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    peaks = [record["peak_memory"] for record in records if "peak_memory" in record]
    return {"peak_memory": max(peaks)} if peaks else {}


def deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a result; a batch counts by its rows over all ranks."""
    kept = {key: value for key, value in training.items() if key not in UNDECIDING}
    rows = kept.pop("per_device_train_batch_size", 8) * kept.pop("gradient_accumulation_steps", 1)
    return kept | {"rows_per_step": rows * PartialState().num_processes}


UNDECIDING = {
    *("output_dir", "disable_tqdm", "report_to", "run_name", "resume_from_checkpoint"),
    *("save_steps", "save_strategy", "save_total_limit", "dataset_num_proc"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "dataloader_num_workers"),
    *("packing", "target_cache"),
}
"""Keys of a recipe that set where a run writes and what it shows, and do not change its result."""
