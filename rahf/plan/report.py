"""The plan as text: what is planned, what each stage costs, what each saving would change.

Computes nothing but sums and units: GiB are 2^30 bytes, T, P and E stand for 10^12, 10^15, 10^18.
"""

from collections.abc import Sequence
from typing import Any

from rahf.plan.case import Case
from rahf.plan.estimate import StagePlan, estimate, formats_of
from rahf.plan.memory import GIB
from rahf.plan.savings import changes, fitting, largest


def report(case: Case, lengths_from: str) -> str:
    """Return all that `rahf plan` prints."""
    plan = estimate(case)
    parts = [_heading(case, lengths_from), _stages(plan), _passes(plan), _savings(case, plan)]
    return "\n\n".join(parts)


def as_figures(case: Case) -> dict[str, Any]:
    """Return the plan as plain values: FLOPs, tokens, and bytes of a process, by stage."""
    return {
        "model": case.recipe.model.model_name_or_path,
        "parameters": case.decoder.parameters,
        "blocks": case.decoder.layers,
        "policy_blocks": case.top,
        "launch": case.launch._asdict(),
        "rows": case.rows,
        "lengths": {
            "measured": bool(case.lengths.rows),
            "max_prompt_length": case.lengths.max_prompt,
            "max_length": case.lengths.max_length,
            "mean_tokens": case.lengths.mean,
        },
        "stages": {part.stage.name: _stage_figures(part) for part in estimate(case)},
    }


def _stage_figures(part: StagePlan) -> dict[str, Any]:
    return {
        "parameters": part.parameters,
        "steps": part.stage.steps,
        "tokens": _whole(part.tokens),
        "flops_a_step": _whole(part.step),
        "flops_of_sampling": _whole(part.sampling),
        "flops": _whole(part.flops),
        "bytes": {
            **{name: _whole(size) for name, size in part.resident._asdict().items()},
            **{name: _whole(size) for name, size in part.moment._asdict().items()},
            "process": _whole(part.process),
            "total": _whole(part.total),
        },
        "bytes_of_target_cache": _whole(part.disk),
    }


def _heading(case: Case, lengths_from: str) -> str:
    decoder, lora, model = case.decoder, case.lora, case.recipe.model
    formats = formats_of(case, "alignment")
    stored = f"{formats.bits} bits" if formats.bits else f"{8 * formats.weight} bits"
    notes = [
        f"weights in {stored}",
        f"products in {8 * formats.product} bits",
        f"activation checkpointing {'on' if formats.checkpointing else 'off'}",
    ]
    kind = "DoRA" if lora.dora else "LoRA"
    unseen = "; time and memory of its norms are not counted" if lora.dora else ""
    names = ", ".join(linear.name.rpartition(".")[2] for linear in lora.targets)
    above = decoder.layers - case.top
    rows = {
        "model": f"{model.model_name_or_path}: {_count(decoder.parameters)} parameters, "
        f"{decoder.layers} blocks of width {decoder.d_model}",
        "adapter": f"{kind} of rank {lora.rank} on {names}: "
        f"{_count(lora.block_parameters)} parameters a block{unseen}",
        "policy": f"blocks 0-{case.top - 1}; {above} above the top target layer are not computed",
        "launch": f"{case.launch.described()}; {', '.join(notes)}",
        "rows": "not known: give --rows N" if case.rows is None else f"{case.rows:,} for training",
        "lengths": lengths_from,
    }
    return "\n".join(f"{name:<8} {text}" for name, text in rows.items())


def _stages(plan: Sequence[StagePlan]) -> str:
    lines = {
        "trained parameters": [_count(part.parameters) for part in plan],
        "steps": [_known(part.stage.steps, "{:,}") for part in plan],
        "tokens, padding too": [_known(part.tokens, _count) for part in plan],
        "FLOPs a step": [_count(part.step) for part in plan],
        "FLOPs of sampling": ["" if not part.sampling else _count(part.sampling) for part in plan],
        "FLOPs": [_known(part.flops, _count) for part in plan],
        "GiB per device:": ["" for _ in plan],
        "  weights": [_gib(part.resident.weights) for part in plan],
        "  gradients": [_gib(part.resident.gradients) for part in plan],
        "  optimiser": [_gib(part.resident.optimiser) for part in plan],
        "  activations": [_gib(part.moment.activations) for part in plan],
        "  frozen passes": [_gib(part.moment.frozen) for part in plan],
        "  process": [_gib(part.process) for part in plan],
        "  at most": [_gib(part.total) for part in plan],
    }
    if not any(part.sampling for part in plan):
        del lines["FLOPs of sampling"]
    if any(part.disk is not None for part in plan):
        lines["GiB of target_cache"] = [
            "" if part.disk is None else _gib(part.disk) for part in plan
        ]
    names = [part.stage.name for part in plan]
    table = _table([("", *names), *((label, *cells) for label, cells in lines.items())])
    note = (
        "`at most` counts the larger of activations and frozen passes: these are over when the "
        "trained one begins."
    )
    sampled = [part.stage.sampled for part in plan if part.stage.sampled is not None]
    if sampled:
        note += (
            f"\n`sampling`: {sampled[0].rows} retained texts of up to {sampled[0].width + 1:.0f} "
            "tokens are written before the first step, token by token, which takes a device "
            "longer than its FLOPs suggest; retain_dataset_name reads them from a file."
        )
    return f"{table}\n{note}"


def _passes(plan: Sequence[StagePlan]) -> str:
    """Return what a batch of one process computes, pass by pass."""
    rows = [("FLOPs a batch", "rows x tokens", "blocks", "forward", "backward", "recomputed")]
    for part in plan:
        for made in part.stage.usual:
            work = part.work[made.name]
            name = made.name if made.name == part.stage.name else f"{part.stage.name} {made.name}"
            rows.append(
                (
                    name,
                    f"{made.rows} x {made.width:.0f}",
                    f"{made.depth}",
                    *(_count(number) if number else "-" for number in work),
                )
            )
    return _table(rows)


def _savings(case: Case, plan: Sequence[StagePlan]) -> str:
    """Return the table of the savings, each changed separately."""
    names = [part.stage.name for part in plan]
    rows = [("one setting changed", *(f"GiB {name}" for name in names), "FLOPs")]
    rows.append(("as given", *_compared(plan, names)))
    rows += [
        (setting.text, *_compared(estimate(setting.made(case)), names)) for setting in changes(case)
    ]
    return _table(rows)


def _compared(plan: Sequence[StagePlan], names: Sequence[str]) -> tuple[str, ...]:
    found = {part.stage.name: part for part in plan}
    cells = [_gib(found[name].total) if name in found else "-" for name in names]
    flops = [part.flops for part in plan]
    return (*cells, "?" if None in flops else _count(sum(flops)))


def refusal(case: Case, device_gib: float) -> str | None:
    """Return why the case does not fit into so many GiB and what would make it fit; None if it
    fits.
    """
    plan = estimate(case)
    if largest(plan) <= device_gib * GIB:
        return None
    over = ", ".join(
        f"{part.stage.name} {_gib(part.total)} GiB"
        for part in plan
        if part.total > device_gib * GIB
    )
    found = fitting(case, device_gib * GIB)
    if found is None:
        cure = "no setting known here makes it fit: take a device with more memory"
    else:
        settings, most = found
        cure = f"it fits with {' and '.join(setting.text for setting in settings)}"
        cure += f" ({_gib(most)} GiB)"
    return f"does not fit into --device_memory {device_gib:g} GiB per device: {over}; {cure}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        right = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"{first:<{widths[0]}}{right}".rstrip())
    return "\n".join(lines)


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _count(number: float) -> str:
    """Return a short form: 1234567 -> 1.23 M."""
    for size, unit in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _known(number: float | None, form) -> str:
    if number is None:
        return "?"
    return form.format(number) if isinstance(form, str) else form(number)
