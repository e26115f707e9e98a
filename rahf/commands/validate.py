"""`rahf validate`: every problem of a recipe at once, or every effective value."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rahf.recipe.recipe import Recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print problems, or every value, as JSON"
    )


def run(options: argparse.Namespace) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe, needs_gpu, not_read
    from rahf.recipe.model_files import ask_for_names
    from rahf.recipe.recipe import Recipe, RecipeError
    from rahf.recipe.summary import as_figures

    unchecked: list[str] = []

    def also(recipe: Recipe) -> list[str]:
        problems, unknown = ask_for_names(recipe)
        unchecked.extend([*unknown, *needs_gpu(recipe)])
        return [*check_given_comparison(recipe), *problems]

    try:
        recipe, problems = checked_recipe(options.recipe, options.overrides, also), ()
    except RecipeError as error:
        recipe, problems = None, error.problems
        if not options.json:
            print(f"{error}", file=sys.stderr)
    if options.json:
        figures = {"recipe": str(options.recipe), "valid": not problems, "problems": problems}
        figures |= {"not_checked": unchecked}
        if recipe is not None:
            figures |= {"not_read": not_read(recipe), **as_figures(recipe)}
        print(json.dumps(figures, indent=2, default=str))
    elif recipe is not None:
        print(_summary(recipe, options.recipe, unchecked))
    return 1 if problems else 0


def _summary(recipe: "Recipe", path: Path, unchecked: list[str]) -> str:
    """Return the verdict, what is not checked or not read, what is given, and every value."""
    from rahf.recipe.files import not_read
    from rahf.recipe.summary import effective_values, given_values, summary

    verdict = "ok, as far as it could be checked" if unchecked else "ok"
    parts = [f"{verdict}: {path}\n{summary(recipe)}"]
    for title, lines in (("Not checked", unchecked), ("Not read", not_read(recipe))):
        parts += ["\n".join([title, *(f"- {line}" for line in lines)])] if lines else []
    return "\n\n".join([*parts, given_values(recipe), effective_values(recipe)])
