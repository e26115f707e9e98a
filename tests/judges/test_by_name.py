"""Judges by their names: what is refused, what they are remembered by, when a model is loaded."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import classifier, lora, tiny_model_of_bytes
from tokenizers_for_tests import chatml_tokenizer, word_tokenizer
from transformers import AutoModelForCausalLM

from rahf.judges import by_name as named_judges
from rahf.judges.by_name import NamedJudge, aspects_judge, comparing_judge, scoring_judge
from rahf.judges.judge import Verdicts
from rahf.judges.local_models import Choices, RewardJudge, better_choice_judge
from rahf.judges.names import JudgeName, name_problems, parse_judge, url_problems

CPU = torch.device("cpu")
ASKED = [{"role": "user", "content": "How is the soup?"}]


def named(name, **options):
    return NamedJudge(name, CPU, **options)


@pytest.fixture
def saved(tmp_path):
    """Save a language model and a classifier with three labels; return their folders."""
    for name, model in (("lm", tiny_model_of_bytes()), ("classifier", classifier(labels=3))):
        model.save_pretrained(tmp_path / name)
        chatml_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


def test_a_name_is_a_kind_and_what_it_is_of():
    assert parse_judge("length") == JudgeName("length", "")
    assert parse_judge(r"regex:a\b:c") == JudgeName("regex", r"a\b:c")
    assert parse_judge("api:org/model:free") == JudgeName("api", "org/model:free")
    rules = {name: parse_judge(name).is_rule for name in ("lexicon", "regex:a", "reward:m")}
    assert rules == {"lexicon": True, "regex:a": True, "reward:m": False}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lexcion", "'lexcion' is not one of lexicon, length, refusal, regex:PATTERN, reward:NAME"),
        ("regex", "is not one of"),
        ("regex:", "is not one of"),
        ("length:3", "is not one of"),
        ("regex:(", "no regular expression"),
        ("choice", "needs a model: choice:NAME"),
        ("api:", "needs a model: api:NAME"),
    ],
)
def test_a_name_of_no_judge_is_reported(name, problem):
    [found] = name_problems(name)
    assert problem in found
    with pytest.raises(ValueError, match=r"^judge '"):
        comparing_judge(named(name))


def test_an_api_needs_a_url():
    assert url_problems("api:m", None, "url") == [
        "judge 'api:m' needs url, for instance http://localhost:8000/v1"
    ]
    assert "does not begin with http" in url_problems("api:m", "localhost:8000", "url")[0]
    assert url_problems("api:m", "https://host/v1", "url") == url_problems("length", None, "url")
    with pytest.raises(ValueError, match="needs --url"):
        comparing_judge(named("api:m"))


def test_a_judge_that_cannot_score_or_mark_is_reported():
    with pytest.raises(ValueError, match="marks aspects or compares"):
        scoring_judge(named("choice:m"))
    with pytest.raises(ValueError, match="gives one score"):
        aspects_judge(named("length"))
    assert scoring_judge(named("length")).responses == 1


def test_a_model_as_judge_answers_as_when_it_is_loaded_at_once(saved):
    judge = comparing_judge(named(f"choice:{saved}/lm"))
    read = [judge.read(ASKED, "warm", "dull"), judge.read(ASKED, "dull", "warm")]
    direct = better_choice_judge(Choices(tiny_model_of_bytes(), chatml_tokenizer()), "lm")
    assert read == [direct.read(ASKED, "warm", "dull"), direct.read(ASKED, "dull", "warm")]
    values = [verdict.value for verdict in judge.verdicts(read)]
    assert values == pytest.approx([v.value for v in direct.verdicts(read)], abs=1e-6)
    assert judge.responses == 2
    marks = aspects_judge(named(f"choice:{saved}/lm"))
    assert marks.responses == 1


def test_a_tokenizer_that_cannot_choose_is_told_before_its_model_is_loaded(saved):
    word_tokenizer().save_pretrained(saved / "lm")  # A, B and the digits are unknown words
    for build, options in ((comparing_judge, "A, B"), (aspects_judge, "1, 2, 3, 4, 5")):
        with pytest.raises(ValueError, match=rf"'choice:.*lm': .*{options} with the same token"):
            build(named(f"choice:{saved}/lm"))


def test_a_classifier_as_judge_reads_the_label_that_is_asked_for(saved):
    judge = comparing_judge(named(f"reward:{saved}/classifier", label=2))
    direct = RewardJudge(classifier(labels=3), chatml_tokenizer(), "c", label=2)
    read = [judge.read(ASKED, "warm")]
    assert read == [direct.read(ASKED, "warm")]
    [value], [expected] = ([v.value for v in each.verdicts(read)] for each in (judge, direct))
    assert value == pytest.approx(expected, abs=1e-5)
    assert judge.id.endswith(", label 2")
    with pytest.raises(ValueError, match="label 3 is not one of the 3 labels"):
        comparing_judge(named(f"reward:{saved}/classifier", label=3))


@pytest.mark.parametrize("name", ["choice:lm", "reward:classifier"])
def test_a_model_is_loaded_for_new_texts_alone_and_let_go_of(saved, monkeypatch, name):
    monkeypatch.chdir(saved)
    loaded = []
    for function in ("load_model", "load_classifier"):
        load = getattr(named_judges, function)

        def watched(*given, load=load):
            model = load(*given)
            loaded.append(weakref.ref(model))
            return model

        monkeypatch.setattr(named_judges, function, watched)
    judge = comparing_judge(named(name))
    read = [judge.read(ASKED, *texts[: judge.responses]) for texts in ("ab", "ba")]
    assert loaded == []
    first = Verdicts(saved / "verdicts.jsonl").ask(judge, read)
    gc.collect()
    assert [model() for model in loaded] == [None]
    again = Verdicts(saved / "verdicts.jsonl").ask(comparing_judge(named(name)), read)
    assert again == first
    assert len(loaded) == 1


def retrained(path):
    """Change the weights in place: the file keeps its name, its size and its time."""
    stat = path.stat()
    if path.suffix == ".bin":
        torch.save({key: 2 * part for key, part in torch.load(path).items()}, path)
    else:
        save_file({key: 2 * part for key, part in load_file(path).items()}, path, {"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("choice:lm", "lm/model.safetensors"),
        ("choice:lm", "lm/pytorch_model.bin"),
        ("choice:adapter", "adapter/adapter_model.safetensors"),
        ("choice:adapter", "lm/model.safetensors"),
        ("reward:classifier", "classifier/model.safetensors"),
        ("references:references.jsonl", "lm/model.safetensors"),
    ],
)
def test_a_model_that_is_trained_anew_is_another_judge(saved, monkeypatch, name, changed):
    monkeypatch.chdir(saved)
    if name == "choice:adapter":
        get_peft_model(AutoModelForCausalLM.from_pretrained("lm"), lora()).save_pretrained(
            "adapter"
        )
    Path("references.jsonl").write_text('{"prompt": "a", "right": "b", "wrong": "c"}')
    if changed.endswith(".bin"):
        torch.save(load_file("lm/model.safetensors"), changed)
        Path("lm/model.safetensors").unlink()
    before = comparing_judge(named(name, encoder="lm")).id
    Path(changed).touch()
    assert comparing_judge(named(name, encoder="lm")).id == before
    retrained(Path(changed))
    assert comparing_judge(named(name, encoder="lm")).id != before


def test_a_judge_that_is_not_there_is_reported_before_it_is_asked(tmp_path):
    for kind in ("choice", "reward"):
        with pytest.raises((OSError, ValueError), match="nothing"):
            comparing_judge(named(f"{kind}:{tmp_path}/nothing"))
