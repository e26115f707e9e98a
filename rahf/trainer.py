"""The alignment as a trainer in the shape of TRL's: pairs and teachers in, an adapter out.

Optimiser, logging, checkpoints and ranks are transformers'; the loss is `alignment.py`. No maths
here.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)

from rahf.alignment import Alignment, AlignmentOutput, build_alignment, mean_shift, views_asked
from rahf.data.chat_format import with_chat_template
from rahf.data.contrast import Batch, ContrastCollator, PairsTogether, Responses
from rahf.data.pairs import normalize_pairs
from rahf.data.tokenization import tokenize_pairs, tokenize_texts
from rahf.directions.vectors import Directions
from rahf.distributed.sharding import gathered, take_over_sharding
from rahf.generation.answers import pad_id, sample_texts
from rahf.models.adapters import base_model, base_name, frozen_pass
from rahf.models.likelihood import preference_margins
from rahf.objective import Progress
from rahf.overrides import overrides
from rahf.recipe.method_options import MethodOptions
from rahf.trainer_config import RAHFConfig
from rahf.training.adapter_trainer import AdapterTrainer, ItemLoss, counting
from rahf.training.target_cache import open_cache
from rahf.training.teachers import train_teachers

INHERITED_BY_TEACHERS = (
    *("seed", "max_steps", "num_train_epochs", "bf16", "fp16", "use_cpu", "report_to"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "dataloader_pin_memory", "disable_tqdm", "deepspeed", "fsdp"),
)
"""Arguments that the training of missing teachers takes over from the alignment."""


class RAHFTrainer(AdapterTrainer):
    """Moves the hidden states of a LoRA to targets read from contrasting views.

    RAHF, arXiv 2312.15997, and its neighbours: see docs/method.md.

    Args:
        model: name or folder of the base, the base itself, or a PEFT model whose adapter `default`
            is the policy.
        args: options; `RAHFConfig("out")` is a complete choice.
        train_dataset: preference pairs in any of TRL's formats, or rows that `tokenize_pairs` has
            made.
        eval_dataset: the same, held out.
        processing_class: tokenizer; that of the model where it is None. Saved beside the adapter,
            with `args.chat_template` where it is given.
        peft_config: the policy's LoRA; PEFT's default modules for the architecture where it is
            None.
        teachers: adapter folders or full models by name (`positive` and `negative`, or `contrast`).
            Those that the method needs and that are missing are trained first, into
            `output_dir/teachers`.
        directions: a stored shift, or its path. No view is then asked for its own shift.
        retain_texts: ids of the texts of the retain term; read or sampled as the options say where
            it is None.

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
        tokenizer = with_chat_template(
            processing_class or AutoTokenizer.from_pretrained(base_name(model)), args.chat_template
        )
        train_rows = rows_of(train_dataset, tokenizer, args)
        self.eval_rows = (
            rows_of(eval_dataset, tokenizer, args) if eval_dataset is not None else None
        )
        directions = directions if directions is not None else args.directions
        if isinstance(directions, str | Path):
            directions = Directions.load(directions)
        peft_config = peft_config or LoraConfig(r=8, lora_alpha=16)
        take_over_sharding()
        placed = "device_map" in (args.model_init_kwargs or {})
        base = base_model(model, args.model_init_kwargs, None if placed else args.device)
        views = views_asked(args, stored=directions is not None)
        teachers = dict(teachers or {})
        missing = [name for name in views.teachers() if name not in teachers]
        if missing:
            teachers |= teach(missing, base, train_rows, tokenizer, peft_config, args)

        set_seed(args.seed)
        self.alignment = build_alignment(
            base, args, peft_config, teachers, directions, seed=args.seed
        )
        policy = self.alignment.model
        collator = collator_for(args, tokenizer, self.alignment.packed)
        with gathered(policy):
            if args.shift == "mean" and args.asks_views and directions is None:
                directions = fit_mean_shift(self.alignment, train_rows, tokenizer, args)
                self.alignment = self.alignment.towards(directions)
            start = perf_counter()
            if retain_texts is None:
                retain_texts = read_retained(policy, tokenizer, args)
            self.sampling_seconds = perf_counter() - start
        self.target_cache = None
        if args.target_cache is not None:
            autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else "none"
            self.target_cache = open_cache(
                self.alignment, teachers, train_rows, retain_texts, autocast, collator
            )
        self._tally = {phase: Tally(self.alignment.layers) for phase in ("train", "eval")}
        super().__init__(
            model=policy,
            args=args,
            data_collator=collator,
            train_dataset=Responses(train_rows, args.response_source, retain_texts, args.seed),
            eval_dataset=self.eval_rows
            and Responses(self.eval_rows, args.response_source, retain_texts, args.seed),
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
        # Measured at the end of the schedule, so that measurements compare; while training, the
        # step that is being made counts.
        steps = self.state.global_step + 1
        elapsed = steps / self.state.max_steps if model.training else 1.0
        frozen = None
        if self.target_cache is not None and model.training:  # held-out pairs are others
            frozen = self.target_cache.frozen(batch, self.alignment.frozen)
        output = self.alignment(model, batch, elapsed, frozen)
        self._tally["train" if model.training else "eval"].add(output, counting(batch))
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
        measured = self._tally["eval"].take(self.accelerator) | {
            "preference/accuracies": (margins > 0).float().mean().item(),
            "preference/margins": margins.mean().item(),
        }
        result.metrics.update(
            {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        )
        return result

    def preference_margins(self) -> Tensor:
        """Margin of chosen over rejected, [held-out pairs], nats per token; split over ranks."""
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
    """Tells the responses which epoch it is.

    Accelerate tells a data set so only where it has no sampler to tell: neither with several ranks
    nor after a resume.
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
        """Values since the last call, over all ranks, under `repr/`; empty if nothing was added."""
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
        if not progress.asked.any():
            shares = {}  # a method without a shift has no share of it to tell
        for name, per_layer in shares.items():
            # Where nothing moved yet, or a layer was asked nothing, no share of it was reached.
            per_layer = per_layer.nan_to_num()
            values[f"repr/{name}"] = per_layer.mean().item()
            values |= {
                f"repr/{name}/layer_{layer}": value
                for layer, value in zip(self._layers, per_layer.tolist(), strict=True)
            }
        self._clear()
        return values


def rows_of(data: Dataset, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig) -> Dataset:
    """Tokenised rows: `data` itself where it holds them, otherwise made of its pairs."""
    if "chosen_ids" in data.column_names:
        return data
    instructions = args.instructions if args.method in ("scit", "lorra") else None
    return tokenize_pairs(
        normalize_pairs(data),
        tokenizer,
        max_prompt_length=args.max_prompt_length,
        max_length=args.max_length,
        instructions=instructions,
    )[0]


def teach(
    names: Sequence[str],
    base: PreTrainedModel | PeftModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    args: RAHFConfig,
) -> dict[str, Path]:
    """Train teachers that were not given, into `output_dir/teachers`.

    Length, batch and device are those of `args`, unless `args.teacher_args` say otherwise.

    Raises:
        ValueError: the model carries an adapter already, so that a teacher cannot be put on it.
    """
    if isinstance(base, PeftModel):
        raise ValueError(
            f"method {args.method!r} needs the teachers {list(names)}, which cannot be trained on "
            "a model that carries an adapter already. Give them as teachers=, or give the base as "
            "model and peft_config beside it."
        )
    options = {name: getattr(args, name) for name in INHERITED_BY_TEACHERS}
    options |= args.teacher_args or {}
    folder = Path(args.output_dir) / "teachers"
    return train_teachers(names, base, rows, tokenizer, peft_config, folder, options, args.packing)


def collator_for(
    options: MethodOptions, tokenizer: PreTrainedTokenizerBase, packed: bool
) -> ContrastCollator:
    """The collator that the options ask for."""
    return ContrastCollator(
        pad_id(tokenizer),
        options.positions,
        options.tail_tokens,
        options.max_response_tokens,
        packed=packed,
    )


def fit_mean_shift(
    alignment: Alignment, rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig
) -> Directions:
    """The mean of the views' shift over the training responses, which each rank reads a part of."""
    state, collator = PartialState(), collator_for(args, tokenizer, alignment.packed)
    responses = Responses(rows, args.response_source, seed=args.seed)
    drawn = np.random.default_rng(args.seed).permutation(len(responses))[: args.mean_responses]
    indices = drawn[state.process_index :: state.num_processes].tolist()
    size, most = args.per_device_train_batch_size, -(-len(drawn) // state.num_processes)

    def batches() -> Iterator[tuple[Batch, bool]]:
        for start in range(0, most, size):
            # A base in pieces runs on all ranks or on none: one without rows left repeats its
            # first, and leaves it out.
            chosen = indices[start : start + size]
            filling = chosen or drawn[:1].tolist()
            yield collator([responses[index] for index in filling]), bool(chosen)

    return mean_shift(alignment, batches(), state.device)


def read_retained(
    policy: PeftModel, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig
) -> Sequence[list[int]]:
    """Ids of the retain term's texts: from a file, or sampled from the reference, or none."""
    if not args.reads_retained:
        return ()
    if args.retain_dataset_name:
        return tokenize_texts(
            args.retain_dataset_name, tokenizer, args.retain_rows, args.retain_tokens
        )
    with frozen_pass(policy, None if args.reference == "base" else args.reference):
        return sample_texts(
            policy, tokenizer, rows=args.retain_rows, tokens=args.retain_tokens, seed=args.seed
        )
