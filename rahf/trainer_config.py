"""The options of RAHFTrainer: those of the method, and transformers' TrainingArguments.

Knows no model and no data. Checked once, when the options are made.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from rahf.recipe.data_options import DataOptions
from rahf.recipe.fields import raise_problems
from rahf.recipe.method_options import MethodOptions, batch_problems
from rahf.recipe.methods import with_defaults
from rahf.recipe.trackers import tracker_problems
from rahf.recipe.training_arguments import TRAINING_DEFAULTS
from rahf.recipe.unsupported import unsupported_problems


def _default(name: str, help: str) -> Any:
    return field(default=TRAINING_DEFAULTS[name], metadata={"help": help})


def _of_data(name: str) -> Any:
    """Return a field with the default and the help text of the recipe's key of this name."""
    spec = DataOptions.__dataclass_fields__[name]
    return field(default=spec.default, metadata=spec.metadata)


@dataclass
class TrainerOptions(MethodOptions, TrainingArguments):
    """The fields of RAHFConfig, with defaults that hold for every method."""

    learning_rate: float = _default("learning_rate", "Peak learning rate.")
    lr_scheduler_type: str = _default("lr_scheduler_type", "Learning rate over time.")
    logging_steps: float = _default(
        "logging_steps", "Number of steps between two lines of the log."
    )
    remove_unused_columns: bool = _default(
        "remove_unused_columns", "Off: the collator reads every column."
    )
    max_prompt_length: int = _of_data("max_prompt_length")
    max_length: int = _of_data("max_length")
    chat_template: str | None = _of_data("chat_template")
    model_init_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Arguments of from_pretrained, where the model is given by name."},
    )
    teacher_args: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "TrainingArguments, label_smoothing and beta for the teachers that are trained."
        },
    )

    def __post_init__(self) -> None:
        self.check_method()
        if self.chooses:
            raise ValueError(
                "alpha: auto and target_layers: auto are chosen by the stage `choice` of rahf "
                "align, before there is a trainer; give a number and layers here."
            )
        raise_problems(
            batch_problems(self, self.per_device_train_batch_size, self.per_device_eval_batch_size)
            + tracker_problems(self.report_to)
            + unsupported_problems(vars(self))
        )
        TrainingArguments.__post_init__(self)


class RAHFConfig(TrainerOptions):
    """Options of the method beside those of transformers.TrainingArguments.

    An omitted option gets the default of the method (`rahf.recipe.methods.METHODS`), or else that
    of the field; the LoRA is set by a LoraConfig. A parser that sets every field, such as
    HfArgumentParser, sets the defaults of the fields.

    Raises:
        ValueError: with every problem of the options.
    """

    def __init__(self, output_dir: str | None = None, **options: Any):
        known = {spec.name for spec in fields(TrainerOptions)}
        whole = with_defaults(options)
        taken = {key: value for key, value in whole.items() if key in known or key in options}
        super().__init__(output_dir=output_dir, **taken)
