"""Undo gives back what was there, byte for byte, and removing an edit equals never having made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_disk import everything, keys_of
from tiny import random_delta, tiny_checkpoint

from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.model import load
from surgery.spec import EditSpec
from surgery.stack import apply, read_record, undo


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_base_comes_back_byte_for_byte(tmp_path, family, shard_size):
    """Tensors, names of files, config and index, with a head that was untied in between."""
    base = tiny_checkpoint(tmp_path, family, dtype=torch.bfloat16, shard_size=shard_size)
    checkpoint = Checkpoint.open(base)
    embedding = next(k for k in checkpoint.tensors if "embed_tokens" in k or "wte" in k)
    one = random_delta(checkpoint, keys_of(checkpoint, 1), 1)
    two = replace(random_delta(checkpoint, [embedding, *keys_of(checkpoint, 1)], 2), untie=True)
    apply([one, two], base, tmp_path / "edited", files={"report.html": "x"})
    assert "lm_head.weight" in Checkpoint.open(tmp_path / "edited").tensors
    undo(tmp_path / "edited", tmp_path / "back")
    assert everything(tmp_path / "back") == everything(base)
    assert Checkpoint.open(tmp_path / "back").id == checkpoint.id

    undo(tmp_path / "edited", tmp_path / "first", two.id[:8])
    apply([one], base, tmp_path / "only first")
    assert everything(tmp_path / "first") == everything(tmp_path / "only first")


def test_files_of_the_base_that_were_replaced_come_back(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    (base / "README.md").write_bytes("# Tiny, by Zoë\r\nin Latin-1: \xe9\r\n".encode("latin-1"))
    (base / "notes.txt").write_text("of the base")
    checkpoint = Checkpoint.open(base)
    one, two = (random_delta(checkpoint, keys_of(checkpoint, n), n) for n in (1, 2))
    apply([one], base, tmp_path / "first", files={"notes.txt": "of the edit", "report.html": "x"})
    assert (tmp_path / "first" / "notes.txt").read_text() == "of the edit"
    # A further edit makes the first one's report stale, and the base's file is its own again.
    apply([two], tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second" / "report.html").exists()
    assert (tmp_path / "second" / "notes.txt").read_text() == "of the base"
    for edited in ("first", "second"):
        undo(tmp_path / edited, tmp_path / f"{edited} undone")
        assert everything(tmp_path / f"{edited} undone") == everything(base)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_removing_one_equals_never_having_made_it(tmp_path, which):
    base = tiny_checkpoint(tmp_path, "gpt2", dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(base)
    deltas = [random_delta(checkpoint, keys_of(checkpoint, n, n + 1), n) for n in (0, 1, 2)]
    apply(deltas, base, tmp_path / "all")
    undo(tmp_path / "all", tmp_path / "without", deltas[which].id)
    apply([d for d in deltas if d is not deltas[which]], base, tmp_path / "never")
    assert everything(tmp_path / "without") == everything(tmp_path / "never")


def test_which_edit_is_meant(tmp_path):
    base = tiny_checkpoint(tmp_path, "llama")
    checkpoint = Checkpoint.open(base)
    one, two = (random_delta(checkpoint, keys_of(checkpoint, n), n) for n in (1, 2))
    apply([one, two], base, tmp_path / "edited")
    undo(tmp_path / "edited", tmp_path / "by name", "random 1")
    assert [e["id"] for e in read_record(tmp_path / "by name")["edits"]] == [two.id]
    for text, word in (("nothing", "no edit 'nothing'.*random 1"), ("", "more than one edit")):
        with pytest.raises(SurgeryError, match=word):
            undo(tmp_path / "edited", tmp_path / "out", text)
    with pytest.raises(SurgeryError, match="is not edited"):
        undo(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def on_top(tmp_path, own_cache) -> tuple[Path, list]:
    """A base with two ablations; the second was solved on the model as the first left it."""
    base = tiny_checkpoint(tmp_path, "llama")

    def spec(name: str, positive: list[str]) -> EditSpec:
        return EditSpec.model_validate(
            {
                "name": name,
                "edits": [
                    {
                        "kind": "ablate",
                        "positive": positive,
                        "negative": ["the sun is", "no wine for the people", "a small star"],
                        "layer": 2,
                    }
                ],
            }
        )

    first = solve(spec("first", ["the river is red", "red music", "old red wine"]), load(base))
    apply([first], base, tmp_path / "first")
    second_spec = spec("second", ["in the north", "the north star", "a city in the north"])
    second = solve(second_spec, load(tmp_path / "first"))
    assert second.stack == (first.id,)
    apply([second], tmp_path / "first", tmp_path / "both")
    return tmp_path / "both", [first, second, second_spec]


def test_an_edit_that_others_were_solved_on_top_of(tmp_path, on_top):
    """Refused, kept as it is, or solved again: then as if it had been solved on the base."""
    folder, (first, second, second_spec) = on_top
    base = tmp_path / "tiny-llama-0"
    with pytest.raises(
        SurgeryError, match=f"second \\({second.id[:12]}\\) was solved on top of first"
    ):
        undo(folder, tmp_path / "out", "first")
    assert not (tmp_path / "out").exists()

    kept = undo(folder, tmp_path / "kept", "first", later="keep")
    assert kept.edits == [second.id]

    again = undo(folder, tmp_path / "again", "first", later="solve")
    fresh = solve(second_spec, load(base))
    assert fresh.id != second.id and fresh.stack == ()
    assert again.edits == [fresh.id]
    apply([fresh], base, tmp_path / "fresh")
    written, expected = everything(tmp_path / "again"), everything(tmp_path / "fresh")
    assert written["model.safetensors"] == expected["model.safetensors"]
