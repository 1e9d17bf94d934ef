"""Ablation removes exactly what it says, from every residual writer of every architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES

from surgery.directions import Direction
from surgery.directions.algebra import orthonormal
from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.methods.ablate import layer_strengths
from surgery.model import Model
from surgery.model.hooks import hooks
from surgery.spec import AblateEdit, EditSpec
from surgery.stack import applied

ALL = ["attention", "mlp", "embedding"]


def direction(tmp_path: Path, model: Model, seed: int = 0) -> tuple[torch.Tensor, str]:
    """A random unit vector, and the file it is saved in."""
    g = torch.Generator().manual_seed(seed)
    r = torch.randn(model.hidden_size, generator=g)
    r = r / r.norm()
    mean = torch.randn(model.hidden_size, generator=g)
    one = Direction(r, r, mean, layer=2, position=-1, base_id=model.checkpoint.id)
    return r.double(), str(one.save(tmp_path / f"{seed}.safetensors"))


def ablate(model: Model, **fields):
    return solve(EditSpec(edits=[AblateEdit(**fields)]), model)


def written(model: Model, r: torch.Tensor) -> dict[str, torch.Tensor]:
    """r . y for each unit input of each writer, and for its bias. Orientation and gain by family."""
    found = {}
    gemma = "gemma" in model.config["model_type"]
    gpt2 = model.config["model_type"] == "gpt2"
    for name, parameter in model.hf.named_parameters():
        value, module = parameter.detach().double(), name.rpartition(".")[0]
        if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight")):
            found[name] = value @ r
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            row = r
            if gemma:
                block = module.rpartition(".")[0].rpartition(".")[0]
                attention = name.endswith("o_proj.weight")
                norm = "post_attention_layernorm" if attention else "post_feedforward_layernorm"
                row = r * (1 + model.hf.get_parameter(f"{block}.{norm}.weight").double())
            found[name] = row @ value
        elif gpt2 and name.endswith("c_proj.weight"):
            found[name] = value @ r
        elif gpt2 and name.endswith("c_proj.bias"):
            found[name] = value @ r
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_every_writer_writes_what_is_left(tiny_model, tmp_path, family, strength):
    """r^T W' = (1 - strength) r^T W, attention's square matrices, biases and embeddings included."""
    model = tiny_model(family)
    r, file = direction(tmp_path, model)
    before = written(model, r)
    biases = model.n_layers * 2 if family == "gpt2" else 0
    assert len(before) == len(model.writers()) + biases
    delta = ablate(model, direction=file, strength=strength, writers=ALL, embeddings="untie")
    with applied(model, delta):
        after = written(model, r)
        if family == "llama":
            torch.testing.assert_close(
                model.head.weight, model.checkpoint.read("model.embed_tokens.weight")
            )
    for name, value in before.items():
        torch.testing.assert_close(
            after[name],
            (1 - strength) * value,
            rtol=1e-5,
            atol=2e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    leaks = delta.metadata["diagnostics"][0]["leak"]
    assert leaks["most"] == pytest.approx(abs(1 - strength), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_hook_that_projects_the_writers_output(tiny_model, tmp_path, family):
    """Logits of the edited weights are those of the base with y - strength r r.y in place of each y."""
    model = tiny_model(family)
    r, file = direction(tmp_path, model)
    strength, ids = 0.6, torch.arange(5, 15)[None]
    with torch.no_grad(), hooks() as attach:
        for writer in model.writers():
            row = r
            if writer.post_norm is not None:
                norm = model.module(writer.post_norm).weight
                assert isinstance(norm, torch.Tensor)
                row = r * (1 + norm.double())
                row = row / row.norm()

            def project(_m, _a, _k, y, row=row):
                return y - strength * (y.double() @ row).float()[..., None] * row.float()

            attach.post(model.module(writer.module), project)
        hooked = model.hf(ids).logits
    delta = ablate(model, direction=file, strength=strength, writers=ALL, embeddings="untie")
    with torch.no_grad(), applied(model, delta):
        edited = model.hf(ids).logits
    torch.testing.assert_close(edited, hooked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, model.hf(ids).logits, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_equals_a_hook_too(tiny_model, tmp_path, family):
    """Every writer's output loses strength * r (a . y): behind a post-norm, of what the norm lets through."""
    model = tiny_model(family)
    r, plain = direction(tmp_path, model)
    a = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(7)).double()
    a = a / (a @ r)
    one = Direction.load(Path(plain))
    file = str(replace(one, reader=a.float()).save(tmp_path / "read.safetensors"))
    strength, ids = 0.6, torch.arange(5, 15)[None]
    with torch.no_grad(), hooks() as attach:
        for writer in model.writers():
            row, read = r, a
            if writer.post_norm is not None:
                norm = model.module(writer.post_norm).weight
                assert isinstance(norm, torch.Tensor)
                row, read = r / (1 + norm.double()), a * (1 + norm.double())

            def project(_m, _a, _k, y, row=row, read=read):
                return y - strength * (y.double() @ read).float()[..., None] * row.float()

            attach.post(model.module(writer.module), project)
        hooked = model.hf(ids).logits
    delta = ablate(model, direction=file, strength=strength, writers=ALL, embeddings="untie")
    with torch.no_grad(), applied(model, delta):
        edited = model.hf(ids).logits
    torch.testing.assert_close(edited, hooked, rtol=1e-3, atol=1e-3)
    assert delta.metadata["spec"]["edits"][0]["reader"] == "whitened"
    leaks = delta.metadata["diagnostics"][0]["leak"]
    assert leaks["most"] == pytest.approx(1 - strength, abs=1e-4)
    # Asked for plain, the reader is left where it is.
    as_plain = ablate(model, direction=file, reader="plain", layers=[0])
    assert as_plain.id == ablate(model, direction=plain, layers=[0]).id
    with pytest.raises(SurgeryError, match="holds no reader"):
        ablate(model, direction=plain, reader="whitened")
    with pytest.raises(SurgeryError, match="plain only"):
        ablate(model, direction=file, reader="whitened", project=True)


def test_a_whitened_reader_from_prompts_is_recorded_and_reproducible(tiny_model):
    model = tiny_model("llama")
    delta = ablate(model, positive=RED, negative=OTHER, reader="whitened")
    (edit,) = delta.metadata["spec"]["edits"]
    assert edit["reader"] == "whitened"
    assert solve(EditSpec.model_validate(delta.metadata["spec"]), model).id == delta.id
    assert ablate(model, positive=RED, negative=OTHER).id != delta.id


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_direction_is_left_in_the_stream(tiny_model, tmp_path, family):
    """With all writers at strength 1, after every layer; another direction stays."""
    model = tiny_model(family)
    r, file = direction(tmp_path, model)
    other, other_file = direction(tmp_path, model, seed=1)

    def left(name: str) -> float:
        delta = ablate(model, direction=name, writers=ALL, embeddings="untie")
        with torch.no_grad(), applied(model, delta):
            states = model.hf(torch.arange(5, 15)[None], output_hidden_states=True).hidden_states
        # The last of them is behind the final norm.
        return max(float((h.double() @ r).abs().max() / h.norm(dim=-1).max()) for h in states[:-1])

    assert left(file) < 1e-5
    assert left(other_file) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_directions_are_one_projection(tiny_model, tmp_path, family):
    """Their whole span goes, though they are not orthogonal; what is orthogonal to it stays."""
    model = tiny_model(family)
    (r, one), (q, two) = (direction(tmp_path, model, seed) for seed in (0, 1))
    assert abs(float(r @ q)) > 0.01
    g = torch.Generator().manual_seed(9)
    p = torch.randn(model.hidden_size, generator=g, dtype=torch.float64)
    p = orthonormal([r, q, p])[2]
    kept = written(model, p)
    with applied(model, ablate(model, direction=[one, two])):
        for vector, expected in ((r, 0.0), (q, 0.0), (p, None)):
            for name, value in written(model, vector).items():
                if "c_proj" in name or "_proj" in name:
                    wanted = kept[name] if expected is None else torch.zeros_like(value)
                    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_keeping_the_length_of_what_is_written(tiny_model, tmp_path, family):
    model = tiny_model(family)
    r, file = direction(tmp_path, model)

    def lengths() -> list[torch.Tensor]:
        writers = [w for w in model.writers() if w.layer is not None]
        weights = [(model.hf.get_parameter(w.weight), w.residual_axis) for w in writers]
        return [weight.detach().norm(dim=axis) for weight, axis in weights]

    before = lengths()
    with applied(model, ablate(model, direction=file, norm="columns")):
        torch.testing.assert_close(lengths(), before, rtol=1e-5, atol=1e-6)
        for name, value in written(model, r).items():
            if "_proj" in name and name.endswith("weight"):
                assert float(value.norm()) < 1e-5


def test_chosen_layers_and_writers_only(tiny_model, tmp_path):
    model = tiny_model("llama")
    _, file = direction(tmp_path, model)
    delta = ablate(model, direction=file, layers=[1, 3], writers=["mlp"])
    assert set(delta.tensors) == {f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 3)}
    assert delta.metadata["diagnostics"][0]["writers"] == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"strength": 0.5}, [0.5, 0.5, 0.5, 0.5]),
        ({"strength": 1.0, "layers": [1, 2]}, [0, 1, 1, 0]),
        ({"strength": {1: 0.5, 3: -1.0}}, [0, 0.5, 0, -1]),
        ({"strength": [0.0, 1.5]}, [0, 0.5, 1, 1.5]),
        ({"strength": [0.0, 1.0, 0.0], "layers": [1, 2, 3]}, [0, 0, 1, 0]),
        ({"strength": [0.3]}, [0.3] * 4),
    ],
)
def test_strength_over_depth(fields, expected):
    assert layer_strengths(AblateEdit(**fields), 4) == pytest.approx(expected)


def test_the_affine_form_puts_the_mean_in_place(tiny_model, tmp_path):
    """What all biases together gain over mean: zero is the negatives' mean along the direction."""
    model = tiny_model("gpt2")
    r, file = direction(tmp_path, model)
    mean = Direction.load(Path(file)).negative.double()
    keep = ablate(model, direction=file, mean="keep").tensors
    zero = ablate(model, direction=file, mean="zero").tensors
    gained = sum(keep[k].value() - zero[k].value() for k in zero if k.endswith("bias"))
    assert isinstance(gained, torch.Tensor)
    torch.testing.assert_close(gained.double(), r * (r @ mean), rtol=1e-4, atol=1e-5)
    with pytest.raises(SurgeryError, match="needs a bias"):
        ablate(
            tiny_model("llama"), direction=direction(tmp_path, tiny_model("llama"))[1], mean="keep"
        )


RED = ["the river is red", "red music", "old red wine"]
OTHER = ["the sun is", "no wine", "green tea"]


def test_from_prompts_the_choice_is_recorded_and_reproducible(tiny_model, tmp_path):
    model = tiny_model("llama")
    (tmp_path / "red.txt").write_text("\n".join(RED))
    delta = ablate(model, positive=str(tmp_path / "red.txt"), negative=OTHER)
    (edit,) = delta.metadata["spec"]["edits"]
    assert edit["positive"] == RED and edit["layer"] == 2 and edit["position"] == -1
    # The recorded spec gives the same delta without the file, and so does the same spec again.
    (tmp_path / "red.txt").unlink()
    again = solve(EditSpec.model_validate(delta.metadata["spec"]), model)
    assert again.id == delta.id
    projected = ablate(model, positive=RED, negative=OTHER, project=True)
    assert projected.id != delta.id


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "needs positive and negative"),
        ({"positive": RED}, "needs positive and negative"),
        ({"positive": RED, "negative": OTHER, "layer": 9}, "layer 9 is outside"),
        ({"positive": RED, "negative": OTHER, "layers": [7]}, "layer 7 is outside"),
        ({"positive": RED, "negative": OTHER, "strength": 0.0}, "nothing to edit"),
        ({"positive": RED, "negative": OTHER, "writers": ALL}, "also its output head"),
        (
            {"positive": RED, "negative": OTHER, "writers": ALL, "strength": [1.0, 0.0]},
            "one strength|also its output head",
        ),
        ({"direction": "nowhere.safetensors"}, "no direction"),
    ],
)
def test_what_cannot_be_done_is_said(tiny_model, fields, word):
    with pytest.raises(SurgeryError, match=word):
        ablate(tiny_model("llama"), **fields)


def test_both_needs_a_tied_head(tiny_model, tmp_path):
    tied, untied = tiny_model("llama"), tiny_model("llama", tie_word_embeddings=False)
    r, file = direction(tmp_path, tied)
    delta = ablate(tied, direction=file, writers=ALL, embeddings="both")
    with applied(tied, delta):
        assert tied.tied
        assert float((tied.head.weight.double() @ r).norm()) < 1e-4
    with pytest.raises(SurgeryError, match="tensor of its own"):
        ablate(untied, direction=direction(tmp_path, untied)[1], writers=ALL, embeddings="both")
