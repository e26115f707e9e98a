"""The alignment as a trainer in the shape of TRL's: pairs and teachers in, an adapter out.

Optimiser, logging, checkpoints and ranks are transformers'; the loss is `alignment.py`, and what a
training is made of is `training/preparation.py`. No maths here.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)

from rahf.alignment import AlignmentOutput
from rahf.data.chat_format import with_chat_template
from rahf.data.contrast import PairsTogether, Responses
from rahf.directions.vectors import Directions
from rahf.models.adapters import POLICY, base_name, frozen_pass
from rahf.models.likelihood import preference_margins, preferred
from rahf.objective import Progress
from rahf.overrides import overrides
from rahf.recipe.model_options import ModelOptions
from rahf.trainer_config import RAHFConfig
from rahf.training.adapter_trainer import AdapterTrainer, ItemLoss, counting
from rahf.training.preparation import base_on_device, prepare, rows_of
from rahf.training.reached import PairProgress
from rahf.training.resumable_trainer import NonFiniteError
from rahf.training.run_files import as_recipe, write_python_run


class RAHFTrainer(AdapterTrainer):
    """Move the hidden states of a LoRA to targets read from contrasting views.

    RAHF, arXiv 2312.15997, and its neighbours: see docs/method.md.

    Args:
        model: name or folder of the base, the base itself, or a PEFT model whose adapter `default`
            is the policy.
        args: options; `RAHFConfig("out")` sets every default.
        train_dataset: pairs in any of TRL's preference formats, or rows that `tokenize_pairs` has
            made.
        eval_dataset: the same, held out.
        processing_class: tokenizer; that of the model where it is None. Saved beside the adapter,
            with `args.chat_template` where it is given.
        peft_config: the policy's LoRA; PEFT's default modules for the architecture where it is
            None.
        teachers: adapter folders or full models by name (`positive`, `negative`, `contrast`,
            `preferred`). Those that the method needs and that are missing are trained first, into
            `output_dir/teachers`.
        directions: a stored shift, or its path. No view then computes a shift of its own.
        retain_texts: ids of the texts of the retain term; read or sampled by the options where it
            is None.

    Further keyword arguments go to transformers.Trainer.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RAHFConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        teachers: dict[str, str | Path | PreTrainedModel] | None = None,
        directions: Directions | str | Path | None = None,
        retain_texts: Sequence[list[int]] | None = None,
        **kwargs,
    ):
        tokenizer = processing_class or AutoTokenizer.from_pretrained(base_name(model))
        tokenizer = with_chat_template(tokenizer, args.chat_template)
        rows = rows_of(train_dataset, tokenizer, args)
        eval_rows = None if eval_dataset is None else rows_of(eval_dataset, tokenizer, args)
        directions = directions if directions is not None else args.directions
        if isinstance(directions, str | Path):
            directions = Directions.load(directions)
        lora = peft_config or LoraConfig(r=ModelOptions.lora_r, lora_alpha=ModelOptions.lora_alpha)
        base, given = base_on_device(model, args), teachers or {}
        made = prepare(base, args, rows, tokenizer, lora, given, directions, retain_texts)
        self.alignment, self.target_cache = made.alignment, made.target_cache
        self.eval_rows, self.sampling_seconds = eval_rows, made.sampling_seconds
        self._tally = {phase: Tally(self.alignment.layers) for phase in ("train", "eval")}
        self._by_pair = PairProgress()
        facts = self.alignment.model.peft_config[POLICY], self.alignment.layers, train_dataset
        self.described = as_recipe(args, base_name(base), *facts)
        train, held_out = (
            data and Responses(data, args.response_source, made.retained, args.seed)
            for data in (rows, eval_rows)
        )
        super().__init__(
            model=self.alignment.model,
            args=args,
            data_collator=made.collator,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            **kwargs,
        )
        self.add_callback(DrawAnew(self.train_dataset))

    @overrides(Trainer)
    def _get_train_sampler(self, train_dataset=None):
        if not self.args.pairs_together:
            return super()._get_train_sampler(train_dataset)
        return PairsTogether(len(self.train_dataset) // 2, self.args.seed)

    def items_of_rows(self, batch):
        return torch.ones_like(batch["row"])

    def item_loss(self, model, batch):
        # Evaluation uses the final weights of the terms, so that results are comparable. In
        # training, the current step is included.
        steps = self.state.global_step + 1
        elapsed = steps / self.state.max_steps if model.training else 1.0
        frozen = None
        if self.target_cache is not None and model.training:  # the cache has no held-out pairs
            frozen = self.target_cache.read_or_compute(batch, self.alignment.read_views)
        output = self.alignment(model, batch, elapsed, frozen)
        self._tally["train" if model.training else "eval"].add(output, counting(batch))
        if output.of_responses is not None:
            self._by_pair.add(batch["row"], output.of_responses)
        return ItemLoss(output.loss, batch["row"])

    @overrides(Trainer)
    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= self._tally["train"].take(self.accelerator)
        super().log(logs, start_time)

    @overrides(Trainer)
    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        result = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        margins = self.preference_margins()
        bad = (~torch.isfinite(margins)).nonzero().flatten()
        if len(bad):
            raise NonFiniteError(
                f"the likelihoods of {len(bad)} of {len(margins)} held-out pairs are inf or nan, "
                f"first that of row {self.eval_rows[int(bad[0])]['row']}. Lower learning_rate or "
                "alpha, or look at these pairs."
            )
        measured = self._tally["eval"].take(self.accelerator)
        measured |= self._by_pair.take(self.alignment.layers)
        measured |= {
            "preference/accuracies": preferred(margins).mean().item(),
            "preference/margins": margins.mean().item(),
        }
        result.metrics.update(
            {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        )
        return result

    def describe(self, folder):
        write_python_run(folder, self.described, self.state.log_history)

    @overrides(Trainer)
    def create_model_card(self, *args, **kwargs):
        # transformers calls it before it uploads; its own card would replace ours.
        self.describe(Path(self.args.output_dir))

    def preference_margins(self) -> Tensor:
        """Return chosen minus rejected, [held-out pairs], nats per token; computed on all ranks."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        pairs = self.eval_rows
        share = -(-len(pairs) // world)
        # Every rank scores equally many pairs, the last ones twice where they do not divide.
        indices = [min(rank * share + offset, len(pairs) - 1) for offset in range(share)]
        with frozen_pass(self.alignment.model, "default"):
            margins = preference_margins(
                self.alignment.model,
                pairs.select(indices),
                self.data_collator.pad_token_id,
                self.args.per_device_eval_batch_size,
            )
        return self.accelerator.gather(margins.to(self.accelerator.device))[: len(pairs)].cpu()


class DrawAnew(TrainerCallback):
    """Set the epoch of the responses.

    Accelerate sets it only where it has no sampler: neither with several ranks nor after a resume.
    """

    def __init__(self, responses: Responses):
        self._responses = responses

    @overrides(TrainerCallback)
    def on_epoch_begin(self, args, state, control, **kwargs):
        self._responses.set_epoch(int(state.epoch))


class Tally:
    """Running sums of what is logged: mean of each term, reached share and cosine per layer."""

    def __init__(self, layers: tuple[int, ...]):
        self._layers = layers
        self._clear()

    def _clear(self) -> None:
        self._responses: Tensor | float = 0.0
        self._terms: dict[str, Tensor | float] = defaultdict(float)
        self._progress: Tensor | float = 0.0

    def add(self, output: AlignmentOutput, counts: Tensor) -> None:
        self._responses = self._responses + counts.sum(dtype=torch.float)
        self._progress = self._progress + torch.stack(tuple(output.progress))
        for name, term in output.terms.items():
            self._terms[name] = self._terms[name] + (term * counts).sum()

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return values since the last call, over all ranks, under `repr/`; empty without any."""
        if not self._terms:
            return {}
        names = sorted(self._terms)
        sums = torch.stack([self._responses, *(self._terms[name] for name in names)])
        responses, *sums = accelerator.reduce(sums, reduction="sum")
        progress = Progress(*accelerator.reduce(self._progress, reduction="sum"))
        values = {
            f"repr/{name}": (value / responses).item()
            for name, value in zip(names, sums, strict=True)
        }
        shares = {"reached": progress.reached(), "cosine": progress.cosine()}
        if not progress.full.any():
            shares = {}  # a method without a shift has no share of it
        for name, per_layer in shares.items():
            # Where nothing moved yet, or a layer has no shift, no share of it was reached.
            per_layer = per_layer.nan_to_num()
            values[f"repr/{name}"] = per_layer.mean().item()
            values |= {
                f"repr/{name}/layer_{layer}": value
                for layer, value in zip(self._layers, per_layer.tolist(), strict=True)
            }
        self._clear()
        return values
