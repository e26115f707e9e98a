"""A reward model from preference pairs, by TRL's RewardTrainer: a judge of one's own pairs.

It reads what `RewardJudge` reads, the full chat in its template. Knows pairs and TRL; knows no
method of alignment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rahf.data.chat_format import ChatFormat, chat_format, prompt_messages
from rahf.data.messages import Message, answered
from rahf.data.pairs import usable_pairs, whole_pair
from rahf.models.adapters import load_tokenizer_of, pad_id
from rahf.models.classifiers import load_to_train
from rahf.models.lora_targets import on_all_blocks
from rahf.recipe.training_arguments import without_checkpointing
from rahf.training.adapter_trainer import keep_base_absolute
from rahf.training.resumable_trainer import check_finite_figures, resumable

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
    """Train and save a reward model; return TRL's figures, with those on `held_out`.

    Args:
        model: folder or Hub id of a language or reward model; lora_r: 0 trains all its weights.
        arguments: of RewardConfig, in place of `DEFAULTS`.

    Raises:
        ValueError: TRL is not installed; a loss, a weight or a held-out figure is inf or nan.
    """
    config_class, trainer_class = _trl()
    given = without_checkpointing({**DEFAULTS, **(arguments or {})})
    args = config_class(output_dir=str(output_dir), **given)
    tokenizer, chat = _tokenizer(model, chat_template)
    classifier = _classifier(model, dtype, pad_id(tokenizer), args.seed)
    trainer = trainer_class(
        classifier,
        args,
        train_dataset=chats_of(pairs, chat),
        eval_dataset=None if held_out is None else chats_of(held_out, chat),
        processing_class=tokenizer,
        peft_config=_lora(lora_r, classifier) if lora_r else None,
    )
    keep_base_absolute(trainer.model)
    figures = trainer.train(resume_from_checkpoint=trainer.last_checkpoint()).metrics
    if held_out is not None:
        figures |= trainer.evaluate() | {"eval_pairs": len(trainer.eval_dataset)}
    check_finite_figures(figures)
    trainer.save_model()
    return figures


def _trl() -> tuple[type, type]:
    """Return RewardConfig and RewardTrainer, the latter resumable.

    Raises:
        ValueError: TRL is not installed.
    """
    try:
        from trl import RewardConfig, RewardTrainer
    except ModuleNotFoundError:
        raise ValueError(
            "training a reward model needs TRL, which is not installed: pip install 'rahf[trl]'"
        ) from None
    return RewardConfig, resumable(RewardTrainer)


def _tokenizer(name: str, chat_template: str | None) -> tuple[PreTrainedTokenizerBase, ChatFormat]:
    """Return the tokenizer, which is saved with the template that the model is trained with."""
    tokenizer = load_tokenizer_of(name)
    chat = chat_format(tokenizer, chat_template)
    tokenizer.chat_template = chat.template
    return tokenizer, chat


def _classifier(name: str, dtype: str, pad_token_id: int, seed: int) -> PreTrainedModel:
    """Return the model with a head of one score, drawn by the seed on a language model."""
    set_seed(seed)
    model = load_to_train(name, {"dtype": dtype})
    model.config.pad_token_id = pad_token_id
    return model


def _lora(rank: int, model: PreTrainedModel) -> LoraConfig:
    return on_all_blocks(LoraConfig(r=rank, lora_alpha=2 * rank, task_type="SEQ_CLS"), model)


NOT_READ = ("tools", "tool_calls", "function_call", "reasoning_content")
"""Keys of messages that TRL's columns of plain messages cannot hold."""


def chats_of(pairs: Dataset, chat: ChatFormat) -> Dataset:
    """Return usable pairs in TRL's conversational form, system text where the template takes it.

    Raises:
        ValueError: a message has a key that is `NOT_READ`.
    """

    def rows():
        for row in usable_pairs(pairs):
            pair = whole_pair(row)
            found = {key for message in (*pair.prompt, *pair[1:]) for key in message}
            for key in found.intersection(NOT_READ):
                raise ValueError(
                    f"row {row['row']}: the messages hold {key}, which a reward model is not "
                    "trained on: give pairs without, or with the text of it in `content`."
                )
            prompt = prompt_messages(pair.prompt, chat)
            sides = {
                name: [_plain(answered(prompt, response)[-1])]
                for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
            }
            continued = prompt[-1]["role"] == "assistant"
            yield {"prompt": list(map(_plain, prompt[: -1 if continued else None])), **sides}

    messages = List({"role": Value("string"), "content": Value("string")})
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected"), messages))
    return Dataset.from_list(list(rows()), features=features)


def _plain(message: Message) -> Message:
    return {key: message[key] for key in ("role", "content")}
