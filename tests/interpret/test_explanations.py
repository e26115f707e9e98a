"""Explanations of planted features, and their scores: what is known must be found, and what is
nothing must score as nothing.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from judge_server import server
from planted_dictionaries import planted_model_and_dictionary
from tiny_models import tiny_model_of_bytes
from tiny_recipes import write_lines
from tokenizers_for_tests import (
    SENTENCES,
    chatml_tokenizer,
    gpt2_tokenizer,
    llama_tokenizer,
    word_tokenizer,
)

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.commands.options.explanations import read_explained
from rahf.directions.vectors import Directions
from rahf.interpret.explanations.claims import CLASSES, Claim, read_claim
from rahf.interpret.explanations.examples import Drawing, Example
from rahf.interpret.explanations.explainer import Case, Explanation
from rahf.interpret.explanations.explaining import Job, Wanted, explain
from rahf.interpret.explanations.judging import Asked, RuleJudge, client_judge, read_yes
from rahf.interpret.explanations.language_model import (
    LanguageModel,
    client_writer,
    read_explanation,
)
from rahf.interpret.explanations.predict import Differing, Moved, predict
from rahf.interpret.explanations.records import read_examples, read_records
from rahf.interpret.explanations.score import Scorer, areas, asking_marks, asking_texts, score_units
from rahf.interpret.explanations.scoring import (
    Answer,
    area_figures,
    mean_figures,
    variance_explained,
)
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.units import Unit, random_directions
from rahf.interpret.explanations.values import Judged, SurprisalJudge
from rahf.interpret.explanations.vectors import Effects, effects_of
from rahf.interpret.features.checkpoints import save_dictionary
from rahf.interpret.features.corpus import corpus_of_texts
from rahf.interpret.features.store import CodeStore
from rahf.interpret.features.streams import StateReader
from rahf.judges.api import Api
from rahf.judges.clients import Function
from rahf.judges.judge import Verdicts

DIGITS = Claim("class", ("digits",)).sentence(0.98, ["1", "2"])


def texts(count, seed=0):
    """Words, and now and then a number, a capital or a question mark, each drawn for itself."""
    draw = random.Random(seed)
    known = [word.strip(".,?") for text in SENTENCES for word in text.lower().split()]
    return [" ".join(_word(draw, draw.choice(known)) for _ in range(40)) for _ in range(count)]


def _word(draw, word):
    chance = draw.random()
    if chance < 0.06:
        return str(draw.randrange(99))
    if chance < 0.12:
        return word.capitalize()
    return f"{word}?" if chance < 0.18 else word


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The planted model and dictionary, its texts, and what `rahf features explain` makes."""
    folder = tmp_path_factory.mktemp("planted")
    tokenizer = chatml_tokenizer()
    model, dictionary = planted_model_and_dictionary(tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_dictionary(dictionary, folder / "dictionary")
    write_lines(folder / "texts.jsonl", [{"text": text} for text in texts(60)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert features("explain", *EXPLAIN, "--output", "out") == 0
    return folder


EXPLAIN = ("--model", "model", "--dictionary", "dictionary", "--text", "texts.jsonl")
EXPLAIN += ("--feature", 0, "--feature", 1, "--feature", 2, "--random", 2, "--window", 16)


def features(command, *arguments):
    return main(["features", command, *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def records(folder):
    return read_records(folder / "out")


@pytest.fixture
def perfect(records):
    return Judged(RuleJudge(), Verdicts()), TokenTexts(gpt2_tokenizer())


# Texts of tokens


@pytest.mark.parametrize(
    "made", [chatml_tokenizer, gpt2_tokenizer, llama_tokenizer, word_tokenizer]
)
def test_texts_of_single_tokens_make_the_text_again(made):
    tokenizer, text = made(), " I loved it, the ending was a delight. 12"
    shown = TokenTexts(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(shown.shown(token) for token in ids).strip() == tokenizer.decode(ids).strip()
    assert shown.text([*tokenizer.all_special_ids, *ids]) == shown.text(ids)


def test_bytes_that_are_no_character_are_shown_and_joined_where_they_are_whole():
    tokenizer = gpt2_tokenizer()
    shown, ids = TokenTexts(tokenizer), tokenizer("né 三", add_special_tokens=False)["input_ids"]
    single = [shown.shown(token) for token in ids]
    assert single == ["n", r"\xc3", r"\xa9", " ", r"\xe4", r"\xb8", r"\x89"]
    assert shown.text(ids) == "né 三"
    assert shown.text(ids, {1, 2}) == "n«é» 三"
    assert shown.text(ids, {1}) == r"n«\xc3»\xa9 三"
    assert shown.shown(len(tokenizer) + 50) == ""  # a row of the embedding without a token


def test_bytes_of_a_vocabulary_that_falls_back_to_them_are_known():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "<0xC3>": 1, "<0xA9>": 2, "[U]": 3}, "[U]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    shown = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[U]"))
    assert [shown.shown(token) for token in range(3)] == ["a", r"\xc3", r"\xa9"]
    assert shown.text([0, 1, 2], {0}) == "«a»é"


# Examples


def test_examples_are_those_of_a_loop_over_all_windows(here):
    examples = read_examples(here / "out")
    tokenizer = gpt2_tokenizer()
    shown = TokenTexts(tokenizer)
    assert [each.unit.kind for each in examples] == ["feature"] * 3 + ["random"] * 2
    for each in examples[:3]:
        rule = (str.isdecimal, str.isupper, "?".__eq__)[each.unit.number]
        halves = {half: getattr(each, half) for half in ("shown", "scored")}
        for half, drawn in halves.items():
            count = sum(example.activates for example in drawn)
            assert count == {"shown": 30, "scored": 20}[half] or count == len(drawn) - count
            for example in drawn:
                fires = [rule(shown.shown(token).strip()) for token in example.ids]
                assert {p for p, yes in enumerate(fires) if yes} >= set(example.active)
                assert example.activates == bool(example.active)
                assert not set(example.wrong) & set(example.active)
                assert len(example.wrong) in (0, len(example.active))
            peaks = [
                (example.quantile, example.peak) for example in drawn if example.kind == "quantile"
            ]
            tops = [peak for quantile, peak in peaks if quantile == 4]
            assert max(peak for quantile, peak in peaks if quantile == 0) <= min(tops)
        ids = [[tuple(example.ids) for example in drawn] for drawn in halves.values()]
        assert not set(ids[0]) & set(ids[1])  # what is scored was not shown


def test_near_misses_hold_the_unit_s_own_tokens(records):
    near = [e for record in records for e in record.examples.scored if e.kind == "near"]
    assert near  # of random directions: digits always activate theirs
    for record in records:
        drawn = [*record.examples.shown, *record.examples.scored]
        counts = [
            sum(e.kind == kind for e in record.examples.scored) for kind in ("near", "random")
        ]
        assert counts[0] <= counts[1]
        own = {e.ids[place] for e in drawn for place in e.active}
        if record.unit == Unit("feature", 2, 0):
            assert {"?"} == {TokenTexts(gpt2_tokenizer()).shown(token) for token in own}
            assert counts[0] == 0
        for example in drawn:
            assert example.kind != "near" or not example.active
            assert example.kind != "near" or len(own & set(example.ids)) or len(own) > 8


def job_of(folder, **drawing):
    tokenizer = gpt2_tokenizer()
    model, dictionary = planted_model_and_dictionary(tokenizer)
    corpus = corpus_of_texts(texts(23), tokenizer, tokens=10**6, length=40)
    reader = StateReader(model, (0,), "residual", "states", 0, batch_size=5)
    wanted = Wanted(dictionary, [0, 1, 2], None, 1, 0)
    return Job(reader, corpus, wanted, Drawing(size=16, **drawing), folder)


class Records:
    """What `explain` needs of a file of records."""

    def __init__(self):
        self.records = []

    def begin(self):
        pass

    def add(self, records):
        self.records += records


class Nothing:
    """An explainer that notes what it was shown."""

    id = "nothing"

    def __init__(self):
        self.cases = []

    def explain(self, cases):
        self.cases += cases
        return [Nothing.said] * len(cases)


def test_the_last_batch_counts_and_a_pass_that_is_done_is_not_repeated(tmp_path, monkeypatch):
    Nothing.said = Explanation("x")
    job, one = job_of(tmp_path), Nothing()
    assert job.corpus.pieces % 64
    assert job.corpus.pieces % 5
    explain(job, lambda _: one, Records())
    store = CodeStore(tmp_path / "codes")
    assert store.tokens == int(job.corpus.read.sum())
    counts = store.counts()
    shown = TokenTexts(gpt2_tokenizer())
    read = [shown.shown(t).strip() for t in job.corpus.ids[job.corpus.read].tolist()]
    assert counts[0] == sum(map(str.isdecimal, read))
    assert counts[2] == sum(text == "?" for text in read)
    again, file = Nothing(), Records()
    monkeypatch.setattr(StateReader, "__call__", None)  # a second pass would fail
    explain(job, lambda _: again, file)
    assert [case.shown for case in again.cases] == [case.shown for case in one.cases]
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(one.cases, again.cases, strict=True))
    rest = Records()
    rest.records = file.records[:2]  # of a run that was killed
    explain(job, lambda _: again, rest)
    assert rest.records == file.records


class Counting(StateReader):
    """A reader that counts the pieces that it reads, and is killed in a given call."""

    calls, pieces, killed_in = 0, 0, None

    def __call__(self, pieces, *report):
        type(self).calls += 1
        if self.calls == self.killed_in:
            raise KeyboardInterrupt
        type(self).pieces += len(pieces)
        return super().__call__(pieces, *report)


def test_a_pass_that_was_killed_resumes_and_one_of_other_settings_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("rahf.interpret.explanations.examples.PIECES_AT_ONCE", 4)
    monkeypatch.setattr("rahf.interpret.explanations.examples.SAVE_SECONDS", 0.0)
    Nothing.said = Explanation("x")

    def run(folder, made_with, killed_in=None):
        folder.mkdir(exist_ok=True)
        job = job_of(folder)
        Counting.calls, Counting.pieces, Counting.killed_in = 0, 0, killed_in
        job = job._replace(reader=Counting(*job.reader), made_with=made_with)
        explain(job, lambda _: Nothing(), Records())
        return Counting.pieces, job.corpus.pieces

    def content(folder):
        found = CodeStore(folder / "codes").firings(range(4))
        return [part.tolist() for part in found], read_examples(folder)

    read, pieces = run(tmp_path / "intact", {"tokens": 1})
    trial = read - pieces
    assert pieces > 12
    for name, made_with, left in (("resumed", {"tokens": 1}, pieces - 8), ("other", {}, pieces)):
        folder = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            run(folder, {"tokens": 1}, killed_in=4)  # the trial, and two parts of the pass
        assert run(folder, made_with)[0] == trial + left, name
        assert content(folder) == content(tmp_path / "intact"), name
        assert [path.name for path in (folder / "codes").glob("*.json")] == ["codes.json"]
        assert run(folder, made_with)[0] == 0, name  # it is done
        assert run(folder, {"tokens": 2})[0] == trial + pieces, name


def test_a_draw_does_not_depend_on_the_other_units(tmp_path):
    job = job_of(tmp_path)
    store_of = {}
    for name, latents in {"all": [0, 1, 2], "one": [2]}.items():
        alone = job._replace(wanted=job.wanted._replace(latents=latents), folder=tmp_path / name)
        alone.folder.mkdir()
        explain(alone, lambda _: Nothing(), Records())
        found = {each.unit: each for each in read_examples(alone.folder)}
        store_of[name] = found[Unit("feature", 2, 0)]
    assert store_of["all"] == store_of["one"]


# Explanations by statistics


def test_the_planted_features_are_named(records):
    sentences = {record.unit.number: record.explanation for record in records[:3]}
    assert sentences[0].startswith("Active on tokens that are digits (9")
    assert sentences[1].startswith("Active on tokens that are words that begin with a capital")
    assert sentences[2].startswith('Active on the tokens "?" (9')
    assert sentences[2].endswith(' % of its activations); most typical tokens: "?".')


@pytest.mark.parametrize(
    "claim",
    [
        *(Claim("class", (name,)) for name in CLASSES),
        Claim("class", ("digits", "punctuation")),
        Claim("tokens", (" the", "\n", 'a "quoted", one', "; most")),
        Claim("after", (" of", ",")),
        Claim("about", ("film", "soup")),
    ],
)
@pytest.mark.parametrize("beside", [(), (0.25,), (None, (" a", ", b")), (1.0, (" a (5 %)",))])
def test_a_sentence_is_read_back_as_its_claim(claim, beside):
    assert read_claim(claim.sentence(*beside)) == claim


def test_a_rule_checks_claims_and_has_no_verdict_on_other_sentences():
    tokens, rule = ["a", "1", "b"], RuleJudge()
    cases = {
        (DIGITS, None): 1.0,
        (Claim("tokens", ("c",)).sentence(), None): 0.0,
        (DIGITS, (1,)): 1.0,
        (DIGITS, (0,)): 0.0,
        (DIGITS, (0, 1)): 0.5,
        (Claim("after", ("a",)).sentence(), (1,)): 1.0,
        ("The model likes digits.", None): None,
        ("Active on tokens that are odd.", None): None,
        ('Active on the tokens "a.', None): None,
        ("Active on the tokens 3.", None): None,
        ("", None): None,
    }
    read = [rule.read(Asked(text, "a1b", tokens, marked)) for text, marked in cases]
    assert [verdict.value for verdict in rule.verdicts(read)] == [*cases.values()]


def test_tokens_before_and_words_around_are_found_too(tmp_path):
    from rahf.interpret.explanations.examples import Background
    from rahf.interpret.explanations.statistics import Statistics

    tokenizer = word_tokenizer()
    shown = TokenTexts(tokenizer)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    plain = [ids(text) for text in SENTENCES * 5]
    statistics = Statistics(shown, Background(plain))
    after = [Example(ids(f"What {word} I it,"), {1: 2.0}, "top") for word in ("soup", "was", "is")]
    assert statistics.sentence(after * 4).startswith('Active on tokens after " What"')
    words = ("soup", "was", "is", "thick", "loved", "dull", "did", "think")
    about = [Example(ids(f"station? {words[n]} {words[n - 3]}"), {2: 1.0}, "top") for n in range(8)]
    assert statistics.sentence(about) == (
        'Active in text with the words "station" (94 % of its texts); most typical tokens: '
        '" did", " dull", " is", " loved", " soup".'
    )
    assert statistics.sentence([]) is None
    seen_once = [Example(ids("soup was thick"), {2: 1.0}, "top")]
    assert statistics.sentence(seen_once) is None  # chance does as much


# Scores


def scored(records, perfect, asking, sentences=None):
    """Return the AUC of each planted feature: with its explanation, and with given others."""
    judged, shown = perfect
    planted = records[:3]
    strangers = [planted[(row + 1) % 3].explanation for row in range(3)]
    scorer = Scorer(asking(planted, shown), judged, areas, "auc")
    return score_units(planted, scorer, sentences or strangers)


@pytest.mark.parametrize("asking", [asking_texts, asking_marks])
def test_a_perfect_judge_finds_the_planted_features_and_nothing_by_shuffled_explanations(
    records, perfect, asking
):
    found = scored(records, perfect, asking)
    assert all(row["auc"]["mean"] > 0.9 for row in found)
    assert all(row["failed"] == 0 and row["balanced_accuracy"] > 0.9 for row in found)
    shuffled = [row["shuffled"]["auc"]["mean"] for row in found]
    assert sum(shuffled) / 3 == pytest.approx(0.5, abs=0.1)
    assert len(found[0]["by_quantile"]) == 5
    same = scored(records, perfect, asking, ["Active on tokens that are digits."] * 3)
    constant = Judged(client_judge(Function("yes", lambda _: "Yes.")), Verdicts())
    always = score_units(
        records[:3], Scorer(asking(records, perfect[1]), constant, areas, "auc"), [None] * 3
    )
    assert all(row["auc"]["mean"] == row["balanced_accuracy"] == 0.5 for row in always)
    assert same[0]["shuffled"]["auc"]["mean"] == found[0]["auc"]["mean"]


def test_failed_answers_are_counted_and_never_scored(records, perfect):
    def call(prompt):
        said.append(prompt)
        return ("{broken", "Yes", "No")[len(said) % 3] if "digits" in prompt else "perhaps"

    said = []
    judged = Judged(client_judge(Function("odd", call), workers=1), Verdicts())
    scorer = Scorer(asking_texts(records, perfect[1]), judged, areas, "auc")
    found = score_units(records[:3], scorer, [None] * 3)
    assert found[0]["failed"] == pytest.approx(found[0]["asked"] / 3, abs=1)
    assert found[0]["auc"] is not None
    assert found[1] == {"asked": found[1]["asked"], "failed": found[1]["asked"], "auc": None}
    assert [read_yes(text) for text in ("Yes.", "**No**", "yes, it", "Yesterday", "", "1")] == [
        *(1.0, 0.0, 1.0, None, None, None),
    ]


def test_an_area_is_that_of_all_pairs_and_its_interval_holds_it():
    draw = random.Random(0)
    answers = [Answer(draw.choice((0.1, 0.5, 0.9)), n % 3 == 0, "g", n % 2) for n in range(60)]
    figures = area_figures(answers)
    sides = [[a.value for a in answers if a.fits == fits] for fits in (True, False)]
    pairs = [(p > n) + 0.5 * (p == n) for p in sides[0] for n in sides[1]]
    auc = figures["auc"]
    assert auc["mean"] == pytest.approx(sum(pairs) / len(pairs))
    assert auc["low"] < auc["mean"] < auc["high"]
    assert figures["against"] == {"g": pytest.approx(auc["mean"])}
    assert area_figures(answers[:6])["auc"] is None
    perfect = area_figures([Answer(float(n < 9), n < 9, "g") for n in range(18)])["auc"]
    assert perfect["mean"] == perfect["high"] == 1
    assert 0.6 < perfect["low"] < 0.8  # nine of nine prove no more
    assert mean_figures([figures], "auc")["mean"] == auc  # of one unit, over its texts
    both = mean_figures([figures, {**figures, "auc": perfect, "failed": 3}], "auc")
    assert both["mean"]["mean"] == pytest.approx((auc["mean"] + 1) / 2)
    assert (both["units"], both["failed"], both["asked"]) == (2, 3, 120)
    none = mean_figures([area_figures(answers[:6])], "auc")
    assert (none["units"], none["unscored"], none["mean"]) == (0, 1, None)


def test_a_round_trip_explains_what_is_predicted_on_other_texts():
    draw = random.Random(0)
    activations = [draw.random() for _ in range(80)]
    quantiles = [None if n % 2 else n % 4 // 2 for n in range(80)]

    def explained(values):
        return variance_explained(values, activations, quantiles)

    exact = explained([3 * a + 1 for a in activations])
    assert exact["variance"]["mean"] == pytest.approx(1)
    assert all(wanted == pytest.approx(guess) for wanted, guess in exact["by_quantile"])
    assert len(exact["by_quantile"]) == 2
    assert explained([draw.random() for _ in activations])["variance"]["mean"] < 0.1
    found = []
    for _ in range(50):  # what predicts nothing loses little, even with few texts of rare yes
        few = [draw.random() ** 3 if n % 2 else 0.0 for n in range(40)]
        said = [float(draw.random() < 0.2) for _ in few]
        found.append(variance_explained(said, few, [None] * 40)["variance"]["mean"])
    assert -0.15 < sum(found) / len(found) < 0
    assert explained([1.0] * 80)["variance"]["mean"] == pytest.approx(0, abs=0.1)
    missing = explained([None] * 75 + [1.0] * 5)
    assert missing == {"asked": 80, "failed": 75, "variance": None}


def test_surprisal_does_not_depend_on_the_batch_and_is_that_of_one_text_alone(tmp_path):
    model, tokenizer = tiny_model_of_bytes(), gpt2_tokenizer()
    lengths = (3, 40, 11, 7, 25)
    asked = [Asked(DIGITS, texts(1, seed=n)[0][:n], []) for n in lengths]
    found = []
    for size in (1, 2, 5, 64):
        judge = SurprisalJudge("tiny", model, tokenizer, size)
        read = [judge.read(each) for each in asked]
        found.append([verdict.value for verdict in judge.verdicts(read)])
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)
    from rahf.interpret.explanations.values import BEFORE, NOTHING

    def loss(explanation, text):
        before = tokenizer(BEFORE.format(explanation))["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids)).item()

    alone = [loss(NOTHING, each.text) - loss(DIGITS, each.text) for each in asked]
    assert found[0] == pytest.approx(alone, abs=1e-4)


# Language models


def answer_at(body):
    """A wise server: it explains what is marked, and knows digits."""
    prompt = body["messages"][0]["content"]
    if "Reply with one JSON object" in prompt:
        return json.dumps({"explanation": "numerals"})
    text = prompt.split("[Text]\n")[1].split("\n[End of the text]")[0]
    marked = text.split("«")[1].split("»")[0] if "«" in text else text
    return "Yes" if "numerals" in prompt and any(c.isdigit() for c in marked) else "No"


def test_a_server_that_is_slow_busy_and_broken_costs_nothing_twice(records, perfect, tmp_path):
    import time

    def slow(body):
        time.sleep(0.6)
        return "Yes"

    odd = [(200, {}, slow), (429, {"Retry-After": "0"}, "busy"), (200, {}, {"cut": "off"})]
    odd += [(200, {}, "{broken"), (500, {}, "down"), (200, {}, answer_at)]
    named = [records[0]._replace(explanation="numerals")]
    with server(*odd) as (url, requests):
        api = Api(url, "wise", first_wait=0.01, timeout=0.3)
        for _ in range(2):
            judged = Judged(client_judge(api, workers=1), Verdicts(tmp_path / "v.jsonl"))
            scorer = Scorer(asking_marks(named, perfect[1]), judged, areas, "auc")
            [found] = score_units(named, scorer, [None])
        assert found["failed"] == 1  # the broken answer; what was not answered was asked again
        assert found["auc"]["mean"] == 1
        assert len(requests) == found["asked"] + 4
        writer = LanguageModel(client_writer(api), perfect[1], Verdicts(tmp_path / "v.jsonl"))
        cases = [Case(r.unit, r.examples.shown, torch.zeros(16)) for r in records]
        assert [each.text for each in writer.explain(cases)] == ["numerals"] * 5
        count = len(requests)
        again = LanguageModel(client_writer(api), perfect[1], Verdicts(tmp_path / "v.jsonl"))
        again.explain(cases)
        assert len(requests) == count


def test_a_language_model_is_shown_marks_strengths_and_texts_without(records, perfect):
    case = Case(records[0].unit, records[0].examples.shown, torch.zeros(16))
    writer = LanguageModel(client_writer(Function("f", str)), perfect[1], Verdicts())
    [prompt] = writer.prompts([case])
    lines = [line for line in prompt.splitlines() if line.startswith("[")]
    assert len(lines) == 40
    assert all(("«" in line) == (not line.startswith("[0]")) for line in lines)
    marked = [part.split("»")[0] for line in lines for part in line.split("«")[1:]]
    assert all(part.strip().isdecimal() for part in marked)


def test_a_language_model_is_shown_the_tokens_that_the_vector_raises(records, perfect):
    model, dictionary = planted_model_and_dictionary(gpt2_tokenizer())
    vectors = torch.cat([dictionary.directions[:1], torch.zeros(1, 16)])
    found = effects_of(model, vectors, perfect[1])
    assert found[1] == Effects()  # nothing moves nothing
    assert len(found[0].raised) == 6
    assert all(token.strip().isdecimal() for token in found[0].raised)
    drawn = effects_of(model, random_directions(200, 16, 9), perfect[1])
    assert sum(bool(each.raised or each.lowered) for each in drawn) < 40  # 5 % of either side

    def prompts(effects):
        client = client_writer(Function("f", str))
        writer = LanguageModel(client, perfect[1], Verdicts(), effects=effects)
        return writer.prompts([Case(records[0].unit, records[0].examples.shown, vectors[0])] * 2)

    shown, hidden = prompts(lambda _: found)
    assert f"these tokens more likely to come next: {json.dumps(found[0].raised[0])}" in shown
    assert "likely to come next" not in hidden
    assert prompts(None) == [hidden] * 2


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ('{"explanation": "digits\\n of years"}', "digits of years"),
        ('Here: ```json\n{"explanation": "digits"}\n```', "digits"),
        ("Explanation: digits", "digits"),
        ("It is active on digits. It is wise.", "It is active on digits."),
        ("It is active on digits\nof years", "It is active on digits"),
        ("It is active on.", None),
        ("It is about digits.", "It is about digits."),
        ('{"explanation": 3}', None),
        ('{"explanation": "dig', None),
        ("One.\nTwo.", None),
        ("", None),
        ("x" * 301, None),
    ],
)
def test_an_answer_is_an_explanation_or_a_failure(said, sentence):
    assert read_explanation(said) == sentence


# The falsifiable form


def test_a_sentence_predicts_where_models_differ():
    prompts = [Asked("", f"{n}", [str(n), "x" if n % 2 else "y"]) for n in range(40)]
    divergence = torch.tensor([float(n % 2) + n / 1000 for n in range(40)], dtype=torch.double)
    differing = Differing(list(range(40)), divergence, divergence[:, None].expand(-1, 2))
    right, wrong = Claim("tokens", ("x",)).sentence(), Claim("tokens", ("3",)).sentence()
    moved = [Moved(1, 0.5, right, wrong), Moved(2, 0.1, wrong, None)]
    found = predict(moved, prompts, differing, Judged(RuleJudge(), Verdicts()))
    first, second = found["features"]
    assert first["differs"]["auc"]["mean"] == first["changes"]["auc"]["mean"] == 1
    assert abs(first["shuffled"]["auc"]["mean"] - 0.5) < 0.05
    assert abs(second["differs"]["auc"]["mean"] - 0.5) < 0.05
    assert second["shuffled"] == {}
    assert found["together"]["differs"]["auc"]["mean"] == 1


# Commands


def test_scores_stand_beside_both_nulls(here, capsys):
    neutral = ("--neutral", "texts.jsonl", "--kl", 0.5)
    scorers = [part for name in ("detection", "fuzzing", "surprisal", "embedding", "intervention",
                                 "round_trip") for part in ("--scorer", name)]  # fmt: skip
    options = ("out", *scorers, *neutral, "--encoder", "model")
    assert features("score", *options) == 0
    told = capsys.readouterr().out
    assert "detection 1.00 [0.84, 1.00]" in told
    lines = read_lines(here / "out/scores.jsonl")
    assert [line["kind"] for line in lines] == ["feature"] * 3 + ["random"] * 2
    results = read_json(here / "out/scores.jsonl.run.json")["summary"]
    assert list(results) == scorers[1::2]
    for part in results.values():
        assert part["explained"]["units"] == 3
        assert {"explained", "shuffled", "random"} < part.keys()
    assert lines[0]["scores"]["intervention"]["auc"]["mean"] > 0.6  # digits are written
    assert features("score", *options) == 0  # it is complete
    assert capsys.readouterr().out == told
    assert features("score", "out", "--seed", 1) == 2
    assert "was made, or begun, with other settings" in capsys.readouterr().err
    few = ("out", "--scorer", "detection", "--units", 1, "--output", "few.jsonl")
    assert features("score", *few) == 0
    some = read_lines(Path("few.jsonl"))
    assert [(line["kind"], line["number"]) for line in some] == [("feature", 0), ("random", 0)]
    assert some[0]["scores"]["detection"]["auc"] == lines[0]["scores"]["detection"]["auc"]
    pinned = ("--scorer", "intervention", *neutral, "--units", 1, "--output", "pinned.jsonl")
    assert features("score", "out", *pinned) == 2  # its texts are of all units
    assert "units: None there, 1 now" in capsys.readouterr().err


def test_costs_are_told_before_the_start(here, capsys):
    prices = ("--input_price", 2, "--output_price", 8)
    model = ("--explainer", "api:wise", "--url", "http://localhost:1/v1", *prices)
    assert features("explain", *EXPLAIN, "--output", "priced", *model, "--dry_run") == 0
    told = capsys.readouterr().out
    assert "minutes for all units" in told
    assert "per 1,000 units: 1,000 questions, " in told
    assert "price " in told
    judge = ("--judge", "api:wise", *model[2:])
    assert features("score", "out", *judge, "--dry_run") == 0
    told = capsys.readouterr().out
    assert "api:wise, estimate, per 1,000 units: " in told
    assert not (here / "priced").exists()


def test_a_server_explains_and_judges_by_the_commands(here, capsys):
    used = {"usage": {"prompt_tokens": 1000, "completion_tokens": 10}}

    def wise(body):
        return {"choices": [{"message": {"content": answer_at(body)}}], **used}

    replies = [*[(200, {}, wise)] * 2, (402, {}, "out of credit"), (200, {}, wise)]
    with server(*replies) as (url, requests):
        given = ("--explainer", "api:wise", "--url", url, "--workers", 1)
        assert features("explain", *EXPLAIN, "--output", "by_server", *given) == 2
        assert "out of credit" in capsys.readouterr().err
        assert len(read_lines(here / "by_server/verdicts.jsonl")) == 2
        prices = ("--input_price", 2, "--output_price", 50)
        assert features("explain", *EXPLAIN, "--output", "by_server", *given, *prices) == 0
        assert len(requests) <= 3 + 2 + 3  # two workers' questions may be lost, none is paid twice
        told = capsys.readouterr().out
        assert "asked, per 1,000 units: 1,000 questions, 1,000,000 tokens read" in told
        assert "price 2.50" in told
        assert features("score", "by_server", "--judge", "api:wise", "--url", url,
                        "--scorer", "fuzzing") == 0  # fmt: skip
    [digits, *others] = read_lines(here / "by_server/scores.jsonl")
    assert digits["explanation"] == "numerals"
    assert digits["scores"]["fuzzing"]["auc"]["mean"] == 1
    assert all(abs(line["scores"]["fuzzing"]["auc"]["mean"] - 0.5) < 0.4 for line in others[:2])


def test_a_local_model_explains_and_judges(here, capsys):
    local = ("--explainer", "local:model", "--random", 0, "--shown", 24)
    assert features("explain", *EXPLAIN[:-4], *local, "--output", "local") == 0
    assert features("score", "local", "--judge", "choice:model", "--scorer", "detection") == 0
    assert "choice:model, asked, per 1,000 units: " in capsys.readouterr().out
    lines = read_lines(here / "local/scores.jsonl")
    said = [line["explanation"] for line in lines if line["explanation"] is not None]
    assert all(text.startswith("It is active on") for text in said)
    kept = read_lines(here / "local/verdicts.jsonl")
    assert all(line["said"].startswith("It is active on") for line in kept[:3])
    assert all(line["tokens"][0] > 500 for line in kept[:3])
    assert all(line["tokens"][0] > 200 and not line["tokens"][1] for line in kept[3:])


def test_directions_are_explained_and_shown_beside_their_evidence(here, capsys, monkeypatch):
    _, dictionary = planted_model_and_dictionary(gpt2_tokenizer())
    Directions((0,), dictionary.directions[2:3] * 3).save("directions")
    options = ("--model", "model", "--text", "texts.jsonl", "--window", 16, "--random", 1)
    assert features("explain", *options, "--directions", "directions", "--output", "of_it") == 0
    [line, null] = read_lines(Path("of_it/explanations.jsonl"))
    assert (line["kind"], line["number"], null["kind"]) == ("vector", 0, "random")
    assert '"?"' in line["explanation"]
    from rahf.commands.directions import _explained

    shown = _explained(Path("of_it/explanations.jsonl"), [line], Path("directions"))
    assert "(not scored)" in shown
    Directions((0, 1), torch.randn(2, 16)).save("others")
    assert _explained(Path("of_it/explanations.jsonl"), [line], Path("others")).count("unexpl") == 2
    assert "explains other directions" in capsys.readouterr().err


def test_explanations_stand_beside_the_terms_of_a_direction(here, capsys):
    _, dictionary = planted_model_and_dictionary(gpt2_tokenizer())
    Directions((0,), dictionary.directions[0:1] + dictionary.directions[7:8]).save("sum")
    options = ("decompose", "sum", "--dictionary", "dictionary", "--terms", 2, "--explanations")
    assert features(*options, "out/explanations.jsonl") == 0
    told = capsys.readouterr()
    assert "Active on tokens that are digits" in told.out
    assert "unexplained" in told.out
    assert "1 of 2 features are unexplained" in told.err
    save_dictionary(dictionary, Path("copy"))
    settings = Path("copy/dictionary.json")
    settings.write_text(settings.read_text().replace("planted", "another"))
    for name, message in {
        ("copy", "out/explanations.jsonl"): "of another dictionary",
        ("dictionary", "texts.jsonl"): "holds no explanations",
        ("dictionary", "nowhere"): "There is no file nowhere",
    }.items():
        wrong = (*options[:3], name[0], *options[4:], name[1])
        assert features(*wrong) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_explained_is_one_clear_line(here, capsys):
    write_lines(Path("one.jsonl"), [{"text": texts(1)[0]}])
    explain_of = {
        ("--feature", 99): "features 0 to 31",
        ("--feature", 1, "--feature", 1): "given twice",
        ("--explainer", "rule"): "is not one of statistics, local:NAME, api:MODEL",
        ("--explainer", "api:x"): "needs --url",
        ("--input_price", 1): "give both",
        ("--text", "one.jsonl"): "the text is one document",
        ("--output", "dictionary"): "--output dictionary is in dictionary, which --dictionary",
        ("--output", "dictionary/why"): "would count as a part of it. Give a folder of its own",
    }
    for given, message in explain_of.items():
        base = EXPLAIN[:6] if given[0] == "--feature" else EXPLAIN
        output = () if given[0] == "--output" else ("--output", "refused")
        assert features("explain", *base, *given, *output) == 2, given
        assert message in capsys.readouterr().err.splitlines()[-1], given
    score_of = {
        ("nowhere",): "holds no",
        ("out", "--judge", "length"): "cannot read explanations",
        ("out", "--scorer", "intervention"): "give --neutral FILE",
        ("out", "--pairs", "x"): "is read with --predict only",
        ("out", "--predict", "x"): "give --pairs or --responses",
    }
    for given, message in score_of.items():
        assert features("score", *given) == 2, given
        assert message in capsys.readouterr().err.splitlines()[-1], given


def test_explanations_are_matched_by_unit_and_not_by_line(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    path = out / "explanations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    assert read_records(out) == read_records(folder / "out")
    for changed, message in (
        (lines[1:], "is not in both"),
        ([*lines[:2], lines[0][:-1]], "line 3: not the one explanation of a unit"),
        ([lines[0].replace('"kind": "feature"', '"kind": "other"')], "line 1: .*kind 'other'"),
        ([*lines, lines[0]], f"line {len(lines) + 1}: not the one explanation"),
        (["[]"], "line 1: not"),
        (['{"kind": "feature", "number": 0, "layer": 0}'], "line 1: not"),
    ):
        path.write_text("\n".join(changed))
        with pytest.raises(ValueError, match=message):
            read_records(out)


def test_damaged_lines_of_examples_and_of_known_explanations_are_named(folder, tmp_path, capsys):
    out = shutil.copytree(folder / "out", tmp_path / "out")
    path = out / "examples.jsonl"
    lines = path.read_text().splitlines()
    line = json.loads(lines[0])
    window = line["shown"][0]
    for change in (
        *("{", "[]", "null", "{}", "[" * 100_000),
        *({"number": -1}, {"layer": "1"}, {"rate": None}, {"windows": 1.5}, {"shown": None}),
        *({"scored": [3]}, {"shown": [window | {"active": {"999": 1.0}}]}),
        *({"shown": [window | {"active": {"0": "high"}}]}, {"shown": [window | {"ids": ["a"]}]}),
        *({"shown": [window | {"kind": "far"}]}, {"shown": [{"ids": [1]}]}),
    ):
        text = change if isinstance(change, str) else json.dumps(line | change)
        path.write_text("\n".join([lines[1], text]))
        with pytest.raises(
            ValueError, match=r"examples\.jsonl, line 2: not the examples of a unit"
        ):
            read_records(out)
    path = out / "explanations.jsonl"
    lines = path.read_text().splitlines()
    line = json.loads(lines[0])
    for change in (
        *("{", "[]", "null", "{}"),
        *({"number": "1"}, {"kind": 3}, {"explanation": 3}, {"scores": [1]}),
        *({"scores": {"detection": 1}}, {"scores": {"detection": {"auc": {"mean": 1}}}}),
    ):
        text = change if isinstance(change, str) else json.dumps(line | change)
        path.write_text("\n".join([lines[1], text]))
        with pytest.raises(ValueError, match=r"explanations\.jsonl, line 2: not an explanation"):
            read_explained(path)


def test_explanations_of_what_has_changed_since_are_not_scored(
    folder, tmp_path, monkeypatch, capsys
):
    for name in ("model", "dictionary", "out"):
        shutil.copytree(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert features("score", "out", "--dry_run") == 0
    for name, file in (("dictionary", "dictionary.json"), ("model", "config.json")):
        path = Path(name, file)
        intact = path.read_text()
        path.write_text(intact + " ")
        assert features("score", "out", "--dry_run") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"out explains the {name} {name} as it was" in error
        path.write_text(intact)
