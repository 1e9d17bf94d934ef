"""Several edits in one spec, and edits that come from elsewhere (kind: delta)."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tiny import random_delta

from surgery.delta import save_delta
from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.model import Model
from surgery.spec import AblateEdit, DeltaEdit, EditSpec
from surgery.stack import applied, apply

RED = ["the river is red", "red music", "old red wine"]
OTHER = ["the sun is", "no wine", "green tea"]
NORTH = ["in the north", "the north star", "a city in the north"]
KEY = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def include(model: Model, path, **fields):
    return solve(EditSpec(edits=[DeltaEdit(path=str(path), **fields)]), model)


def test_each_edit_is_solved_on_what_the_ones_before_it_leave(tiny_model):
    model = tiny_model("llama")
    first = AblateEdit(positive=RED, negative=OTHER, layer=2)
    second = AblateEdit(positive=NORTH, negative=OTHER, layer=2, writers=["mlp"])
    together = solve(EditSpec(edits=[first, second]), model)
    one = solve(EditSpec(edits=[first]), model)
    with applied(model, one):
        two = solve(EditSpec(edits=[second]), model)
    alone = solve(EditSpec(edits=[second]), model)
    for key, change in two.tensors.items():
        expected = one.tensors[key].value() + change.value()
        torch.testing.assert_close(together.tensors[key].value(), expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(change.value(), alone.tensors[key].value(), rtol=1e-2, atol=1e-5)
    # Which part of the factors belongs to which edit is on record.
    ranks = [part["ranks"] for part in together.metadata["diagnostics"]]
    assert ranks[0][KEY] == [0, 1] and ranks[1][KEY] == [1, 1]
    assert together.stack == () and two.stack == (one.id,)


def test_a_saved_delta_is_included_and_scaled(tiny_model, tmp_path):
    model = tiny_model("llama")
    delta = random_delta(model.checkpoint, [KEY])
    path = save_delta(delta, tmp_path / "one.delta.safetensors")
    found = include(model, path, scale=-0.5)
    assert torch.equal(found.tensors[KEY].value(), -0.5 * delta.tensors[KEY].value())
    foreign = random_delta(model.checkpoint, [KEY], base_id="0" * 64)
    with pytest.raises(SurgeryError, match="solved for the base 0000"):
        include(model, save_delta(foreign, path))
    on_top = random_delta(model.checkpoint, [KEY], stack=("f" * 64,))
    with pytest.raises(SurgeryError, match="on top of edit ffff"):
        include(model, save_delta(on_top, path))


def test_the_difference_of_two_checkpoints(tiny_model, tmp_path):
    """Embedding and tied head with it."""
    model = tiny_model("llama")
    base = model.checkpoint.path
    delta = random_delta(model.checkpoint, [KEY, EMBEDDING], metadata={"edits_head": True})
    apply([delta], base, tmp_path / "edited")
    found = include(model, tmp_path / "edited", minus=str(base))
    assert set(found.tensors) == {KEY, EMBEDDING}
    with applied(model, delta):
        expected = model.parameter(KEY).clone(), model.head.weight.clone()
    with applied(model, found):
        torch.testing.assert_close(model.parameter(KEY), expected[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(model.head.weight, expected[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "module"),
    [("llama", "mlp.down_proj"), ("llama", "self_attn.q_proj"), ("gpt2", "mlp.c_fc")],
)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
def test_a_lora_adapter_equals_what_peft_merges(tiny_model, tmp_path, family, module, rslora):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = tiny_model(family)
    hf = AutoModelForCausalLM.from_pretrained(model.checkpoint.path)
    conv1d = family == "gpt2"
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=[module.rpartition(".")[2]],
        rank_pattern={f"2.{module}": 2},
        alpha_pattern={f"1.{module}": 3},
        fan_in_fan_out=conv1d,
        use_rslora=rslora,
    )
    adapted = peft.get_peft_model(hf, config)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    found = include(model, tmp_path / "adapter")
    merged = dict(adapted.merge_and_unload().named_parameters())
    assert len(found.tensors) == model.n_layers
    with applied(model, found):
        for name, parameter in model.hf.named_parameters():
            torch.testing.assert_close(parameter, merged[name], rtol=1e-5, atol=1e-6)

    path = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(path.read_text())
    for odd in ({"use_dora": True}, {"peft_type": "IA3"}, {"init_lora_weights": "pissa"}):
        path.write_text(json.dumps({**said, **odd}))
        with pytest.raises(SurgeryError, match="not a plain LoRA"):
            include(model, tmp_path / "adapter")
    os.unlink(path)
    with pytest.raises(SurgeryError, match="no readable adapter_config"):
        include(model, tmp_path / "adapter")
