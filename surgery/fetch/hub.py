"""Known files of a model repository on the hub, at a pinned commit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from surgery.errors import SurgeryError
from surgery.fetch.registry import HubSource
from surgery.progress import track

CONNECT_SECONDS = 5.0


class Unreachable(Exception):
    """This source cannot be had from here; another may."""


def download(source: HubSource, out: Path, dtype: str) -> None:
    """Put the files of `source` into the existing folder `out`, weights in `dtype`.

    Downloads go through the hub's own cache, so a machine that has the model already needs no
    network, and HF_HUB_OFFLINE means that nothing else is tried.

    Raises:
        Unreachable: no connection within CONNECT_SECONDS, no permission, or offline and not cached.
        SurgeryError: a file is not the one the registry lists.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    cached = offline or not _reachable(
        hf_hub_url(source.repo, source.files[0].path, revision=source.revision)
    )
    for known in track(source.files, f"downloading {source.repo}"):
        try:
            file = Path(
                hf_hub_download(
                    source.repo,
                    known.path,
                    revision=source.revision,
                    etag_timeout=CONNECT_SECONDS,
                    local_files_only=cached,
                )
            )
        except LocalEntryNotFoundError as error:
            why = "HF_HUB_OFFLINE is set" if offline else "no connection"
            raise Unreachable(f"{why}, and it is not in the local cache") from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                raise Unreachable("access is limited to accounts that asked for it") from error
            raise Unreachable(_one_line(error)) from error
        except OSError as error:
            raise Unreachable(_one_line(error)) from error
        known.check(file)
        target = out / known.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors" or target.suffix == ".safetensors":
            _write_weights(file, target, dtype)
        else:
            shutil.copyfile(file, target)
    _state_dtype(out / "config.json", dtype)


def _reachable(url: str) -> bool:
    """Whether the hub answers one request, whatever it answers.

    Asked first because the hub's own client retries for half a minute where there is no network.
    """
    from huggingface_hub.utils import get_session

    try:
        get_session().head(url, timeout=CONNECT_SECONDS)
    except Exception:  # noqa: BLE001 - whichever HTTP client is inside, any failure means "no"
        return False
    return True


def _write_weights(file: Path, target: Path, dtype: str) -> None:
    """Copy a safetensors file with its floating-point tensors in `dtype`; widening is exact."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    wanted = getattr(torch, dtype)
    tensors = {}
    with safe_open(file, framework="pt") as stream:
        for key in stream.keys():  # noqa: SIM118 - not a mapping
            tensor = stream.get_tensor(key)
            tensors[key] = tensor.to(wanted) if tensor.is_floating_point() else tensor
    save_file(tensors, target, metadata={"format": "pt"})


def _state_dtype(config_file: Path, dtype: str) -> None:
    if not config_file.is_file():
        raise SurgeryError(f"the registry lists no config.json for {config_file.parent.name}")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
