"""An adapter in PEFT's layout that another program wrote: its two files, read and held together.

    adapter_config.json          what kind of adapter it is, rank and alpha
    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight (rank, inputs)
                                 base_model.model.<layer>.lora_B.weight (outputs, rank)

Which layers it has is said by the names of its tensors, for some writers name none in the config.
Each key and each tensor is read, is known to change no number, or is refused by its name. Here the
numbers are not read, and no model is needed; `adopting.py` holds a folder against its base model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = ("F32", "BF16", "F16")
# Read here or in `adopting.py`.
READ = frozenset(
    {
        *("alpha_pattern", "base_model_name_or_path", "exclude_modules", "init_lora_weights"),
        *("layers_pattern", "layers_to_transform", "lora_alpha", "peft_type", "r"),
        *("rank_pattern", "target_modules", "target_parameters", "use_rslora"),
    }
)
# Of training, of where it was saved, or a detail of what is off; the layout is the model's own.
NO_NUMBER = frozenset(
    {
        *("auto_mapping", "eva_config", "fan_in_fan_out", "inference_mode", "lora_dropout"),
        *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config"),
        *("task_type",),
    }
)
# Of what form a key is, or a list of it, where it is there.
FORMS = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), str),
    **{"layers_to_transform": int, "use_rslora": bool, "base_model_name_or_path": str},
}
PATTERNS_S = 10.0  # the longest that its patterns may take, with the start of a process
TRY_PATTERNS = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
"""
# Ways of beginning that leave the base model's own weights as they are.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
WHY_NOT = {
    "use_dora": "DoRA scales each row of the sum as well, which is not computed here; merge it "
    "into a copy of its base model with PEFT, and give that as base_model",
    "bias": "it trains biases of the base model as well; train with bias none",
    "modules_to_save": "it replaces whole matrices of the base model; merge it into a copy of its "
    "base model with PEFT, and give that as base_model",
    "trainable_token_indices": "it replaces rows of the embedding; merge it into a copy of its "
    "base model with PEFT, and give that as base_model",
}
OTHERWISE = (
    "what it does to the numbers is not computed here; merge the adapter into a copy of its base "
    "model with the program that wrote it, and give that as base_model"
)


class FolderError(Exception):
    """A folder that is no adapter that can be used here, with the file and what to do."""


class Pair(NamedTuple):
    """One layer's matrices, by their sizes."""

    rank: int
    num_inputs: int
    num_outputs: int


@dataclass(frozen=True)
class PeftFolder:
    """An adapter's folder, without its numbers."""

    directory: Path  # where the two files are
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # of all tensors, by their names in the file
    pairs: dict[str, Pair]  # by layer; none where the adapter changes experts
    whole: dict[str, str]  # layers whose own matrix is saved beside them, and that tensor's name
    sha256: dict[str, str]  # by file

    @property
    def rank(self) -> int:
        return self.config["r"]

    @property
    def base_name(self) -> str | None:
        """What the adapter's writer called its base model: a hub's name, a folder, or nothing."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def has_experts(self) -> bool:
        return bool(self.config.get("target_parameters"))

    @property
    def has_patterns(self) -> bool:
        """Whether its layers differ in rank or alpha."""
        return bool(self.config.get("rank_pattern") or self.config.get("alpha_pattern"))

    def alpha_at(self, rank: int, alpha: float) -> float:
        """What `alpha` comes to where the update is alpha / rank times B A: rsLoRA divides by the
        root of the rank instead."""
        return alpha * math.sqrt(rank) if self.config.get("use_rslora") else alpha

    @property
    def alpha(self) -> float:
        """Of the layers that no pattern singles out."""
        return self.alpha_at(self.rank, self.config["lora_alpha"])

    @property
    def num_params(self) -> int:
        """How many numbers LoRA's matrices have."""
        return sum(math.prod(size) for name, size in self.shapes.items() if ".lora_" in name)

    @property
    def digest(self) -> str:
        """One sha256 for both files."""
        both = "".join(self.sha256[name] for name in (CONFIG_FILE, WEIGHTS_FILE))
        return hashlib.sha256(both.encode()).hexdigest()

    def path(self, kind: str) -> str:
        """The tinker:// path that it has once a service has adopted it."""
        return f"tinker://adapter-{self.digest[:16]}:train:0/{kind}/adapter"

    def describe(self) -> str:
        """What it is, in a line."""
        kind = "rsLoRA" if self.config.get("use_rslora") else "LoRA"
        number = len({name.split(".lora_")[0] for name in self.shapes if ".lora_" in name})
        of = ", ".join(sorted({name.rpartition(".")[2] for name in self.pairs})) or "experts"
        alpha = f"alpha {self.config['lora_alpha']:g}"
        return (
            f"{kind} of rank {self.rank}, {alpha}, on {number} layers ({of}); {CONFIG_FILE} sha256 "
            f"{self.sha256[CONFIG_FILE][:12]}, {WEIGHTS_FILE} {self.sha256[WEIGHTS_FILE][:12]}"
        )


def find_folder(folder: Path) -> Path | None:
    """The folder itself, or the one folder in it, that has an adapter_config.json; None where there
    is none. Raises `FolderError` where there are several in it."""
    try:
        if (folder / CONFIG_FILE).is_file():
            return folder
        below = sorted(one.parent for one in folder.glob(f"*/{CONFIG_FILE}") if one.is_file())
    except (OSError, ValueError):  # a name that no folder can have
        return None
    if len(below) > 1:
        names = ", ".join(one.name for one in below)
        raise FolderError(f"{folder}: there are several adapters in it ({names}). Name one.")
    return below[0] if below else None


def read_folder(directory: Path) -> PeftFolder:
    """Read an adapter's folder as `find_folder` gives it. Raises `FolderError`."""
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        others = sorted(one.name for one in directory.glob("adapter_model*"))
        found = f"; there is {', '.join(others)}" if others else ""
        raise FolderError(
            f"{directory}: there is no {WEIGHTS_FILE}{found}. Pickled and divided weights are not "
            "read: load the adapter with PEFT where it was trained, and save it with "
            "save_pretrained, which writes one safetensors file."
        )
    config_bytes = _bytes_of(directory / CONFIG_FILE)
    config = _checked_config(directory / CONFIG_FILE, config_bytes)
    shapes = _read_shapes(weights)
    with weights.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    sha256 = {CONFIG_FILE: hashlib.sha256(config_bytes).hexdigest(), WEIGHTS_FILE: digest}
    if config.get("target_parameters"):
        return PeftFolder(directory, config, shapes, {}, {}, sha256)
    pairs, whole = _paired(weights, shapes)
    return PeftFolder(directory, config, shapes, pairs, whole, sha256)


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FolderError(f"{file}: cannot be read: {error}.") from None


# --- the config -----------------------------------------------------------------------------------


def _checked_config(file: Path, content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{file}: is no JSON: {error}. Restore it from a copy.") from None
    if not isinstance(config, dict):
        found = type(config).__name__
        raise FolderError(f"{file}: expected an object, found {found}. Restore it from a copy.")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FolderError(
            f"{file}: peft_type is {json.dumps(kind)}, and LORA alone is computed here. Merge the "
            "adapter into a copy of its base model with PEFT, where its kind can be merged, and "
            "give that as base_model."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise FolderError(f"{file}: r is {json.dumps(rank)}; expected a rank of 1 or more.")
    _check_alpha(file, "lora_alpha", alpha)
    for key, pattern in (("rank_pattern", int), ("alpha_pattern", int | float)):
        values = config.get(key) or {}
        if not isinstance(values, Mapping) or not all(
            isinstance(one, pattern) and not isinstance(one, bool) for one in values.values()
        ):
            raise FolderError(f"{file}: {key} is no object of numbers by layer.")
    for key, value in (config.get("alpha_pattern") or {}).items():
        _check_alpha(file, f"alpha_pattern {key}", value)
    _check_forms(file, config)
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise FolderError(
            f"{file}: init_lora_weights is {json.dumps(start)}: it was begun from base weights "
            "that were changed as well, and which the base model here does not have. Save it with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain adapter of it."
        )
    for key, value in config.items():
        if key in READ or key in NO_NUMBER or not value or (key, value) == ("bias", "none"):
            continue
        raise FolderError(
            f"{file}: {key} is {json.dumps(value)[:80]}: {WHY_NOT.get(key, OTHERWISE)}."
        )
    return config


def _check_forms(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `FolderError` for a key of another form than PEFT writes, or a pattern that is none."""
    for key, kind in FORMS.items():
        value = config.get(key)
        may_be_list = key not in ("use_rslora", "base_model_name_or_path")
        every = value if may_be_list and isinstance(value, list) else [value]
        if value is not None and not all(type(one) is kind for one in every):
            raise FolderError(
                f"{file}: {key} is {json.dumps(value)[:80]}, which PEFT does not write. Save the "
                "adapter with its save_pretrained."
            )
    for pattern in _patterns(config):
        try:
            re.compile(pattern)
        except re.error as error:
            raise FolderError(
                f"{file}: {json.dumps(pattern)[:80]} is no pattern of names: {error}. Take the "
                "file from where the adapter was saved."
            ) from None


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """The patterns that a config names layers by, as PEFT matches them with whole names."""
    names = (config.get(key) for key in ("target_modules", "exclude_modules"))
    ends = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    return [rf"(.*\.)?({one})$" for one in ends] + [one for one in names if isinstance(one, str)]


def refuse_slow_patterns(folder: PeftFolder, names: Iterable[str]) -> None:
    """Raise `FolderError` where matching the config's patterns with layers takes too long.

    A pattern can take for ever, and a thread in it hears no signal: it is tried in a process that
    can be ended, and only then by PEFT here.
    """
    if not (patterns := _patterns(folder.config)):
        return
    tried = json.dumps([patterns, list(names)])
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", TRY_PATTERNS],
            input=tried, text=True, check=True, timeout=PATTERNS_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FolderError(
            f"{folder.directory / CONFIG_FILE}: to find the layers that its patterns name "
            f"({json.dumps(patterns)[:80]}) takes more than {PATTERNS_S:g} s. Write the names of "
            "the layers instead, as lists."
        ) from None


def _check_alpha(file: Path, key: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise FolderError(f"{file}: {key} is {json.dumps(value)}; expected a number above 0.")


# --- the tensors ----------------------------------------------------------------------------------


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(str(file), framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                if part.get_dtype() not in FLOATS:
                    raise FolderError(
                        f"{file}: {name} is {part.get_dtype()}; {', '.join(FLOATS)} are read. "
                        "Save the adapter in one of them."
                    )
                shapes[name] = tuple(part.get_shape())
    except (OSError, SafetensorError) as error:
        raise FolderError(
            f"{file}: cannot be read: {error}. Copy the file again from where it was written."
        ) from None
    if not shapes:
        raise FolderError(f"{file}: there are no tensors in it, so it is no adapter.")
    return shapes


def _paired(
    file: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Pair], dict[str, str]]:
    """The layers of a file and their sizes, and the whole matrices beside them. Raises
    `FolderError` for a tensor that is neither."""
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    whole: dict[str, str] = {}
    for name, shape in shapes.items():
        layer, _, half = name.removeprefix(PREFIX).rpartition(".lora_")
        if layer.rpartition(".")[2] == "embed_tokens":  # which SkyRL adapts, under a layer's names
            half = ""
        if name.startswith(PREFIX) and name.endswith(".base_layer.weight"):
            whole[name.removeprefix(PREFIX).removesuffix(".base_layer.weight")] = name
        elif name.startswith(PREFIX) and half in ("A.weight", "B.weight") and len(shape) == 2:
            halves.setdefault(layer, {})[half[0]] = shape
        else:
            raise FolderError(f"{file}: {name} of shape {shape}: {_why_unread(name)}.")
    pairs = {}
    for layer, found in halves.items():
        if found.keys() != {"A", "B"}:
            raise FolderError(
                f"{file}: layer {layer} has lora_{next(iter(found))} alone, so its update is not "
                "known. Copy the file again, or save the adapter again."
            )
        (rank, num_inputs), (num_outputs, rank_of_b) = found["A"], found["B"]
        if rank != rank_of_b:
            raise FolderError(
                f"{file}: layer {layer} has lora_A of {rank} rows and lora_B of {rank_of_b} "
                "columns, which must be one rank. Save the adapter again."
            )
        pairs[layer] = Pair(rank, num_inputs, num_outputs)
    return pairs, whole


def _why_unread(name: str) -> str:
    if "lora_embedding_" in name or "embed_tokens" in name:
        return (
            "adapters on the embedding, and embeddings saved whole (as of a vocabulary that was "
            "resized), are not computed here; train without them, or merge the adapter into a "
            "copy of its base model with the program that wrote it, and give that as base_model"
        )
    if "lora_magnitude" in name:
        return WHY_NOT["use_dora"]
    if ".lora_" not in name:
        return WHY_NOT["modules_to_save"]
    return (
        f"expected the names {PREFIX}<layer>.lora_A.weight and .lora_B.weight, of two dimensions; "
        "save the adapter with PEFT's save_pretrained"
    )
