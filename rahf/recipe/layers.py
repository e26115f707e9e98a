"""What `target_layers` means: a specification and a number of decoder blocks -> block numbers.

Knows no model. Blocks are counted from 0; a fraction f of the depth is block
round(f * (blocks - 1)), halves to the even one.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

AUTO = "auto"
"""Value of `target_layers`, and of alpha: left to the data."""

FORMS = (
    "a block number (12), a fraction of the depth (0.5), a range ('10-20', '10-20:2', '0.3-0.7', "
    "'0.3-0.6:0.1') or a list of these"
)

MOST_BLOCKS = 10_000
"""More than any decoder has. A larger number is refused before a list is made of it."""

_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*(?:-\s*({_NUMBER})\s*(?::\s*({_NUMBER})\s*)?)?")


class _Span(NamedTuple):
    """One item: its ends and its step, each counted in blocks (int) or in depth (Fraction)."""

    text: str
    first: int | Fraction
    last: int | Fraction
    step: int | Fraction


def resolve_layers(spec: int | float | str | list | tuple, num_layers: int) -> tuple[int, ...]:
    """Return the decoder blocks that `spec` names in a model of `num_layers` blocks: ascending,
    each once.

    Ranges hold both ends. A fractional step walks the depth, an integer step walks the blocks: of
    11 blocks, "0.2-0.8:0.3" is (2, 5, 8) and "0.2-0.8:2" is (2, 4, 6, 8). Raises ValueError for
    another form and for a block beyond the model.
    """
    if spec == AUTO:
        raise ValueError(
            "target_layers: auto is chosen by the stage `choice` of rahf align; without it, give "
            "layers."
        )
    blocks: set[int] = set()
    for span in _parse(spec):
        chosen = _blocks(span, num_layers)
        if chosen[-1] >= num_layers:
            raise ValueError(
                f"target_layers: {span.text} reaches block {chosen[-1]}, but the model has "
                f"{num_layers} blocks, counted from 0: the last one is {num_layers - 1}"
            )
        blocks.update(chosen)
    return tuple(sorted(blocks))


MARGIN = 6
"""`lora_first_layer: auto` is a 1 / MARGIN of the depth below the lowest target layer."""


def first_layer(spec: int | float | str, num_layers: int, targets: Sequence[int]) -> int:
    """Return the first block that gets an adapter, in a model of `num_layers` blocks.

    Args:
        targets: the target layers, ascending.

    Raises:
        ValueError: it is above the lowest target layer, whose states it could not move.
    """
    if spec == AUTO:
        return max(0, targets[0] - round(num_layers / MARGIN))
    first = round(spec * (num_layers - 1)) if isinstance(spec, float) else spec
    if first > targets[0]:
        raise ValueError(
            f"lora_first_layer: {spec} is block {first}, above the lowest target layer "
            f"({targets[0]}), whose states no adapter would move: give {targets[0]} or less, or "
            "align higher layers (target_layers)."
        )
    return first


def check_layers(spec: int | float | str | list | tuple) -> list[str]:
    """Return the problems of a specification that show without a model."""
    try:
        _parse(spec)
    except ValueError as error:
        return [str(error)]
    return []


def _blocks(span: _Span, num_layers: int) -> list[int]:
    def block(end: int | Fraction) -> int:
        return round(end * (num_layers - 1)) if isinstance(end, Fraction) else end

    if isinstance(span.step, int):
        return list(range(block(span.first), block(span.last) + 1, span.step))
    count = (span.last - span.first) // span.step + 1
    return [block(span.first + index * span.step) for index in range(count)]


def _parse(spec: int | float | str | list | tuple) -> list[_Span]:
    items = list(spec) if isinstance(spec, list | tuple) else [spec]
    if not items:
        raise ValueError("target_layers: the list is empty: name at least one block")
    texts = [
        text
        for item in items
        for text in (item.split(",") if isinstance(item, str) else [_text(item)])
    ]
    return [_span(text) for text in texts]


def _text(item: int | float) -> str:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise ValueError(f"target_layers: {item!r} is not {FORMS}")
    # Decimal digits, never an exponent: 1e-05 would not be read back.
    return str(item) if isinstance(item, int) else f"{item:.12f}".rstrip("0").ljust(3, "0")


def _span(text: str) -> _Span:
    text = text.strip()
    if text.startswith("-"):
        raise ValueError(
            f"target_layers: {text} is negative: blocks are counted from 0, from the input up"
        )
    match = _RANGE.fullmatch(text)
    if not match:
        raise ValueError(f"target_layers: {text!r} is not {FORMS}")
    if len(text) > 60:
        raise ValueError(f"target_layers: {text[:60]}... has more digits than a block can need")
    first, last, step = (_number(part) if part else None for part in match.groups())
    if any(isinstance(end, int) and end >= MOST_BLOCKS for end in (first, last)):
        raise ValueError(f"target_layers: {text} is far beyond the blocks of any model")
    if isinstance(step, Fraction) and 0 < step * MOST_BLOCKS < 1:
        raise ValueError(f"target_layers: {text} has a step that is shorter than any block")
    if last is None:
        if isinstance(first, Fraction) and not 0 < first < 1:
            raise ValueError(
                f"target_layers: {text} is neither a block number, which has no point, nor a "
                "fraction between 0 and 1"
            )
        return _Span(text, first, first, 1)
    if type(first) is not type(last):
        raise ValueError(
            f"target_layers: {text} mixes a block number and a fraction: write both ends with a "
            "point, or none"
        )
    if isinstance(first, Fraction) and not (first <= 1 and last <= 1):
        raise ValueError(
            f"target_layers: {text} has an end above 1.0: a fraction is between 0.0 and 1.0"
        )
    if first > last:
        raise ValueError(f"target_layers: {text} runs backwards: the lower end comes first")
    if step is not None and (step == 0 or (isinstance(step, Fraction) and isinstance(first, int))):
        raise ValueError(
            f"target_layers: {text} has the step {match[3]}: between blocks it is a whole number "
            "from 1 up"
        )
    return _Span(text, first, last, 1 if step is None else step)


def _number(text: str) -> int | Fraction:
    return Fraction(text) if "." in text else int(text)
