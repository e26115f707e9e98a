"""EK-FAC of a library that nobody of this project wrote, on a tiny LoRA trained by SFT.

pip install --no-deps kronfluence==1.0.1 einops einconv opt_einsum scipy
"""

import pytest
import torch
from tiny_models import EOS, tiny_dataset, tiny_pairs
from toy_influence import policy

from rahf.data.rows import sequence_rows
from rahf.influence.curvature import fit_curvature
from rahf.influence.gradients import exact_attention, lora_parts
from rahf.influence.objectives import Objective, open_gate, side_objective
from rahf.influence.queries import ask, log_probability
from rahf.influence.scores import score_pairs
from rahf.models.likelihood import likelihood

PAIRS, QUERIES = 8, 3


def rows_of(pairs) -> list[dict]:
    """Each chosen response as a row of its own, all padded to one length."""
    prompts, responses = ([pair[name] for pair in pairs] for name in ("prompt_ids", "chosen_ids"))
    block = sequence_rows(prompts, responses, EOS, width=40)
    return [{name: each[row] for name, each in block.items()} for row in range(len(pairs))]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the library
def test_ekfac_scores_are_those_of_an_independent_library(family, tmp_path):
    pytest.importorskip("kronfluence", reason="the independent library is not installed")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    pairs, asked_of = tiny_dataset(PAIRS), tiny_pairs(QUERIES, seed=5)
    objective = side_objective(policy(family), pairs, EOS, "chosen")
    # Both with the gradients of the losses themselves: the library draws labels of its own.
    given = vars(objective) | {"pseudo": lambda batch: objective.losses(batch, open_gate).sum()}
    objective, parts = Objective(**given), lora_parts(objective.model)
    queries = [log_probability("q", each["prompt_ids"], each["chosen_ids"]) for each in asked_of]
    asked = ask(objective.model, parts, queries, EOS, QUERIES)
    curvature = fit_curvature("ekfac", objective, parts, tmp_path, PAIRS)
    solved = curvature.solve(asked.gradients)
    how = (objective, parts, solved, asked.gradients, curvature.solve_pairs, PAIRS)
    found = score_pairs(*how).changes.T * PAIRS

    tokens = sum(len(pair["chosen_ids"]) for pair in pairs)

    class Completions(Task):
        def compute_measurement(self, batch, model):
            with exact_attention():
                return self._sums(batch, model).sum()

        def compute_train_loss(self, batch, model, sample=False):
            with exact_attention():
                return -PAIRS / tokens * self._sums(batch, model).sum()

        def _sums(self, batch, model):
            owner = torch.arange(len(batch["input_ids"])).unsqueeze(1).expand_as(batch["input_ids"])
            return likelihood(model, batch | {"owner": owner}).sums()

        def get_influence_tracked_modules(self):
            return [name for name, module in model.named_modules() if module in tracked]

        def get_attention_mask(self, batch):
            return batch["attention_mask"]

    model, tracked, task = objective.model, {part.module for part in parts}, Completions()
    analyzer = Analyzer("oracle", prepare_model(model, task), task, cpu=True, output_dir=tmp_path)
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    analyzer.fit_all_factors("f", rows_of(pairs), PAIRS, factor_args=factors)
    analyzer.compute_pairwise_scores(
        *("s", "f", rows_of(asked_of), rows_of(pairs), QUERIES, PAIRS),
        score_args=ScoreArguments(damping_factor=None),
    )
    expected = analyzer.load_pairwise_scores("s")["all_modules"]
    assert expected.shape == found.shape
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
