"""Reading a checkpoint folder: its index, tensors, hashes, id, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from surgery.checkpoint import Checkpoint
from surgery.checkpoint import hashing as hashing_module
from surgery.errors import SurgeryError

ROOT = Path(__file__).parents[1]
KEY = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    made = {"model.embed_tokens.weight": torch.randn(20, 6, generator=g).to(dtype)}
    for layer in range(3):
        made[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.randn(6, 10, generator=g).to(
            dtype
        )
        made[f"model.layers.{layer}.input_layernorm.weight"] = torch.randn(6, generator=g)
    made["empty"] = torch.zeros(0, 4)
    made["scalar"] = torch.tensor(3, dtype=torch.int64)
    return made


def write(folder: Path, values: dict[str, torch.Tensor], shards: int = 1) -> Path:
    folder.mkdir()
    config = {"model_type": "llama", "tie_word_embeddings": True, "transformers_version": "5.0"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("base")
    if shards == 1:
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: values[key] for key in list(values)[i::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(params=[1, 3], ids=["single", "sharded"])
def base(request, tmp_path) -> Checkpoint:
    return Checkpoint.open(write(tmp_path / "base", tensors(), request.param))


# ---- reading


def test_index_agrees_with_safetensors(base):
    assert list(base.tensors) == sorted(tensors())
    assert base.dtype == "BF16"
    for key, value in tensors().items():
        ref = base.tensors[key]
        with safe_open(ref.file, "pt") as reference:
            assert key in reference.keys()  # noqa: SIM118
        read = base.read(key)
        assert (read.dtype, read.shape) == (value.dtype, value.shape)
        assert torch.equal(read, value)
        assert ref.nbytes == value.nbytes == len(base.read_bytes(key))


def test_opening_needs_no_torch(base):
    code = (
        "import sys; from surgery.checkpoint import Checkpoint; "
        f"c = Checkpoint.open({str(base.path)!r}); c.id; print(c.tied_embeddings); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_id_is_of_the_content(tmp_path):
    one = Checkpoint.open(write(tmp_path / "one", tensors()))
    three = Checkpoint.open(write(tmp_path / "three", tensors(), 3))
    assert len(one.id) == 64
    assert one.id == three.id
    config = one.config | {"transformers_version": "6", "torch_dtype": "float32", "dtype": "x"}
    (one.path / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(one.path).id == three.id
    (one.path / "config.json").write_text(json.dumps(config | {"rope_theta": 5}))
    assert Checkpoint.open(one.path).id != three.id
    changed = tensors()
    changed["scalar"] += 1
    assert Checkpoint.open(write(tmp_path / "other", changed)).id != three.id


def test_tied_embeddings(tmp_path):
    values = tensors()
    assert Checkpoint.open(write(tmp_path / "a", values)).tied_embeddings
    head = values["model.embed_tokens.weight"].clone()
    same = Checkpoint.open(write(tmp_path / "b", values | {"lm_head.weight": head}))
    assert same.tied_embeddings
    same.config["tie_word_embeddings"] = False
    assert not same.tied_embeddings
    assert not Checkpoint.open(
        write(tmp_path / "c", values | {"lm_head.weight": head + 1})
    ).tied_embeddings


# ---- hash cache


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(hashing_module, "_tick", lambda mark: -1)


def test_hashes_are_cached_until_the_file_changes(base, monkeypatch, no_waiting):
    first = base.hashes()
    ref = base.tensors[KEY]
    with monkeypatch.context() as patch:
        patch.setattr(hashing_module, "hash_range", lambda *_: pytest.fail("hashed again"))
        assert Checkpoint.open(base.path).hashes() == first
        assert Checkpoint.open(base.path).hash(KEY) == first[KEY]

    # The same size, and the modification time set back: the change must be seen all the same.
    before = os.stat(ref.file)
    with open(ref.file, "r+b") as stream:
        stream.seek(ref.begin)
        stream.write(b"\x01\x02\x03\x04")
    os.utime(ref.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for checkpoint in (base, Checkpoint.open(base.path)):
        after = checkpoint.hashes()
        assert {key for key in first if after[key] != first[key]} == {KEY}
    # ... and a copy of the old cache under the new state is not believed either.
    assert Checkpoint.open(base.path).hash(KEY) == after[KEY]


def test_a_file_changed_this_instant_is_not_cached(base, cache):
    base.hashes()
    for shard in base.shards:
        os.utime(shard)
    Checkpoint.open(base.path).hashes()
    assert not list(cache.rglob("*.json"))


def test_damaged_or_unwritable_cache_is_ignored(base, cache, no_waiting, monkeypatch):
    first = base.hashes()
    files = list(cache.rglob("*.json"))
    assert files
    for text in ("", "[]", '{"path": 3}', "[" * 100_000):
        for file in files:
            file.write_text(text)
        assert Checkpoint.open(base.path).hashes() == first
    blocked = cache / "file"
    blocked.write_text("")
    monkeypatch.setenv("SURGERY_CACHE", str(blocked))
    assert Checkpoint.open(base.path).hashes() == first


def test_two_writers_share_the_cache(base, no_waiting, monkeypatch):
    one, other = Checkpoint.open(base.path), Checkpoint.open(base.path)
    one._hash(KEY)
    other._hash("scalar")
    for checkpoint in (one, other):
        for cache in checkpoint._caches.values():
            cache.save()
    monkeypatch.setattr(hashing_module, "hash_range", lambda *_: pytest.fail("hashed again"))
    Checkpoint.open(base.path).hash(KEY)
    Checkpoint.open(base.path).hash("scalar")


def test_reading_notices_a_rewritten_file(base):
    file = base.tensors[KEY].file
    save_file({"other": torch.zeros(500)}, file)
    with pytest.raises(SurgeryError, match="rewritten while in use"):
        base.read(KEY)


# ---- what is no checkpoint


def refused(path: Path, *words: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_folders_that_are_no_checkpoint(tmp_path):
    refused(tmp_path / "none", "no such")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file")
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, "config.json")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json", "not JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "not a JSON object")
    (folder / "config.json").write_text("{}")
    refused(folder, "no weights")
    (folder / "pytorch_model.bin").write_text("")
    refused(folder, "only pytorch_model.bin")
    (folder / "consolidated.safetensors").write_text("")
    refused(folder, "consolidated.safetensors")


def test_truncated_shard_is_named(base):
    for shard in base.shards:
        data = shard.read_bytes()
        for cut in (len(data) - 1, 100, 8, 3, 0):
            shard.write_bytes(data[:cut])
            refused(base.path, shard.name, "truncated")
        shard.write_bytes(data)
    assert Checkpoint.open(base.path)


def test_index_and_shards_that_disagree(tmp_path):
    path = write(tmp_path / "base", tensors(), 3)
    index = path / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    def with_map(**changes):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | changes}))

    with_map(ghost="model-00001-of-00003.safetensors")
    refused(path, "ghost", "does not hold")
    with_map(ghost="model-00009.safetensors")
    refused(path, "model-00009.safetensors", "missing")
    for name in ("../base/model-00001-of-00003.safetensors", "/etc/passwd", "..", ""):
        with_map(ghost=name)
        refused(path, "plain file name")
    index.write_text("{}")
    refused(path, "weight_map")
    save_file({KEY: torch.zeros(2)}, path / "twice.safetensors")
    with_map(**{KEY: "twice.safetensors"})
    refused(path, "both hold", KEY)
