"""`rahf evaluate`: preferences, judged responses, tasks."""

import json
import random

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from rahf.artifacts import read_json
from rahf.cli import main
from rahf.evaluation.intervals import share_estimate
from rahf.evaluation.tasks import intervals, run_tasks

PAIRS = [
    {"prompt": f"w{n}", "chosen": f"w{n} w{n + 1} w5", "rejected": f"w{n + 2}"} for n in range(2, 8)
]


def save_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_preferences_of_an_adapter_are_held_against_its_base(tmp_path, family, capsys):
    pairs = save_lines(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": ""}])
    common = ["preferences", "--pairs", pairs, "--output", tmp_path / "out.json", "--device", "cpu"]
    model = ["--model", family.adapters["positive"]]
    status, out, _ = evaluated(capsys, *common, *model)
    assert status == 0
    assert "implicit reward" in out
    assert "6 pairs, 1 dropped" in out
    implicit = read_json(tmp_path / "out.json")["implicit_reward"]
    evaluated(capsys, *common, *model, "--reference", family.base)
    assert read_json(tmp_path / "out.json")["implicit_reward"] == implicit
    evaluated(capsys, *common, "--model", family.base, "--limit", "3")
    figures = read_json(tmp_path / "out.json")
    assert figures["pairs"] == 3
    assert "implicit_reward" not in figures


@pytest.fixture
def files(tmp_path):
    texts = {"a": ["Lovely.", "Wonderful, I love it!"], "b": ["Dreadful and dull.", "It is there."]}
    return [
        save_lines(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"w{n}", "response": text} for n, text in enumerate(given)],
        )
        for name, given in texts.items()
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "notes.txt", "list.json", "data.json", "v.jsonl"])
def test_a_file_that_is_no_earlier_result_is_never_overwritten(tmp_path, files, capsys, name):
    for other, text in (("notes.txt", "precious"), ("list.json", "[1]"), ("data.json", '{"a": 1}')):
        (tmp_path / other).write_text(text)
    before = (tmp_path / name).read_text() if name != "v.jsonl" else None
    given = ["--judge", "lexicon", "--output", tmp_path / name, "--verdicts", tmp_path / "v.jsonl"]
    given += ["--url", "~nobody"]
    status, _, error = evaluated(capsys, "responses", "--responses", files[0], *given)
    assert status == 2
    assert ("names; give another" if before is None or name == "a.jsonl" else "no figures") in error
    assert (tmp_path / name).exists() == (before is not None)
    assert before is None or (tmp_path / name).read_text() == before


def test_a_judge_decides_between_two_files(tmp_path, files, capsys):
    output, verdicts = tmp_path / "out.json", tmp_path / "verdicts.jsonl"
    options = ["--judge", "lexicon", "--output", output, "--verdicts", verdicts]
    status, out, _ = evaluated(
        capsys, "responses", "--responses", files[0], "--against", files[1], *options
    )
    assert status == 0
    assert "a against b" in out
    assert "judge: lexicon" in out
    rate = read_json(output)["win_rate"]
    assert (rate["mean"], rate["high"]) == (1, 1)
    assert 0.2 < rate["low"] < 0.7  # of few prompts
    assert len(verdicts.read_text().splitlines()) == 4


def test_a_judge_scores_one_file(files, capsys):
    _, out, _ = evaluated(capsys, "responses", "--responses", files[0], "--judge", "length")
    assert "+14.000 [-74.943, +102.943]" in out
    assert "decides nothing" not in out
    for given, told in (((), "every response the same score"), (("--against", files[1]), "equal")):
        _, out, _ = evaluated(capsys, "responses", "--responses", files[0], "--judge", RARE, *given)
        assert f"{told}, so it decides nothing: name another judge." in out


RARE = "regex:no such words"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--judge", "lexicon", "--aspects"], "aspects are marked by choice:NAME or api:MODEL"),
        (["--judge", "api:m"], "give --aspects, or --against"),
        (["--judge", "api:m", "--aspects"], "needs --url"),
        (["--judge", "reward"], "judge 'reward' needs a model: reward:NAME"),
        (["--judge", "vibes"], "is not one of lexicon, length"),
        (["--judge", "length", "--aspects", "--against", "x"], "--aspects scores one file"),
    ],
)
def test_a_judge_that_cannot_do_it_is_reported(files, capsys, options, said):
    status, _, err = evaluated(capsys, "responses", "--responses", files[0], *options)
    assert status == 2
    assert said in err


@pytest.fixture
def tasks(tmp_path):
    """Make a folder with a task of two choices, one of which the tiny model finds likelier."""
    model, tokenizer, rows = tiny_model(), tiny_tokenizer(), []
    for n in range(4, 9):
        ids = torch.tensor([tokenizer(f"w{n}")["input_ids"]])
        order = model(ids).logits[0, -1].argsort(descending=True).tolist()
        best, worst = (next(t for t in given if t > 1) for given in (order, order[::-1]))
        rows.append({"question": f"w{n}", "choices": [f"w{worst}", f"w{best}"], "answer": 1})
    questions = save_lines(tmp_path / "questions.jsonl", rows)
    (tmp_path / "words.yaml").write_text(f"""\
task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
  cache_dir: {tmp_path / "cache"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
""")
    return tmp_path


def test_tasks_are_run_from_local_files_and_leave_everything_as_it_was(tasks):
    model, tokenizer = tiny_model().train(), tiny_tokenizer()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    state = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    figures = run_tasks(model, tokenizer, ["words"], task_folder=tasks, limit=4)
    assert figures["words"]["acc,none"] == 1
    assert model.training
    assert torch.is_grad_enabled()
    now = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    assert now == state
    assert tokenizer.padding_side == tiny_tokenizer().padding_side


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef f(x): return x\n"

HIDDEN_CODE = {
    "plain": {"words.yaml": "process_docs: !function code.f\n"},
    "in another file": {"other.yaml": "task: other\nprocess_docs: !function code.f\n"},
    "deep": {"words.yaml": "x: &a [{b: [!function code.f]}]\ny: *a\n"},
    "in a folder": {"in/deep.yaml": "task: deep\nprocess_docs: !function ../code.f\n"},
    "included": {"words.yaml": "include: part\n", "part": "process_docs: !function code.f\n"},
    "included by an included": {
        "words.yaml": "include: [part]\n",
        "part": "include: ../elsewhere/more\n",
        "../elsewhere/more": "process_docs: !function code.f\n",
    },
    "Python's own tag": {"words.yaml": "x: !!python/name:os.system\n"},
}


@pytest.mark.parametrize("case", HIDDEN_CODE)
def test_a_task_file_runs_python_only_with_trust(tasks, case):
    task = (tasks / "words.yaml").read_text()
    folder = tasks / "own"
    folder.mkdir()
    (folder / "words.yaml").write_text(task)
    (folder / "code.py").write_text(CODE)
    for name, text in HIDDEN_CODE[case].items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((task if name == "words.yaml" else "") + text)
    with pytest.raises(ValueError, match=r"runs Python code.*--trust_remote_code"):
        run_tasks(tiny_model(), tiny_tokenizer(), ["words"], task_folder=folder)
    assert not (folder / "ran").exists()


def test_a_trusted_task_file_runs_python(tasks):
    with (tasks / "words.yaml").open("a") as file:
        file.write("process_docs: !function code.f\n")
    (tasks / "code.py").write_text(CODE)
    figures = run_tasks(
        tiny_model(), tiny_tokenizer(), ["words"], task_folder=tasks, limit=2, trust_code=True
    )
    assert figures["words"]["acc,none"] == 1
    assert (tasks / "ran").exists()


def test_the_command_runs_tasks_of_ones_own(tasks, family, capsys):
    common = ["tasks", "--model", family.base, "--task_folder", tasks, "--device", "cpu"]
    status, out, _ = evaluated(capsys, *common, "--tasks", "words", "--output", tasks / "out.json")
    assert status == 0
    assert "| words | acc,none" in out
    figures = read_json(tasks / "out.json")["tasks"]["words"]
    assert figures["acc,none"] == 1
    wilson = share_estimate([1.0] * 5)
    assert figures["acc,none_interval"] == [wilson.low, wilson.high]
    assert f"1 [{wilson.low:.4g}, 1]" in out


def test_a_figure_that_is_no_mean_over_questions_has_no_interval():
    figures = {"acc,none": 0.5, "acc,strict": 1.0, "perplexity,none": 9.0, "alias": "words"}
    samples = [
        {"filter": kind, "acc": float(n > 1 or kind == "strict"), "perplexity": (-1.0, 4)}
        for n in range(4)
        for kind in ("none", "strict")
    ]
    found = intervals(figures, samples)
    assert found.keys() == {"acc,none_interval", "acc,strict_interval"}
    assert found["acc,none_interval"] == list(share_estimate([0.0, 0.0, 1.0, 1.0])[1:])
    assert intervals(figures | {"acc,none": 0.6}, samples).keys() == {"acc,strict_interval"}
    assert intervals(figures, []) == {}


def test_a_model_whose_predictions_are_not_finite_has_no_figures_of_tasks(tasks):
    model = tiny_model()
    model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(ValueError, match="task words: the log-likelihood of answer 1 of 4 is nan"):
        run_tasks(model, tiny_tokenizer(), ["words"], task_folder=tasks, limit=2)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_figure_of_a_task_that_is_not_finite_is_no_number(tasks, family, capsys, value):
    with (tasks / "words.yaml").open("a") as file:
        file.write("process_results: !function code.f\n")
    (tasks / "code.py").write_text(f"def f(doc, results):\n    return {{'acc': float('{value}')}}")
    common = ["tasks", "--model", family.base, "--task_folder", tasks, "--device", "cpu"]
    common += ["--tasks", "words", "--output", tasks / "out.json", "--trust_remote_code"]
    status, out, _ = evaluated(capsys, *common)
    assert status == 0
    assert "| words | acc,none   | not finite |" in out
    assert read_json(tasks / "out.json")["tasks"]["words"]["acc,none"] is None


def test_tasks_are_put_in_the_template_that_is_given(tasks, family, capsys, monkeypatch):
    given = "{% for m in messages %}w3 {{ m.content }} w2 {% endfor %}"
    rendered, usual = [], type(tiny_tokenizer()).apply_chat_template

    def watched(tokenizer, *args, **kwargs):
        rendered.append(tokenizer.chat_template)
        return usual(tokenizer, *args, **kwargs)

    monkeypatch.setattr(type(tiny_tokenizer()), "apply_chat_template", watched)
    common = ["tasks", "--model", family.base, "--task_folder", tasks, "--device", "cpu"]
    common += ["--tasks", "words", "--chat_template", given]
    status, _, err = evaluated(capsys, *common)
    assert status == 2
    assert "--chat_template is read with --chat only" in err
    assert evaluated(capsys, *common, "--chat")[0] == 0
    assert rendered[-1] == given


def test_a_missing_harness_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'rahf\[eval\]'"):
        run_tasks(tiny_model(), tiny_tokenizer(), ["words"])
