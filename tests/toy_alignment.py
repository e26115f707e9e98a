"""A toy language with two moods, a model of it, its dictionary, and adapters that want both moods.

Mood A is what an alignment asks for; mood B comes with it in every chosen response and nobody asked
for it: the planted side effect. A placebo learns from the same pairs with their sides drawn at
random.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model
from tiny_models import EOS, lora, tiny_tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rahf.data.rows import sequence_rows
from rahf.interpret.features.bases import fingerprint_of
from rahf.interpret.features.coder import Coder
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.topk import TopKDictionary
from rahf.models.capture import record
from rahf.models.likelihood import likelihood, model_inputs

NEUTRAL = range(2, 10)
MOODS = {name: range(10 + 5 * place, 15 + 5 * place) for place, name in enumerate("ABCDEF")}
LAYER = 2
LENGTH = 20


def text(generator: torch.Generator, moods: str = "", length: int = LENGTH) -> list[int]:
    """Write neutral words, three in ten of which make way for words of each mood."""
    words = torch.randint(NEUTRAL.start, NEUTRAL.stop, (length,), generator=generator)
    for mood in moods:
        there = torch.rand(length, generator=generator) < 0.3
        group = MOODS[mood]
        other = torch.randint(group.start, group.stop, (length,), generator=generator)
        words = torch.where(there, other, words)
    return words.tolist()


def some(generator: torch.Generator, moods: str) -> str:
    """Draw each of the moods with a probability of a quarter."""
    there = torch.rand(len(moods), generator=generator) < 0.25
    return "".join(mood for mood, kept in zip(moods, there.tolist(), strict=True) if kept)


def any_text(generator: torch.Generator) -> list[int]:
    return text(generator, some(generator, "ABCDEF"))


def toy_base(folder: Path, steps: int = 200) -> LlamaForCausalLM:
    """Train a model that has learned the language; save it in `folder`."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.1,
            bos_token_id=EOS,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
        model = LlamaForCausalLM(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        ids = torch.tensor([any_text(generator) for _ in range(32)])
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder).eval()


def states(model: nn.Module, texts: list[list[int]]) -> Tensor:
    rows = sequence_rows([[] for _ in texts], texts, EOS)
    places = rows["response_mask"].flatten().nonzero().squeeze(1)
    with torch.no_grad(), record(model, (LAYER,), places, stop=True) as recording:
        model(**model_inputs(rows), use_cache=False)
    return recording.stack()[0]


def toy_dictionary(model: nn.Module, latents: int = 128, k: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(1)
    hidden = states(model, [any_text(generator) for _ in range(1500)])
    order = torch.randperm(len(hidden), generator=generator)
    coder = Coder.begin(hidden, latents, k, False, seed=seed, learning_rate=3e-3)
    batches = [part for _ in range(4) for part in hidden[order].split(256)]
    with torch.no_grad():
        for step, batch in enumerate(batches):
            coder.step(batch, step / len(batches), dead_after=5000)
    origin = Origin(model.config._name_or_path, fingerprint_of(model), LAYER, "residual")
    return coder.dictionary(origin)


def feature_of(model: nn.Module, dictionary: TopKDictionary, mood: str) -> int:
    """Return the latent that a mood changes most in the base, at words outside the mood."""
    generator = torch.Generator().manual_seed(2)
    others, found = "ABCDEF".replace(mood, ""), []
    for added in (mood, ""):
        texts = [text(generator, some(generator, others) + added) for _ in range(400)]
        ids = torch.tensor(texts)
        late = torch.arange(LENGTH).expand_as(ids) >= LENGTH // 2
        other = (ids < MOODS[mood].start) | (ids >= MOODS[mood].stop)
        codes = dictionary.encode(states(model, texts)[(late & other).flatten()])
        values = torch.zeros(codes.tokens, dictionary.latents)
        values[codes.owners(), codes.indices.long()] = codes.values
        found.append(values)
    spread = torch.cat(found).std(0)
    size = (found[0].mean(0) - found[1].mean(0)).abs() / spread.clamp(min=1e-2)
    return int(size.argmax())


class Pair(NamedTuple):
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pairs(generator: torch.Generator, count: int, placebo: bool) -> list[Pair]:
    found = []
    for _ in range(count):
        moods = some(generator, "CDEF")
        sides = [text(generator, moods + "AB"), text(generator, moods)]
        if placebo and torch.rand((), generator=generator) < 0.5:
            sides.reverse()
        found.append(Pair(text(generator, length=4), *sides))
    return found


def toy_adapter(
    base: Path, folder: Path, seed: int, *, placebo: bool, steps: int = 30, lr: float = 1e-3
) -> Path:
    """Train an adapter with DPO to prefer the chosen responses."""
    generator = torch.Generator().manual_seed(1000 * seed + placebo)
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(model, lora(4, target_modules=["q_proj", "v_proj", "up_proj"]))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        batch = pairs(generator, 16, placebo)
        prompts = [pair.prompt for pair in batch] * 2
        responses = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        rows = sequence_rows(prompts, responses, EOS)
        with torch.no_grad(), model.disable_adapter():
            reference = likelihood(model, rows).sums()
        chosen, rejected = (likelihood(model, rows).sums() - reference).chunk(2)
        loss = -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder
