"""A LoRA adapter merged into its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fetching import (
    lora_folder,
    tiny_folder,
)
from safetensors.torch import load_file, save_file

from surgery.delta import read_adapter
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


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"lora_alpha": 1}, 0.5),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 1, r"layers\.0\.mlp\.down_proj": 16, "down_proj": 3}}, 8),
        ({"alpha_pattern": {"own_proj": 1, "": 1}}, 3),
    ],
)
def test_scaling_follows_peft(tmp_path: Path, change: dict, times: float) -> None:
    """alpha / r with the first pattern that is the module's name or ends it after a dot; rank 2."""
    lora, product = lora_folder(tmp_path / "lora", tiny_folder(tmp_path / "base"), **change)
    [(module, found)] = read_adapter(lora).items()
    assert module == "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(found.value(), times * product)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type=None"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": {"down_proj": "8"}}, "lora_alpha is '8'"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern="),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    base = tiny_folder(tmp_path / "base")
    lora, _ = lora_folder(tmp_path / "lora", base, **change)
    with pytest.raises(SurgeryError, match=message):
        adapter.merge(base, lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["r", "lora_alpha"])
def test_a_config_that_lacks_a_number(tmp_path: Path, missing: str) -> None:
    """The rank is that of the factors; without alpha nobody knows how strong the adapter is."""
    base = tiny_folder(tmp_path / "base")
    lora, change = lora_folder(tmp_path / "lora", base)
    config = json.loads((lora / "adapter_config.json").read_text())
    del config[missing]
    (lora / "adapter_config.json").write_text(json.dumps(config))
    if missing == "r":
        torch.testing.assert_close(next(iter(read_adapter(lora).values())).value(), 3 * change)
        return
    with pytest.raises(SurgeryError) as error:
        adapter.merge(base, lora, tmp_path / "out")
    assert "lora_alpha is None" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


PREFIX = "base_model.model.model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no LoRA factors"),
        ({f"{PREFIX}.lora_A.weight": (2, 6)}, "has lora_A only"),
        ({f"{PREFIX}.lora_A.weight": (2, 6), f"{PREFIX}.lora_B.weight": (4, 3)}, "do not fit"),
        ({f"{PREFIX}.lora_A.weight": (0, 6), f"{PREFIX}.lora_B.weight": (4, 0)}, "do not fit"),
        ({f"{PREFIX}.lora_magnitude_vector": (4,)}, "which is no LoRA factor"),
        ({f"{PREFIX}.lora_A.weight": (2, 5), f"{PREFIX}.lora_B.weight": (4, 2)}, r"shape \(4, 5\)"),
    ],
)
def test_factors_that_do_not_fit(tmp_path: Path, tensors: dict, message: str) -> None:
    base = tiny_folder(tmp_path / "base")
    lora, _ = lora_folder(tmp_path / "lora", base)
    made = {name: torch.ones(shape) for name, shape in tensors.items()}
    save_file(made, lora / "adapter_model.safetensors")
    with pytest.raises(SurgeryError, match=message):
        adapter.merge(base, lora, tmp_path / "out")
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(SurgeryError, match=r"adapter_model\.safetensors"):
        adapter.merge(base, lora, tmp_path / "out")
