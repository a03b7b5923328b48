"""A model's tokenizer, read as its tokenizer.json says, so that texts keep what they hold.

transformers 5 builds the class that a folder names, and some of them put rules of their own in the
place of what tokenizer.json says: a byte-level tokenizer that calls itself LlamaTokenizer is read
without any space (findings/transformers_llama_tokenizer_spaces.sh), and one that calls itself
Qwen2Tokenizer cuts numbers otherwise than the model has learned them. So a few texts are encoded
and decoded by both; the file's own rules are taken where they keep more of them, or where the file
is byte-level and they make other tokens. What is lost after that is refused or told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

logger = logging.getLogger(__name__)

# Words, a line break, an indentation, numbers, punctuation, letters outside of ASCII.
READ_BACK = (
    "What is the capital of France?",
    "75 km\nok",
    "def f(x):\n    return x",
    "In 1969 and 12345, they're \"x\" & [y] {z} <w> #1;\n\n\n- THEY'RE 50%: a+b=c*d/e_f@g!",
    "caf\u00e9 \u4f60\u597d",
)
# All is kept; something else stands there, such as small letters or <unk>; words run together;
# characters are gone; it cannot be encoded.
KEPT, CHANGED, RUN_TOGETHER, LOST, FAILED = 0, 1, 2, 3, 4
REFUSED = (RUN_TOGETHER, LOST)


class Loss(NamedTuple):
    """What a tokenizer makes of a text."""

    grade: Literal[0, 1, 2, 3, 4]
    text: str = ""
    found: str = ""


class TextLostError(ValueError):
    """Neither the class that the folder names nor the file itself keeps the text of a model."""


def load_by_auto(path: str, **options: Any) -> Any:
    """A tokenizer by `AutoTokenizer`, or as its file says where that reads texts otherwise; the log
    tells of it, for those who run the service for other programs.

    Raises `TextLostError`, and what transformers raises.
    """
    from transformers import AutoTokenizer

    tokenizer = keeping_text(AutoTokenizer.from_pretrained(path, **options), **options)
    if (note := reading_note(tokenizer)) is not None:
        logger.info(
            "%s: its tokenizer is %s. Clients load it by AutoTokenizer: for the same tokens there, "
            'set "tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json',
            *(path, note),
        )
    if (note := loss_note(tokenizer)) is not None:
        logger.info("%s: its tokenizer: %s", path, note)
    return tokenizer


def keeping_text(tokenizer: Any, **options: Any) -> Any:
    """The tokenizer, or the one that its tokenizer.json describes where that keeps more of a text,
    or cuts bytes otherwise; `reading_note` says which, and `loss_note` what is changed even so.

    Raises `TextLostError` where words run together or ASCII characters are gone in both readings.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer  # of a class of its own, which no file describes
    by_class, own = losses_of(tokenizer), _as_file_says(tokenizer, **options)
    if own is not None:
        why = _why_as_file(tokenizer, by_class, own)
        if why is not None:
            own.reading_note = (
                f"read as tokenizer.json says, for {type(tokenizer).__name__}, which transformers "
                f"takes for it, {why}"
            )
            tokenizer, by_class = own, losses_of(own)
    refused = [one for one in by_class if one.grade in REFUSED]
    if refused:
        grade, text, found = refused[0]
        what = "spaces or line breaks" if grade == RUN_TOGETHER else "what is missing there"
        raise TextLostError(
            f"it reads {text!a} back as {found!a}, so a model would be trained and asked without "
            f"{what}. tokenizer_class of tokenizer_config.json may name another class than "
            "tokenizer.json is of, or tokenizer.json itself leaves it out."
        )
    tokenizer.loss_note = _loss_note(by_class)
    return tokenizer


def reading_note(tokenizer: Any) -> str | None:
    """Why a tokenizer was read otherwise than `AutoTokenizer` does; None where it was not."""
    return getattr(tokenizer, "reading_note", None)


def loss_note(tokenizer: Any) -> str | None:
    """What a tokenizer changes in a text; None where it keeps all that was tried."""
    return getattr(tokenizer, "loss_note", None)


def _loss_note(losses: Sequence[Loss]) -> str | None:
    """What is said of the text that comes back least like itself."""
    grade = max(one.grade for one in losses)
    of_grade = (one for one in losses if one.grade == grade)
    worst = min(of_grade, key=lambda one: SequenceMatcher(None, one.text, one.found).ratio())
    if worst.grade == KEPT:
        return None
    if worst.grade == FAILED:
        return f"it cannot encode {worst.text!a} ({worst.found}), and rows with such text will fail"
    return (
        f"it reads {worst.text!a} back as {worst.found!a}: what is changed there, a model is "
        "neither trained on nor asked"
    )


def _as_file_says(tokenizer: Any, **options: Any) -> Any | None:
    """The tokenizer of tokenizer.json; None where it is that already, or there is no such file."""
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path, **options)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _why_as_file(tokenizer: Any, by_class: Sequence[Loss], own: Any) -> str | None:
    """What a class does to texts that its file does not; None where it may stay."""
    by_file = losses_of(own)
    worst = max(by_class, key=lambda one: one.grade)
    if max(one.grade for one in by_file) < worst.grade:
        return f"reads {worst.text!a} back as {worst.found!a}"
    if any(one.grade != KEPT for one in (*by_class, *by_file)) or not _is_byte_level(own):
        return None  # of a Metaspace file, tokenizer_config.json may say more than the file does
    for text in READ_BACK:
        if _encoded(tokenizer, text) != _encoded(own, text):
            return f"makes other tokens of {text!a}"
    return None


def _is_byte_level(tokenizer: Any) -> bool:
    from tokenizers import decoders

    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def losses_of(tokenizer: Any) -> list[Loss]:
    """What becomes of the texts when they are encoded and decoded."""
    losses: list[Loss] = []
    for text in READ_BACK:
        try:
            found = str(tokenizer.decode(_encoded(tokenizer, text)))
        except Exception as error:  # the Rust backend raises no other for a letter that it lacks
            losses.append(Loss(FAILED, text, str(error)))
        else:
            losses.append(Loss(grade_of(text, found), text, found))
    return losses


def grade_of(text: str, found: str) -> Literal[0, 1, 2, 3]:
    """How much of a text is left. A space that stands before or after it is no matter. Pure.

    Characters are gone where ASCII ones are, and nothing stands in their place: a tokenizer with
    few letters has <unk> for the others, which whoever reads an answer sees.
    """
    if found.strip() == text:
        return KEPT
    before, after = text.casefold().split(), found.casefold().split()
    letters, left = "".join(before), "".join(after)
    if letters == left:
        return RUN_TOGETHER if len(after) < len(before) else CHANGED
    gone = _missing(letters, left)
    return LOST if gone is not None and any(one.isascii() for one in gone) else CHANGED


def _missing(before: str, after: str) -> str | None:
    """What has to be taken out of a text to make another; None where that is not enough."""
    missing, place = [], 0
    for one in before:
        if place < len(after) and after[place] == one:
            place += 1
        else:
            missing.append(one)
    return "".join(missing) if place == len(after) else None
