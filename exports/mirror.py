"""The run's LoRA config and a QLoRA script that mirrors the run, as files."""

from __future__ import annotations

from exports.source import Source


def training_files(source: Source) -> dict[str, str]:
    """`training/peft_config.json` and `training/qlora_train.py`; none where no run is known."""
    raise NotImplementedError
