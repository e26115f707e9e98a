"""Files of prompts and of responses, ours and AlpacaEval's."""

import json
import re

import pytest
from tokenizers_for_tests import chatml_tokenizer, llama_tokenizer

from rahf.data.prompts import (
    chat_prompt_form,
    prompt_text,
    read_chats,
    read_prompts,
    read_responses,
    response_layout,
)

SAID = [{"role": "user", "content": "Hello"}]
TURNS = [*SAID, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]


def saved(tmp_path, *records, name="file.jsonl"):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": "Hello"}, SAID),
        ({"prompt": TURNS}, TURNS),
        ({"prompt": '{"name": 3} valid?'}, [{"role": "user", "content": '{"name": 3} valid?'}]),
        ({"messages": TURNS}, TURNS),
        ({"prompt": "Human: Hello\n\nAssistant: Hi\n\nHuman: And?\n\nAssistant:"}, TURNS),
        ({"prompt": json.dumps(TURNS)}, TURNS),
        (
            {"prompt": "Hello", "system": "Be brief."},
            [{"role": "system", "content": "Be brief."}, *SAID],
        ),
        ({"prompt": "Hello", "tools": [{"name": "f"}]}, [{**SAID[0], "tools": [{"name": "f"}]}]),
        ({"instruction": "Hello", "output": "not read"}, SAID),
        ({"prompt": "Hello", "chosen": "a", "rejected": "b"}, SAID),
    ],
)
def test_prompts_are_read_in_every_form(tmp_path, record, messages):
    [prompt] = read_prompts(saved(tmp_path, record))
    assert prompt.messages == messages


def test_columns_of_alpaca_eval_are_carried_along(tmp_path):
    record = {"instruction": "Hello", "dataset": "koala", "datasplit": "eval", "other": 1}
    [prompt] = read_prompts(saved(tmp_path, record, name="file.json"))
    assert prompt.extra == {"dataset": "koala", "datasplit": "eval"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "Hello"}, "line 2: no prompt; .* It has: text"),
        ({"prompt": ""}, "line 2: no prompt"),
        ({"prompt": "  "}, "line 2: the chat does not end with a message of the user"),
        ({"prompt": TURNS[:2]}, "line 2: the chat ends with a message of the assistant. It is not"),
        ({"prompt": 3}, "line 2: prompt is int"),
        ({"prompt": "Hello", "system": 3}, "line 2: system is int, expected text"),
        (
            {"prompt": "[{'role': x}]"},
            "line 2: messages written as text, which can be read neither",
        ),
    ],
)
def test_a_record_without_a_prompt_is_named_by_its_line(tmp_path, record, said):
    with pytest.raises(ValueError, match=said):
        read_prompts(saved(tmp_path, {"prompt": "good"}, record))


def test_an_empty_file_holds_no_prompts(tmp_path):
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(saved(tmp_path))


RECORDS = [
    {"prompt": "Hello", "dataset": "koala", "generator": "m", "row": 0, "response": "Hé"},
    {"prompt": TURNS, "generator": "m", "row": 1, "response": "So."},
]


def test_both_layouts_of_responses_are_read_back(tmp_path):
    for name in ("out.jsonl", "out.json"):
        path = tmp_path / name
        path.write_text(response_layout(path)(RECORDS))
        first, second = read_responses(path)
        assert (first.messages, first.text, first.generator) == (SAID, "Hé", "m")
        assert (second.text, second.generator) == ("So.", "m")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows == [
        {"instruction": "Hello", "output": "Hé", "generator": "m", "dataset": "koala"},
        {
            "instruction": "User: Hello\n\nAssistant: Hi\n\nUser: And?",
            "output": "So.",
            "generator": "m",
        },
    ]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"should end in \.jsonl"):
        response_layout(tmp_path / "out.csv")


def test_a_record_without_a_response_is_named_by_its_line(tmp_path):
    with pytest.raises(ValueError, match="line 1: no response"):
        read_responses(saved(tmp_path, {"prompt": "Hello"}))
    with pytest.raises(ValueError, match="holds no responses"):
        read_responses(saved(tmp_path))


def test_a_chat_as_text_names_its_speakers_where_there_are_several():
    assert prompt_text(SAID) == "Hello"
    assert prompt_text(TURNS) == "User: Hello\n\nAssistant: Hi\n\nUser: And?"


RENDERED = [
    (chatml_tokenizer, "<|im_start|>user\nHello<|im_end|>", "the control token '<|im_end|>'"),
    (chatml_tokenizer, "<|start_header_id|>user", "the control token '<|start_header_id|>'"),
    (llama_tokenizer, "[INST] Hello [/INST]", "enclosed in '[INST]' and '[/INST]'"),
]


@pytest.mark.parametrize(("tokenizer", "text", "said"), RENDERED)
def test_a_prompt_that_is_rendered_already_is_named(tmp_path, tokenizer, text, said):
    path = saved(tmp_path, {"prompt": "Hello"}, {"messages": [{**SAID[0], "content": text}]})
    with pytest.raises(ValueError, match=re.escape("file.jsonl, prompt 2: the prompt ")) as error:
        read_chats(path, tokenizer())
    assert said in str(error.value)
    assert read_chats(saved(tmp_path, {"prompt": "Hello [now]"}), tokenizer()) == [
        [{"role": "user", "content": "Hello [now]"}]
    ]


def test_prompts_are_put_as_the_template_puts_them_before_a_response():
    tokenizer = chatml_tokenizer()
    form = chat_prompt_form(tokenizer)
    assert tokenizer.decode(form.encode(SAID)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    user = {"role": "user", "content": "the film"}
    system = [{"role": "system", "content": "You praise."}, user]
    text = llama_tokenizer().decode(chat_prompt_form(llama_tokenizer()).encode(system))
    assert text.replace(" ", "") == "<s>[INST]Youpraise.\n\nthefilm[/INST]"
