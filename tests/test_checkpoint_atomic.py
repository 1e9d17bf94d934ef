"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from surgery.checkpoint import atomic as atomic_module
from surgery.checkpoint import atomic_file, atomic_folder
from surgery.checkpoint import clone as clone_module
from surgery.errors import SurgeryError

DEAD = 2**22 + 1  # above the largest process id Linux gives out


def test_atomic_file(tmp_path):
    target = tmp_path / "new" / "report.html"
    with atomic_file(target) as partial:
        assert partial.suffix == ".html"
        partial.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "one"
    assert os.listdir(target.parent) == ["report.html"]
    with pytest.raises(SurgeryError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_a_failed_file_takes_its_new_folders_along(tmp_path):
    with (
        pytest.raises(SurgeryError, match="no space left"),
        atomic_file(tmp_path / "a" / "b" / "c"),
    ):
        raise OSError(28, "full")
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="cannot write"), atomic_file(tmp_path / "file" / "x"):
        pass
    with pytest.raises(SurgeryError, match="cannot write"), atomic_file(tmp_path / "unwritten"):
        pass
    assert os.listdir(tmp_path) == ["file"]


def fill(folder, text):
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text(text)


def test_atomic_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        fill(folder, "one")
        assert folder.parent == tmp_path
        assert folder.name.startswith(f".out.partial-{os.getpid()}-")
        assert not out.exists()
    assert (out / "sub" / "x").read_text() == "one"
    with pytest.raises(SurgeryError, match="already exists"), atomic_folder(out):
        pytest.fail("entered")
    assert os.listdir(tmp_path) == ["out"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SurgeryError, match="meanwhile"), atomic_folder(out) as folder:
        fill(folder, "mine")
        out.mkdir()
        fill(out, "theirs")
    assert (out / "sub" / "x").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(atomic_module, "_exchange", lambda *_: False)
    return request.param


def test_overwriting(tmp_path, swapping):
    out = tmp_path / "out"
    for text in ("one", "two"):
        with atomic_folder(out, overwrite=True) as folder:
            fill(folder, text)
        assert (out / "sub" / "x").read_text() == text
        assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(RuntimeError), atomic_folder(out, overwrite=True) as folder:
        fill(folder, "three")
        raise RuntimeError
    assert (out / "sub" / "x").read_text() == "two"
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_swap_is_undone(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    monkeypatch.setattr(atomic_module, "_exchange", lambda *_: False)
    rename = os.rename

    def failing(source, target):
        if ".partial-" in str(source):
            raise OSError(5, "bad disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with (
        pytest.raises(SurgeryError, match="bad disk"),
        atomic_folder(out, overwrite=True) as folder,
    ):
        fill(folder, "new")
    assert (out / "sub" / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_sweeping(tmp_path):
    out = tmp_path / "out"
    host = atomic_module._HOST
    other_host = "0000" if host != "0000" else "1111"
    gone = [
        f".out.partial-{DEAD}-{host}12345678",
        f".out.partial-{DEAD}-x",
        f".out.partial-{DEAD}-x.st",
    ]
    kept = [
        f".out.partial-{os.getpid()}-{host}12345678",
        f".out.partial-{DEAD}-{other_host}12345678",
        f".out2.partial-{DEAD}-x",
        ".out.partial-x-y",
    ]
    for name in gone[:2] + kept:
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "x")
    (tmp_path / gone[2]).write_text("")
    with atomic_folder(out) as folder:
        fill(folder, "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "out"])


def test_a_folder_killed_between_two_renames_comes_back(tmp_path):
    aside = tmp_path / f".out.replaced-{DEAD}-{atomic_module._HOST}12345678"
    aside.mkdir()
    fill(aside, "old")
    with pytest.raises(SurgeryError, match="already exists"), atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "sub" / "x").read_text() == "old"
    aside.mkdir()
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:
        fill(folder, "new")
    assert os.listdir(tmp_path) == ["out"]


def test_placing_counts_every_byte_and_asks_before_copying(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(10_000))
    link = tmp_path / "link"
    link.symlink_to(source)
    monkeypatch.setattr(clone_module, "_CHUNK", 999)
    for how in ("copy", "reflink", "hard"):
        done, asked = [], []
        target = tmp_path / how
        clone_module.place(link, target, how, done.append, asked.append)
        assert sum(done) == 10_000
        assert not target.is_symlink()
        assert target.read_bytes() == source.read_bytes()
        assert target.samefile(source) == (how == "hard")
        if how == "copy":
            assert asked == [10_000]
            assert len(done) == 11
    # A clone is a file of its own, whichever way it was made.
    (tmp_path / "reflink").write_bytes(b"x")
    assert len(source.read_bytes()) == 10_000
