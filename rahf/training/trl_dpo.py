"""DPO on a recipe's rows by TRL's DPOTrainer: the baseline that an alignment is compared with.

The rows, the LoRA and the lengths are those of the recipe, so that nothing but the method differs.
Knows rows and TRL; knows no recipe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from rahf.artifacts import write_lines
from rahf.models.lora_targets import on_all_blocks
from rahf.recipe.training_arguments import without_checkpointing
from rahf.training.adapter_trainer import keep_base_absolute, save_policy
from rahf.training.resumable_trainer import check_finite_weights, resumable, trained_weights

DEFAULTS = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "logging_steps": 10,
    "report_to": "none",
    "dataloader_pin_memory": torch.cuda.is_available(),
}
"""Arguments of TRL's DPOConfig."""

ROW_COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def train_dpo(
    base: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: LoraConfig,
    output_dir: str | Path,
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """Train a LoRA on tokenised pairs and save it in `output_dir`, with its log.

    An interrupted run resumes from its last checkpoint.

    Args:
        rows: what `tokenize_pairs` gives: already cut to the recipe's lengths.
        arguments: of DPOConfig (`beta`, `learning_rate`, `max_steps`, ...), in place of `DEFAULTS`.

    Returns:
        TRL's figures of the training as a whole.

    Raises:
        ValueError: TRL is not installed; a loss or a weight became inf or nan.
    """
    config_class, trainer_class = _trl()
    arguments = without_checkpointing({**DEFAULTS, **arguments})
    args = config_class(output_dir=str(output_dir), max_length=None, **arguments)
    set_seed(args.seed)
    trainer = trainer_class(
        base,
        args=args,
        # TRL tokenises what it is given, and then reads our rows, whose columns its collator takes.
        train_dataset=Dataset.from_list([{"prompt": "a\n", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer,
        peft_config=on_all_blocks(peft_config, base),
    )
    keep_base_absolute(trainer.model)
    trainer.train_dataset = rows.select_columns(ROW_COLUMNS)
    figures = trainer.train(resume_from_checkpoint=trainer.last_checkpoint()).metrics
    if args.should_save:
        _save(trainer, tokenizer, Path(output_dir))
    return figures


def _trl() -> tuple[type, type]:
    """Return DPOConfig and DPOTrainer, the latter resumable."""
    try:
        from trl import DPOConfig, DPOTrainer
    except ModuleNotFoundError:
        raise ValueError("DPO needs TRL, which is not installed: pip install 'rahf[trl]'") from None
    return DPOConfig, resumable(DPOTrainer)


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_finite_weights(trained_weights(model), trainer.state.global_step)
    folder.mkdir(parents=True, exist_ok=True)
    save_policy(model, folder)
    tokenizer.save_pretrained(folder)
    write_lines(folder / "log.jsonl", trainer.state.log_history)
