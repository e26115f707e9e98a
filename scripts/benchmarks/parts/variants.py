"""The variants, each trained for a few steps on the rows in their order: what is compared.

A variant reads a meter (a clock, or a counter of FLOPs) at the end of every step. Every import of a
variant is its own, so that a process holds nothing of the others.
"""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from parts.recipes import method_keys, recipe_of
from parts.workload import MAX_TOTAL, Workload
from transformers import PreTrainedModel, TrainerCallback

from rahf.overrides import overrides


class Trained(NamedTuple):
    """What a variant reports."""

    ends: list[float]  # the meter at the end of each step
    losses: list[float]  # of each step; empty where it is not comparable


Meter = Callable[[], float]


class EndOfSteps(TrainerCallback):
    """Reads the meter after each optimiser step."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self.read: list[float] = []

    @overrides(TrainerCallback)
    def on_step_end(self, args, state, control, **kwargs):
        self.read.append(self._meter())


def naive(workload: Workload, steps: int, meter: Meter, checkpointing: bool = False) -> Trained:
    """Train as the published scripts do, with every activation kept for the backward."""
    from parts.naive import NaiveAlignment

    alignment, rows = NaiveAlignment(workload, checkpointing), workload.rows()
    ends, losses = [], []
    for step in range(steps):
        indices = range(step * workload.pairs, (step + 1) * workload.pairs)
        losses.append(alignment.step([rows[index] for index in indices]).item())
        ends.append(meter())
    return Trained(ends, losses)


def published(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train as the published scripts do under their launch files: with activation checkpointing."""
    return naive(workload, steps, meter, checkpointing=True)


def rahf(
    workload: Workload,
    steps: int,
    meter: Meter,
    load: Callable[[], PreTrainedModel] | None = None,
    **options: Any,
) -> Trained:
    """Train with the package in the published settings, with its own trainer.

    Args:
        load: in place of the workload's own; called once the engine is known.
    """
    from rahf.trainer import RAHFConfig, RAHFTrainer

    # The rows are read in their order, which has both responses of a pair in one batch.
    args = RAHFConfig(
        **{**method_keys(workload), "pairs_together": False, **options},
        learning_rate=workload.learning_rate,
        per_device_train_batch_size=2 * workload.pairs,
        mean_responses=2 * workload.pairs,
        **common_arguments(workload, steps),
    )
    ends = EndOfSteps(meter)
    trainer = RAHFTrainer(
        (load or workload.load_model)(),
        args,
        workload.rows(),
        processing_class=small_tokenizer(),
        peft_config=workload.lora(),
        teachers=workload.teachers(),
        callbacks=[ends],
    )
    trainer.train()
    return Trained(
        ends.read, [line["loss"] for line in trainer.state.log_history if "loss" in line]
    )


def rahf_loaded(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train on a base that is loaded as `rahf align` loads it: in 4 bits, sharded."""
    from rahf.pipeline.inputs import load_base

    return rahf(workload, steps, meter, lambda: load_base(recipe_of(workload)))


def rahf_rows(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train with packs attended row by row, not in one kernel: the plain path."""
    from rahf.models.packed_attention import kernel_only_on

    with kernel_only_on():
        return rahf(workload, steps, meter)


def rahf_padded(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train with the package on padded rows: the plain path."""
    return rahf(workload, steps, meter, packing=False)


def rahf_mean(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train with the project's default shift, one mean a layer, so that no view is read during
    training. Fitting it is not part of the steps.
    """
    return rahf(workload, steps, meter, shift="mean")._replace(losses=[])


def rahf_cached(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train as in later epochs, which read the frozen views' states that an earlier epoch has kept.
    The first step compares what it reads, which takes the frozen passes once more.
    """
    kept = {"target_cache": str(workload.folder / "states")}
    rahf(workload, steps, lambda: 0.0, **kept)
    return rahf(workload, steps, meter, **kept)


def rahf_keeping(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train as in the first epoch with a cache: the states are computed and kept."""
    with TemporaryDirectory(dir=workload.folder) as folder:
        return rahf(workload, steps, meter, target_cache=folder)


def dpo(workload: Workload, steps: int, meter: Meter) -> Trained:
    """Train TRL's DPO with the same LoRA on the same pairs, complete responses."""
    from trl import DPOConfig, DPOTrainer

    class OnRows(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset  # tokenised already

    args = DPOConfig(
        max_length=MAX_TOTAL,
        learning_rate=workload.learning_rate,
        per_device_train_batch_size=workload.pairs,
        activation_checkpointing=False,  # TRL's default saves memory and takes a third more time
        logging_strategy="no",
        **common_arguments(workload, steps),
    )
    ends = EndOfSteps(meter)
    rows = workload.rows().select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    OnRows(
        workload.load_model(),
        args=args,
        train_dataset=rows,
        processing_class=small_tokenizer(),
        peft_config=workload.lora(),
        callbacks=[ends],
    ).train()
    return Trained(ends.read, [])


VARIANTS: dict[str, Callable[[Workload, int, Meter], Trained]] = {
    "naive": naive,
    "published": published,
    "rahf": rahf,
    "rahf-padded": rahf_padded,
    "rahf-mean": rahf_mean,
    "rahf-keeping": rahf_keeping,
    "rahf-cached": rahf_cached,
    "dpo": dpo,
}


ON_A_GPU = {"rahf-loaded": rahf_loaded, "rahf-rows": rahf_rows}
"""The variants of `gpu_check.py` only: one reads files, which a shape has not; one is the plain
path of a GPU.
"""


def common_arguments(workload: Workload, steps: int) -> dict[str, Any]:
    """Return the arguments that both trainers share."""
    return {
        "output_dir": str(workload.folder / "out"),
        "max_steps": steps,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "bf16": workload.dtype == "bfloat16",
        "use_cpu": workload.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": workload.device == "cuda",
    }


def small_tokenizer() -> Any:
    """Return a tokenizer that only provides padding: rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="[EOS]", pad_token="[EOS]", unk_token="[UNK]"
    )
