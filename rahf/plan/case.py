"""What is planned: a recipe on a decoder, its rows, and the processes that run it."""

from dataclasses import dataclass

from rahf.distributed.accelerate import Launch
from rahf.models.shapes import Decoder, Lora, read_lora
from rahf.plan.lengths import Lengths
from rahf.recipe.layers import AUTO, first_layer, resolve_layers
from rahf.recipe.recipe import Recipe


@dataclass(frozen=True)
class Case:
    """All that a plan is made of."""

    recipe: Recipe
    decoder: Decoder
    launch: Launch
    lengths: Lengths
    rows: int | None  # training rows; None: not known
    early_exit: bool = True  # False: blocks above the top target layer are computed

    @property
    def lora(self) -> Lora:
        model = self.recipe.model
        return read_lora(
            self.decoder,
            model.lora_r,
            model.lora_dropout,
            model.lora_target_modules,
            dora=model.use_dora,
        )

    @property
    def layers(self) -> tuple[int, ...]:
        layers = self.recipe.method.target_layers
        # What auto will choose is not known; nothing is above the last block.
        return resolve_layers("0.5-1.0" if layers == AUTO else layers, self.decoder.layers)

    @property
    def first(self) -> int:
        """Return the first block that gets an adapter; the blocks below are run once for all
        views.
        """
        return first_layer(self.recipe.model.lora_first_layer, self.decoder.layers, self.layers)

    @property
    def attention(self) -> str:
        """Return `sdpa`, `eager` or `flash`: the recipe's value, or the default of the
        architecture.
        """
        given = self.recipe.model.attn_implementation
        if given is None:
            return "eager" if self.decoder.softcap else "sdpa"  # sdpa knows no tanh on the scores
        return "flash" if "flash" in given else given

    @property
    def packed(self) -> bool:
        """Return whether rows form a batch without padding."""
        return self.recipe.method.packing and self.attention == "sdpa"

    @property
    def top(self) -> int:
        """Return blocks up to the top target layer, that one included."""
        return self.layers[-1] + 1
