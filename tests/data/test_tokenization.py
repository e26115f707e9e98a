import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers_for_tests import (
    CHATML,
    INST,
    TURNS,
    chatml_tokenizer,
    gpt2_tokenizer,
    llama_tokenizer,
    word_tokenizer,
)
from transformers import PreTrainedTokenizerFast

import rahf.data.tokenization
from rahf.data.chat_format import PLAIN_CHAT_TEMPLATE, chat_format, resolve_chat_template
from rahf.data.summary import QUANTILES, describe
from rahf.data.tokenization import tokenize_pairs, tokenize_texts, tokenizer_key

datasets.disable_progress_bars()

TOKENIZERS = [chatml_tokenizer, gpt2_tokenizer, llama_tokenizer]
INSTRUCTIONS = {"positive": "You praise.", "negative": "You complain."}
QUESTION = "What did you think of the film?"
LOVED = "I loved it, the ending was a delight."
HATED = "I hated it, the ending was dull."


def dataset_of(*rows):
    default = {"prompt": QUESTION, "chosen": LOVED, "rejected": HATED}
    return datasets.Dataset.from_list([{**default, **row} for row in rows or ({},)])


def chat_of(*contents, system=None):
    roles = ["user", "assistant"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def chats(*prompts):
    answers = [[{"role": "assistant", "content": text}] for text in (LOVED, HATED)]
    return datasets.Dataset.from_list(
        [{"prompt": p, "chosen": answers[0], "rejected": answers[1]} for p in prompts]
    )


@pytest.fixture
def tokenize(tmp_path):
    def run(dataset, tokenizer, **options):
        return tokenize_pairs(dataset, tokenizer, **{"cache_dir": tmp_path / "cache", **options})

    return run


# --- one rendering, the response from the boundary to the end of the turn


@pytest.mark.parametrize("build", TOKENIZERS)
def test_prompt_and_response_ids_are_the_template_s_own_rendering_cut_in_two(tokenize, build):
    tokenizer = build()
    [row] = tokenize(dataset_of(), tokenizer)[0]
    template = resolve_chat_template(tokenizer)
    messages = chat_of(QUESTION, LOVED)
    options = {"chat_template": template, "return_dict": False}
    whole = tokenizer.apply_chat_template(messages, **options)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, **options)
    ids = row["prompt_ids"] + row["chosen_ids"]
    assert row["prompt_ids"] == prompt
    assert ids == whole[: len(ids)]
    # Whatever the template writes after the end of the turn is left out, and nothing else.
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


@pytest.mark.parametrize("build", TOKENIZERS)
def test_responses_end_with_the_token_that_ends_a_turn(tokenize, build):
    tokenizer = build()
    [row] = tokenize(dataset_of(), tokenizer)[0]
    for side in ("chosen_ids", "rejected_ids"):
        assert row[side][-1] == tokenizer.eos_token_id
        assert row[side].count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("build", TOKENIZERS)
def test_the_response_reads_as_given(tokenize, build):
    tokenizer = build()
    [row] = tokenize(dataset_of(), tokenizer)[0]
    assert tokenizer.decode(row["chosen_ids"], skip_special_tokens=True).strip() == LOVED
    assert tokenizer.decode(row["rejected_ids"], skip_special_tokens=True).strip() == HATED


def test_a_bos_that_tokenizer_and_template_both_add_occurs_once(tokenize):
    tokenizer = llama_tokenizer()
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    [row] = tokenize(dataset_of(), tokenizer)[0]
    ids = row["prompt_ids"] + row["chosen_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_plain_template_writes_a_bos_where_the_tokenizer_adds_one_and_nowhere_else(tokenize):
    llama, gpt2 = llama_tokenizer(), gpt2_tokenizer()
    llama.chat_template = None
    [row] = tokenize(dataset_of(), llama)[0]
    assert row["prompt_ids"].count(llama.bos_token_id) == 1
    assert row["prompt_ids"][0] == llama.bos_token_id
    [row] = tokenize(dataset_of(), gpt2)[0]
    assert gpt2.bos_token_id not in row["prompt_ids"]


def test_a_model_without_a_chat_template_gets_the_plain_one(tokenize):
    tokenizer = gpt2_tokenizer()
    prompt = chat_of("How is the soup?", "Warm.", QUESTION, system="Be brief.")
    [row] = tokenize(chats(prompt), tokenizer)[0]
    assert tokenizer.decode(row["prompt_ids"]) == (
        "Be brief.\n\nQuestion: How is the soup?\n\nAnswer: Warm.<|endoftext|>\n\n"
        f"Question: {QUESTION}\n\nAnswer:"
    )
    assert tokenizer.decode(row["chosen_ids"]) == f" {LOVED}<|endoftext|>"


def test_markers_written_by_the_template_are_single_tokens(tokenize):
    tokenizer = chatml_tokenizer()
    [row] = tokenize(dataset_of(), tokenizer)[0]
    assert row["prompt_ids"].count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert tokenizer.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")


def test_a_response_after_a_line_break_gets_no_word_start_of_its_own(tokenize):
    # Tokenised apart, "I" would become the piece that begins a text: "▁I".
    template = (
        "{% for m in messages %}{{ m['role'] + '\n' + m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    )
    tokenizer = llama_tokenizer()
    [row] = tokenize(dataset_of(), tokenizer, chat_template=template)[0]
    whole = f"user\n{QUESTION}\nassistant\n{LOVED}</s>"
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert row["prompt_ids"] + row["chosen_ids"] == ids
    assert tokenizer.convert_ids_to_tokens(row["chosen_ids"])[0] == "I"


def test_a_token_across_the_boundary_is_tokenised_apart(tokenize):
    # With the blank at the end of the prompt, " the" would be one token that belongs to both.
    template = PLAIN_CHAT_TEMPLATE.replace("Answer:'", "Answer: '")
    tokenizer = gpt2_tokenizer()
    dataset = dataset_of({"chosen": "the film is long."})
    [row] = tokenize(dataset, tokenizer, chat_template=template)[0]
    prompt = f"Question: {QUESTION}\n\nAnswer: "
    assert row["prompt_ids"] == tokenizer(prompt)["input_ids"]
    assert row["chosen_ids"] == tokenizer("the film is long.<|endoftext|>")["input_ids"]
    whole = tokenizer(f"{prompt}the film is long.<|endoftext|>")["input_ids"]
    assert row["prompt_ids"] + row["chosen_ids"] != whole


def test_a_break_merged_with_a_break_at_the_boundary_keeps_the_prompt_whole(tokenize):
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    answers = [[{"role": "assistant", "content": f"\n{text}"}] for text in (LOVED, HATED)]
    dataset = datasets.Dataset.from_list(
        [{"prompt": chat_of(QUESTION), "chosen": answers[0], "rejected": answers[1]}]
    )
    [row] = tokenize(dataset, tokenizer, chat_template=template)[0]
    assert tokenizer.decode(row["prompt_ids"]).endswith("assistant\n")
    assert tokenizer.decode(row["chosen_ids"]) == f"\n{LOVED}<|endoftext|>"


def test_a_boundary_inside_an_unknown_word_does_not_lose_the_response_s_first_word(tokenize):
    # "Answer:" and "Answer:I" are both the unknown word, so the ids alone look alike.
    template = PLAIN_CHAT_TEMPLATE.replace("'Answer: ' +", "'Ans:' +").replace("Answer:", "Ans:")
    tokenizer = word_tokenizer()
    dataset = dataset_of({"chosen": "loved it", "rejected": "hated it"})
    [row] = tokenize(dataset, tokenizer, chat_template=template.replace("+ eos", "+ ' ' + eos"))[0]
    assert row["chosen_ids"] == tokenizer("loved it [EOS]")["input_ids"]
    assert row["rejected_ids"] == tokenizer("hated it [EOS]")["input_ids"]


def test_a_prompt_that_is_cut_otherwise_before_a_response_is_the_same_on_both_sides(tokenize):
    # This tokenizer cuts "abc" into a, bc, but before an X into ab, c: as many ids, others.
    vocabulary = {word: i for i, word in enumerate(["a", "bc", "ab", "c", "X", "Y", "[EOS]"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[EOS]"))
    pieces = Regex(r"ab(?=cX)|a|bc|c|X|Y")
    backend.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[EOS]")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    dataset = dataset_of({"prompt": "abc", "chosen": "X", "rejected": "Y"})
    [row] = tokenize(dataset, tokenizer, chat_template=template)[0]
    assert tokenizer("abcX")["input_ids"] == [2, 3, 4]
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == ([0, 1], [4, 6], [5, 6])


def test_a_template_without_a_token_at_the_end_of_a_turn_gets_the_eos(tokenize):
    template = (
        "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    )
    tokenizer = gpt2_tokenizer()
    [row] = tokenize(dataset_of(), tokenizer, chat_template=template)[0]
    assert tokenizer.decode(row["chosen_ids"]) == f"{LOVED}<|endoftext|>"


def test_text_put_before_the_response_by_the_template_counts_as_response(tokenize):
    template = CHATML.replace(
        "'\n' + message['content']",
        "'\n' + ('<think></think>' if message['role'] == 'assistant' else '') + message['content']",
    )
    tokenizer = chatml_tokenizer()
    [row] = tokenize(dataset_of(), tokenizer, chat_template=template)[0]
    assert tokenizer.decode(row["chosen_ids"]) == f"<think></think>{LOVED}<|im_end|>"


# --- instructions


@pytest.mark.parametrize("build", TOKENIZERS)
def test_both_views_carry_the_same_response_ids_as_the_row_without_instruction(tokenize, build):
    plain = tokenize(dataset_of(), build())[0][0]
    row = tokenize(dataset_of(), build(), instructions=INSTRUCTIONS)[0][0]
    assert {name: row[name] for name in plain} == plain
    assert set(row) - set(plain) == {"positive_prompt_ids", "negative_prompt_ids"}


@pytest.mark.parametrize("template", [CHATML, TURNS, None])
@pytest.mark.parametrize("build", TOKENIZERS)
def test_the_two_views_differ_in_the_instruction_text_and_in_nothing_else(
    tokenize, build, template
):
    tokenizer = build()
    row = tokenize(dataset_of(), tokenizer, instructions=INSTRUCTIONS, chat_template=template)[0][0]
    positive = tokenizer.decode(row["positive_prompt_ids"])
    negative = tokenizer.decode(row["negative_prompt_ids"])
    assert positive.count("You praise.") == negative.count("You complain.") == 1
    assert positive.replace("You praise.", "You complain.") == negative


def test_an_instruction_is_appended_to_the_system_message(tokenize):
    tokenizer = chatml_tokenizer()
    prompt = chat_of(QUESTION, system="Be brief.")
    row = tokenize(chats(prompt), tokenizer, instructions=INSTRUCTIONS)[0][0]
    expected = "<|im_start|>system\nBe brief.\n\nYou praise.<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(row["positive_prompt_ids"]).startswith(expected)


def test_an_instruction_is_appended_to_the_template_s_default_system_message(tokenize):
    tokenizer = chatml_tokenizer()
    row = tokenize(dataset_of(), tokenizer, instructions=INSTRUCTIONS)[0][0]
    expected = "<|im_start|>system\nYou are a helpful assistant.\n\nYou praise.<|im_end|>\n"
    assert tokenizer.decode(row["positive_prompt_ids"]).startswith(expected)


@pytest.mark.parametrize("template", [INST, TURNS])
def test_without_a_system_role_instructions_precede_the_first_user_message(tokenize, template):
    tokenizer = llama_tokenizer() if template is INST else chatml_tokenizer()
    prompt = chat_of("How is the soup?", "Warm.", QUESTION)
    options = {"instructions": INSTRUCTIONS, "chat_template": template}
    row = tokenize(chats(prompt), tokenizer, **options)[0][0]
    text = tokenizer.decode(row["positive_prompt_ids"])
    assert text.replace("You praise.\n\n", "") == tokenizer.decode(row["prompt_ids"])
    assert "You praise.\n\nHow is the soup?" in text


def test_without_a_system_role_system_text_of_the_data_is_kept(tokenize):
    tokenizer = chatml_tokenizer()
    prompt = chat_of(QUESTION, system="Be brief.")
    options = {"instructions": INSTRUCTIONS, "chat_template": TURNS}
    row = tokenize(chats(prompt), tokenizer, **options)[0][0]
    assert f"user\nBe brief.\n\n{QUESTION}" in tokenizer.decode(row["prompt_ids"])
    text = tokenizer.decode(row["positive_prompt_ids"])
    assert f"user\nBe brief.\n\nYou praise.\n\n{QUESTION}" in text


@pytest.mark.parametrize(
    ("template", "takes_system", "default"),
    [
        (CHATML, True, "You are a helpful assistant."),
        (CHATML.replace("You are a helpful assistant.", ""), True, ""),
        (PLAIN_CHAT_TEMPLATE, True, ""),
        (TURNS, False, ""),
        (INST, False, ""),
    ],
)
def test_the_system_role_of_a_template_is_found_by_trying_it(template, takes_system, default):
    chat = chat_format(chatml_tokenizer(), template)
    assert (chat.takes_system, chat.default_system) == (takes_system, default)


def test_an_empty_instruction_is_an_error(tokenize):
    with pytest.raises(ValueError, match="instruction 'positive' is ' '"):
        tokenize(dataset_of(), chatml_tokenizer(), instructions={"positive": " "})


def test_a_template_that_alters_the_instruction_is_an_error(tokenize):
    altering = CHATML.replace("+ message['content'] +", "+ message['content'].replace('!', '.') +")
    with pytest.raises(ValueError, match="row 0: the chat template does not write the instruction"):
        tokenize(
            dataset_of(),
            chatml_tokenizer(),
            chat_template=altering,
            instructions={"positive": "Praise!"},
        )


# --- limits


def test_a_response_that_does_not_fit_loses_its_end_equally_in_all_views(tokenize):
    tokenizer = chatml_tokenizer()
    whole = tokenize(dataset_of(), tokenizer, instructions=INSTRUCTIONS)[0][0]
    longest = max(len(whole[name]) for name in whole if name.endswith("prompt_ids"))
    assert longest > len(whole["prompt_ids"])
    limit = longest + 5
    rows, report = tokenize(dataset_of(), tokenizer, instructions=INSTRUCTIONS, max_length=limit)
    row = rows[0]
    assert row["chosen_ids"] == whole["chosen_ids"][:5]
    assert row["rejected_ids"] == whole["rejected_ids"][:5]
    for name in whole:
        if name.endswith("prompt_ids"):
            assert row[name] == whole[name]
            assert len(row[name]) + len(row["chosen_ids"]) <= limit
    assert report.shortened == 1


def test_a_response_that_just_fits_is_left_alone(tokenize):
    tokenizer = chatml_tokenizer()
    [whole] = tokenize(dataset_of(), tokenizer)[0]
    length = len(whole["prompt_ids"]) + max(len(whole[f"{s}_ids"]) for s in ("chosen", "rejected"))
    rows, report = tokenize(dataset_of(), tokenizer, max_length=length)
    assert rows[0] == whole
    assert report.shortened == 0


def test_a_prompt_over_the_limit_drops_the_row_and_is_never_cut(tokenize):
    tokenizer = chatml_tokenizer()
    dataset = dataset_of({}, {"prompt": f"{QUESTION} " * 5}, {"prompt": "Is it?"})
    [*lengths] = map(len, tokenize(dataset, tokenizer)[0]["prompt_ids"])
    rows, report = tokenize(dataset, tokenizer, max_prompt_length=lengths[0])
    assert rows["row"][:] == [0, 2]
    assert [len(ids) for ids in rows["prompt_ids"]] == [lengths[0], lengths[2]]
    [dropped] = report.dropped
    assert dropped.reason.startswith("the prompt is longer than max_prompt_length")
    assert (dropped.count, dropped.first_rows) == (1, (1,))


def test_the_prompt_limit_does_not_count_the_instruction(tokenize):
    tokenizer = chatml_tokenizer()
    limit = len(tokenize(dataset_of(), tokenizer)[0][0]["prompt_ids"])
    options = {"max_prompt_length": limit, "instructions": INSTRUCTIONS}
    assert tokenize(dataset_of(), tokenizer, **options)[1].kept == 1


def test_a_prompt_that_leaves_no_room_drops_the_row(tokenize):
    tokenizer = chatml_tokenizer()
    dataset = dataset_of({}, {"prompt": f"{QUESTION} " * 5})
    room = len(tokenize(dataset, tokenizer)[0][0]["prompt_ids"]) + 3
    report = tokenize(dataset, tokenizer, max_length=room)[1]
    assert report.dropped[0].reason.startswith("the prompt leaves no room within max_length")


def test_sides_that_differ_only_after_the_cut_drop_the_row(tokenize):
    tokenizer = chatml_tokenizer()
    alike = {"chosen": f"{LOVED} Yes.", "rejected": f"{LOVED} No."}
    dataset = dataset_of({}, alike)
    limit = len(tokenize(dataset, tokenizer)[0][1]["prompt_ids"]) + 8
    report = tokenize(dataset, tokenizer, max_length=limit)[1]
    assert report.dropped[0].reason.startswith("the sides differ only after max_length")


def test_sides_with_the_same_tokens_drop_the_row(tokenize):
    tokenizer = word_tokenizer()
    dataset = dataset_of({"chosen": "loved it", "rejected": "hated it"}, {"chosen": "x y"})
    dataset = datasets.concatenate_datasets(
        [dataset, dataset_of({"chosen": "xx yy", "rejected": "zz vv"})]
    )
    template = PLAIN_CHAT_TEMPLATE.replace("+ eos_token", "+ ' ' + eos_token")
    report = tokenize(dataset, tokenizer, chat_template=template)[1]
    assert report.dropped[0].reason == "chosen and rejected have the same tokens"
    assert report.dropped[0].first_rows == (2,)


@pytest.mark.parametrize("limits", [{"max_length": 0}, {"max_prompt_length": -1}])
def test_a_limit_below_one_is_an_error(tokenize, limits):
    with pytest.raises(ValueError, match="above 0, or null"):
        tokenize(dataset_of(), chatml_tokenizer(), **limits)


def test_a_total_limit_not_above_the_prompt_limit_is_an_error(tokenize):
    with pytest.raises(ValueError, match=r"max_length \(64\) counts prompt and response together"):
        tokenize(dataset_of(), chatml_tokenizer(), max_length=64, max_prompt_length=64)


# --- bad input


def test_dropped_rows_leave_out_only_themselves_and_rows_keep_their_numbers(tokenize):
    dataset = dataset_of({"chosen": ""}, {}, {"rejected": LOVED}, {"prompt": "Is it?"})
    rows, report = tokenize(dataset, chatml_tokenizer())
    assert rows["row"][:] == [1, 3]
    assert (report.loaded, report.kept) == (4, 2)
    assert {found.reason: found.first_rows for found in report.dropped} == {
        "chosen is empty": (0,),
        "chosen and rejected are identical": (2,),
    }


def test_no_row_left_is_an_error_that_lists_the_reasons_with_counts(tokenize):
    dataset = dataset_of({"chosen": ""}, {"chosen": " "}, {"rejected": LOVED})
    with pytest.raises(
        ValueError, match=r"(?s)No pair is left of 3.*2  chosen is empty \(rows 0, 1"
    ):
        tokenize(dataset, chatml_tokenizer())


def test_a_chat_that_the_template_refuses_drops_that_row(tokenize):
    two_users = [*chat_of("How is the soup?"), *chat_of(QUESTION)]
    rows, report = tokenize(chats(chat_of(QUESTION), two_users), llama_tokenizer())
    assert rows["row"][:] == [0]
    assert "roles must alternate" in report.dropped[0].reason


def test_a_slow_tokenizer_is_an_error(tokenize):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is a slow tokenizer"):
        tokenize(dataset_of(), Slow())


def test_a_template_whose_prompt_is_not_the_beginning_of_the_full_text_is_an_error(tokenize):
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\nSo:'")
    with pytest.raises(ValueError, match=r"the start of the response is ambiguous.*\{% for"):
        tokenize(dataset_of(), chatml_tokenizer(), chat_template=template)


def test_a_template_without_the_response_is_an_error(tokenize):
    with pytest.raises(ValueError, match="does not write the response"):
        tokenize(dataset_of(), chatml_tokenizer(), chat_template="{{ messages[0]['content'] }}")


def test_a_tokenizer_without_template_and_eos_is_an_error(tokenize):
    tokenizer = gpt2_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an eos token"):
        tokenize(dataset_of(), tokenizer)


def test_a_template_may_be_a_file(tokenize, tmp_path):
    (tmp_path / "chat.jinja").write_text(CHATML)
    from_file = tokenize(
        dataset_of(), chatml_tokenizer(), chat_template=str(tmp_path / "chat.jinja")
    )
    assert from_file[0][0] == tokenize(dataset_of(), chatml_tokenizer())[0][0]
    with pytest.raises(ValueError, match=r"neither Jinja text .* nor a file"):
        tokenize(dataset_of(), chatml_tokenizer(), chat_template="missing.jinja")


# --- the cache


@pytest.fixture
def renderings(monkeypatch):
    """Count the pairs that are rendered; a cache hit renders none."""
    count = {"pairs": 0}
    render_pair = rahf.data.tokenization.render_pair

    def counting(*args):
        count["pairs"] += 1
        return render_pair(*args)

    monkeypatch.setattr(rahf.data.tokenization, "render_pair", counting)
    return count


def test_the_second_call_is_a_cache_hit_with_the_same_rows_and_report(tokenize, renderings):
    dataset = dataset_of({}, {"chosen": ""}, {"prompt": "Is it?"})
    first, first_report = tokenize(dataset, chatml_tokenizer())
    assert renderings["pairs"] == 2
    second, second_report = tokenize(dataset, chatml_tokenizer())
    assert renderings["pairs"] == 2
    assert first[:] == second[:]
    assert first_report == second_report


@pytest.mark.parametrize(
    "changed",
    [
        {"chat_template": CHATML.replace("helpful", "kind")},
        {"instructions": INSTRUCTIONS},
        {"max_length": 300},
        {"max_prompt_length": 200},
    ],
)
def test_a_changed_option_is_a_cache_miss(tokenize, renderings, changed):
    tokenize(dataset_of(), chatml_tokenizer())
    tokenize(dataset_of(), chatml_tokenizer(), **changed)
    assert renderings["pairs"] == 2


def test_other_data_another_tokenizer_and_other_code_are_cache_misses(
    tokenize, renderings, monkeypatch
):
    tokenize(dataset_of(), chatml_tokenizer())
    tokenize(dataset_of({"prompt": "Is it?"}), chatml_tokenizer())
    assert renderings["pairs"] == 2
    extended = chatml_tokenizer()
    extended.add_tokens(["film"])
    tokenize(dataset_of(), extended)
    assert renderings["pairs"] == 3
    monkeypatch.setattr(rahf.data.tokenization, "TOKENIZATION_VERSION", -1)
    tokenize(dataset_of(), chatml_tokenizer())
    assert renderings["pairs"] == 4


def test_a_tokenizer_that_padded_and_cut_before_has_the_same_key():
    tokenizer = chatml_tokenizer()
    before = tokenizer_key(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_key(tokenizer) == before


def test_a_second_process_finds_the_rows_of_a_file_in_the_cache(tmp_path):
    pairs = [{"prompt": QUESTION, "chosen": LOVED, "rejected": HATED}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    code = (
        "import sys, datasets, rahf.data.tokenization\n"
        "from rahf.data.sources import load_pairs\n"
        "from tokenizers_for_tests import chatml_tokenizer\n"
        "rendered = []\n"
        "render_pair = rahf.data.tokenization.render_pair\n"
        "def counting(*args):\n"
        "    rendered.append(1)\n"
        "    return render_pair(*args)\n"
        "rahf.data.tokenization.render_pair = counting\n"
        "source, cache = sys.argv[1:]\n"
        "pairs = load_pairs(source, cache_dir=cache)\n"
        "rahf.data.tokenization.tokenize_pairs(pairs, chatml_tokenizer(), cache_dir=cache)\n"
        "print(len(rendered))"
    )
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl"), str(tmp_path / "cache")]
    counts = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [int(count) for count in counts] == [1, 0]


def test_two_processes_give_what_one_gives(tokenize, tmp_path):
    dataset = dataset_of(*({"prompt": f"{QUESTION} {i}"} for i in range(6)), {"chosen": ""})
    alone = tokenize(dataset, chatml_tokenizer(), instructions=INSTRUCTIONS)
    both = tokenize(
        dataset,
        chatml_tokenizer(),
        instructions=INSTRUCTIONS,
        num_proc=2,
        cache_dir=tmp_path / "other",
    )
    assert alone[0][:] == both[0][:]
    assert alone[1] == both[1]


def test_many_batches_give_what_single_rows_give(tokenize):
    rows = [{"prompt": f"{QUESTION} {i}", "chosen": LOVED + "!" * (i % 7)} for i in range(1100)]
    together = tokenize(dataset_of(*rows), chatml_tokenizer())[0]
    for i in (0, 999, 1000, 1099):
        alone = tokenize(dataset_of(rows[i]), chatml_tokenizer())[0][0]
        assert {**together[i], "row": 0} == alone


# --- texts


def test_texts_are_read_in_order_and_cut(tmp_path):
    tokenizer = llama_tokenizer()
    texts = [LOVED, "", HATED, QUESTION]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "topic": 1}) for text in texts))
    found = tokenize_texts(path, tokenizer, rows=2, tokens=6)
    assert found == [tokenizer(text)["input_ids"][:6] for text in (LOVED, HATED)]


def test_a_record_without_a_text_is_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "So."}\n{"body": "No."}\n')
    with pytest.raises(ValueError, match=r"line 2: no text.*It has: body"):
        tokenize_texts(path, gpt2_tokenizer(), rows=5, tokens=6)
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="holds no text"):
        tokenize_texts(path, gpt2_tokenizer(), rows=5, tokens=6)


def test_a_text_may_be_rendered_for_its_own_tokenizer_only(tmp_path):
    path = tmp_path / "texts.jsonl"
    tokenizer = llama_tokenizer()
    text = "<s>[INST] so [/INST] it is</s>"
    path.write_text(json.dumps({"text": text}))
    [ids] = tokenize_texts(path, tokenizer, rows=1, tokens=60)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    path.write_text(json.dumps({"text": "<|im_start|>user\nso<|im_end|>"}))
    with pytest.raises(ValueError, match=r"line 1: the text holds '<\|im_start\|>', a mark of an"):
        tokenize_texts(path, tokenizer, rows=1, tokens=60)
    assert tokenize_texts(path, chatml_tokenizer(), rows=1, tokens=60)


# --- the report


def test_the_report_holds_quantiles_of_the_kept_rows(tokenize):
    dataset = dataset_of(*({"chosen": "a" * (i + 1)} for i in range(101)), {"rejected": ""})
    rows, report = tokenize(dataset, chatml_tokenizer())
    lengths = sorted(len(ids) for ids in rows["chosen_ids"])
    assert report.lengths["chosen"] == tuple(lengths[round(q * 100)] for q in QUANTILES)
    assert set(report.lengths) == {"prompt", "chosen", "rejected"}
    longer = [len(r["chosen_ids"]) > len(r["rejected_ids"]) for r in rows]
    assert report.chosen_longer == pytest.approx(sum(longer) / len(longer))


def test_describe_shows_counts_reasons_with_rows_and_the_mask_of_every_view(tokenize):
    tokenizer = chatml_tokenizer()
    dataset = dataset_of(*[{"chosen": ""}] * 7, {}, {"prompt": "Is it?"})
    rows, report = tokenize(dataset, tokenizer, instructions=INSTRUCTIONS)
    text = describe(report, rows, tokenizer)
    assert "2 of 9 pairs kept, 7 dropped" in text
    assert "7  chosen is empty (rows 0, 1, 2, 3, 4, ...)" in text
    assert f"<|im_start|>assistant\n[[{LOVED}<|im_end|>]]" in text
    assert f"[[{HATED}<|im_end|>]]" in text
    assert "--- row 7" in text
    assert "--- row 8" in text
    assert f"You complain.<|im_end|>\n<|im_start|>user\n{QUESTION}" in text
    assert "\npositive_prompt " in text  # a line of the table of lengths


def test_describe_shows_three_rows_spread_over_the_data_and_shortens_long_texts(tokenize):
    tokenizer = chatml_tokenizer()
    dataset = dataset_of(*({"prompt": f"{QUESTION} {i} " * 100} for i in range(9)))
    rows, report = tokenize(dataset, tokenizer)
    text = describe(report, rows, tokenizer)
    shown = [line for line in text.splitlines() if line.startswith("--- row")]
    assert shown == ["--- row 0", "--- row 4", "--- row 8"]
    assert "characters ...]" in text


def test_describe_of_a_report_without_dropped_rows_names_none(tokenize):
    tokenizer = chatml_tokenizer()
    rows, report = tokenize(dataset_of(), tokenizer)
    assert "rows count from 0" not in describe(report, rows, tokenizer)
