"""The list of known checkpoints, `weights/registry.toml`."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from surgery import resources
from surgery.errors import SurgeryError
from surgery.spec.facts import first_problem

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
GitSha1 = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Dtype = Literal["float32", "bfloat16", "float16"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownFile(_Part):
    """A file and the hash that its content must have.

    Attributes:
        path: its name, relative to the folder it goes to; never outside of it.
        size: in bytes, where known.
        sha256: hash of the content.
        git_sha1: hash of the content as a git blob; the hub knows small files by that.
    """

    path: str
    size: int | None = Field(default=None, ge=0)
    sha256: Sha256 | None = None
    git_sha1: GitSha1 | None = None

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        return _relative(value)

    @model_validator(mode="after")
    def _has_hash(self) -> KnownFile:
        if self.sha256 is None and self.git_sha1 is None:
            raise ValueError("needs sha256 or git_sha1")
        return self

    def check(self, file: Path) -> None:
        """Raise SurgeryError unless `file` has this size and these hashes."""
        size = file.stat().st_size
        if self.size is not None and size != self.size:
            raise SurgeryError(
                f"{self.path} has {size:,} bytes instead of {self.size:,}: the source has changed "
                "or the download was cut off"
            )
        digests = {"sha256": (hashlib.sha256(), self.sha256)} if self.sha256 else {}
        if self.git_sha1:
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            digests["git_sha1"] = (git, self.git_sha1)
        with open(file, "rb") as stream:
            while chunk := stream.read(4 << 20):
                for digest, _ in digests.values():
                    digest.update(chunk)
        for name, (digest, wanted) in digests.items():
            if digest.hexdigest() != wanted:
                raise SurgeryError(
                    f"{self.path} has {name} {digest.hexdigest()} instead of {wanted}: "
                    "it is not the file the registry lists"
                )


class HubSource(_Part):
    """Files of a model repository at one commit."""

    kind: Literal["hub"]
    repo: str
    revision: GitSha1
    files: list[KnownFile] = Field(min_length=1)
    id: Sha256 | None = None
    note: str = ""

    @property
    def label(self) -> str:
        """What it is called in messages and model cards."""
        return f"{self.repo}@{self.revision[:12]} on the hub"


class WheelPart(_Part):
    """A wheel, and what of it is wanted.

    Attributes:
        package: its name on the index.
        version: its exact version.
        wheel: the file the index hands out.
        member: the file inside that is the GGUF, or a piece of it. None: nothing.
        keep: more files inside that go into the folder, by their name there (a licence, say).
    """

    package: str
    version: str
    wheel: KnownFile
    member: str | None = None
    keep: dict[str, str] = Field(default_factory=dict)

    @field_validator("keep")
    @classmethod
    def _inside(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            _relative(name)
        return value


class PypiSource(_Part):
    """A GGUF file inside one wheel, or cut into pieces over several."""

    kind: Literal["pypi"]
    file: KnownFile
    parts: list[WheelPart] = Field(min_length=1)
    id: Sha256 | None = None
    note: str = ""

    @property
    def label(self) -> str:
        """What it is called in messages and model cards."""
        part = self.parts[0]
        return f"{part.package}=={part.version} on the package index"


Source = Annotated[HubSource | PypiSource, Field(discriminator="kind")]


class KnownModel(_Part):
    """A checkpoint and where it can be had, best source first."""

    kind: Literal["checkpoint"] = "checkpoint"
    title: str
    licence: str
    base_model: str | None = None
    dtype: Dtype = "float32"
    chat: bool = False
    sources: list[Source] = Field(min_length=1)

    def ids(self) -> dict[str, str]:
        """The recorded identity of the folder each source ends in."""
        return {source.id: source.kind for source in self.sources if source.id}


class KnownAdapter(_Part):
    """A known checkpoint with a LoRA adapter merged into it in fp32.

    Attributes:
        base: the name of the checkpoint it was trained on.
        base_source: which source of the base it was trained on, where that matters.
        adapter: the adapter's folder among the shipped files, such as weights/adapters/NAME.
        files: the files of that folder.
    """

    kind: Literal["adapter"]
    title: str
    licence: str
    base: str
    base_source: Literal["hub", "pypi"] | None = None
    adapter: str
    files: list[KnownFile] = Field(min_length=1)
    id: Sha256 | None = None
    note: str = ""

    @field_validator("adapter")
    @classmethod
    def _inside(cls, value: str) -> str:
        return _relative(value)

    def ids(self) -> dict[str, str]:
        """The recorded identity of the merged folder."""
        return {self.id: "adapter"} if self.id else {}


def _kind(value: Any) -> Any:
    return value.get("kind", "checkpoint") if isinstance(value, dict) else value.kind


Entry = Annotated[
    Annotated[KnownModel, Tag("checkpoint")] | Annotated[KnownAdapter, Tag("adapter")],
    Discriminator(_kind),
]


class Registry(_Part):
    """All known checkpoints by name."""

    version: Literal[1]
    models: dict[str, Entry]

    @field_validator("models")
    @classmethod
    def _names(cls, value: dict[str, Entry]) -> dict[str, Entry]:
        for name, entry in value.items():
            if PurePosixPath(name).name != name or name.startswith("."):
                raise ValueError(f"{name!r} is no plain folder name")
            if isinstance(entry, KnownAdapter) and not isinstance(
                value.get(entry.base), KnownModel
            ):
                raise ValueError(f"{name}: its base {entry.base} is no checkpoint of this registry")
        return value

    @classmethod
    def load(cls, file: Path | None = None) -> Registry:
        """Read a registry; without `file` the one that comes with the project.

        Raises:
            SurgeryError: not TOML, or not a registry; the message names the field.
        """
        file = file or resources.path("weights", "registry.toml")
        try:
            return cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise SurgeryError(f"cannot read {file}: {error.strerror or error}") from error
        except tomllib.TOMLDecodeError as error:
            raise SurgeryError(f"{file} is not TOML: {error}") from error
        except ValidationError as error:
            raise SurgeryError(f"{file}: {first_problem(error)}") from error

    def entry(self, name: str) -> KnownModel | KnownAdapter:
        """The entry of that name; SurgeryError lists the known ones if there is none."""
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(self.models))
            raise SurgeryError(f"no known checkpoint is called {name!r}; known: {known}") from None


def _relative(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError(f"{value!r} does not stay inside its folder")
    return value
