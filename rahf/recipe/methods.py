"""The methods: what is particular to each of them. Every other module reads it here.

A method is a row of `METHODS`: the views whose difference is its shift, the teachers of these
views, its terms, its own defaults of keys, and its published settings. Knows no model; imports no
torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

DEFAULT_INSTRUCTIONS = {
    "positive": "Answer as a careful reader would prefer: helpful, honest and harmless.",
    "negative": "Answer as a careful reader would reject: unhelpful, dishonest and harmful.",
}
"""They differ in the words that name the preference and in nothing else: same sentence, same
punctuation, about the same length. Their difference is then the preference, not the form.
"""


class View(NamedTuple):
    """A frozen model on one block of rows."""

    rows: Literal["reference", "positive", "negative"]  # block of the batch
    teacher: str | None  # adapter or full model; None: the base


class Views(NamedTuple):
    """The three views of one response; a method without a shift of its own has the first only."""

    reference: View
    positive: View | None
    negative: View | None

    def teachers(self) -> tuple[str, ...]:
        """Return the names of the teachers that the views need, each once."""
        views = (self.positive, self.negative, self.reference)
        named = (view.teacher for view in views if view is not None)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def without_shift(self) -> "Views":
        """Return the reference without the other views: a stored shift takes their place."""
        return self._replace(positive=None, negative=None)


@dataclass(frozen=True)
class Method:
    """One method. `defaults` and `published` map keys of a recipe to values."""

    title: str  # as a model card names it
    sentence: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    paper: str = "2312.15997"  # arXiv
    positive: View | None = None
    negative: View | None = None
    teachers: tuple[str, ...] = ()  # adapters of step 1, in the order of their training
    references: tuple[str, ...] = ("base",)  # models whose states may be moved
    reads_directions: bool = False  # the shift is stored directions that the user gives
    # Distance by which rejected responses are pushed away from the reference; `distance`: the one
    # of that option.
    pushes_by: Literal["relu_cosine", "away", "distance"] | None = None
    random_target: bool = False  # rejected responses are pushed towards a random vector
    kl_temperature: float = 1.0  # of both predictions in the KL term
    needs_similarity: bool = False  # no other term has a gradient at the reference

    @property
    def contrasts_views(self) -> bool:
        """Return whether the shift is the difference of a positive and a negative view."""
        return self.positive is not None

    @property
    def instructed(self) -> bool:
        """Return whether the views differ by an instruction in front of the prompt."""
        return self.positive is not None and self.positive.rows == "positive"

    @property
    def pushes_away(self) -> bool:
        """Return whether rejected responses are pushed away from the reference."""
        return self.pushes_by is not None

    def views(self, reference: str) -> Views:
        """Return the views with `reference` (one of `references`) as the model that is moved."""
        moved = View("reference", None if reference == "base" else reference)
        return Views(moved, self.positive, self.negative)


# RAHF's authors align without a retain term, towards a shift far beyond the teachers. Blocks 9 to
# 19 (dual) and 9 to 17 (scit) of 32, every second one.
_RAHF_PUBLISHED = {
    "positions": "response",
    "alpha": 5.0,
    "shift": "token",
    "retain_weight": 0.0,
    "sft_weight": 0.0,
    "dpo_weight": 0.0,
    "pairs_together": False,
    "distance": "l2",
    "layer_scale": "none",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
}

# What did best here with two instructions (recipes/smollm2-135m/README.md): an SFT term on the
# chosen side changes more.
_INSTRUCTED = {"alpha": 6.0, "response_source": "chosen", "sft_weight": 2.0}

# The neighbours' published LoRA.
_NEIGHBOUR_LORA = {
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": "all-linear",
}

# Blocks 9 and 19 of the 32 of the published models.
_CIRCUIT_BREAKERS = {
    "target_layers": "0.3,0.62",
    "response_source": "both",
    "pairs_together": True,
    "positions": "response",
    "max_response_tokens": 512,
    "distance": "l2",
    "layer_scale": "none",
    "rejected_weight": 10.0,
    "chosen_weight": 5.0,
    "retain_weight": 5.0,
    "weights_over_time": "crossing",
    **_NEIGHBOUR_LORA,
    "learning_rate": 1e-4,
    "max_steps": 150,
    "per_device_train_batch_size": 16,
}

# Block 7 of 32.
_RMU = {
    "target_layers": "0.22",
    "response_source": "rejected",
    "positions": "response",
    "max_response_tokens": 512,
    "alpha": 6.5,
    "distance": "squared_l2",
    "layer_scale": "none",
    "retain_weight": 1200.0,
    "retain_tokens": 512,
    "lora_target_modules": "all-linear",
    "max_steps": 150,
    "per_device_train_batch_size": 4,
}

# Blocks 19 to 29 of 32.
_REPBEND = {
    "target_layers": "0.6-0.95",
    "response_source": "both",
    "pairs_together": True,
    "positions": "response_and_tail",
    "tail_tokens": 1,
    "max_response_tokens": 512,
    "distance": "l2",
    "layer_scale": "none",
    "rejected_weight": 0.5,
    "chosen_weight": 0.5,
    "similarity_weight": 0.1,
    "retain_weight": 0.0,
    "kl_weight": 0.3,
    "kl_rows": "retain",
    **_NEIGHBOUR_LORA,
    "learning_rate": 1e-5,
    "max_steps": 450,
    "per_device_train_batch_size": 16,
}

METHODS: dict[str, Method] = {
    "dual": Method(
        title="RAHF-DUAL",
        sentence="two teachers, one trained on chosen and one on rejected responses",
        positive=View("reference", "positive"),
        negative=View("reference", "negative"),
        teachers=("positive", "negative"),
        references=("base", "positive"),
        # Two teachers separate the sides; a DPO term separates them further.
        defaults={"alpha": 4.0, "pairs_together": True, "dpo_weight": 1.0},
        published={
            **_RAHF_PUBLISHED,
            "reference": "positive",
            "response_source": "both",
            "max_response_tokens": 64,
            "target_layers": "0.29-0.62:0.065",
            "learning_rate": 9e-6,
            "max_steps": 2500,
            "teacher_args": {
                "learning_rate": 2e-5,
                "lr_scheduler_type": "cosine",
                "num_train_epochs": 3,
                "max_steps": -1,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 16,
                "warmup_steps": 0.1,
            },
        },
    ),
    "scit": Method(
        title="RAHF-SCIT",
        sentence="one teacher under a preferred and a dispreferred instruction",
        positive=View("positive", "contrast"),
        negative=View("negative", "contrast"),
        teachers=("contrast",),
        references=("base", "contrast"),
        defaults=_INSTRUCTED,
        published={
            **_RAHF_PUBLISHED,
            "reference": "contrast",
            "response_source": "random",
            "max_response_tokens": 512,
            "target_layers": "0.29-0.56:0.065",
            "learning_rate": 3e-4,
            "max_steps": 450,
            "gradient_accumulation_steps": 8,
            "teacher_args": {
                "learning_rate": 2e-5,
                "num_train_epochs": 2,
                "max_steps": -1,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 32,
                "warmup_steps": 0.1,
            },
        },
    ),
    "dpo_shift": Method(
        title="RAHF towards a DPO teacher",
        sentence="one teacher trained by DPO, against the base",
        positive=View("reference", "preferred"),
        negative=View("reference", None),
        teachers=("preferred",),
        references=("base", "preferred"),
    ),
    "lorra": Method(
        title="LoRRA",
        sentence="the base model under a preferred and a dispreferred instruction, no teacher",
        paper="2310.01405",
        positive=View("positive", None),
        negative=View("negative", None),
        # No teacher adds to the base, so the SFT term has the larger weight.
        defaults={**_INSTRUCTED, "align_weight": 0.25},
    ),
    "direction": Method(
        title="a stored direction",
        sentence="stored vectors, one per layer",
        paper="2310.01405",
        reads_directions=True,
    ),
    "circuit_breakers": Method(
        title="circuit breakers",
        sentence="rejected responses are pushed away until they are orthogonal to the reference",
        paper="2406.04313",
        pushes_by="relu_cosine",
        defaults=_CIRCUIT_BREAKERS,
        published=_CIRCUIT_BREAKERS,
    ),
    "rmu": Method(
        title="RMU",
        sentence="rejected responses are pushed towards a random vector",
        paper="2403.03218",
        pushes_by="distance",
        random_target=True,
        defaults=_RMU,
        published=_RMU,
    ),
    "repbend": Method(
        title="RepBend",
        sentence="rejected responses are pushed away and made alike",
        paper="2504.01550",
        pushes_by="away",
        kl_temperature=2.0,
        needs_similarity=True,
        defaults=_REPBEND,
        published=_REPBEND,
    ),
}

DEFAULT_METHOD = "dual"

ALL_TEACHERS = tuple(
    dict.fromkeys(teacher for method in METHODS.values() for teacher in method.teachers)
)


def method_names(has: Callable[[Method], bool]) -> tuple[str, ...]:
    """Return the names of the methods for which `has` holds."""
    return tuple(name for name, method in METHODS.items() if has(method))


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys `given` on top of the defaults of their method.

    Keys that no method sets have their default from the options themselves. `num_train_epochs`
    replaces a default of `max_steps`, which would override it in transformers.
    """
    method = METHODS.get(str(given.get("method", DEFAULT_METHOD)))
    defaults = dict(method.defaults) if method else {}
    if "num_train_epochs" in given:
        defaults.pop("max_steps", None)
    return {**defaults, **given}


def preset(method: str) -> dict[str, Any]:
    """Return published values for `RAHFConfig(output_dir, **preset("rmu"))`, `method` included.

    Keys of the LoRA are omitted: a LoraConfig holds them.

    Raises:
        ValueError: a method without published values.
    """
    known = [name for name, row in METHODS.items() if row.published]
    if method not in known:
        raise ValueError(f"{method!r} has no preset; methods with one are {', '.join(known)}")
    published = METHODS[method].published
    options = {key: value for key, value in published.items() if not key.startswith("lora_")}
    return {"method": method, **options}
