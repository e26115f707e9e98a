"""URIAL: the form of the prompt, where an answer ends, what of it is kept."""

import json

import pytest
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers_for_tests import chatml_tokenizer, gpt2_tokenizer, llama_tokenizer

from rahf.artifacts import read_lines
from rahf.cli import main
from rahf.generation.answers import answers, shared_beginning
from rahf.generation.decoding import Decoding
from rahf.generation.urial import Urial, answer_body, own_urial, read_urial, urial_prompt_form

SMALL = Urial(
    "Answer well.", (("Hi", "Hello!"), ("Code?", "Here:\n\n```python\nx = 1\n```\n\nBye"))
)

SMALL_TEXT = """\
# Instruction

Answer well.

# Query:
```
Hi
```

# Answer:
```
Hello!
```

# Query:
```
Code?
```

# Answer:
```
Here:

```python
x = 1
```

Bye
```

"""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_the_constant_part_is_instruction_and_examples():
    assert SMALL.text() == SMALL_TEXT


def test_a_prompt_ends_with_an_answer_that_is_open():
    assert SMALL.prompt([user("Why?")]) == (
        f"{SMALL_TEXT}# Query:\n```\nWhy?\n```\n\n# Answer:\n```\n"
    )


def test_earlier_turns_have_the_form_of_the_examples():
    chat = [user("Hi"), assistant("Hello!"), user("Why?")]
    once = Urial("Answer well.", ())
    assert once.prompt(chat) == Urial("Answer well.", (("Hi", "Hello!"),)).prompt(chat[2:])


def test_system_text_precedes_the_first_query():
    chat = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("a"), user("b")]
    assert SMALL.prompt(chat) == SMALL.prompt([user("Be brief.\n\nHi"), assistant("a"), user("b")])


@pytest.mark.parametrize(
    "chat",
    [[], [user("a"), user("b")], [assistant("a"), user("b")], [user("a"), assistant("b")]],
)
def test_speakers_have_to_take_turns(chat):
    with pytest.raises(ValueError, match="user and assistant alternately"):
        SMALL.prompt(chat)


def test_our_own_prompt_has_three_examples_one_of_them_a_refusal():
    own = own_urial()
    assert len(own.examples) == 3
    assert sum("I won't" in answer for _, answer in own.examples) == 1
    assert "\n# " not in own.instruction
    assert 700 < len(own.text().split()) < 1000


def test_a_users_file_is_read_back_as_it_is_written(tmp_path):
    path = tmp_path / "prompt.md"
    for urial in (SMALL, own_urial()):
        path.write_text(urial.text())
        assert read_urial(path) == urial


def test_blank_lines_around_the_parts_of_a_users_file_do_not_matter(tmp_path):
    path = tmp_path / "prompt.md"
    path.write_text("\n" + SMALL_TEXT.replace("\n\n# ", "\n\n\n# ").replace(":\n```", ":  \n\n```"))
    assert read_urial(path) == SMALL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hello", "the headings found are none"),
        ("# Instruction\nx\n# Query:\n```\na\n```\n", "found are # Instruction, # Query:"),
        ("# Query:\n```\na\n```\n# Answer:\n```\nb\n```", "# Query:, # Answer:"),
        ("x\n" + SMALL_TEXT, "nothing before them"),
        (SMALL_TEXT.replace("```\nHi\n```", "Hi"), "part 2 is not enclosed"),
        (SMALL_TEXT.replace("```\nHello!\n```", "```\nHello!"), "part 3 is not enclosed"),
    ],
)
def test_a_file_of_another_form_is_reported(tmp_path, text, said):
    path = tmp_path / "prompt.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_urial(path)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("Hello!\n```\n", "Hello!"),
        ("Hello!\n```", "Hello!"),
        ("Hello!", "Hello!"),  # cut off by the limit
        ("Use:\n```python\nx\n```\n```\n", "Use:\n```python\nx\n```"),
        ("Use:\n```\nx\n```\n```\n\n", "Use:\n```\nx\n```"),
        ("Use:\n```\nx\n```\n", "Use:\n```\nx\n```"),  # the model forgot to close the answer
        ("Use:\n```python\nx = 1", "Use:\n```python\nx = 1"),  # cut off within the code
        ("a\n```\nx\n```\nb\n```\n", "a\n```\nx\n```\nb"),
        ("```", ""),
    ],
)
def test_the_fence_that_closes_an_answer_goes_and_fences_of_code_stay(written, answer):
    assert answer_body(written) == answer


@pytest.mark.parametrize("tokenizer", [chatml_tokenizer, gpt2_tokenizer, llama_tokenizer])
def test_what_all_prompts_share_is_the_constant_part_exactly_as_tokenised_in_one(tokenizer):
    tokenizer = tokenizer()
    form = urial_prompt_form(tokenizer, SMALL)
    ids = [form.encode([user(text)]) for text in ("film", "\nsoup", "``` is it", "#")]
    shared = shared_beginning(ids)
    whole = tokenizer.decode(ids[0][:shared], skip_special_tokens=False)
    assert len(tokenizer(SMALL_TEXT)["input_ids"]) <= shared
    if "<unk>" not in whole:
        assert whole == SMALL_TEXT + "# Query:\n```\n"
    starts_with_bos = ids[0][0] == tokenizer.bos_token_id
    assert starts_with_bos == (tokenizer.name_or_path == "" and "<s>" in tokenizer.get_vocab())


def test_answers_after_the_shared_prefix_are_those_of_each_prompt_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    form = urial_prompt_form(tokenizer, Urial("w4 w5 w6", (("w7 w8", "w9"), ("w2", "w3"))))
    prompts = [form.encode([user(text)]) for text in ("w5", "w6 w7 w8 w9", "w10 w11")]
    assert shared_beginning(prompts) >= 16
    decoding = Decoding(max_new_tokens=12, temperature=1.0)
    together = dict(answers(model, tokenizer, prompts, decoding, stops=("w7",)))
    for index in range(3):
        [alone] = answers(model, tokenizer, prompts, decoding, stops=("w7",), only=[index])
        assert alone == (index, together[index])


def test_the_command_puts_a_users_examples_in_front_of_a_base_model(tmp_path, capsys):
    model, prompts = tmp_path / "model", tmp_path / "prompts.jsonl"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    prompts.write_text("".join(json.dumps({"prompt": f"w{n}"}) + "\n" for n in (4, 5, 6)))
    (tmp_path / "mine.md").write_text(Urial("w9", (("w7", "w8"),)).text())
    common = ["--model", str(model), "--prompts", str(prompts), "--max_new_tokens", "8"]
    for name, options in {"chat": [], "urial": ["--urial", str(tmp_path / "mine.md")]}.items():
        output = str(tmp_path / f"{name}.jsonl")
        assert main(["generate", *common, "--output", output, *options]) == 0
    chat, urial = (read_lines(tmp_path / f"{name}.jsonl") for name in ("chat", "urial"))
    assert {line["generator"] for line in urial} == {"model+urial"}
    assert [line["response"] for line in chat] != [line["response"] for line in urial]
    assert main(["generate", *common, "--output", str(tmp_path / "own.json"), "--urial"]) == 2
    assert "than the model's 64 positions" in capsys.readouterr().err
