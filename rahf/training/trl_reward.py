"""A reward model from preference pairs, by TRL's RewardTrainer: a judge of one's own pairs.

It reads what `RewardJudge` reads, the whole chat in its template. Knows pairs and TRL; knows no
method of alignment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, set_seed

from rahf.data.chat_format import ChatFormat, chat_format, prompt_messages
from rahf.data.pairs import usable_pairs
from rahf.foreign_warnings import new_head_expected
from rahf.generation.answers import pad_id
from rahf.models.adapters import load_tokenizer_of, oriented
from rahf.overrides import overrides
from rahf.recipe.training_arguments import without_checkpointing
from rahf.training.resumable_trainer import ResumableTrainer

DEFAULTS = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "center_rewards_coefficient": 0.01,
    "max_length": 1024,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "logging_steps": 10,
    "bf16": torch.cuda.is_available(),
    "dataloader_pin_memory": torch.cuda.is_available(),
}
"""Arguments of TRL's RewardConfig."""


def train_reward_model(
    model: str,
    pairs: Dataset,
    output_dir: str | Path,
    *,
    held_out: Dataset | None = None,
    lora_r: int = 16,
    dtype: str = "float32",
    chat_template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train and save a reward model, its tokenizer beside it.

    A run that was interrupted goes on from its last checkpoint.

    Args:
        model: folder or Hub id of a language model, which gets a head, or of a reward model.
        pairs, held_out: what `load_pairs` gives.
        lora_r: rank of the adapter; 0: all weights are trained.
        arguments: of RewardConfig, in place of `DEFAULTS`.

    Returns:
        TRL's figures of the training, and those on `held_out` (`eval_accuracy`, `eval_margin`).

    Raises:
        ValueError: TRL is not installed.
    """
    try:
        from trl import RewardConfig, RewardTrainer
    except ModuleNotFoundError:
        raise ValueError(
            "training a reward model needs TRL, which is not installed: pip install 'rahf[trl]'"
        ) from None

    class Trainer(ResumableTrainer, RewardTrainer):
        @overrides(RewardTrainer)
        def create_model_card(self, *args, **kwargs):
            pass  # TRL's, written with each checkpoint beside the model

    arguments = without_checkpointing({**DEFAULTS, **(arguments or {})})
    args = RewardConfig(output_dir=str(output_dir), **arguments)
    tokenizer = load_tokenizer_of(model)
    chat = chat_format(tokenizer, chat_template)
    # Saved with the tokenizer, so that whoever judges with the model renders as it was trained.
    tokenizer.chat_template = chat.template
    set_seed(args.seed)  # of the head, which is new
    with new_head_expected():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=dtype
        )
    classifier.config.pad_token_id = pad_id(tokenizer)
    trainer = Trainer(
        classifier,
        args,
        train_dataset=chats_of(pairs, chat),
        eval_dataset=None if held_out is None else chats_of(held_out, chat),
        processing_class=tokenizer,
        peft_config=oriented(
            LoraConfig(r=lora_r, lora_alpha=2 * lora_r, task_type="SEQ_CLS"), classifier
        )
        if lora_r
        else None,
    )
    figures = trainer.train(resume_from_checkpoint=trainer.last_checkpoint()).metrics
    if held_out is not None:
        figures |= trainer.evaluate() | {"eval_pairs": len(trainer.eval_dataset)}
    trainer.save_model()
    return figures


def chats_of(pairs: Dataset, chat: ChatFormat) -> Dataset:
    """Usable pairs in TRL's conversational form, system text where the template can take it."""

    def rows():
        for pair in usable_pairs(pairs):
            prompt = prompt_messages(pair["prompt"], chat)
            yield {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": pair["chosen"]}],
                "rejected": [{"role": "assistant", "content": pair["rejected"]}],
            }

    messages = List({"role": Value("string"), "content": Value("string")})
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected"), messages))
    return Dataset.from_list(list(rows()), features=features)
