"""Chat templates by name: some tokenizers have several, as `default` and `tool_use`.

Knows no chat and renders nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rahf.artifacts import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def named_templates(tokenizer: "PreTrainedTokenizerBase") -> Mapping[str, str]:
    """Return the templates of a tokenizer that has several, by name."""
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}


def given_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str) -> str:
    """Return the text of a template given as text, as a file or by name.

    Raises:
        ValueError: it is not one of these.
    """
    named = named_templates(tokenizer)
    if chat_template in named:
        return named[chat_template]
    if "{" in chat_template:
        return chat_template
    path = expanded(chat_template)
    if not path.is_file():
        raise ValueError(
            f"chat_template is {chat_template!r}: neither Jinja text (no braces in it) nor a file, "
            f"and the tokenizer's templates with a name are: {', '.join(sorted(named)) or 'none'}."
        )
    return path.read_text(encoding="utf-8")
