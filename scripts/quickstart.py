"""`make quickstart`: align the demo model in two directions and show what changed.

Two recipes are run, warm.yaml and sour.yaml, then their results are put side by side.
"""

from pathlib import Path

from rahf.artifacts import ANSWERS_FILE, METRICS_FILE, read_json, read_lines
from rahf.pipeline import run_pipeline
from rahf.recipe.validation import checked_recipe
from rahf.report.tables import layers_table, models_table, side_by_side

FOLDER = Path("recipes/smollm2-135m")


def main() -> None:
    runs = {}
    for name in ("warm", "sour"):  # sour reads the directions that warm has fitted
        runs[name] = checked_recipe(FOLDER / f"{name}.yaml")
        run_pipeline(runs[name], quiet=True)
    metrics = {name: read_json(recipe.output_dir / METRICS_FILE) for name, recipe in runs.items()}
    models = {name: row for name, row in metrics["warm"]["models"].items() if name != "policy"}
    models |= {f"policy {name}": metrics[name]["models"]["policy"] for name in runs}
    print("\nHeld-out prompts; tone by lexicon from -1 (sour) to 1 (warm)\n")
    print(models_table(models))
    gap = models["policy warm"]["judged_mean"] - models["policy sour"]["judged_mean"]
    print(
        f"\nThe two directions are {gap:.2f} apart on {models['base']['answers']} answers each.\n"
    )
    for name, measured in metrics.items():
        print(f"Share of the asked shift that the {name} policy reached, per layer\n")
        print(layers_table(measured), end="\n\n")
    answers = {
        name: read_lines(recipe.output_dir / "evaluation" / ANSWERS_FILE)
        for name, recipe in runs.items()
    }
    print("A few of the answers\n")
    print(
        side_by_side(
            [
                {
                    "prompt": warm["prompt"],
                    "answers": {
                        "base": warm["answers"]["base"],
                        "warm": warm["answers"]["policy"],
                        "sour": sour["answers"]["policy"],
                    },
                }
                for warm, sour in zip(answers["warm"], answers["sour"], strict=True)
            ]
        )
    )


if __name__ == "__main__":
    main()
