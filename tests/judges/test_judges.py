"""Judges: what they read, how their words are read, verdicts that are kept, rules, models."""

import io
import json

import pytest
import torch
from tiny_models import classifier, tiny_model, tiny_model_of_bytes, tiny_tokenizer
from tokenizers_for_tests import chatml_tokenizer, llama_tokenizer
from tqdm.auto import tqdm

from rahf.judges.judge import Verdict, Verdicts, first_json_object
from rahf.judges.local_models import (
    Choices,
    RewardJudge,
    WrittenJudge,
    aspects_choice_judge,
    better_choice_judge,
    complete_part,
)
from rahf.judges.questions import (
    ASPECTS,
    aspects_as_json,
    aspects_question,
    better_question,
    read_aspects,
    read_better,
)
from rahf.judges.rules import declines, lexicon_tone, rule

ASKED = [{"role": "user", "content": "How is the soup?"}]


class Counting:
    """A scorer that counts letters and the texts it has been given."""

    responses = 1

    def __init__(self, id="letters", dies_after=None):
        self.id, self.given, self.dies_after = id, [], dies_after

    def read(self, messages, *responses):
        return responses[0]

    def verdicts(self, read):
        assert read, "there is nothing to ask"
        for text in read:
            if len(self.given) == self.dies_after:
                raise KeyboardInterrupt
            self.given.append(text)
            yield Verdict(float(len(text)), f"said of {text}")


def test_nothing_is_asked_twice_and_verdicts_are_kept_with_judge_and_hash(tmp_path):
    path, judge = tmp_path / "deep" / "verdicts.jsonl", Counting()
    verdicts = Verdicts(path)
    assert [v.value for v in verdicts.ask(judge, ["aa", "b", "aa"])] == [2, 1, 2]
    again = Verdicts(path)
    assert again.ask(judge, ["b", "cccc"])[0] == Verdict(1.0, "said of b")
    assert judge.given == ["aa", "b", "cccc"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {len(line["prompt_hash"]) for line in lines} == {64}
    assert {line["judge"] for line in lines} == {"letters"}
    other = Counting("other")
    again.ask(other, ["b"])
    assert other.given == ["b"]


def test_a_judge_may_return_what_python_takes_for_the_end_of_a_line(tmp_path):
    judge, odd = Counting(), "a\u2028b\x85c\rd"
    Verdicts(tmp_path / "v.jsonl").ask(judge, [odd, "b"])
    assert Verdicts(tmp_path / "v.jsonl").ask(judge, [odd])[0].said == f"said of {odd}"
    assert judge.given == [odd, "b"]


def test_verdicts_of_a_stopped_run_are_kept_a_half_written_one_is_asked_again(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Verdicts(path).ask(Counting(dies_after=2), ["a", "bb", "ccc"])
    path.write_text(path.read_text()[:-9])
    judge = Counting()
    assert [v.value for v in Verdicts(path).ask(judge, ["a", "bb", "ccc"])] == [1, 2, 3]
    assert judge.given == ["bb", "ccc"]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    [
        '{"better": "A"}',
        '```json\n{"better": "A"}\n```',
        'Well {thinking}: {"better": "A", "reason": "has {braces}"} and so on',
        '```\n{\n"better": "a"\n}\n``` {"better": "B"}',
    ],
)
def test_json_is_found_alone_fenced_and_among_words(text):
    assert read_better(text) == 1.0


@pytest.mark.parametrize("text", ["", "A", "{", '{"better": "C"}', '{"best": "A"}', '["A"]'])
def test_what_cannot_be_read_is_missing(text):
    assert read_better(text) is None


def test_the_first_object_is_the_outermost():
    assert first_json_object('x {"a": {"b": 1}} {"c": 2}') == {"a": {"b": 1}}
    assert first_json_object("none") is None


def test_marks_of_aspects_are_read_one_by_one():
    marks = {name: {"reason": "so", "score": 4} for name in ASPECTS}
    marks |= {"depth": 3, "clarity": {"score": "5"}, "safety": {"score": 6}}
    marks |= {"engagement": {"score": True}, "factuality": {"reason": "no score"}}
    assert read_aspects(f"```json\n{json.dumps(marks)}\n```") == {
        "helpfulness": 4,
        "clarity": 5,
        "factuality": None,
        "depth": 3,
        "engagement": None,
        "safety": None,
    }
    assert read_aspects("no marks at all") is None


def test_questions_hold_the_query_and_the_answers_in_their_order():
    text = better_question(ASKED, "one", "two")
    assert text.index("How is the soup?") < text.index("one") < text.index("two")
    asked = aspects_as_json(ASKED, "hot")
    assert all(name in asked for name in ASPECTS)
    assert "[Answer]\nhot\n" in asked


@pytest.mark.parametrize(
    ("name", "scores"),
    [("length", [5, 16]), ("regex:W.rm", [1, 0]), ("refusal", [0, 1]), ("lexicon", [0.2263, 0])],
)
def test_rules_score_the_response_alone(name, scores):
    judge = rule(name)
    read = [judge.read(ASKED, text) for text in ("Warm.", "I can't say why.")]
    assert [v.value for v in judge.verdicts(read)] == pytest.approx(scores)


def test_the_lexicon_distinguishes_praise_from_complaint():
    scores = lexicon_tone()(["What a wonderful, lovely day!", "Awful, dull and sad.", "A door."])
    assert scores[0] > 0.5
    assert scores[1] < -0.5
    assert abs(scores[2]) < 0.05


def test_a_missing_lexicon_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ValueError, match=r"pip install 'rahf\[judges\]'"):
        lexicon_tone()


@pytest.mark.parametrize("name", ["lexcion", "regex:", "regex:("])
def test_an_unknown_rule_is_reported(name):
    with pytest.raises(ValueError, match="judge"):
        rule(name)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m very sorry, no.", True),
        ("As an AI, I have no body.", True),
        ("I won't do that.", True),
        ("It is not appropriate or ethical to enter a house that is not yours.", True),
        ("It is never okay to do so.", True),
        ("It is not far, and it is fine to walk.", False),
        ("Sure, here is how I can help.", False),
        ("Here is a story. " * 20 + "I'm sorry, he said.", False),
    ],
)
def test_a_refusal_is_known_by_how_a_response_begins(text, refuses):
    assert declines(text) is refuses


def test_a_reward_model_scores_prompt_and_response_whatever_the_batch():
    model, tokenizer = classifier(), chatml_tokenizer()
    texts = ["I loved it", "dull", "The soup is warm, thick and well seasoned."]
    for batch_size in (1, 2, 8):
        judge = RewardJudge(model, tokenizer, "rm", batch_size=batch_size)
        read = [judge.read(ASKED, text) for text in texts]
        values = [verdict.value for verdict in judge.verdicts(read)]
        if batch_size == 1:
            alone = values
        assert values == pytest.approx(alone, abs=1e-5)
    ids = torch.tensor([tokenizer(read[0], add_special_tokens=False)["input_ids"]])
    assert alone[0] == pytest.approx(model(ids).logits.item(), abs=1e-5)
    assert "How is the soup?" in read[0]
    assert "I loved it" in read[0]


def test_the_bar_of_a_judging_advances_by_the_size_of_what_is_done(monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *given, **options):
            super().__init__(*given, **options, file=io.StringIO())
            bars.append(self)

    for module in ("judges.local_models", "generation.answers"):
        monkeypatch.setattr(f"rahf.{module}.tqdm", Bar)
    texts = ["a", "a much longer text than the first one", "three"]
    choices = Choices(tiny_model_of_bytes(), chatml_tokenizer(), batch_size=2)
    for judge in (
        RewardJudge(classifier(), chatml_tokenizer(), "rm", batch_size=2),
        better_choice_judge(choices, "lm"),
    ):
        list(judge.verdicts(texts))
        assert bars.pop().n == sum(map(len, texts))
    judge = WrittenJudge("lm", 1, aspects_question, lambda said: None, choices, max_tokens=3)
    list(judge.verdicts(texts))
    assert [bar.n for bar in bars] == [3 * len(texts)]


def test_a_reward_model_reads_one_bos_where_the_template_writes_it():
    model, tokenizer, seen = classifier(), llama_tokenizer(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    judge = RewardJudge(model, tokenizer, "rm")
    list(judge.verdicts([judge.read(ASKED, "warm")]))
    tokenizer.chat_template = None
    judge = RewardJudge(model, tokenizer, "rm")
    list(judge.verdicts([judge.read(ASKED, "warm")]))
    assert [ids.count(tokenizer.bos_token_id) for ids in seen] == [1, 1]


def test_a_classifier_without_a_template_reads_the_response_and_gives_log_odds_of_a_label():
    model, tokenizer = classifier(labels=3), chatml_tokenizer()
    tokenizer.chat_template = None
    judge = RewardJudge(model, tokenizer, "tone", label=2)
    assert judge.read(ASKED, "dull") == "dull"
    [verdict] = judge.verdicts(["dull"])
    p = model(torch.tensor([tokenizer("dull")["input_ids"]])).logits.softmax(-1)[0, 2]
    assert verdict.value == pytest.approx(torch.log(p / (1 - p)).item(), abs=1e-4)
    assert judge.id == "tone, label 2"
    with pytest.raises(ValueError, match="label 3 is not one of the 3 labels"):
        RewardJudge(model, tokenizer, "tone", label=3)


def test_a_language_model_judges_by_the_probabilities_of_the_options():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    questions = ["w4 w5 w6", "w7", "w8 w9"]
    expected = []
    for question in questions:
        ids = tokenizer(f"Question: {question}\n\nAnswer:")["input_ids"]
        logits = model(torch.tensor([ids])).logits[0, -1]
        expected.append(logits[[12, 13]].softmax(-1).tolist())
    for batch_size in (1, 2):
        found = list(Choices(model, tokenizer, batch_size).probabilities(questions, ("w12", "w13")))
        assert found == [pytest.approx(row, abs=1e-5) for row in expected]
    with pytest.raises(ValueError, match="begins the answers w12, w12 w13 with the same"):
        list(Choices(model, tokenizer).probabilities(questions, ("w12", "w12 w13")))


def test_choice_judges_weigh_both_letters_and_all_marks():
    model = tiny_model_of_bytes()
    choices = Choices(model, chatml_tokenizer())
    better = better_choice_judge(choices, "lm")
    assert better.responses == 2
    [verdict] = better.verdicts([better.read(ASKED, "a", "b")])
    assert 0 < verdict.value < 1
    aspects = aspects_choice_judge(choices, "lm")
    read = aspects.read(ASKED, "warm")
    [verdict] = aspects.verdicts([read])
    assert list(verdict.value) == list(ASPECTS)
    assert all(1 < mark < 5 for mark in verdict.value.values())
    assert len(set(verdict.value.values())) > 1


def test_a_text_longer_than_the_context_is_missing_and_the_others_are_answered():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    judge = WrittenJudge("lm", 1, str, lambda _: 1.0, Choices(model, tokenizer, 2), max_tokens=3)
    long = "w5 " * model.config.max_position_embeddings
    found = list(judge.verdicts(["w4", long, "w6", long, long]))
    assert [verdict.value for verdict in found] == [1.0, None, 1.0, None, None]
    assert "tokens, more than" in found[1].said
    assert [verdict.said for verdict in judge.verdicts(["w6"])] == [found[2].said]
    with pytest.raises(ValueError, match=r"shortest of 2 texts has \d+ tokens.*shorter texts"):
        list(judge.verdicts([long, long]))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("It is active on digits. It is al", "It is active on digits."),
        ("It is active on and on and", ""),
        ('{"explanation": "digits"}', '{"explanation": "digits"}'),
        ('{"explanation": "dig', ""),
        ("It is active on digits\nof", "It is active on digits\n"),
        ("All of it.", "All of it."),
    ],
)
def test_of_an_answer_that_is_cut_off_only_what_is_complete_is_read(said, kept):
    assert complete_part(said) == kept
    choices = Choices(tiny_model(), tiny_tokenizer())
    judge = WrittenJudge("lm", 1, str, lambda text: float(len(text)), choices, 2, begin=said)
    [verdict] = judge.verdicts(["w4"])  # two tokens more, cut off
    assert verdict.value == len(kept)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(.*a){25}$", r"^(\w+\s?)*$"])
def test_a_search_without_end_is_an_error_that_names_the_pattern(pattern, monkeypatch):
    monkeypatch.setattr("rahf.judges.rules.SEARCH_SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"longer than 0\.05 seconds") as error:
        list(rule(f"regex:{pattern}").verdicts(["a" * 5000 + "!"]))
    assert pattern in str(error.value)
