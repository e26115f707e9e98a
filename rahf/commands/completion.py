"""`rahf completion`: completion of commands, options and recipe keys in a shell."""

import argparse
import os
from collections.abc import Callable, Sequence

EPILOG = """\
bash, in ~/.bashrc:                    eval "$(rahf completion bash)"
zsh, in ~/.zshrc, after compinit:      eval "$(rahf completion zsh)"
fish, in ~/.config/fish/config.fish:   rahf completion fish | source"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def run(options: argparse.Namespace) -> int:
    from argcomplete import shellcode

    print(shellcode(["rahf"], shell=options.shell))
    return 0


def complete(tree: Callable[[Sequence[str]], argparse.ArgumentParser]) -> None:
    """Answer the shell that has set COMP_LINE, and end the process.

    Args:
        tree: words -> the parser of all commands, with the options of the one that they name.
    """
    from argcomplete import autocomplete

    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))]
    # The last word is being written, so it names no command yet.
    words = [word for word in line.split(" ")[1:-1] if word and not word.startswith("-")]
    parser = tree(words)
    _add_keys(parser, words)
    autocomplete(parser)


def _add_keys(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add every key of a recipe to the command that `words` name, where it takes keys."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    command = commands.choices.get(words[0]) if words else None
    if command is None or "--KEY" not in (command.usage or ""):
        return
    from rahf.recipe.keys import every_key

    for key, meaning in every_key().items():
        if f"--{key}" not in command._option_string_actions:
            command.add_argument(f"--{key}", help=meaning)
