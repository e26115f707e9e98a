"""All options of the method together, and the values that clash.

Knows no model and no file. A default is a constant; `methods.with_defaults` puts those of a method
in place before the options are made.
"""

from dataclasses import dataclass, fields

from rahf.recipe.fields import raise_problems, value_problems
from rahf.recipe.layers import AUTO
from rahf.recipe.methods import METHODS, method_names
from rahf.recipe.shift_options import ShiftOptions, shift_problems
from rahf.recipe.target_options import TargetOptions, target_problems
from rahf.recipe.term_options import TermOptions, term_problems


@dataclass
class MethodOptions(TermOptions, TargetOptions, ShiftOptions):
    """What the policy's hidden states are moved towards, where, and how far.

    Not frozen, since RAHFConfig inherits it together with transformers.TrainingArguments, which
    is not frozen. Such a class calls `check_method` in its own `__post_init__`.
    """

    def __post_init__(self) -> None:
        self.check_method()

    def check_method(self) -> None:
        """Raise OptionError with every problem of the options."""
        raise_problems(value_problems(self, MethodOptions) or self._problems())

    def _problems(self) -> list[str]:
        return [
            *shift_problems(self),
            *target_problems(self),
            *term_problems(self, neutral=self.chooses),
            *pair_problems(self),
            *still_problems(self),
            *unread_weight_problems(self),
            *([] if self.target_cache is None else cache_problems(self)),
            *(pushing_problems(self) if self.facts.pushes_away else shifting_problems(self)),
        ]


def shown(options: MethodOptions, name: str) -> str:
    """Return a key with its value, and whose default it is: `alpha: 4.0 (default of dual)`."""
    value = getattr(options, name)
    text = str(value).lower() if isinstance(value, bool) else value
    of_method = METHODS[options.method].defaults.get(name) == value
    return f"{name}: {text}" + (f" (default of {options.method})" if of_method else "")


def pair_problems(options: MethodOptions) -> list[str]:
    """Return the clashes of terms with the responses of a pair that they are given."""
    problems, source = [], shown(options, "response_source")
    if options.pairs_together and options.response_source != "both":
        terms = " and dpo_weight: 0" if options.dpo_weight else ""
        problems.append(
            f"{shown(options, 'pairs_together')} needs both responses of a pair, and {source} "
            f"gives one: set pairs_together: false{terms}, or response_source: both"
        )
    if options.dpo_weight and not options.pairs_together:
        problems.append(
            f"{shown(options, 'dpo_weight')} compares both responses of a pair in one batch, and "
            f"{shown(options, 'pairs_together')} does not keep them together: set dpo_weight: 0, "
            "or pairs_together: true"
        )
    if options.sft_weight and options.response_source == "rejected":
        problems.append(
            f"{shown(options, 'sft_weight')} needs chosen responses, and {source} gives none: set "
            "sft_weight: 0, or response_source: both"
        )
    return problems


def still_problems(options: MethodOptions) -> list[str]:
    """Return what is wrong where no term moves the policy away from the reference, its start."""
    own = ("rejected_weight", "similarity_weight")
    own = own if options.facts.pushes_away else ("align_weight",)
    movers = (*own, "sft_weight", "dpo_weight")
    if any(getattr(options, name) for name in movers):
        return []
    return [
        f"{' and '.join(movers)} are 0, so that no term moves the policy away from the reference: "
        "set one above 0"
    ]


def unread_weight_problems(options: MethodOptions) -> list[str]:
    """Return the weight of the protection where nothing is protected."""
    default = next(spec.default for spec in fields(TermOptions) if spec.name == "protect_weight")
    if options.protect or options.protect_weight == default:
        return []
    return [
        f"protect_weight: {options.protect_weight} is not read without protect: name directions "
        "there, or remove it"
    ]


def shifting_problems(options: MethodOptions) -> list[str]:
    """Return the problems of methods with a shift: terms against it, and options they never read.

    SFT and DPO move towards chosen responses, a negative alpha away from them.
    """
    problems = []
    if options.alpha != AUTO and options.alpha < 0:
        sides = "" if options.response_source == "both" else " and response_source: both"
        problems += [
            f"{shown(options, 'alpha')} moves away from chosen responses, and "
            f"{shown(options, name)} towards them: set {name}: 0{sides}"
            for name in ("sft_weight", "dpo_weight")
            if getattr(options, name)
        ]
    read = ("rejected_weight", "chosen_weight", "similarity_weight", "weights_over_time")
    untouched = {spec.name: spec.default for spec in fields(MethodOptions) if spec.name in read}
    pushing = " or ".join(method_names(lambda method: method.pushes_away))
    return problems + [
        f"{name}: {getattr(options, name)} is not read by method {options.method}: remove it, or "
        f"set method: {pushing}"
        for name in read
        if getattr(options, name) != untouched[name]
    ]


def pushing_problems(options: MethodOptions) -> list[str]:
    """Return the problems of methods that push rejected responses away."""
    name, source, problems = options.method, options.response_source, []
    defaults = options.facts.defaults
    if options.layer_scale == "shift":
        problems.append(
            f"layer_scale: shift is the size of a shift that {name} does not have: set "
            f"layer_scale: none or rms (default of {name}: {defaults['layer_scale']})"
        )
    if source == "chosen":
        problems.append(
            f"response_source: chosen leaves {name} no rejected responses to push away: set "
            "response_source: both or rejected"
        )
    if options.align_weight != 1:
        problems.append(
            f"align_weight: {options.align_weight} is not read by method {name}, which has no "
            "align term: remove it"
        )
    if options.chosen_weight and source == "rejected":
        problems.append(
            f"{shown(options, 'chosen_weight')} needs chosen responses, and "
            f"{shown(options, 'response_source')} gives none: set chosen_weight: 0, or "
            "response_source: both"
        )
    problems += [
        f"{key}: auto is chosen for a shift, and {name} has none: give {what}"
        for key, what in (("alpha", "a number"), ("target_layers", "layers"))
        if getattr(options, key) == AUTO
    ]
    if options.facts.needs_similarity and not options.similarity_weight:
        problems.append(
            f"similarity_weight: 0 leaves {name} without a gradient at the reference, where the "
            f"policy starts: set it above 0 (default of {name}: {defaults['similarity_weight']})"
        )
    return problems


def cache_problems(options: MethodOptions) -> list[str]:
    """Return why the states of the frozen views cannot be kept for later epochs."""
    if not options.compares_predictions:
        if options.response_source == "random":
            return [
                "target_cache: response_source: random may never draw a response again: set "
                "response_source: both, chosen or rejected, or omit target_cache"
            ]
        return []
    if options.compares_retained:
        return [
            "target_cache: keeps hidden states, and with kl_rows: retain the reference's "
            "predictions of retained texts are read in every step: set kl_rows: responses or "
            "kl_weight: 0, or omit target_cache"
        ]
    if options.retain_weight:
        return []
    given = " and ".join(name for name in ("kl_weight", "dpo_weight") if getattr(options, name))
    return [
        f"target_cache: beside {given}, which reads predictions of the responses in every step, "
        "it keeps the states of retained texts only, and there are none: set retain_weight above "
        f"0, or {given} to 0, or omit target_cache"
    ]


def batch_problems(options: MethodOptions, batch_size: int, eval_batch_size: int) -> list[str]:
    """Return the problems of the method with the number of responses in a batch."""
    problems, together = [], options.pairs_together
    if options.dpo_weight and eval_batch_size % 2:
        problems.append(
            f"per_device_eval_batch_size: {eval_batch_size} is odd, and "
            f"{shown(options, 'dpo_weight')} needs both responses of a pair in one batch: set "
            f"it to {eval_batch_size + 1}, or dpo_weight: 0"
        )
    if together and batch_size % 2:
        terms = " and dpo_weight: 0" if options.dpo_weight else ""
        problems.append(
            f"per_device_train_batch_size: {batch_size} is odd, and "
            f"{shown(options, 'pairs_together')} needs both responses of a pair in one batch: set "
            f"it to {batch_size + 1}, or pairs_together: false{terms}"
        )
    least = 4 if together else 2
    if options.similarity_weight and batch_size < least:
        problems.append(
            f"per_device_train_batch_size: {batch_size} is too small for similarity_weight, which "
            f"compares rejected responses of one batch: set it to at least {least}"
        )
    return problems
