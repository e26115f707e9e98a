"""How well explanations fit texts, by a judge, by an encoder, or by the loss of a language model.

Each is a function from questions to values, larger where the explanation fits better. Knows models
and texts; knows no activations.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rahf.interpret.explanations.cost import Cost
from rahf.interpret.explanations.judging import Asked, FitJudge
from rahf.judges.judge import Verdict, Verdicts
from rahf.judges.references import Embed
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, rows_for

Values = Callable[[Sequence[Asked]], list[float | None]]

BEFORE = "The following text was chosen because of what it holds. {}\n\nText:\n"
NOTHING = "Nothing is known about it."
"""In the place of an explanation, so that only what it says makes the difference."""


class Judged:
    """Values by a judge; what it could not answer is None. Its cost is counted once a question."""

    def __init__(self, judge: FitJudge, verdicts: Verdicts):
        self.judge, self.cost = judge, Cost()
        self._verdicts, self._counted = verdicts, set()

    def __call__(self, asked: Sequence[Asked]) -> list[float | None]:
        read = [self.judge.read(each) for each in asked]
        given = self._verdicts.ask(self.judge, read)
        for text, verdict in zip(read, given, strict=True):
            if text not in self._counted:
                self._counted.add(text)
                self.cost.add(verdict.tokens)
        return [verdict.value for verdict in given]


def embedded(embed: Embed) -> Values:
    """Return the cosines of explanations and texts."""

    def values(asked: Sequence[Asked]) -> list[float | None]:
        texts = sorted({text for each in asked for text in (each.explanation, each.text)})
        place = {text: index for index, text in enumerate(texts)}
        vectors = embed(texts) if texts else torch.zeros(0, 1)
        pairs = ((vectors[place[a.explanation]], vectors[place[a.text]]) for a in asked)
        return [(explanation @ text).item() for explanation, text in pairs]

    return values


@dataclass(frozen=True)
class SurprisalJudge:
    """The fall of a language model's loss on a text, nats per token, once it has read the
    explanation; kept as verdicts are.
    """

    id: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 8

    def read(self, asked: Asked) -> str:
        return surprisal_text(asked)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        pairs = [tuple(json.loads(text)) for text in read]
        plain = sorted({(NOTHING, text) for _, text in pairs})
        every = [*plain, *pairs]
        losses = self._losses(every)
        before = dict(zip(plain, losses, strict=False))
        return (
            Verdict((before[NOTHING, text] - loss).item())
            for (_, text), loss in zip(pairs, losses[len(plain) :], strict=True)
        )

    @torch.no_grad()
    def _losses(self, pairs: Sequence[tuple[str, str]]) -> Float[Tensor, " pairs"]:
        """Return the mean loss of each text after its explanation, whatever the batches are."""
        prompts = [self._ids(BEFORE.format(explanation), start=True) for explanation, _ in pairs]
        texts = [self._ids(text) or [pad_id(self.tokenizer)] for _, text in pairs]
        order = sorted(range(len(pairs)), key=lambda row: len(prompts[row]) + len(texts[row]))
        found = torch.zeros(len(pairs), dtype=torch.double)
        for first in tqdm(range(0, len(order), self.batch_size), desc="surprisal", leave=False):
            some = order[first : first + self.batch_size]
            rows = rows_for(
                self.model,
                [prompts[row] for row in some],
                [texts[row] for row in some],
                pad_id(self.tokenizer),
            )
            found[some] = -likelihood(self.model, rows).means().double().cpu()
        return found

    def _ids(self, text: str, *, start: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"]


def surprisal_text(asked: Asked) -> str:
    return json.dumps([asked.explanation, asked.text], ensure_ascii=False)
