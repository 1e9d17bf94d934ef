"""Tables of architectures: what they say of real module trees, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny import FAMILIES

from surgery.architecture import TABLES, for_config
from surgery.errors import SurgeryError


@pytest.mark.parametrize("family", FAMILIES)
def test_writers_are_all_there(tiny_model, family):
    """Two writers a layer and the embeddings, each a real module that writes vectors of the stream."""
    model = tiny_model(family)
    writers = model.writers()
    assert [w.component for w in writers if w.layer == 2] == ["attention", "mlp"]
    embeddings = [w.component for w in writers if w.layer is None]
    assert embeddings == (["embedding", "positions"] if family == "gpt2" else ["embedding"])
    assert len(writers) == 2 * model.n_layers + len(embeddings)
    for writer in writers:
        weight = model.module(writer.module).weight
        assert isinstance(weight, torch.Tensor)
        assert weight.shape[writer.residual_axis] == model.hidden_size
        assert model.parameter(model.stored_key(writer.weight)) is weight
    assert all((w.post_norm is not None) == family.startswith("gemma") for w in writers if w.layer)


def test_an_unknown_type_is_refused_with_what_to_do():
    with pytest.raises(SurgeryError, match="'mamba'.*surgery/architecture/"):
        for_config({"model_type": "mamba"})


def test_no_type_belongs_to_two_tables():
    types = [name for table in TABLES for name in table.model_types]
    assert len(types) == len(set(types))


def test_keys_with_and_without_the_prefix():
    table = for_config({"model_type": "gpt2"})
    name = "transformer.h.0.mlp.c_proj.weight"
    assert table.stored_key(name, {name}) == name
    assert table.stored_key(name, {"h.0.mlp.c_proj.weight"}) == "h.0.mlp.c_proj.weight"
    assert table.stored_key("lm_head.weight", {name}) is None


def test_tables_need_no_torch():
    code = "import sys, surgery.architecture; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
