"""A direction as a control vector: a GGUF file that llama.cpp and repeng load.

    general.architecture = "controlvector"
    controlvector.model_hint = the model's type;  controlvector.layer_count = how many directions
    direction.<i>  (d) float32, added to the stream out of block i; i counts from 0, and 0 is not used

A direction is read at the *input* of its layer, which is the output of the block before it. It is
scaled to the distance between its two means, so strength 1 moves a state from where the negative
prompts are to where the positive ones are, and strength -1 the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from surgery.architecture import for_config
from surgery.checkpoint import Checkpoint, atomic_file
from surgery.directions import Direction
from surgery.errors import SurgeryError
from surgery.stack.lineage import Lineage


def to_control_vector(
    direction: Direction,
    out: str | Path,
    base: str | Path | Checkpoint,
    layers: Sequence[int] | None = None,
) -> Path:
    """Write the file `out` (.gguf).

    base: the checkpoint the direction was found in. layers: blocks at whose *input* it acts; by default
    the one it was read at. Over several its effect is shared out evenly.

    Raises:
        SurgeryError: another model, a layer the format has no place for.
    """
    import gguf

    checkpoint = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
    table = for_config(checkpoint.config)
    width, depth = table.hidden_size(checkpoint.config), table.n_layers(checkpoint.config)
    vector = direction.vector.detach().float().cpu()
    if vector.numel() != width:
        raise SurgeryError(
            f"the direction has {vector.numel()} numbers, {checkpoint.path} has {width}"
        )
    if direction.base_id not in (checkpoint.id, Lineage.of(checkpoint).base_id):
        raise SurgeryError(
            f"the direction was found in the checkpoint {direction.base_id[:12]}, but "
            f"{checkpoint.path} is {checkpoint.id[:12]}"
        )
    chosen = sorted(set(layers)) if layers else [direction.layer]
    for layer in chosen:
        if not 2 <= layer <= depth:
            raise SurgeryError(
                f"a control vector acts behind the second block or later, so at the input of layers 2 "
                f"to {depth}; layer {layer} is none of them: choose other layers"
            )
    span = float((direction.positive - direction.negative).float().cpu() @ vector)
    values = (vector * (span / len(chosen))).numpy().astype(np.float32)
    with atomic_file(out) as temporary:
        writer = gguf.GGUFWriter(str(temporary), "controlvector")
        writer.add_string("controlvector.model_hint", str(checkpoint.config.get("model_type", "")))
        writer.add_uint32("controlvector.layer_count", len(chosen))
        for layer in chosen:
            writer.add_tensor(f"direction.{layer - 1}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(out)
