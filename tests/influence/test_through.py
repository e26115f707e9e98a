"""Through-teacher influence against retraining of a toy, with exact Hessians."""

from functools import partial

import torch
from peft import get_peft_model
from tiny_models import EOS, lora, randomize, tiny_dataset, tiny_tokenizer

from rahf.alignment import build_alignment
from rahf.influence.aligned import alignment_objective
from rahf.influence.gradients import exact_attention, lora_parts, weights_of_parts
from rahf.influence.hessian import hessian_product
from rahf.influence.objectives import open_gate, side_objective
from rahf.influence.queries import ask, margin
from rahf.influence.scores import pair_gradients
from rahf.influence.through import teacher_queries
from rahf.influence.trained import Subject
from rahf.models.adapters import attach_policy
from rahf.trainer_config import RAHFConfig

PAIRS = 5
DECAY = 1.0  # towards the start, which makes the minimum unique
LESS = 0.3  # weight that a pair loses, so that the change is of first order
SMALL = partial(lora, 1, target_modules=["v_proj"], layers_to_transform=[0, 1])


def flat(parts):
    return torch.cat([part.module.weight.detach().flatten() for part in parts])


def put(parts, vector):
    for part in parts:
        part.module.weight.data.copy_(part.matrices(vector.unsqueeze(0))[0])


def minimise(objective, parts, start, kept):
    """Train from where the weights are to the minimum of the weighted mean loss of the pairs."""
    weights = weights_of_parts(parts)
    search = {"max_iter": 40, "tolerance_grad": 1e-5, "line_search_fn": "strong_wolfe"}
    batch = objective.batch(range(PAIRS), whole=True)

    def closure():
        objective.model.zero_grad()
        with exact_attention():
            loss = (objective.losses(batch, open_gate) * kept).sum() / PAIRS
        away = torch.cat([weight.flatten() for weight in weights]) - start
        loss = loss + DECAY / 2 * away.square().sum()
        loss.backward()
        return loss

    for _ in range(6):  # the search ends early where float32 is too coarse for its step
        torch.optim.LBFGS(weights, **search).step(closure)
        if max(weight.grad.abs().max() for weight in weights) < 1e-4:
            break
    objective.model.zero_grad()


def inverse(objective, parts):
    size = parts[-1].stop
    matrix = hessian_product(objective, parts, torch.eye(size), PAIRS)
    return torch.linalg.inv(matrix + DECAY * torch.eye(size))


class Toy:
    """A DUAL alignment whose positive teacher is trained before it, on the same pairs."""

    def __init__(self, family, folder, rows):
        adapters = {name: folder / name for name in ("positive", "negative")}
        for seed, (_, path) in enumerate(adapters.items()):
            model = get_peft_model(family.load_base(), SMALL())
            randomize(model, "default", seed)
            model.save_pretrained(path)
        teacher = attach_policy(family.load_base(), SMALL(), range(4), adapters["positive"])
        self.teacher = side_objective(teacher.eval(), rows, EOS, "chosen")
        options = {"distance": "squared_l2", "dpo_weight": 0.0, "retain_weight": 0.0}
        options |= {"target_layers": "1-2", "shift": "token", "layer_scale": "rms", "alpha": 2.0}
        args = RAHFConfig(str(folder), method="dual", use_cpu=True, **options)
        alignment = build_alignment(family.load_base(), args, SMALL(), adapters, seed=0)
        randomize(alignment.model, "default", 9)
        alignment.model.eval()
        self.policy = alignment_objective(alignment, rows, tiny_tokenizer(), ())
        self.subject = Subject(None, self.policy, tiny_tokenizer(), alignment)
        self.parts = {
            "teacher": lora_parts(teacher),
            "policy": lora_parts(alignment.model),
            "copy": lora_parts(alignment.model, "positive"),
        }
        self.start = {name: flat(parts) for name, parts in self.parts.items()}
        self.query = [margin("held out", [3, 4, 5], [6, 7, EOS], [8, 9, EOS])]

    def train(self, kept):
        """Train both stages; return the query at the end."""
        minimise(self.teacher, self.parts["teacher"], self.start["teacher"], kept)
        put(self.parts["copy"], flat(self.parts["teacher"]))
        minimise(self.policy, self.parts["policy"], self.start["policy"], kept)
        return self.ask().values

    def ask(self):
        return ask(self.policy.model, self.parts["policy"], self.query, EOS, 4)


def test_the_sum_of_direct_and_through_teacher_influence_predicts_retraining(family, tmp_path):
    toy = Toy(family, tmp_path, tiny_dataset(PAIRS))
    whole = toy.train(torch.ones(PAIRS))
    solved = toy.ask().gradients @ inverse(toy.policy, toy.parts["policy"])
    towards = teacher_queries(toy.subject, toy.parts["policy"], solved, {"positive": None}, 2)[
        "positive"
    ]
    its = towards @ inverse(toy.teacher, toy.parts["teacher"])

    def changes(objective, parts, vectors):
        batch = objective.batch(range(PAIRS), whole=False)
        return (pair_gradients(objective, parts, batch) @ vectors.T / PAIRS).flatten()

    direct = changes(toy.policy, toy.parts["policy"], solved)
    predicted = direct + changes(toy.teacher, toy.parts["teacher"], its)
    optimum = {name: flat(parts) for name, parts in toy.parts.items()}
    real = []
    for row in torch.eye(PAIRS):
        for name, parts in toy.parts.items():
            put(parts, optimum[name])
        real.append((toy.train(1 - LESS * row) - whole) / LESS)
    real = torch.cat(real)

    def agreement(values):
        return float(torch.corrcoef(torch.stack([values, real]))[0, 1])

    assert real.abs().max() > 1e-3
    assert agreement(predicted) > 0.9
    assert agreement(predicted) > agreement(direct)
    assert 0.5 < float(predicted.norm() / real.norm()) < 2
