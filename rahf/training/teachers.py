"""Step 1: teach an adapter what is preferred, so that its hidden states separate the two sides.

DUAL trains two adapters by supervised fine-tuning, `positive` on chosen and `negative` on rejected
responses. SCIT trains one, `contrast`, to distinguish a matching instruction from a mismatched one.
One more, `preferred`, learns by DPO. Knows pairs and likelihoods; knows no target states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rahf.data.rows import rows_of_ids, with_context
from rahf.models.adapters import attach_policy, depth_of, frozen_pass, pad_id
from rahf.models.likelihood import likelihood
from rahf.models.packing import use_packed_attention
from rahf.objective import dpo_loss
from rahf.recipe.shift_options import TeacherOptions
from rahf.recipe.training_arguments import TRAINING_DEFAULTS
from rahf.training.adapter_trainer import AdapterTrainer, ItemLoss

TEACHER_DEFAULTS = TRAINING_DEFAULTS
"""Those of the alignment: at transformers' 5e-5, falling to 0, a LoRA is hardly taught."""


def contrastive_loss(
    match: Float[Tensor, " rows"], mismatch: Float[Tensor, " rows"], smoothing: float
) -> Float[Tensor, " rows"]:
    """Return the loss of contrastive instruction tuning of one response (RAHF section 3.1, smoothed
    as in hindsight instruction relabelling).

    `- m - (1 - eps) log(P_m / (P_m + P_x)) - eps log(P_x / (P_m + P_x))` with P = exp(mean
    log-probability per token).

    Args:
        match: mean log-probability per response token under the instruction that fits it (m, nats).
        mismatch: the same under the other instruction (x).
        smoothing: eps; 0 is the form of the paper.
    """
    difference = match - mismatch
    separation = nn.functional.logsigmoid(difference)
    taken_for_other = nn.functional.logsigmoid(-difference)
    return -match - (1 - smoothing) * separation - smoothing * taken_for_other


@dataclass(frozen=True)
class SideCollator:
    """Rows of one side of the pairs: the prompt, then the chosen or the rejected response."""

    pad_token_id: int
    side: str
    packed: bool = False
    together: int | None = None  # rows that may share a beginning, see `packed_rows`

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts = [pair["prompt_ids"] for pair in pairs]
        responses = [pair[f"{self.side}_ids"] for pair in pairs]
        return {
            "row": torch.tensor([pair["row"] for pair in pairs]),
            "rows": rows_of_ids(prompts, responses, self.pad_token_id, self.packed, self.together),
        }


@dataclass(frozen=True)
class InstructionCollator:
    """Return both responses of a pair after the instruction that fits; then all after the other.
    One block, and so one forward: a wrapped model synchronises once a step.
    """

    pad_token_id: int
    packed: bool = False

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        responses = [pair[f"{side}_ids"] for pair in pairs for side in ("chosen", "rejected")]
        fits = [pair[f"{view}_prompt_ids"] for pair in pairs for view in ("positive", "negative")]
        other = [pair[f"{view}_prompt_ids"] for pair in pairs for view in ("negative", "positive")]
        return {
            "row": torch.tensor([pair["row"] for pair in pairs for _ in range(2)]),
            "rows": rows_of_ids(fits + other, 2 * responses, self.pad_token_id, self.packed),
        }


@dataclass(frozen=True)
class PairCollator:
    """Both responses after their prompt, which packed rows share."""

    pad_token_id: int
    packed: bool = False
    together: int | None = None  # rows that may share a beginning, see `packed_rows`

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts = [pair["prompt_ids"] for pair in pairs for _ in range(2)]
        responses = [pair[f"{side}_ids"] for pair in pairs for side in ("chosen", "rejected")]
        return {
            "row": torch.tensor([pair["row"] for pair in pairs]),
            "rows": rows_of_ids(prompts, responses, self.pad_token_id, self.packed, self.together),
        }


class SideTrainer(AdapterTrainer):
    """Supervised fine-tuning: an item is a response token, its cost the cross entropy (nats)."""

    def items_of_rows(self, batch):
        owners = batch["rows"]["owner"][with_context(batch["rows"])]
        return torch.bincount(owners, minlength=len(batch["row"]))

    def item_loss(self, model, batch):
        return ItemLoss(-likelihood(model, batch["rows"]).sums(), batch["row"])


class InstructionTrainer(AdapterTrainer):
    """Contrastive instruction tuning: an item is a response."""

    rows_of_example = 2

    def __init__(self, *args, smoothing: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.smoothing = smoothing

    def items_of_rows(self, batch):
        return torch.ones_like(batch["row"])

    def item_loss(self, model, batch):
        match, mismatch = likelihood(model, batch["rows"]).means().chunk(2)
        return ItemLoss(contrastive_loss(match, mismatch, self.smoothing), batch["row"])


class PreferenceTrainer(AdapterTrainer):
    """Direct preference optimisation from the base: an item is a pair."""

    def __init__(self, model: PeftModel, *args, beta: float, **kwargs):
        self.unwrapped, self.beta = model, beta
        super().__init__(model, *args, **kwargs)

    def items_of_rows(self, batch):
        return torch.ones_like(batch["row"])

    def item_loss(self, model, batch):
        with frozen_pass(self.unwrapped, None):
            base = likelihood(self.unwrapped, batch["rows"]).sums()
        per_pair = dpo_loss(likelihood(model, batch["rows"]).sums(), base, self.beta)
        return ItemLoss(per_pair, batch["row"])


def train_teacher(
    name: str,
    base: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    args: TrainingArguments,
    smoothing: float = TeacherOptions.label_smoothing,
    beta: float = TeacherOptions.beta,
    packing: bool = True,
) -> AdapterTrainer:
    """Train the teacher `name` on tokenised pairs and save it in `args.output_dir`; `base` is left
    as it was.

    An interrupted run resumes from its last checkpoint.
    """
    pad, packed = pad_id(tokenizer), packing and use_packed_attention(base)
    common = {"args": args, "train_dataset": rows, "processing_class": tokenizer}
    set_seed(args.seed)
    model = attach_policy(base, peft_config, range(depth_of(base)))
    if name == "contrast":
        trainer = InstructionTrainer(
            model, data_collator=InstructionCollator(pad, packed), smoothing=smoothing, **common
        )
    elif name == "preferred":
        trainer = PreferenceTrainer(
            model, data_collator=PairCollator(pad, packed), beta=beta, **common
        )
    else:
        side = {"positive": "chosen", "negative": "rejected"}[name]
        trainer = SideTrainer(model, data_collator=SideCollator(pad, side, packed), **common)
    trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    trainer.save_model()
    model.unload()
    return trainer


def train_teachers(
    names: Sequence[str],
    base: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    folder: str | Path,
    options: Mapping[str, Any],
    packing: bool = True,
) -> dict[str, Path]:
    """Train several teachers on the same rows, each into `folder / name`.

    Args:
        options: arguments of TrainingArguments, `label_smoothing` for the contrast teacher and
            `beta` for the preferred one.
    """
    options = {**TEACHER_DEFAULTS, **options}
    smoothing = options.pop("label_smoothing", TeacherOptions.label_smoothing)
    beta = options.pop("beta", TeacherOptions.beta)
    folders = {name: Path(folder) / name for name in names}
    for name, output_dir in folders.items():
        args = TrainingArguments(output_dir=str(output_dir), **options)
        train_teacher(name, base, rows, tokenizer, peft_config, args, smoothing, beta, packing)
    return folders
