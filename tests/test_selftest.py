"""The self-test on load refuses every table that leaves something out or gets it wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, tiny_checkpoint

from surgery.architecture import Architecture
from surgery.errors import SurgeryError
from surgery.model import Model, load, selftest


class WithoutAttention(Architecture):
    """A table that forgets one kind of writer."""

    def writers(self, config):
        return [w for w in super().writers(config) if w.component != "attention"]


def with_table(model: Model, kind: type[Architecture] = Architecture, **changes) -> Model:
    fields = {name: getattr(model.architecture, name) for name in Architecture.__dataclass_fields__}
    return replace(model, architecture=kind(**{**fields, **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_right_tables_pass_and_a_missing_writer_does_not(tiny_model, family):
    model = tiny_model(family)
    selftest(model)
    with pytest.raises(SurgeryError, match="missing from the table"):
        selftest(with_table(model, WithoutAttention))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"layout": "linear"}, "c_proj is a Conv1D, the table says linear"),
        ("llama", {"layout": "conv1d"}, "o_proj is a Linear, the table says conv1d"),
        ("llama", {"mlp_out": "mlp.up_proj"}, "up_proj.weight has shape"),
        ("llama", {"attention_out": "self_attn.out_proj"}, "no attribute 'out_proj'|out_proj"),
        ("gpt2", {"attention_bias": False}, "wrong about its bias"),
        ("qwen2", {"mlp_bias": True}, "wrong about its bias"),
        # The wrong norm: Gemma's post-norms left out, or taken for the one before the block.
        ("gemma3", {"mlp_post_norm": None}, "missing from the table"),
        ("gemma2", {"mlp_post_norm": "pre_feedforward_layernorm"}, "missing from the table"),
    ],
)
def test_wrong_tables_are_refused(tiny_model, family, changes, message):
    with pytest.raises(SurgeryError, match=message):
        selftest(with_table(tiny_model(family), **changes))


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    path = tiny_checkpoint(tmp_path, "llama")
    hf = AutoModelForCausalLM.from_pretrained(path)
    hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    hf.save_pretrained(path)
    with pytest.raises(SurgeryError, match="not finite"):
        load(path, device="cpu")
