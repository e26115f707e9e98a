"""An aligned model and its base in one copy of the weights: the adapter on and off."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rahf.commands.options.steering import steering

if TYPE_CHECKING:
    from rahf.commands.options.models import Loaded
    from rahf.data.messages import Message
    from rahf.data.prompts import PromptForm
    from rahf.generation.decoding import Decoding

Side = Callable[[], AbstractContextManager]
"""Makes the context in which the model is one side."""


def sides(options: argparse.Namespace, loaded: "Loaded") -> dict[str, Side]:
    """Return {name: side}: the base, where there is an adapter or a direction, and the model."""
    from peft import PeftModel

    from rahf.models.adapters import frozen_pass

    model = loaded.model

    def as_given() -> AbstractContextManager:
        return steering(options, model)

    if isinstance(model, PeftModel):
        return {"base": lambda: frozen_pass(model, None), "aligned": as_given}
    if options.directions:
        return {"base": nullcontext, "steered": as_given}
    return {"answer": as_given}


def answers_of(
    sides: Mapping[str, Side],
    chats: Mapping[str, list["Message"]],
    loaded: "Loaded",
    form: "PromptForm",
    decoding: "Decoding",
) -> dict[str, str]:
    """Return {name: its answer} to the chat of each side."""
    from rahf.generation.answers import generate_one

    answers = {}
    for name, side in sides.items():
        ids = form.encode(chats[name])
        with side():
            text = generate_one(loaded.model, loaded.tokenizer, ids, decoding, form.stops)
        answers[name] = form.extract(text)
    return answers
