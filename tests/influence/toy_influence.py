"""Objectives on tiny models, whose every figure a loop can check."""

from functools import partial

import torch
from peft import PeftModel
from tiny_models import EOS, Family, lora, randomize, tiny_dataset, tiny_tokenizer

from rahf.alignment import build_alignment
from rahf.directions.vectors import Directions
from rahf.influence.aligned import alignment_objective
from rahf.influence.gradients import exact_attention, lora_parts, weights_of_parts
from rahf.influence.objectives import (
    Objective,
    instruction_objective,
    open_gate,
    preference_objective,
    side_objective,
)
from rahf.models.adapters import attach_policy
from rahf.models.packing import use_packed_attention
from rahf.trainer_config import RAHFConfig

KINDS = ("dpo", "positive", "contrast", "dual", "scit", "lorra", "direction", "rmu")
PACKING = ("dpo", "positive")  # whose rows may be packed
DECAY = 1.0  # of a toy's training, towards its start, which makes the minimum unique
SMALL = partial(lora, 1, target_modules=["v_proj"], layers_to_transform=[0, 1])
TEXTS = [[3, 4, 5], [6, 7, 8, 9]]


def policy(family: Family, **options) -> PeftModel:
    model = attach_policy(family.load_base(), lora(**options), range(4))
    randomize(model, "default", 7)
    return model.eval()


def objective_of(family: Family, kind: str, tmp_path, rows=None, **options) -> Objective:
    rows = tiny_dataset(6) if rows is None else rows
    model = policy(family) if kind in (*PACKING, "contrast") else None
    if options.pop("packed", False):
        assert use_packed_attention(model.get_base_model())
    if kind == "dpo":
        return preference_objective(model, rows, EOS, 0.5)
    if kind == "positive":
        return side_objective(model, rows, EOS, "chosen")
    if kind == "contrast":
        return instruction_objective(model, rows, EOS, 0.2)
    return alignment_objective(
        alignment_of(family, kind, tmp_path, **options), rows, tiny_tokenizer(), TEXTS
    )


def alignment_of(family: Family, kind: str, tmp_path, **options):
    given = {"target_layers": "1-2", "shift": "token", "use_cpu": True, **options}
    given = {"retain_weight": 0.0 if kind != "rmu" else 1.0, **given}
    if kind == "direction":
        given["directions"] = "stored"
    args = RAHFConfig(str(tmp_path), method=kind, **given)
    directions = None
    if kind == "direction":
        vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
        directions = Directions((1, 2), vectors, {})
    alignment = build_alignment(
        family.load_base(), args, lora(), family.adapters, directions, seed=0
    )
    randomize(alignment.model, "default", 7)
    alignment.model.eval()
    return alignment


def loop_gradients(objective: Objective, pseudo: bool = False) -> torch.Tensor:
    """The gradient of each pair's loss, one pair and one backward pass at a time."""
    weights, found = weights_of_parts(lora_parts(objective.model)), []
    for place in range(len(objective.rows)):
        batch = objective.batch([place], whole=False)
        with exact_attention():
            loss = objective.pseudo(batch) if pseudo else objective.losses(batch, open_gate).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(found)


def flat(parts):
    return torch.cat([part.module.weight.detach().flatten() for part in parts])


def put(parts, vector):
    for part in parts:
        part.module.weight.data.copy_(part.matrices(vector.unsqueeze(0))[0])


def minimise(objective, parts, start, kept, decay=DECAY):
    """Train from where the weights are to the minimum of the weighted mean loss of the pairs."""
    weights = weights_of_parts(parts)
    search = {"max_iter": 40, "tolerance_grad": 1e-5, "line_search_fn": "strong_wolfe"}
    batch = objective.batch(range(len(kept)), whole=True)

    def closure():
        objective.model.zero_grad()
        with exact_attention():
            loss = (objective.losses(batch, open_gate) * kept).mean()
        away = torch.cat([weight.flatten() for weight in weights]) - start
        loss = loss + decay / 2 * away.square().sum()
        loss.backward()
        return loss

    for _ in range(6):  # the search ends early where float32 is too coarse for its step
        torch.optim.LBFGS(weights, **search).step(closure)
        if max(weight.grad.abs().max() for weight in weights) < 1e-4:
            break
    objective.model.zero_grad()
