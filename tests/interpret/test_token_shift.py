"""Token shift: ranks and KL against a loop, pieces and kinds of tokens, shares, the page."""

import json

import pytest
import torch
from tiny_models import EOS, tiny_model, tiny_tokenizer
from tiny_runs import KilledError
from tokenizers_for_tests import chatml_tokenizer, llama_tokenizer

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.evaluation.intervals import mean_estimate, ratio_estimate
from rahf.generation.record_file import ResumableFile
from rahf.interpret.token_shift.kinds import FUNCTION_WORDS, STYLE_WORDS, token_kinds
from rahf.interpret.token_shift.records import given_responses, text_pieces, write_shifts
from rahf.interpret.token_shift.shift import compare_predictions, token_shift
from rahf.interpret.token_shift.summary import summarize_shift

PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]
RESPONSES = [[12, 13, EOS], [14, 15, 16, 17, 18, 19], [20]]


def logprobs_by_loop(model, prompt, response):
    """Return predictions for one token after the other, each from a forward of its own."""
    rows = []
    for place in range(len(response)):
        ids = torch.tensor([prompt + response[:place]])
        with torch.no_grad():
            rows.append(model(input_ids=ids).logits[0, -1].double().log_softmax(-1).tolist())
    return rows


def shift_by_loop(aligned, base, prompt, response):
    rows = zip(
        response,
        logprobs_by_loop(aligned, prompt, response),
        logprobs_by_loop(base, prompt, response),
        strict=True,
    )
    for token, p, q in rows:
        yield {
            "base_rank": sorted(q, reverse=True).index(q[token]) + 1,
            "aligned_rank": sorted(p, reverse=True).index(p[token]) + 1,
            "kl": sum(2.718281828459045**a * (a - b) for a, b in zip(p, q, strict=True)),
            "base_logprob": q[token],
            "aligned_logprob": p[token],
            "base_choice": q.index(max(q)),
        }


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("architecture", ["family", "gpt2_family"])
def test_ranks_and_kl_are_those_of_a_loop_token_by_token(architecture, adapter, request):
    family = request.getfixturevalue(architecture)
    aligned = family.load("positive")
    base = None if adapter else family.load("negative")
    shifts = token_shift(aligned, base, PROMPTS, RESPONSES, EOS)
    its_base = family.load(None) if adapter else base
    assert len(shifts) == len(PROMPTS)
    for prompt, response, shift in zip(PROMPTS, RESPONSES, shifts, strict=True):
        expected = list(shift_by_loop(aligned, its_base, prompt, response))
        for name in shift._fields:
            by_loop = torch.tensor([token[name] for token in expected])
            torch.testing.assert_close(
                getattr(shift, name), by_loop, atol=1e-4, rtol=1e-4, check_dtype=False
            )
    assert len({rank for shift in shifts for rank in shift.base_rank.tolist()}) > 4
    again = token_shift(aligned, base, PROMPTS, RESPONSES, EOS)  # the adapter is on again
    assert torch.equal(again[0].aligned_rank, shifts[0].aligned_rank)


def test_kl_is_zero_between_equal_models_and_never_below():
    model = tiny_model()
    for shift in token_shift(model, model, PROMPTS, RESPONSES, EOS):
        assert shift.kl.max() < 1e-6
        assert torch.equal(shift.base_rank, shift.aligned_rank)
    logits = torch.randn(700, 11)
    tokens = torch.zeros(700, dtype=torch.long)
    assert (compare_predictions(logits, logits + 1e-7, tokens).kl >= 0).all()


def test_positions_are_compared_in_parts_that_change_nothing():
    aligned, base = torch.randn(600, 7), torch.randn(600, 7)
    tokens = torch.randint(7, (600,))
    whole = compare_predictions(aligned, base, tokens)
    one = compare_predictions(aligned[599:], base[599:], tokens[599:])
    assert [field[599].item() for field in whole] == [field[0].item() for field in one]


def test_a_full_model_needs_a_base():
    with pytest.raises(ValueError, match="no adapter"):
        token_shift(tiny_model(), None, PROMPTS, RESPONSES, EOS)


@pytest.mark.parametrize("tokenizer", [chatml_tokenizer, llama_tokenizer])
def test_pieces_of_tokens_are_together_the_text(tokenizer):
    tokenizer = tokenizer()
    text = "I loved it: thé ending, 🙂, was dull.\n\nToo long"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = text_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_text_that_ends_within_a_character_shows_that():
    tokenizer = chatml_tokenizer()
    ids = tokenizer("ok 🙂", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(text_pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_tokens_are_of_the_kind_of_their_word():
    pieces = [
        "How",
        "ever",
        ",",
        " the",
        " quar",
        "tz",
        "\n\n",
        "- ",
        "I",
        "'m",
        " it",
        "'s",
        "<e>",
    ]
    kinds = token_kinds(pieces, [False] * 12 + [True])
    assert kinds == [
        *("style", "style", "form", "function", "content", "content", "form", "form"),
        *("style", "style", "function", "function", "end"),
    ]


def test_a_token_over_two_words_is_of_the_first_ones_kind():
    assert token_kinds(["a qu", "artz"], [False, False]) == ["function", "content"]
    assert token_kinds(["qua", "rtz the"], [False, False]) == ["content", "content"]


def test_no_word_is_in_both_lists():
    assert not STYLE_WORDS & FUNCTION_WORDS


RECORDS = [
    {
        "row": 0,
        "prompt": "Is <it> good?",
        "pieces": ["Sure", ",", " it", " is", "<e>"],
        "kind": ["style", "form", "function", "function", "end"],
        "bucket": ["shifted", "unshifted", "unshifted", "marginal", "shifted"],
        "base_rank": [9, 1, 1, 2, 40],
        "aligned_rank": [1, 1, 1, 1, 1],
        "kl": [2.0, 0.0, 0.0, 0.5, 3.0],
        "base_choice": ["No", ",", " it", " was", "\n"],
    },
    {
        "row": 1,
        "prompt": "And?",
        "pieces": [" Sure", "|"],
        "kind": ["style", "form"],
        "bucket": ["shifted", "unshifted"],
        "base_rank": [4, 1],
        "aligned_rank": [2, 1],
        "kl": [1.0, 0.1],
        "base_choice": ["No", "|"],
    },
]


def test_shares_leave_the_end_of_the_text_apart():
    summary = summarize_shift(RECORDS)
    assert (summary["responses"], summary["tokens"]) == (2, 6)
    shares = [summary[name]["mean"] for name in ("unshifted", "marginal", "shifted")]
    assert shares == [3 / 6, 1 / 6, 2 / 6]
    assert summary["kl"]["mean"] == pytest.approx(3.6 / 6)
    assert summary["aligned_first_choice"] == 5 / 6
    assert summary["end_of_text"]["tokens"] == 1
    assert summary["end_of_text"]["shifted"]["mean"] == 1
    assert summary["by_kind"]["style"]["shifted"]["mean"] == 1
    assert summary["by_kind"]["content"] == {"tokens": 0}
    low, high = summary["shifted"]["low"], summary["shifted"]["high"]
    assert (low, high) == (0, 1)  # two responses show little


def test_positions_are_counted_from_the_start_of_the_response():
    ranges = summarize_shift(RECORDS)["by_position"]
    assert [(part["first"], part["last"], part["tokens"]) for part in ranges] == [
        *((0, 0, 2), (1, 1, 2), (2, 2, 1), (3, 3, 1)),
    ]
    assert ranges[0]["shifted"]["mean"] == 1


def test_the_tokens_that_shift_most_often_are_reported_with_what_the_base_would_write():
    [row] = summarize_shift(RECORDS)["top_shifted"]
    assert (row["token"], row["kind"], row["shifted"], row["occurrences"]) == (
        "Sure",
        "style",
        2,
        2,
    )
    assert (row["kl"], row["base_would_say"]) == (1.5, "No")


def test_an_interval_draws_units_and_narrows_with_their_number():
    wide, narrow = (mean_estimate([0, 1] * count) for count in (5, 500))
    assert wide.mean == narrow.mean == 0.5
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert narrow.low == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.003)
    # ten equal tokens of one response hold no more information than one of them
    whole = ratio_estimate([0, 10] * 5, [10] * 10)
    assert (whole.low, whole.high) == (wide.low, wide.high)
    assert ratio_estimate([], []) is None


def test_the_measurement_goes_on_where_it_was_stopped(tmp_path, family):
    prompts = [f"w{n}" for n in range(3)]
    ids = list(zip(PROMPTS, RESPONSES, strict=True))
    model, tokenizer = family.load("positive"), tiny_tokenizer()

    def measured(path, responses):
        file = ResumableFile(path, {})
        write_shifts(model, None, tokenizer, prompts, responses, file, batch_size=1)
        return read_lines(path)

    def killed(rows):
        yield from list(given_responses(ids, 9)(rows))[:2]
        raise KilledError

    whole = measured(tmp_path / "whole.jsonl", given_responses(ids, 9))
    with pytest.raises(KilledError):
        measured(tmp_path / "killed.jsonl", killed)
    assert measured(tmp_path / "killed.jsonl", given_responses(ids, 9)) == whole
    assert [record["kind"][-1] for record in whole] == ["end", "content", "content"]


def shift(tmp_path, *options):
    folder = tmp_path / "out"
    status = main(["shift", "--output", str(folder), "--device", "cpu", *map(str, options)])
    return status, folder


def test_the_command_measures_greedy_answers_and_writes_a_page(tmp_path, family, capsys):
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"w{n} w{n + 1} <b>\x1b[31m\u202e" for n in range(4, 8)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    options = ["--model", family.adapters["positive"], "--prompts", prompts]
    for _ in range(2):  # the second time nothing is measured again
        status, folder = shift(tmp_path, *options, "--max_new_tokens", 9)
        assert status == 0
        assert "| all " in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        *("index.html", "shift.jsonl", "shift.jsonl.run.json", "shift.png", "summary.json"),
    ]
    records, summary = read_lines(folder / "shift.jsonl"), read_json(folder / "summary.json")
    assert [record["prompt"] for record in records] == texts
    assert summary["aligned_first_choice"] == 1  # they are the aligned model's own greedy answers
    page = (folder / "index.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert r"\x1b[31m\u202e" in page
    assert "\x1b" not in page
    assert "src='data:image/png;base64," in page
    assert page.count("<span") - 2 == sum(len(record["pieces"]) for record in records)
    assert "http" not in page


def test_the_command_measures_given_responses_against_another_model(tmp_path, family, capsys):
    model = tmp_path / "model"
    tiny_model(seed=5).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    responses = tmp_path / "responses.json"
    responses.write_text(json.dumps([{"instruction": "w4", "output": "w5 w6", "generator": "x"}]))
    options = ["--model", family.base, "--responses", responses]
    assert shift(tmp_path, *options)[0] == 2
    assert "has no adapter to turn off" in capsys.readouterr().err
    status, folder = shift(tmp_path, *options, "--against", model)
    assert status == 0
    [record] = read_lines(folder / "shift.jsonl")
    assert record["pieces"] == ["w5", " w6"]
    assert record["kind"] == ["content", "content"]


def test_an_end_of_text_counts_only_where_a_model_wrote_it(tmp_path, family):
    responses = tmp_path / "responses.jsonl"
    given = [("w5 w6", True), ("w5 w6", False), ("w5", None), ("", False), ("", True)]
    lines = [{"prompt": "w4", "response": text, "finished": ended} for text, ended in given]
    responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_model(seed=5).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = ["--model", family.base, "--responses", responses, "--against", tmp_path / "model"]
    status, folder = shift(tmp_path, *options)
    assert status == 0
    kinds = [record["kind"] for record in read_lines(folder / "shift.jsonl")]
    assert kinds == [["content"] * 2 + ["end"], ["content"] * 2, ["content"], [], ["end"]]


def test_models_with_different_tokenizers_are_not_compared(tmp_path, family, capsys):
    other = tmp_path / "other"
    tiny_model().save_pretrained(other)
    chatml_tokenizer().save_pretrained(other)
    (tmp_path / "p.jsonl").write_text('{"prompt": "w4"}\n')
    options = ["--model", family.base, "--prompts", tmp_path / "p.jsonl", "--against", other]
    assert shift(tmp_path, *options)[0] == 2
    assert "different tokenizers: 40 of 40 tokens" in capsys.readouterr().err
