"""The model card of an aligned adapter, from the recipe as run and its metrics."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from rahf.report.directions import evidence_text
from rahf.report.escaping import markdown_code, markdown_text
from rahf.report.tables import judge_text, layers_table, models_table

PACKAGES = ("rahf", "torch", "transformers", "peft", "accelerate", "datasets")

MOVED = "moved towards what the chosen responses of {data} share and the rejected ones lack"
PUSHED_AWAY = "pushed away from their values on the rejected responses of {data}"


def model_card(
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    method: str,
    paper: str,
    *,
    pushed: bool,
    where: str = "path/of/this/folder",
) -> str:
    """Return Markdown below the Hub's metadata: data, base, method, metrics, versions.

    Args:
        method: its title.
        paper: arXiv number of the method's paper.
        pushed: whether rejected responses were pushed away.
        where: the name by which a reader loads the adapter.
    """
    head = {
        "library_name": "peft",
        "base_model": recipe["model_name_or_path"],
        "tags": ["rahf", "lora", "representation-alignment", recipe["method"]],
        "pipeline_tag": "text-generation",
    }
    parts = [
        *_opening(recipe, method, paper, PUSHED_AWAY if pushed else MOVED),
        USE.format(where=json.dumps(where)),
        "## How it was made",
        _settings(recipe, metrics),
        "The full recipe is `recipe.yaml`, all figures are in `metrics.json`, every logged step in "
        "`log.jsonl`.\n\n![loss and reached shift](training.png)",
    ]
    if "models" in metrics:
        parts += ["## Held-out results", models_table(metrics["models"])]
        parts += [markdown_text(judge_text(metrics["models"]) or "")]
    if "eval_repr/reached" in metrics:
        parts += ["## What was reached, per layer", layers_table(metrics)]
    return _card(head, parts)


def _opening(recipe: Mapping[str, Any], method: str, paper: str, moved: str) -> list[str]:
    """Return the title, and a sentence on what was done to which base."""
    base = recipe["model_name_or_path"]
    datasets = recipe["dataset_name"] or ", ".join(part["path"] for part in recipe["datasets"])
    return [
        f"# {markdown_text(base.rpartition('/')[2])} aligned by {method}",
        f"A LoRA adapter of {markdown_code(base)} whose hidden states were "
        f"{moved.format(data=markdown_code(datasets))} "
        f"({method}, [arXiv {paper}](https://arxiv.org/abs/{paper})).",
    ]


USE = """## How to use it

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained({where})
merged = model.merge_and_unload()  # plain transformers from here on
```"""


def directions_card(
    metadata: Mapping[str, str],
    layers: Sequence[int],
    evidence: Mapping[str, Any] | None,
    where: str,
) -> str:
    """Return the card of stored directions: base, data, how they were fitted, the evidence."""
    base = metadata["model"]
    head = {
        "library_name": "rahf",
        "base_model": base,
        "tags": ["rahf", "steering", "control-vector", "representation-alignment"],
    }
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


def _card(head: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Return the text with the Hub's front matter and the versions that it was made with."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    front = f"---\n{yaml.safe_dump(dict(head), sort_keys=False)}---"
    return "\n\n".join([front, *parts, f"Made with {versions}.", ""])


def _settings(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    layers = sorted(
        int(key.rpartition("_")[2]) for key in metrics if key.startswith("eval_repr/reached/layer_")
    )
    rows = {
        "data": recipe["dataset_name"] or "a mixture, see recipe.yaml",
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
        "LoRA": f"r {recipe['lora_r']}, alpha {recipe['lora_alpha']}",
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
