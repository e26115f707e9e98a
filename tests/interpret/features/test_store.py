"""Codes on disk: what is read back is what was written, and a large store stays small."""

import subprocess
import sys

import pytest
import torch
from test_dictionary import dense

from rahf.interpret.features.dictionary import codes_of_active, joined
from rahf.interpret.features.store import CodeStore, CodeWriter


def written(folder, parts, shard):
    writer = CodeWriter(folder, 12, shard)
    place = 0
    for part in parts:
        writer.add(part, ids=torch.arange(place, place + part.tokens))
        place += part.tokens
    writer.finish(dictionary="tiny")
    return CodeStore(folder)


@pytest.mark.parametrize("shard", [1, 30, 10_000])
def test_what_is_read_is_what_was_written(tmp_path, shard):
    parts = [codes_of_active(dense(seed)) for seed in range(5)]
    store = written(tmp_path, parts, shard)
    whole = joined(parts)
    shards = list(store)
    assert len(shards) == {1: 5, 30: len(shards), 10_000: 1}[shard]
    assert all(map(torch.equal, joined([shard.codes for shard in shards])[:3], whole[:3]))
    assert torch.cat([shard.beside["ids"] for shard in shards]).tolist() == list(range(35))
    assert [each.first for each in shards] == [int(each.beside["ids"][0]) for each in shards]
    assert (store.tokens, store.entries) == (35, len(whole.indices))
    assert torch.equal(store.counts(), whole.firings())
    assert store.described == {"dictionary": "tiny"}


def test_firings_are_found_in_the_full_text(tmp_path):
    activations = torch.cat([dense(seed) for seed in range(4)])
    store = written(tmp_path, [codes_of_active(part) for part in activations.split(6)], 20)
    for latents in ([0], [3, 7], list(range(12))):
        found = store.firings(latents)
        wanted = torch.zeros_like(activations)
        wanted[:, latents] = activations[:, latents]
        again = torch.zeros_like(activations)
        again[found.tokens, found.latents] = found.values
        assert torch.equal(again, wanted)
        assert len(found.values) == (wanted != 0).sum()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no codes"):
        CodeStore(tmp_path)
    with pytest.raises(ValueError, match="no tokens"):
        CodeWriter(tmp_path, 12).finish()
    store = written(tmp_path, [codes_of_active(dense())], 1)
    [shard] = tmp_path.glob("codes-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        list(store)
    shard.unlink()
    with pytest.raises(ValueError, match=r"codes-00000.safetensors is missing"):
        CodeStore(tmp_path)


LARGE = """
import resource, sys, torch
from pathlib import Path
from rahf.interpret.features.dictionary import codes_of_chosen
from rahf.interpret.features.store import CodeStore, CodeWriter

tokens, k, latents = int(sys.argv[2]), 32, 16384
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer = CodeWriter(Path(sys.argv[1]), latents)
for _ in range(tokens // 4096):
    indices = (torch.arange(k) * 512 + torch.randint(0, 512, (4096, 1))).expand(4096, k)
    writer.add(codes_of_chosen(indices, torch.rand(4096, k) + 0.1, latents))
writer.finish()
store = CodeStore(Path(sys.argv[1]))
assert int(store.counts().sum()) == tokens // 4096 * 4096 * k
store.firings([5, 600])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("tokens", "most"),
    [(60_000, 0.5), pytest.param(1_000_000, 2.0, marks=pytest.mark.slow)],
)
def test_a_large_store_takes_little_memory(tmp_path, tokens, most):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "codes"), str(tokens)],
        capture_output=True,
        text=True,
        check=True,
    )
    gigabytes = int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e9
    assert gigabytes < most
