"""The weights of a model directory: which there have to be, and under which names llama.cpp has
them. Every tensor of the files is used, or nothing is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import ExportError
from exports.gguf_shape import INSTEAD, Shape

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROUTER = "mlp.gate.weight"  # which experts take a token; in float32 in every file


@dataclass(frozen=True)
class Wanted:
    """A tensor of the GGUF file, and the tensors of the model that it is stacked from."""

    name: str
    parts: tuple[str, ...]
    num_heads: int = 0  # of q and k where llama.cpp has their rows in another order


def wanted_tensors(shape: Shape, *, has_head: bool) -> list[Wanted]:
    """All tensors of a model of this shape, in the order of the file."""
    names = _gguf_names(shape)

    def one(name: str, num_heads: int = 0) -> Wanted:
        stem, _, kind = name.rpartition(".")
        return Wanted(f"{names(stem)}.{kind}", (name,), num_heads)

    found = [one(EMBEDDING)]
    for layer in range(shape.num_layers):
        found += _layer(shape, f"model.layers.{layer}.", one, names)
    found.append(one("model.norm.weight"))
    if has_head:
        found.append(one(HEAD))
    return found


def _layer(shape: Shape, layer: str, one: Any, names: Any) -> Iterator[Wanted]:
    turned = {"q": shape.num_heads, "k": shape.num_kv_heads} if shape.permutes else {}
    yield one(f"{layer}input_layernorm.weight")
    for part in "qkvo":
        yield one(f"{layer}self_attn.{part}_proj.weight", turned.get(part, 0))
        if part in shape.biased:
            yield one(f"{layer}self_attn.{part}_proj.bias", turned.get(part, 0))
    if shape.norms_heads:
        yield one(f"{layer}self_attn.q_norm.weight")
        yield one(f"{layer}self_attn.k_norm.weight")
    yield one(f"{layer}post_attention_layernorm.weight")
    if shape.num_experts:
        yield one(f"{layer}{ROUTER}")
    for part in ("gate", "up", "down"):
        if not shape.num_experts:
            yield one(f"{layer}mlp.{part}_proj.weight")
            continue
        yield Wanted(
            f"{names(f'{layer}mlp.experts.{part}_proj')}.weight",
            tuple(f"{layer}mlp.experts.{i}.{part}_proj.weight" for i in range(shape.num_experts)),
        )


def _gguf_names(shape: Shape) -> Any:
    """From the module's name of transformers to llama.cpp's, by the table of the gguf package."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map  # pyright: ignore[reportMissingImports]

    arch = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == shape.arch)
    table = get_tensor_name_map(arch, shape.num_layers)

    def name_of(module: str) -> str:
        found = table.get_name(module)
        assert found is not None, module
        return found

    return name_of


def turn_rows(rows: Any, num_heads: int) -> Any:
    """The rows of q or k in llama.cpp's order, which has the two halves of a head interleaved."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


class Weights:
    """The safetensors files of a folder, open; a tensor is read when it is asked for."""

    def __init__(self, folder: Path, opened: dict[str, Any]) -> None:
        self._folder = folder
        self._opened = opened  # name of the tensor -> its file

    def names(self) -> set[str]:
        return set(self._opened)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._opened[name].get_slice(name).get_shape())

    def read(self, name: str) -> Any:
        """A tensor as a float32 array. Raises `ExportError` where a value is not finite."""
        import torch

        tensor = self._opened[name].get_tensor(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ExportError(
                f"{self._folder}: {name} holds {tensor.dtype}, not 16- or 32-bit floats. {INSTEAD}"
            )
        values = tensor.to(torch.float32)
        if not torch.isfinite(values).all():
            raise ExportError(
                f"{self._folder}: {name} holds values that are not finite: the model is broken. "
                "Nothing was written."
            )
        return values.numpy()


@contextlib.contextmanager
def open_weights(files: list[Path]) -> Iterator[Weights]:
    """Open safetensors files. Raises `ExportError` for a damaged one, and for a name in two."""
    from safetensors import SafetensorError, safe_open

    opened: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for path in files:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ExportError(
                    f"{path}: cannot be read: {error}. Nothing was written."
                ) from error
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                if name in opened:
                    raise ExportError(
                        f"{path}: {name} is in another file too. Nothing was written."
                    )
                opened[name] = file
        yield Weights(files[0].parent, opened)


def weight_files(model_dir: Path) -> list[Path]:
    """The files that transformers loads. Raises `ExportError` where there are none."""
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(places.values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{index}: cannot be read: {error!r}. Nothing was written."
            ) from error
        if names:
            return [model_dir / name for name in names]
    single = model_dir / "model.safetensors"
    if single.is_file():
        return [single]
    raise ExportError(
        f"{model_dir}: there is no model.safetensors or its index. Save the model with "
        "save_pretrained, which writes them. Nothing was written."
    )


def check_complete(shape: Shape, weights: Weights, model_dir: Path) -> bool:
    """Hold the files against the config; says whether the model has a head of its own there.

    Raises `ExportError` for a tensor too many or too few, which llama.cpp would not miss.
    """
    present = {name for name in weights.names() if not name.endswith("rotary_emb.inv_freq")}
    has_head = HEAD in present
    if shape.is_tied and has_head and not _is_same(weights, EMBEDDING, HEAD):
        raise ExportError(
            f"{model_dir}: config.json ties the head to the embedding, and the files hold two "
            "that differ, which is read one way here and another there. Set tie_word_embeddings "
            "to false in config.json if the head is meant to be its own. Nothing was written."
        )
    wanted = {
        part
        for tensor in wanted_tensors(shape, has_head=has_head or not shape.is_tied)
        for part in tensor.parts
    }
    for what, names in (("lacks", wanted - present), ("also has", present - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ExportError(
                f"{model_dir}: for a model of its config.json the folder {what} {shown}{more}, so "
                f"llama.cpp would not compute what transformers does. {INSTEAD}"
            )
    return has_head


def _is_same(weights: Weights, one: str, other: str) -> bool:
    return bool((weights.read(one) == weights.read(other)).all())
