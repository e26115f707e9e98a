"""Judges that are models on this machine: a sequence classifier's score, and a language model's
probabilities of the answers it is given to choose from.

Knows models and texts; knows no file.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rahf.data.chat_format import chat_format, prompt_messages, render
from rahf.data.messages import answered
from rahf.data.response_ids import tokenize_responses
from rahf.data.rows import sequence_rows
from rahf.generation.answers import answering, answers, pad_id, token_bar
from rahf.generation.decoding import Decoding
from rahf.judges.judge import Chat, Value, Verdict
from rahf.judges.questions import (
    ASPECTS,
    MARKS,
    aspect_as_digit,
    aspects_question,
    better_as_letter,
)
from rahf.models.likelihood import predictions
from rahf.report.progress import timed


class RewardJudge:
    """A sequence classifier as scorer: its one logit, or the log-odds of one of its labels.

    A classifier with a chat template reads prompt and response in it (a reward model); one without
    reads the response only (a classifier of texts).
    """

    responses = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        id: str,
        label: int = 0,
        batch_size: int = 8,
    ):
        self.id, self.read = (
            label_id(id, model.config.num_labels, label),
            response_reader(tokenizer),
        )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = pad_id(tokenizer)
        self._model, self._tokenizer = model, tokenizer
        self._label, self._batch_size = label, batch_size
        self._templated = tokenizer.chat_template is not None

    @torch.no_grad()
    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        scores = torch.zeros(len(read))
        order = sorted(range(len(read)), key=lambda index: len(read[index]))
        with text_bar(read) as bar:
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                scores[rows] = self._scores([read[row] for row in rows])
                bar.update(sum(len(read[row]) for row in rows))
        return (Verdict(score) for score in scores.tolist())

    def _scores(self, texts: list[str]) -> Float[Tensor, " texts"]:
        tokenizer = self._tokenizer
        ids = tokenizer(texts, add_special_tokens=not self._templated, truncation=False)[
            "input_ids"
        ]
        width = max(map(len, ids))
        padded = torch.tensor([row + [pad_id(tokenizer)] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        device = self._model.device
        output = self._model(input_ids=padded.to(device), attention_mask=mask.to(device))
        logits = output.logits.float().cpu()
        if logits.shape[1] == 1:
            return logits[:, 0]
        logs = logits.log_softmax(-1)
        others = [label for label in range(logits.shape[1]) if label != self._label]
        return logs[:, self._label] - logs[:, others].logsumexp(-1)


def label_id(id: str, labels: int, label: int) -> str:
    """Return the id of a classifier as the judge that reads one of its labels.

    Raises:
        ValueError: it has no such label.
    """
    if not 0 <= label < labels:
        raise ValueError(f"label {label} is not one of the {labels} labels of {id}")
    return id if labels == 1 else f"{id}, label {label}"


def text_bar(read: Sequence[str]) -> tqdm:
    """Return a progress bar in characters: texts of one judging differ in length."""
    options = {"desc": "judging", "unit": "char", "unit_scale": True, "leave": False}
    return tqdm(total=sum(map(len, read)), **options)


def response_reader(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """Return a function from a prompt and a response to what a classifier reads of them.

    It reads the chat in its template or, where it has none, the response only.
    """
    form = chat_format(tokenizer) if tokenizer.chat_template is not None else None

    def read(messages: Chat, response: str) -> str:
        if form is None:
            return response
        chat = prompt_messages(messages, form)
        chat = answered(chat, {"role": "assistant", "content": response})
        return render(tokenizer, form.template, chat)

    return read


@dataclass(frozen=True)
class Choices:
    """Probabilities that a language model gives to short answers, by their first token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 4

    @torch.no_grad()
    def probabilities(
        self, questions: Sequence[str], options: Sequence[str]
    ) -> Iterator[list[float]]:
        """Yield, for each question, the probabilities of the options among themselves.

        Raises:
            ValueError: as for `first_tokens`.
        """
        first = first_tokens(self.tokenizer, options)
        for start in timed(range(0, len(questions), self.batch_size), "judging"):
            batch = questions[start : start + self.batch_size]
            chats = [[{"role": "user", "content": question}] for question in batch]
            asked = tokenize_responses(chats, [options[0]] * len(batch), self.tokenizer)
            rows = sequence_rows(
                [prompt for prompt, _ in asked], [first[:1] for _ in batch], pad_id(self.tokenizer)
            )
            rows = send_to_device(rows, self.model.device)
            yield from predictions(self.model, rows)[:, first].softmax(-1).tolist()

    def length(self, question: str) -> int:
        """Return the tokens that the model reads of a question."""
        chat = [{"role": "user", "content": question}]
        [(prompt, _)] = tokenize_responses([chat], ["."], self.tokenizer)
        return len(prompt)


def first_tokens(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> list[int]:
    """Return the first token of each option as a response.

    Raises:
        ValueError: two options begin with the same token.
    """
    chat = [{"role": "user", "content": "?"}]
    ids = tokenize_responses([chat] * len(options), options, tokenizer)
    first = [response[0] for _, response in ids]
    same = [option for option, token in zip(options, first, strict=True) if first.count(token) > 1]
    if same:
        raise ValueError(
            f"the tokenizer of this model begins the answers {', '.join(same)} with the same token "
            f"({tokenizer.convert_ids_to_tokens(first[options.index(same[0])])!r}), so that it "
            "cannot choose among them by one token: name another model for choice:NAME."
        )
    return first


LETTERS = ("A", "B")
DIGITS = tuple(str(mark) for mark in range(MARKS[0], MARKS[1] + 1))


@dataclass(frozen=True)
class WrittenJudge:
    """A language model as judge: what it writes is its verdict, where `parse` can read it.

    A text that is longer than the model's context has no verdict, and the reason replaces the
    judge's words. Where all are longer, that is an error. Of an answer that is cut off only what
    is complete is read.
    """

    id: str
    responses: int
    question: Callable[..., str]  # messages and responses -> what it reads
    parse: Callable[[str], Value]
    choices: Choices  # the model
    max_tokens: int = 64
    begin: str = ""  # what every answer begins with, which helps a small model

    def read(self, messages: Chat, *responses: str) -> str:
        return self.question(messages, *responses)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        model = self.choices.model
        decoding = Decoding(self.max_tokens)
        with answering(model), token_bar(len(read), decoding, desc="judging", leave=False) as bar:
            yield from self._written(read, decoding, bar.update)

    def _written(
        self, read: Sequence[str], decoding: Decoding, advance: Callable[[int], object]
    ) -> Iterator[Verdict]:
        model, tokenizer, size = self.choices.model, self.choices.tokenizer, self.choices.batch_size
        prompts, room = [self._prompt(text) for text in read], self._room()
        shortest = min(map(len, prompts), default=0)
        if shortest > room:
            raise ValueError(
                f"{self.id}: the shortest of {len(read)} texts has {shortest} tokens, and beside "
                f"an answer the model reads {room}. Show it shorter texts."
            )
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            fits = [row for row, prompt in enumerate(some) if len(prompt) <= room]
            options = {"batch_size": size, "only": fits, "advance": advance}
            written = dict(answers(model, tokenizer, some, decoding, **options))
            for row, prompt in enumerate(some):
                if row not in written:
                    yield Verdict(None, f"the text has {len(prompt)} tokens, more than {room}")
                    continue
                said, count = self.begin + written[row].text, len(written[row].ids)
                ended = said if count < self.max_tokens else complete_part(said)
                yield Verdict(self.parse(ended), said, (len(prompt), count))

    def _prompt(self, text: str) -> list[int]:
        tokenizer = self.choices.tokenizer
        [(ids, _)] = tokenize_responses([[{"role": "user", "content": text}]], ["."], tokenizer)
        return [*ids, *tokenizer(self.begin, add_special_tokens=False)["input_ids"]]

    def _room(self) -> float:
        """Return the tokens of a prompt that the model reads beside its answer, at most."""
        config = self.choices.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", math.inf) - self.max_tokens


def complete_part(said: str) -> str:
    """Return the sentences and lines of an answer that were finished before it was cut off."""
    found = re.match(r".*[.!?}\n]", said, re.DOTALL)
    return "" if found is None else found[0]


@dataclass(frozen=True)
class ChoiceJudge:
    """A language model as judge: its probabilities are the verdict, and it writes nothing."""

    id: str
    responses: int
    question: Callable[..., str]  # messages and responses -> what it reads
    weigh: Callable[[Sequence[str]], Iterator[Value]]  # what it reads -> values
    length: Callable[[str], int] = lambda _: 0  # tokens of what it reads, where they are counted

    def read(self, messages: Chat, *responses: str) -> str:
        return self.question(messages, *responses)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        with text_bar(read) as bar:
            for text, value in zip(read, self.weigh(read), strict=True):
                yield Verdict(value, tokens=(self.length(text), 0))
                bar.update(len(text))


def better_choice_judge(choices: Choices, id: str) -> ChoiceJudge:
    """Return a chooser: the probability of the letter that stands for the first response."""

    def weigh(read: Sequence[str]) -> Iterator[Value]:
        return (first for first, _ in choices.probabilities(read, LETTERS))

    return ChoiceJudge(id, 2, better_as_letter, weigh)


def aspects_choice_judge(choices: Choices, id: str) -> ChoiceJudge:
    """Return a scorer: for each aspect the expected mark."""

    def weigh(read: Sequence[str]) -> Iterator[Value]:
        for question in read:
            asked = [aspect_as_digit(question, aspect) for aspect in ASPECTS]
            shares = choices.probabilities(asked, DIGITS)
            yield {
                aspect: sum(int(mark) * share for mark, share in zip(DIGITS, row, strict=True))
                for aspect, row in zip(ASPECTS, shares, strict=True)
            }

    return ChoiceJudge(id, 1, aspects_question, weigh)
