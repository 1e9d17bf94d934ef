"""Writing an edited checkpoint: exact bytes, nothing half-written, whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import Checkpoint, write_edited
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


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if ".partial-" in name or ".replaced-" in name]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.float8_e4m3fn, torch.uint8, torch.bool, torch.complex64],
)
def test_every_dtype_reads_and_patches(tmp_path, dtype):
    values = {"a": torch.ones(3, 2).to(dtype), "b": torch.zeros(3, 2).to(dtype)}
    base = Checkpoint.open(write(tmp_path / "base", values))
    assert base.read("a").dtype == dtype
    assert write_edited(base, tmp_path / "out", {"b": values["a"]}) == ["b"]
    edited = Checkpoint.open(tmp_path / "out")
    assert edited.hash("b") == base.hash("a") != base.hash("b")


@pytest.mark.parametrize("link", ["reflink", "copy", "hard"])
def test_patched_folder_equals_a_full_save(base, tmp_path, link):
    before = everything(base.path)
    new = tensors()
    new[KEY] = new[KEY] * 2
    new["scalar"] = torch.tensor(7)
    patches = {KEY: lambda: new[KEY].t().contiguous().t(), "scalar": new["scalar"]}
    assert write_edited(base, tmp_path / "out", patches, link=link) == sorted(patches)

    resaved = write(tmp_path / "resaved", new, len(base.shards))
    assert everything(tmp_path / "out") == everything(resaved)
    assert everything(base.path) == before
    touched = {base.tensors[key].file for key in patches}
    for shard in base.shards:
        shared = os.path.samefile(shard, tmp_path / "out" / shard.name)
        assert shared == (link == "hard" and shard not in touched)
    edited = Checkpoint.open(tmp_path / "out")
    assert {k for k, h in edited.hashes().items() if h != base.hash(k)} == set(patches)
    assert not leftovers(tmp_path)


def test_a_patch_that_changes_nothing(base, tmp_path):
    assert write_edited(base, tmp_path / "out", {KEY: base.read(KEY)}) == []
    assert everything(tmp_path / "out") == everything(base.path)


def test_other_files(base, tmp_path):
    path = base.path
    extra = {
        "chat_template.jinja": "x",
        "sub/vocab.txt": "y",
        "surgery.json": "{}",
        "one.delta.safetensors": "",
        "deltas/two.delta.safetensors": "",
        "deltas/notes.txt": "",
        "pytorch_model.bin": "",
        "model.gguf": "",
        ".git/HEAD": "",
    }
    for name, text in extra.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    (path / "linked.txt").symlink_to(path / "sub" / "vocab.txt")
    given_file = tmp_path / "given"
    given_file.write_bytes(b"\x00\x01")
    files = {
        "README.md": "edited",
        "surgery.json": b"{1}",
        "deltas/0.delta.safetensors": given_file,
    }
    write_edited(base, tmp_path / "out", {}, files=files, config_changes={"x": 1})
    got = everything(tmp_path / "out")
    weights = {shard.name for shard in base.shards} | {"model.safetensors.index.json"}
    assert {name: data for name, data in got.items() if name not in weights | {"config.json"}} == {
        "README.md": b"edited",
        "surgery.json": b"{1}",
        "deltas/0.delta.safetensors": b"\x00\x01",
        "chat_template.jinja": b"x",
        "sub/vocab.txt": b"y",
        "linked.txt": b"y",
        "tokenizer.json": b"{}",
    }
    assert not (tmp_path / "out" / "linked.txt").is_symlink()
    assert json.loads(got["config.json"]) == base.config | {"x": 1}
    for name in ("../evil", "/evil", "config.json", base.shards[0].name):
        with pytest.raises(SurgeryError):
            write_edited(base, tmp_path / "out2", {}, files={name: "x"})


def test_added_tensors_load_everywhere(base, tmp_path):
    head = base.read("model.embed_tokens.weight")
    assert base.tied_embeddings
    changed = write_edited(
        base,
        tmp_path / "out",
        {KEY: base.read(KEY) + 1},
        added={"lm_head.weight": head},
        config_changes={"tie_word_embeddings": False},
    )
    assert changed == ["lm_head.weight", KEY]
    edited = Checkpoint.open(tmp_path / "out")
    assert not edited.tied_embeddings
    # A lone model.safetensors would be loaded without the index, and the head lost.
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert edited.weight_map is not None
    assert set(edited.weight_map) == set(edited.tensors) == {*base.tensors, "lm_head.weight"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(r.nbytes for r in edited.tensors.values())
    loaded = {}
    for shard in edited.shards:
        loaded |= load_file(shard)
    assert torch.equal(loaded["lm_head.weight"], head)
    assert torch.equal(loaded[KEY], base.read(KEY) + 1)
    again = write_edited(edited, tmp_path / "again", {}, added={"more": torch.ones(2)})
    assert again == ["more"]
    assert torch.equal(Checkpoint.open(tmp_path / "again").read("more"), torch.ones(2))
    with pytest.raises(SurgeryError, match=r"lm_head\.weight"):
        write_edited(edited, tmp_path / "third", {}, added={"lm_head.weight": head})


@pytest.mark.parametrize("late", [False, True], ids=["tensor", "function"])
@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        (KEY, torch.full((6, 10), float("nan"), dtype=torch.bfloat16), "finite"),
        (KEY, torch.full((6, 10), float("inf"), dtype=torch.bfloat16), "finite"),
        (KEY, torch.zeros(10, 6, dtype=torch.bfloat16), "shape"),
        (KEY, torch.zeros(6, 10), "BF16"),
        (KEY, torch.zeros(6, 10, dtype=torch.bfloat16, device="meta"), "meta"),
        ("model.nothing", torch.zeros(1), "no tensor"),
    ],
)
def test_bad_patches_name_the_tensor_and_leave_nothing(base, tmp_path, key, value, word, late):
    patch = (lambda: value) if late else value
    good = {"scalar": torch.tensor(9)}
    with pytest.raises(SurgeryError, match=word) as caught:
        write_edited(base, tmp_path / "deep" / "out", {**good, key: patch})
    assert key in str(caught.value)
    assert not (tmp_path / "deep").exists()


def test_targets_that_are_refused(base, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SurgeryError, match="already exists"):
        write_edited(base, tmp_path / "out", {})
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(SurgeryError, match="no checkpoint folder"):
        write_edited(base, tmp_path / "out", {}, overwrite=True)
    assert (tmp_path / "out" / "precious").exists()
    for inside in (base.path, base.path / "edited"):
        with pytest.raises(SurgeryError, match="the base"):
            write_edited(base, inside, {}, overwrite=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SurgeryError, match="holds the base"):
        write_edited(base, tmp_path, {}, overwrite=True)
    (tmp_path / "plain").write_text("")
    with pytest.raises(SurgeryError, match="cannot write"):
        write_edited(base, tmp_path / "plain" / "out", {})


def test_overwrite(base, tmp_path):
    out = tmp_path / "out"
    write_edited(base, out, {}, files={"old": "x"})
    old = everything(out)
    with pytest.raises(ZeroDivisionError):
        write_edited(base, out, {KEY: lambda: torch.ones(1 // 0)}, overwrite=True)
    assert everything(out) == old
    write_edited(base, out, {KEY: base.read(KEY) + 1}, overwrite=True)
    assert not (out / "old").exists()
    assert torch.equal(Checkpoint.open(out).read(KEY), base.read(KEY) + 1)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError(5, "bad disk"), RuntimeError])
def test_exceptions_leave_nothing(base, tmp_path, exception):
    def fail():
        assert leftovers(tmp_path)
        raise exception

    with pytest.raises(exception if isinstance(exception, type) else type(exception)):
        write_edited(base, tmp_path / "out", {KEY: fail})
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_a_killed_write_leaves_no_target_and_is_swept(base, tmp_path):
    out = tmp_path / "out"
    code = f"""
        import os
        from surgery.checkpoint import Checkpoint, write_edited
        base = Checkpoint.open({str(base.path)!r})
        write_edited(base, {str(out)!r}, {{{KEY!r}: lambda: os._exit(9)}})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 9, done.stderr
    assert not out.exists()
    assert len(leftovers(tmp_path)) == 1
    alive = tmp_path / f".out.partial-{os.getpid()}-abc"
    other = tmp_path / f".outer.partial-{2**22 + 1}-abc"
    alive.mkdir()
    other.mkdir()
    write_edited(base, out, {})
    assert sorted(leftovers(tmp_path)) == sorted([alive.name, other.name])


# ---- full disks


def test_full_disk_is_told_in_one_line(base, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(SurgeryError, match=r"no space left.* needed, 10 B free") as caught:
        write_edited(base, tmp_path / "out", {}, link="copy")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_disk_that_fills_up_late(base, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SurgeryError, match="no space left"):
        write_edited(base, tmp_path / "out", {KEY: base.read(KEY) + 1})
    assert sorted(os.listdir(tmp_path)) == ["base"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a private mount")
@pytest.mark.parametrize("ask_first", [True, False])
def test_a_disk_that_really_fills_up(tmp_path, ask_first):
    big = {"a": torch.zeros(300_000), "b": torch.zeros(8)}
    base = write(tmp_path / "base", big)
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""
        import os, sys
        from surgery.checkpoint import Checkpoint, write_edited, writer
        from surgery.errors import SurgeryError
        if not {ask_first}:
            writer.check_room = lambda *_: None
        try:
            write_edited(Checkpoint.open({str(base)!r}), {str(disk / "out")!r}, {{}})
        except SurgeryError as error:
            print(error)
        print(os.listdir({str(disk)!r}))
    """
    mount = 'mount -t tmpfs -o size=1m none "$0" || exit 77; exec "$1" -c "$2"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount, disk, sys.executable, textwrap.dedent(code)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 0, done.stderr
    assert "no space left" in done.stdout
    assert "1.2 MB needed" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
