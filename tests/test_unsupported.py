"""What docs/unsupported.md lists as refused is refused, with what to do instead."""

import datasets
import pytest
from tiny_models import lora, tiny_dataset, tiny_tokenizer
from tiny_runs import QUIET

from rahf.data.pairs import normalize_pairs
from rahf.models import adapter_files, adapters
from rahf.recipe.recipe import RecipeError, recipe_from_dict
from rahf.recipe.unsupported import UNSUPPORTED
from rahf.trainer import RAHFTrainer
from rahf.trainer_config import RAHFConfig

SMALL = {"model_name_or_path": "org/model", "dataset_name": "org/pairs", "output_dir": "out"}
TEXTS = {"prompt": "w2", "chosen": "w3", "rejected": "w4"}


@pytest.mark.parametrize("rows", ["train_dataset", "eval_dataset"])
def test_streamed_rows_are_refused(family, tmp_path, rows):
    data = {"train_dataset": tiny_dataset(2), "eval_dataset": tiny_dataset(2)}
    data[rows] = datasets.Dataset.from_list([TEXTS]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"is IterableDataset.*without streaming=True"):
        RAHFTrainer(
            str(family.base),
            RAHFConfig(str(tmp_path), **QUIET),
            processing_class=tiny_tokenizer(),
            **data,
        )


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_training_argument_that_cannot_be_on_is_refused_everywhere(name, tmp_path):
    message = rf"{name}: true is not supported.*docs/unsupported\.md"
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(SMALL | {name: True})
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(SMALL | {"teachers": {name: True}})
    with pytest.raises(ValueError, match=message):
        RAHFConfig(str(tmp_path), **QUIET, **{name: True})
    recipe_from_dict(SMALL | {name: False})


@pytest.mark.parametrize("column", ["image", "images", "audio", "video"])
def test_pairs_about_pictures_or_sound_are_refused(column):
    data = datasets.Dataset.from_list([{**TEXTS, column: "x.png"}])
    with pytest.raises(ValueError, match=rf"has a column {column}: pairs about pictures"):
        normalize_pairs(data)


def test_dora_on_a_sharded_base_is_refused(family, monkeypatch, tmp_path):
    for module in (adapters, adapter_files):
        monkeypatch.setattr(module, "is_sharded", lambda: True)
    base = family.load_base()
    with pytest.raises(ValueError, match=r"is DoRA.*Set use_dora: false"):
        adapters.attach_policy(base, lora(use_dora=True), range(2))
    adapters.attach_policy(base, lora(), range(2))
