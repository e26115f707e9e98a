"""A judge that measures how near an answer is to right rather than to wrong reference answers.

Any encoder gives the embeddings: its last hidden states, averaged over the tokens of a text. Knows
an encoder and texts; knows no rule of what is right but the references.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from rahf.data.hub import refuse_missing
from rahf.data.prompts import prompt_text
from rahf.distributed.loaded_weights import check_loaded
from rahf.judges.judge import Chat, Verdict
from rahf.judges.reference_file import References


@dataclass(frozen=True)
class ReferencesJudge:
    """A scorer: similarity to the nearest right reference less that to the nearest wrong one.

    A similarity is a cosine, so that a score is between -2 and 2; above 0 is nearer to right.
    """

    id: str  # of the encoder: a text that is read holds the references
    references: Mapping[str, References]
    load: Callable[[], "Embed"]
    source: str = "references"  # named in an error
    responses: int = 1

    def read(self, messages: Chat, *responses: str) -> str:
        known = self.references.get(prompt_text(messages))
        if known is None:
            raise ValueError(
                f"{self.source} has no reference answers to the prompt "
                f"{prompt_text(messages)[:120]!r}: add right and wrong ones, or name another judge"
            )
        return json.dumps([*known, responses[0]], ensure_ascii=False)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        embed = self.load()
        for text in read:
            right, wrong, response = json.loads(text)
            vectors = embed([response, *right, *wrong])
            near = vectors[1:] @ vectors[0]
            of_right, of_wrong = near[: len(right)], near[len(right) :]
            yield Verdict((of_right.max() - of_wrong.max()).item())


Embed = Callable[[Sequence[str]], Float[Tensor, "texts d_model"]]
"""Texts -> vectors of length 1."""


def load_encoder(name: str, options: Mapping[str, Any], device: torch.device) -> Embed:
    """Return what embeds texts by a model of the Hub or of a folder; longer texts are cut.

    Raises:
        ValueError: weights are missing in the checkpoint, other than those of a pooler, which is
            not read.
    """
    refuse_missing(name)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=options["trust_remote_code"])
    model, report = AutoModel.from_pretrained(name, **options, output_loading_info=True)
    missing = {key for key in report["missing_keys"] if "pooler" not in key}
    # What is left over is the head of the model's own task.
    check_loaded(name, model, {"missing_keys": missing, "unexpected_keys": set()})
    model = model.eval().to(device)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    known: dict[str, Tensor] = {}

    @torch.no_grad()
    def embedded(text: str) -> Tensor:
        # Positions of RoBERTa and its like start at 2.
        ids = tokenizer(text, truncation=True, max_length=longest - 2, return_tensors="pt")
        states = model(**{key: ids[key].to(device) for key in ("input_ids", "attention_mask")})
        mean = states.last_hidden_state[0].float().mean(0)
        return torch.nn.functional.normalize(mean, dim=0).cpu()

    def embed(texts: Sequence[str]) -> Float[Tensor, "texts d_model"]:
        for text in texts:
            if text not in known:
                known[text] = embedded(text)
        return torch.stack([known[text] for text in texts])

    return embed
