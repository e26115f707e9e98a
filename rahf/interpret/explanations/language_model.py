"""Explanations by a language model, which reads examples with the active tokens marked.

Knows prompts and clients; what it knows of a unit is its examples, and the tokens that its vector
makes likelier.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rahf.interpret.explanations.examples import Drawing, Example
from rahf.interpret.explanations.explainer import Case, Explanation
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.vectors import Effects, in_words
from rahf.judges.api import ApiJudge
from rahf.judges.by_name import NamedJudge, api_judge, choice_judge
from rahf.judges.clients import Client
from rahf.judges.judge import Judge, Verdicts, first_json_object
from rahf.judges.local_models import Choices, WrittenJudge

OTHERS_SHOWN = 10
"""Windows without activation that a prompt shows."""

LONGEST = 300
"""Characters of an explanation."""

WRITTEN = 80
"""Tokens that an explanation takes, about."""


INSTRUCTIONS = 150
"""Tokens of a prompt beside the examples, about."""

EFFECTS = 60
"""Tokens that the effects of a vector take, about."""


def prompt_tokens(drawing: Drawing) -> tuple[int, int]:
    """Return about how many tokens are read and written for an explanation."""
    marks = 8  # of an example, with its strength
    shown = drawing.shown + min(OTHERS_SHOWN, drawing.shown)
    return INSTRUCTIONS + EFFECTS + shown * (drawing.size + marks), WRITTEN


JSON_REPLY = 'Reply with one JSON object and nothing else: {"explanation": "one sentence"}.'

BEGIN = "It is active on"
"""Words that the answer of a local model begins with: a small one copies the question otherwise."""

LOCAL_REPLY = f"What do the marked tokens have in common? Complete the sentence: {BEGIN} ..."


def reply_of(name: str) -> str:
    """Return how an explainer of a name is to reply."""
    return LOCAL_REPLY if name.startswith("local:") else JSON_REPLY


def explaining_prompt(shown: str, beside: str, reply: str) -> str:
    """Return the prompt.

    Args:
        beside: what else is known of the unit; may be empty.
    """
    asked = (
        "A part of a language model is active at some tokens of texts. In the examples below the "
        "tokens at which it is active are between « and », and the number in brackets is its "
        "strength, from 0 to 10. Find what the marked tokens, or the texts around them, have in "
        "common that the texts without marks lack. Say when it is active in one sentence that can "
        "be checked on other texts, with no detail that the examples do not show."
    )
    return "\n\n".join(filter(None, (asked, shown, beside, reply)))


def shown_examples(examples: Sequence[Example], texts: TokenTexts) -> str:
    """Return activating windows with marks and strengths, and a few without."""
    activating = [example for example in examples if example.activates]
    strongest = max((example.peak for example in activating), default=1.0)
    lines = [
        f"[{round(10 * example.peak / strongest)}] {_line(texts.text(example.ids, example.active))}"
        for example in activating
    ]
    others = [example for example in examples if not example.activates]
    step = max(1, len(others) // OTHERS_SHOWN)
    lines += [f"[0] {_line(texts.text(example.ids))}" for example in others[::step][:OTHERS_SHOWN]]
    return "\n".join(lines)


def _line(text: str) -> str:
    return text.replace("\n", "\\n")


def read_explanation(said: str) -> str | None:
    """Return the sentence in an answer: of the JSON object, the one that the answer was begun with,
    or the answer where it is one line.
    """
    found = first_json_object(said)
    if said.startswith(BEGIN):
        sentence = re.split(r"(?<=[.!?])\s|\n", said)[0]
        sentence = sentence if len(sentence) > len(BEGIN) + 2 else ""
    elif isinstance(found, dict):
        sentence = found.get("explanation")
    else:
        lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
        sentence = re.sub(r"^explanation:\s*", "", lines[0], flags=re.I) if len(lines) == 1 else ""
    plain = " ".join(sentence.split()) if isinstance(sentence, str) else ""
    return plain if 0 < len(plain) <= LONGEST and not plain.startswith("{") else None


def _readable(said: str) -> float | None:
    """Return the verdict under which an answer is kept: 1 where it holds an explanation."""
    return None if read_explanation(said) is None else 1.0


class LanguageModel:
    """The explainer that asks a language model.

    Args:
        judge: as a judge whose words are wanted, so that answers are kept as verdicts are.
        verdicts: what was answered before.
        reply: how the model is to reply.
        effects: vectors -> what each does to the logits of the explained model; None: not shown.
    """

    def __init__(
        self,
        judge: Judge,
        texts: TokenTexts,
        verdicts: Verdicts,
        reply: str = JSON_REPLY,
        effects: Callable[[Tensor], list[Effects]] | None = None,
    ):
        self.id, self._judge, self._texts, self._verdicts = judge.id, judge, texts, verdicts
        self._reply, self._effects = reply, effects

    def prompts(self, cases: Sequence[Case]) -> list[str]:
        """Return what the model reads of each case."""
        known = [Effects()] * len(cases)
        if self._effects is not None and cases:
            known = self._effects(torch.stack([case.vector for case in cases]))
        return [
            explaining_prompt(
                shown_examples(case.shown, self._texts), in_words(effects), self._reply
            )
            for case, effects in zip(cases, known, strict=True)
        ]

    def explain(self, cases: Sequence[Case]) -> list[Explanation]:
        given = self._verdicts.ask(self._judge, self.prompts(cases))
        return [
            Explanation(None if each.value is None else read_explanation(each.said), each.tokens)
            for each in given
        ]


def client_writer(client: Client, workers: int = 8) -> Judge:
    """Return the writer behind a client, at most `workers` questions at once."""
    return ApiJudge(client, 1, str, _readable, workers)


def writer(named: NamedJudge) -> Judge:
    """Return the language model of a name: local:NAME or api:MODEL.

    Raises:
        ValueError: no such model; an api without a URL.
    """
    kind = named.name.partition(":")[0]
    if kind == "api":
        return api_judge(named, 1, str, _readable)
    if kind == "local":
        model = replace(named, name=named.name.replace("local:", "choice:", 1))
        return choice_judge(model, 1, str, _local)
    raise ValueError(f"explainer {named.name!r} is not one of statistics, local:NAME, api:MODEL.")


def _local(choices: Choices, id: str) -> Judge:
    return WrittenJudge(id, 1, str, _readable, choices, WRITTEN, BEGIN)
