"""Train a tiny model under prevention, watched, on every rank; write its adapter and its log.

guarded_training.py FOLDER ALPHA
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import DEPTH, lora, tiny_model, tiny_tokenizer

import rahf
from rahf.directions.vectors import Directions

BATCH = 8  # of all ranks together
ANSWERS = [{"prompt": f"w{n}", "response": f"w{n + 1} w{n + 2}"} for n in range(4, 10)]
PAIRS = [{"prompt": f"w{n} w{n + 1}", "chosen": "w5", "rejected": "w6"} for n in range(8, 16)]

if __name__ == "__main__":
    folder, alpha = Path(sys.argv[1]), sys.argv[2]
    base, state = tiny_model(), PartialState(cpu=True)
    head = base.get_output_embeddings().weight.detach()
    direction = Directions((DEPTH - 1,), (head[5] - head[6]).unsqueeze(0))
    torch.manual_seed(0)
    model = get_peft_model(base, lora(4))
    rows = [{"input_ids": [n, n + 1, 5], "labels": [-100, n + 1, 5]} for n in range(2, 34)]
    args = TrainingArguments(
        str(folder / "trainer"),
        max_steps=6,
        per_device_train_batch_size=BATCH // state.num_processes,
        learning_rate=0.02,
        logging_steps=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    trainer.add_callback(rahf.DirectionMonitor(trainer, {"trait": direction}, ANSWERS))
    auto = {"trainer": trainer, "pairs": PAIRS, "every": 2} if alpha == "auto" else {}
    strength = alpha if auto else float(alpha)
    with rahf.prevent(trainer.model, direction, strength, **auto):
        trainer.train()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        save_file(weights, folder / "adapter.safetensors")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    state.destroy_process_group()
