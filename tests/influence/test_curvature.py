from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_models import EOS, tiny_dataset
from torch import nn
from toy_influence import alignment_of, loop_gradients, objective_of, policy

from rahf.influence import factors, passes
from rahf.influence.aligned import _distance_pseudo
from rahf.influence.curvature import fit_curvature
from rahf.influence.formula import conjugate_gradients, kernel_solve
from rahf.influence.gradients import Part, exact_attention, lora_parts, weights_of_parts
from rahf.influence.hessian import hessian_product
from rahf.influence.length import floor_of_log
from rahf.influence.objectives import (
    Batch,
    Objective,
    open_gate,
    preference_objective,
    sampled_cross_entropy,
)
from rahf.objective import Target
from rahf.terms import Evidence

DAMPING = 0.1


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(parts, pseudo, count):
    """The damped Gauss-Newton matrix."""
    matrix = pseudo.T @ pseudo / count
    return matrix + DAMPING * matrix.diagonal().mean() * torch.eye(len(matrix))


def test_the_kernel_solves_as_the_dense_matrix_does():
    pseudo, vectors = draw(7, 20), draw(3, 20, seed=1)
    expected = torch.linalg.solve(dense(None, pseudo, 7), vectors.T).T
    assert torch.allclose(kernel_solve(vectors, pseudo, 7, DAMPING), expected, rtol=1e-3)


def test_the_identity_is_the_dot_product_and_the_kernel_the_dense_solve(family, tmp_path):
    objective = objective_of(family, "dpo", tmp_path)
    parts = lora_parts(objective.model)
    vectors, pseudo = draw(2, parts[-1].stop), loop_gradients(objective, pseudo=True)
    for name, expected in (
        ("identity", vectors),
        ("kernel", torch.linalg.solve(dense(parts, pseudo, 6), vectors.T).T),
    ):
        found = fit_curvature(name, objective, parts, tmp_path, 4).solve(vectors)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def linear_objective(inputs, targets):
    """Regression by one matrix, each unit of noise of each example a row of its own."""
    model, outputs = nn.Linear(inputs.shape[1], targets, bias=False), targets

    def collate(places, _, __):
        rows = [(place // outputs, place % outputs) for place in places]
        block = {"x": inputs[[row for row, _ in rows]], "unit": torch.tensor([u for _, u in rows])}
        example, mask = torch.arange(len(rows)), torch.ones(len(rows), 1, dtype=torch.bool)
        zeros = torch.zeros_like(example)
        return Batch(block, ["row"] * len(rows), example, zeros, mask, mask, None)

    def pseudo(batch):
        found = model(batch.inputs["x"].unsqueeze(1)).squeeze(1)
        return found.gather(1, batch.inputs["unit"].unsqueeze(1)).sum()

    same = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2]}
    rows = Dataset.from_list([{"row": place, **same} for place in range(len(inputs) * outputs)])
    objective = Objective(model, rows, ("chosen",), collate, None, pseudo)
    return objective, (Part("only", 0, model, 0, model.weight.numel()),)


def test_ekfac_is_the_gauss_newton_matrix_of_a_linear_model(tmp_path):
    inputs = draw(30, 4) * torch.tensor([3.0, 1.0, 0.3, 0.1]) + 1
    objective, parts = linear_objective(inputs, 3)
    curvature = fit_curvature("ekfac", objective, parts, tmp_path, 16, DAMPING)
    matrix = torch.kron(torch.eye(3), inputs.T @ inputs / len(inputs) / 3)
    matrix += DAMPING * matrix.diagonal().mean() * torch.eye(12)
    vectors = draw(5, 12, seed=2)
    expected = torch.linalg.solve(matrix, vectors.T).T
    assert torch.allclose(curvature.solve(vectors), expected, rtol=1e-3, atol=1e-4)


def test_dpo_pseudo_gradients_have_the_exact_gauss_newton_matrix(family, tmp_path):
    objective = objective_of(family, "dpo", tmp_path)
    pseudo, losses = loop_gradients(objective, pseudo=True), loop_gradients(objective)
    # The gradient of the loss is -sigmoid(-m) times that of the margin m.
    with torch.no_grad():
        values = objective.losses(objective.batch(range(6), whole=False), open_gate)
    wrong = 1 - (-values).exp()
    margins = -losses / wrong.unsqueeze(1)
    expected = (margins.T * (wrong * (1 - wrong))) @ margins
    assert torch.allclose(pseudo.T @ pseudo, expected, atol=1e-4 * expected.abs().max())


def test_drawn_labels_have_the_fisher_matrix_of_the_predictions():
    logits = draw(1, 5)
    uniform = (torch.arange(20000) + 0.5) / 20000
    many = logits.expand(20000, -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(sampled_cross_entropy(many, uniform).sum(), many)
    share = logits[0].softmax(0)
    expected = share.diag() - share.outer(share)
    assert torch.allclose(gradients.T @ gradients / 20000, expected, atol=1e-3)


@pytest.mark.parametrize("squared", [False, True])
def test_noise_on_states_has_the_second_derivative_of_the_distance(squared):
    states = draw(1, 1, 3).requires_grad_()
    target = Target(torch.zeros(1, 1, 3), draw(1, 1, 3, seed=4), torch.full((1, 1), 2.0))
    rows = {"reference": {"aligned_owner": torch.tensor([0])}}
    evidence, weight = Evidence(rows, states, target, None, None), torch.tensor([0.5]).sqrt()
    found = torch.zeros(3, 3)
    for key in range(3000):
        pseudo = _distance_pseudo(evidence, weight, [f"{key}"], squared=squared)
        (gradient,) = torch.autograd.grad(pseudo, states)
        found += gradient.flatten().outer(gradient.flatten()) / 3000

    def distance(x):
        size = (x - target.states.flatten()).norm() / 2
        return 0.5 * (size**2 if squared else size)

    expected = torch.autograd.functional.hessian(distance, states.detach().flatten())
    assert torch.allclose(found, expected, atol=0.1 * expected.abs().max())


def test_hessian_products_are_differences_of_gradients(family, tmp_path):
    objective = objective_of(family, "dual", tmp_path, retain_weight=1.0)
    parts = lora_parts(objective.model)
    vectors = draw(2, parts[-1].stop)
    found = hessian_product(objective, parts, vectors, 4)

    def total():
        batches = objective.batches(3, whole=True)
        sums = 0
        for batch in batches:
            with exact_attention():
                loss = objective.losses(batch, open_gate).sum() / 6
            grads = torch.autograd.grad(loss, weights_of_parts(parts), allow_unused=True)
            sums = sums + torch.cat([grad.flatten() for grad in grads])
        return sums

    def moved(vector):
        for part in parts:
            weight = part.module.weight.data
            weight += part.matrices(vector.unsqueeze(0))[0]

    for vector, product in zip(vectors, found, strict=True):
        step = 1e-3 * vector
        moved(step)
        plus = total()
        moved(-2 * step)
        expected = (plus - total()) / 2e-3
        moved(step)
        assert (product - expected).norm() < 0.03 * expected.norm()


def test_conjugate_gradients_solve_and_end_where_curvature_is_negative():
    square, right = draw(6, 6), draw(3, 6, seed=1)
    positive = square @ square.T + torch.eye(6)
    solved = conjugate_gradients(lambda x: x @ positive, right, lambda x: x / 2, 20, 1e-6)
    assert torch.allclose(solved.vectors, torch.linalg.solve(positive, right.T).T, atol=1e-3)
    assert not solved.truncated.any()
    ended = conjugate_gradients(lambda x: -x, right, lambda x: x / 2, 20)
    assert ended.truncated.all()
    assert torch.equal(ended.vectors, right / 2)


def test_the_length_of_a_training_is_the_curvature_that_it_has_not_felt():
    rate, log = 0.1, [{"grad_norm": 3.0, "learning_rate": 0.1, "step": n} for n in range(1, 21)]
    assert floor_of_log(log, 9, "sgd") == pytest.approx(0.5)
    assert floor_of_log(log, 9, "adamw_torch") == pytest.approx(0.5)
    assert floor_of_log(log, 36, "adamw_torch") == pytest.approx(0.25)
    assert floor_of_log([*log[9::10], {"train_loss": 1, "step": 20}], 9, "sgd") == pytest.approx(
        0.5
    )
    assert floor_of_log([{"train_loss": 1, "step": 20}], 9, "sgd") == 0
    assert floor_of_log(log, 9, "adafactor") == 0
    # What twenty steps of gradient descent on a parabola come to, from flat to steep.
    for curvature in (1e-3, 0.1, 0.5, 2.0, 10.0):
        reached = (1 - (1 - rate * curvature) ** 20) / curvature
        assert reached == pytest.approx(1 / (curvature + 0.5), rel=0.3), curvature


def test_the_floor_is_added_to_every_curvature(family, tmp_path):
    objective = objective_of(family, "dpo", tmp_path)
    parts = lora_parts(objective.model)
    vectors = draw(2, parts[-1].stop)
    for name in ("ekfac", "kernel", "cg"):
        found = fit_curvature(name, objective, parts, tmp_path, 6, floor=1e4).solve(vectors)
        assert torch.allclose(found, vectors / 1e4, rtol=0.05, atol=1e-6), name


def test_cg_solves_with_the_hessian(family, tmp_path):
    objective = objective_of(family, "dual", tmp_path, dpo_weight=0.0, distance="squared_l2")
    parts = lora_parts(objective.model)
    curvature = fit_curvature("cg", objective, parts, tmp_path, 4, damping=300.0)
    vectors = draw(1, parts[-1].stop)
    solved = curvature.solve(vectors)
    bases = factors.fit_ekfac(objective, parts, 4, tmp_path)
    level = 300.0 * sum(basis.moments.sum() for basis in bases) / parts[-1].stop
    back = hessian_product(objective, parts, solved, 4) + level * solved
    assert (back - vectors).norm() < 0.05 * vectors.norm(), curvature.notes


def test_a_stopped_fit_resumes_with_the_next_batch(family, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(factors, "KEPT_BYTES", 0)
    objective = preference_objective(policy(family), tiny_dataset(6), EOS, 0.5)
    parts = lora_parts(objective.model)
    expected = factors.fit_ekfac(objective, parts, 2, tmp_path / "whole")
    seen, real = [], objective.pseudo

    def stopping(batch):
        seen.append(batch.names[0])
        if len(seen) == 5:  # the second batch of the second pass
            raise KeyboardInterrupt
        return real(batch)

    stopped = Objective(**{**vars(objective), "pseudo": stopping})
    with pytest.raises(KeyboardInterrupt):
        factors.fit_ekfac(stopped, parts, 2, tmp_path / "stopped")
    path = tmp_path / "stopped/moments.0.partial"
    intact, tensors = path.read_bytes(), load_file(path)
    metadata = {"rank": "0 of 1, 6 pairs, 2 at once, by length", "done": "1"}
    name = parts[0].name
    for change, more, told in (
        (lambda x: x * torch.nan, {}, "not finite"),
        (lambda x: x[1:], {}, "of shape"),
        (lambda x: x, {"done": "4"}, "holds '4' of 3 batches"),
        (lambda x: x, {"done": "-1"}, "holds '-1' of 3 batches"),
        (None, {}, "missing or too much"),
        (None, None, "is damaged"),
    ):
        changed = {key: x for key, x in tensors.items() if key != name}
        changed |= {} if change is None else {name: change(tensors[name]).contiguous()}
        if more is None:
            path.write_bytes(intact[:-9])
        else:
            save_file(changed, path, metadata | more)
        with pytest.raises(ValueError, match=f"moments.0.partial .*{told}.*delete it to fit"):
            factors.fit_ekfac(objective, parts, 2, tmp_path / "stopped")
    path.write_bytes(intact)
    found = factors.fit_ekfac(stopped, parts, 2, tmp_path / "stopped")
    first, second, third = seen[:3]
    assert seen == [first, second, third, first, second, second, third]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*both) for both in zip(one, other, strict=True))
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["ekfac.safetensors"]


def test_the_second_pass_of_ekfac_reads_what_the_first_has_kept(family, tmp_path, monkeypatch):
    objective = preference_objective(policy(family), tiny_dataset(6), EOS, 0.5)
    parts, seen = lora_parts(objective.model), []
    counted = Objective(
        **{**vars(objective), "pseudo": lambda batch: (seen.append(1), objective.pseudo(batch))[1]}
    )
    found = factors.fit_ekfac(counted, parts, 2, tmp_path / "kept")
    assert len(seen) == 3
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["ekfac.safetensors"]
    monkeypatch.setattr(factors, "KEPT_BYTES", 6 * parts[-1].stop * 4 - 1)
    expected = factors.fit_ekfac(counted, parts, 2, tmp_path / "made again")
    assert len(seen) == 3 + 6
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_factors_of_a_sample_are_those_of_a_training_on_it(family, tmp_path):
    rows = tiny_dataset(6)
    objective = preference_objective(policy(family), rows, EOS, 0.5)
    parts = lora_parts(objective.model)
    found = factors.fit_ekfac(objective, parts, 2, tmp_path, fit_pairs=4)
    assert [path.name for path in tmp_path.iterdir()] == ["ekfac-4.safetensors"]
    drawn = sorted(np.random.default_rng(0).permutation(6)[:4].tolist())
    sample = preference_objective(objective.model, rows.select(drawn), EOS, 0.5)
    expected = factors.fit_ekfac(sample, parts, 2, tmp_path / "sample", fit_pairs=4)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_factors_that_no_fit_can_have_left_are_refused(family, tmp_path):
    objective = preference_objective(policy(family), tiny_dataset(6), EOS, 0.5)
    parts = lora_parts(objective.model)
    factors.fit_ekfac(objective, parts, 6, tmp_path)
    factors.fit_kernel(objective, parts, 6, tmp_path)
    ekfac, kernel = tmp_path / "ekfac.safetensors", tmp_path / "kernel/0-6.safetensors"
    moments = f"{parts[0].name}.moments"
    cases = [
        (ekfac, moments, lambda x: x * torch.nan, "not finite"),
        (ekfac, moments, lambda x: x - 1, "negative"),
        (ekfac, moments, lambda x: x[1:], "of shape"),
        (ekfac, "more", lambda _: torch.ones(1), "more missing or too much"),
        (kernel, "pseudo", lambda x: x / 0, "not finite"),
        (kernel, "pseudo", lambda x: x[:, 1:], "of shape"),
    ]
    for path, name, change, told in cases:
        intact, tensors = path.read_bytes(), load_file(path)
        save_file(tensors | {name: change(tensors.get(name)).contiguous()}, path)
        fit = factors.fit_ekfac if path == ekfac else factors.fit_kernel
        with pytest.raises(ValueError, match=f"{path.name} .*{told}.*delete it to fit again"):
            fit(objective, parts, 6, tmp_path)
        path.write_bytes(b"damaged")
        with pytest.raises(ValueError, match="is damaged"):
            fit(objective, parts, 6, tmp_path)
        path.write_bytes(intact)
        fit(objective, parts, 6, tmp_path)
    (tmp_path / "key.json").write_text("[1]")
    training = SimpleNamespace(kind="dpo", folder=tmp_path)
    subject = SimpleNamespace(training=training, objective=objective, rows=tiny_dataset(6))
    with pytest.raises(ValueError, match=r"key.json is damaged. Delete .* to fit again"):
        factors.check_key(tmp_path, subject)


def test_a_term_that_couples_pairs_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match="no pair has a loss of its own"):
        objective_of(family, "repbend", tmp_path)
    assert alignment_of(family, "lorra", tmp_path).options.similarity_weight == 0
