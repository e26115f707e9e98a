import pytest
import torch
from tiny_models import ARCHITECTURES, DEPTH, VOCABULARY, lora, randomize, tiny_model
from torch import nn

from rahf.models.adapters import attach_policy, load_blocks
from rahf.models.capture import find_blocks, record


def some_ids(rows=2, width=9, seed=1):
    return torch.randint(
        2, VOCABULARY, (rows, width), generator=torch.Generator().manual_seed(seed)
    )


def every_position(ids):
    return torch.arange(ids.numel())


def recorded(model, ids, layers, stop):
    with record(model, layers, every_position(ids), stop=stop) as recording, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return recording.stack()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_l_is_what_the_model_itself_calls_hidden_state_l_plus_1(architecture):
    model, ids = tiny_model(architecture), some_ids()
    with torch.no_grad():
        own = model(input_ids=ids, output_hidden_states=True).hidden_states
    states = recorded(model, ids, range(DEPTH), stop=False)

    for layer in range(DEPTH - 1):
        assert torch.equal(states[layer], own[layer + 1].flatten(0, 1))
        assert not torch.allclose(states[layer], own[layer].flatten(0, 1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_is_recorded_before_the_final_norm(architecture):
    model, ids = tiny_model(architecture), some_ids()
    decoder = model.get_decoder()
    norm = next(
        getattr(decoder, name)
        for name in ("norm", "ln_f", "final_layer_norm")
        if name in dict(decoder.named_children())
    )
    with torch.no_grad():
        own = model(input_ids=ids, output_hidden_states=True).hidden_states[-1].flatten(0, 1)
        last = recorded(model, ids, [DEPTH - 1], stop=False)[0]
        assert torch.allclose(norm(last), own, atol=1e-6)
    assert not torch.allclose(last, own, atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_an_early_exit_records_the_very_bits_of_the_full_pass(architecture, with_adapter):
    model, ids = tiny_model(architecture), some_ids()
    if with_adapter:
        model = attach_policy(model, lora(), range(DEPTH))
        randomize(model, "default", seed=5)
    full = recorded(model, ids, [1, 2], stop=False)
    assert torch.equal(recorded(model, ids, [1, 2], stop=True), full)


def test_an_early_exit_runs_no_block_above_the_last_recorded_one():
    model, ids = tiny_model(), some_ids()
    ran = []
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    recorded(model, ids, [0, 2], stop=True)
    assert ran == [0, 1, 2]


def test_layers_come_in_the_order_in_which_they_were_asked_for():
    model, ids = tiny_model(), some_ids()
    states = recorded(model, ids, [0, 1, 2], stop=True)
    assert torch.equal(recorded(model, ids, [2, 0], stop=True), states[[2, 0]])


def test_only_the_wanted_positions_are_kept_and_row_by_row():
    model, ids = tiny_model(), some_ids()
    everything = recorded(model, ids, [1], stop=True)
    positions = torch.tensor([1, 8, 9, 16])
    with record(model, [1], positions, stop=True) as recording:
        model(input_ids=ids)
    assert torch.equal(recording.stack(), everything[:, positions])


def test_a_bfloat16_model_is_recorded_in_float32():
    model = tiny_model().to(torch.bfloat16)
    assert recorded(model, some_ids(), [1], stop=True).dtype == torch.float32


def test_blocks_are_put_back_after_a_recording():
    model, ids = tiny_model(), some_ids()
    blocks, names = model.model.layers, list(model.state_dict())
    recorded(model, ids, [1], stop=True)
    assert model.model.layers is blocks
    assert list(model.state_dict()) == names


def test_blocks_are_put_back_after_an_exception():
    model, ids = tiny_model(), some_ids()
    blocks = model.model.layers
    with pytest.raises(IndexError), record(model, [1], torch.tensor([10_000]), stop=True):
        model(input_ids=ids)
    assert model.model.layers is blocks
    assert len(blocks) == DEPTH


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_activation_checkpointing_changes_neither_states_nor_gradients(architecture):
    ids, results = some_ids(), []
    for checkpointing in (False, True):
        model = attach_policy(tiny_model(architecture), lora(), range(3))
        randomize(model, "default", seed=5)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        with record(model, [0, 2], every_position(ids), stop=True) as recording:
            model(input_ids=ids, use_cache=False)
        states = recording.stack()
        states.square().sum().backward()
        # What is recorded stays what it was when the blocks ran a second time.
        assert torch.equal(recording.stack(), states)
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append((states.detach(), gradients))

    (states, gradients), (states_checkpointed, gradients_checkpointed) = results
    assert torch.equal(states, states_checkpointed)
    assert len(gradients) == len(gradients_checkpointed) > 0
    for plain, recomputed in zip(gradients, gradients_checkpointed, strict=True):
        assert torch.equal(plain, recomputed)


def test_activation_checkpointing_really_runs_the_blocks_again():
    model, ids = attach_policy(tiny_model(), lora(), range(3)), some_ids()
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    ran = []
    find_blocks(model).modules[0].self_attn.register_forward_hook(lambda *_: ran.append(0))
    with record(model, [0, 1], every_position(ids), stop=True) as recording:
        model(input_ids=ids, use_cache=False)
        recording.stack().sum().backward()
    assert len(ran) == 2


def test_a_decoder_without_a_list_of_blocks_is_refused_by_name():
    class Decoder(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.stem = nn.Linear(1, 1)

    class Model(nn.Module):
        def get_decoder(self):
            return Decoder(tiny_model().config)

    with pytest.raises(ValueError, match=r"Decoder has no list of its 4 decoder blocks.*'stem'"):
        find_blocks(Model())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_cut_off_after_its_first_blocks_has_the_states_of_the_whole(architecture, tmp_path):
    model, ids = tiny_model(architecture), some_ids()
    model.save_pretrained(tmp_path)
    cut = load_blocks(tmp_path, 2, dtype=torch.float32)
    assert len(find_blocks(cut).modules) == 2
    assert not any(parameter.requires_grad for parameter in cut.parameters())
    states = recorded(model, ids, [0, 1], stop=True)
    assert torch.equal(recorded(cut, ids, [0, 1], stop=True), states)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_blocks_above_run_on_the_first_tokens_and_give_their_logits(architecture):
    model, ids = tiny_model(architecture), some_ids()[:1]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        with record(model, [0], every_position(ids), stop=False, tokens_above=3):
            first = model(input_ids=ids, use_cache=False, logits_to_keep=torch.arange(3)).logits
    torch.testing.assert_close(first, whole[:, :3])
