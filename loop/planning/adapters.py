"""Whether an adapter that another program wrote is of the base model that the settings name."""

from __future__ import annotations

from pathlib import Path

from errors import ConfigError
from local_tinker.peft_folders import CONFIG_FILE, PeftFolder
from loop.planning.models import model_change, model_digests

COMPARED = "what is compared, once the model is loaded, are the names and the sizes of its layers"


def base_note(key: str, adapter: PeftFolder, base_model: str, model_dir: Path | None) -> str:
    """A sentence on what tells that an adapter is of this base model; that its layers fit is seen
    when the model is loaded. `key` is what errors begin with.

    Raises `ConfigError` where the adapter's config names a directory with another model.
    """
    named, what = adapter.base_name, f"{key}: its {CONFIG_FILE}"
    if named is None:
        return f"{what} names no base model; {COMPARED}"
    if named == base_model:
        return f"{what} names this base model, {named}"
    there = Path(named)
    try:
        is_model = (there / "config.json").is_file()
    except (OSError, ValueError):  # a name that no directory can have
        is_model = False
    if not is_model or model_dir is None:
        return (
            f"{what} names the base model {named}, and base_model is {base_model}: whether they "
            f"are one model is not known, {COMPARED}"
        )
    if there.resolve() != model_dir.resolve():
        change = model_change(model_digests(there), model_digests(model_dir))
        if change is not None:
            raise ConfigError(
                f"{what} names the base model in {named}, which is another one than base_model, "
                f"{model_dir}: {change}. Set base_model to {named}."
            )
    return f"{what} names this base model, in {named}"
