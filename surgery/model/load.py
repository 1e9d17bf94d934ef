"""Loading a local checkpoint. Nothing is fetched, and no code of the checkpoint is run."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from surgery.architecture import for_config
from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError
from surgery.model.model import Model
from surgery.model.selftest import selftest


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """Load a checkpoint folder for editing.

    device: where to compute; the default is CUDA, then MPS, then CPU, whichever there is.
    dtype: of the computation. The default is float32 on a CPU, where it is also fastest, and the
        stored dtype elsewhere.

    Raises:
        SurgeryError: no checkpoint there, an unknown architecture, a device that cannot be used, an
            unknown dtype, a model that fails its self-test.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    checkpoint = Checkpoint.open(Path(path))
    architecture = for_config(checkpoint.config)
    device = _device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, str) and dtype != "auto":
        named, dtype = dtype, getattr(torch, dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise SurgeryError(f"no dtype {named!r}: float32, bfloat16 or float16")

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.path), dtype=dtype, local_files_only=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            str(checkpoint.path), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise SurgeryError(f"transformers cannot load {checkpoint.path}: {reason}") from None
    finally:
        if shown:
            logging.enable_progress_bar()

    torch.nn.Module.to(hf, device).eval().requires_grad_(False)
    if not tokenizer.is_fast:
        raise SurgeryError(
            f"the tokenizer of {checkpoint.path} is a slow one and gives no character offsets: "
            "add its tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model = Model(hf, tokenizer, architecture, checkpoint)
    selftest(model)
    return model


def _device(given: str | torch.device | None) -> torch.device:
    if given is not None:
        try:
            device = torch.device(given)
            torch.empty(0, device=device)
        # torch says it in one of these, depending on whether it knows the name, was built for it, finds it.
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SurgeryError(f"cannot compute on the device {str(given)!r}: {reason}") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
