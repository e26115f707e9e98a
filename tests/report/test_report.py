"""Tables, figures and the model card, from the files of a run."""

import pytest
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models
from tokenizers_for_tests import gpt2_tokenizer, llama_tokenizer
from transformers import PreTrainedTokenizerFast

from rahf.comparison.curves import change_within
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.recipe.as_run import PAPERS, method_as_run
from rahf.recipe.methods import METHODS
from rahf.recipe.recipe import recipe_from_dict
from rahf.report.card import directions_card, model_card
from rahf.report.escaping import visible_token
from rahf.report.feature_movement import _drawn, movement_figure
from rahf.report.feature_terms import tokens_text
from rahf.report.features import duration, size
from rahf.report.tables import judge_text, layers_table, markdown, models_table, side_by_side
from rahf.report.tradeoff_chart import Point, tradeoff_chart
from rahf.report.training_chart import training_chart

METRICS = {
    "eval_repr/reached": 0.5,
    "eval_repr/cosine": 0.8,
    "eval_repr/reached/layer_9": 0.45,
    "eval_repr/reached/layer_10": 0.55,
    "eval_repr/cosine/layer_9": 0.75,
    "eval_repr/cosine/layer_10": 0.85,
}
MODELS = {
    "base": {"preference_accuracy": 0.5, "unrelated_loss": 3.0},
    "policy": {"preference_accuracy": 0.75, "unrelated_loss": 3.3},
}


def test_markdown_columns_line_up():
    lines = markdown(["a", "long title"], [["wide cell", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def byte_fallback_tokenizer():
    entries = ["<0xE2>", "<0x0A>", "\u2581", "\u2581\u2581", "a", "\u2581a", "\\n", "</s>"]
    backend = Tokenizer(models.BPE({entry: place for place, entry in enumerate(entries)}, []))
    stripped = decoders.Strip(" ", 1, 0)
    spaces = decoders.Replace("\u2581", " ")
    steps = [spaces, decoders.ByteFallback(), decoders.Fuse(), stripped]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.mark.parametrize("make", [byte_fallback_tokenizer, gpt2_tokenizer, llama_tokenizer])
def test_different_tokens_look_different(make):
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    shown = [visible_token(texts.shown(token)) for token in range(len(tokenizer))]
    assert len(set(shown)) == len(tokenizer)
    assert not any("\ufffd" in text or any(map(str.isspace, text)) for text in shown)
    if make is byte_fallback_tokenizer:
        assert shown == ["\\xe2", "⏎", "␣", "␣␣", "a", "␣a", "\\n", "</s>"]
    assert tokens_text([" a", "a", ""]) == "␣a a ∅"


def test_the_models_table_shows_the_change_against_the_base():
    table = models_table(MODELS)
    assert "3.300 (+10.0%)" in table
    assert "75%" in table
    assert "judged" not in table  # no model was judged


@pytest.mark.parametrize(
    ("judge", "base", "policy", "decides"),
    [
        ("lexicon", (0.25, 0.1), (0.5, 0.1), True),
        ("lexicon", (0.0, 0.0), (0.0, 0.0), False),
        ("refusal", (0.0, 0.0), (1.0, 0.0), True),
        ("choice:m", (None, None), (1.0, 0.0), True),
        ("choice:m", (None, None), (0.5, 0.0), False),
    ],
)
def test_the_judge_its_side_and_scores_that_decide_nothing_are_named(judge, base, policy, decides):
    rows = {
        name: {"answers": 8, "judge": judge, "wanted": "lower", "judged_mean": mean, "judged_se": e}
        for name, (mean, e) in (("base", base), ("policy", policy))
    }
    text = judge_text(rows)
    assert text.startswith(f"Answers: 8 a model. Judge: {judge} (")
    assert "Wanted: lower scores." in text
    assert ("decides nothing" in text) != decides
    assert judge_text(MODELS) is None


def test_the_layers_table_is_in_the_order_of_the_layers():
    header, _, reached, cosine = layers_table(METRICS).splitlines()
    assert header.split("|")[2:4] == [" 9    ", " 10   "]
    assert "0.45" in reached
    assert "0.85" in cosine


def test_answers_are_side_by_side_and_on_one_line_each():
    answers = [{"prompt": "q", "answers": {"base": "a\nb", "policy": "c", "other": "d"}}]
    assert side_by_side(answers, only=("base", "policy")) == "> q\n- **base**: a b\n- **policy**: c"


def test_the_figure_is_drawn_with_and_without_held_out_pairs(tmp_path):
    log = [
        {"step": 1, "loss": 1.0, "repr/reached": 0.0},
        {
            "step": 2,
            "loss": 0.5,
            **{key.removeprefix("eval_"): value for key, value in METRICS.items()},
        },
    ]
    training_chart(log, tmp_path / "without.png")
    training_chart([*log, {"step": 2, **METRICS}], tmp_path / "with.png")
    assert (tmp_path / "without.png").stat().st_size > 5000
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (duration(0.2), "1 s"),
        (duration(40), "40 s"),
        (duration(200), "3 min"),
        (duration(9000), "2 h 30 min"),
        (size(4000), "4 kB"),
        (size(400_000), "400 kB"),
        (size(25_300_000), "25.3 MB"),
        (size(2_500_000_000), "2.5 GB"),
    ],
)
def test_small_times_and_sizes_are_in_small_units(shown, text):
    assert shown == text


def test_a_log_without_a_step_has_no_figure(tmp_path):
    training_chart([{"step": 2, "train_loss": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_figure_of_a_method_without_a_shift_shows_its_terms(tmp_path):
    log = [
        {"step": step, "loss": 1.0 - 2 * step, "repr/rejected": -3.0 * step, "repr/chosen": step}
        for step in (1, 2)
    ]
    training_chart(log, tmp_path / "terms.png")
    assert (tmp_path / "terms.png").stat().st_size > 5000


BASE = {"model_name_or_path": "org/base-1b", "dataset_name": "org/pairs", "output_dir": "out"}
TOWARDS = "were moved towards what the chosen responses of `org/pairs` share"
AWAY = "pushed away from their values on the rejected responses of `org/pairs`"
RETAINED = {"retain_weight": 0.0}


def card_of(recipe, metrics, **how):
    return model_card(recipe, metrics, **method_as_run(recipe)._asdict(), **how)


@pytest.mark.parametrize(
    ("method", "given", "name", "said", "paper"),
    [
        ("dual", {}, "RAHF-DUAL with a retain term and a DPO term", TOWARDS, "2312.15997"),
        ("dual", RETAINED, "RAHF-DUAL with a DPO term", TOWARDS, "2305.18290"),
        ("dual", RETAINED | {"dpo_weight": 0}, "RAHF-DUAL", TOWARDS, "2312.15997"),
        (
            "dual",
            {"align_weight": 0, "kl_weight": 0.1},
            "RAHF-DUAL without its align term with a retain term, a KL term and a DPO term",
            "trained on the pairs of `org/pairs` without a target",
            "2312.15997",
        ),
        (
            "dual",
            RETAINED | {"alpha": -1, "dpo_weight": 0},
            "RAHF-DUAL",
            "moved away from what",
            "2312.15997",
        ),
        ("scit", RETAINED, "RAHF-SCIT with an SFT term", TOWARDS, "2312.15997"),
        ("dpo_shift", RETAINED, "RAHF towards a DPO teacher", TOWARDS, "2312.15997"),
        ("lorra", RETAINED | {"sft_weight": 0}, "LoRRA", TOWARDS, "2310.01405"),
        (
            "direction",
            RETAINED | {"directions": "here"},
            "a stored direction",
            "moved along stored vectors",
            "2310.01405",
        ),
        ("circuit_breakers", {}, "circuit breakers", AWAY, "2406.04313"),
        ("rmu", {}, "RMU", AWAY, "2403.03218"),
        ("rmu", {"kl_weight": 1.0}, "RMU with a KL term", AWAY, "2403.03218"),
        ("repbend", {}, "RepBend", AWAY, "2504.01550"),
    ],
)
def test_a_card_names_the_method_as_it_was_run(tmp_path, method, given, name, said, paper):
    recipe = recipe_from_dict(BASE | {"method": method} | given).as_dict()
    models = {"base": MODELS["base"], "policy": MODELS["policy"] | {"judged_mean": float("nan")}}
    (tmp_path / "README.md").write_text(card_of(recipe, METRICS | {"models": models}))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip().splitlines()[0] == f"# base-1b aligned by {name}"
    assert f"({name}, [arXiv" in card.text
    assert said in card.text
    assert f"https://arxiv.org/abs/{METHODS[method].paper}" in card.text
    assert f"eprint = {{{paper}}}" in card.text
    head = card.data
    assert (head.base_model, head.datasets, head.library_name) == (
        "org/base-1b",
        ["org/pairs"],
        "peft",
    )
    assert {"rahf", "lora", method} <= set(head.tags)
    assert ("dpo" in head.tags) == ("DPO term" in name)
    figures = {result.metric_name: result.metric_value for result in head.eval_results}
    assert figures == {
        "preference accuracy": 0.75,
        "cross entropy (nats per token)": 3.3,
        "share of the shift reached": 0.5,
        "cosine to the shift": 0.8,
    }
    assert head.metrics == ["accuracy", "cross_entropy", "reached", "cosine"]
    assert [(result.metric_type, result.dataset_name) for result in head.eval_results] == [
        *((metric, "org/pairs") for metric in ("accuracy", "reached", "cosine")),
        ("cross_entropy", "unrelated text"),
    ]
    assert head.to_dict()["model-index"][0]["name"] == f"base-1b aligned by {name}"


def test_every_method_has_a_citation():
    papers = {method.paper for method in METHODS.values()}
    assert papers <= set(PAPERS)


@pytest.mark.parametrize(
    ("base", "licence"), [("licensed", "apache-2.0"), ("plain", None), ("org/unknown", None)]
)
def test_the_licence_is_that_of_the_bases_own_card(tmp_path, monkeypatch, base, licence):
    monkeypatch.chdir(tmp_path)
    for name, text in (("licensed", "---\nlicense: apache-2.0\n---\n"), ("plain", "no header\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
    recipe = recipe_from_dict(BASE | {"model_name_or_path": base}).as_dict()
    card = ModelCard(card_of(recipe, {}))
    assert card.data.license == licence
    assert card.data.base_model == (base if "/" in base else None)
    assert ("was not at hand" in card.text) == (licence is None)


def test_the_card_names_data_base_layers_alpha_metrics_and_versions():
    recipe = recipe_from_dict(BASE | {"alpha": 2.5}).as_dict()
    card = card_of(recipe, METRICS | {"models": MODELS})
    for expected in ("org/pairs", "target layers: 9, 10", "alpha: 2.5", "75%", "transformers 5."):
        assert expected in card


@pytest.mark.parametrize(
    ("points", "cost", "change"),
    [
        ([(0.1, 0.4), (0.3, 0.8)], 0.1, 0.4),
        ([(0.3, 0.8), (0.1, 0.4)], 0.2, 0.6),  # between two strengths, in any order
        ([(0.4, 0.8)], 0.1, 0.2),  # from the base at the origin
        ([(0.1, 0.5), (0.3, 0.2)], 0.3, 0.5),  # the best that is had for so much
        ([(-0.1, 0.3), (0.2, 0.5)], 0.1, 0.4),  # a gain of ability is no cost
        ([(0.1, -0.4), (0.3, -0.8)], 0.2, 0.0),  # no change is had for nothing
    ],
)
def test_change_is_read_off_at_an_equal_cost(points, cost, change):
    assert change_within(points, cost) == pytest.approx(change)


def test_the_chart_draws_a_line_for_every_method(tmp_path):
    dpo = [Point(0.1, 0.4, 0.3, 0.5, "1")]
    dual = [Point(0.2, 0.7, 0.6, 0.8, "2"), Point(0.05, 0.5, 0.4, 0.6, "1")]
    path = tmp_path / "tradeoff.png"
    tradeoff_chart({"DPO": dpo, "RAHF": dual}, path, "loss", wins=False)
    assert path.stat().st_size > 5000


@pytest.mark.filterwarnings("error:Glyph")  # a letter that the font lacks
def test_the_chart_of_features_takes_any_token_and_no_placebo(tmp_path):
    row = {"feature": 7, "effect": 0.2, "low": 0.1, "high": 0.4, "size": 0.3, "placebo_size": []}
    raises = [" $x_1$", "\u201c\u4f60", "\n", "{", "caf\u00e9"]
    plain = {"placebo_band": None, "size_quantiles": {"default": [0.0, 0.1, 0.5]}}
    beside = {"placebo_band": 0.2, "size_quantiles": {"default": [0.0, 1.0], "placebo_1": [0, 1]}}
    still = row | {"effect": 0.0, "size": 0.0, "placebo_size": [0.1]}
    for figures, rows in (
        (plain, []),
        (plain, [row]),
        (beside, [row | {"raises": raises, "placebo_size": [0.1]}, still]),
        (plain | {"size_quantiles": {"default": []}}, [row]),
    ):
        movement_figure(figures | {"features": rows}, tmp_path / "features.png")
        assert (tmp_path / "features.png").stat().st_size > 5000
        (tmp_path / "features.png").unlink()


def test_the_chart_of_features_draws_each_letter_that_its_font_has():
    assert _drawn([" thank", "\n", "\u4f60", "\u03b6"]) == "\u2423thank \u23ce ? \u03b6"


def test_names_and_data_on_a_card_are_only_shown():
    evil = "x`</script>\n# [click](http://evil)\u202e\x1b[2J"
    recipe = dict.fromkeys(("model_name_or_path", "dataset_name", "reference", "positions"), evil)
    recipe |= dict.fromkeys(("target_layers", "shift", "distance", "layer_scale", "method"), evil)
    recipe |= {"alpha": 2.0, "lora_r": 2, "lora_alpha": 4}
    metrics = {"models": {"base": {}, "policy": {"judged_mean": 1.0, "judge": evil}}}
    card = model_card(
        recipe, metrics, "DUAL", "trained on {data}", (evil,), {"1": PAPERS["2305.18290"]}
    )
    body = card.split("---", 2)[2]
    for character in ("\u202e", "\x1b"):
        assert character not in card
    assert not [line for line in body.splitlines() if line.startswith("# [")]
    listed = [line for line in body.splitlines() if line.startswith("- ")]
    assert [line for line in listed if r"\[click\](http://evil)" in line]
    assert not [line for line in listed if "[click](" in line.replace(r"\[click\]", "")]
    card = directions_card({"model": evil, "fit": evil}, [1], None, "me/warm")
    assert "\x1b" not in card
    assert not [line for line in card.splitlines() if line.startswith("# [")]


def test_a_cell_of_a_table_holds_whatever_it_is_given():
    table = markdown(["name", "n"], [["a|b\nc\x1b", "1"]])
    assert table.splitlines()[-1] == r"| a\|b c\x1b | 1 |"
