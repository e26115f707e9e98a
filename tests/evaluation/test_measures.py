"""What models are measured on: preferences, answers, loss and divergence on unrelated text."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny_models import EOS, Family, tiny_model, tiny_pairs, tiny_tokenizer

from rahf.data.prompts import PromptForm
from rahf.evaluation.divergence import read_texts
from rahf.evaluation.measures import HeldOut, Measures, measure_model, model_figures
from rahf.models.adapters import at_strength, frozen_pass
from rahf.models.likelihood import preference_margins

TEXTS = [[2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12, 13]]


def held_out() -> HeldOut:
    tokenizer = tiny_tokenizer()
    form = PromptForm("words", lambda chat: tokenizer(chat[-1]["content"])["input_ids"])
    chats = [[{"role": "user", "content": text}] for text in ("w2 w3", "w4 w5 w6", "w7")]
    return HeldOut(tiny_pairs(3), chats, form, TEXTS, 4)


def adapted(family: Family) -> PeftModel:
    return PeftModel.from_pretrained(family.load_base(), family.adapters["positive"]).eval()


# What a strength is


def test_a_strength_is_a_factor_on_the_adapters_update(family):
    ids = torch.tensor([[2, 3, 4, 5]])
    model, base, doubled = adapted(family), family.load_base(), adapted(family)
    for name, parameter in doubled.named_parameters():
        if "lora_B" in name:
            parameter.data *= 2
    with torch.no_grad():
        before = model(ids).logits
        for strength, other in ((0, base), (1, adapted(family)), (2, doubled), (None, model)):
            with at_strength(model, strength):
                torch.testing.assert_close(model(ids).logits, other(ids).logits)
        assert torch.equal(model(ids).logits, before)


def test_a_base_alone_is_measured_as_strength_zero_of_an_adapter(family):
    [alone] = measure_model(family.load_base(), tiny_tokenizer(), held_out(), [0.0])
    [off] = measure_model(adapted(family), tiny_tokenizer(), held_out(), [0.0])
    assert alone == off
    assert alone.text_kl == [0.0] * 3


def test_a_model_as_it_is_set_is_measured_as_the_strength_it_is_set_to(family):
    model, tokenizer = adapted(family), tiny_tokenizer()
    base, policy = measure_model(model, tokenizer, held_out(), [0, 1])
    assert base.answers != policy.answers
    for adapter, expected in ((None, base), ("default", policy)):
        with frozen_pass(model, adapter):
            [found] = measure_model(model, tokenizer, held_out())
        assert found.strength is None
        assert replace(found, strength=expected.strength, text_kl=expected.text_kl) == expected


# Text


def test_losses_and_divergences_are_those_of_one_text_at_a_time(family):
    model, given = adapted(family), held_out()
    found = measure_model(model, tiny_tokenizer(), given, [0.5, 1.0])
    for measures in found:
        assert measures.text_tokens == [3, 2, 4]  # the first token has nothing before it
        for index, ids in enumerate(given.texts):
            with torch.no_grad():
                base = family.load_base()(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
                with at_strength(model, measures.strength):
                    logs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            loss = -sum(logs[at, token] for at, token in enumerate(ids[1:]))
            kl = sum(
                (row.exp() * (row - other)).sum() for row, other in zip(base, logs, strict=True)
            )
            assert measures.text_loss[index] == pytest.approx(loss.item(), rel=1e-4)
            assert measures.text_kl[index] == pytest.approx(kl.item(), rel=1e-3)
    assert found[1].text_kl[0] > found[0].text_kl[0] > 0
    assert found[0].preference_margins == []
    assert len(found[1].preference_margins) == 3


def test_how_texts_are_read_together_changes_nothing(monkeypatch):
    model = tiny_model()
    for count in (1, 2, 3):
        monkeypatch.setattr("rahf.evaluation.divergence.TEXTS_IN_FORWARD", count)
        [found] = read_texts(model, TEXTS, EOS)
        for loss, text in zip(found.losses.tolist(), TEXTS, strict=True):
            logs = model(torch.tensor([text])).logits[0].log_softmax(-1)
            expected = -sum(logs[place, token].item() for place, token in enumerate(text[1:]))
            assert loss == pytest.approx(expected, 1e-5)


# The complete table


def test_the_measures_hold_every_prompt_text_and_pair():
    model, tokenizer, given = tiny_model(), tiny_tokenizer(), held_out()
    [found] = measure_model(model, tokenizer, given)
    sizes = [len(part) for part in (found.answers, found.text_loss, found.preference_margins)]
    assert sizes == [3, 3, 3]
    expected = preference_margins(model, given.pairs, EOS).tolist()
    assert found.preference_margins == expected
    tied = Measures(None, [], [], [], [], [0.5, 0.0, -0.5, 0.0])
    assert model_figures(tied, {})["preference_accuracy"] == 0.5
    figures = model_figures(found, {"judged_mean": 0.25})
    assert figures["preference_accuracy"] == sum(margin > 0 for margin in expected) / 3
    assert figures["preference_margin"] == pytest.approx(sum(expected) / 3)
    assert figures["answers"] == 3
    assert figures["judged_mean"] == 0.25
    assert figures["unrelated_loss"] == pytest.approx(sum(found.text_loss) / (3 + 2 + 4))


def test_what_is_not_asked_for_is_not_measured():
    nothing = replace(held_out(), pairs=(), chats=[], texts=[])
    [found] = measure_model(tiny_model(), tiny_tokenizer(), nothing)
    assert found == Measures(None, [], [], [], [], [])
    assert set(model_figures(found, {}).values()) == {None, 0}
