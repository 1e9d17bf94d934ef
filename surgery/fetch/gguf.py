"""A GGUF file to an ordinary folder: config, safetensors, tokenizer with chat template.

transformers reads GGUF and de-quantises it, but three things are left to do before the result is a
checkpoint like any other:

- The loaded model's config still says "quantised", and such a model refuses to be saved. It is
  moved into a fresh model of its class, and nothing may be missing or left over on the way.
- A GGUF names its pre-tokenizer instead of describing it, and the name is ignored on reading.
  Where the name is one we know, the tokenizer is completed (`PRE_TOKENIZERS`).
- Numbers in the config went through float32; they get their short form back (1e-05, not
  9.999999747378752e-06), which is the same number wherever it is used in float32.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError
from surgery.progress import meter, track

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

PROBE = "In 1889, the  Tower cost 779941 francs;\n\tI'd say naïve café, 東京, Größe — (x**2)!  \n\n"
"""Text a byte-level tokenizer must give back unchanged: digits, runs of blanks, several scripts."""

CONFIG_KEYS_TO_DROP = ("quantization_config", "_model_name_or_path", "transformers_version")


def convert(file: Path, out: Path, dtype: str = "float32") -> None:
    """Write the model in `file` to the existing folder `out`.

    Args:
        file: a GGUF file with weights, vocabulary and (for a chat model) a chat template.
        out: receives config.json, generation_config.json, model.safetensors and the tokenizer.
        dtype: the dtype of every tensor written: "float32", "bfloat16" or "float16".

    Raises:
        SurgeryError: the file is no GGUF transformers can read, a tensor is missing or not finite,
            or the tokenizer does not give text back as it was.
    """
    with _own_bars(), meter(f"converting {file.name}", 3) as progress:
        tokenizer = _tokenizer(file)
        progress.advance()
        model = _model(file, dtype)
        progress.advance()
        model.save_pretrained(out)
        length = getattr(model.config, "max_position_embeddings", None)
        if length:
            tokenizer.model_max_length = length
        tokenizer.save_pretrained(out)
        progress.advance()
    _tidy(out)


def _model(file: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=getattr(torch, dtype)
        )
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise SurgeryError(f"{file}: transformers cannot read this GGUF file: {error}") from error
    config = type(loaded.config).from_dict(
        {k: _short(v) for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    state = loaded.state_dict()
    for key, value in state.items():
        # One NaN or infinity makes the sum one, at a tenth of what looking at each number costs.
        if value.is_meta or not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            raise SurgeryError(f"{file}: tensor {key} is missing or not finite after de-quantising")
    with torch.device("meta"):
        fresh = type(loaded)(config)
    try:
        fresh.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SurgeryError(f"{file}: its tensors do not make a whole model: {error}") from error
    fresh.tie_weights()
    # Only token ids: a GGUF holds no sampling defaults, and they are no property of the weights.
    fresh.generation_config = GenerationConfig(
        **{
            key: getattr(config, key, None)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            if getattr(config, key, None) is not None
        }
    )
    return fresh


def _tokenizer(file: Path) -> Any:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    try:
        fields = GGUFReader(file).fields
    except (ValueError, OSError) as error:
        raise SurgeryError(f"{file}: not a readable GGUF file: {error}") from error

    def field(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    tokenizer: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    pre = PRE_TOKENIZERS.get(str(field("tokenizer.ggml.pre")))
    if pre is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre()
    if field("tokenizer.chat_template") and not tokenizer.chat_template:
        tokenizer.chat_template = field("tokenizer.chat_template")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = field(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(token_id)))
    ids = tokenizer(PROBE, add_special_tokens=False).input_ids
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != PROBE:
        raise SurgeryError(f"{file}: its tokenizer does not give text back as it was")
    bos = field("tokenizer.ggml.add_bos_token")
    starts = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    if bos is not None and bool(bos) != starts:
        raise SurgeryError(
            f"{file}: it asks for add_bos_token={bool(bos)}, its tokenizer does the opposite"
        )
    return tokenizer


def _single_digits() -> PreTokenizer:
    """Every digit by itself, then GPT-2's byte-level split (the SmolLM family)."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer]] = {"smollm": _single_digits}
"""What a GGUF's `tokenizer.ggml.pre` stands for, where reading the file alone gets it wrong."""


def _short(value: Any) -> Any:
    """A float that is exactly a float32 as the shortest decimal that rounds to that float32."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _tidy(out: Path) -> None:
    """Drop what depends on the machine and the library version, and open up file permissions."""
    for path, drop in (
        (out / "config.json", CONFIG_KEYS_TO_DROP),
        (out / "generation_config.json", ("transformers_version", "_from_model_config")),
        (out / "tokenizer_config.json", ("is_local", "local_files_only", "name_or_path")),
    ):
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: data[key] for key in sorted(data) if key not in drop}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    mask = os.umask(0)
    os.umask(mask)
    for path in out.iterdir():
        path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def _own_bars() -> Iterator[None]:
    """Show progress through `surgery.progress` instead of transformers' own bars and notes."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    loader: Any = modeling_gguf_pytorch_utils

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    theirs = getattr(loader, "tqdm", None)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if theirs is not None:
        # This loop's bar is the one that cannot be switched off.
        loader.tqdm = lambda items, **_: track(items, "de-quantising")
    try:
        yield
    finally:
        if theirs is not None:
            loader.tqdm = theirs
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
