"""The options of a recipe: names, types, defaults and help, each in one place.

Knows no model, no data and no file: a check here uses the values alone. Reading YAML is
`recipe.py`, checks against files are `validation.py`. Imports neither torch nor transformers.

`python -m rahf.recipe.config` prints the reference of all recipe keys (docs/recipe.md).
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rahf.recipe.combinations import (
    cache_problems,
    data_problems,
    led_away_problems,
    pattern_problems,
    source_problems,
    term_problems,
    unread_problems,
)
from rahf.recipe.fields import (
    Count,
    CountFromZero,
    Limits,
    OrAny,
    Share,
    Weight,
    option,
    raise_problems,
    value_problems,
)
from rahf.recipe.layers import check_layers, resolve_layers
from rahf.recipe.measuring import CompareOptions, EvaluationOptions
from rahf.recipe.presets import ALL_TEACHERS, DEFAULT_INSTRUCTIONS, TEACHERS, own_settings

__all__ = [
    "ALL_TEACHERS",
    "DEFAULT_INSTRUCTIONS",
    "TEACHERS",
    "CompareOptions",
    "DataOptions",
    "EvaluationOptions",
    "MethodOptions",
    "ModelOptions",
    "TeacherOptions",
    "resolve_layers",
]

Method = Literal[
    "dual", "scit", "dpo_shift", "lorra", "direction", "circuit_breakers", "rmu", "repbend"
]


@dataclass(frozen=True)
class ModelOptions:
    """The model and the LoRA that is trained on it (names as in TRL's ModelConfig)."""

    model_name_or_path: str = field(
        metadata={"help": "Base model: a local folder or a Hub id. Required."}
    )
    model_revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32",
        "Number format of the frozen weights; adapters are trained in float32 whatever it is.",
    )
    attn_implementation: str | None = option(
        None,
        "Attention kernel (`eager`, `sdpa`, `flash_attention_2`); null: chosen by transformers.",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    load_in_4bit: bool = option(False, "Quantise the frozen weights to 4 bits (bitsandbytes).")
    load_in_8bit: bool = option(False, "Quantise the frozen weights to 8 bits (bitsandbytes).")
    lora_r: Count = option(8, "Rank of the adapters.")
    lora_alpha: Count = option(
        16, "LoRA's scale: an adapter's update is multiplied by lora_alpha / lora_r."
    )
    lora_dropout: Share = option(0.0, "Dropout on the input of an adapter while it is trained.")
    lora_target_modules: list[str] | str | None = option(
        None,
        "Modules that get an adapter: a list of names, `all-linear`, or a regular expression that "
        "matches whole names (model.layers.0.self_attn.q_proj); null: PEFT's default for the "
        "architecture.",
    )

    def __post_init__(self):
        problems = value_problems(self, ModelOptions)
        if not problems and self.load_in_4bit and self.load_in_8bit:
            problems.append("load_in_4bit and load_in_8bit are both true: set one of them to false")
        if not problems and isinstance(self.lora_target_modules, str):
            problems = pattern_problems(self.lora_target_modules)
        raise_problems(problems)


@dataclass(frozen=True)
class DataOptions:
    """The preference pairs (names as in TRL's ScriptArguments)."""

    dataset_name: str | None = option(
        None,
        "Preference pairs: a Hub id, a folder saved by `datasets`, a folder of split files "
        "(train.jsonl, test.jsonl), or a json, jsonl, jsonl.gz, csv or parquet file.",
    )
    dataset_config: str | None = option(None, "Configuration of a dataset on the Hub.")
    dataset_train_split: str = option("train", "Split that is trained on.")
    dataset_test_split: str | None = option(
        "test", "Split that is held out for evaluation; null: none."
    )
    datasets: list[dict] | None = option(
        None,
        "A mixture in place of dataset_name: a list of {path, name, split, columns, fraction}; "
        "only path is required.",
    )
    columns: dict[str, str] | None = option(
        None,
        "Where the columns prompt, chosen and rejected come from, as {wanted: given}; "
        "{chosen: rejected, rejected: chosen} swaps the sides.",
    )
    max_prompt_length: Count = option(
        256, "Tokens of a rendered prompt; a pair with a longer one is dropped."
    )
    max_length: Count = option(
        768, "Tokens of prompt and response together; a longer response loses its end."
    )
    chat_template: str | None = option(
        None,
        "Jinja text, or a file that holds it; null: the tokenizer's, or the plain template when it "
        "has none.",
    )
    dataset_num_proc: Count | None = option(None, "Processes that tokenise; null: one.")
    split_between_stages: bool = option(
        False,
        "Train the teachers on one half of the rows and the policy on the other (as published); "
        "false: all rows for both.",
    )

    def __post_init__(self):
        raise_problems(value_problems(self, DataOptions) or data_problems(self))


@dataclass
class MethodOptions:
    """What the policy's hidden states are moved towards, where, and how far.

    Not frozen, because RAHFConfig inherits it together with transformers.TrainingArguments, which
    is not frozen. Such a class calls `check_method` from its own `__post_init__`, beside that of
    TrainingArguments.
    """

    method: Method = option(
        "dual",
        "Where the shift comes from. dual: two teachers, one trained on chosen and one on rejected "
        "responses. scit: one teacher under a preferred and a dispreferred instruction. dpo_shift: "
        "one teacher trained by DPO, beside the base. lorra: the base model under the two "
        "instructions. direction: stored vectors. circuit_breakers, rmu, repbend: there is none; "
        "rejected responses are led away from the reference, and a recipe's other keys begin with "
        "the published values (see Presets).",
    )
    reference: Literal["base", "positive", "contrast", "preferred"] = option(
        "base",
        "Model whose hidden states are moved, and which the policy starts as: base, or a teacher "
        "of this method.",
    )
    response_source: Literal["chosen", "rejected", "both", "random"] | None = option(
        None,
        "Responses of a pair whose states are aligned; random: one of the two, drawn anew in each "
        "epoch. null: chosen for scit and lorra with a positive alpha and without pairs_together, "
        "otherwise both.",
    )
    max_response_tokens: Count = option(
        64, "Tokens of a response, from its start, whose states are aligned."
    )
    alpha: Annotated[float, OrAny(Literal["auto"] | None)] = option(
        None,
        "Strength: the target is reference + alpha * shift. Negative: away from the preferred "
        "side. auto: solved for kl_budget before the alignment. rmu: the length of the random "
        "vector that rejected responses are led to. Not read by circuit_breakers and repbend. "
        "null: 6 for scit and lorra, 4 for dual, otherwise 2.",
    )
    target_layers: Annotated[str, OrAny(int | float | list)] = option(
        "0.5-0.8",
        "Decoder blocks whose output is aligned, counted from 0: block numbers (12), fractions of "
        "the depth (0.5), ranges of either with both ends ('10-20', '10-20:2', '0.3-0.7', "
        "'0.3-0.6:0.1'), a list of these, or 'a,b,c'. auto: the window that "
        "raises the margin of held-out pairs the most, at equal kl_budget.",
    )
    kl_budget: Annotated[float, Limits(least=1e-6)] = option(
        0.5,
        "What alpha: auto is solved for: the policy's KL divergence from the base on neutral text, "
        "in nats per token. A policy that comes out above it is scaled back to it.",
    )
    distance: Literal["l2", "squared_l2"] = option(
        "l2", "Distance of a state to its target: the 2-norm, or its square."
    )
    layer_scale: Literal["none", "rms", "shift"] = option(
        "shift",
        "What the error of each layer is divided by. rms: size of the reference's states. shift: "
        "size of the asked shift, so that settings carry over between models; not for methods "
        "without one.",
    )
    positions: Literal["response", "response_and_tail"] = option(
        "response_and_tail",
        "States that are aligned. response: those of the response tokens (published). "
        "response_and_tail: the response and the end of the prompt.",
    )
    tail_tokens: Count = option(2, "Prompt tokens, from its end, that `response_and_tail` adds.")
    packing: bool = option(
        True,
        "Put the rows of a batch one after the other, without padding, where the model's attention "
        "is sdpa; false: pad them.",
    )
    pairs_together: bool | None = option(
        None,
        "Put both responses of a pair into one batch, where packed rows share their prompt; for "
        "response_source: both, with an even batch size. null: true where dual begins with a DPO "
        "term, otherwise false.",
    )
    target_cache: str | None = option(
        None,
        "Folder that keeps the states of the frozen views: they are computed once, and read in "
        "later epochs and by later trainings on the same rows, whatever their alpha, weights, "
        "rate or seed. Beside a KL or DPO term those of the retained texts alone. A training that "
        "needs more than the disk has free is refused. null: computed in every step.",
    )
    shift: Literal["token", "mean"] = option(
        "mean",
        "mean: one vector per layer, fitted once from the views. token: every token has its own "
        "shift (published). Read by dual, scit, dpo_shift and lorra.",
    )
    mean_responses: Count = option(
        1024, "Responses, drawn once, that the shift of `mean` is fitted on, if there are so many."
    )
    directions: str | None = option(
        None, "Stored directions; needed by method: direction, and by it alone."
    )
    instructions: dict[str, str] = option(
        DEFAULT_INSTRUCTIONS,
        "The instructions {positive, negative} of scit and lorra. Let them differ in the words "
        "that name the preference only.",
    )
    align_weight: Weight | None = option(
        None,
        "Weight of the distance of responses to their target; 0 leaves the other terms alone, to "
        "see what they do without it; null: 0.25 for lorra beside an SFT term, otherwise 1.",
    )
    retain_weight: Weight = option(
        0.5, "Weight of the retain term: other text, whose target is the reference."
    )
    retain_dataset_name: str | None = option(
        None, "File with the texts of the retain term; null: they are sampled from the model."
    )
    retain_rows: CountFromZero = option(64, "Texts of the retain term.")
    retain_tokens: Annotated[int, Limits(least=2)] = option(
        64, "Tokens of each text of the retain term."
    )
    kl_weight: Weight = option(
        0.0, "Weight of the KL divergence of the policy's predictions from the reference's."
    )
    kl_rows: Literal["responses", "retain"] = option(
        "responses", "Rows of the KL term: the aligned responses, or the texts of the retain term."
    )
    sft_weight: Weight | None = option(
        None,
        "Weight of the cross entropy on chosen responses; null: 2 for scit and lorra with "
        "response_source: chosen and a positive alpha, otherwise 0.",
    )
    dpo_weight: Weight | None = option(
        None,
        "Weight of the DPO loss of the aligned responses, held against the reference; with "
        "pairs_together: true. null: 1 for dual with reference: base, a positive alpha, both "
        "responses of a pair and no SFT term, otherwise 0.",
    )
    dpo_beta: Annotated[float, Limits(least=1e-6)] = option(
        0.1, "How near the DPO term holds the policy to the reference: DPO's beta."
    )
    rejected_weight: Weight = option(
        1.0,
        "circuit_breakers, rmu, repbend: weight of the term that leads rejected responses away.",
    )
    chosen_weight: Weight = option(
        0.0,
        "circuit_breakers, rmu, repbend: weight of the distance of chosen responses to the "
        "reference.",
    )
    similarity_weight: Weight = option(
        0.0,
        "circuit_breakers, rmu, repbend: weight of 1 - cosine between the rejected responses of a "
        "batch, each at its first aligned state.",
    )
    weights_over_time: Literal["constant", "crossing"] = option(
        "constant",
        "crossing: over the training the weight of rejected responses falls to a half, those of "
        "chosen responses and retained texts rise from 0 to a half (circuit_breakers, rmu, "
        "repbend).",
    )

    def __post_init__(self):
        self.check_method()

    @property
    def compares_predictions(self) -> bool:
        """Whether a term holds the policy's predictions against the reference's."""
        return bool(self.kl_weight or self.dpo_weight)

    @property
    def compares_retained(self) -> bool:
        """Whether one does so on the texts of the retain term."""
        return bool(self.kl_weight) and self.kl_rows == "retain"

    @property
    def reads_retained(self) -> bool:
        """Whether there are texts of a retain term at all."""
        return bool(self.retain_weight) or self.compares_retained

    @property
    def asks_views(self) -> bool:
        """Whether the shift is the difference of a positive and a negative view."""
        return self.method in ("dual", "scit", "dpo_shift", "lorra")

    @property
    def leads_away(self) -> bool:
        """Whether rejected responses are led away, and nothing is asked of others but to stay."""
        return self.method in ("circuit_breakers", "rmu", "repbend")

    @property
    def chooses(self) -> bool:
        """Whether layers or strength are left to the data."""
        return "auto" in (self.alpha, self.target_layers)

    def check_method(self) -> None:
        """Settles what is left to the method; raises OptionError with every problem."""
        problems = value_problems(self, MethodOptions)
        if not problems:
            for name, value in own_settings(self).items():
                setattr(self, name, value)
            problems = [
                *source_problems(self),
                *term_problems(self),
                *(() if self.target_cache is None else cache_problems(self)),
                *(led_away_problems(self) if self.leads_away else unread_problems(self)),
                *(check_layers(self.target_layers) if self.target_layers != "auto" else ()),
            ]
        raise_problems(problems)


@dataclass(frozen=True)
class TeacherOptions:
    """Step 1. A path names an existing teacher, which is then not trained.

    In a recipe, TrainingArguments keys may stand beside these: see `Recipe.teacher_training`.
    """

    positive: str | None = option(
        None, "Adapter or full model to use as the positive teacher (dual)."
    )
    negative: str | None = option(
        None, "Adapter or full model to use as the negative teacher (dual)."
    )
    contrast: str | None = option(
        None, "Adapter or full model to use as the contrast teacher (scit)."
    )
    preferred: str | None = option(
        None, "Adapter or full model to use as the preferred teacher (dpo_shift)."
    )
    beta: Annotated[float, Limits(least=1e-6)] = option(
        0.1, "How near the preferred teacher of dpo_shift is held to the base: DPO's beta."
    )
    label_smoothing: Share = option(
        0.2,
        "Share of the mismatched instruction in the contrast term of scit (HIR); 0: the paper's "
        "form.",
    )

    def __post_init__(self):
        raise_problems(value_problems(self, TeacherOptions))


if __name__ == "__main__":
    from rahf.recipe.reference import as_markdown

    print(as_markdown())
