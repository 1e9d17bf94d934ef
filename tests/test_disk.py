"""apply on disk: the same weights as in memory, and not a byte more than that changed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, random_delta, tiny_checkpoint

from surgery.architecture import for_config
from surgery.checkpoint import Checkpoint, write_edited
from surgery.delta import Delta, LowRank, save_delta
from surgery.errors import SurgeryError
from surgery.model import load
from surgery.stack import applied, apply, check, read_record


def keys_of(checkpoint: Checkpoint, *layers: int) -> list[str]:
    """Weights and biases of the writers of some layers."""
    table = for_config(checkpoint.config)
    names = [
        name
        for writer in table.writers(checkpoint.config)
        if writer.layer in layers
        for name in (writer.weight, f"{writer.module}.bias")
    ]
    stored = (table.stored_key(name, checkpoint.tensors) for name in names)
    return [key for key in stored if key is not None]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    """By nothing but transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(torch.arange(5, 15)[None]).logits


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_disk_equals_memory(tmp_path, family, stored):
    base = tiny_checkpoint(tmp_path, family, dtype=stored)
    checkpoint = Checkpoint.open(base)
    keys = keys_of(checkpoint, 1, 2)
    deltas = [random_delta(checkpoint, keys, seed) for seed in (1, 2)]
    before = everything(base)
    done = apply(deltas, base, tmp_path / "edited")

    model = load(base, device="cpu", dtype=torch.float32)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad(), applied(model, deltas):
        inside = model.hf(ids).logits
    assert torch.equal(logits_of(tmp_path / "edited"), inside)
    assert not torch.allclose(logits_of(base), inside, atol=1e-3)

    assert done.changed == sorted(keys) and done.edits == [delta.id for delta in deltas]
    edited = Checkpoint.open(tmp_path / "edited")
    assert [k for k in edited.tensors if edited.hash(k) != checkpoint.hash(k)] == sorted(keys)
    assert everything(base) == before


def test_an_edited_folder_says_what_it_is(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    checkpoint = Checkpoint.open(base)
    delta = random_delta(checkpoint, keys_of(checkpoint, 1))
    path = save_delta(delta, tmp_path / "one.delta.safetensors")
    audit = {"verdict": "accept", "reason": "because"}
    apply([path], base, tmp_path / "edited", files={"report.json": "{}"}, audit=audit)
    record = read_record(tmp_path / "edited")
    assert record["base_id"] == checkpoint.id and record["base"] == base.name
    assert [entry["id"] for entry in record["edits"]] == [delta.id]
    assert record["audit"] == audit
    kept = tmp_path / "edited" / record["edits"][0]["file"]
    assert kept.read_bytes() == path.read_bytes()
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "license: mit" in card and "# Tiny" in card
    assert "This checkpoint is edited" in card and delta.id[:12] in card
    assert (tmp_path / "edited" / "report.json").read_text() == "{}"


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("untie", [False, True], ids=["", "untie"])
def test_one_after_the_other_equals_both_at_once(tmp_path, shard_size, untie):
    """Each tensor is summed from the root base, so nothing is rounded twice: every file is the same."""
    base = tiny_checkpoint(tmp_path, "llama", dtype=torch.bfloat16, shard_size=shard_size)
    assert (len(Checkpoint.open(base).shards) > 1) == (shard_size != "1GB")
    checkpoint = Checkpoint.open(base)
    keys = [*keys_of(checkpoint, 0, 1), *(["model.embed_tokens.weight"] if untie else [])]
    one = replace(random_delta(checkpoint, keys, 1, size=3e-4), untie=untie)
    two = random_delta(checkpoint, keys_of(checkpoint, 1, 2), 2, size=3e-4)
    apply([one], base, tmp_path / "first", files={"report.html": "of the first"})
    apply([two], tmp_path / "first", tmp_path / "second")
    apply([one, two], base, tmp_path / "at once")
    assert everything(tmp_path / "second") == everything(tmp_path / "at once")

    # Rounding after each edit would have given something else.
    twice = Checkpoint.open(tmp_path / "first")
    key = keys_of(checkpoint, 1)[0]
    rounded = (twice.read(key).float() + two.tensors[key].value()).bfloat16()
    assert not torch.equal(rounded, Checkpoint.open(tmp_path / "second").read(key))


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"], ids=["single", "sharded"])
def test_an_untied_head_keeps_the_base_embedding(tmp_path, shard_size):
    base = tiny_checkpoint(tmp_path, "gemma3", shard_size=shard_size)
    checkpoint = Checkpoint.open(base)
    key = "model.embed_tokens.weight"
    delta = replace(random_delta(checkpoint, [key]), untie=True)
    apply([delta], base, tmp_path / "edited")
    edited = Checkpoint.open(tmp_path / "edited")
    assert not edited.tied_embeddings
    assert torch.equal(edited.read("lm_head.weight"), checkpoint.read(key))
    model = load(base, device="cpu")
    with torch.no_grad(), applied(model, delta):
        inside = model.hf(torch.arange(5, 15)[None]).logits
    assert torch.equal(logits_of(tmp_path / "edited"), inside)


def test_a_head_stored_twice_is_edited_twice(tmp_path):
    """A tied checkpoint may hold the head as well: transformers unties two that differ."""
    from safetensors.torch import load_file, save_file

    base = tiny_checkpoint(tmp_path, "llama")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(base)
    both = random_delta(checkpoint, ["model.embed_tokens.weight"], metadata={"edits_head": True})
    apply([both], base, tmp_path / "edited")
    edited = Checkpoint.open(tmp_path / "edited")
    assert edited.tied_embeddings and edited.hash("lm_head.weight") != checkpoint.hash(
        "lm_head.weight"
    )
    model = load(base, device="cpu")
    with torch.no_grad(), applied(model, both):
        inside = model.hf(torch.arange(5, 15)[None]).logits
    assert torch.equal(logits_of(tmp_path / "edited"), inside)


def test_refused_deltas_leave_nothing(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    other = tiny_checkpoint(tmp_path, "llama", seed=1)
    checkpoint = Checkpoint.open(base)
    delta = random_delta(checkpoint, keys_of(checkpoint, 1))
    top = random_delta(checkpoint, keys_of(checkpoint, 2), 1, stack=(delta.id,))
    key = "model.layers.1.mlp.down_proj.weight"
    ones = LowRank(A=torch.full((1, 48), 1e30), B=torch.full((32, 1), 1e30))
    huge = Delta({key: ones}, checkpoint.id)  # finite factors, a product that is not
    before = set(os.listdir(tmp_path))
    for deltas, where, word in (
        ([delta], other, "solved for the base"),
        ([top], base, "on top of"),
        ([top, delta], base, "on top of"),
        ([huge], base, "not finite"),
        ([tmp_path / "missing.delta.safetensors"], base, "missing.delta"),
    ):
        with pytest.raises(SurgeryError, match=word):
            apply(deltas, where, tmp_path / "out")
        assert set(os.listdir(tmp_path)) == before
    with pytest.raises(SurgeryError, match="solved for the base"):
        apply([delta], base, tmp_path / "edited")
        apply(
            [random_delta(Checkpoint.open(other), keys_of(checkpoint, 1))], tmp_path / "edited", "x"
        )
    # What was not made for this base can still be forced on it, and is checked for its shape.
    apply([delta], other, tmp_path / "forced", force=True)
    assert json.loads((tmp_path / "forced" / "surgery.json").read_text())["edits"]


def test_a_damaged_lineage_is_refused(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    checkpoint = Checkpoint.open(base)
    one, two = (random_delta(checkpoint, keys_of(checkpoint, 1), seed) for seed in (1, 2))
    apply([one], base, tmp_path / "edited")
    file = tmp_path / "edited" / read_record(tmp_path / "edited")["edits"][0]["file"]
    save_delta(two, file)
    with pytest.raises(SurgeryError, match="is not the delta surgery.json says"):
        apply([two], tmp_path / "edited", tmp_path / "out")
    for record in ("{}", '{"base_id": "x", "edits": [{"id": "y", "name": "z"}]}'):
        text = json.dumps({"format": "checkpoint/1", **json.loads(record)})
        (tmp_path / "edited" / "surgery.json").write_text(text)
        with pytest.raises(SurgeryError, match="surgery.json is damaged"):
            apply([two], tmp_path / "edited", tmp_path / "out")


def test_conflicts_come_back_as_warnings(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    checkpoint = Checkpoint.open(base)
    one, two = (random_delta(checkpoint, keys_of(checkpoint, 1), seed) for seed in (1, 2))
    apply([one], base, tmp_path / "edited")
    done = apply([two], tmp_path / "edited", tmp_path / "both")
    assert len(done.warnings) == 1 and "both change" in done.warnings[0]
    from surgery.stack import Lineage

    assert done.warnings == check(Lineage.of(checkpoint), [one, two])


def test_only_a_shard_of_its_own_can_be_left_out(tmp_path):
    base = Checkpoint.open(tiny_checkpoint(tmp_path, "llama"))
    with pytest.raises(SurgeryError, match="cannot be left out"):
        write_edited(base, tmp_path / "out", {}, removed=["model.embed_tokens.weight"])
    assert not (tmp_path / "out").exists()
