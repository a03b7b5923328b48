"""The served chat template: the model's own where it agrees, else one made from the renderer."""

from __future__ import annotations

from pathlib import Path

from exports.served_template import ServedTemplate


def served_template(base_dir: Path, renderer_name: str) -> ServedTemplate:
    """The template that writes prompts as the renderer does. Raises `ExportError`."""
    raise NotImplementedError
