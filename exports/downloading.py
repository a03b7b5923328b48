"""An adapter fetched from Tinker or a compatible service, and brought into PEFT's layout.

By the cookbook, which has a state path exported, encrypted for this machine alone, and deletes the
export. Of SDK 0.38 states alone can be downloaded; sampler weights are those of the state beside.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from errors import ConfigError, ExportError, ServiceError
from exports.source import Source, expiry_of
from services.keys import TINKER

RAW = "downloaded"  # beside the adapter in PEFT's layout


def download(source: Source, env: Mapping[str, str], folder: Path) -> None:
    """Fetch the adapter of a checkpoint into its `adapter_dir`, through a folder for what comes.

    Raises `ConfigError`, `ServiceError` or `ExportError`.
    """
    from tinker_cookbook import weights
    from tinker_cookbook.exceptions import WeightsDownloadError

    path = source.state_path
    assert path is not None, "found with its state"
    refuse_unreachable(source, env)
    raw = folder / RAW
    with _signed(env):
        try:
            weights.download(tinker_path=path, output_dir=str(raw), base_url=source.base_url)
        except WeightsDownloadError as error:
            cause = "" if error.__cause__ is None else f" ({error.__cause__})"
            raise ServiceError(
                f"export {source.label}: the service did not give {path} out: {error}{cause} Check "
                "that it has not expired and that the key is its owner's, and try again."
            ) from error
    to_peft(raw, source.base_dir, source.adapter_dir)


def refuse_unreachable(source: Source, env: Mapping[str, str]) -> None:
    """Raise `ConfigError` before anything is asked: no key, or weights that have expired."""
    if not env.get(TINKER):
        raise ConfigError(
            f"export {source.label}: its weights are on a service, and {TINKER} is not set. Export "
            "the key of the account that trained it."
        )
    until = expiry_of(source)
    if until is not None and until <= time.time():
        raise ConfigError(
            f"export {source.label}: {source.state_path} has expired on its service. Name a "
            "checkpoint that is still there."
        )


def to_peft(raw: Path, base_dir: Path, adapter_dir: Path) -> None:
    """Bring an adapter in Tinker's layout into PEFT's. Raises `ExportError`."""
    from tinker_cookbook import weights
    from tinker_cookbook.exceptions import TinkerCookbookError

    try:
        weights.build_lora_adapter(
            base_model=str(base_dir), adapter_path=str(raw), output_path=str(adapter_dir)
        )
    except (TinkerCookbookError, OSError, ValueError, KeyError, AssertionError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise ExportError(
            f"{base_dir.name}: tinker_cookbook's build_lora_adapter does not bring this adapter "
            f"into PEFT's layout: {error} It takes no mixtures of experts of every family; such "
            "adapters can be exported from the embedded service alone."
        ) from error


@contextlib.contextmanager
def _signed(env: Mapping[str, str]) -> Iterator[None]:
    """The cookbook finds the key in the environment alone, which has none of it otherwise."""
    before = os.environ.get(TINKER)
    os.environ[TINKER] = env[TINKER]
    try:
        yield
    finally:
        if before is None:
            del os.environ[TINKER]
        else:
            os.environ[TINKER] = before
