"""Adapters that PEFT merges to exactly our weights; control vectors that read back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.delta import Delta, Dense, LowRank, materialize, save_delta
from surgery.directions import Direction
from surgery.errors import SurgeryError
from surgery.export import to_control_vector, to_lora
from tests.tiny import tiny_checkpoint

NAMES = {
    "llama": ["model.layers.{}.mlp.down_proj.weight", "model.layers.{}.self_attn.o_proj.weight"],
    "gpt2": ["transformer.h.{}.mlp.c_proj.weight", "transformer.h.{}.attn.c_proj.weight"],
}
NAMES["gemma3"] = NAMES["llama"]
EMBEDDINGS = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}


def _delta(base: Path, keys: dict[str, int], **fields: Any) -> Delta:
    """Random factors of the given ranks (0: dense) for tensors of a checkpoint."""
    checkpoint = Checkpoint.open(base)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Any] = {}
    for key, rank in keys.items():
        shape = tuple(checkpoint.tensors[key].shape)
        if rank == 0:
            tensors[key] = Dense(torch.randn(shape, generator=generator))
        else:
            tensors[key] = LowRank(
                A=torch.randn(rank, shape[1], generator=generator),
                B=torch.randn(shape[0], rank, generator=generator),
            )
    return Delta(tensors, base_id=checkpoint.id, **fields)


def _merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Weights of the base with the adapter merged by PEFT itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT's own use of older torch names.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged: Any = PeftModel.from_pretrained(model, str(adapter))
        merged = merged.merge_and_unload(safe_merge=True)
    return {name: p.detach() for name, p in merged.named_parameters()}


def _check(base: Path, adapter: Path, delta: Delta) -> None:
    merged, checkpoint = _merged(base, adapter), Checkpoint.open(base)
    for key in checkpoint.tensors:
        stored = checkpoint.read(key)
        if key not in delta.tensors:
            assert torch.equal(merged[key], stored), key
            continue
        ours = materialize(stored, [delta.tensors[key]], torch.float32)
        assert not torch.allclose(ours, stored)
        torch.testing.assert_close(merged[key], ours, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_peft_merges_it_to_our_weights(tmp_path: Path, family: str) -> None:
    base = tiny_checkpoint(tmp_path, family)
    # One rank is the most common, others differ; layers 1 and 3 stay as they are.
    keys = {name.format(layer): 2 for name in NAMES[family] for layer in (0, 2)}
    keys[NAMES[family][0].format(2)] = 5
    delta = _delta(base, keys)
    found = to_lora(delta, tmp_path / "adapter", base)
    assert found.exact and found.modules == 4
    config = json.loads((found.path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 2
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert list(config["rank_pattern"].values()) == [5]
    assert config["fan_in_fan_out"] == (family == "gpt2")
    _check(base, found.path, delta)


def test_a_single_rank_needs_no_patterns(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    delta = _delta(base, {NAMES["llama"][0].format(1): 1})
    found = to_lora(delta, tmp_path / "adapter", base)
    config = json.loads((found.path / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (1, {})
    _check(base, found.path, delta)
    card = (found.path / "README.md").read_text()
    assert delta.base_id in card and delta.id in card


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embeddings_of_an_untied_model(tmp_path: Path, family: str) -> None:
    base = tiny_checkpoint(tmp_path, family, tie_word_embeddings=False)
    delta = _delta(base, {EMBEDDINGS[family]: 3, NAMES[family][0].format(0): 1})
    _check(base, to_lora(delta, tmp_path / "adapter", base).path, delta)


@pytest.mark.parametrize("fields", [{"untie": True}, {"metadata": {"edits_head": True}}])
def test_tied_embeddings_are_refused(tmp_path: Path, fields: Any) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    delta = _delta(base, {EMBEDDINGS["llama"]: 1}, **fields)
    with pytest.raises(SurgeryError, match="output head is the same tensor"):
        to_lora(delta, tmp_path / "adapter", base)
    assert not (tmp_path / "adapter").exists()


def test_it_needs_no_base(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        base = tiny_checkpoint(tmp_path, family)
        delta = _delta(base, {NAMES[family][0].format(1): 2})
        with_base = to_lora(delta, tmp_path / f"{family}-1", base).path
        without = to_lora(delta, tmp_path / f"{family}-2").path
        name = "adapter_model.safetensors"
        from safetensors.torch import load_file

        one, other = load_file(with_base / name), load_file(without / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_an_adapter_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "gpt2")
    out = tmp_path / "adapter"
    with pytest.raises(SurgeryError, match="c_proj.bias, a bias"):
        to_lora(_delta(base, {"transformer.h.0.mlp.c_proj.bias": 0}), out, base)
    with pytest.raises(SurgeryError, match="is dense .*--truncate"):
        to_lora(_delta(base, {NAMES["gpt2"][0].format(0): 0}), out, base)
    with pytest.raises(SurgeryError, match="changes nothing"):
        to_lora(Delta({}, base_id="x"), out)
    other = tiny_checkpoint(tmp_path, "gpt2", seed=1)
    with pytest.raises(SurgeryError, match="was solved for the base"):
        to_lora(_delta(base, {NAMES["gpt2"][0].format(0): 1}), out, other)
    assert not out.exists()


def test_truncation_is_the_best_of_its_rank_and_says_what_it_lost(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    key = NAMES["llama"][0].format(0)
    delta = _delta(base, {key: 0})
    found = to_lora(delta, tmp_path / "adapter", base, truncate=4)
    change = delta.tensors[key].value()
    u, s, v = torch.linalg.svd(change)
    best = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    merged = _merged(base, found.path)[key] - Checkpoint.open(base).read(key)
    torch.testing.assert_close(merged, best, rtol=1e-4, atol=1e-5)
    lost = float((change - best).norm() / change.norm())
    assert found.residual[key] == pytest.approx(lost, rel=1e-4) and not found.exact
    assert "approximation" in (found.path / "README.md").read_text()
    # At full rank nothing is lost.
    whole = to_lora(delta, tmp_path / "whole", base, truncate=999)
    torch.testing.assert_close(
        _merged(base, whole.path)[key], Checkpoint.open(base).read(key) + change, rtol=0, atol=1e-5
    )


# ---------------------------------------------------------------------- control vectors
def _direction(base: Path, layer: int = 3) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    vector /= vector.norm()
    return Direction(vector, 3 * vector, -2 * vector, layer, -1, Checkpoint.open(base).id)


def test_a_control_vector_reads_back(tmp_path: Path) -> None:
    from gguf import GGUFReader

    base = tiny_checkpoint(tmp_path, "llama")
    direction = _direction(base)
    path = to_control_vector(direction, tmp_path / "v.gguf", base, layers=[2, 3])
    reader = GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"  # type: ignore[union-attr]
    assert reader.get_field("controlvector.model_hint").contents() == "llama"  # type: ignore[union-attr]
    assert reader.get_field("controlvector.layer_count").contents() == 2  # type: ignore[union-attr]
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    total = sum(torch.tensor(tensor.data) for tensor in reader.tensors)
    torch.testing.assert_close(total, 5 * direction.vector)


def test_control_vectors_that_cannot_be(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    other = tiny_checkpoint(tmp_path, "llama", seed=1)
    with pytest.raises(SurgeryError, match="layer 1 is none of them"):
        to_control_vector(_direction(base, layer=1), tmp_path / "v.gguf", base)
    with pytest.raises(SurgeryError, match="was found in the checkpoint"):
        to_control_vector(_direction(base), tmp_path / "v.gguf", other)
    assert not (tmp_path / "v.gguf").exists()


# ---------------------------------------------------------------------- the command
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    file = save_delta(_delta(base, {NAMES["llama"][0].format(1): 2}), tmp_path / "d.safetensors")
    out = tmp_path / "adapter"
    assert main(["export", str(file), "--format", "lora", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] is True
    assert main(["export", str(file), "--format", "lora", "-o", str(out)]) == 1
    direction = _direction(base).save(tmp_path / "r.safetensors")
    words = ["export", str(direction), "--format", "control-vector", "-o", str(tmp_path / "cv")]
    assert main(words) == 1
    assert main([*words, "--base", str(base)]) == 0
    assert (tmp_path / "cv" / "r.gguf").exists()
    capsys.readouterr()
    assert main([*words[:1], str(file), *words[2:], "--base", str(base)]) == 1
    assert "is no direction" in capsys.readouterr().err
