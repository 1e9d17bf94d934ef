"""Headers of safetensors files: whatever the bytes, the answer is an index or one clear line."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.checkpoint import read_header
from surgery.errors import SurgeryError


def entry(begin: int, end: int, shape: object = None, dtype: object = "U8") -> dict:
    return {
        "dtype": dtype,
        "shape": [end - begin] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"a": entry(0, 4), "b": entry(2, 8)}, "overlaps"),
        ({"a": entry(0, 4), "b": entry(6, 8)}, "hole"),
        ({"a": entry(0, 4)}, "the file has"),
        ({"a": entry(0, 800)}, "truncated"),
        ({"a": entry(8, 0, [0])}, "after its end"),
        ({"a": entry(0, 8, [-8])}, "shape"),
        ({"a": entry(0, 8, [True])}, "shape"),
        ({"a": entry(0, 8, [2**62, 2**62, 2**62])}, "cannot hold"),
        ({"a": entry(0, 8, dtype="F33")}, "F33"),
        ({"a": entry(0, 8, dtype=[])}, "dtype"),
        ({"a": 3}, "not described"),
        ({"__metadata__": {"x": 1}, "a": entry(0, 8)}, "__metadata__"),
        ({"\ud800": entry(0, 8)}, "not text"),
        ([], "not a JSON object"),
    ],
)
def test_damaged_headers(tmp_path, header, word):
    raw = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(SurgeryError) as caught:
        read_header(file)
    assert word in str(caught.value)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absurd_headers(tmp_path):
    file = tmp_path / "x.safetensors"
    for data, word in (
        (b"\xff" * 100, "claims"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (struct.pack("<Q", 90_000) + b"[" * 90_000, "damaged"),
        (struct.pack("<Q", 20) + b'{"a":{},"a":{}}     ', "twice"),
        (struct.pack("<Q", 6000) + b"[" + b"9" * 5998 + b"]", "damaged"),
    ):
        file.write_bytes(data)
        with pytest.raises(SurgeryError, match=word):
            read_header(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
near_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "Q4"]) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3) | json_values,
    },
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(
    head=st.binary(max_size=200)
    | json_values.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(st.text(max_size=4), near_entries, max_size=4).map(
        lambda v: json.dumps(v).encode()
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    body=st.binary(max_size=40),
)
def test_no_bytes_raise_anything_else(tmp_path, head, length, body):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + body)
    try:
        refs, metadata = read_header(file)
    except SurgeryError as error:
        assert "\n" not in str(error)
        return
    assert sum(ref.nbytes for ref in refs.values()) == len(body)
    assert all(isinstance(value, str) for value in metadata.values())
