"""RAHFConfig: the options of the method beside the training arguments of transformers."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from rahf.recipe.combinations import batch_problems
from rahf.recipe.config import MethodOptions
from rahf.recipe.fields import raise_problems
from rahf.recipe.training_arguments import tracker_problems


@dataclass
class RAHFConfig(MethodOptions, TrainingArguments):
    """Options of the method beside those of transformers.TrainingArguments."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Learning rate over time."}
    )
    logging_steps: float = field(
        default=1, metadata={"help": "Steps between two lines of the log."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off: the collator reads every column."}
    )
    max_prompt_length: int = field(
        default=256, metadata={"help": "Pairs with a longer prompt are dropped."}
    )
    max_length: int = field(
        default=768, metadata={"help": "Tokens of prompt and response; responses are cut at it."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Jinja text, or a file that holds it; None: the tokenizer's."},
    )
    model_init_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Arguments of from_pretrained, where the model is given by name."},
    )
    teacher_args: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "TrainingArguments and label_smoothing for the teachers that are trained."
        },
    )

    def __post_init__(self):
        self.check_method()
        if self.chooses:
            raise ValueError(
                "alpha: auto and target_layers: auto are chosen by the stage `choice` of rahf "
                "align, before there is a trainer; give a number and layers here."
            )
        raise_problems(
            batch_problems(self, self.per_device_train_batch_size, self.per_device_eval_batch_size)
            + tracker_problems(self.report_to)
        )
        TrainingArguments.__post_init__(self)
