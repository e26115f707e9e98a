"""Bytes that one process holds on its device at the fullest moment of a step.

What is counted is every tensor that PyTorch keeps: weights, adapters, their gradients and optimiser
state, what autograd saves for the backward, what a block needs while it is computed. What is not:
fragmentation of the allocator, and buffers of communication beyond those named here. Knows shapes
and formats; knows no recipe.
"""

from typing import NamedTuple

from rahf.distributed.accelerate import Launch
from rahf.models.shapes import Decoder, Linear, Lora
from rahf.plan.work import Pass

GIB = 2**30

CONTEXT = GIB
"""Bytes of an accelerator's context and kernels: an assumption, not measured."""

ALLOCATOR = 0.5 * GIB
"""Bytes that the C library's allocator keeps of what has been freed, on CPU: one figure for those
measured (docs/scaling.md). An accelerator's allocator is counted as keeping nothing.
"""

LIVE_PARAMETERS = 1_000_000_000
"""Gathered parameters that DeepSpeed keeps under ZeRO-3 (`stage3_max_live_parameters`)."""

QUANTISED = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a quantised weight: nf4 with a float32 scale for 64 weights, int8."""


class Formats(NamedTuple):
    """How numbers are kept."""

    weight: int  # bytes of a frozen parameter, unless it is quantised
    bits: int | None  # 4 or 8: the matrices of the blocks are quantised
    adapter: int  # bytes of a LoRA parameter
    activation: int  # bytes of a number between two layers
    autocast: bool  # products run in 16 bits, norms and the residual stream as they are
    optimiser: float  # bytes of optimiser state a trained parameter
    attention: str  # sdpa, eager or flash
    accelerator: bool
    checkpointing: bool

    @property
    def product(self) -> int:
        """Return bytes of a number that a matrix product puts out."""
        return 2 if self.autocast else self.activation


class Resident(NamedTuple):
    """Bytes that stay for a complete stage."""

    weights: float
    gradients: float
    optimiser: float


class Moment(NamedTuple):
    """Bytes that a step adds."""

    activations: float  # the trained pass, with the targets that the frozen passes left
    frozen: float  # the fullest frozen pass


def resident(
    decoder: Decoder, formats: Formats, launch: Launch, adapters: int, trained: int, full: int = 0
) -> Resident:
    """Return weights, gradients and optimiser state in one process.

    Args:
        adapters: LoRA parameters on the model, trained or not.
        trained: LoRA parameters that are trained; 0: nothing is.
        full: parameters of further frozen models (teachers that are no adapters).
    """
    quantised = decoder.layers * sum(x.inputs * x.outputs for x in decoder.linears)
    quantised = quantised if formats.bits else 0
    plain = decoder.parameters - quantised
    held = plain * formats.weight + quantised * QUANTISED.get(formats.bits, 0)
    held += full * formats.weight
    whole = adapters * formats.adapter
    share = 1 / launch.processes
    if launch.shards_parameters and not formats.bits:
        if launch.engine == "zero3":
            held, whole = held + whole, 0
        held = 0 if launch.offloads_parameters else held * share
        held += gathered_parameters(decoder, launch) * (
            formats.product if formats.autocast else formats.weight
        )
    # Half-precision adapters (DeepSpeed's own 16-bit mode) have float32 masters in the optimiser.
    state = formats.optimiser + (4 if formats.adapter < 4 else 0)
    gradients, optimiser = trained * formats.adapter, trained * state
    if launch.shards_gradients:
        gradients, optimiser = gradients * share, optimiser * share
    elif launch.processes > 1:
        gradients *= 2  # DDP reduces copies of them, in buckets
    return Resident(held + whole, gradients, 0 if launch.offloads_optimiser else optimiser)


def gathered_parameters(decoder: Decoder, launch: Launch) -> int:
    """Return parameters that are gathered on a device while sharded ones are computed.

    ZeRO-3 keeps up to LIVE_PARAMETERS, or the largest matrix where that is more. FSDP2 keeps what
    is no block (embeddings, head), the block that is computed and the one fetched ahead.
    """
    if launch.engine == "zero3":
        largest = max(decoder.vocab * decoder.d_model, *(x.parameters for x in decoder.linears))
        return min(decoder.parameters, max(LIVE_PARAMETERS, largest))
    outside = decoder.parameters - decoder.layers * decoder.block_parameters
    return outside + min(2, decoder.layers) * decoder.block_parameters


def moment(decoder: Decoder, lora: Lora, formats: Formats, passes: tuple[Pass, ...]) -> Moment:
    """Return the fullest moments of a step made of frozen passes and, at its end, one trained pass.

    States read by a frozen pass are kept in float32 until the shift is built of them; the target is
    the reference and the shift, as large as the states of one pass each.
    """
    width = 4 * decoder.d_model
    frozen, kept, compared = 0.0, 0.0, 0.0
    for made in (made for made in passes if not made.trained):
        states = made.rows * made.recorded * width
        # Layer by layer as they are recorded, and once more when they are stacked.
        frozen = max(frozen, kept + 2 * states + _frozen(decoder, formats, made))
        kept += states
        if made.counted:
            # Logits that the KL term compares: kept, as log-softmax, and their divergence.
            compared += 3 * 4 * made.levels()[-1].rows * made.scored * decoder.vocab
    trained = [made for made in passes if made.trained]
    if not trained:
        return Moment(0.0, frozen)
    [policy] = trained
    states = policy.rows * policy.recorded * width
    # Target (2), policy's states, their error, and two terms of the progress; then the error, its
    # gradient, and what that becomes in a layer.
    loss = 6 * states
    backward = 3 * states + backward_working(decoder, formats, policy)
    if formats.checkpointing:
        backward += block_saved(decoder, lora, formats, policy)  # the block that is recomputed
    saved = saved_for_backward(decoder, lora, formats, policy)
    logits = compared + _logits(decoder, formats, policy)
    return Moment(saved + max(loss, backward, logits), frozen)


def saved_for_backward(decoder: Decoder, lora: Lora, formats: Formats, made: Pass) -> float:
    """Return what autograd keeps of the blocks until the backward: their inputs if recomputed."""
    kept = 0.0
    for level in made.levels():
        inputs = level.tokens * decoder.d_model * formats.activation
        saved = inputs if formats.checkpointing else block_saved(decoder, lora, formats, level)
        kept += (level.depth - level.below) * saved
    return kept


def block_saved(decoder: Decoder, lora: Lora, formats: Formats, made: Pass) -> float:
    """Return bytes of one block. A frozen matrix keeps nothing of its input; kept are the inputs of
    norms (in float32), of LoRA, of attention and of the activation.

    Autocast of float32 weights adds its 16-bit copies of them, which the backward reads again.
    """
    token = _norms_saved(decoder, formats) + _attention_saved(decoder, formats, made.width)
    token += _mlp_saved(decoder, formats) + _lora_saved(lora, formats)
    copies = formats.autocast and formats.weight == 4
    return made.tokens * token + (2 * decoder.linear_parameters if copies else 0)


def _norms_saved(decoder: Decoder, formats: Formats) -> float:
    number = 4 if decoder.rms or formats.autocast else formats.activation
    heads = 4 * (decoder.q_width + decoder.kv_width) * decoder.head_norms
    return decoder.norms * (number * decoder.d_model + 4) + heads


def _attention_saved(decoder: Decoder, formats: Formats, width: float) -> float:
    """Return the bytes a token that attention keeps for the backward. sdpa and eager keep keys and
    values repeated to all heads. sdpa also keeps its output, a float32 sum of every head's row, and
    the mask, which every block makes additive anew. eager also keeps the weights.
    """
    query, key = decoder.q_width, decoder.q_width
    if formats.attention == "flash":
        key = decoder.kv_width
    kept = (query + 2 * key) * formats.product
    if formats.attention == "eager":
        weight = 4 if formats.product == 4 else 6  # in float32, and again in the values' dtype
        weight += 4 if decoder.softcap else 0
        return kept + decoder.heads * width * weight
    if decoder.family == "gpt_neox":
        # Queries and keys are rotated beside the fused projection, which the values keep complete.
        kept += 2 * query * formats.product
    kept += query * formats.product + 4 * decoder.heads
    return kept + (width * formats.product if formats.attention == "sdpa" else 0)


def _mlp_saved(decoder: Decoder, formats: Formats) -> float:
    """Return the bytes a token that the MLP keeps for the backward. A gated one keeps the gate, its
    activation and the other side. A plain one keeps the input of the activation, or the four parts
    of GPT-2's own formula.
    """
    if decoder.gated:
        return 3 * decoder.mlp * formats.product
    return decoder.mlp * formats.product * (4 if decoder.activation == "gelu_new" else 1)


def _lora_saved(lora: Lora, formats: Formats) -> float:
    """Return the bytes a token of the inputs and outputs of A. All matrices share one copy of an
    input, unless each casts it to the adapter's dtype or applies dropout to it.
    """
    number = formats.product if formats.autocast else formats.adapter
    middle = lora.rank * len(lora.targets) * number
    if formats.autocast or lora.dropout or formats.adapter != formats.activation:
        inputs = sum(linear.inputs for linear in lora.targets) * number
        if lora.dropout:
            inputs += sum(linear.inputs for linear in lora.targets) * _dropout_mask(formats)
        return middle + inputs
    shared = {_input_of(linear): linear.inputs for linear in lora.targets}
    if formats.attention != "eager":
        shared.pop("attention", None)  # kept as the output of attention already
    return middle + sum(shared.values()) * number


def _input_of(linear: Linear) -> str:
    return "block" if linear.feeds in ("q", "k", "v", "qkv") else linear.feeds


def _dropout_mask(formats: Formats) -> int:
    return 1 if formats.accelerator else 4


def backward_working(decoder: Decoder, formats: Formats, made: Pass) -> float:
    """Return the gradients inside the block whose backward runs: of the three numbers of the MLP or
    the four of attention, and of the residual stream and a norm in float32.
    """
    wide = max(3 * decoder.mlp, 4 * decoder.q_width) * formats.product
    return made.tokens * (wide + 3 * 4 * decoder.d_model) + _weight_copy(decoder, formats)


def _frozen(decoder: Decoder, formats: Formats, made: Pass) -> float:
    """Return what a forward without gradients holds at once: the stream and its norm, and the MLP's
    or attention's numbers of one block; logits where they are scored.
    """
    heads = decoder.heads * made.width * 6 if formats.attention == "eager" else 0
    wide = max(3 * decoder.mlp * formats.product, 5 * decoder.q_width * formats.product + heads)
    block = made.tokens * (wide + 2 * 4 * decoder.d_model) + _weight_copy(decoder, formats)
    return max(block, _logits(decoder, formats, made))


def _logits(decoder: Decoder, formats: Formats, made: Pass) -> float:
    """Return logits of all columns that predict a response token in some row (autocast: and once
    more in float32), then in float32 of the response tokens only, with their log-softmax; in the
    backward the log-softmax and two gradients.
    """
    if not made.scored:
        return 0.0
    column = formats.product + (4 if formats.autocast else 0)
    scored = 4 * made.scored
    forward = made.columns * column + 2 * scored
    per_row = max(forward, 3 * scored) if made.trained else forward
    return made.levels()[-1].rows * per_row * decoder.vocab


def _weight_copy(decoder: Decoder, formats: Formats) -> float:
    """Return the 16-bit copy of one matrix, where weights are stored otherwise."""
    if not (formats.bits or (formats.autocast and formats.weight == 4)):
        return 0
    return 2 * max(linear.parameters for linear in decoder.linears)
