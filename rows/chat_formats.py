"""A model's tokenizer and its chat format: loaded, resolved where no name is given, and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer


def load_tokenizer(base_model: str) -> Any:
    """The tokenizer of a hub model or of a model directory.

    Raises `TokenizerError` when there is none on this machine or the hub.
    """
    from tinker_cookbook.tokenizer_utils import get_tokenizer
    from transformers import AutoTokenizer

    try:
        # A directory not through the cookbook, which loads those with trust_remote_code.
        tokenizer = (
            AutoTokenizer.from_pretrained(base_model, trust_remote_code=False)
            if _is_dir(base_model)
            else get_tokenizer(base_model)
        )
    # What transformers raises for files that are not what they should be: there is no list of it.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(
            f"base_model {base_model!r}: its tokenizer cannot be loaded: {first_line} "
            "Check the name, the network, or give a model directory."
        ) from None
    # Rows are cut at max_seq_length, so its warning about longer ones would mislead.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def _is_dir(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name that no directory can have
        return False


def resolve_renderer_name(explicit: str | None, base_model: str, *, key: str = "base_model") -> str:
    """The renderer to use: the one named, else the model's recommended one.

    For a model directory the special tokens of its tokenizer tell the chat format.
    Raises `ConfigError` when neither settles it; `key` is the setting that names the model.
    """
    if explicit is not None:
        return explicit
    if _is_dir(base_model):
        vocabulary = load_tokenizer(base_model).get_vocab()
        if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
            return "llama3"
        if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
            return "qwen3" if "<think>" in vocabulary else "qwen3_instruct"
        what_to_do = (
            "Set renderer_name, for example to role_colon, which works with any tokenizer."
            if key == "base_model"
            else f"Name another model as {key}."
        )
        raise ConfigError(
            f"{key}: the tokenizer in {base_model} has no special tokens of a known chat format. "
            f"{what_to_do}"
        )
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.model_info import get_recommended_renderer_name

    try:
        return get_recommended_renderer_name(base_model)
    except (ConfigurationError, KeyError, ValueError):
        or_set = ", or set renderer_name to the chat format that the model was trained with"
        raise ConfigError(
            f"{key}: the cookbook recommends no renderer for {base_model!r}, which is no directory "
            f"beside the config or here either. Correct {key}"
            f"{or_set if key == 'base_model' else ''}."
        ) from None


def load_renderer(renderer_name: str, base_model: str) -> Renderer:
    """Build the cookbook's renderer over the model's tokenizer.

    Raises `ConfigError` for an unknown name, or when the tokenizer lacks the renderer's tokens.
    """
    from tinker_cookbook.exceptions import RendererError
    from tinker_cookbook.renderers import get_renderer

    tokenizer = load_tokenizer(base_model)
    try:
        renderer = get_renderer(renderer_name, tokenizer, model_name=base_model)
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        renderer.build_supervised_example(probe)  # pyright: ignore[reportArgumentType]
        renderer.build_generation_prompt(probe[:1])  # pyright: ignore[reportArgumentType]
        renderer.get_stop_sequences()
    except RendererError as error:
        raise ConfigError(
            f"renderer_name {renderer_name!r} cannot be used: {error} Leave it null for the "
            "model's recommended one, or name one of the cookbook's renderers, such as llama3, "
            "qwen3 or role_colon."
        ) from None
    except (AssertionError, TypeError, ValueError, KeyError):
        raise ConfigError(
            f"renderer_name {renderer_name!r} does not fit {base_model}: its tokenizer lacks "
            "special tokens that this chat format needs. Choose the model's own format, or "
            "role_colon."
        ) from None
    return renderer
