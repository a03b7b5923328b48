"""An adapter fetched from Tinker or a compatible service, and brought into PEFT's layout.

By the cookbook, which has a state path exported, encrypted for this machine alone, and deletes the
export. Of SDK 0.38 states alone can be downloaded; sampler weights are those of the state beside.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from errors import ConfigError, ExportError, ServiceError
from exports.source import Source, expiry_of, place_of
from services.faults import explain, said_by
from services.keys import TINKER
from services.listening import refuse_no_service

RAW = "downloaded"  # beside the adapter in PEFT's layout
NOT_GIVEN = (
    "If these weights have expired or were deleted there, name another checkpoint. Where the "
    "service gives none out at all, ask its operator for the adapter; to have one exported and "
    "checked here, train on a service that does: Tinker, python -m local_tinker or the embedded "
    "one (--local)."
)
ADVICE = {  # by what a service's error means
    "refused_key": f"Check that {TINKER} is the key of the account that trained it.",
    "session_lost": NOT_GIVEN,
    "user_error": NOT_GIVEN,
}
TRY_AGAIN = "Try again; if it stays so, ask the service's operator."


def download(
    source: Source, env: Mapping[str, str], folder: Path, tell: Callable[[str], None]
) -> None:
    """Fetch the adapter of a checkpoint into its `adapter_dir`, through a folder for what comes.

    Raises `ConfigError`, `ServiceError` or `ExportError`.
    """
    from tinker_cookbook import weights
    from tinker_cookbook.exceptions import WeightsDownloadError

    path, address = source.state_path, refuse_unreachable(source, env, tell)
    assert path is not None, "found with its state"
    raw = folder / RAW
    with _signed(env), warnings.catch_warnings():
        # Of the SDK to its callers, and the caller is the cookbook.
        warnings.filterwarnings("ignore", category=FutureWarning, module="tinker_cookbook")
        try:
            weights.download(tinker_path=path, output_dir=str(raw), base_url=address)
        except WeightsDownloadError as error:
            raise _not_given(source, address, error) from error
    to_peft(raw, source.base_dir, source.adapter_dir)


def _not_given(source: Source, address: str | None, error: Exception) -> ServiceError:
    """Why there is no download, in the service's own words, and what helps."""
    said, cause = str(error).rstrip("."), error.__cause__
    known = None
    if isinstance(cause, Exception):
        words = said_by(cause)
        known = explain(cause, address)
        # Some errors of the cookbook quote what came before, and some do not.
        said = said if words in said else f"{said}: {words.rstrip('.')}"
    advice = ADVICE.get(known.fault if known is not None and known.fault else "", TRY_AGAIN)
    failed = ServiceError(
        f"export {source.label}: the service at {address or 'Tinker'} did not give "
        f"{source.state_path} out: {said}. {advice} Nothing was written."
    )
    failed.fault = None if known is None else known.fault
    return failed


def refuse_unreachable(
    source: Source, env: Mapping[str, str], tell: Callable[[str], None]
) -> str | None:
    """The address of the service, None for Tinker's own. Raises `ConfigError` before anything is
    asked: no key, weights that have expired, or no service there; `tell` is given what is waited
    for."""
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
    address = place_of(source, env).base_url
    if address is not None:
        refuse_no_service(address, tell)
    return address


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
