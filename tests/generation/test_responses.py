"""`rahf generate`: resumable, the same whatever the batch size, for models and adapters."""

import json

import pytest
import torch
from tiny_models import D_MODEL, tiny_model, tiny_tokenizer
from tiny_runs import KilledError

from rahf.artifacts import read_lines
from rahf.cli import main
from rahf.data.prompts import chat_prompt_form, read_prompts, read_responses
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.generation.decoding import Decoding
from rahf.generation.responses import write_responses

RECORDS = [{"prompt": " ".join(f"w{2 + row + i}" for i in range(1 + row % 4))} for row in range(9)]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def written(path, prompts, model=None, batch_size=2, temperature=1.0, tokens=5, **changed):
    tokenizer = tiny_tokenizer()
    return write_responses(
        model or tiny_model(),
        tokenizer,
        read_prompts(prompts),
        chat_prompt_form(tokenizer),
        Decoding(max_new_tokens=tokens, temperature=temperature, seed=changed.pop("seed", 0)),
        path,
        generator="tiny",
        made_with={"model": "tiny"},
        batch_size=batch_size,
    )


class DiesAfter:
    """A hook that ends the run, as a kill would, at a forward of the model."""

    def __init__(self, forwards):
        self.left = forwards

    def __call__(self, module, args):
        self.left -= 1
        if self.left < 0:
            raise KilledError


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path, prompts):
    counts = written(tmp_path / "whole.jsonl", prompts)
    assert (counts["responses"], counts["made_now"]) == (9, 9)
    model = tiny_model()
    hook = model.register_forward_pre_hook(DiesAfter(12))
    with pytest.raises(KilledError):
        written(tmp_path / "killed.jsonl", prompts, model)
    assert not (tmp_path / "killed.jsonl").exists()
    hook.remove()
    counts = written(tmp_path / "killed.jsonl", prompts, model, batch_size=3)
    assert counts["made_now"] == 9 - 4
    whole, killed = (read_lines(tmp_path / f"{name}.jsonl") for name in ("whole", "killed"))
    assert whole == killed
    assert [line["prompt"] for line in whole] == [record["prompt"] for record in RECORDS]
    assert len({line["response"] for line in whole}) > 5
    assert written(tmp_path / "killed.jsonl", prompts, model)["made_now"] == 0


def test_tools_of_a_prompt_are_kept_beside_its_response(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "w2", "tools": [{"name": "w3"}]}))
    written(tmp_path / "out.jsonl", prompts)
    [response] = read_responses(tmp_path / "out.jsonl")
    assert response.messages == [{"role": "user", "content": "w2", "tools": [{"name": "w3"}]}]


def test_counts_give_how_many_responses_ended_by_themselves(tmp_path, prompts):
    counts = written(tmp_path / "out.jsonl", prompts)
    lines = read_lines(tmp_path / "out.jsonl")
    assert counts["finished"] == sum(line["finished"] for line in lines)
    assert counts["mean_tokens"] == sum(line["tokens"] for line in lines) / 9
    assert {line["generator"] for line in lines} == {"tiny"}


def test_other_settings_do_not_go_on_with_the_file(tmp_path, prompts):
    written(tmp_path / "out.jsonl", prompts)
    with pytest.raises(ValueError, match=r"decoding\.seed: 0 there, 1 now"):
        written(tmp_path / "out.jsonl", prompts, seed=1)
    prompts.write_text('{"prompt": "w2"}\n')
    with pytest.raises(ValueError, match="prompts: "):
        written(tmp_path / "out.jsonl", prompts)


def generated(tmp_path, prompts, model, name, *options):
    path = tmp_path / name
    arguments = ["--model", str(model), "--prompts", str(prompts), "--output", str(path)]
    assert main(["generate", *arguments, "--max_new_tokens", "6", "--device", "cpu", *options]) == 0
    return path


def test_the_command_runs_a_base_or_an_adapter_of_it(tmp_path, prompts, family, capsys):
    base = generated(tmp_path, prompts, family.base, "base.jsonl")
    assert "9 responses" in capsys.readouterr().out
    adapter = generated(tmp_path, prompts, family.adapters["positive"], "adapter.jsonl")
    other = generated(tmp_path, prompts, family.adapters["negative"], "other.json", "--limit", "4")
    texts = [[line["response"] for line in read_lines(path)] for path in (base, adapter)]
    assert texts[0] != texts[1]
    rows = json.loads(other.read_text())
    assert [row["instruction"] for row in rows] == [record["prompt"] for record in RECORDS[:4]]
    assert {row["generator"] for row in rows} == {"negative"}


def test_the_command_does_not_take_an_adapter_trained_anew_for_the_old_one(
    tmp_path, prompts, family, capsys
):
    model = tmp_path / "model"
    for seed in (0, 1):
        tiny_model(seed=seed).save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        if seed == 0:
            generated(tmp_path, prompts, model, "out.jsonl")
    arguments = ["--model", str(model), "--prompts", str(prompts)]
    arguments += ["--output", str(tmp_path / "out.jsonl"), "--max_new_tokens", "6"]
    assert main(["generate", *arguments]) == 2
    assert "weights: " in capsys.readouterr().err


def test_the_command_reports_users_errors_before_it_loads_a_model(tmp_path, prompts, capsys):
    arguments = ["generate", "--model", str(tmp_path), "--prompts", str(prompts)]
    assert main([*arguments, "--output", "out.txt"]) == 2
    assert "out.txt: the name should end in .jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", "out.json", "--top_p", "2"])
    assert end.value.code == 2
    assert "--top_p: '2' is not a number above 0 and at most 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"top_p is 2\.0; give above 0 and at most 1"):
        Decoding(top_p=2.0)


def test_a_base_for_what_is_no_adapter_is_refused(tmp_path, prompts, family, capsys):
    arguments = ["--model", str(family.base), "--base", str(tmp_path), "--prompts", str(prompts)]
    assert main(["generate", *arguments, "--output", str(tmp_path / "o.jsonl")]) == 2
    assert f"is not an adapter, so it takes no base ({tmp_path})" in capsys.readouterr().err


def generate(family, prompts, output, *options):
    return main(
        [
            *("generate", "--model", str(family.base), "--prompts", str(prompts)),
            *("--output", str(output), "--max_new_tokens", "6", "--device", "cpu", *options),
        ]
    )


def responses(path):
    return [line["response"] for line in read_lines(path)]


def test_a_model_is_steered_while_it_answers(tmp_path, prompts, family, capsys):
    vectors = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    folder = Directions((0, 1, 2), 5 * vectors).save(tmp_path / "d").parent
    steered = ("--directions", str(folder))
    assert generate(family, prompts, tmp_path / "plain.jsonl") == 0
    assert generate(family, prompts, tmp_path / "more.jsonl", *steered, "--alpha", "2") == 0
    layers = ("--steered_layers", "1")
    assert generate(family, prompts, tmp_path / "one.jsonl", *steered, *layers) == 0
    told = ("plain.jsonl", "more.jsonl", "one.jsonl")
    assert len({tuple(responses(tmp_path / name)) for name in told}) == 3
    model = family.load_base()
    with steer(model, Directions((1,), 5 * vectors[1:2]), 1.0, start="generated"):
        counts = written(tmp_path / "api.jsonl", prompts, model, temperature=0.0, tokens=6)
    assert counts["responses"] == len(RECORDS)
    assert responses(tmp_path / "api.jsonl") == responses(tmp_path / "one.jsonl")
    # The same file with another strength would mix two models.
    assert generate(family, prompts, tmp_path / "more.jsonl", *steered, "--alpha", "3") == 2
    assert "steering" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        (("--alpha", "2"), "none are given: give --directions"),
        (
            ("--directions", ".", "--alpha", "2", "--alpha", "3"),
            "--alpha is given 2 times and --directions 1 times",
        ),
    ],
)
def test_strengths_without_their_directions_are_refused(
    tmp_path, prompts, family, capsys, options, counts
):
    assert generate(family, prompts, tmp_path / "out.jsonl", *options) == 2
    assert counts in capsys.readouterr().err
