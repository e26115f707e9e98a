"""FLOPs of a step from the lengths of its rows: what `flops.py` counts, and no model is run.

By the formulas of `rahf plan`: attention is each token of a row against all of its tokens. What is
counted on a machine differs by some hundredths: attention's kernels return three gradients in the
lowest block, where one or two are needed, and on a CPU the package takes long rows in pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parts.workload import Workload, responses_of

from rahf.data.rows import packed_rows
from rahf.models.shapes import read_decoder, read_lora
from rahf.plan.work import Pass, Work, pass_work

Pairs = Sequence[Mapping[str, Any]]


def step_flops(workload: Workload, variant: str, pairs: Pairs) -> float:
    """Return the FLOPs of one step of `variant` on `pairs`."""
    return FORMULAS[variant](Shapes(workload), list(pairs))


class Shapes:
    """A workload's passes through its decoder, as FLOPs."""

    def __init__(self, workload: Workload):
        self.workload = workload
        config = workload.config().to_dict()
        self._decoder = read_decoder(config, workload.shape or workload.model)
        given = workload.lora()
        self._lora = read_lora(
            self._decoder, given.r, given.lora_dropout, sorted(given.target_modules)
        )
        self.blocks, self.top = self._decoder.layers, workload.layers()[-1] + 1
        self.first = workload.first_block()

    def forward(self, rows: float, width: float, adapted: bool, columns: float) -> float:
        """Count a forward through all blocks, and the head over `columns` tokens of a row."""
        made = Pass("", rows, width, self.blocks, adapted, False, columns, below=self.first)
        return self._of(made).total

    def packed(
        self, view: str, pairs: Pairs, *, trained: bool = False, known: bool = False
    ) -> float:
        """Count both responses of the pairs without padding, up to the top target layer, no head.

        Where another pass has computed the blocks below the adapters (`known`), a pass on the
        reference's rows begins above them. A pack counts as rows of one width with as many
        tokens and as many products of attention.
        """
        instructed = self.workload.method == "scit" and view in ("positive", "negative")
        prompt = f"{view}_prompt_ids" if instructed else "prompt_ids"
        given = responses_of(list(pairs), self.workload.max_response_tokens)
        packed = packed_rows([pair[prompt] for pair, _ in given], [ids for _, ids in given])
        rows = [[stop - start for start, stop in spans] for spans in packed["spans"]]
        tokens = packed["input_ids"].numel()
        width = sum(row[-1] * sum(row) for row in rows) / tokens
        below = 0 if known and not instructed else self.first
        depth = self.top - self.first + below
        made = Pass("", tokens / width, width, depth, True, trained, columns=0, below=below)
        return self._of(made).total

    def backward(self, rows: float, width: float, blocks: int, scored: float = 0) -> float:
        """Count a backward of a policy, from the output of `blocks` blocks, or of the head over
        `scored` tokens.
        """
        made = Pass("", rows, width, blocks, True, True, scored, scored, below=self.first)
        return self._of(made).backward

    def _of(self, made: Pass) -> Work:
        return pass_work(self._decoder, self._lora, made, checkpointing=False)


def naive(shapes: Shapes, pairs: Pairs) -> float:
    """Count a forward of three frozen models and of the policy, whose backward starts at the top
    target layer.
    """
    rows, width = 2 * len(pairs), shapes.workload.naive_width
    frozen = shapes.forward(rows, width, adapted=False, columns=width)
    policy = shapes.forward(rows, width, adapted=True, columns=width)
    return 3 * frozen + policy + shapes.backward(rows, width, shapes.top)


def rahf(shapes: Shapes, pairs: Pairs) -> float:
    """Count the reference, the views that differ from it, and the policy."""
    views = {"positive", "negative"} - {shapes.workload.reference}
    read = sum(shapes.packed(view, pairs, known=True) for view in views)
    return rahf_mean(shapes, pairs) + read


def rahf_mean(shapes: Shapes, pairs: Pairs) -> float:
    """Count the reference and the policy."""
    policy = shapes.packed("reference", pairs, trained=True, known=True)
    return policy + shapes.packed("reference", pairs)


def rahf_cached(shapes: Shapes, pairs: Pairs) -> float:
    """Count only the policy."""
    return shapes.packed("reference", pairs, trained=True)


def dpo(shapes: Shapes, pairs: Pairs) -> float:
    """Count a complete forward of the base and the policy, on rows as wide as the longest of the
    batch. The last token has no successor to predict.
    """
    rows = 2 * len(pairs)
    width = max(
        len(pair["prompt_ids"]) + len(pair[side])
        for pair in pairs
        for side in ("chosen_ids", "rejected_ids")
    )
    base = shapes.forward(rows, width, adapted=False, columns=width - 1)
    policy = shapes.forward(rows, width, adapted=True, columns=width - 1)
    return base + policy + shapes.backward(rows, width, shapes.blocks, scored=width - 1)


FORMULAS: dict[str, Callable[[Shapes, Pairs], float]] = {
    "naive": naive,
    "rahf": rahf,
    "rahf-keeping": rahf,
    "rahf-mean": rahf_mean,
    "rahf-cached": rahf_cached,
    "dpo": dpo,
}
