import pytest
import torch
from tiny_models import EOS, tiny_pairs

from rahf.data.contrast import ContrastCollator, PairsTogether, Responses, without_retained
from rahf.data.rows import sequence_rows

PAIR = {
    "row": 7,
    "prompt_ids": [11, 12, 13],
    "chosen_ids": [21, 22, EOS],
    "rejected_ids": [31, EOS],
    "positive_prompt_ids": [5, 11, 12, 13],
    "negative_prompt_ids": [6, 6, 11, 12, 13],
}


def tokens_at(rows, name="aligned"):
    """Return the aligned tokens of each row."""
    ids, owner = rows["input_ids"].flatten()[rows[name]], rows[f"{name}_owner"]
    return [ids[owner == row].tolist() for row in range(len(rows["input_ids"]))]


def masked_tokens(rows):
    return [
        ids[mask].tolist()
        for ids, mask in zip(rows["input_ids"], rows["response_mask"], strict=True)
    ]


def items(source="both", **options):
    dataset = Responses([PAIR], source, **options)
    return [dataset[index] for index in range(len(dataset))]


def test_the_example_of_the_module_docstring():
    pairs = [
        {"row": 0, "prompt_ids": [5], "chosen_ids": [8, 9], "rejected_ids": [1]},
        {"row": 1, "prompt_ids": [6], "chosen_ids": [7], "rejected_ids": [1]},
    ]
    dataset = Responses(pairs, "chosen", retain=[[3, 4], [3, 2, 1]])
    batch = ContrastCollator(pad_token_id=0)([dataset[0], dataset[1]])
    rows = batch["reference"]
    assert rows["input_ids"].tolist() == [[5, 8, 9], [6, 7, 0], [3, 4, 0], [3, 2, 1]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert rows["response_mask"].int().tolist() == [[0, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert rows["aligned"].tolist() == [1, 2, 4, 6, 7, 9, 10, 11]
    assert rows["aligned_owner"].tolist() == [0, 0, 1, 2, 2, 3, 3, 3]
    assert batch["aligned_responses"] == 3
    assert batch["aligned_item"].tolist() == [0, 0, 1, 0, 0, 1, 1, 1]
    assert batch["first_aligned"].tolist() == [0, 2]
    assert batch["retained_texts"] == 2
    assert batch["kinds"]["chosen"].tolist() == [True, True, False, False]
    assert "scored" not in rows


@pytest.mark.parametrize(
    ("kinds", "tokens"),
    [
        (("chosen",), [[21, 22, EOS], [], [], []]),
        (("responses",), [[21, 22, EOS], [31, EOS], [], []]),
        (("retained",), [[], [], [4], [6, 7]]),  # the first token of a text has no prediction
        (("retained", "chosen"), [[21, 22, EOS], [], [4], [6, 7]]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_kinds_of_rows_name_the_tokens_whose_predictions_are_read(kinds, tokens, packed):
    collator = ContrastCollator(EOS, packed=packed, scored=kinds)
    batch = collator(items(retain=[[3, 4], [5, 6, 7]]))
    rows, places = batch["reference"], batch["reference"]["scored"].nonzero()
    found = [[] for _ in tokens]
    for place in places.tolist():
        found[rows["owner"][tuple(place)]].append(rows["input_ids"][tuple(place)].item())
    assert found == tokens
    assert rows["columns"].tolist() == sorted({column - 1 for _, column in places.tolist()})
    whole, cut = without_retained(batch)["reference"], collator(items())["reference"]
    assert torch.equal(whole["columns"], cut["columns"])
    assert torch.equal(whole["scored"].nonzero(), cut["scored"].nonzero())


def test_every_row_of_the_reference_is_of_two_kinds_or_retained():
    kinds = ContrastCollator(EOS)(items(retain=[[3, 4], [5, 6, 7]]))["kinds"]
    assert {name: rows.int().tolist() for name, rows in kinds.items()} == {
        "responses": [1, 1, 0, 0],
        "chosen": [1, 0, 0, 0],
        "rejected": [0, 1, 0, 0],
        "retained": [0, 0, 1, 1],
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_view_carries_the_same_response_ids(side):
    batch = ContrastCollator(EOS, padding_side=side, width=12)(items())
    for view in ("reference", "positive", "negative"):
        assert masked_tokens(batch[view]) == [[21, 22, EOS], [31, EOS]]
        assert tokens_at(batch[view]) == [[21, 22, EOS], [31, EOS]]


def test_views_differ_in_the_instruction_and_in_nothing_else():
    batch = ContrastCollator(EOS)(items())
    for view, instruction in (("reference", []), ("positive", [5]), ("negative", [6, 6])):
        rows = batch[view]
        for row, response in enumerate(([21, 22, EOS], [31, EOS])):
            real = rows["input_ids"][row][rows["attention_mask"][row].bool()].tolist()
            assert real == [*instruction, 11, 12, 13, *response]


def test_without_instructions_there_is_one_block_of_rows():
    pair = {name: value for name, value in PAIR.items() if "tive_" not in name}
    batch = ContrastCollator(EOS)([Responses([pair])[0]])
    assert "positive" not in batch
    assert "negative" not in batch


@pytest.mark.parametrize(
    ("positions", "aligned"),
    [
        ("response", [[21, 22, EOS], [31, EOS]]),
        ("response_and_tail", [[12, 13, 21, 22, EOS], [12, 13, 31, EOS]]),
    ],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_name_the_states_that_are_aligned(positions, aligned, side):
    collator = ContrastCollator(EOS, positions, tail_tokens=2, padding_side=side, width=15)
    batch = collator(items())
    for view in ("reference", "positive", "negative"):
        assert tokens_at(batch[view]) == aligned
    assert batch["aligned_responses"] == sum(map(len, aligned))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tail_longer_than_the_prompt_takes_all_of_the_prompt(side):
    pair = {"row": 0, "prompt_ids": [11], "chosen_ids": [21, EOS], "rejected_ids": [31, 32, EOS]}
    dataset = Responses([pair])
    collator = ContrastCollator(EOS, "response_and_tail", tail_tokens=3, padding_side=side)
    rows = collator([dataset[0], dataset[1]])["reference"]
    assert tokens_at(rows) == [[11, 21, EOS], [11, 31, 32, EOS]]


@pytest.mark.parametrize("positions", ["response", "response_and_tail"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_all_of_a_retained_text_is_kept_whatever_is_aligned_in_a_response(positions, side):
    collator = ContrastCollator(EOS, positions, padding_side=side, width=11)
    batch = collator(items(retain=[[3, 4], [5, 6, 7]]))
    assert tokens_at(batch["reference"])[2:] == [[3, 4], [5, 6, 7]]
    assert len(batch["row"]) == 2
    assert len(batch["positive"]["input_ids"]) == 2


def test_a_response_is_cut_at_the_same_token_in_every_view():
    batch = ContrastCollator(EOS, max_response_tokens=2)(items())
    for view in ("reference", "positive", "negative"):
        assert masked_tokens(batch[view]) == [[21, 22], [31, EOS]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("scored", "said"),
    [
        ((), [[21], [31]]),
        (("retained",), [[21], [31]]),
        (("chosen",), [[21, 22, EOS], [31]]),
        (("responses",), [[21, 22, EOS], [31, EOS]]),
    ],
)
def test_terms_that_read_predictions_read_complete_responses_of_which_the_first_tokens_are_aligned(
    scored, said, side, packed
):
    options = {"padding_side": side, "packed": packed, "scored": scored}
    batch = ContrastCollator(EOS, max_response_tokens=1, **options)(items(retain=[[3, 4], [5, 6]]))
    rows = batch["reference"]
    ids, owner = rows["input_ids"].flatten(), rows["owner"].flatten()
    responses = ids[rows["response_mask"].flatten()], owner[rows["response_mask"].flatten()]
    for row, tokens in enumerate([*said, [3, 4], [5, 6]]):
        assert responses[0][responses[1] == row].tolist() == tokens
    assert ids[rows["aligned"]].tolist() == [21, 31, 3, 4, 5, 6]
    assert batch["aligned_responses"] == 2
    assert len(batch["positive"]["aligned"]) == len(batch["negative"]["aligned"]) == 2


def test_views_whose_prompts_end_differently_are_refused_with_their_row():
    pair = {**PAIR, "negative_prompt_ids": [6, 11, 12, 14]}
    item = Responses([pair])[0]
    message = r"row 7: the last 2 prompt tokens of the negative view are \[12, 14\].*tail_tokens"
    with pytest.raises(ValueError, match=message):
        ContrastCollator(EOS, "response_and_tail", tail_tokens=2)([item])
    ContrastCollator(EOS, "response")([item])


def test_a_tail_longer_than_the_prompts_of_views_is_refused_with_its_row():
    with pytest.raises(ValueError, match="row 7: the last 4 prompt tokens"):
        ContrastCollator(EOS, "response_and_tail", tail_tokens=4)(items())


def test_padding_is_known_by_its_mask_and_not_by_its_id():
    # The pad is the end of text, which is also the last token of every response.
    batch = ContrastCollator(EOS)(items())
    assert masked_tokens(batch["reference"]) == [[21, 22, EOS], [31, EOS]]
    assert batch["reference"]["attention_mask"].sum(1).tolist() == [6, 5]


@pytest.mark.parametrize(("side", "first"), [("right", 0), ("left", 2)])
def test_positions_restart_at_the_first_real_token(side, first):
    rows = sequence_rows([[11, 12]], [[21, EOS]], EOS, side, width=6)
    assert rows["position_ids"][0, first : first + 4].tolist() == [0, 1, 2, 3]
    assert rows["input_ids"][0, first : first + 4].tolist() == [11, 12, 21, EOS]


def sides(dataset):
    return [dataset[index]["chosen"] for index in range(len(dataset))]


def test_both_gives_each_side_of_each_pair_once():
    pairs = tiny_pairs(3)
    dataset = Responses(pairs, "both")
    found = [(item["row"], item["response_ids"]) for item in (dataset[i] for i in range(6))]
    wanted = [(pair["row"], pair[f"{s}_ids"]) for pair in pairs for s in ("chosen", "rejected")]
    assert found == wanted
    assert sides(dataset) == [True, False] * 3


@pytest.mark.parametrize(("source", "chosen"), [("chosen", True), ("rejected", False)])
def test_one_side_gives_that_side_of_each_pair(source, chosen):
    assert sides(Responses(tiny_pairs(3), source)) == [chosen] * 3


def test_random_takes_about_half_of_each_side_and_others_in_the_next_epoch():
    dataset = Responses(tiny_pairs(200), "random", seed=3)
    first = sides(dataset)
    assert 70 < sum(first) < 130
    dataset.set_epoch(1)
    second = sides(dataset)
    assert 70 < sum(a != b for a, b in zip(first, second, strict=True)) < 130
    assert all(
        item["response_ids"] == pair["chosen_ids" if item["chosen"] else "rejected_ids"]
        for item, pair in zip((dataset[i] for i in range(200)), tiny_pairs(200), strict=True)
    )


def test_random_depends_on_seed_epoch_and_row_and_on_nothing_else():
    pairs = tiny_pairs(50)
    dataset, again = Responses(pairs, "random", seed=3), Responses(pairs, "random", seed=3)
    dataset.set_epoch(4)
    again.set_epoch(4)
    torch.manual_seed(1)
    assert sides(dataset) == sides(again)
    reversed_pairs = Responses(pairs[::-1], "random", seed=3)
    reversed_pairs.set_epoch(4)
    assert sides(reversed_pairs) == sides(dataset)[::-1]
    other = Responses(pairs, "random", seed=4)
    other.set_epoch(4)
    assert sides(other) != sides(dataset)


def test_retained_texts_go_round():
    dataset = Responses(tiny_pairs(3), "chosen", retain=[[2], [3]])
    assert [dataset[index]["retain_ids"] for index in range(3)] == [[2], [3], [2]]


def test_both_responses_of_a_pair_come_together_in_a_new_order_every_epoch():
    sampler = PairsTogether(5, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(len(sampler)))
        assert [index // 2 for index in orders[-1][::2]] == [
            index // 2 for index in orders[-1][1::2]
        ]
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(PairsTogether(5, seed=4))
