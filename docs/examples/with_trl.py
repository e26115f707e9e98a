"""A DPO adapter by TRL as the teacher of an alignment: `method: dpo_shift`.

The alignment moves hidden states along what DPO has changed, as far as `alpha` says. Any PEFT
adapter of the same base can be the teacher in this way.

pip install "rahf[trl]"; python docs/examples/with_trl.py
"""

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from rahf import RAHFConfig, RAHFTrainer


def train_dpo(model: str, pairs: Dataset, output: str, **options) -> None:
    """Train a LoRA by TRL's DPO and save it."""
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(output, report_to="none", activation_checkpointing=False, **options),
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()


def align(model: str, pairs: Dataset, teacher: str, output: str, **options) -> RAHFTrainer:
    """Align towards the DPO adapter in the folder `teacher`."""
    trainer = RAHFTrainer(
        model=model,
        args=RAHFConfig(output, method="dpo_shift", report_to="none", **options),
        train_dataset=pairs,
        teachers={"preferred": teacher},
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    tone = load_dataset("json", data_files="recipes/data/tone/train.jsonl", split="train")
    base, output = "models/SmolLM2-135M-Instruct", "outputs/examples/trl"
    train_dpo(base, tone, f"{output}/dpo", max_steps=40, learning_rate=1e-4)
    align(base, tone, f"{output}/dpo", f"{output}/aligned", max_steps=60, target_layers="0.5-0.8")
