"""`--then`: a command of the user's, given what a promotion changed as JSON on its standard input.

The rules are those of `--alert`: it comes from the command line alone, and is run without a shell
and without this process's keys. It is run once the promotion is durable, which stands whatever the
command does. It may take longer than an alert, since it may put the weights somewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commands.alerts import parse_command, send_alert
from ledger.registry_file import Promoted, Registry
from ledger.registry_weights import weights_dir

FLAG = "--then"
LIMIT_S = 600.0


def parse_then(text: str) -> list[str]:
    """The words of the command. Raises `ConfigError` when it is none."""
    return parse_command(text, FLAG)


def message_of(
    registry: Registry, entry: Promoted, before: Mapping[str, str | None]
) -> dict[str, Any]:
    """What the command is told; `before` is what each alias that moved stood for."""
    run_dir = (registry.folder / entry.run_dir).resolve()
    is_here = entry.weights_sha256 is not None
    against = entry.against or {}
    return {
        "event": "promoted",
        "registry": str(registry.path.resolve()),
        "name": entry.name,
        "version": entry.version,
        "reference": entry.reference,
        "aliases_before": dict(before),
        "aliases_after": dict.fromkeys(before, entry.reference),
        "score": entry.results.get("score"),
        "interval": entry.results.get("interval"),
        "n": entry.results.get("n"),
        "against": against.get("reference"),
        "difference": against.get("difference"),
        "difference_interval": against.get("interval"),
        "verdict": against.get("verdict"),
        "forced": entry.forced,
        "run_dir": str(run_dir),
        "round": entry.round,
        "sampler_path": entry.sampler_path,
        "state_path": entry.state_path,
        "weights_dir": str(weights_dir(run_dir, entry.sampler_path)) if is_here else None,
        "base_model": entry.base_model,
    }


def notify(words: Sequence[str], message: Mapping[str, Any]) -> str | None:
    """Run the command; returns what went wrong with it, or None."""
    return send_alert(words, message, f"the command of {FLAG}", LIMIT_S)
