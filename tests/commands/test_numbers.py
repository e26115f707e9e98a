"""Numbers of plain commands are checked as recipe keys are."""

import argparse

import pytest

from rahf.cli import COMMANDS, Group, _parser, main
from rahf.commands.options.numbers import NUMBERS

NO_NUMBER = ["nan", "inf", "-inf", "1e400", "", "three", "1_000", "٣", "1" * 5000, "0x10", "1,5"]


def numeric_options():
    """Return every command with every option of it that takes a number, and the option's kind."""
    found = []
    for name, entry in COMMANDS.items():
        for kind in entry.kinds if isinstance(entry, Group) else [None]:
            words = [name, kind] if kind else [name]
            parser = _parser(words)
            for word in words:
                [commands] = [
                    action
                    for action in parser._actions
                    if isinstance(action, argparse._SubParsersAction)
                ]
                parser = commands.choices[word]
            found += [
                (words, action.option_strings[0], action.type)
                for action in parser._actions
                if action.type in NUMBERS or action.type in (int, float)
            ]
    return found


@pytest.mark.parametrize(("words", "option", "kind"), numeric_options())
def test_an_option_refuses_what_is_no_number_of_its_kind(words, option, kind, capsys):
    wrong = [*NO_NUMBER]
    wrong += {
        "count": ["0", "-1", "2.5", str(2**31)],
        "count from zero": ["-1", "0.5", str(2**31)],
        "seed": ["-1", str(2**32)],
        "rank from zero": ["-1", "65536"],
        "learning rate": ["-1", "1000", "1e30"],
        "positive learning rate": ["0", "1000"],
        "strength": ["3e38", "-1000001"],
        "number": ["1e39"],
        "positive number": ["0", "-1"],
        "number from zero": ["-0.5"],
        "share": ["0", "1.5", "-1"],
    }[kind]
    for text in wrong:
        with pytest.raises(SystemExit) as end:
            main([*words, f"{option}={text}"])
        assert end.value.code == 2
        printed = capsys.readouterr().err
        assert f"argument {option}: {text[:40]!r} is not a " in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        ("count", "1", 1),
        ("count", "+12", 12),
        ("count from zero", "0", 0),
        ("seed", str(2**32 - 1), 2**32 - 1),
        ("strength", "-1e6", -1e6),
        ("number", "-1.5", -1.5),
        ("number", "1e-3", 0.001),
        ("positive number", ".5", 0.5),
        ("number from zero", "0", 0.0),
        ("share", "1", 1.0),
    ],
)
def test_a_right_number_is_read(kind, text, number):
    assert NUMBERS[kind](text) == number
    assert type(NUMBERS[kind](text)) is type(number)


def test_zeros_of_a_reward_model_are_kept(tmp_path, monkeypatch):
    from rahf.pipeline import stages

    given = []
    monkeypatch.setattr(stages, "is_complete", lambda record, name: False)
    monkeypatch.setattr(stages, "run_recorded", lambda record, name, train: train())
    monkeypatch.setattr(
        "rahf.commands.reward._train", lambda options, arguments: given.append(arguments)
    )
    common = ["reward", "--model", "m", "--pairs", "p", "--output", str(tmp_path / "out")]
    assert main([*common, "--use_cpu"]) == 0
    assert main([*common, "--use_cpu", "--seed", "0", "--learning_rate", "0"]) == 0
    assert given == [{"use_cpu": True}, {"use_cpu": True, "seed": 0, "learning_rate": 0.0}]
