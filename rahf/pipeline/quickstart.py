"""The demo of `rahf quickstart`: a small model aligned in two directions, and what changed.

Two shipped recipes are run in the current folder, warm.yaml and sour.yaml; then their results are
put side by side.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

from rahf.artifacts import ANSWERS_FILE, METRICS_FILE, read_lines, read_object
from rahf.pipeline.run import run_pipeline
from rahf.recipe.files import checked_recipe
from rahf.report.tables import layers_table, markdown, models_table, side_by_side

TEST_PAIRS = Path("recipes/data/tone/test.jsonl")


def run_demo(recipes: dict[str, Path]) -> str:
    """Run the recipes `warm` and `sour` and return the report; what is complete is not run again.

    Args:
        recipes: files of both; sour reads the directions that warm has fitted.
    """
    outputs = {}
    for name in ("warm", "sour"):
        recipe = checked_recipe(recipes[name])
        run_pipeline(recipe, quiet=True)
        outputs[name] = recipe.output_dir
    return _report(outputs)


def _report(outputs: dict[str, Path]) -> str:
    metrics = {
        name: read_object(folder / METRICS_FILE, models=dict) for name, folder in outputs.items()
    }
    models = dict(metrics["warm"]["models"])
    models["policy warm"] = models.pop("policy")
    models["policy sour"] = turned(metrics["sour"]["models"]["policy"])
    answers = joined_answers(outputs)
    reached = [
        f"Share of the requested shift that the {name} policy reached, per layer\n\n"
        f"{layers_table(measured)}"
        for name, measured in metrics.items()
    ]
    return "\n\n".join(
        [
            "\nHeld-out prompts. Wanted: the warm side. Tone by lexicon, -1 (sour) to 1 (warm).",
            models_table(models),
            judged_line(models),
            *reached,
            "Tone on subjects of the training pairs and on subjects that they do not touch",
            tone_by_subject(answers),
            "A few of the answers",
            side_by_side(answers),
            f"results: {', '.join(map(str, outputs.values()))}",
        ]
    )


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row that was measured with the sides swapped, as it reads with the sides as they
    are, intervals included.
    """
    low, high = row["preference_accuracy_interval"]
    sides = {"shows_wanted": "shows_opposite", "shows_opposite": "shows_wanted"}
    return row | {
        "preference_accuracy": 1 - row["preference_accuracy"],
        "preference_accuracy_interval": [1 - high, 1 - low],
        "preference_margin": -row["preference_margin"],
        **{f"{side}{end}": row[f"{other}{end}"] for side, other in sides.items() for end in ENDS},
    }


def judged_line(models: dict[str, dict[str, Any]]) -> str:
    """Return the mean tone of both policies' answers, and how far the two are apart."""
    warm, sour = (models[f"policy {name}"]["judged_mean"] for name in ("warm", "sour"))
    return (
        f"The answers of policy warm have a mean tone of {warm:+.2f}, those of policy sour "
        f"{sour:+.2f}: {warm - sour:.2f} apart, {models['base']['answers']} answers each."
    )


ENDS = ("", "_interval")
"""What follows the name of a share in a row: the share, and its interval."""


def joined_answers(outputs: dict[str, Path]) -> list[dict[str, Any]]:
    """Return answers and scores of the base and of both policies, prompt by prompt."""
    warm, sour = (read_lines(folder / "evaluation" / ANSWERS_FILE) for folder in outputs.values())
    return [
        {"prompt": one["prompt"]}
        | {
            kind: {
                "base": one[kind]["base"],
                "warm": one[kind]["policy"],
                "sour": other[kind]["policy"],
            }
            for kind in ("answers", "scores")
        }
        for one, other in zip(warm, sour, strict=True)
    ]


def tone_by_subject(answers: list[dict[str, Any]]) -> str:
    """Return the mean tone of base and policies on subjects seen in training, and on new ones."""
    kinds = {pair["prompt"]: pair["split_kind"] for pair in read_lines(TEST_PAIRS)}
    rows = []
    for kind in ("seen_subject", "new_subject"):
        scores = [answer["scores"] for answer in answers if kinds[answer["prompt"]] == kind]
        means = [f"{fmean(score[name] for score in scores):+.2f}" for name in scores[0]]
        rows.append([kind.replace("_", " "), str(len(scores)), *means])
    return markdown(["prompts on a", "prompts", "base", "warm", "sour"], rows)
