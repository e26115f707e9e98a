"""How a run is spread over processes, read from an accelerate configuration without accelerate.

Knows the keys that decide where weights, gradients and optimiser state are; no recipe, no model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rahf.shipped.folders import ACCELERATE_CONFIGS, shipped_folder

FOLDER = Path(ACCELERATE_CONFIGS)

NOT_READ = {
    "fsdp_activation_checkpointing": "set activation_checkpointing: true in the recipe",
    "fsdp_offload_params": "use accelerate_configs/zero3_offload.yaml",
}
"""Keys of FSDP that rahf does not read, because it shards the base itself, and what to do instead.
"""


class Launch(NamedTuple):
    """The engine under a run."""

    engine: str = "single"  # single, ddp, zero2, zero3 or fsdp2
    processes: int = 1
    offloads_parameters: bool = False  # frozen and trained weights are in the host's memory
    offloads_optimiser: bool = False
    mixed_precision: str = "no"  # no, bf16 or fp16
    cpu: bool = False

    @property
    def shards_parameters(self) -> bool:
        return self.engine in ("zero3", "fsdp2") and self.processes > 1

    @property
    def shards_gradients(self) -> bool:
        """Return whether gradients and optimiser state are sharded.

        Beside an FSDP base adapters are complete.
        """
        return self.engine in ("zero2", "zero3") and self.processes > 1

    @property
    def casts_weights(self) -> bool:
        """Return whether mixed precision casts all weights to 16 bits (DeepSpeed), not autocast."""
        return self.engine in ("zero2", "zero3")

    def described(self) -> str:
        """Return engine, number of processes and what is offloaded, as text."""
        offloaded = [
            name
            for name, moved in (
                ("parameters", self.offloads_parameters),
                ("optimiser", self.offloads_optimiser),
            )
            if moved
        ]
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.engine}, {count}" + (
            f", offloaded: {', '.join(offloaded)}" * bool(offloaded)
        )


def read_launch(
    name: str | None, processes: int | None = None, training: Mapping[str, Any] | None = None
) -> Launch:
    """Read the launch of an accelerate configuration: a file, or a NAME as in `find_config`.

    Args:
        processes: in place of the file's own number.
        training: TrainingArguments keys of the recipe, whose `deepspeed` chooses the engine where
            no configuration is named.

    Raises:
        ValueError: no such file; an engine that is not known here; fewer than one process.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"--num_processes {processes}: give at least 1")
    config = _read(find_config(name)) if name else _of_training(training or {})
    number = processes if processes is not None else int(config.get("num_processes") or 1)
    launch = _launch(config, number, name or "the recipe")
    return launch._replace(engine="single") if number == 1 and launch.engine == "ddp" else launch


def find_config(name: str) -> Path:
    """Find the file of an accelerate configuration: `name`, or accelerate_configs/NAME.yaml.

    The folder is looked for here, then among what ships with the package.

    Raises:
        ValueError: there is no such file.
    """
    places = [FOLDER, shipped_folder(ACCELERATE_CONFIGS)]
    for path in (Path(name), *(place / f"{name}.yaml" for place in places)):
        if path.is_file():
            return path
    known = sorted({file.stem for place in places for file in place.glob("*.yaml")})
    there = f"in {FOLDER} are {', '.join(known)}" if known else f"there is no folder {FOLDER}"
    raise ValueError(
        f"--accelerate_config {name}: is not a file, nor is {FOLDER / name}.yaml; {there}"
    )


def names_port(config: Path) -> bool:
    """Return whether a file sets where the ranks meet, or has several machines."""
    settings = _read(config)
    return bool(settings.get("main_process_port")) or int(settings.get("num_machines") or 1) > 1


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: an accelerate configuration is a mapping of keys to values")
    return config


def _of_training(training: Mapping[str, Any]) -> dict[str, Any]:
    given = training.get("deepspeed")
    if given is None:
        # As `accelerate launch --num_processes N` without a configuration.
        return {"distributed_type": "MULTI_GPU", "use_cpu": training.get("use_cpu", False)}
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": _of_deepspeed(given)}


def _of_deepspeed(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's own JSON as keys of accelerate."""
    whole = json.loads(Path(given).read_text(encoding="utf-8")) if isinstance(given, str) else given
    zero = whole.get("zero_optimization", {})
    return {
        "zero_stage": zero.get("stage", 0),
        "offload_param_device": zero.get("offload_param", {}).get("device", "none"),
        "offload_optimizer_device": zero.get("offload_optimizer", {}).get("device", "none"),
    }


def _launch(config: Mapping[str, Any], processes: int, source: str) -> Launch:
    kind = str(config.get("distributed_type", "NO"))
    common = Launch(
        processes=processes,
        mixed_precision=str(config.get("mixed_precision", "no")),
        cpu=bool(config.get("use_cpu", False)),
    )
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return common._replace(engine="ddp" if processes > 1 else "single")
    if kind == "DEEPSPEED":
        zero = config.get("deepspeed_config") or {}
        if zero.get("deepspeed_config_file"):
            zero = _of_deepspeed(zero["deepspeed_config_file"])
        stage = int(zero.get("zero_stage", 2))
        return common._replace(
            engine={0: "ddp", 3: "zero3"}.get(stage, "zero2"),
            offloads_parameters=_moved(zero, "offload_param_device"),
            offloads_optimiser=_moved(zero, "offload_optimizer_device"),
        )
    if kind == "FSDP":
        fsdp = config.get("fsdp_config") or {}
        for key, instead in NOT_READ.items():
            if fsdp.get(key):
                raise ValueError(f"{source}: {key} is not read: {instead}")
        return common._replace(engine="fsdp2")
    raise ValueError(
        f"{source}: distributed_type {kind} is not known to the plan, which reads NO, MULTI_GPU, "
        "MULTI_CPU, DEEPSPEED and FSDP"
    )


def _moved(zero: Mapping[str, Any], key: str) -> bool:
    return str(zero.get(key) or "none") != "none"
