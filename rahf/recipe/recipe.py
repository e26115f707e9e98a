"""A recipe: YAML and overrides -> one frozen `Recipe`, or all that is wrong with it at once.

Knows no model and no data; `files.py` checks the files that a recipe names. Imports
neither torch nor transformers, so that reading a recipe takes a fraction of a second.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from rahf.recipe.fields import Count, OptionError, annotations, coerce, value_problem
from rahf.recipe.keys import (
    FLAT,
    REFUSED,
    SECTIONS,
    CompareOptions,
    DataOptions,
    EvaluationOptions,
    MethodOptions,
    ModelOptions,
    TeacherOptions,
    default_of,
    full_name,
    key_annotation,
    unknown_keys,
)
from rahf.recipe.method_options import batch_problems
from rahf.recipe.methods import METHODS, with_defaults
from rahf.recipe.other_names import REMOVED, REMOVED_CHOICES
from rahf.recipe.shift_options import teacher_problems
from rahf.recipe.trackers import tracker_problems
from rahf.recipe.training_arguments import TRANSFORMERS_DEFAULTS, training_annotations
from rahf.recipe.training_clashes import clash_problems
from rahf.recipe.yaml_file import merge_overrides, parse_overrides, read_yaml

EVALUATING = ("eval_delay", "eval_on_start", "eval_steps", "eval_strategy", "do_eval")
"""Keys that set when held-out pairs are measured. Teachers have no held-out pairs."""

# What teachers never inherit from the alignment: it sets where a run is written, or is measured on
# held-out pairs by the alignment's own metrics.
NOT_INHERITED = {
    *EVALUATING,
    "greater_is_better",
    "hub_model_id",
    "hub_revision",
    "load_best_model_at_end",
    "metric_for_best_model",
    "output_dir",
    "push_to_hub",
    "resume_from_checkpoint",
    "run_name",
}


class RecipeError(OptionError):
    """A recipe that cannot be run; `problems` holds one line for each thing that is wrong.

    `partial` is the recipe with defaults in place of what was refused, for further checks only;
    None where nothing could be read.
    """

    def __init__(self, source: str, problems: Iterable[str], partial: "Recipe | None" = None):
        problems, self.partial = tuple(problems), partial
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(problems, title=f"{source}: {count}")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    `training` and `teachers_training` hold fields of TrainingArguments, as given or by default of
    the method; `given` holds the dotted names of the keys that are no defaults.
    """

    model: ModelOptions
    data: DataOptions
    method: MethodOptions
    teachers: TeacherOptions
    evaluation: EvaluationOptions
    compare: CompareOptions
    training: dict[str, Any]
    teachers_training: dict[str, Any]
    given: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def output_dir(self) -> Path:
        return Path(self.training["output_dir"])

    @property
    def stages(self) -> tuple[str, ...]:
        """Return names of the stages that are run: a teacher that is given by path is not."""
        facts = self.method.facts
        trained = [name for name in facts.teachers if getattr(self.teachers, name) is None]
        fitted = ["directions"] if self.method.shift == "mean" and facts.contrasts_views else []
        choice = ["choice"] if self.method.chooses else []
        return (*trained, *choice, *fitted, "alignment", "evaluation")

    def training_value(self, name: str) -> Any:
        """Return the value of a key of TRANSFORMERS_DEFAULTS in the alignment."""
        return self.training.get(name, TRANSFORMERS_DEFAULTS[name])

    @property
    def teacher_training(self) -> dict[str, Any]:
        """Return the TrainingArguments keys of step 1: those under `teachers`, else those of the
        alignment.

        Not taken over are the names in NOT_INHERITED, and one of max_steps and num_train_epochs
        where `teachers` gives the other, since transformers lets max_steps win.
        """
        own, lengths = self.teachers_training, {"max_steps", "num_train_epochs"}
        left_out = NOT_INHERITED | (lengths if lengths & own.keys() else set())
        return {key: value for key, value in self.training.items() if key not in left_out} | own

    def as_dict(self) -> dict[str, Any]:
        """Return the full recipe as run, defaults included, in the form of `load_recipe`."""
        recipe: dict[str, Any] = {}
        for section in (self.method, self.model, self.data):
            recipe |= _values(section)
        recipe["teachers"] = _values(self.teachers) | self.teachers_training
        recipe["evaluation"] = _values(self.evaluation)
        if self.compare != CompareOptions():  # read only by `rahf compare`
            recipe["compare"] = _values(self.compare)
        return recipe | self.training

    def defaults(self) -> dict[str, Any]:
        """Return what a stage was made with by a version of rahf that did not record a key, or
        that recorded a key which was removed since.
        """
        known = {name: removed.inert for name, removed in REMOVED.items()}
        known |= {"kl_temperature": self.method.facts.kl_temperature}
        # Before test_share existed, nothing was held out without a test split.
        shared = self.data.dataset_test_split is None
        for options in (*FLAT, EvaluationOptions):
            known |= _stand_ins(options)
        known["test_share"] = 0.0 if shared else self.data.test_share
        return known | {"teachers": _stand_ins(TeacherOptions)}

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True, width=100)


def load_recipe(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Return the recipe of a YAML file.

    Raises RecipeError with all problems, and FileNotFoundError without a file.

    overrides: {"teachers.learning_rate": 1e-4}, or as on a command line: ["--alpha", "3",
    "--bf16", "--teachers.learning_rate=1e-4"].
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}: give the path of a YAML file")
    given, problems = read_yaml(path)
    if problems and not given:
        raise RecipeError(str(path), problems)
    if not isinstance(overrides, Mapping):
        overrides, wrong = parse_overrides(overrides, key_annotation)
        problems += wrong
    given, wrong = merge_overrides(given, overrides)
    return _build(given, str(path), problems + wrong)


def recipe_from_dict(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a mapping such as `Recipe.as_dict` gives."""
    return _build(given, "recipe", [])


def _build(given: Mapping[Any, Any], source: str, problems: list[str]) -> Recipe:
    flat = {key: value for key, value in given.items() if key not in SECTIONS}
    values = {"": with_defaults(flat)}
    for name in SECTIONS:
        values[name] = given.get(name) or {}
        if not isinstance(values[name], Mapping):
            problems.append(f"{name}: {values[name]!r} is not a mapping of keys to values")
            values[name] = {}
    for name, keys in values.items():
        problems += unknown_keys(name, keys)
    refused: set[str] = set()
    sections: list[Any] = [_section(cls, "", values[""], problems, refused) for cls in FLAT]
    for name, cls in SECTIONS.items():
        sections.append(_section(cls, name, values[name], problems, refused))
    training = _training("", values[""], problems)
    teachers = _training("teachers", values["teachers"], problems)
    given = {"": flat} | {name: values[name] for name in SECTIONS}
    named = frozenset(full_name(name, str(key)) for name, keys in given.items() for key in keys)
    options = [*sections, training, teachers, named]
    recipe = Recipe(*options)
    problems += _problems_between(recipe, refused)
    if problems:
        raise RecipeError(source, problems, recipe)
    return recipe


def _section(
    cls: type, name: str, given: Mapping[Any, Any], problems: list[str], refused: set[str]
) -> Any:
    """Return one dataclass of the recipe; problems are appended, as are the names of refused
    values.

    A default replaces a refused value, so that the others can still be checked.
    """
    kinds, values = annotations(cls), {}
    for spec in dataclasses.fields(cls):
        full, found = full_name(name, spec.name), []
        values[spec.name] = _stand_in(spec)
        if spec.name in given:
            value = coerce(given[spec.name], kinds[spec.name])
            removed = REMOVED_CHOICES.get(f"{full}: {value}")
            found = value_problem(full, value, kinds[spec.name])
            found = [f"{full}: {value} is no longer a choice: {removed}"] if removed else found
            values[spec.name] = value if not found else values[spec.name]
        elif spec.default is spec.default_factory:
            found = [f"{full}: is missing: {spec.metadata['help']}"]
        problems += found
        refused |= {spec.name} if found else set()
    try:
        return cls(**values)
    except OptionError as error:
        # A problem that names a refused key comes from the default in its place.
        lines = [line for line in error.problems if refused.isdisjoint(re.findall(r"\w+", line))]
        problems += [full_name(name, line) for line in lines]
        return SimpleNamespace(**values)


def _values(section: Any) -> dict[str, Any]:
    """Return a section's options, also those of a section that was refused."""
    return copy.deepcopy(vars(section))


def _stand_in(spec: dataclasses.Field) -> Any:
    """Return the default of an option, or text where it is required."""
    default = default_of(spec)
    return "missing" if default is dataclasses.MISSING else default


def _stand_ins(options: type) -> dict[str, Any]:
    return {spec.name: _stand_in(spec) for spec in dataclasses.fields(options)}


def _training(section: str, given: Mapping[Any, Any], problems: list[str]) -> dict[str, Any]:
    """Return the keys that are fields of TrainingArguments, checked."""
    training, wrong = {}, []
    for key in (key for key in given if key in training_annotations()):
        full, kind = full_name(section, key), training_annotations()[key]
        training[key] = coerce(given[key], kind)
        refusal = REFUSED.get(full) or REFUSED.get(key)
        found = [f"{full}: {refusal}"] if refusal else value_problem(full, training[key], kind)
        if key == "report_to" and not found:
            found = [full_name(section, line) for line in tracker_problems(training[key])]
        wrong += found
    if section == "teachers":
        wrong += [
            f"teachers.{key}: teachers have no held-out pairs to be measured on: remove it"
            for key in (*EVALUATING, "load_best_model_at_end")
            if training.get(key) not in (None, False, "no", 0)
        ]
    clashes = [] if wrong else clash_problems(training)
    problems += wrong + [full_name(section, line) for line in clashes]
    return {key: training[key] for key in given if key in training}


def _problems_between(recipe: Recipe, refused: set[str]) -> list[str]:
    """Return the clashes between sections."""
    problems = []
    if not recipe.training.get("output_dir"):
        problems.append("output_dir: is missing: the folder for the results")
    if "method" not in refused:
        problems += teacher_problems(recipe.teachers, recipe.method.method)
        problems += _inherited_problems(recipe) if METHODS[recipe.method.method].teachers else []
    sizes = [recipe.training_value(f"per_device_{part}_batch_size") for part in ("train", "eval")]
    if not refused and not any(value_problem("", size, Count) for size in sizes):
        problems += batch_problems(recipe.method, *sizes)
    strategy = recipe.training.get("eval_strategy", "no")
    if strategy != "no" and recipe.data.dataset_test_split is None and not recipe.data.test_share:
        problems.append(
            f"eval_strategy: {strategy} needs held-out pairs: set dataset_test_split or "
            "test_share, or set eval_strategy: 'no'"
        )
    return problems


def _inherited_problems(recipe: Recipe) -> list[str]:
    """Return problems of what teachers inherit that the alignment does not have."""
    kinds, merged = training_annotations(), recipe.teacher_training
    given = [*recipe.training.items(), *merged.items()]
    if any(value_problem(key, value, kinds[key]) for key, value in given):
        return []
    known = {*clash_problems(recipe.training), *clash_problems(recipe.teachers_training)}
    return [
        f"teachers inherit a key: {line}, or another value under teachers"
        for line in clash_problems(merged)
        if line not in known
    ]
