"""Where a run happens: the first rule that applies decides, and its reason is printed.

Nothing here talks to a service: services/listening sees whether one answers there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError
from services.keys import TINKER, Keys, refuse_unsendable

if TYPE_CHECKING:
    from local_tinker import Service


# Whose weights are on this machine, as the line says that names the service.
OF_A_RUN = "the run's weights are there"
TO_START_FROM = "the weights that it starts from are there"
OF_ANOTHER_PROGRAM = "adapters of other programs are read there alone"


class ServiceChoice(NamedTuple):
    """Where the run happens, and why. `kind` is embedded, compatible or tinker."""

    kind: str
    base_url: str | None
    reason: str


def choose_service(
    base_url: str | None,
    base_model: str,
    model_dir: Path | None,
    env: Mapping[str, str],
    *,
    local: bool,
    here: str | None = None,
) -> ServiceChoice:
    """Apply the rules in order. Raises `ConfigError` naming the remedies when none applies.

    `here` says why it has to be this machine, as for a run that began here, whose weights are in
    its directory (`why_here`); None where nothing says so.
    """
    address = base_url or env.get("TINKER_BASE_URL")
    if here is not None:
        return ServiceChoice("embedded", None, here)
    if local:
        return ServiceChoice("embedded", None, "--local was given")
    if address:
        source = "base_url in the config" if base_url else "TINKER_BASE_URL"
        _require_key(env, f"{source} is {address}, and a service is reached with a key")
        return ServiceChoice("compatible", address, f"{source} is set")
    if model_dir is not None:
        reason = f"base_model {base_model!r} is a directory"
        return ServiceChoice("embedded", None, reason)
    if env.get("TINKER_API_KEY"):
        _require_key(env, "Tinker is reached with a key")
        return ServiceChoice("tinker", None, "TINKER_API_KEY is set")
    raise ConfigError(
        f"There is nowhere to train {base_model!r}: it is not a directory here, and no "
        "service is set. Export TINKER_API_KEY to use Tinker; or set base_url (or TINKER_BASE_URL) "
        "to a compatible service; or set base_model to a model directory; or add --local to use "
        "this machine and the Hugging Face cache. ./run_demo.sh --local needs none of these."
    )


def service_of_run(settled: Mapping[str, Any], env: Mapping[str, str]) -> ServiceChoice:
    """Where the weights of a recorded run are: on the service that it was on, of which
    TINKER_BASE_URL may say that it has another address now. Raises `ConfigError` without a key."""
    resolved, config = settled["resolved"], settled["config"]
    return choose_service(
        None if env.get("TINKER_BASE_URL") else resolved.get("base_url") or config.get("base_url"),
        config.get("base_model") or settled["files"]["base_model"],
        None,
        env,
        local=False,
        here=why_here(resolved["service"]),
    )


def why_here(service: str | None, weights: str = OF_A_RUN) -> str | None:
    """Why what asks weights of a `service` has to be on this machine; None where they are
    elsewhere, or of no known service. `weights` says whose they are."""
    return weights if service == "embedded" else None


def _require_key(env: Mapping[str, str], why: str) -> None:
    key = env.get("TINKER_API_KEY", "")
    if not key.startswith(("tml-", "eyJ")):
        found = "is not set" if not key else "does not start with tml-"
        raise ConfigError(
            f"TINKER_API_KEY {found}: {why}. Export the key that the service was started with; "
            "where it checks none, any that starts with tml- will do."
        )
    refuse_unsendable(TINKER, key)


class Place(NamedTuple):
    """Where a session is opened, and what it is signed with."""

    choice: ServiceChoice
    service: Service | None  # the embedded one
    checkpoint_dir: Path
    keys: Keys
    start_dir: Path | None = None  # of another run, whose weights are to be loaded


def refuse_elsewhere(key: str, what: str, service: str | None, choice: ServiceChoice) -> None:
    """Raise `ConfigError` where `what` a setting names is on another `service` than the run is to
    be on; None: it is of no known run, as `tinker://` paths may be elsewhere."""
    if service is None and choice.kind == "embedded":
        raise ConfigError(
            f"{key}: no run below ./runs has {what}, and the embedded service finds weights by "
            "their run. Give RUN_DIR@round_02 instead."
        )
    if service not in (None, choice.kind):
        raise ConfigError(
            f"{key}: these weights are on the {service} service, and the run would be on the "
            f"{choice.kind} one ({choice.reason}). Choose the service that they are on."
        )
