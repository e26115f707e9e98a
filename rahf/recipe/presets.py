"""What a method needs, what it begins with where a recipe is silent, and published settings.

Published are those of the neighbours, whose recipes begin with them, and of RAHF, on request: facts
from the papers and their repositories, each with its departure in docs/method.md. Knows keys and
values; imports neither torch nor transformers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rahf.recipe.config import MethodOptions

# The two views of `scit` and `lorra`. They differ in the words that name the preference and in
# nothing else: same sentence, same punctuation, about the same length, so that the difference of
# the views is the preference and not the form.
DEFAULT_INSTRUCTIONS = {
    "positive": "Answer as a careful reader would prefer: helpful, honest and harmless.",
    "negative": "Answer as a careful reader would reject: unhelpful, dishonest and harmful.",
}

# Adapters that each method needs, in the order in which step 1 trains them.
TEACHERS = {
    "dual": ("positive", "negative"),
    "scit": ("contrast",),
    "dpo_shift": ("preferred",),
    "lorra": (),
    "direction": (),
    "circuit_breakers": (),
    "rmu": (),
    "repbend": (),
}

# Temperature of both predictions in the KL term, where it is not 1 (RepBend: arXiv 2504.01550).
KL_TEMPERATURE = {"repbend": 2.0}

ALL_TEACHERS = tuple(dict.fromkeys(name for names in TEACHERS.values() for name in names))

PLAIN: dict[str, Any] = {
    "alpha": 2.0,
    "response_source": "both",
    "sft_weight": 0.0,
    "align_weight": 1.0,
    "pairs_together": False,
    "dpo_weight": 0.0,
}
"""Keys that stand at what `own_settings` says where nobody gives them, and at these values where
the method has no reason to differ.
"""

LEFT_TO_METHOD = tuple(PLAIN)


def own_settings(options: "MethodOptions") -> dict[str, Any]:
    """The keys of LEFT_TO_METHOD as given, or as they did best with the method.

    Two views that differ by an instruction (scit, lorra) carry further beside an SFT term on the
    chosen side alone (recipes/smollm2-135m/README.md); those of lorra, of which no teacher knows
    more than the base, with a small weight beside it. Two teachers (dual) know both sides, which a
    DPO term takes further apart; beside an SFT term it does worse. These terms lead towards chosen
    responses, so that they stay out where alpha leads away from them, is left to the data, or
    other rows are asked for.
    """
    named = {name: getattr(options, name) for name in LEFT_TO_METHOD}
    given = {name: value for name, value in named.items() if value is not None}
    settled = PLAIN | given

    def begin_with(name: str, value: Any) -> None:
        settled[name] = given.get(name, value)

    strengths = {"scit": 6.0, "lorra": 6.0, "dual": 4.0}
    begin_with("alpha", strengths.get(options.method, PLAIN["alpha"]))
    if settled["alpha"] == "auto" or settled["alpha"] <= 0:
        return settled
    if options.method in ("scit", "lorra"):
        if not settled["pairs_together"]:
            begin_with("response_source", "chosen")
        if settled["response_source"] == "chosen":
            begin_with("sft_weight", 2.0)
        if settled["sft_weight"] and options.method == "lorra":
            begin_with("align_weight", 0.25)
    elif options.method == "dual" and options.reference == "base":
        both_alone = settled["response_source"] == "both" and not settled["sft_weight"]
        if both_alone and given.get("dpo_weight", 1):
            begin_with("pairs_together", True)
            begin_with("dpo_weight", float(settled["pairs_together"]))
    return settled


# Fractions name, of the 32 blocks of the published models, the blocks that were published: 9 and
# 19 (indices 10 and 20 of hidden_states), 7, and 19 to 29 (20 to 30 of hidden_states).
PRESETS: dict[str, dict[str, Any]] = {
    "circuit_breakers": {
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
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-4,
        "max_steps": 150,
        "per_device_train_batch_size": 16,
    },
    "rmu": {
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
    },
    "repbend": {
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
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-5,
        "max_steps": 450,
        "per_device_train_batch_size": 16,
    },
}

# Of RAHF's authors (arXiv 2312.15997), who align without a retain term towards a shift far beyond
# the teachers: given on request alone, since recipes begin with what did better here
# (recipes/LOG.md). Blocks 9 to 19, and 9 to 17, of 32, every second one.
_RAHF: dict[str, Any] = {
    "positions": "response",
    "alpha": 5.0,
    "shift": "token",
    "retain_weight": 0.0,
    "sft_weight": 0.0,
    "distance": "l2",
    "layer_scale": "none",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8,
}
ON_REQUEST: dict[str, dict[str, Any]] = {
    "dual": {
        **_RAHF,
        "reference": "positive",
        "response_source": "both",
        "dpo_weight": 0.0,
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
    "scit": {
        **_RAHF,
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
}


def preset(method: str) -> dict[str, Any]:
    """Published values for `RAHFConfig(output_dir, **preset("rmu"))`, `method` among them.

    Those of the LoRA are left out, since a LoraConfig holds them there.

    Raises:
        ValueError: a method without published values here.
    """
    published = ON_REQUEST | PRESETS
    if method not in published:
        raise ValueError(f"{method!r} has no preset; those that have are {', '.join(published)}")
    options = {key: value for key, value in published[method].items() if key[:5] != "lora_"}
    return {"method": method, **options}


def with_preset(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """The keys of a recipe on top of its method's preset; what the recipe says holds."""
    published = dict(PRESETS.get(str(given.get("method")), {}))
    if "num_train_epochs" in given:
        published.pop("max_steps", None)  # which would win over the epochs
    return {**published, **given}
