"""Weights in the layout that Tinker gives them out in, which the cookbook's `weights` reads.

An adapter of ours is in PEFT's layout. Tinker's has the same tensors, the unembedding's under a
name of its own, and no list of layers; the bytes of the tensors are not touched. Adapters of fused
experts (PEFT's `target_parameters`) have no other layout that could hold them, and stay as they
are.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import pyrage

from local_tinker import checkpoints
from local_tinker.wire import UserError

_pyrage: Any = pyrage  # the extension has no types
AGE_SUFFIX = ".age"
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
UNEMBEDDING = (".lm_head.", ".model.unembed_tokens.")  # PEFT's name, Tinker's
CHUNK_BYTES = 1 << 20
HEADER_ALIGNMENT = 8  # of safetensors


class GivenFile(NamedTuple):
    """A file to give out: `head`, then the rest of an open file from `start`."""

    name: str
    head: bytes
    file: BufferedReader
    start: int

    @property
    def num_bytes(self) -> int:
        return len(self.head) + os.fstat(self.file.fileno()).st_size - self.start

    def chunks(self) -> Iterator[bytes]:
        if self.head:
            yield self.head
        self.file.seek(self.start)
        while chunk := self.file.read(CHUNK_BYTES):
            yield chunk


def given_files(files: Mapping[str, BufferedReader]) -> list[GivenFile]:
    """The files of an adapter as Tinker has them; others, such as an optimizer, are left out.

    Raises `UserError` where they are not those of an adapter.
    """
    try:
        return _given_files(files)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"the checkpoint is damaged, its {CONFIG} and {ADAPTER} cannot be read: {error!r}"
        ) from error


def _given_files(files: Mapping[str, BufferedReader]) -> list[GivenFile]:
    config_file = files[CONFIG]
    config = json.load(config_file)
    is_fused = bool(config.get("target_parameters"))
    if is_fused:
        given_config = GivenFile(CONFIG, b"", config_file, 0)
    else:
        text = json.dumps({**config, "target_modules": "all-linear"}, indent=2).encode()
        given_config = GivenFile(CONFIG, text, config_file, config_file.tell())
    return [given_config, _adapter(files[ADAPTER], (".", ".") if is_fused else UNEMBEDDING)]


def _adapter(file: BufferedReader, renaming: tuple[str, str]) -> GivenFile:
    """A safetensors file whose header gives some tensors another name."""
    num_header_bytes = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(num_header_bytes))
    text = json.dumps({name.replace(*renaming): entry for name, entry in header.items()}).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return GivenFile(ADAPTER, head, file, 8 + num_header_bytes)


def parse_recipients(recipients: Sequence[str]) -> list[Any]:
    """Read age recipients: native keys and SSH public keys. Raises `UserError`."""
    return [_recipient(text) for text in recipients]


def _recipient(text: str) -> Any:
    parse: Callable[[str], Any] = _pyrage.x25519.Recipient.from_str
    if text.startswith("ssh-"):
        parse = _pyrage.ssh.Recipient.from_str
    try:
        return parse(text)
    except _pyrage.RecipientError as error:
        raise UserError(
            f"age_encryption_recipients: {text[:80]!r} is no recipient that files can be encrypted "
            f"for ({error}); give public keys, age1... or ssh-..."
        ) from error


def write(
    root: Path, plain_dir: Path, target: Path, ttl_seconds: int | None, recipients: Sequence[Any]
) -> None:
    """Export a checkpoint as the folder `target`, encrypted for the recipients if there are any.

    Raises what `checkpoints.write` raises.
    """
    expires_at = checkpoints.expiry(time.time(), ttl_seconds)
    info = replace(checkpoints.read_info(plain_dir), expires_at=expires_at)

    def write_files(directory: Path) -> None:
        with (plain_dir / CONFIG).open("rb") as config, (plain_dir / ADAPTER).open("rb") as adapter:
            for given in given_files({CONFIG: config, ADAPTER: adapter}):
                file = directory / given.name
                with file.open("wb") as output:
                    output.writelines(given.chunks())
                if recipients:
                    _encrypt(file, recipients)

    checkpoints.write(root, target, info, write_files, overwrite=False)


def _encrypt(file: Path, recipients: Sequence[Any]) -> None:
    with file.open("rb") as plain, Path(f"{file}{AGE_SUFFIX}").open("wb") as encrypted:
        _pyrage.encrypt_io(plain, encrypted, recipients)
    file.unlink()
