"""What a training is made of: rows, teachers, mean shift, retained texts and target cache.

`prepare` puts the parts together for the trainer; the pipeline uses them one by one. Knows options,
models and rows; takes no optimiser step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rahf.alignment import Alignment, build_alignment
from rahf.data.contrast import Batch, ContrastCollator, Responses
from rahf.data.pairs import normalize_pairs
from rahf.data.summary import DataReport
from rahf.data.tokenization import tokenize_pairs, tokenize_texts
from rahf.directions.fitters import Differences, MeanDifference
from rahf.directions.vectors import Directions, check_finite_states
from rahf.distributed.sharding import gathered, take_over_sharding
from rahf.generation.answers import sample_texts
from rahf.models.adapters import base_model, frozen_pass, pad_id
from rahf.models.capture import Trunk
from rahf.models.limits import check_rows
from rahf.objective import row_mean
from rahf.recipe.method_options import MethodOptions
from rahf.report.progress import timed
from rahf.terms import scored_kinds, terms_of
from rahf.trainer_config import RAHFConfig
from rahf.training.target_cache import TargetCache, open_cache
from rahf.training.teachers import train_teachers
from rahf.views import views_of

INHERITED_BY_TEACHERS = (
    *("seed", "max_steps", "num_train_epochs", "bf16", "fp16", "use_cpu", "report_to"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "dataloader_pin_memory", "disable_tqdm", "deepspeed", "fsdp"),
    *("logging_steps", "logging_strategy", "logging_first_step"),
)
"""Arguments that the training of missing teachers inherits from the alignment."""


class Prepared(NamedTuple):
    """What a training is made of, beside its rows."""

    alignment: Alignment
    collator: ContrastCollator
    retained: Sequence[list[int]]  # ids of the texts of the retain term
    target_cache: TargetCache | None
    sampling_seconds: float  # that reading or sampling the retained texts took


def prepare(
    base: PreTrainedModel | PeftModel,
    args: RAHFConfig,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    teachers: Mapping[str, str | Path | PreTrainedModel],
    directions: Directions | None,
    retained: Sequence[list[int]] | None,
) -> Prepared:
    """Train the teachers that are missing, build the alignment, and fit or read what it needs.

    Args:
        directions: a stored shift; fitted where it is None and the options require a mean shift.
        retained: ids of retained texts; None: read or sampled by the options.
    """
    views = views_of(args.method, args.reference, stored_shift=directions is not None)
    check_rows(base, rows, pad_id(tokenizer))
    missing = [name for name in views.teachers() if name not in teachers]
    if missing:
        teachers = {**teachers, **teach(missing, base, rows, tokenizer, peft_config, args)}
    set_seed(args.seed)
    alignment = build_alignment(base, args, peft_config, teachers, directions, seed=args.seed)
    with gathered(alignment.model):
        if args.shift == "mean" and views.positive is not None:
            alignment = alignment.towards(fit_mean_shift(alignment, rows, tokenizer, args))
        start = perf_counter()
        if retained is None:
            retained = read_retained(alignment.model, tokenizer, args)
        seconds = perf_counter() - start
    collator = collator_for(args, tokenizer, alignment.packed)
    cache = None
    if args.target_cache is not None:
        autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else "none"
        cache = open_cache(alignment, teachers, rows, retained, autocast, collator)
    return Prepared(alignment, collator, retained, cache, seconds)


def base_on_device(
    model: str | PreTrainedModel | PeftModel, args: RAHFConfig
) -> PreTrainedModel | PeftModel:
    """Return the base, loaded where it is given by name, on the device of this process unless
    `model_init_kwargs` places it.
    """
    take_over_sharding()
    placed = "device_map" in (args.model_init_kwargs or {})
    return base_model(model, args.model_init_kwargs, None if placed else args.device)


def rows_of(data: Dataset, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig) -> Dataset:
    """Return tokenised rows: `data` itself where it holds them, otherwise made of its pairs."""
    if not isinstance(data, Dataset):
        raise ValueError(
            f"train_dataset or eval_dataset is {type(data).__name__}: shares, orders and resumed "
            "runs need rows with numbers, which a stream lacks. Load it without streaming=True, "
            "or write it to a file first."
        )
    if "chosen_ids" in data.column_names:
        return data
    lengths = {"max_prompt_length": args.max_prompt_length, "max_length": args.max_length}
    return tokenized(normalize_pairs(data), tokenizer, args, **lengths)[0]


def tokenized(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    options: MethodOptions,
    *,
    instructed: bool = False,
    **how: Any,
) -> tuple[Dataset, DataReport]:
    """Tokenise normalised pairs, with the instructions that the views of the method read.

    Args:
        instructed: with the instructions, whatever the method.
        how: further arguments of `tokenize_pairs`.

    Raises:
        ValueError: both instructions give a row the same prompt.
    """
    instructed = instructed or options.facts.instructed
    instructions = options.instructions if instructed else None
    rows, report = tokenize_pairs(pairs, tokenizer, instructions=instructions, **how)
    if instructed:
        check_views_differ(rows)
    return rows, report


def check_views_differ(rows: Dataset) -> None:
    """Refuse rows whose prompt is the same under both instructions: their shift would be zero.

    Raises:
        ValueError: the first such row.
    """
    columns = ["row", "positive_prompt_ids", "negative_prompt_ids"]
    for part in rows.select_columns(columns).iter(batch_size=1000):
        for row, positive, negative in zip(*(part[name] for name in columns), strict=True):
            if positive == negative:
                raise ValueError(
                    f"row {row}: both instructions give the same prompt ids, so its shift would be "
                    "zero. The chat template drops the instructions, or they tokenise alike: "
                    "change instructions.positive or instructions.negative, or the template."
                )


def teach(
    names: Sequence[str],
    base: PreTrainedModel | PeftModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    args: RAHFConfig,
) -> dict[str, Path]:
    """Train teachers that were not given, into `output_dir/teachers`.

    Length, batch and device are those of `args`, unless `args.teacher_args` gives others.

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
    """Return the collator that the options and their terms need."""
    return ContrastCollator(
        pad_id(tokenizer),
        options.positions,
        options.tail_tokens,
        options.max_response_tokens,
        packed=packed,
        scored=scored_kinds(terms_of(options)),
    )


def fit_mean_shift(
    alignment: Alignment, rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig
) -> Directions:
    """Fit the mean of the views' shift over the training responses, which the ranks share out."""
    state, collator = PartialState(), collator_for(args, tokenizer, alignment.packed)
    collator = replace(collator, scored=())  # a shift is read from states only
    responses = Responses(rows, args.response_source, seed=args.seed)
    drawn = np.random.default_rng(args.seed).permutation(len(responses))[: args.mean_responses]
    indices = drawn[state.process_index :: state.num_processes].tolist()
    size, most = args.per_device_train_batch_size, -(-len(drawn) // state.num_processes)

    def batches() -> Iterator[tuple[Batch, bool]]:
        for start in timed(range(0, most, size), "mean shift"):
            # A sharded base runs on all ranks or on none: a rank without rows left repeats the
            # first row, which then counts for nothing.
            chosen = indices[start : start + size]
            filling = chosen or drawn[:1].tolist()
            yield collator([responses[index] for index in filling]), bool(chosen)

    return mean_shift(alignment, batches(), state.device)


def mean_shift(
    alignment: Alignment, batches: Iterable[tuple[Batch, bool]], device: torch.device
) -> Directions:
    """Return the mean of the views' shift over all responses of `batches`, the same on every rank.

    Args:
        batches: each with whether it counts; a batch that does not is run and then omitted.
    """
    fitter = MeanDifference()
    for batch, counts in batches:
        batch = send_to_device(batch, device)
        trunk, responses = Trunk(alignment.trunk_depth), len(batch["row"])
        shift = alignment.frozen_views.shift(batch, trunk=trunk)
        owner = batch["reference"]["aligned_owner"][: batch["aligned_responses"]]
        flat = row_mean(shift.transpose(1, 2).flatten(0, 1), owner, responses)
        means = flat.view(shift.shape[0], -1, responses).transpose(1, 2)
        check_finite_states(means, alignment.layers, batch["row"].tolist())
        fitter.update(Differences(means, means.new_full((responses,), float(counts))))
    fitter.reduce()
    options = alignment.options
    made_with = {"positions": options.positions, "method": options.method, "fit": "mean"}
    made_with |= {"responses": str(round(fitter.weight))}
    shift = alignment.without_protected(fitter.vectors().cpu())
    return Directions(alignment.layers, shift, made_with)


def read_retained(
    policy: PeftModel, tokenizer: PreTrainedTokenizerBase, args: RAHFConfig
) -> Sequence[list[int]]:
    """Return the ids of retained texts: from a file, sampled from the reference, or none."""
    if not args.reads_retained:
        return ()
    if args.retain_dataset_name:
        return tokenize_texts(
            args.retain_dataset_name, tokenizer, args.retain_rows, args.retain_tokens
        )
    with frozen_pass(policy, None if args.reference == "base" else args.reference):
        return sample_texts(
            policy,
            tokenizer,
            rows=args.retain_rows,
            tokens=args.retain_tokens,
            seed=args.seed,
            progress=args.should_log and not args.disable_tqdm,
        )
