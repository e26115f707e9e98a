"""Cost of training a dictionary beside the forward pass of the same tokens, and of encoding.

    python scripts/benchmarks/features.py --model FOLDER [--latents 4096 16384] [--rounds 6]

Each round reads some text with the model, up to the middle layer, and trains every size on it, so
that other load on the machine meets both alike. The throughput is the share of the forward pass's
own that is left: seconds of the forward over seconds of both. Encoding is measured on states of the
last round, in turns with sae-lens where it is installed.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rahf.interpret.features.coder import Coder
from rahf.interpret.features.corpus import corpus_of_texts
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.streams import StateReader, schedule
from rahf.interpret.features.topk import TopKDictionary
from rahf.models.adapters import depth_of

ROOT = Path(__file__).parents[2]
K, BATCH = 32, 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = model.eval().to(options.device)
    layer = depth_of(model) // 2
    reader = StateReader(model, (layer,), "residual", "states", 0)
    texts = [path.read_text() for path in sorted(ROOT.glob("docs/*.md"))]
    tokens = options.rounds * BATCH
    corpus = corpus_of_texts(cycle(texts), tokenizer, tokens=2 * tokens, length=256)
    plan = schedule(corpus, torch.arange(corpus.pieces), tokens, 0, BATCH)

    coders: dict[int, Coder] = {}
    reading, training = [], {latents: [] for latents in options.latents}
    for block in plan.blocks:
        pieces = [corpus.piece(index) for index in block.tolist()]
        seconds, states = timed(lambda pieces=pieces: reader(pieces)[0])
        reading.append(seconds / len(states))
        for latents in options.latents:
            if latents not in coders:
                settings = {"seed": 0, "learning_rate": 1e-3}
                coders[latents] = Coder.begin(states, latents, K, False, **settings)
            seconds, _ = timed(lambda coder=coders[latents], states=states: trained(coder, states))
            training[latents].append(seconds / len(states))
    print(f"{options.model}, layer {layer} of {depth_of(model)}, {tokens:,} tokens, k {K}")
    print("| latents | forward: us/token | training: us/token | throughput kept |")
    print("|---|---|---|---|")
    for latents, seconds in training.items():
        kept = [read / (read + spent) for read, spent in zip(reading, seconds, strict=True)]
        print(f"| {latents:,} | {_middle(reading)} | {_middle(seconds)} | {median(kept):.0%} |")
    for coder in coders.values():
        encoding(coder.dictionary(Origin("", None, layer, "residual")), states, options.rounds)


def trained(coder: Coder, states: torch.Tensor) -> None:
    coder.step(states, 0.5, dead_after=10**9)


def encoding(dictionary: TopKDictionary, states: torch.Tensor, rounds: int) -> None:
    """Print the time that encoding takes, ours and sae-lens's in turns."""
    ways: dict[str, Callable[[], object]] = {"rahf": lambda: dictionary.encode(states)}
    try:
        from sae_lens import TopKSAE, TopKSAEConfig
    except ImportError as error:
        print(f"sae-lens is not measured: {error}")
    else:
        config = TopKSAEConfig(dictionary.d_model, dictionary.latents, k=dictionary.k)
        sae = TopKSAE(config).to(states.device)
        sae.W_enc.data = dictionary.weights.encoder.T.contiguous()
        sae.b_enc.data, sae.b_dec.data = dictionary.weights.encoder_bias, dictionary.bias
        ways["sae-lens"] = lambda: sae.encode(states)
    found: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(timed(way)[0] / len(states))
    times = ", ".join(f"{name} {_middle(seconds)} us/token" for name, seconds in found.items())
    print(f"encoding, {dictionary.latents:,} latents: {times}")


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that `work` takes, the device's part included, and its result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def median(values: list[float]) -> float:
    return torch.tensor(values).median().item()


def _middle(seconds: list[float]) -> str:
    return f"{1e6 * median(seconds):.0f}"


if __name__ == "__main__":
    main()
