import gzip
import json
import os
import subprocess
import sys

import datasets
import pytest

from rahf.data.pairs import normalize_pairs, usable_pairs
from rahf.data.sources import DataSource, load_mixture, load_pairs, local_splits

datasets.disable_progress_bars()

PAIR = {"prompt": "How is the soup?", "chosen": "It is warm.", "rejected": "It is dull."}
USER = {"role": "user", "content": "How is the soup?"}
WARM = {"role": "assistant", "content": "It is warm."}
DULL = {"role": "assistant", "content": "It is dull."}


def numbered(count, **changes):
    return [{**PAIR, "prompt": f"{PAIR['prompt']} {i}", **changes} for i in range(count)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def normalized(tmp_path):
    """Normalise one record; return its one row."""

    def one(**record):
        dataset = datasets.Dataset.from_list([record])
        return normalize_pairs(dataset, cache_dir=tmp_path / "cache")[0]

    return one


# --- sources


def test_a_jsonl_file_gives_its_rows_in_order_with_their_numbers(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", numbered(3))
    pairs = load_pairs(path, cache_dir=tmp_path)
    assert pairs["row"][:] == [0, 1, 2]
    assert pairs[1] == {
        "row": 1,
        "prompt": [{"role": "user", "content": "How is the soup? 1"}],
        "chosen": "It is warm.",
        "rejected": "It is dull.",
        "extra": None,
        "ignored": [],
        "dropped": None,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("wanted", [True, False])
def test_loading_a_file_prints_no_bar_and_leaves_the_switch_as_it_was(
    tmp_path, capfd, kind, wanted
):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_jsonl(path, numbered(2))
    else:
        datasets.Dataset.from_list(numbered(2)).to_parquet(path)
    write_jsonl(tmp_path / "bad.jsonl", [{**PAIR, "chosen": 3}])
    (datasets.enable_progress_bars if wanted else datasets.disable_progress_bars)()
    try:
        load_pairs(path, cache_dir=tmp_path / "cache")
        with pytest.raises(ValueError, match="chosen is int"):
            load_pairs(tmp_path / "bad.jsonl", cache_dir=tmp_path / "cache")
        assert datasets.are_progress_bars_disabled() is not wanted
    finally:
        datasets.disable_progress_bars()
    assert "Generating" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl.gz", "a.csv", "a.csv.gz"])
def test_every_file_format_gives_the_same_pairs(tmp_path, name):
    records = [*numbered(2), {"prompt": 'a "quoted",\nlong one', "chosen": "NA", "rejected": "7"}]
    if ".json." in f"{name}.":
        text = json.dumps(records, indent=1)
    elif ".jsonl" in name:
        text = "\n".join(map(json.dumps, records))
    else:
        quoted = [[value.replace('"', '""') for value in record.values()] for record in records]
        lines = ["prompt,chosen,rejected", *('"' + '","'.join(row) + '"' for row in quoted)]
        text = "\n".join(lines)
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    pairs = load_pairs(tmp_path / name, cache_dir=tmp_path)
    assert [prompt[0]["content"] for prompt in pairs["prompt"]] == [r["prompt"] for r in records]
    assert pairs["chosen"][:] == ["It is warm.", "It is warm.", "NA"]
    assert pairs["rejected"][:] == ["It is dull.", "It is dull.", "7"]


def test_a_parquet_file_gives_the_same_pairs(tmp_path):
    datasets.Dataset.from_list(numbered(3)).to_parquet(tmp_path / "a.parquet")
    pairs = load_pairs(tmp_path / "a.parquet", cache_dir=tmp_path)
    assert pairs["chosen"][:] == ["It is warm."] * 3


def test_a_folder_of_split_files_is_read_by_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", numbered(3))
    write_jsonl(tmp_path / "test.jsonl", numbered(2))
    (tmp_path / "README.md").write_text("about these pairs")
    assert tuple(local_splits(tmp_path)) == ("test", "train")
    assert len(load_pairs(tmp_path, split="test", cache_dir=tmp_path / "cache")) == 2


def test_shards_of_a_split_are_read_one_after_the_other(tmp_path):
    folder = tmp_path / "downloaded" / "data"
    folder.mkdir(parents=True)
    for shard, records in enumerate([numbered(2), numbered(3)]):
        write_jsonl(folder / f"train-{shard:05d}-of-00002.jsonl", records)
    pairs = load_pairs(tmp_path / "downloaded", cache_dir=tmp_path)
    assert pairs["row"][:] == [0, 1, 2, 3, 4]
    assert pairs[2]["prompt"][0]["content"].endswith("? 0")


def test_a_saved_dataset_dict_and_a_saved_dataset_are_read_and_left_untouched(tmp_path):
    train, test = (datasets.Dataset.from_list(numbered(count)) for count in (3, 2))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    before = sorted(tmp_path.rglob("*"))
    cache = tmp_path / "cache"
    assert tuple(local_splits(tmp_path / "both")) == ("train", "test")
    assert len(load_pairs(tmp_path / "both", split="test", cache_dir=cache)) == 2
    assert len(load_pairs(tmp_path / "one", cache_dir=cache)) == 3
    assert sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(cache)) == before


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", numbered(1))
    write_jsonl(tmp_path / "validation.jsonl", numbered(1))
    with pytest.raises(ValueError, match=r"no split 'test'.*train, validation"):
        load_pairs(tmp_path, split="test")
    with pytest.raises(ValueError, match=r"no split 'test'.*A single file is one split"):
        load_pairs(tmp_path / "train.jsonl", split="test")


def test_a_split_may_carry_a_slice(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(10))
    pairs = load_pairs(path, split="train[20%:50%]", cache_dir=tmp_path)
    assert pairs["row"][:] == [2, 3, 4]
    with pytest.raises(ValueError, match="is empty"):
        load_pairs(path, split="train[3:3]", cache_dir=tmp_path)


def test_a_path_without_anything_is_an_error_that_needs_no_network(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load_pairs(tmp_path / "missing.jsonl")
    write_jsonl(tmp_path / "pairs.txt", numbered(1))
    with pytest.raises(ValueError, match=r"not a data file.*\.parquet"):
        load_pairs(tmp_path / "pairs.txt")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="neither a data set saved"):
        load_pairs(tmp_path / "bare")


def test_a_data_set_unknown_to_the_hub_is_an_error_with_its_name(monkeypatch):
    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("no such thing")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"'somebody/nothing'.*Hub"):
        load_pairs("somebody/nothing")


def test_a_data_set_of_the_hub_is_asked_for_by_path_configuration_and_split(monkeypatch, tmp_path):
    asked = {}

    def load(path, name, *, split, cache_dir):
        asked.update(path=path, name=name, split=split)
        return datasets.Dataset.from_list(numbered(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    pairs = load_pairs("some/pairs", name="clean", split="train_prefs", cache_dir=tmp_path)
    assert len(pairs) == 2
    assert asked == {"path": "some/pairs", "name": "clean", "split": "train_prefs"}


def test_a_configuration_of_a_local_folder_is_its_sub_folder(tmp_path):
    (tmp_path / "clean").mkdir()
    write_jsonl(tmp_path / "clean" / "train.jsonl", numbered(2))
    assert len(load_pairs(tmp_path, name="clean", cache_dir=tmp_path / "cache")) == 2
    with pytest.raises(ValueError, match=r"no configuration .* 'dirty'"):
        load_pairs(tmp_path, name="dirty")


# --- columns


def test_columns_are_taken_from_other_names(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "Why?", "good": "So.", "bad": "No.", "n": 1}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    [pair] = load_pairs(path, columns=columns, cache_dir=tmp_path)
    assert (pair["prompt"][0]["content"], pair["chosen"], pair["rejected"]) == (
        "Why?",
        "So.",
        "No.",
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_mapping_can_swap_the_sides(tmp_path, kind):
    if kind == "jsonl":
        write_jsonl(tmp_path / "a.jsonl", numbered(1))
    else:
        datasets.Dataset.from_list(numbered(1)).to_parquet(tmp_path / "a.parquet")
    swap = {"chosen": "rejected", "rejected": "chosen"}
    [pair] = load_pairs(tmp_path / f"a.{kind}", columns=swap, cache_dir=tmp_path)
    assert (pair["chosen"], pair["rejected"]) == ("It is dull.", "It is warm.")


def test_missing_columns_are_named_with_those_that_are_there_and_the_way_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Why?", "good": "So."}])
    message = r"no column chosen and no column rejected.*question, good.*columns: \{chosen: <name>"
    with pytest.raises(ValueError, match=message):
        load_pairs(path, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=message):
        normalize_pairs(datasets.Dataset.from_list([{"question": "Why?", "good": "So."}]))


def test_a_mapping_to_a_column_that_is_not_there_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(1))
    with pytest.raises(ValueError, match=r"chosen should come from 'good'.*prompt, chosen"):
        load_pairs(path, columns={"chosen": "good"}, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="'answer' is not a column of preference pairs"):
        load_pairs(path, columns={"answer": "chosen"}, cache_dir=tmp_path)
    both = {"chosen": "chosen", "rejected": "chosen"}
    with pytest.raises(ValueError, match="two columns from one"):
        load_pairs(path, columns=both, cache_dir=tmp_path)


def test_columns_as_a_list_is_an_error():
    with pytest.raises(ValueError, match="give a mapping"):
        DataSource("a.jsonl", columns=["chosen", "rejected"])


def test_a_column_without_any_value_is_an_error(tmp_path):
    dataset = datasets.Dataset.from_list(numbered(2, rejected=None))
    with pytest.raises(ValueError, match=r"'rejected' .* is empty in all 2 rows"):
        normalize_pairs(dataset, cache_dir=tmp_path)


def test_several_splits_at_once_are_an_error():
    split = datasets.Dataset.from_list(numbered(2))
    with pytest.raises(ValueError, match="is a DatasetDict; give one split of it"):
        normalize_pairs(datasets.DatasetDict({"train": split, "test": split}))


def test_a_source_without_rows_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl has no rows"):
        load_pairs(tmp_path / "a.jsonl", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="has no rows"):
        normalize_pairs(datasets.Dataset.from_dict({"chosen": [], "rejected": []}))


# --- lines that cannot be read


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "Why?", "chosen": "So', r"line 3: not JSON \(Unterminated string"),
        (b'{"prompt": 1} {"prompt": 2}', r"line 3: not JSON \(Extra data"),
        (b'["Why?", "So.", "No."]', "line 3: a list, expected a JSON object"),
        (b'{"prompt": "\xff"}', "line 3: not UTF-8"),
        (b'{"prompt": ' + b"[" * 9999, "line 3: lists or objects are nested too deeply"),
        (b"{", r"line 3: not JSON .*a value over several lines goes into \.json"),
        (b'{"prompt": "Why?", "chosen": 5, "rejected": "b"}', r"line 3: chosen is int \(5\)"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_file_and_number(tmp_path, line, reason):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(b"\n".join([good, b"", line, good]))
    with pytest.raises(ValueError, match=f"pairs.jsonl, {reason}"):
        load_pairs(path, cache_dir=tmp_path)


def test_a_line_that_was_repaired_is_read_the_second_time(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("{")
    with pytest.raises(ValueError, match="line 1"):
        load_pairs(path, cache_dir=tmp_path)
    write_jsonl(path, numbered(2))
    assert len(load_pairs(path, cache_dir=tmp_path)) == 2


def test_a_damaged_json_list_is_named_with_the_line(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"chosen": "a",\n"rejected": b}\n]')
    with pytest.raises(ValueError, match=r"a\.json: not JSON .*line 3, column 13"):
        load_pairs(tmp_path / "a.json", cache_dir=tmp_path)


def test_a_csv_row_with_too_many_or_too_few_fields_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\na,b,c,d\n")
    with pytest.raises(ValueError, match=r"line 3: 4 fields, but the header has 3"):
        load_pairs(path, cache_dir=tmp_path)
    path.write_text('prompt,chosen,rejected\na,b,c\na,"b\n')
    with pytest.raises(ValueError, match=r"line 3: not CSV"):
        load_pairs(path, cache_dir=tmp_path)


def test_a_compressed_file_that_ends_early_is_an_error_and_not_a_shorter_data_set(tmp_path):
    text = "\n".join(json.dumps(record) for record in numbered(500)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(ValueError, match=r"compressed data is damaged after line \d+"):
        load_pairs(tmp_path / "a.jsonl.gz", cache_dir=tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        load_pairs(tmp_path / "a.parquet", cache_dir=tmp_path)


def test_a_column_that_comes_up_later_is_not_lost_in_silence(tmp_path):
    without = {name: PAIR[name] for name in ("chosen", "rejected")}
    path = write_jsonl(tmp_path / "a.jsonl", [without, PAIR])
    with pytest.raises(ValueError, match="line 2 has a prompt, but the first row has none"):
        load_pairs(path, cache_dir=tmp_path)


def test_rows_with_other_keys_and_types_beside_the_pair_do_no_harm(tmp_path):
    records = [{**PAIR, "score": 1}, {**PAIR, "score": "high"}, {**PAIR, "extra": [1, "a"]}]
    assert len(load_pairs(write_jsonl(tmp_path / "a.jsonl", records), cache_dir=tmp_path)) == 3


# --- formats


def test_standard_explicit_prompts_become_one_user_message(normalized):
    pair = normalized(prompt="The sky is ", chosen=" blue.", rejected=" green.")
    assert pair["prompt"] == [{"role": "user", "content": "The sky is"}]
    assert (pair["chosen"], pair["rejected"]) == ("blue.", "green.")


def test_a_standard_implicit_prompt_is_the_shared_text_up_to_a_whole_word(normalized):
    pair = normalized(chosen="The sky is bluish grey.", rejected="The sky is black.")
    assert pair["prompt"] == [{"role": "user", "content": "The sky is"}]
    assert (pair["chosen"], pair["rejected"]) == ("bluish grey.", "black.")
    pair = normalized(chosen="How?\nSo.", rejected="How? No.")
    assert pair["prompt"][0]["content"] == "How?"
    assert (pair["chosen"], pair["rejected"]) == ("So.", "No.")


def test_conversational_explicit_prompts_are_kept_as_they_are(normalized):
    system = {"role": "system", "content": "Be brief."}
    pair = normalized(prompt=[system, USER], chosen=[WARM], rejected=[DULL])
    assert pair["prompt"] == [system, USER]
    assert (pair["chosen"], pair["rejected"]) == ("It is warm.", "It is dull.")


def test_a_conversational_implicit_prompt_is_the_shared_messages(normalized):
    again = {"role": "user", "content": "And the bread?"}
    pair = normalized(chosen=[USER, WARM, again, DULL], rejected=[USER, WARM, again, WARM])
    assert pair["prompt"] == [USER, WARM, again]
    assert (pair["chosen"], pair["rejected"]) == ("It is dull.", "It is warm.")


def test_hh_transcripts_are_split_at_the_last_assistant_turn(normalized):
    shared = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: How is it?\n\nTell me.\n\nAssistant:"
    pair = normalized(chosen=shared + " Good.\n\nReally.", rejected=shared + " Good")
    assert pair["prompt"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How is it?\n\nTell me."},
    ]
    assert (pair["chosen"], pair["rejected"]) == ("Good.\n\nReally.", "Good")
    assert (
        pair["dropped"] is None
    )  # a side may begin with the other where the turn marks the prompt


def test_a_transcript_in_the_prompt_column_becomes_turns(normalized):
    transcript = "Human: Hello\n\nAssistant: Hi.\n\nHuman: How is it?\n\nAssistant:"
    pair = normalized(prompt=transcript, chosen="Human: as ever.", rejected="Human: bad.")
    assert [m["role"] for m in pair["prompt"]] == ["user", "assistant", "user"]
    assert pair["chosen"] == "Human: as ever."


def test_two_turns_of_one_speaker_become_one(normalized):
    shared = "\n\nHuman: Hello\n\nHuman: Are you there?\n\nAssistant:"
    pair = normalized(chosen=shared + " Yes.", rejected=shared + " No.")
    assert pair["prompt"] == [{"role": "user", "content": "Hello\n\nAre you there?"}]


def test_ultrafeedback_rows_take_the_prompt_from_the_messages(normalized):
    row = {"messages": [USER, WARM], "score_chosen": 8.5, "score_rejected": 2.0, "prompt_id": "x"}
    pair = normalized(prompt="How is the soup?", chosen=[USER, WARM], rejected=[USER, DULL], **row)
    assert pair["prompt"] == [USER]
    assert (pair["chosen"], pair["rejected"]) == ("It is warm.", "It is dull.")
    pair = normalized(prompt="Another question", chosen=[USER, WARM], rejected=[USER, DULL])
    assert pair["dropped"] == "the prompt column is not among the messages"


def test_an_empty_system_message_counts_as_none(normalized):
    pair = normalized(
        prompt=[{"role": "system", "content": ""}, USER], chosen=[WARM], rejected=[DULL]
    )
    assert pair["prompt"] == [USER]


def test_pairs_that_are_normalised_already_come_back_as_they_are(tmp_path):
    pairs = load_pairs(write_jsonl(tmp_path / "a.jsonl", numbered(2)), cache_dir=tmp_path)
    assert normalize_pairs(pairs) is pairs


# --- rows that are no pair


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**PAIR, "chosen": "  "}, "chosen is empty"),
        ({**PAIR, "rejected": ""}, "rejected is empty"),
        ({**PAIR, "prompt": " \n"}, "the prompt is empty"),
        ({**PAIR, "rejected": " It is warm.\n"}, "chosen and rejected are identical"),
        ({"chosen": "Soup? Warm.", "rejected": "Soup? Warm."}, "chosen and rejected are identical"),
        ({"chosen": "Soup? Warm.", "rejected": "Soup?"}, "one side is the beginning of the other"),
        ({"chosen": "Soup?", "rejected": "Soup? Warm."}, "one side is the beginning of the other"),
        ({"chosen": "Warm.", "rejected": "Dull."}, "the sides share no prompt"),
        ({"chosen": [USER, WARM], "rejected": [USER, WARM]}, "chosen and rejected are identical"),
        ({"chosen": [USER, WARM], "rejected": [USER]}, "one side is the beginning of the other"),
        ({"chosen": [WARM], "rejected": [DULL]}, "the sides share no prompt"),
        (
            {"chosen": [USER, WARM, USER, DULL], "rejected": [USER, DULL]},
            "the sides differ in more",
        ),
        (
            {"chosen": [USER, WARM, USER], "rejected": [USER, WARM, {**USER, "content": "Why?"}]},
            "the last message is not the assistant's",
        ),
        (
            {"chosen": [USER, WARM], "rejected": [USER, {**DULL, "content": ""}]},
            "rejected is empty",
        ),
        (
            {"prompt": [{**USER, "content": ""}], "chosen": [WARM], "rejected": [DULL]},
            "a message of the prompt is empty",
        ),
        (
            {"prompt": [{**USER, "role": "system"}], "chosen": [WARM], "rejected": [DULL]},
            "the prompt holds no user message",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: Oh\n\nAssistant: B",
                "rejected": "\n\nHuman: Hi\n\nAssistant: C\n\nHuman: Oh\n\nAssistant: D",
            },
            "the sides differ in more than the last message",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: A",
                "rejected": "\n\nHuman: Hi\n\nAssistant:",
            },
            "rejected is empty",
        ),
    ],
)
def test_a_row_that_is_no_pair_keeps_its_place_and_its_reason(normalized, record, reason):
    pair = normalized(**record)
    assert pair["dropped"].startswith(reason)
    assert (pair["row"], pair["prompt"], pair["chosen"], pair["rejected"]) == (0, [], "", "")


def test_a_missing_value_in_one_row_drops_that_row(tmp_path):
    records = [PAIR, {**PAIR, "chosen": None}, {"prompt": "Why?", "chosen": "So."}]
    pairs = load_pairs(write_jsonl(tmp_path / "a.jsonl", records), cache_dir=tmp_path)
    assert pairs["dropped"][:] == [None, "chosen is empty", "rejected is empty"]
    assert usable_pairs(pairs)["row"][:] == [0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**PAIR, "chosen": 3}, r"row 0: chosen is int \(3\), expected text or a list"),
        ({**PAIR, "prompt": {"text": "Why?"}}, "row 0: prompt is dict"),
        ({**PAIR, "chosen": ["So."]}, r"row 0: chosen\[0\] is 'So.', expected text or"),
        ({**PAIR, "chosen": [{"text": "So."}]}, r"row 0: chosen\[0\] is \{'text'"),
        (
            {**PAIR, "chosen": [{"role": "assistant", "content": [{"type": "text"}]}]},
            r"row 0: the content of chosen\[0\] is list, expected text",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_row_and_type(normalized, record, message):
    with pytest.raises(ValueError, match=message):
        normalized(**record)


# --- mixtures


def mixture_of(tmp_path, *counts, **options):
    sources = []
    for i, count in enumerate(counts):
        records = [{**PAIR, "prompt": f"source {i} row {row}"} for row in range(count)]
        sources.append(str(write_jsonl(tmp_path / f"{i}.jsonl", records)))
    fractions = options.pop("fractions", [None] * len(counts))
    chosen = [DataSource(s, fraction=f) for s, f in zip(sources, fractions, strict=True)]
    return load_mixture(chosen, cache_dir=tmp_path / "cache", **options)


def texts(pairs):
    return [prompt[0]["content"] for prompt in pairs["prompt"]]


def test_a_mixture_holds_the_fraction_of_each_source_shuffled(tmp_path):
    mixture = mixture_of(tmp_path, 40, 30, fractions=[0.5, 0.1])
    found = texts(mixture)
    assert sum("source 0" in text for text in found) == 20
    assert sum("source 1" in text for text in found) == 3
    assert len(set(found)) == 23
    assert found != sorted(found)


def test_the_rows_of_a_mixture_go_on_counting_from_source_to_source(tmp_path):
    mixture = mixture_of(tmp_path, 4, 3)
    assert sorted(mixture["row"][:]) == list(range(7))
    for row, text in zip(mixture["row"][:], texts(mixture), strict=True):
        assert text == (f"source 0 row {row}" if row < 4 else f"source 1 row {row - 4}")


def test_a_mixture_is_decided_by_its_seed(tmp_path):
    fractions = [0.5, 0.5]
    first = texts(mixture_of(tmp_path, 20, 20, fractions=fractions, seed=1))
    assert first == texts(mixture_of(tmp_path, 20, 20, fractions=fractions, seed=1))
    other = texts(mixture_of(tmp_path, 20, 20, fractions=fractions, seed=2))
    assert set(first) != set(other)


def test_sources_of_different_formats_mix(tmp_path):
    write_jsonl(tmp_path / "text.jsonl", [PAIR])
    write_jsonl(tmp_path / "chat.jsonl", [{"good": [USER, WARM], "bad": [USER, DULL]}])
    renamed = {"chosen": "good", "rejected": "bad"}
    sources = [
        DataSource(str(tmp_path / "text.jsonl")),
        DataSource(str(tmp_path / "chat.jsonl"), columns=renamed),
    ]
    mixture = load_mixture(sources, cache_dir=tmp_path / "cache")
    assert mixture["prompt"][:] == [[USER], [USER]]


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_fraction_outside_zero_to_one_is_an_error(fraction):
    with pytest.raises(ValueError, match="fraction is"):
        DataSource("a.jsonl", fraction=fraction)


def test_a_mixture_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="datasets is empty"):
        load_mixture([])


# --- the cache, and the cost of importing


def test_a_second_process_finds_the_pairs_of_a_file_in_the_cache(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", numbered(3))
    pairs = load_pairs(path, cache_dir=tmp_path / "cache")
    code = (
        "import datasets, rahf.data.sources\n"
        "def unexpected(path): raise AssertionError('the file was read again')\n"
        "rahf.data.sources.read_records = unexpected\n"
        "pairs = rahf.data.sources.load_pairs("
        f"{str(path)!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "print(len(pairs), pairs._fingerprint)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["3", pairs._fingerprint]


@pytest.mark.parametrize("content", ["[1]", "{}", "", '{"splits": 1}'])
def test_a_damaged_list_of_splits_is_named(tmp_path, content):
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset_dict\.json is damaged\. Save the data"):
        load_pairs(tmp_path)


def saved_folder(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(path)
    state = json.loads((path / "state.json").read_text()) | {"_fingerprint": "the same"}
    (path / "state.json").write_text(json.dumps(state))


SOURCES = {
    "a.jsonl": write_jsonl,
    "a.csv": lambda path, rows: datasets.Dataset.from_list(rows).to_csv(path),
    "a.parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
    "saved": saved_folder,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("columns", [None, {"chosen": "rejected", "rejected": "chosen"}])
def test_a_changed_file_is_read_again_though_its_size_and_its_times_are_the_same(
    tmp_path, name, columns
):
    path, side = tmp_path / name, "rejected" if columns else "chosen"
    found = []
    for text in ("It is warm.", "It is cold.", "It is warm."):
        SOURCES[name](path, numbered(3, chosen=text))
        for file in [path, *path.rglob("*")]:
            os.utime(file, ns=(10**18, 10**18))
        pairs = load_pairs(path, columns=columns, cache_dir=tmp_path / "cache")
        found.append(pairs._fingerprint)
        assert pairs[side][:] == [text] * 3
    assert found[0] == found[2] != found[1]


def test_importing_the_data_modules_loads_neither_torch_nor_datasets():
    code = (
        "import sys, rahf.data, rahf.data.tokenization\n"
        "print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
