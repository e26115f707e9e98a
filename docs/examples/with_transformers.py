"""Align from Python, then use the result in plain transformers, without rahf and without peft.

python docs/examples/with_transformers.py
"""

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rahf import RAHFConfig, RAHFTrainer


def align(model: str, pairs: Dataset, output: str, **options) -> None:
    """Train an adapter and its teachers; write the adapter, its card, and merged weights."""
    trainer = RAHFTrainer(
        model=model,
        args=RAHFConfig(output, method="dual", report_to="none", **options),
        train_dataset=pairs,
    )
    trainer.train()
    trainer.save_model()  # also README.md (the card), training.png, log.jsonl, metrics.json
    merged = trainer.model.merge_and_unload(adapter_names=["default"])  # not the teachers
    merged.save_pretrained(f"{output}/merged")
    trainer.processing_class.save_pretrained(f"{output}/merged")


def answer(folder: str, question: str, tokens: int = 60) -> str:
    """Return the answer of a merged model: nothing here knows of rahf."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, plain = question, tokenizer.chat_template is None
    if not plain:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=plain)
    ids = model.generate(input_ids=inputs["input_ids"], max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    tone = load_dataset("json", data_files="recipes/data/tone/train.jsonl", split="train")
    base, output = "models/SmolLM2-135M-Instruct", "outputs/examples/transformers"
    align(base, tone, output, max_steps=60, target_layers="0.5-0.8", max_response_tokens=32)
    for folder in (base, f"{output}/merged"):
        print(f"{folder}: {answer(folder, 'How was the concert last night?')}")
