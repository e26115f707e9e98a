"""What a user writes against this package, checked by mypy in `make style`; it is never run.

Each line that ends in `type: ignore` is a mistake that the types have to show: mypy reports an
ignore that nothing needs.
"""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, Trainer

from rahf import (
    DirectionMonitor,
    Directions,
    RAHFConfig,
    RAHFTrainer,
    load_recipe,
    preset,
    prevent,
    steer,
)

pairs = load_dataset("json", data_files="my_pairs.jsonl", split="train")
trainer = RAHFTrainer(
    model="Qwen/Qwen3-1.7B",
    args=RAHFConfig("outputs/mine", method="dual", max_steps=200),
    train_dataset=pairs,
)
trainer.train()
trainer.save_model()
RAHFTrainer(model=3, args=RAHFConfig("out"), train_dataset=pairs)  # type: ignore[arg-type]

tone = Directions.load("outputs/mine/directions")
stronger: Directions = tone * 2.0
layers: tuple[int, ...] = stronger.layers
vectors = tone.vector  # type: ignore[attr-defined]

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-1.7B")
with steer(model, tone, alpha=4.0):
    pass
with prevent(model, tone, alpha=1.0) as state:
    state.alpha = 0.5
other = Trainer(model)
monitor = DirectionMonitor(other, {"tone": tone}, answers="answers.jsonl", every=10)
moved: list[dict[str, float]] = monitor.history
DirectionMonitor(other, tone, answers="answers.jsonl")  # type: ignore[arg-type]

alpha: float = load_recipe("my.yaml").method.alpha
defaults = preset("dual")

import rahf  # noqa: E402

print(rahf.__version__)
nothing = rahf.Nothing  # type: ignore[attr-defined]
