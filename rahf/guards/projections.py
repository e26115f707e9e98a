"""How far the states of fixed answers lie along directions, in units of those directions.

    p(answer, layer) = mean over response tokens of  h . v / (v . v)

A model that is moved by a direction times alpha in a layer gains alpha there. Knows models, ids and
directions; knows no trainer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.directions.states import States
from rahf.directions.vectors import Directions, check_finite_states
from rahf.guards.checks import check_directions
from rahf.models.capture import find_blocks, record, text_config
from rahf.models.likelihood import rows_for, state_inputs

Ids = tuple[list[int], list[int]]  # of a prompt and of its response


def check_projected(model: nn.Module, directions: Mapping[str, Directions]) -> None:
    """Refuse directions that cannot be projected on.

    Raises:
        ValueError: there are none; one is of another model, or zero in a layer.
    """
    if not isinstance(directions, Mapping):
        raise ValueError(
            f"directions: {directions!r:.80} should be directions by name, as "
            "{'tone': Directions.load(folder)}."
        )
    if not directions:
        raise ValueError("no directions were given: name at least one, as {'tone': Directions}.")
    depth = len(find_blocks(model).modules)
    for name, each in directions.items():
        check_directions(each, f"directions {name!r}")
        if not isinstance(name, str) or not name.isprintable() or not name.strip() or "/" in name:
            raise ValueError(
                f"directions {name!r}: a name is a printable text without '/', which separates "
                "figures."
            )
        try:
            each.check_model(text_config(model).hidden_size, depth)
        except ValueError as error:
            raise ValueError(f"directions {name!r}: {error}") from None
        still = [
            layer
            for layer, vector in zip(each.layers, each.vectors, strict=True)
            if not vector.any()
        ]
        if still:
            raise ValueError(
                f"directions {name!r}: the vectors of layers {still} are zero, so nothing can be "
                "projected on them: leave the layers out with only(layers)."
            )


def projections(
    model: nn.Module,
    directions: Mapping[str, Directions],
    answers: Sequence[Ids],
    pad_token_id: int,
    batch_size: int = 8,
) -> dict[str, Float[Tensor, "layers answers"]]:
    """Return the mean projection of each answer on each direction, as the model reads it now.

    The model runs in evaluation mode and without gradients; its modes are restored.

    Args:
        answers: ids of prompts and responses; the response tokens are read.

    Raises:
        ValueError: states that are not finite.
    """
    layers = tuple(sorted({layer for each in directions.values() for layer in each.layers}))
    with evaluation_mode(model), torch.no_grad():
        means = torch.cat(
            [
                mean_states(model, layers, answers[start : start + batch_size], pad_token_id)
                for start in range(0, len(answers), batch_size)
            ],
            1,
        )
    return {
        name: _along(means[[layers.index(layer) for layer in each.layers]], each.vectors)
        for name, each in directions.items()
    }


def _along(
    means: Float[Tensor, "layers answers d_model"], vectors: Float[Tensor, "layers d_model"]
) -> Float[Tensor, "layers answers"]:
    vectors = vectors.to(means).unsqueeze(-1)
    return ((means @ vectors) / vectors.square().sum(1, keepdim=True)).squeeze(-1).cpu()


def mean_states(
    model: nn.Module, layers: tuple[int, ...], answers: Sequence[Ids], pad_token_id: int
) -> Float[Tensor, "layers answers d_model"]:
    """Return the mean state of each answer's response tokens."""
    prompts, responses = map(list, zip(*answers, strict=True))
    rows = rows_for(model, prompts, responses, pad_token_id)
    places = rows["response_mask"].flatten().nonzero().squeeze(1)
    owner = places // rows["input_ids"].shape[1]
    with record(model, layers, places, stop=True) as recording:
        model(**state_inputs(rows))
    hidden = recording.stack()
    check_finite_states(hidden, layers, [f"of answer {index}" for index in owner.tolist()])
    return States(hidden, owner, 1 / torch.bincount(owner)[owner]).means()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, and leave every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
