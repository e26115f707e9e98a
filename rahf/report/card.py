"""The model card of an aligned adapter, from the recipe as run and its metrics."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from rahf.report.card_header import adapter_header, data_names, hub_name, licence_of
from rahf.report.directions import evidence_text
from rahf.report.escaping import markdown_code, markdown_text
from rahf.report.tables import judge_text, layers_table, models_table

CHART = "![loss and reached shift](training.png)"

FROM_PYTHON = "Trained from Python, so that no recipe is kept; all"
"""Of a card without a recipe beside it: the beginning of the sentence on its files."""

PACKAGES = ("rahf", "torch", "transformers", "peft", "accelerate", "datasets")


def model_card(
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    method: str,
    did: str,
    terms: Sequence[str],
    papers: Mapping[str, Any],
    *,
    where: str = "path/of/this/folder",
    tokenizer: str | None = None,
    files: str = "The full recipe is `recipe.yaml`, all",
) -> str:
    """Return Markdown below the Hub's metadata: data, base, method, metrics, versions.

    Args:
        method: its title, with the terms that were added to it.
        did: what was done, as the end of a sentence about the adapter; {data} is the data.
        terms: names of the added terms.
        papers: title, first author and year by arXiv number, that of the method first.
        where: the name by which a reader loads the adapter.
        tokenizer: the name of its tokenizer; None: `where`.
        files: the beginning of the sentence on the files beside the card.
    """
    base = recipe["model_name_or_path"]
    title = f"{base.rstrip('/').rpartition('/')[2]} aligned by {method}"
    header = adapter_header(recipe, metrics, title, [recipe["method"], *terms])
    parts = [
        f"# {markdown_text(title)}",
        _opening(recipe, method, did, next(iter(papers))),
        USE.format(where=json.dumps(where), tokenizer=json.dumps(tokenizer or where)),
        "## How it was made",
        _settings(recipe, metrics),
        f"{files} figures are in `metrics.json`, every logged step in `log.jsonl`.\n\n{CHART}",
        *_results(metrics),
        f"## Licence\n\n{_licence(base, header.license)}",
        f"## Citation\n\n{_citation(papers)}",
    ]
    return _card(header, parts)


def _results(metrics: Mapping[str, Any]) -> list[str]:
    parts = []
    if "models" in metrics:
        parts += ["## Held-out results", models_table(metrics["models"])]
        parts += [markdown_text(text) for text in (judge_text(metrics["models"]),) if text]
    if "eval_repr/reached" in metrics:
        parts += ["## What was reached, per layer", layers_table(metrics)]
    return parts


def _opening(recipe: Mapping[str, Any], method: str, did: str, paper: str) -> str:
    """Return a sentence on what was done to which base."""
    names = ", ".join(data_names(recipe))
    data = markdown_code(names) if names else "pairs that a script gave"
    return (
        f"A {adapter_kind(recipe)} adapter of {markdown_code(recipe['model_name_or_path'])} "
        f"{did.format(data=data)} ({method}, [arXiv {paper}](https://arxiv.org/abs/{paper}))."
    )


def adapter_kind(recipe: Mapping[str, Any]) -> str:
    """Return LoRA, rsLoRA, DoRA or DoRA with rsLoRA's scale."""
    if recipe.get("use_dora"):
        return "DoRA (rank-stabilised)" if recipe.get("use_rslora") else "DoRA"
    return "rsLoRA" if recipe.get("use_rslora") else "LoRA"


USE = """## How to use it

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({where})
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```

An answer:

```python
text, plain = "How do I boil an egg?", tokenizer.chat_template is None
if not plain:
    turns = [{{"role": "user", "content": text}}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=plain).to(model.device)
ids = model.generate(input_ids=inputs["input_ids"], max_new_tokens=200)
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Without peft, in plain transformers:

```python
merged = model.merge_and_unload()
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")
```"""


def _licence(base: str, licence: str | None) -> str:
    if licence is None:
        return (
            f"The terms of {markdown_code(base)} apply, since the adapter changes that model. Its "
            "card was not at hand: add `license` to the header of this card before you publish it."
        )
    return f"{markdown_text(licence)}, the licence of {markdown_code(base)}, whose terms apply."


def _citation(papers: Mapping[str, Any]) -> str:
    """Return BibTeX of the papers and of this package."""
    entries = [
        f"@misc{{{paper.first_author.partition(',')[0].lower()}{paper.year},\n"
        f"  title = {{{paper.title}}},\n"
        f"  author = {{{paper.first_author} and others}},\n"
        f"  year = {{{paper.year}}},\n"
        f"  eprint = {{{number}}},\n"
        "  archivePrefix = {arXiv}\n}"
        for number, paper in papers.items()
    ]
    own = f"@software{{rahf,\n  title = {{rahf}},\n  version = {{{version('rahf')}}}\n}}"
    return "\n".join(["```bibtex", *entries, own, "```"])


def directions_card(
    metadata: Mapping[str, str],
    layers: Sequence[int],
    evidence: Mapping[str, Any] | None,
    where: str,
) -> str:
    """Return the card of stored directions: base, data, how they were fitted, the evidence."""
    base = metadata["model"]
    head = ModelCardData(
        library_name="rahf",
        license=licence_of(base),
        base_model=hub_name(base),
        tags=["rahf", "steering", "control-vector", "representation-alignment"],
    )
    # Exported directions may be increments already.
    steering = "directions" if metadata.get("increments") == "true" else "directions.increments()"
    shown = {"layers": ", ".join(map(str, layers)), **metadata}
    parts = [
        f"# Directions of {markdown_text(base.rpartition('/')[2])}",
        f"One vector per layer of {markdown_code(base)}, to be added to the output of its decoder "
        "blocks.",
        USE_DIRECTIONS.format(where=json.dumps(where), base=json.dumps(base), steering=steering),
        "## How they were made",
        _as_list({name.replace("_", " "): value for name, value in shown.items()}),
    ]
    if evidence is not None:
        parts += ["## What they are worth on held-out pairs", evidence_text(evidence)]
    return _card(head, parts)


USE_DIRECTIONS = """## How to use them

```python
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM
from rahf import Directions, steer

model = AutoModelForCausalLM.from_pretrained({base})
directions = Directions.load(hf_hub_download({where}, "directions.safetensors"))
with steer(model, {steering}, 1.0, start="generated"):
    ...  # model.generate
```

Where the repository holds `control_vector.gguf`, llama.cpp loads it:
`llama-cli -m model.gguf --control-vector control_vector.gguf`."""


OWN_CARD = "Made with rahf "


def is_own_card(path: Path) -> bool:
    """Return whether a file is a card of this package, and none that a user wrote."""
    return OWN_CARD in path.read_text(encoding="utf-8")


def _card(header: ModelCardData, parts: Sequence[str]) -> str:
    """Return the text with the Hub's front matter and the versions that it was made with."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    front = f"---\n{header.to_yaml()}\n---"
    return str(ModelCard("\n\n".join([front, *parts, f"Made with {versions}.", ""])))


def _settings(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    layers = sorted(
        int(key.rpartition("_")[2]) for key in metrics if key.startswith("eval_repr/reached/layer_")
    )
    rows = {
        "data": ", ".join(data_names(recipe)) or "pairs that a script gave",
        "reference": recipe["reference"],
        "target layers": ", ".join(map(str, layers)) or recipe["target_layers"],
        "alpha": recipe["alpha"],
        "shift": recipe["shift"],
        "positions": recipe["positions"],
        "distance": f"{recipe['distance']}, scaled by {recipe['layer_scale']}",
        **{
            f"{term} weight": recipe[f"{term}_weight"]
            for term in ("retain", "kl", "sft", "dpo")
            if recipe.get(f"{term}_weight")  # a recipe of an earlier version has fewer
        },
        adapter_kind(recipe): f"r {recipe['lora_r']}, alpha {recipe['lora_alpha']}",
        "learning rate": recipe.get("learning_rate", "1e-3"),
        "seed": recipe.get("seed", 42),
    }
    if "choice/divergence" in metrics:
        rows["KL from the base on neutral text"] = (
            f"{metrics['choice/divergence']:.3g} nats per token, of {metrics['choice/budget']:g}"
        )
    return _as_list(rows)


def _as_list(rows: Mapping[str, Any]) -> str:
    """Return names and values as a Markdown list, whatever the values hold."""
    return "\n".join(
        f"- {markdown_text(name)}: {markdown_text(each)}" for name, each in rows.items()
    )
