"""A LoRA adapter merged into its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fetching import (
    lora_folder,
    tiny_folder,
)
from safetensors.torch import load_file

from surgery.errors import SurgeryError
from surgery.fetch import adapter


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    lora, change = lora_folder(tmp_path / "lora", base)
    changed = adapter.merge(base, lora, tmp_path / "out")
    key = "model.layers.0.mlp.down_proj.weight"
    assert changed == [key]
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    torch.testing.assert_close(after[key], before[key] + 3.0 * change)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_scaling_follows_peft() -> None:
    config = {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"down_proj": 16},
        "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 64},
    }
    assert adapter.scaling(config, "model.layers.0.self_attn.o_proj") == 2.0
    assert adapter.scaling(config, "model.layers.0.mlp.down_proj") == 0.5
    assert adapter.scaling(config, "model.layers.1.mlp.down_proj") == 4.0
    assert adapter.scaling({**config, "use_rslora": True}, "model.layers.1.mlp.down_proj") == 16.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    base = tiny_folder(tmp_path / "base")
    lora, _ = lora_folder(tmp_path / "lora", base, **change)
    with pytest.raises(SurgeryError, match=message):
        adapter.merge(base, lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()
