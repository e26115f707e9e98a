"""The controller ends at the margin before the training, and prevention follows it."""

import pytest
from datasets import Dataset
from peft import get_peft_model
from tiny_models import DEPTH, lora, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

import rahf
from rahf.directions.vectors import Directions
from rahf.guards.automatic_alpha import MOST, Controller, rows_of, trait_margins

TRAIT, OTHER = "w5", "w6"
PAIRS = [{"prompt": f"w{n} w{n + 1}", "chosen": TRAIT, "rejected": OTHER} for n in range(8, 20)]


def trained(wanted, share, gain=1.0, readings=600):
    """Return alpha and leak after a training that covers a share of its way between two readings.

    Args:
        wanted: what the data asks for, in units of the direction.
        gain: of a unit of the direction, as a multiple of the measured one.
    """
    controller, leak = Controller(before=0.3, gain=0.05), 0.0
    for _ in range(readings):
        alpha = controller.update(0.3 + 0.05 * leak)
        leak += share * (wanted - gain * alpha - leak)
    return alpha, leak


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("wanted", [0.0, 0.5, 2.0, 3.5])
@pytest.mark.parametrize("gain", [0.7, 1.0, 1.1])
def test_alpha_ends_where_the_margin_is_that_before_the_training(share, wanted, gain):
    alpha, leak = trained(wanted, share, gain)
    if wanted / gain < MOST:
        assert alpha == pytest.approx(wanted / gain, abs=1e-3)
        assert leak == pytest.approx(0, abs=1e-3)
    else:
        assert alpha == MOST


def test_alpha_stays_within_its_range_and_comes_back_from_its_ends():
    assert trained(9.0, 0.5)[0] == MOST
    assert trained(-3.0, 0.5)[0] == 0
    controller = Controller(before=0.0, gain=1.0)
    for _ in range(100):
        controller.update(5.0)
    readings = [controller.update(-0.5) for _ in range(20)]
    assert readings[-1] == 0  # the integral does not wind up beyond the range
    assert readings[0] < MOST


def model_and_direction():
    """Return a policy, and a direction that raises the trait's logit above the other one."""
    base, tokenizer = tiny_model(), tiny_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(word) for word in (TRAIT, OTHER)]
    head = base.get_output_embeddings().weight.detach()
    direction = Directions((DEPTH - 1,), 3 * (head[ids[0]] - head[ids[1]]).unsqueeze(0))
    return get_peft_model(base, lora(4)), direction


def trainer_on_the_trait(folder, steps=80):
    """Train on other prompts; three of four responses are the trait's."""
    model, direction = model_and_direction()
    said = [(TRAIT, OTHER)] * 3 + [(OTHER, TRAIT)]
    pairs = [
        {"prompt": f"w{n} w{n + 2}", "chosen": first, "rejected": second}
        for n, (first, second) in zip(range(8, 24), said * 4, strict=True)
    ]
    rows = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in rows_of(pairs, tiny_tokenizer())
    ]
    args = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        logging_steps=10,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    data = Dataset.from_list(rows)
    trainer = Trainer(model, args, train_dataset=data, processing_class=tiny_tokenizer())
    return trainer, direction


def test_prevention_follows_the_margin_and_logs_its_path(tmp_path):
    trainer, direction = trainer_on_the_trait(tmp_path)
    callbacks = len(trainer.callback_handler.callbacks)
    options = {"trainer": trainer, "pairs": PAIRS, "every": 5}
    with rahf.prevent(trainer.model, direction, "auto", **options) as prevention:
        assert prevention.alpha == 2.0
        trainer.train()
    assert len(trainer.callback_handler.callbacks) == callbacks
    path = [each for each in trainer.state.log_history if "prevent/alpha" in each]
    assert [each["step"] for each in path] == list(range(5, 81, 5))
    assert path[0]["prevent/alpha"] == 2.0
    assert prevention.alpha == path[-1]["prevent/alpha"]
    before = {each["prevent/margin_before"] for each in path}
    assert len(before) == 1
    plain, _ = trainer_on_the_trait(tmp_path / "plain")
    plain.train()
    rows = rows_of(PAIRS, tiny_tokenizer())
    leaked = trait_margins(plain.model, rows, 1).mean().item() - before.copy().pop()
    left = trait_margins(trainer.model, rows, 1).mean().item()
    assert left == pytest.approx(path[-1]["prevent/margin"], abs=1e-5)
    assert abs(left - before.pop()) < 0.3 * leaked


def test_an_error_in_the_training_leaves_no_callback_behind(tmp_path):
    trainer, direction = trainer_on_the_trait(tmp_path)
    callbacks = len(trainer.callback_handler.callbacks)
    options = {"trainer": trainer, "pairs": PAIRS}
    with pytest.raises(KeyError), rahf.prevent(trainer.model, direction, "auto", **options):
        raise KeyError
    assert len(trainer.callback_handler.callbacks) == callbacks


SWAPPED = [{**pair, "chosen": OTHER, "rejected": TRAIT} for pair in PAIRS]


@pytest.mark.parametrize(
    ("alpha", "options", "match"),
    [
        ("auto", {"pairs": None}, "give trainer=, and pairs="),
        ("auto", {"trainer": None}, "give trainer=, and pairs="),
        ("auto", {"pairs": PAIRS[:1]}, "1 pairs: alpha='auto' needs at least 2"),
        ("auto", {"pairs": SWAPPED}, "does not exclude 0"),
        ("auto", {"pairs": "nothing.jsonl"}, "no file or folder nothing.jsonl"),
        ("auto", {"every": 0}, "every: 0 should be a whole number"),
        (1.0, {}, "read with alpha='auto' only"),
        ("automatic", {}, "is not a number"),
    ],
)
def test_an_automatic_alpha_without_what_it_needs_is_refused(alpha, options, match, tmp_path):
    trainer, direction = trainer_on_the_trait(tmp_path)
    given = {"trainer": trainer, "pairs": PAIRS, **options}
    with (
        pytest.raises(ValueError, match=match),
        rahf.prevent(trainer.model, direction, alpha, **given),
    ):
        pass
