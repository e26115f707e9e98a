"""The benchmark compares like with like: same loss, right ratios, lengths as published."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benchmarks"))

import flops as flops_script
import step_time
from parts import report
from parts.flops import counting
from parts.formulas import FORMULAS, step_flops
from parts.measure import count, differences
from parts.texts import write_pairs
from parts.variants import VARIANTS
from parts.workload import (
    MAX_PROMPT,
    MAX_TOTAL,
    REFERENCE,
    Workload,
    draw_pair,
    draw_rows,
    prepare,
    response_tokens,
)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    tiny_model().save_pretrained(folder / "model")
    return folder


def workload_of(folder, method, first=0.0):
    workload = Workload(
        folder=folder / f"{method}_{first}",
        method=method,
        model=str(folder / "model"),
        shape=None,
        dtype="float32",
        device="cpu",
        pairs=2,
        lengths=0.1,
        learning_rate=1e-2,
        first=first,
    )
    prepare(workload, steps=3)
    return workload


@pytest.mark.parametrize("method", REFERENCE)
def test_the_naive_way_has_the_losses_of_the_package(tiny_folder, method):
    workload = workload_of(tiny_folder, method)
    found = {
        name: variant(workload, 3, lambda: 0.0).losses
        for name, variant in VARIANTS.items()
        if name not in ("rahf-mean", "dpo")  # other objectives
    }
    assert len(found["naive"]) == 3
    assert found["naive"][2] != pytest.approx(found["naive"][0], rel=1e-3)  # it does train
    for name in found.keys() - {"naive"}:
        assert found[name] == pytest.approx(found["naive"], rel=1e-4)


def test_rows_keep_the_published_lengths():
    generator = np.random.default_rng(0)
    pairs = [draw_pair(row, generator, vocab=100) for row in range(400)]
    prompts = [len(pair["prompt_ids"]) for pair in pairs]
    longest = [
        len(pair["positive_prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        for pair in pairs
    ]
    responses = [len(pair["chosen_ids"]) for pair in pairs]
    assert max(prompts) <= MAX_PROMPT
    assert max(longest) == MAX_TOTAL
    # Below the published means, since long prompts are dropped and long responses cut.
    assert 80 < np.mean(prompts) < 185
    assert 240 < np.mean(responses) < 305


def test_response_tokens_are_those_of_the_timed_steps(tiny_folder):
    workload = workload_of(tiny_folder, "dual")
    rows = list(workload.rows())[2:]
    cut = workload.max_response_tokens
    expected = sum(
        min(cut, len(row[side])) for row in rows for side in ("chosen_ids", "rejected_ids")
    )
    found = response_tokens(workload, warmup=1, steps=2)
    assert found["aligned"] == expected / 2
    assert found["dpo"] > found["aligned"]
    assert replace(workload, lengths=1.0).naive_width == 320


def test_ratios_are_of_all_repetitions_and_range_within_them():
    def run(seconds, memory, flops, losses):
        tokens = {"aligned": 30, "dpo": 90}
        return {
            "seconds": seconds,
            "memory": memory,
            "flops": flops,
            "losses": losses,
            "response_tokens": tokens,
        }

    measured = {
        "runs": {
            "naive": [run([4.0, 6.0], 300, 50, [1.0, 2.0]), run([8.0, 12.0], 330, 50, [1.0, 4.0])],
            "rahf": [run([1.0, 1.0], 100, 8, [1.0, 2.0]), run([4.0, 4.0], 100, 12, [1.0, 4.004])],
        },
        "ceiling": 20.0,
    }
    summary = report.summarize(measured)
    over = summary["over_rahf"]["naive"]
    assert over["step_seconds"] == {"mean": 3.0, "least": 2.5, "most": 5.0}
    assert over["memory"]["mean"] == pytest.approx(3.15)
    assert over["flops"] == {"mean": 5, "least": pytest.approx(50 / 12), "most": 50 / 8}
    rahf = summary["variants"]["rahf"]
    assert rahf["step_seconds"]["median"] == 2.5
    assert rahf["flops_per_step"] == 10
    assert rahf["utilisation"] == pytest.approx((8 / 1 + 12 / 4) / 2 / 20)
    assert rahf["response_tokens_per_second"] == pytest.approx((30 / 1 + 30 / 4) / 2)
    assert summary["loss_difference"] == pytest.approx(1e-3)
    table = report.table("dual", summary)
    assert "| rahf | 2.50 [1.00, 4.00] |" in table
    assert len({line.count("|") for line in table.splitlines()[:4]}) == 1


def simulated(monkeypatch, folder, in_new_process, *more):
    """Run the command over a worker of the test's own, two repetitions of two variants."""
    monkeypatch.setattr(step_time, "in_new_process", in_new_process)
    monkeypatch.setattr(step_time, "matrix_ceiling", lambda *_: 1.0)
    tiny_model().save_pretrained(folder / "model")
    command = ["step_time.py", "--model", str(folder / "model"), "--lengths", "0.1"]
    command += ["--repetitions", "2", "--steps", "1", "--variants", "naive", "rahf"]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(folder / "out"), *more])
    step_time.main()


def test_repetitions_have_rows_of_their_own_which_variants_share_and_times_come_before_counts(
    tmp_path, monkeypatch
):
    asked, functions = [], []

    def in_new_process(function, workload, **arguments):
        asked.append(tuple(workload.rows()[0]["prompt_ids"]))
        functions.append(function)
        timed = {"seconds": [1.0] * arguments["steps"], "memory": 1, "losses": [1.0]}
        return timed if function == "measure" else {"flops": 1}

    simulated(monkeypatch, tmp_path, in_new_process)
    by_rows = Counter(asked)
    # Two methods, two variants, measured and counted: in each of the two repetitions.
    assert list(by_rows.values()) == [8, 8]
    assert functions == ["measure"] * 8 + ["count"] * 8


def test_times_outlive_counting_that_failed_and_can_be_counted_later(tmp_path, monkeypatch):
    counts = False

    def in_new_process(function, workload, **arguments):
        if function == "measure":
            return {"seconds": [2.0] * arguments["steps"], "memory": 1, "losses": [1.0]}
        if not counts:
            raise RuntimeError("out of memory")
        return {"flops": 3}

    with pytest.raises(ValueError, match="run without it to take the times"):
        simulated(monkeypatch, tmp_path, in_new_process, "--counts_only")
    with pytest.raises(RuntimeError, match="out of memory"):
        simulated(monkeypatch, tmp_path, in_new_process)
    kept = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert kept["measured"]["dual"]["runs"]["naive"][1]["seconds"] == [2.0]

    counts = True
    with pytest.raises(ValueError, match=r"give the same seed \(0\)"):
        simulated(monkeypatch, tmp_path, in_new_process, "--counts_only", "--seed", "1")
    simulated(monkeypatch, tmp_path, in_new_process, "--counts_only")
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert found["summary"]["scit"]["variants"]["rahf"]["flops_per_step"] == 3
    assert found["measured"]["dual"]["runs"]["naive"][1]["seconds"] == [2.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("key_heads", [6, 2])
def test_attention_is_counted_as_the_products_it_consists_of(masked, key_heads):
    query = torch.randn(2, 6, 10, 16, requires_grad=True)
    key, value = (torch.randn(2, key_heads, 10, 16, requires_grad=True) for _ in range(2))
    mask = torch.ones(10, 10, dtype=torch.bool).tril() if masked else None

    def counted():
        with counting() as counter:
            scaled_dot_product_attention(
                query, key, value, mask, is_causal=not masked, enable_gqa=key_heads == 2
            ).sum().backward()
        return counter

    by_kernel = counted()
    with sdpa_kernel(SDPBackend.MATH):
        by_products = counted()
    assert "flash_attention_for_cpu" in str(by_kernel.get_flop_counts()["Global"])
    assert "flash_attention" not in str(by_products.get_flop_counts()["Global"])
    assert by_kernel.get_total_flops() == by_products.get_total_flops() > 0


@pytest.mark.parametrize("variant", FORMULAS)
@pytest.mark.parametrize("method", REFERENCE)
def test_formulas_give_the_flops_that_are_counted(tiny_folder, method, variant):
    workload = workload_of(tiny_folder, method)
    rows = list(workload.rows())
    steps = [rows[start : start + workload.pairs] for start in (2, 4)]
    by_formula = sum(step_flops(workload, variant, pairs) for pairs in steps) / 2
    with sdpa_kernel(SDPBackend.MATH):  # products of their own, so that none is made for nothing
        assert count(workload, variant, steps=2, warmup=1)["flops"] == by_formula
    # The kernel of a CPU has as many but in the lowest of the four blocks.
    assert count(workload, variant, 2, 1)["flops"] == pytest.approx(by_formula, rel=0.03)


@pytest.mark.parametrize("method", REFERENCE)
def test_adapters_that_begin_higher_keep_the_losses_and_save_what_the_formulas_say(
    tiny_folder, method
):
    workload = workload_of(tiny_folder, method, first=0.34)
    assert workload.first_block() == 1
    losses = [VARIANTS[name](workload, 3, lambda: 0.0).losses for name in ("naive", "rahf")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    rows = list(workload.rows())
    steps = [rows[start : start + workload.pairs] for start in (2, 4)]
    for variant in ("naive", "rahf"):
        by_formula = sum(step_flops(workload, variant, pairs) for pairs in steps) / 2
        with sdpa_kernel(SDPBackend.MATH):
            assert count(workload, variant, steps=2, warmup=1)["flops"] == by_formula
    lower = workload_of(tiny_folder, method)
    assert step_flops(workload, "rahf", steps[0]) < 0.9 * step_flops(lower, "rahf", steps[0])


def test_the_table_of_formulas_is_of_the_rows_that_the_benchmark_times(
    tiny_folder, monkeypatch, capsys
):
    model = f"--model {tiny_folder / 'model'}"
    drawn = "--repetitions 1 --warmup 1 --steps 2 --methods scit --variants naive rahf"
    monkeypatch.setattr(sys, "argv", f"flops.py {model} {drawn}".split())
    flops_script.main()
    [_, _, naive, rahf] = capsys.readouterr().out.splitlines()
    workload = replace(workload_of(tiny_folder, "scit"), lengths=1.0)
    prepare(workload, steps=3)
    rows = list(workload.rows())
    flops = [
        sum(step_flops(workload, variant, rows[start : start + 2]) for start in (2, 4)) / 2e12
        for variant in ("naive", "rahf")
    ]
    assert naive == f"| SCIT | naive | {flops[0]:.3g} | {flops[0] / flops[1]:.2f} |"
    assert rahf == f"| SCIT | rahf | {flops[1]:.3g} | 1.00 |"


@pytest.mark.parametrize("lengths", [0.1, 0.3, 1.0])
def test_no_row_is_wider_than_the_naive_way_pads_to(tiny_folder, lengths):
    workload = replace(workload_of(tiny_folder, "scit"), lengths=lengths)
    widest = max(
        len(pair["positive_prompt_ids"]) + len(pair[side][: workload.max_response_tokens])
        for pair in draw_rows(workload, steps=100, seed=0)
        for side in ("chosen_ids", "rejected_ids")
    )
    assert widest == workload.naive_width


def test_steps_are_the_time_between_their_ends():
    assert differences([1.0, 3.0, 7.0]) == [2.0, 4.0]


def test_the_chart_is_a_file(tmp_path):
    value = {"median": 1.0, "least": 1.0, "most": 1.0}
    summary = {"variants": {"rahf": {"step_seconds": value, "memory_bytes": value}}}
    report.chart({"dual": summary, "scit": summary}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_pairs_of_text_are_preference_pairs_in_messages(tmp_path):
    from rahf.data.sources import load_pairs

    write_pairs(tmp_path / "pairs.jsonl", 5, ["one", "two", "three"])
    pairs = load_pairs(str(tmp_path / "pairs.jsonl"), split="train", cache_dir=tmp_path)
    assert len(pairs) == 5
    assert pairs[0]["prompt"][0]["role"] == "user"
