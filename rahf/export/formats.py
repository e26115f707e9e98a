"""`rahf export`: which files an adapter or directions become."""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rahf.directions.vectors import FILE_NAME, Directions
from rahf.export.checks import ADAPTER_FILES, check_adapter, check_directions, nothing_there
from rahf.export.gguf import that_llama_cpp_steers, write_control_vector
from rahf.export.merged import write_merged
from rahf.models.adapters import is_adapter, load_tokenizer_of
from rahf.recipe.layers import resolve_layers

OF_ADAPTER = ("adapter", "merged")
OF_DIRECTIONS = ("safetensors", "gguf")


def export(options: argparse.Namespace) -> Iterator[str]:
    """Write every requested format; yield a line for each.

    Raises:
        ValueError: the source is neither; a format that it cannot have; the output is the source.
    """
    source: Path = options.source
    if source.is_dir() and is_adapter(source):
        yield from _adapter(options, asked_formats(options.formats, OF_ADAPTER, "an adapter"))
    elif source.is_file() or (source / FILE_NAME).is_file():
        yield from _directions(options, asked_formats(options.formats, OF_DIRECTIONS, "directions"))
    else:
        raise ValueError(nothing_there(source))


def asked_formats(
    asked: tuple[str, ...] | None, possible: tuple[str, ...], what: str
) -> tuple[str, ...]:
    wrong = [name for name in asked or () if name not in possible]
    if wrong:
        raise ValueError(f"{what} cannot be exported as {wrong[0]}, but as {', '.join(possible)}.")
    return asked or possible


def _adapter(options: argparse.Namespace, formats: tuple[str, ...]) -> Iterator[str]:
    check_adapter(options.source)
    if "merged" in formats:  # first: an adapter that cannot be loaded leaves nothing
        folder = options.output / "merged"
        tokenizer = load_tokenizer_of(options.source, options.base)
        found = write_merged(
            options.source, folder, tokenizer, dtype=options.dtype, base=options.base
        )
        yield f"{folder}: merged weights; {found}"
    if "adapter" in formats:
        folder = options.output / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "README.md", *ADAPTER_FILES):
            if (options.source / name).is_file():
                shutil.copyfile(options.source / name, folder / name)
        yield f"{folder}: PEFT adapter"


def _directions(options: argparse.Namespace, formats: tuple[str, ...]) -> Iterator[str]:
    directions = Directions.load(options.source)
    unchecked = check_directions(
        options.source, directions.layers, directions.vectors, directions.metadata
    )
    if unchecked is not None:
        yield unchecked
    if options.layers:
        depth = int(directions.metadata.get("depth", max(directions.layers) + 1))
        directions = directions.only(resolve_layers(options.layers, depth))
    baked = {"strength": f"{options.alpha:g}", "increments": str(options.increments).lower()}
    directions = replace(options.alpha * directions, metadata={**directions.metadata, **baked})

    def shaped(chosen: Directions) -> Directions:
        return chosen.increments() if options.increments else chosen

    if "safetensors" in formats:
        source, given = (options.output / FILE_NAME).resolve(), options.source.resolve()
        if source in (given, given / FILE_NAME):
            raise ValueError(
                f"--output {options.output} would overwrite the directions that are exported: give "
                "another folder, or --formats gguf."
            )
        whole = shaped(directions)
        yield f"{whole.save(options.output)}: directions of {len(whole.layers)} layers"
    if "gguf" in formats:
        path = options.output / "control_vector.gguf"
        # Omitted before the differences are taken: block 1 then brings what block 0 would have.
        possible = that_llama_cpp_steers(directions)
        hint = directions.metadata.get("model_type", "unknown")
        write_control_vector(shaped(possible), path, hint)
        left_out = possible.layers != directions.layers
        lost = ", without layer 0, which llama.cpp does not steer" if left_out else ""
        yield f"{path}: control vector{lost}"
