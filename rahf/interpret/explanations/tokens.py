"""Exact texts of single tokens and of stretches of them.

Ids are turned into bytes one by one. Bytes that are no UTF-8, as in a character that several tokens
share, are shown as `\\xNN`; a stretch that holds all bytes of a character shows the character.
Knows tokenizers; knows no model.
"""

import re
from collections.abc import Container, Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase

PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that a byte-level vocabulary writes as the character of their number."""

BYTES = {chr(byte): byte for byte in PRINTED} | {
    chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*PRINTED}))
}
"""Characters of a byte-level vocabulary, with the byte that each of them is."""

ANCHOR = "a"
"""Text before a token that is decoded, so that a tokenizer keeps the blank that it begins with."""

MARKS = ("«", "»")


class TokenTexts:
    """Texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._byte_level = tokenizer.is_fast and "ByteLevel" in str(
            tokenizer.backend_tokenizer.decoder
        )
        self._anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
        self._special = set(tokenizer.all_special_ids)
        self._added = tokenizer.added_tokens_decoder
        self._known: dict[int, bytes] = {}

    def content(self, token: int) -> bytes:
        """Return the bytes of a token."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def shown(self, token: int) -> str:
        """Return the text of a token alone."""
        return _text(self.content(token))

    def text(self, ids: Sequence[int], marked: Container[int] = ()) -> str:
        """Return the text of a stretch of tokens, special ones omitted.

        Args:
            marked: places of tokens that are put between marks, neighbours together.
        """
        kept = [place for place, token in enumerate(ids) if token not in self._special]
        parts = []
        for inside, places in groupby(kept, lambda place: place in marked):
            text = _text(b"".join(self.content(ids[place]) for place in places))
            parts.append(text.join(MARKS) if inside else text)
        return "".join(parts)

    def _read(self, token: int) -> bytes:
        if self._byte_level and token in self._added:
            return self._added[token].content.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the embedding without a token
            return b""
        if self._byte_level and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", piece):
            return bytes([int(byte[1], 16)])
        before, after = self._decoded(self._anchor), self._decoded([*self._anchor, token])
        return after.removeprefix(before).encode()

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def _text(content: bytes) -> str:
    return content.decode(errors="backslashreplace")
