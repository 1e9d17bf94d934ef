"""Deltas: their algebra, their identity, and the file they are kept in."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgery.delta import Delta, Dense, LowRank, add, combine, load_delta, materialize, save_delta
from surgery.errors import SurgeryError


def low_rank(rank: int = 2, seed: int = 0, shape: tuple[int, int] = (6, 9)) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, shape[1], generator=g)
    return LowRank(A=A, B=torch.randn(shape[0], rank, generator=g))


def delta(**changes) -> Delta:
    tensors = {"w": low_rank(), "b": Dense(torch.arange(6.0))}
    return replace(Delta(tensors, base_id="base", base_hashes={"w": "1", "b": "2"}), **changes)


# ---------------------------------------------------------------------- algebra
@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_sums_are_sums(ranks, seed):
    """Whether the factors are joined or, beyond full rank, multiplied out."""
    changes = [low_rank(rank, seed + i) for i, rank in enumerate(ranks)]
    total = add([*changes])
    expected = torch.stack([c.B.double() @ c.A.double() for c in changes]).sum(0)
    torch.testing.assert_close(total.value().double(), expected, rtol=1e-5, atol=1e-5)
    assert total.rank <= 6
    assert total.norm() == pytest.approx(float(expected.norm()), rel=1e-5)
    assert total.scaled(-2).norm() == pytest.approx(2 * total.norm(), rel=1e-6)


def test_combine_keeps_apart_what_is_apart():
    one, two = low_rank(1, 1), low_rank(1, 2)
    joined = combine([{"a": one, "b": one}, {"b": two, "c": two}])
    assert set(joined) == {"a", "b", "c"} and joined["a"] is one and joined["c"] is two
    torch.testing.assert_close(joined["b"].value(), one.value() + two.value())


def test_materialize_rounds_once():
    """Two changes too small to show alone in bfloat16 show together."""
    base = torch.ones(1, 1, dtype=torch.bfloat16)
    small = Dense(torch.full((1, 1), 2.0**-9))  # a quarter of the distance to the next number
    assert materialize(base, [small], torch.bfloat16).item() == 1
    twice = materialize(base, [small, small, small], torch.bfloat16)
    assert twice.item() == 1 + 2.0**-7 and twice.dtype == torch.bfloat16
    with pytest.raises(SurgeryError, match="does not fit"):
        materialize(base, [Dense(torch.zeros(2))], torch.bfloat16)


# ---------------------------------------------------------------------- identity
def test_the_id_is_what_is_done_to_which_base():
    one = delta()
    assert one.id == delta(metadata={"spec": {"name": "x"}}).id
    others = [
        delta(base_id="other"),
        delta(stack=("below",)),
        delta(untie=True),
        one.scaled(2),
        one.replace({"w": one.tensors["w"]}),
        one.replace({"v": one.tensors["w"], "b": one.tensors["b"]}),
        one.replace({"w": Dense(one.tensors["w"].value()), "b": one.tensors["b"]}),
    ]
    assert len({one.id, *(other.id for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (Dense(torch.tensor([torch.nan])), "not finite"),
        (Dense(torch.zeros(2, dtype=torch.bfloat16)), "float32"),
        (LowRank(A=torch.zeros(2, 3), B=torch.zeros(3, 1)), "do not fit"),
        (LowRank(A=torch.zeros(0, 3), B=torch.zeros(3, 0)), "do not fit"),
    ],
)
def test_what_cannot_be_a_change_names_its_tensor(change, word):
    with pytest.raises(SurgeryError, match=f"delta of w.*{word}"):
        Delta({"w": change}, base_id="base")


# ---------------------------------------------------------------------- the file
def test_round_trip(tmp_path):
    one = delta(stack=("a", "b"), untie=True, metadata={"spec": {"name": "é"}, "seed": 3})
    path = save_delta(one, tmp_path / "one.delta.safetensors")
    back = load_delta(path)
    assert back.id == one.id
    fields = ("base_id", "base_hashes", "stack", "untie", "metadata")
    assert all(getattr(back, f) == getattr(one, f) for f in fields)
    w = back.tensors["w"]
    assert isinstance(w, LowRank) and torch.equal(w.value(), one.tensors["w"].value())
    again = save_delta(one, tmp_path / "again.delta.safetensors")
    assert again.read_bytes() == path.read_bytes()


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


def nan(tensors, _head):
    tensors["b.dense"][0] = torch.nan


def changed(tensors, _head):
    tensors["b.dense"][0] += 1


def half_a_pair(tensors, _head):
    del tensors["w.lora_B"]


def ill_shaped(tensors, _head):
    tensors["w.lora_B"] = torch.zeros(6, 3)


def wrong_dtype(tensors, _head):
    tensors["b.dense"] = tensors["b.dense"].half()


def unknown_part(tensors, _head):
    tensors["w.other"] = torch.zeros(1)


def no_delta(_tensors, head):
    head.clear()


def other_format(_tensors, head):
    head["surgery"] = head["surgery"].replace("delta/1", "delta/9")


def no_list(_tensors, head):
    head["surgery"] = head["surgery"].replace('"stack": []', '"stack": 5')


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (nan, "not finite"),
        (changed, "was changed"),
        (half_a_pair, "needs lora_A and lora_B"),
        (ill_shaped, "do not fit"),
        (wrong_dtype, "F16"),
        (unknown_part, "neither lora_A"),
        (no_delta, "not a delta"),
        (other_format, "delta/9"),
        (no_list, "stack is 5"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, word):
    path = save_delta(delta(), tmp_path / "one.delta.safetensors")
    tensors, head = load_file(path), metadata_of(path)
    damage(tensors, head)
    save_file(tensors, path, metadata=head)
    with pytest.raises(SurgeryError, match=word) as caught:
        load_delta(path)
    assert "one.delta.safetensors" in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = save_delta(delta(), tmp_path / "one.delta.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SurgeryError, match="one.delta"):
        load_delta(path)


def test_looking_into_a_file_needs_no_torch(tmp_path):
    path = save_delta(delta(), tmp_path / "one.delta.safetensors")
    code = f"""
import sys
from surgery.delta import read_delta_header
head, shapes = read_delta_header({str(path)!r})
assert head["base_id"] == "base"
assert shapes["w"] == {{"form": "low rank", "shape": (6, 9), "rank": 2}}, shapes
assert shapes["b"] == {{"form": "dense", "shape": (6,)}}
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
