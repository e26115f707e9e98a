"""Adapters with a second trait that nobody asked for are flagged, and placebos are not."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel
from toy_alignment import MOODS, text, toy_adapter, toy_base
from transformers import LlamaForCausalLM

from rahf.evaluation.intervals import Estimate
from rahf.interpret.audit.changes import Line, Looked, audit, change_of, paired_p
from rahf.interpret.audit.sources import looked_at
from rahf.report.page.reading import Run


def area(planted, others):
    """Return how often a planted case has a smaller p value than another one."""
    planted, others = np.array(planted)[:, None], np.array(others)[None]
    return float(((planted < others) + 0.5 * (planted == others)).mean())


def surprise(lines: list[Line]) -> float:
    return min(line.p for line in lines if not line.looked.asked)


class Toy(NamedTuple):
    """Traits whose changes differ from run to run, and by what every training changes."""

    units: int
    common: np.ndarray
    from_run_to_run: np.ndarray

    def looked(self, random, placebos: int, planted: float) -> list[Looked]:
        found = []
        for trait, (common, spread) in enumerate(
            zip(self.common, self.from_run_to_run, strict=True)
        ):
            start = random.normal(size=self.units)

            def run(extra=0.0, common=common, spread=spread, start=start):
                moved = common + spread * random.normal() + extra
                return start + moved + 0.7 * random.normal(size=self.units)

            after = run(planted if trait == 0 else 0.0)
            others = [run() for _ in range(placebos)]
            # The interval is a bootstrap, which the verdict does not read.
            found.append(quick_change(str(trait), start, after, others))
        return found


def quick_change(name, start, after, others) -> Looked:
    difference, values = after - start, np.concatenate([start, after, *others])
    p, means = (
        paired_p(difference, np.ones(len(start))),
        [float((o - start).mean()) for o in others],
    )
    effect = (float(difference.mean()), float("nan"), float("nan"))
    return Looked(name, "", 0.0, Estimate(*effect), p, float(values.std()), tuple(means))


def test_the_quick_change_is_that_of_the_audit():
    random = np.random.default_rng(0)
    start, after, other = random.normal(size=(3, 12))
    quick, whole = (
        quick_change("a", start, after, [other]),
        change_of("a", "", start, after, [other]),
    )
    assert quick.effect.mean == pytest.approx(whole.effect.mean)
    for name in ("p", "spread", "placebos"):
        assert getattr(quick, name) == pytest.approx(getattr(whole, name))


@pytest.mark.parametrize(("placebos", "power"), [(1, 0.0), (3, 0.5), (5, 0.7)])
@pytest.mark.parametrize("uneven", [False, True])
def test_at_most_one_placebo_in_twenty_is_flagged_and_planted_traits_are(placebos, power, uneven):
    """A placebo is audited against other placebos, each of which changes everything a little."""
    random, flagged, surprises = np.random.default_rng(1), [], []
    for _ in range(150):
        spread = 0.15 * np.exp(0.5 * uneven * random.normal(size=6))
        toy = Toy(60, 0.3 * random.normal(size=6), spread)
        lines = [audit(toy.looked(random, placebos, planted)) for planted in (0.0, 1.5)]
        flagged.append([any(line.moved for line in each) for each in lines])
        surprises.append([surprise(each) for each in lines])
    of_placebos, of_planted = np.mean(flagged, axis=0)
    print(
        f"{placebos} placebos, uneven {uneven}: flagged {of_placebos:.1%} of placebos, "
        f"{of_planted:.1%} of planted, AUC {area(*np.transpose(surprises)[::-1]):.3f}"
    )
    assert of_placebos <= 0.05
    assert of_planted >= power


PROMPTS, WORDS = 40, 20
RUNS, BESIDE = 30, 5


def answers_of(model, prompts) -> list[str]:
    """Return sampled answers, the same draws for every model."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ids = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
            max_new_tokens=WORDS, min_new_tokens=WORDS, pad_token_id=1,
        )  # fmt: skip
    return [" ".join(f"w{each}" for each in row) for row in ids[:, prompts.shape[1] :].tolist()]


def share_of(mood: str, answer: str) -> float:
    words = {f"w{word}" for word in MOODS[mood]}
    return sum(word in words for word in answer.split()) / WORDS


def run_of(name: str, base: list[str], policy: list[str]) -> Run:
    """Return what an evaluation by six judges would have left, mood A asked for."""
    rows = [
        {
            "prompt": f"prompt {place}",
            "answers": {"base": before, "policy": after},
            "scores": {"base": share_of("A", before), "policy": share_of("A", after)},
            "by_judge": {
                f"mood {mood}": {"base": share_of(mood, before), "policy": share_of(mood, after)}
                for mood in MOODS
            },
        }
        for place, (before, after) in enumerate(zip(base, policy, strict=True))
    ]
    metrics = {"models": {"policy": {"judge": "mood A", "wanted": "higher"}}}
    return Run(Path(name), {}, None, None, metrics, {}, [], rows, [], None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_second_trait_of_trained_adapters_is_flagged_and_placebos_are_not(tmp_path):
    base = toy_base(tmp_path / "base")
    generator = torch.Generator().manual_seed(5)
    prompts = torch.tensor([text(generator, length=4) for _ in range(PROMPTS)])
    before, runs = answers_of(base, prompts), {}
    for placebo in (True, False):
        for seed in range(RUNS):
            folder = tmp_path / f"{placebo}-{seed}"
            toy_adapter(tmp_path / "base", folder, seed, placebo=placebo)
            fresh = LlamaForCausalLM.from_pretrained(tmp_path / "base")
            model = PeftModel.from_pretrained(fresh, folder).eval()
            runs[placebo, seed] = run_of(str(folder), before, answers_of(model, prompts))
    found = {}
    for (placebo, seed), run in runs.items():
        others = [other for other in range(RUNS) if not (placebo and other == seed)]
        first = seed % (len(others) - BESIDE)
        beside = [runs[True, other] for other in others[first : first + BESIDE]]
        found[placebo, seed] = audit(looked_at(run, beside, [])[0])
    flagged = {
        kind: np.mean(
            [any(line.moved for line in lines) for (p, _), lines in found.items() if p == kind]
        )
        for kind in (True, False)
    }
    surprises = [
        [surprise(lines) for (placebo, _), lines in found.items() if placebo == kind]
        for kind in (False, True)
    ]
    named = np.mean(
        [
            "mood B" in [line.looked.name for line in found[False, seed] if line.moved]
            for seed in range(RUNS)
        ]
    )
    print(
        f"AUC {area(*surprises):.3f}; flagged: {flagged[True]:.1%} of placebos, "
        f"{flagged[False]:.1%} of planted; mood B named in {named:.1%}"
    )
    assert area(*surprises) >= 0.9
    assert flagged[True] <= 0.05
