"""Data as users bring it: each situation is read as meant, or named with what to do."""

import json
import re

import datasets
import pytest
from tokenizers_for_tests import CHATML, INST, chatml_tokenizer, gpt2_tokenizer, llama_tokenizer

from rahf.data.chat_format import chat_format
from rahf.data.pairs import normalize_pairs
from rahf.data.prompts import chat_prompt_form
from rahf.data.sources import load_pairs
from rahf.data.summary import describe
from rahf.data.tokenization import tokenize_pairs

datasets.disable_progress_bars()

QUESTION = "How is the soup?"
USER = {"role": "user", "content": QUESTION}
ASK = "<|im_start|>user\nHow is the soup?<|im_end|>\n<|im_start|>assistant\n"
PAIR = {"prompt": QUESTION, "chosen": "warm", "rejected": "dull"}
WHOLE = json.dumps(PAIR).encode() + b"\n"
CALL = {"type": "function", "function": {"name": "find", "arguments": '{"q": "soup"}'}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}

# Writes tools, calls and reasoning, as Qwen's.
TOOLS = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + c.function.arguments | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENS_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
SWITCH = OPENS_THOUGHT.replace(
    "assistant\n<think>\n'", "assistant\n' + ('' if enable_thinking is false else '<think>\n')"
)
CLOSES_THOUGHT = OPENS_THOUGHT.replace(
    "m['content'].split",
    "('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m['content'].split",
)
# Passes over every role but two, as many templates do.
TWO_ROLES = CHATML.replace(
    "for message in messages", "for message in messages if message.role in ['user', 'assistant']"
)


def assistant(content, **others):
    return {"role": "assistant", "content": content, **others}


def chat(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def sides(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


class Told:
    """What became of rows in a file: rows as text, the report, and what `rahf data` prints."""

    def __init__(self, tmp_path, *rows, template=None, tokenizer=None, **options):
        tokenizer = tokenizer or chatml_tokenizer()
        path = tmp_path / "pairs.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines))
        pairs = load_pairs(path, cache_dir=tmp_path / "cache")
        rows, self.report = tokenize_pairs(
            pairs, tokenizer, chat_template=template, cache_dir=tmp_path / "cache", **options
        )
        self.rows = [
            {key: tokenizer.decode(ids) for key, ids in row.items() if key != "row"} for row in rows
        ]
        self.text = describe(self.report, rows, tokenizer)

    @property
    def dropped(self):
        return {found.reason: found.first_rows for found in self.report.dropped}


@pytest.fixture
def told(tmp_path):
    return lambda *rows, **options: Told(tmp_path, *rows, **options)


# --- read as meant

MESSAGES = [USER, assistant("warm")], [USER, assistant("dull")]
TWO_TURNS = "<|im_start|>assistant\nhello<|im_end|>\n" + ASK.replace(QUESTION, "hi")


@pytest.mark.parametrize(
    ("row", "prompt", "chosen"),
    [
        ({"system": "Be a pirate.", **PAIR}, "system\nBe a pirate.<|im_end|>\n" + ASK, "warm"),
        ({"system_prompt": "Be brief.", **PAIR}, "system\nBe brief.<|im_end|>\n" + ASK, "warm"),
        ({"system": "Be kind.", **PAIR, "prompt": [USER]}, "system\nBe kind.<|im_end|>", "warm"),
        ({"system": None, **PAIR}, ASK, "warm"),
        (
            {"prompt": json.dumps([USER]), **sides(*map(json.dumps, MESSAGES))},
            ASK,
            "warm",
        ),
        ({"prompt": repr([USER]), **sides(*map(repr, MESSAGES))}, ASK, "warm"),
        (sides(*map(json.dumps, MESSAGES)), ASK, "warm"),
        (
            {**PAIR, **sides(*(json.dumps(assistant(text)) for text in ("warm", "dull")))},
            ASK,
            "warm",
        ),
        (
            sides(*(f"\n\nAssistant: hello\n\nHuman: hi\n\nAssistant: {a}" for a in "xy")),
            TWO_TURNS,
            "x",
        ),
        (sides(*(f"Human: {QUESTION}\nAssistant: {a}" for a in "xy")), ASK, "x"),
        (sides(*(f"Human: {QUESTION}\r\n\r\nAssistant: {a}" for a in "xy")), ASK, "x"),
        (
            {**PAIR, "prompt": f"Human: no\nAssistant: hello\nHuman: {QUESTION}\nAssistant:"},
            ASK,
            "warm",
        ),
        (
            {"prompt": [USER, assistant("The soup is")], **sides(" warm", " dull")},
            ASK + "The soup is",
            " warm",
        ),
        (
            {
                "prompt": [USER, assistant("The soup is ")],
                **sides([assistant("warm")], [assistant("dull")]),
            },
            ASK + "The soup is ",
            "warm",
        ),
        (
            {
                "prompt": [USER, assistant("The soup is")],
                **sides(*([USER, assistant(f"The soup is {a}")] for a in ("warm", "dull"))),
            },
            ASK + "The soup is",
            " warm",
        ),
        ({**PAIR, "input": "", "history": []}, ASK, "warm"),
        ({**PAIR, "input": QUESTION, "history": [QUESTION]}, ASK, "warm"),
    ],
)
def test_a_row_whose_meaning_is_certain_is_read_as_meant(told, row, prompt, chosen):
    [read] = told(row).rows
    assert read["prompt_ids"].endswith(prompt) or prompt in read["prompt_ids"]
    assert read["prompt_ids"].endswith((ASK, "The soup is", "The soup is ", TWO_TURNS))
    assert read["chosen_ids"] == f"{chosen}<|im_end|>"


JSON_TEXTS = [
    '{"name": "Ann", "age": 3}',
    '[{"name": "get_weather", "arguments": {"city": "Rome"}}]',
    '{"content": "a", "value": [1, "b"]}',
    '{"role": "admin", "id": 3}',
    '[{"role": "admin", "content": "x"}, {"role": "user", "content": "y"}]',
    '[{"role": "user"}]',
    '{"role": ["user"], "content": "x"}',
    "[{'from': 'Rome', 'value': 3}]",
    '{"name": "Ann", "age": 3} is this valid JSON?',
    '[{"value": x} for x in range(3)]',
    "{{ name }}",
    "[]",
]


@pytest.mark.parametrize(
    "text",
    [
        "Sum up:\nUser: no\nBot: why?\nHow is the soup?",
        "User: no\nBot: why?",
        "Q: What is it?",
        "Is this right?\nA: yes\nQ: no",
    ],
)
def test_a_text_that_holds_a_dialogue_is_one_message(told, text):
    [read] = told({**PAIR, "prompt": text}).rows
    assert f"user\n{text}<|im_end|>" in read["prompt_ids"]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_json_that_is_no_messages_is_text(told, text):
    [read] = told({**PAIR, **sides(text, "or " + text)}).rows
    assert read["chosen_ids"] == f"{text}<|im_end|>"
    assert read["rejected_ids"] == f"or {text}<|im_end|>"
    [read] = told({**PAIR, "prompt": text}).rows
    assert f"user\n{text}<|im_end|>" in read["prompt_ids"]


def test_a_response_that_continues_the_prompt_makes_one_turn_in_every_view(told):
    row = {"prompt": [USER, assistant("The soup is")], **sides(" warm", " dull")}
    [read] = told(row, instructions={"positive": "You praise."}).rows
    for name in ("prompt_ids", "positive_prompt_ids"):
        assert read[name].count("<|im_start|>assistant") == 1
        assert read[name].endswith("assistant\nThe soup is")
    assert read["rejected_ids"] == " dull<|im_end|>"


def test_a_generated_response_continues_the_prompt_too():
    form = chat_prompt_form(chatml_tokenizer())
    text = chatml_tokenizer().decode(form.encode([USER, assistant("The soup is")]))
    assert text.endswith(ASK + "The soup is")


# --- tools, calls and reasoning

IN_CONTEXT = {
    "prompt": [USER, assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "thick"}],
    **sides([assistant("It is thick.")], [assistant("no idea")]),
    "tools": [TOOL],
}
IN_A_SIDE = {
    "prompt": [USER],
    **sides([assistant("Let me look.", tool_calls=[CALL])], [assistant("Let me look.")]),
}


def test_tools_and_calls_are_rendered_by_the_template(told):
    [read] = told(IN_CONTEXT, template=TOOLS).rows
    assert read["prompt_ids"].startswith('tools: [{"type": "function", "function": {"name": "find"')
    assert '<call>find{"q": "soup"}</call><|im_end|>\n<|im_start|>tool\nthick' in read["prompt_ids"]
    assert read["chosen_ids"] == "It is thick.<|im_end|>"
    [read] = told(IN_A_SIDE, template=TOOLS).rows
    assert read["chosen_ids"] == 'Let me look.<call>find{"q": "soup"}</call><|im_end|>'
    assert read["rejected_ids"] == "Let me look.<|im_end|>"


@pytest.mark.parametrize(
    "arguments", ["+ c.function.arguments +", "}}{{ c.function.arguments }}{{"]
)
def test_tools_may_be_json_text_and_arguments_stay_text_where_the_template_needs_it(
    told, arguments
):
    template = TOOLS.replace("+ c.function.arguments | tojson +", arguments)
    assert template != TOOLS
    [read] = told({**IN_CONTEXT, "tools": json.dumps([TOOL])}, template=template).rows
    assert read["prompt_ids"].startswith('tools: [{"type": "function"')
    assert '<call>find{"q": "soup"}</call>' in read["prompt_ids"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"note": "", "tags": [], "n": 1},
        {"commands": ["a", "", "b"], "others": [[], {"q": ""}]},
        {},
        {"old": "x", "new": ""},
    ],
)
def test_empty_arguments_of_a_call_are_kept(told, arguments):
    call = {"type": "function", "function": {"name": "save", "arguments": arguments}}
    chosen = [assistant("", tool_calls=[call])]
    row = {"prompt": [USER], "chosen": chosen, "rejected": [assistant("no", tool_calls=[])]}
    result = told(row, template=TOOLS)
    [read] = result.rows
    assert read["chosen_ids"] == f"<call>save{json.dumps(arguments)}</call><|im_end|>"
    assert read["rejected_ids"] == "no<|im_end|>"
    assert result.report.ignored == ()


def test_of_several_templates_the_default_is_read_and_the_one_for_tools_where_there_are_some(told):
    tokenizer, bare = chatml_tokenizer(), {**IN_CONTEXT, "tools": None}
    tokenizer.chat_template = {"default": CHATML, "tool_use": TOOLS}
    result = told(PAIR, IN_CONTEXT, bare, tokenizer=tokenizer)
    plain, with_tools = result.rows
    assert plain["prompt_ids"].endswith(ASK)
    assert with_tools["prompt_ids"].startswith('tools: [{"type": "function"')
    assert list(result.dropped.values()) == [(2,)]  # calls, and no tools for the other template
    [read] = told(bare, tokenizer=tokenizer, template="tool_use").rows
    assert '<call>find{"q": "soup"}</call>' in read["prompt_ids"]
    tokenizer.chat_template = {"tool_use": TOOLS, "rag": CHATML}
    with pytest.raises(
        ValueError, match=r"several chat templates \(rag, tool_use\) and none of the"
    ):
        told(PAIR, tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match=r"chat_template is 'rga': .* with a name are: rag, tool_use"
    ):
        told(PAIR, tokenizer=tokenizer, template="rga")
    assert told(PAIR, tokenizer=tokenizer, template="rag").rows[0]["prompt_ids"].endswith(ASK)


def test_a_generated_response_reads_the_tools_and_calls_too():
    form = chat_prompt_form(chatml_tokenizer(), TOOLS)
    user, call, tool = IN_CONTEXT["prompt"]
    call = {**call, "content": ""}
    text = chatml_tokenizer().decode(form.encode([{**user, "tools": [TOOL]}, call, tool]))
    assert text.startswith('tools: [{"type": "function"')
    assert '<call>find{"q": "soup"}</call>' in text


def test_rows_of_arrow_hold_the_keys_of_all_rows_and_are_read_alike(tmp_path):
    rows = datasets.Dataset.from_list(
        [IN_CONTEXT, {"prompt": [USER], **sides([assistant("a")], [assistant("b")])}]
    )
    tokenizer = chatml_tokenizer()
    kept, report = tokenize_pairs(rows, tokenizer, chat_template=TOOLS, cache_dir=tmp_path)
    assert report.kept == 2
    assert report.ignored == ()
    assert '<call>find{"q": "soup"}</call>' in tokenizer.decode(kept[0]["prompt_ids"])


@pytest.mark.parametrize("template", [CHATML, TWO_ROLES, OPENS_THOUGHT])
@pytest.mark.parametrize("row", [IN_CONTEXT, IN_A_SIDE])
def test_calls_that_the_template_does_not_write_drop_the_row_by_name(told, row, template):
    result = told(PAIR, row, template=template)
    [reason] = result.dropped
    assert "tool_calls" in reason or "role tool" in reason
    assert result.report.kept == 1


def test_reasoning_is_handed_to_the_template_and_counted_where_it_is_left_out(told):
    row = {
        "prompt": [USER],
        "chosen": [assistant("warm", reasoning_content="think")],
        "rejected": [assistant("dull", reasoning_content="hmm")],
    }
    result = told(row, template=TOOLS)
    assert result.rows[0]["chosen_ids"] == "<think>think</think>warm<|im_end|>"
    assert result.report.ignored == ()
    result = told(PAIR, row)
    assert result.rows[1]["chosen_ids"] == "warm<|im_end|>"
    assert "1  reasoning_content of messages, which the chat template does not" in result.text


def test_columns_and_keys_that_are_not_read_are_named_and_counted(told):
    row = {**PAIR, "score": 0, "prompt": [{**USER, "weight": 1}], "meta": None}
    text = told(PAIR, {**PAIR, "score": 2}, row, {**PAIR, "tools": [TOOL]}).text
    assert "2  column score (rows 1, 2)" in text
    assert "1  weight of messages, which the chat template does not write (row 2)" in text
    assert "1  tools of messages, which the chat template does not write (row 3)" in text
    assert "meta" not in text


# --- refused

RENDERED = {"prompt": ASK, **sides("warm<|im_end|>", "dull<|im_end|>")}


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (RENDERED, {}, r"the prompt holds the control token '<\|im_end\|>'.*rendered it already"),
        ({**RENDERED, "prompt": QUESTION}, {}, r"chosen holds the control token '<\|im_end\|>'"),
        (
            {**PAIR, "prompt": f"[INST] {QUESTION} [/INST]"},
            {"tokenizer": llama_tokenizer()},
            r"the prompt is enclosed in '\[INST\]' and '\[/INST\]'",
        ),
        *(
            ({**PAIR, "prompt": prompt}, {}, f"the prompt holds '{re.escape(start)}' and ends with")
            for prompt, start in (
                (f"<s>[INST] {QUESTION} [/INST]", "[INST]"),
                (f"### Instruction:\n{QUESTION}\n\n### Response:\n", "### Instruction:"),
                (f"<|user|>\n{QUESTION}\n<|assistant|>\n", "<|user|>"),
                (f"A chat. USER: {QUESTION} ASSISTANT:", "USER:"),
            )
        ),
        *(
            ({**PAIR, "prompt": prompt}, {}, f"the prompt is a transcript of {speakers}")
            for prompt, speakers in (
                (f"User: no\nBot: why?\nUser: {QUESTION}\nBot:", "'User:' and 'Bot:'"),
                (f"User: no\n\nBot: why?\n\nUser: {QUESTION}", "'User:' and 'Bot:'"),
                (f"A talk.\n\nHuman: no\nAI: why?\nHuman: {QUESTION}\nAI: ", "'Human:' and 'AI:'"),
                (f"Human: no\nAI: why?\nHuman: {QUESTION}", "'Human:' and 'AI:'"),
                (f"Q: {QUESTION}\nA:", "'Q:' and 'A:'"),
            )
        ),
        (
            {**PAIR, "prompt": f"Question: {QUESTION}\n\nAnswer:"},
            {"tokenizer": gpt2_tokenizer()},
            "the prompt is enclosed in 'Question:' and 'Answer:'",
        ),
        ({**PAIR, "prompt": "[{'role': 'user'}\n {'role': 'x'}]"}, {}, "prompt holds messages wri"),
        ({**PAIR, "prompt": '[{"from": "human", "value": "x"}]'}, {}, "prompt holds messages writ"),
        ({**PAIR, "prompt": '[{"role": "user", "content": [1]}]'}, {}, "prompt holds messages w"),
        (
            {**PAIR, "prompt": "[{'content': 'x', 'role': 'user'}\n {'content': 'y'}]"},
            {},
            "prompt holds messages written",
        ),
        ({**PAIR, "system": 3}, {}, "system is int, expected text"),
        ({**PAIR, "tools": "find"}, {}, "tools is text, but not JSON"),
        ({**PAIR, "tools": ["find"]}, {}, r"tools is \['find'\], expected a list of JSON schemas"),
        (
            {**PAIR, "system": "a", "prompt": [{"role": "system", "content": "b"}, USER]},
            {},
            "the s",
        ),
        ({**PAIR, "chosen": "Human: a\n\nAssistant: b"}, {}, "one side is a transcript"),
        (
            {**PAIR, **sides(*(f"Human: no\n\nAssistant: {a}" for a in "xy"))},
            {},
            "the prompt column is not among the messages",
        ),
        ('{"prompt": "p", "chosen": "ok \\ud83d", "rejected": "b"}', {}, "chosen holds half of a"),
        ({**PAIR, "rejected": "dull " * 4_000_000}, {}, "rejected holds a text of more than 1,000"),
        ('{"prompt": "p", "chosen": NaN, "rejected": "b"}', {}, "chosen is NaN"),
        (
            '{"prompt": ' + "[" * 99 + "]" * 99 + ', "chosen": "a", "rejected": "b"}',
            {},
            "prompt is",
        ),
        (
            {**PAIR, "prompt": [*chat("a", "b"), USER, USER]},
            {"template": INST},
            "the chat template",
        ),
        (
            {**PAIR, "prompt": [USER, {"role": "note", "content": "Salty."}, USER]},
            {"template": TWO_ROLES},
            "the chat template does not write messages of role note",
        ),
    ],
)
def test_a_row_whose_meaning_is_not_certain_is_dropped_by_name(told, row, options, reason):
    result = told(PAIR, row, {**PAIR, "chosen": "thick"}, **options)
    [dropped] = result.report.dropped
    assert (dropped.count, dropped.first_rows) == (1, (1,))
    assert re.match(reason, dropped.reason)
    assert dropped.reason in result.text


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            {**PAIR, "input": "thick soup"},
            r"line 1: the column 'input' \('thick soup'\) may belong",
        ),
        ({**PAIR, "history": [["hi", "hello"]]}, "line 1: the column 'history'"),
        ({"question": "Why?", **sides("It is so.", "It is no.")}, r"columns: \{prompt: question\}"),
        ({"question": "Why?", **sides("So.", "No.")}, r"columns: \{prompt: question\}"),
        (
            {"query": "Why?", **sides([assistant("So.")], [assistant("No.")])},
            r"columns: \{prompt: query\}",
        ),
        ({"topic": "Why?", **sides("So.", "No.")}, "columns topic holds it, set columns: {prompt"),
    ],
)
@pytest.mark.parametrize("form", ["file", "dataset"])
def test_a_column_that_may_belong_to_the_prompt_is_an_error(tmp_path, told, form, row, named):
    cache = tmp_path / "cache"
    if form == "file":
        with pytest.raises(ValueError, match=named):
            told(row)
        return
    with pytest.raises(ValueError, match=named.replace("line 1:", "row 0:")):
        tokenize_pairs(
            normalize_pairs(datasets.Dataset.from_list([row]), cache_dir=cache),
            chatml_tokenizer(),
            cache_dir=cache,
        )


def test_a_system_column_of_another_name_may_be_mapped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**PAIR, "persona": "Be a pirate."}))
    [pair] = load_pairs(path, columns={"system": "persona"}, cache_dir=tmp_path)
    assert pair["prompt"] == [{"role": "system", "content": "Be a pirate."}, USER]
    assert pair["ignored"] == []


# --- templates that think


@pytest.mark.parametrize(
    ("template", "prompt", "chosen", "note"),
    [
        (OPENS_THOUGHT, ASK, "warm<|im_end|>", "opens '<think>' for the model to continue"),
        (SWITCH, ASK, "warm<|im_end|>", "is rendered with enable_thinking=False"),
        (
            CLOSES_THOUGHT,
            ASK + "<think>\n",
            "\n</think>\n\nwarm<|im_end|>",
            r"writes '\n</think>\n\n' before a response",
        ),
    ],
)
def test_pairs_without_thinking_train_under_a_template_that_thinks(
    told, template, prompt, chosen, note
):
    result = told(PAIR, template=template, instructions={"positive": "You praise."})
    assert result.rows[0]["prompt_ids"] == prompt
    assert result.rows[0]["chosen_ids"] == chosen
    assert result.rows[0]["positive_prompt_ids"].endswith(prompt)
    assert note in result.text
    encoded = chat_prompt_form(chatml_tokenizer(), template).encode([USER])
    assert chatml_tokenizer().decode(encoded) == prompt


def test_thinking_that_the_template_strips_from_a_response_is_counted(told):
    thinking = sides("<think>a b</think>warm", "<think>b</think>dull")
    result = told(PAIR, {**PAIR, **thinking}, template=OPENS_THOUGHT)
    assert result.rows[1]["chosen_ids"] == "warm<|im_end|>"
    assert "1  part of a response, which the chat template rewrites or omits" in result.text


@pytest.mark.parametrize(
    "fault",
    [
        "{{ raise_exception('too rude') }}",
        "{{ 1 / 0 }}",
        "{{ messages[9]['content'] }}",
        "{{ none + 'x' }}",
        "{% if add_generation_prompt %}{{ 'x' }}{% endif %}",
        "{{ 'end' if messages | length > 1 else '' }}",
    ],
)
def test_a_row_that_the_template_cannot_take_drops_only_itself(told, fault):
    guard = f"{{% if 'rude' in messages[0]['content'] %}}{fault}{{% endif %}}"
    for template in (guard + CHATML, CHATML + guard):
        result = told(PAIR, {**PAIR, "prompt": "rude"}, {**PAIR, "chosen": "b"}, template=template)
        assert list(result.dropped.values()) == [(1,)]
        assert next(iter(result.dropped)).startswith("the chat template ")


def test_a_template_without_thinking_has_no_notes():
    assert chat_format(chatml_tokenizer()).notes() == ()


# --- files


def encoded(encoding):
    return lambda rows: "\n".join(map(json.dumps, rows)).encode(encoding)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", encoded("utf-16")),
        ("a.jsonl", lambda rows: b"\xfe\xff" + encoded("utf-16-be")(rows)),
        ("a.json", lambda rows: json.dumps(rows, indent=1).encode("utf-16")),
        (
            "a.csv",
            lambda rows: "\n".join(
                ["prompt,chosen,rejected", *(",".join(row.values()) for row in rows)]
            ).encode("utf-16"),
        ),
        ("a.json", lambda rows: json.dumps({"data": rows}).encode()),
        ("a.json", lambda rows: json.dumps({"version": 1, "data": rows}, indent=1).encode()),
        ("a.json", lambda rows: json.dumps({"train": rows}).encode()),
        ("a.json", encoded("utf-8")),
        ("a.json", encoded("utf-8-sig")),
    ],
)
def test_files_of_other_shapes_give_the_same_pairs(tmp_path, name, write):
    rows = [PAIR, {**PAIR, "chosen": "gut und heiß: Ċ"}]
    (tmp_path / name).write_bytes(write(rows))
    pairs = load_pairs(tmp_path / name, cache_dir=tmp_path / "cache")
    assert pairs["chosen"][:] == ["warm", "gut und heiß: Ċ"]


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_in_a_file_is_one_row(tmp_path, indent):
    row = {"prompt": [USER], **sides([assistant("warm")], [assistant("dull")])}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
    assert load_pairs(tmp_path / "a.json", cache_dir=tmp_path)["chosen"][:] == ["warm"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (json.dumps({"train": [PAIR], "test": [PAIR]}).encode(), r"under train, test\. Write each"),
        ('{"prompt": "a"}\n{"prompt": "b"}'.encode("utf-16-le"), "UTF-16 without a byte order"),
        (b"\xff\xfe\x00", r"not UTF-16 text after line 0"),
        (b"[" * 99999, "nested too deeply"),
        (b'[{"prompt": ' + b"1" * 5000 + b"}]", r"a\.json: a number has too many digits"),
        (b'[{"prompt": "a", "prompt": "b"}]', r"a\.json: the key 'prompt' is given twice"),
        (b'[{"prompt": "a", "x\\ud800": "b"}]', r"a\.json: half of a surrogate pair"),
        (
            WHOLE + b'{"prompt": "b", "n": ' + b"1" * 5000 + b"}",
            r"a\.json, line 2: a number has too many digits",
        ),
        (
            WHOLE + b'{"prompt": [{"role": "user", "role": "x"}]}',
            r"a\.json, line 2: the key 'role' is given twice",
        ),
        (
            WHOLE + b'{"prompt": "b", "\\uD800": 1}',
            r"a\.json, line 2: half of a surrogate pair",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, content, named):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=named) as caught:
        load_pairs(tmp_path / "a.json", cache_dir=tmp_path)
    assert len(str(caught.value)) < 400
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize("prompt", ["What does [INST] mean?", "USER: hi ASSISTANT: hello. Sum up."])
def test_a_prompt_about_marks_is_no_rendered_one(told, prompt):
    assert told({**PAIR, "prompt": prompt}).report.kept == 1


def test_a_name_twice_in_a_csv_header_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,chosen,,\na,b,c,d,,\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 1: the header names 'chosen' twice"):
        load_pairs(tmp_path / "a.csv", cache_dir=tmp_path)
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,,\na,b,c,,\n")
    assert load_pairs(tmp_path / "a.csv", cache_dir=tmp_path)["chosen"][:] == ["b"]
