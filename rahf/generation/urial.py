"""Alignment without training: an instruction and a few examples in front of a base model (URIAL,
Lin et al. 2023, arXiv 2312.01552, section 4).

A prompt is plain text: `# Instruction`, then `# Query:` and `# Answer:` alternately, their bodies
between triple backticks, ending with an answer that is open. Earlier turns of a chat are in the
same form. Knows text and tokenizers; knows no model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rahf.data.chat_format import adds_bos
from rahf.data.prompts import PromptForm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FENCE = "```"
STOP = "\n# Query:"
"""Where an answer is over at the latest: the model has begun the next query."""

_MARKER = re.compile(r"^# (Instruction|Query:|Answer:)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Urial:
    """The constant part of a prompt."""

    instruction: str
    examples: tuple[tuple[str, str], ...]  # (query, answer)

    def text(self) -> str:
        """Return the instruction and the examples, up to the place of a chat's first query."""
        parts = [f"# Instruction\n\n{self.instruction}\n\n"]
        return "".join([*parts, *(_turn(query, answer) for query, answer in self.examples)])

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the full text for a chat that ends with the user; system text precedes the first
        query.

        Raises:
            ValueError: the roles do not alternate.
        """
        system = [m["content"] for m in messages if m["role"] == "system"]
        turns = [dict(m) for m in messages if m["role"] != "system"]
        wanted = ("user", "assistant") * len(turns)
        if len(turns) % 2 == 0 or [turn["role"] for turn in turns] != list(wanted[: len(turns)]):
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                "URIAL's form takes user and assistant alternately and ends with the user; the "
                f"chat has {roles}."
            )
        turns[0]["content"] = "\n\n".join([*system, turns[0]["content"]])
        texts = [turn["content"] for turn in turns]
        earlier = [_turn(*pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
        return f"{self.text()}{''.join(earlier)}# Query:\n{FENCE}\n{texts[-1]}\n{FENCE}\n\n{OPEN}"


OPEN = f"# Answer:\n{FENCE}\n"


def _turn(query: str, answer: str) -> str:
    return f"# Query:\n{FENCE}\n{query}\n{FENCE}\n\n{OPEN}{answer}\n{FENCE}\n\n"


def urial_prompt_form(tokenizer: "PreTrainedTokenizerBase", urial: Urial) -> PromptForm:
    """Return the form of prompts for a base model; a response ends before the next query."""
    start = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []

    def encode(messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = urial.prompt(messages)
        return start + tokenizer(text, add_special_tokens=False)["input_ids"]

    return PromptForm("URIAL", encode, (STOP,), answer_body)


def answer_body(written: str) -> str:
    """Return the answer without the fence that closes it; fences of code inside it are kept.

    Fences open and close alternately, so the last line closes the answer where their number is odd.
    An answer cut off within a block of code has an odd number too, but no fence at its end.
    """
    lines = written.rstrip().split("\n")
    fences = sum(line.startswith(FENCE) for line in lines)
    if lines[-1].rstrip() == FENCE and fences % 2 == 1:
        lines.pop()
    return "\n".join(lines).strip()


def own_urial() -> Urial:
    """Return the instruction and the three examples of the package, one of them a refusal."""
    return read_urial(Path(__file__).with_name("urial.md"))


def read_urial(path: str | Path) -> Urial:
    """Load a user's instruction and examples, written in the form of the prompt.

    Raises:
        ValueError: parts are missing, out of order, or not fenced.
    """
    pieces = _MARKER.split(Path(path).read_text(encoding="utf-8"))
    markers, bodies = pieces[1::2], pieces[2::2]
    turns = (len(markers) - 1) // 2
    if markers != ["Instruction", *["Query:", "Answer:"] * turns] or turns < 1 or pieces[0].strip():
        found = ", ".join(f"# {name}" for name in markers) or "none"
        raise ValueError(
            f"{path}: the headings found are {found}. "
            "Give # Instruction, then # Query: and # Answer: alternately, at least once, each on a "
            "line of its own and nothing before them."
        )
    fenced = [_unfenced(body, f"{path}, part {n}") for n, body in enumerate(bodies[1:], start=2)]
    return Urial(bodies[0].strip(), tuple(zip(fenced[::2], fenced[1::2], strict=True)))


def _unfenced(body: str, place: str) -> str:
    text = body.strip()
    if not (text.startswith(f"{FENCE}\n") and text.endswith(f"\n{FENCE}") and len(text) > 8):
        raise ValueError(
            f"{place} is not enclosed in lines of triple backticks: {text[:60]!r}. Put a line of "
            "three backticks before and after it."
        )
    return text[len(FENCE) + 1 : -len(FENCE) - 1]
