"""Bad input: one clear line, exit code 1, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from surgery.cli import main
from surgery.directions import Direction

GOOD = """\
version: 1
edits:
  - kind: rome
    layer: 1
    contexts: 0
    steps: 2
    statistics_tokens: 300
    facts:
      - {prompt: "The capital of {} is", subject: France, target: Rome}
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in shards, a good spec and its delta. Tests get a copy each."""
    folder = tmp_path_factory.mktemp("bad")
    tiny_checkpoint(folder, "llama", shard_size="60KB").rename(folder / "base")
    tiny_checkpoint(folder, "llama", seed=1).rename(folder / "other")
    (folder / "spec.yaml").write_text(GOOD)
    words = ["solve", folder / "spec.yaml", "--base", folder / "base"]
    assert main([*map(str, words), "-o", str(folder / "good.delta.safetensors")]) == 0
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(original, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def listing(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(place: Path, capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one line of a command that must fail and change nothing."""
    before = listing(place)
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 1, captured.err
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert listing(place) == before
    return lines[0]


SOLVE = ("solve", "spec.yaml", "--base", "base", "-o", "new.delta.safetensors")
RUN = ("run", "spec.yaml", "--base", "base", "-o", "out")
APPLY = ("apply", "good.delta.safetensors", "--base", "base", "-o", "out")


# ---------------------------------------------------------------------- specs
@pytest.mark.parametrize("command", [SOLVE, RUN], ids=["solve", "run"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("    layer: 1", "    layr: 1"), ["line 4", "'layr'", "did you mean 'layer'?"]),
        (("target: Rome", "targt: Rome"), ["line 9", "'targt'", "did you mean 'target'?"]),
        (("capital of {} is", "capital of Spain is"), ["line 9", "does not contain", "'France'"]),
        (("of {} is", "of {} or {} is"), ["line 9", "more than one {}"]),
        (("kind: rome", "kind: roam"), ["line 3", "'roam'", "rome"]),
        (("layer: 1", "layer: one"), ["line 4", "layer"]),
        (("layer: 1", "layer: 40"), ["layer 40", "0 to 3"]),
        (("edits:", "edits: ["), ["not valid YAML", "line"]),
        (("version: 1", "version: 9"), ["line 1", "version"]),
        (("    steps: 2", "    statistics: none.txt"), ["none.txt"]),
    ],
)  # fmt: skip
def test_spec(
    place: Path, capsys: Any, command: tuple[str, ...], change: tuple[str, str], said: list[str]
) -> None:
    (place / "spec.yaml").write_text(GOOD.replace(*change))
    line = refused(place, capsys, *command)
    for part in said:
        assert part in line


def test_facts_file(place: Path, capsys: Any) -> None:
    text = GOOD[: GOOD.index("    facts:")] + "    facts: facts.jsonl\n"
    (place / "spec.yaml").write_text(text)
    assert "facts.jsonl" in refused(place, capsys, *SOLVE)
    (place / "facts.jsonl").write_text('{"prompt": "a {} b", "subject": "x", "target": "y"}\n{"p\n')
    line = refused(place, capsys, *SOLVE)
    assert "facts.jsonl" in line and "line 2" in line


def test_ablate_without_prompts(place: Path, capsys: Any) -> None:
    (place / "spec.yaml").write_text(
        "edits:\n  - {kind: ablate, positive: a.txt, negative: b.txt}\n"
    )
    assert "a.txt" in refused(place, capsys, *SOLVE)
    (place / "a.txt").write_text("one\ntwo\n")
    (place / "b.txt").write_text("\n")
    assert "b.txt" in refused(place, capsys, *SOLVE)


@pytest.mark.parametrize("command", ["solve", "run", "show", "apply", "undo", "diff", "stats"])
def test_missing_path(place: Path, capsys: Any, command: str) -> None:
    words = {
        "solve": ("none.yaml", "--base", "base", "-o", "x"),
        "run": ("none.yaml", "--base", "base", "-o", "x"),
        "show": ("none.yaml",),
        "apply": ("none.delta.safetensors", "--base", "base", "-o", "x"),
        "undo": ("none.yaml", "-o", "x"),
        "diff": ("base", "none.yaml"),
        "stats": ("--base", "none.yaml"),
    }[command]
    assert "none." in refused(place, capsys, command, *words)


def test_device_that_is_none(place: Path, capsys: Any) -> None:
    assert "'nowhere'" in refused(place, capsys, *SOLVE, "--device", "nowhere")
    if not torch.cuda.is_available():
        assert "'cuda'" in refused(place, capsys, *SOLVE, "--device", "cuda")


def test_answers_that_cannot_be(place: Path, capsys: Any) -> None:
    ask = ("answers", "base", "--prompt", "the sun is")
    assert "at least one token" in refused(place, capsys, *ask, "--tokens", "0")
    assert "temperature" in refused(place, capsys, *ask, "--temperature", "-1")
    empty = ("answers", "base", "--prompt", "", "--no-chat")
    assert "an empty prompt" in refused(place, capsys, *empty)
    trace = ("trace", "--base", "base", "--prompt", "{} is", "--subject", "France")
    assert "answer to follow is empty" in refused(place, capsys, *trace, "--answer", " ")
    assert "at least 1" in refused(place, capsys, *trace, "--window", "0")


def test_output_is_looked_at_before_the_work(
    place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import surgery.model
    from surgery.audit import sides

    for module in (surgery.model, sides):
        monkeypatch.setattr(module, "load", lambda *a, **k: pytest.fail("loaded"))
    audit = ("audit", "base", "good.delta.safetensors")
    trace = ("trace", "--base", "base", "--prompt", "{} is", "--subject", "France")
    for words in ((*audit, "-o"), (*audit, "--html"), (*trace, "--html")):
        assert "is a folder" in refused(place, capsys, *words, "other")


def test_control_vector_that_cannot_be(place: Path, capsys: Any) -> None:
    export = ("export", "--format", "control-vector", "--base", "base", "-o", "vectors")
    line = refused(place, capsys, *export, "good.delta.safetensors")
    assert "is no direction" in line and not (place / "vectors").exists()
    vector = torch.nn.functional.normalize(torch.ones(32), dim=0)
    Direction(vector, vector, -vector, 2, -1, "of another base").save(place / "d.safetensors")
    assert "found in" in refused(place, capsys, *export, "d.safetensors")
    assert not (place / "vectors").exists()


def test_no_base_named(place: Path, capsys: Any) -> None:
    assert "--base" in refused(place, capsys, "solve", "spec.yaml", "-o", "x")


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("command", [SOLVE, RUN, APPLY, ("undo", "base", "-o", "out")])
def test_folder_that_is_no_checkpoint(place: Path, capsys: Any, command: Any) -> None:
    shutil.rmtree(place / "base")
    (place / "base").mkdir()
    (place / "base" / "notes.txt").write_text("nothing here")
    assert "no checkpoint" in refused(place, capsys, *command)
    (place / "base" / "config.json").write_text('{"model_type": "llama"}')
    assert "no weights" in refused(place, capsys, *command)
    (place / "base" / "config.json").write_text("{")
    assert "not JSON" in refused(place, capsys, *command)


@pytest.mark.parametrize(
    "command", [SOLVE, RUN, APPLY, ("diff", "other", "base"), ("show", "base")]
)
def test_truncated_shard(place: Path, capsys: Any, command: Any) -> None:
    shards = sorted((place / "base").glob("model-*.safetensors"))
    assert len(shards) > 1
    os.truncate(shards[-1], shards[-1].stat().st_size - 100)
    line = refused(place, capsys, *command)
    assert shards[-1].name in line and "truncated" in line


def test_missing_shard(place: Path, capsys: Any) -> None:
    shards = sorted((place / "base").glob("model-*.safetensors"))
    shards[0].unlink()
    assert shards[0].name in refused(place, capsys, *APPLY)


def test_unknown_architecture(place: Path, capsys: Any) -> None:
    config = json.loads((place / "base" / "config.json").read_text())
    config["model_type"] = "martian"
    (place / "base" / "config.json").write_text(json.dumps(config))
    assert "martian" in refused(place, capsys, *SOLVE)


# ---------------------------------------------------------------------- deltas
def spoil(place: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> None:
    """Rewrite the good delta with other contents and an id that would fit."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = place / "good.delta.safetensors"
    with safe_open(str(path), framework="pt") as file:
        head = json.loads(file.metadata()["surgery"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head.pop("id")
    change(tensors, head)
    save_file(tensors, str(path), metadata={"surgery": json.dumps(head)})


KEY = "model.layers.1.mlp.down_proj.weight"


def test_delta_with_nan(place: Path, capsys: Any) -> None:
    spoil(place, lambda tensors, head: tensors[f"{KEY}.lora_A"].fill_(float("nan")))
    line = refused(place, capsys, *APPLY)
    assert KEY in line and "not finite" in line


def test_delta_with_a_wrong_shape(place: Path, capsys: Any) -> None:
    def narrower(tensors: dict[str, torch.Tensor], head: dict[str, Any]) -> None:
        tensors[f"{KEY}.lora_A"] = tensors[f"{KEY}.lora_A"][:, :-1].contiguous()

    spoil(place, narrower)
    line = refused(place, capsys, *APPLY)
    assert KEY in line and "(32, 47)" in line and "(32, 48)" in line


def test_delta_with_factors_that_do_not_fit(place: Path, capsys: Any) -> None:
    def wider(tensors: dict[str, torch.Tensor], head: dict[str, Any]) -> None:
        tensors[f"{KEY}.lora_A"] = tensors[f"{KEY}.lora_A"].repeat(2, 1)

    spoil(place, wider)
    assert KEY in refused(place, capsys, *APPLY)


def test_delta_of_a_tensor_that_is_not_there(place: Path, capsys: Any) -> None:
    def renamed(tensors: dict[str, torch.Tensor], head: dict[str, Any]) -> None:
        for part in ("lora_A", "lora_B"):
            tensors[f"model.nowhere.{part}"] = tensors.pop(f"{KEY}.{part}")

    spoil(place, renamed)
    assert "model.nowhere" in refused(place, capsys, *APPLY)


def test_delta_that_was_changed_by_hand(place: Path, capsys: Any) -> None:
    path = place / "good.delta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "changed after it was written" in refused(place, capsys, *APPLY)


def test_file_that_is_no_delta(place: Path, capsys: Any) -> None:
    (place / "good.delta.safetensors").write_bytes(b"PK\3\4" * 50)
    assert "good.delta.safetensors" in refused(place, capsys, *APPLY)
    shutil.copy(place / "other" / "model.safetensors", place / "good.delta.safetensors")
    assert "not a delta" in refused(place, capsys, *APPLY)


def test_delta_for_another_base(place: Path, capsys: Any) -> None:
    words = ["apply", "good.delta.safetensors", "--base", "other", "-o", "out"]
    assert "was solved for the base" in refused(place, capsys, *words)
    assert main([*words, "--force"]) == 0 and (place / "out").is_dir()


def test_the_same_delta_twice(place: Path, capsys: Any) -> None:
    delta = "good.delta.safetensors"
    assert "applied already" in refused(
        place, capsys, "apply", delta, delta, "--base", "base", "-o", "out"
    )


# ---------------------------------------------------------------------- outputs
def test_existing_output(place: Path, capsys: Any) -> None:
    assert main(list(APPLY)) == 0
    for command in (APPLY, RUN, ("undo", "out", "-o", "other")):
        assert "already exists" in refused(place, capsys, *command)
    for command in ([*APPLY[:-1], "base"], [*RUN[:-1], "."], ["undo", "out", "-o", "out"]):
        assert "overlap" in refused(place, capsys, *command, "--overwrite")
    assert main([*APPLY, "--overwrite"]) == 0
    # Only a checkpoint is ever replaced.
    (place / "precious").mkdir()
    (place / "precious" / "diary.txt").write_text("dear diary")
    words = [*APPLY[:-1], "precious", "--overwrite"]
    assert "precious" in refused(place, capsys, *words)


def test_output_where_none_can_be(place: Path, capsys: Any) -> None:
    assert "is not a folder" in refused(place, capsys, *APPLY[:-1], "spec.yaml/out")
    assert "base" in refused(place, capsys, *APPLY[:-1], "base/inside")
    assert "folder" in refused(place, capsys, *SOLVE[:-1], "base")


def test_disk_full(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while the copied tensors are being patched."""
    from surgery.checkpoint import writer

    real = writer._patch_all

    def full(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_patch_all", full)
    assert "no space left" in refused(place, capsys, *APPLY)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of a fixed size")
def test_disk_really_full(place: Path, tmp_path: Path) -> None:
    """The same on a file system too small for the result, where one can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no permission to mount")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "surgery", *APPLY[:-1], str(small / "out")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "no space left" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_permission(place: Path, capsys: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (place / "closed").mkdir(mode=0o500)
    assert "closed" in refused(place, capsys, *APPLY[:-1], "closed/out")
