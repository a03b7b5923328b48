"""A model's tokenizer, read so that texts keep their spaces and line breaks.

transformers 5 builds the class that a folder names, and some of them put rules of their own in the
place of what tokenizer.json says: a byte-level tokenizer that calls itself LlamaTokenizer is read
without any space (findings/transformers_llama_tokenizer_spaces.sh). So a few texts are encoded and
decoded, and where the file's own rules keep more of them, those are taken.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

# Words, a line break, an indentation, letters outside of ASCII.
READ_BACK = (
    "What is the capital of France?",
    "75 km\nok",
    "def f(x):\n    return x",
    "caf\u00e9 \u4f60\u597d",
)
# All is kept; something is changed, such as capitals; words run together; it cannot be encoded.
KEPT, CHANGED, RUN_TOGETHER, FAILED = 0, 1, 2, 3


class Loss(NamedTuple):
    """What a tokenizer makes of a text that it reads back worst."""

    grade: Literal[0, 1, 2, 3]
    text: str = ""
    found: str = ""


class TextLostError(ValueError):
    """Neither the class that the folder names nor the file itself keeps words apart."""


def load_by_auto(path: str, **options: Any) -> Any:
    """A tokenizer by `AutoTokenizer`, or as its file says where that keeps more of a text.

    Raises `TextLostError`, and what transformers raises.
    """
    from transformers import AutoTokenizer

    return keeping_text(AutoTokenizer.from_pretrained(path, **options), **options)


def keeping_text(tokenizer: Any, **options: Any) -> Any:
    """The tokenizer, or the one that its tokenizer.json describes where that keeps more of a text;
    the latter says so in `reading_note`. Raises `TextLostError` where both lose the spaces."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer  # of a class of its own, which no file describes
    loss = worst_loss(tokenizer)
    if loss.grade == KEPT:
        return tokenizer
    try:
        own = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path, **options)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        own = None  # there is no tokenizer.json that could say otherwise
    if own is not None and worst_loss(own).grade < loss.grade:
        own.reading_note = (
            f"read as tokenizer.json says, for {type(tokenizer).__name__}, which "
            f"transformers takes for it, reads {loss.text!a} back as {loss.found!a}"
        )
        return own
    if loss.grade == RUN_TOGETHER:
        raise TextLostError(
            f"it reads {loss.text!a} back as {loss.found!a}, so a model would be trained and asked "
            "without spaces or line breaks. tokenizer_class of tokenizer_config.json may name "
            "another class than tokenizer.json is of."
        )
    return tokenizer


def reading_note(tokenizer: Any) -> str | None:
    """Why a tokenizer was read otherwise than `AutoTokenizer` does; None where it was not."""
    return getattr(tokenizer, "reading_note", None)


def worst_loss(tokenizer: Any) -> Loss:
    """What becomes of the texts when they are encoded and decoded."""
    losses: list[Loss] = []
    for text in READ_BACK:
        try:
            found = str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))
        except Exception as error:  # the Rust backend raises no other for a letter that it lacks
            losses.append(Loss(FAILED, text, str(error)))
        else:
            losses.append(Loss(grade_of(text, found), text, found))
    return max(losses, key=lambda one: one.grade)


def grade_of(text: str, found: str) -> Literal[0, 1, 2]:
    """How much of a text is left. A space that stands before or after it is no matter. Pure."""
    if found.strip() == text:
        return KEPT
    before, after = text.casefold().split(), found.casefold().split()
    # Only where the letters are all there: unknown ones are another matter, and a toy's.
    return RUN_TOGETHER if len(after) < len(before) and _same(before, after) else CHANGED


def _same(before: list[str], after: list[str]) -> bool:
    return "".join(before) == "".join(after)
