"""The method of a finished run in words: its name with what was added to it, and what it did.

Reads the keys of a saved recipe, which an earlier version may have written; knows no model.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rahf.recipe.methods import METHODS

ADDED_TERMS = {"retain": "a retain term", "kl": "a KL term", "sft": "an SFT term"}
ADDED_TERMS |= {"dpo": "a DPO term"}
"""Terms that any method may have, by the beginning of the key of their weight."""


class Paper(NamedTuple):
    """What a citation shows."""

    title: str
    first_author: str
    year: int


PAPERS = {
    "2312.15997": Paper(
        "Aligning Large Language Models with Human Preferences through Representation Engineering",
        "Liu, Wenhao",
        2023,
    ),
    "2310.01405": Paper(
        "Representation Engineering: A Top-Down Approach to AI Transparency", "Zou, Andy", 2023
    ),
    "2406.04313": Paper(
        "Improving Alignment and Robustness with Circuit Breakers", "Zou, Andy", 2024
    ),
    "2403.03218": Paper(
        "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning",
        "Li, Nathaniel",
        2024,
    ),
    "2504.01550": Paper(
        "Representation Bending for Large Language Model Safety", "Yousefpour, Ashkan", 2025
    ),
    "2305.18290": Paper(
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov, Rafael",
        2023,
    ),
}
"""The papers of the methods and of the DPO term, by their number on arXiv."""

_DPO = "2305.18290"


class MethodAsRun(NamedTuple):
    """What a model card states of the method."""

    method: str  # its title, with the terms that were added to its published form
    did: str  # what was done to the hidden states or to the model; {data} is the place of the data
    terms: tuple[str, ...]  # dpo, sft, ... that were added
    papers: dict[str, Paper]  # by arXiv number, that of the method first


def method_as_run(recipe: Mapping[str, Any]) -> MethodAsRun:
    """Return the method that `recipe` trained, by the weights of its terms.

    A term counts as added where its weight is above 0 and the published method has none.
    """
    method = METHODS[recipe["method"]]
    terms = tuple(
        name
        for name in ADDED_TERMS
        if _above_zero(recipe.get(f"{name}_weight"))
        and not _above_zero(method.published.get(f"{name}_weight"))
    )
    aligned = method.pushes_away or _above_zero(recipe.get("align_weight", 1.0))
    parts = [] if aligned else ["without its align term"]
    if terms:
        *first, last = (ADDED_TERMS[name] for name in terms)
        parts.append("with " + " and ".join(filter(None, (", ".join(first), last))))
    papers = (method.paper, _DPO) if "dpo" in terms else (method.paper,)
    return MethodAsRun(
        " ".join([method.title, *parts]),
        _did(recipe, aligned),
        terms,
        {number: PAPERS[number] for number in papers},
    )


def _did(recipe: Mapping[str, Any], aligned: bool) -> str:
    """Return the second half of a sentence that begins with `A LoRA adapter of BASE`."""
    method, alpha = METHODS[recipe["method"]], recipe.get("alpha")
    if not aligned:
        return "that was trained on the pairs of {data} without a target for its hidden states"
    if method.pushes_away:
        return (
            "whose hidden states were pushed away from their values on the rejected responses of "
            "{data}"
        )
    towards = "away from" if isinstance(alpha, int | float) and alpha < 0 else "towards"
    if method.reads_directions:
        along = "against" if towards == "away from" else "along"
        return (
            f"whose hidden states were moved {along} stored vectors, one per layer, on the "
            "responses of {data}"
        )
    return (
        f"whose hidden states were moved {towards} what the chosen responses of {{data}} share and "
        "the rejected ones lack"
    )


def _above_zero(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight > 0
