"""A judge by the nearness to reference answers, with a tiny model as encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rahf.artifacts import write_lines
from rahf.cli import main
from rahf.judges.by_name import NamedJudge, comparing_judge
from rahf.judges.judge import Verdicts
from rahf.judges.names import name_problems
from rahf.judges.reference_file import read_references
from rahf.judges.references import load_encoder

CPU = torch.device("cpu")
OPTIONS = {"dtype": torch.float32, "trust_remote_code": False}
ROWS = [
    {"prompt": "w4 w5", "right": ["w6 w7", "w8"], "wrong": ["w9 w10"]},
    {"prompt": [{"role": "user", "content": "w11"}], "right": "w12", "wrong": "w13 w14"},
]


def save_lines(path, rows):
    write_lines(path, rows)
    return path


def asked(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def judge(tmp_path, family):
    path = save_lines(tmp_path / "references.jsonl", ROWS)
    return comparing_judge(NamedJudge(f"references:{path}", CPU, encoder=str(family.base)))


def test_a_score_is_the_nearest_right_less_the_nearest_wrong_reference(judge, family):
    embed = load_encoder(str(family.base), OPTIONS, CPU)
    answer, *rest = embed(["w7 w7 w9", "w6 w7", "w8", "w9 w10"])
    near = [float(answer @ vector) for vector in rest]
    [verdict] = Verdicts().ask(judge, [judge.read(asked("w4 w5"), "w7 w7 w9")])
    assert verdict.value == pytest.approx(max(near[:2]) - near[2], abs=1e-5)


def test_a_reference_itself_is_nearest_to_its_own_side(judge):
    prompts = [asked("w4 w5")] * 2 + [asked("w11")] * 2
    answers = ["w8", "w9 w10", "w12", "w13 w14"]
    read = [judge.read(*each) for each in zip(prompts, answers, strict=True)]
    values = [verdict.value for verdict in Verdicts().ask(judge, read)]
    assert [value > 0 for value in values] == [True, False, True, False]


def test_an_embedding_is_the_mean_of_the_last_hidden_states_of_length_one(family):
    embed = load_encoder(str(family.base), OPTIONS, CPU)
    vectors = embed(["w4 w5 w6", "w4 " * 5000])  # the second is cut
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_prompt_without_references_is_an_error_that_names_it(judge):
    with pytest.raises(ValueError, match=r"references\.jsonl has no reference answers .*w99"):
        judge.read(asked("w99"), "w4")


@pytest.mark.parametrize("side", ["right", "wrong"])
@pytest.mark.parametrize("given", [None, [], "", [""], 3, ["w4", 3], {}])
def test_a_record_without_both_sides_is_refused(tmp_path, side, given):
    path = save_lines(tmp_path / "references.jsonl", [ROWS[0], ROWS[0] | {side: given}])
    with pytest.raises(ValueError, match=rf"references\.jsonl.*{side}: .*neither text nor a list"):
        read_references(path)


def test_an_encoder_that_lacks_weights_is_refused(tmp_path, family):
    folder = tmp_path / "encoder"
    folder.mkdir()
    for path in family.base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "mlp" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing .*mlp"):
        load_encoder(str(folder), OPTIONS, CPU)


def test_the_name_needs_a_file():
    assert name_problems("references:") == ["'references:' needs a file: references:FILE"]
    assert name_problems("references:a.jsonl") == []


def test_the_command_scores_responses_by_references(tmp_path, family, capsys):
    references = save_lines(tmp_path / "references.jsonl", ROWS)
    rows = [{"prompt": "w4 w5", "response": "w8"}, {"prompt": "w11", "response": "w12"}]
    responses = save_lines(tmp_path / "responses.jsonl", rows)
    common = ["--responses", str(responses), "--device", "cpu", "--output"]
    common += [str(tmp_path / "out.json"), "--encoder", str(family.base)]
    assert main(["evaluate", "responses", "--judge", f"references:{references}", *common]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["score"]["mean"] > 0
