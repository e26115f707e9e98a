"""What both training steps share: one adapter is trained, under any engine, and stopped by a
non-finite loss.

The loss is a mean over items (responses or tokens) of the global batch, however that batch is
split over rows, gradient accumulation and ranks; rows that only fill up a rank's batch do not
count. Knows transformers' Trainer; knows no method.
"""

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from rahf.distributed.sharding import is_sharded, leave_to_data_parallelism
from rahf.models.adapters import POLICY
from rahf.overrides import overrides, set_existing
from rahf.report.terminal import is_quiet
from rahf.training.checkpoints import load_policy, optimizer_state, policy_weights, restore
from rahf.training.resumable_trainer import (
    STAGING,
    NonFiniteError,
    ResumableTrainer,
    check_finite_weights,
)

logger = logging.getLogger(__name__)


class ItemLoss(NamedTuple):
    """Loss of a batch before it is averaged."""

    per_row: Float[Tensor, " rows"]  # sum over the items of each row
    row: Tensor  # index of each row in the data set


class AdapterTrainer(ResumableTrainer, ABC):
    """Trainer of the adapter `default`; a subclass defines an item and its loss."""

    def __init__(self, model: PeftModel, args: TrainingArguments, **kwargs):
        if args.n_gpu > 1:
            # One process on a machine of several GPUs: transformers would split batches over
            # threads (DataParallel), which neither adapters nor recording survive. `accelerate
            # launch` uses all.
            logger.warning("training on one of %d GPUs; use accelerate launch for all", args.n_gpu)
            set_existing(args, "_n_gpu", 1)
        keep_base_absolute(model)
        super().__init__(model, args, **kwargs)
        show_compactly(self)
        self.add_callback(LastStepLogged)
        # Losses below are divided by the items of the complete accumulated batch already.
        set_existing(self, "model_accepts_loss_kwargs", True)

    rows_of_example = 1
    """Rows of a batch that are made of one example of the data set."""

    strength = 1.0
    """Factor on the adapter's update when it is saved."""

    @abstractmethod
    def items_of_rows(self, batch: dict[str, Any]) -> Int[Tensor, " rows"]:
        """Return the items of each row; the loss is averaged over all of them."""

    @abstractmethod
    def item_loss(self, model: nn.Module, batch: dict[str, Any]) -> ItemLoss:
        """Return the loss of `batch` under `model`, which may be wrapped."""

    @overrides(Trainer)
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.accelerator.num_processes > 1 and not self.args.ignore_data_skip:
            self._mark_repeated(batches)
        items = torch.tensor(sum(self.count_items(batch) for batch in batches), device=device)
        return batches, self.accelerator.reduce(items, reduction="sum")

    def _mark_repeated(self, batches: list[dict[str, Any]]) -> None:
        """Mark what counts in the next batches.

        Accelerate fills the last ones of an epoch up with repeated rows, so that every rank has
        equally many.
        """
        accumulated = self.args.gradient_accumulation_steps
        of_epoch = -(-len(self.callback_handler.train_dataloader) // accumulated)
        first = self.state.global_step % of_epoch * accumulated
        for index, batch in enumerate(batches, start=first):
            self._mark(batch, index, len(self.train_dataset))

    def _mark(self, batch: dict[str, Any], index: int, examples: int) -> None:
        """Add to a batch of this rank which of its rows count; `index`: of this rank's batches."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = len(batch["row"]) // self.rows_of_example
        counts = first_time(index * world + rank, size, examples)
        batch["counts"] = counts.repeat_interleave(self.rows_of_example).to(batch["row"].device)

    def count_items(self, batch: dict[str, Any]) -> int:
        """Return the number of items over which the loss of `batch` is averaged."""
        return int((self.items_of_rows(batch) * counting(batch)).sum())

    @overrides(Trainer)
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = self.item_loss(model, inputs)
        if not torch.isfinite(result.per_row.sum()):
            raise NonFiniteError(
                describe_non_finite(result, self.state.global_step, self.last_checkpoint())
            )
        loss = (result.per_row * counting(inputs)).sum()
        if num_items_in_batch is None:
            loss = loss / max(1, self.count_items(inputs))  # a held-out batch may only fill up
        else:
            # Gradients are averaged over ranks, so that each rank scales its share of the sum up.
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, result) if return_outputs else loss

    @overrides(Trainer)
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        if self.accelerator.num_processes > 1:
            self._mark(inputs, self._held_out_batches, len(self.eval_dataset))
        self._held_out_batches += 1
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, result = self.compute_loss(model, inputs, return_outputs=True)
        self._held_out[0] += (result.per_row * counting(inputs)).sum().item()
        self._held_out[1] += self.count_items(inputs)
        return loss.detach(), None, None

    @overrides(Trainer)
    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        # transformers averages over batches, which are filled up to equally many rows per rank.
        self._held_out_batches = 0
        self._held_out = [0.0, 0]  # sum of the loss, and items
        result = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, items = map(sum, zip(*gather_object([self._held_out]), strict=True))
        result.metrics[f"{metric_key_prefix}_loss"] = loss / items
        return result

    @overrides(Trainer)
    def floating_point_ops(self, inputs) -> int:
        return 0  # the Trainer's estimate, one full forward of one block, fits no step here

    @overrides(Trainer)
    def create_optimizer(self, *args, **kwargs):
        # A LoRA has no weight that is spared the decay: the group of such weights is empty, and
        # DeepSpeed would drop it, so that checkpoints would differ.
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    @overrides(Trainer)
    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        # The engine is made of weights that have been read already; it does not load them.
        if resume_from_checkpoint is not None:
            load_policy(self.model, Path(resume_from_checkpoint))
        leave_to_data_parallelism(self.model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    @overrides(Trainer)
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        pass  # done above, under every engine

    @overrides(Trainer)
    def _load_optimizer_and_scheduler(self, checkpoint):
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        restore(self.model, self.optimizer, Path(checkpoint), saved)
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
        )

    @overrides(Trainer)
    def _save_optimizer_and_scheduler(self, output_dir):
        state = optimizer_state(self.model, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    @overrides(Trainer)
    def _move_model_to_device(self, model, device):
        if not is_sharded():
            super()._move_model_to_device(model, device)

    @overrides(Trainer)
    def save_model(self, output_dir=None, _internal_call=False):
        weights = policy_weights(self.model, self.optimizer)
        if self.strength != 1:
            weights = {
                name: self.strength * part if ".lora_B." in name else part
                for name, part in weights.items()
            }
        check_finite_weights(weights, self.state.global_step)
        self._save(output_dir, weights)
        if not _internal_call and self.args.should_save:
            self.describe(Path(output_dir or self.args.output_dir))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def describe(self, folder: Path) -> None:
        """Write what belongs beside the adapter that `save_model` has written; here nothing."""

    @overrides(Trainer)
    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        written = folder / STAGING
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
        save_policy(self.model, written, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(written)
        for path in list(written.iterdir()):
            shutil.rmtree(folder / path.name, ignore_errors=True)  # only a folder has to make way
            path.replace(folder / path.name)
        written.rmdir()


def first_time(batch: int, size: int, examples: int) -> Bool[Tensor, " size"]:
    """Return which places of a batch are the first of an epoch to hold their example.

    Args:
        batch: number of the batch among those of all ranks; the ranks take turns.
        size: examples of every batch.
        examples: length of the data set.
    """
    return batch * size + torch.arange(size) < examples


def counting(batch: Mapping[str, Any]) -> Bool[Tensor, " rows"]:
    """Return which rows of a batch count: all of them, unless the batch is marked."""
    return batch.get("counts", torch.ones_like(batch["row"], dtype=torch.bool))


class LastStepLogged(TrainerCallback):
    """Log the steps after the last multiple of `logging_steps`.

    A training of fewer steps would log nothing.
    """

    @overrides(TrainerCallback)
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True


class CompactProgress(ProgressCallback):
    """Progress bar whose lines leave the per-layer figures to the log."""

    @overrides(ProgressCallback)
    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_quiet():
            super().on_log(args, state, control, logs=without_layers(logs), **kwargs)


class CompactPrinter(PrinterCallback):
    """The same where progress bars are off."""

    @overrides(PrinterCallback)
    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_quiet():
            super().on_log(args, state, control, logs=without_layers(logs), **kwargs)


def show_compactly(trainer: Trainer) -> None:
    """Put the compact display in the place of the Trainer's own."""
    for own, compact in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
        if trainer.pop_callback(own) is not None:
            trainer.add_callback(compact)


def without_layers(logs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in logs.items() if "/layer_" not in key}


def keep_base_absolute(model: nn.Module) -> None:
    """Let the adapters of `model` name a base on this disk so that they load from any folder."""
    for config in getattr(model, "peft_config", {}).values():
        base = config.base_model_name_or_path
        if base and Path(base).is_dir():
            config.base_model_name_or_path = str(Path(base).absolute())


def save_policy(
    model: PeftModel, folder: Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the adapter `default` to the root of `folder`, nothing of the base or the teachers."""
    model.save_pretrained(
        folder, selected_adapters=[POLICY], state_dict=state_dict, save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card: ours comes with the results


def describe_non_finite(result: ItemLoss, step: int, checkpoint: str | None) -> str:
    """Return the message that names the rows with a non-finite loss."""
    bad = result.row[~torch.isfinite(result.per_row)].tolist()
    loss = result.per_row.sum().item()
    kept = (
        f"The last good checkpoint is {checkpoint}."
        if checkpoint
        else "No checkpoint had been saved yet."
    )
    return (
        f"the loss is {loss} in step {step + 1}; rows of the data set at fault: "
        f"{bad or result.row.tolist()} (batch: {result.row.tolist()}). {kept} Look at these rows, "
        "or lower learning_rate or alpha."
    )
