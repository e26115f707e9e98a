"""Run several `rahf` commands one after the other on every rank, and report which engine trained.

run_cases.py CASES.json: a list of lists of arguments. Writes engines.json: a record a training.
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from rahf.cli import main
from rahf.training.adapter_trainer import AdapterTrainer

engines: list[dict] = []
prepare = AdapterTrainer._prepare_for_training


def prepare_and_report(trainer, *args):
    prepared = prepare(trainer, *args)
    base = next(value for name, value in trainer.model.named_parameters() if "base_layer" in name)
    engines.append(
        {
            "wrapper": type(trainer.model_wrapped).__name__,
            "optimizer": type(trainer.optimizer.optimizer).__name__,
            "distributed_type": trainer.accelerator.distributed_type.value,
            "world": trainer.accelerator.num_processes,
            "base": type(base).__name__,
            "held": base.to_local().numel() if hasattr(base, "to_local") else base.numel(),
            "whole": getattr(base, "ds_numel", base.numel()),
        }
    )
    return prepared


if __name__ == "__main__":
    AdapterTrainer._prepare_for_training = prepare_and_report
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        status = main(arguments)
        if status:
            sys.exit(status)
    state = PartialState()
    if state.is_main_process:
        Path("engines.json").write_text(json.dumps(engines))
    state.destroy_process_group()
