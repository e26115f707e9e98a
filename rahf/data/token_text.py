"""The exact text of one token, for tables and pages of tokens.

Decoding a single token hides what it is: bytes that are no character become U+FFFD, and some
tokenizers drop a leading space. Knows tokenizers; knows no model.
"""

import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x([0-9A-F]{2})>")  # as byte fallback names it
_SPACE = "\u2581"  # as SentencePiece writes it


def _bytes_by_character() -> dict[str, int]:
    """Return the byte of each character in the vocabulary of a byte-level BPE: visible characters
    of Latin-1 are their own bytes, the other bytes follow from U+0100.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(0x100) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(0x100 + place): byte for place, byte in enumerate(other)
    }


_BYTES = _bytes_by_character()


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text that a token stands for; a byte that is no character is written as \\xe2."""
    text, entry = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if entry is None:  # an id beyond the vocabulary, which an embedding may have
        return text
    if found := _BYTE.fullmatch(entry):
        return bytes.fromhex(found[1]).decode(errors="backslashreplace")
    if "\ufffd" in text and all(character in _BYTES for character in entry):
        return bytes(_BYTES[each] for each in entry).decode(errors="backslashreplace")
    return entry.replace(_SPACE, " ") if _SPACE in entry else text
