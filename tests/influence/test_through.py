"""Through-teacher influence against retraining of a toy, with exact Hessians."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import EOS, randomize, tiny_dataset, tiny_tokenizer
from toy_influence import DECAY, SMALL, flat, minimise, put

from rahf.alignment import build_alignment
from rahf.influence.aligned import alignment_objective
from rahf.influence.gradients import lora_parts
from rahf.influence.hessian import hessian_product
from rahf.influence.objectives import side_objective
from rahf.influence.queries import ask, margin
from rahf.influence.scores import pair_gradients
from rahf.influence.through import teacher_queries
from rahf.influence.trained import Subject, Training
from rahf.models.adapters import attach_policy
from rahf.recipe.recipe import recipe_from_dict
from rahf.trainer_config import RAHFConfig
from rahf.training.preparation import fit_mean_shift

PAIRS = 5
FIXED = {"method": "dual", "distance": "squared_l2", "dpo_weight": 0.0, "retain_weight": 0.0}
FIXED |= {"target_layers": "1-2", "shift": "token", "layer_scale": "rms", "alpha": 2.0}


def inverse(objective, parts):
    size = parts[-1].stop
    matrix = hessian_product(objective, parts, torch.eye(size), PAIRS)
    return torch.linalg.inv(matrix + DECAY * torch.eye(size))


class Toy:
    """A DUAL alignment whose positive teacher is trained before it, on the same pairs."""

    def __init__(self, family, folder, rows, **options):
        adapters = {name: folder / name for name in ("positive", "negative")}
        for seed, (_, path) in enumerate(adapters.items()):
            model = get_peft_model(family.load_base(), SMALL())
            randomize(model, "default", seed)
            model.save_pretrained(path)
        teacher = attach_policy(family.load_base(), SMALL(), range(4), adapters["positive"])
        self.teacher = side_objective(teacher.eval(), rows, EOS, "chosen")
        options = FIXED | options
        self.args = RAHFConfig(str(folder), use_cpu=True, **options)
        alignment = build_alignment(family.load_base(), self.args, SMALL(), adapters, seed=0)
        self.rows, self.views, self.mean = rows, alignment, None
        if options["shift"] == "mean":
            alignment = alignment.towards(self.fit_mean())
            self.mean = alignment.directions
        randomize(alignment.model, "default", 9)
        alignment.model.eval()
        self.policy = alignment_objective(alignment, rows, tiny_tokenizer(), ())
        places = {"model_name_or_path": str(family.base), "dataset_name": "-"}
        recipe = recipe_from_dict({**places, **options, "output_dir": str(folder)})
        training = Training(folder, "alignment", recipe, 0.0, False)
        self.subject = Subject(training, self.policy, tiny_tokenizer(), alignment)
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
        if self.mean is not None:
            self.mean.copy_(self.fit_mean().vectors)
        minimise(self.policy, self.parts["policy"], self.start["policy"], kept)
        return self.ask().values

    def fit_mean(self):
        return fit_mean_shift(self.views, self.rows, tiny_tokenizer(), self.args)

    def ask(self):
        return ask(self.policy.model, self.parts["policy"], self.query, EOS, 4)


@pytest.mark.parametrize(
    ("options", "ends"),  # the latter: what a pair's weight of 1 is changed by
    [
        ({}, (-0.3, 0.0)),
        # Without the second order, which is larger here.
        pytest.param({"shift": "mean"}, (-0.1, 0.1), marks=pytest.mark.slow),
        pytest.param({"reference": "positive"}, (-0.1, 0.1), marks=pytest.mark.slow),
    ],
    ids=["token", "mean", "reference"],
)
def test_the_sum_of_direct_and_through_teacher_influence_predicts_retraining(
    family, tmp_path, options, ends
):
    toy = Toy(family, tmp_path, tiny_dataset(PAIRS), **options)
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
        values = []
        for end in ends:
            for name, parts in toy.parts.items():
                put(parts, optimum[name])
            values.append(toy.train(1 + end * row) if end else whole)
        real.append((values[0] - values[1]) / (ends[1] - ends[0]))
    real = torch.cat(real)

    def agreement(values):
        return float(torch.corrcoef(torch.stack([values, real]))[0, 1])

    assert real.abs().max() > 1e-3
    assert agreement(predicted) > 0.9
    assert agreement(predicted) > agreement(direct)
    assert 0.5 < float(predicted.norm() / real.norm()) < 2
