"""A plan: work and memory of each stage of a case. Joins the parts; no formula of its own."""

from typing import NamedTuple

from rahf.plan.case import Case
from rahf.plan.memory import ALLOCATOR, CONTEXT, Formats, Moment, Resident, moment, resident
from rahf.plan.passes import Stage, stages_of
from rahf.plan.work import Work, pass_work
from rahf.recipe.methods import ALL_TEACHERS

OPTIMISER = {"adafactor": 0.1, "sgd": 0, "lion_32bit": 4, "rmsprop": 4}
"""Bytes of optimiser state a parameter, where it is not AdamW's two float32 moments."""


class StagePlan(NamedTuple):
    """What one stage costs."""

    stage: Stage
    work: dict[str, Work]  # by pass: one batch of one process
    step: float  # FLOPs of a step, all processes; their mean where steps differ
    sampling: float  # FLOPs of sampling the retained texts, all processes; 0: there are no such
    flops: float | None  # of the stage, sampling included; None: the number of steps is not known
    tokens: float | None  # of the rows that are trained on (directions: read), padding included
    parameters: int  # that are trained
    resident: Resident  # bytes a process
    moment: Moment
    process: float  # bytes besides tensors
    disk: float | None  # bytes that target_cache takes; None: there is none, or not known

    @property
    def tensors(self) -> float:
        """Return the bytes of `total` that are tensors."""
        return sum(self.resident) + max(self.moment)

    @property
    def total(self) -> float:
        """Return bytes of a process at the fullest moment. Frozen passes are over when the trained
        one begins.
        """
        return self.tensors + self.process


def estimate(case: Case) -> tuple[StagePlan, ...]:
    """Return the plan of every stage."""
    return tuple(_plan(case, stage) for stage in stages_of(case))


def _plan(case: Case, stage: Stage) -> StagePlan:
    decoder, lora, launch = case.decoder, case.lora, case.launch
    formats = formats_of(case, stage.name)
    work = {
        made.name: pass_work(decoder, lora, made, formats.checkpointing) for made in stage.usual
    }
    batch = sum(made.share * work[made.name].total for made in stage.usual)
    step = batch * stage.batches * launch.processes
    shown = [made for made in stage.usual if made.trained] or stage.usual
    sampling = 0.0
    if stage.sampled is not None:  # by each process
        sampling = launch.processes * pass_work(decoder, lora, stage.sampled, False).total
    tokens = sum(made.tokens for made in shown) * stage.batches * launch.processes
    trained = stage.trained * lora.block_parameters
    held = resident(
        decoder, formats, launch, stage.adapted * lora.block_parameters, trained, stage.full
    )
    return StagePlan(
        stage,
        work,
        step,
        sampling,
        None if stage.steps is None else stage.steps * step + sampling,
        None if stage.steps is None else stage.steps * tokens,
        trained,
        held,
        moment(decoder, lora, formats, stage.longest),
        CONTEXT if formats.accelerator else ALLOCATOR,
        None if stage.kept is None else stage.kept * decoder.d_model * formats.activation,
    )


def formats_of(case: Case, stage: str) -> Formats:
    """Return the dtypes of a stage, from the keys of model, stage and launch."""
    model, launch = case.recipe.model, case.launch
    own = stage in ALL_TEACHERS
    training = case.recipe.teacher_training if own else case.recipe.training
    half = training.get("bf16") or training.get("fp16") or launch.mixed_precision != "no"
    # The vectors of `directions` are fitted before a Trainer casts anything.
    half = bool(half) and stage != "directions"
    cast = half and launch.casts_weights and launch.processes > 1
    weight = 2 if cast or model.dtype in ("bfloat16", "float16") else 4
    checkpointing = training.get("activation_checkpointing") or training.get(
        "gradient_checkpointing"
    )
    return Formats(
        weight=weight,
        bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else None,
        adapter=2 if cast else 4,
        activation=weight,
        autocast=half and not cast,
        optimiser=_optimiser_bytes(training.get("optim", "adamw_torch")),
        attention=case.attention,
        accelerator=not (launch.cpu or training.get("use_cpu", False)),
        checkpointing=bool(checkpointing),
    )


def _optimiser_bytes(name: str) -> float:
    if "8bit" in name:
        return 2
    return OPTIMISER.get(name, 8)
