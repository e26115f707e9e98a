"""Preference pairs as text, of UltraFeedback's lengths: what data preparation is timed on.

Words of the project's own texts, drawn as often as they occur there, so that a tokenizer makes
about as many tokens of a character as of English. Knows no tokenizer.
"""

import json
import re
from pathlib import Path

import numpy as np
from parts.workload import (
    PROMPT_MEAN,
    PROMPT_SIGMA,
    RESPONSE_MEAN,
    RESPONSE_SIGMA,
    draw_length,
)

TOKENS_PER_WORD = 1.25
SENTENCE = 14  # words


def write_pairs(path: Path, pairs: int, words: list[str], seed: int = 0) -> None:
    """Write a JSONL file in UltraFeedback's form: a prompt, both sides as messages that begin with
    it.
    """
    generator = np.random.default_rng(seed)

    def text(mean: float, sigma: float) -> str:
        count = max(3, round(draw_length(generator, mean, sigma) / TOKENS_PER_WORD))
        drawn = [words[index] for index in generator.integers(0, len(words), count)]
        sentences = (drawn[start : start + SENTENCE] for start in range(0, count, SENTENCE))
        return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)

    with path.open("w", encoding="utf-8") as file:
        for _ in range(pairs):
            prompt = text(PROMPT_MEAN, PROMPT_SIGMA)
            row = {"prompt": prompt}
            for side in ("chosen", "rejected"):
                answer = text(RESPONSE_MEAN, RESPONSE_SIGMA)
                row[side] = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": answer},
                ]
            file.write(json.dumps(row) + "\n")


def words_of(path: Path) -> list[str]:
    """Return every word of a text file, as often as it occurs there."""
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", path.read_text(encoding="utf-8"))
