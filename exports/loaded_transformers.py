"""An export as transformers and PEFT load it; a word about a key that does not fit is an error."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ExportError, first_of, one_line
from rows.chat_formats import load_tokenizer

if TYPE_CHECKING:
    import torch

LIBRARIES = ("transformers", "peft")
SMALL_MODEL_PARAMETERS = 20_000_000  # below it, threads wait for each other longer than they work
# What these libraries say of weights that are not where they look for them, or are left over.
ABOUT_KEYS = re.compile(
    r"missing|unexpected|newly init|mismatch|not (been )?(used|load|tie)|NOT tie|size",
    re.IGNORECASE,
)
# What PEFT says of every adapter on a tied head, which is loaded and computes right all the same.
NOT_ABOUT_KEYS = re.compile(r"tie_word_embeddings=True` and the tied_target_modules")
MAX_KEYS_NAMED = 3


@dataclass(frozen=True)
class TransformersExport:
    """A model and a tokenizer as a user of transformers has them."""

    model: Any
    tokenizer: Any

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        return model_logprobs(self.model, tokens)

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        """By `generate` with the export's own generation settings, which hold its stop tokens."""
        import torch

        ids = torch.tensor([list(prompt)])
        with torch.inference_mode(), _few_threads(self.model):
            made = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,  # pads the shorter of several answers, and this is one
                tokenizer=self.tokenizer,  # for stops that are texts
            )
        return made[0, len(prompt) :].tolist()

    def tokens_of(self, text: str) -> list[int]:
        return list(
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def prompt_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        import jinja2

        try:
            return list(
                self.tokenizer.apply_chat_template(
                    [dict(one) for one in messages], add_generation_prompt=True, return_dict=False
                )
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise ExportError(
                f"The export's chat template cannot write a conversation of "
                f"{len(messages)} messages: {one_line(str(error), 300)}"
            ) from None


def model_logprobs(model: Any, tokens: Sequence[int]) -> list[float]:
    """The log-probability of each token but the first, by a softmax in float32 (in float64 for a
    model in float64)."""
    import torch

    ids = torch.tensor([list(tokens)])
    with torch.inference_mode(), _few_threads(model):
        logits_TV = model(input_ids=ids, use_cache=False).logits[0, :-1]
        if logits_TV.dtype != torch.float64:
            logits_TV = logits_TV.float()
        logprobs_TV = logits_TV.log_softmax(-1)
        return logprobs_TV.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()


@contextlib.contextmanager
def _few_threads(model: Any) -> Iterator[None]:
    """One thread for a small model: many times as fast where the machine has other work."""
    import torch

    before = torch.get_num_threads()
    is_small = num_parameters(model) < SMALL_MODEL_PARAMETERS
    torch.set_num_threads(1 if is_small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_parameters(model: Any) -> int:
    return sum(one.numel() for one in model.parameters())


# --- loading --------------------------------------------------------------------------------------


def open_transformers(folder: Path, base_dir: Path | None, kind: str) -> TransformersExport:
    """Load what a user would: `kind` is "peft" (an adapter on `base_dir`, both in float32) or
    "merged" (in the dtype of its config).

    With `base_dir` the tokenizer has to be the base model's. Raises `ExportError` for what cannot
    be loaded, and for any word of a library about a key that does not fit.
    """
    import torch

    if kind == "peft":
        assert base_dir is not None, "an adapter is loaded on its base"
        model = load_adapter(base_dir, folder, torch.float32)
        model.generation_config = _generation_config(folder)
    else:
        _refuse_adapter_files(folder)
        model = _load_model(folder, "auto")
    tokenizer = _load_tokenizer(folder)
    if base_dir is not None:
        # The export's as a user loads it, the base model's as training did.
        refuse_other_vocabulary(folder, tokenizer, load_tokenizer(str(base_dir)))
    return TransformersExport(model, tokenizer)


@contextlib.contextmanager
def _strictly(folder: Path) -> Iterator[None]:
    """What is loaded inside is loaded without a word about keys; other words pass as they do."""
    from safetensors import SafetensorError

    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener = Listener(logging.WARNING)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(one.level, one.handlers[:]) for one in loggers]
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for one in loggers:
                one.setLevel(logging.WARNING)  # also where the user has silenced them
                one.handlers[:] = [listener]
            yield
    except ExportError:
        raise
    # What these libraries raise for files that are not what they should be: no list of it exists.
    except (
        *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, SafetensorError),
    ) as error:
        raise _unloadable(folder, error) from error
    finally:
        for one, (level, handlers) in zip(loggers, before, strict=True):
            one.setLevel(level)
            one.handlers[:] = handlers
    # What was left open before says so whenever it is collected, and tells nothing of the files.
    of_files = (one for one in warned if not issubclass(one.category, ResourceWarning))
    said = [*heard, *(str(one.message) for one in of_files)]
    about = [s for s in said if ABOUT_KEYS.search(s) and not NOT_ABOUT_KEYS.search(s)]
    if about:
        raise ExportError(
            f"{folder}: loaded by transformers and PEFT it brings this warning, which is an error "
            f"here: {one_line(_plain(about[0]), 600)}"
        )


def _plain(text: str) -> str:
    """A log line without the codes that colour it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _unloadable(folder: Path, error: Exception) -> ExportError:
    said = one_line(_plain(str(error) or type(error).__name__), 400)
    return ExportError(f"{folder}: it cannot be loaded ({type(error).__name__}): {said}")


OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _load_model(folder: Path, dtype: torch.dtype | str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with _strictly(folder):
        config = AutoConfig.from_pretrained(folder, **OPTIONS)
        extra: dict[str, Any] = {}
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            extra["attn_implementation"] = "eager"  # the default leaves the soft cap out
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **OPTIONS, **extra
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(what) or ())):
            raise ExportError(
                f"{folder}: of its weights these are {what.replace('_', ' ')}: {_named(found)}."
            )
    return model.eval().requires_grad_(False)


def load_adapter(base_dir: Path, adapter_dir: Path, dtype: torch.dtype) -> Any:
    """Base and adapter by `PeftModel`: what transformers makes of an adapter's folder on its own
    lacks the head's part."""
    from peft import PeftModel

    base = _load_model(base_dir, dtype)
    with _strictly(adapter_dir):
        model = PeftModel.from_pretrained(base, str(adapter_dir), local_files_only=True)
    _refuse_lost_tensors(model, adapter_dir)
    return model.eval().requires_grad_(False)


def _refuse_lost_tensors(model: Any, adapter_dir: Path) -> None:
    """Every tensor of the file is in the model, bit by bit, and no LoRA matrix of the model is not
    of the file: PEFT says nothing of tensors that its config does not name."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    file = adapter_dir / "adapter_model.safetensors"
    with _strictly(adapter_dir):
        stored = load_file(file)
        there = get_peft_model_state_dict(model, save_embedding_layers=False)
    if lost := sorted(set(stored) - set(there)):
        raise ExportError(
            f"{file}: {len(lost)} of its {len(stored)} tensors are not in the model that PEFT "
            f"makes of it: {_named(lost)}. adapter_config.json does not name their layers."
        )
    if absent := sorted(set(there) - set(stored)):
        raise ExportError(
            f"{file}: {len(absent)} LoRA matrices of the model are not in it: {_named(absent)}."
        )
    changed = [
        name
        for name, one in stored.items()
        if one.shape != there[name].shape
        or not torch.allclose(one, there[name].to(one.dtype), rtol=0, atol=0, equal_nan=True)
    ]
    if changed:
        raise ExportError(f"{file}: these tensors are loaded with other bits: {_named(changed)}.")


def _named(names: Sequence[str]) -> str:
    return first_of([one_line(name, 120) for name in names], MAX_KEYS_NAMED)


def _refuse_adapter_files(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder}: merged weights and an adapter_config.json lie side by side, so that "
            "transformers would apply the adapter once more. Leave the adapter's files out."
        )


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    with _strictly(folder):
        return GenerationConfig.from_pretrained(folder, **OPTIONS)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with _strictly(folder):
        return AutoTokenizer.from_pretrained(folder, **OPTIONS)


def refuse_other_vocabulary(folder: Path, tokenizer: Any, base: Any) -> None:
    """Raise `ExportError` where a tokenizer knows other tokens than the base model's: one more or
    one less would show in no text that happens not to hold it."""
    mine, theirs = _vocabulary(tokenizer), _vocabulary(base)
    different = sorted(token for token in {*mine, *theirs} if mine.get(token) != theirs.get(token))
    if different:
        first = different[0]
        raise ExportError(
            f"{folder}: its tokenizer is not the base model's: {len(different)} tokens differ, the "
            f"first of them {first!a}, which is {theirs.get(first, 'absent')} in the base "
            f"model and {mine.get(first, 'absent')} here. Copy the base model's tokenizer files."
        )


def _vocabulary(tokenizer: Any) -> dict[str, str]:
    """Each token with its number, and of an added one how it is looked for in texts."""
    known = {token: str(number) for token, number in tokenizer.get_vocab().items()}
    for number, token in tokenizer.added_tokens_decoder.items():
        flags = [k for k in ("special", "lstrip", "rstrip", "single_word", "normalized")
                 if getattr(token, k)]  # fmt: skip
        known[token.content] = f"{number} ({', '.join(['added', *flags])})"
    return known
