"""The tokenizer of a model as llama.cpp reads one, where it reads it alike.

Only byte-level BPE, and only where the rule that cuts a text before the merges is one that
llama.cpp has: it is told from the rule itself, never from the model's name. What is recognised here
is proven by the loaded file, on texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import ExportError
from exports.gguf_shape import INSTEAD
from rows.chat_formats import load_tokenizer

# The values of llama.cpp's llama_token_type.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NUM_BYTES = 256

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = _CONTRACTIONS + _WORDS + "{1,3}" + _REST
QWEN_2 = _CONTRACTIONS + _WORDS + _REST


@dataclass(frozen=True)
class Cut:
    """One way to cut a text before the merges, and llama.cpp's names for it.

    `whole_words` is the name where a word that is a token is taken without its merges
    (`ignore_merges`); None where llama.cpp has none.
    """

    told: str
    name: str | None
    whole_words: str | None


# By the steps of the pre-tokenizer, the last of which makes letters of bytes.
CUTS: dict[tuple[str, ...], Cut] = {
    ("GPT-2",): Cut("GPT-2's", "gpt-2", None),
    (GPT_2,): Cut("GPT-2's", "gpt-2", None),
    ("digits", "GPT-2"): Cut("GPT-2's with single digits (SmolLM)", "smollm", None),
    (LLAMA_3,): Cut("Llama 3's", "smaug-bpe", "llama-bpe"),
    (QWEN_2,): Cut("Qwen2's", "qwen2", None),
}


@dataclass(frozen=True)
class GgufTokens:
    """What a GGUF file says of a tokenizer. `limits` are sentences on what is read otherwise."""

    cut: Cut
    pre: str
    texts: tuple[str, ...]  # one a row of the embedding
    types: tuple[int, ...]
    merges: tuple[str, ...]
    begin: int | None
    ends: tuple[int, ...]  # at most what llama.cpp can be told: eos, eot, eom
    padding: int | None
    adds_begin: bool
    limits: tuple[str, ...]


def read_tokens(
    model_dir: Path, vocab_size: int, chat_template: str, stop_ids: Sequence[int] = ()
) -> GgufTokens:
    """Read the tokenizer of a model directory as transformers does.

    `stop_ids` end an answer; without any it is what the tokenizer and the model name.
    Raises `ExportError`, by name, for what llama.cpp would read otherwise.
    """
    tokenizer = load_tokenizer(str(model_dir))
    if not getattr(tokenizer, "is_fast", False):
        raise _refused(model_dir, "has no tokenizer.json")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for what in _refusals(described):
        raise _refused(model_dir, what)
    model, added = described["model"], described["added_tokens"]
    cut = CUTS[_steps(described["pre_tokenizer"])]
    pre = cut.whole_words if model.get("ignore_merges") else cut.name
    if pre is None:
        how = "with" if model.get("ignore_merges") else "without"
        raise _refused(model_dir, f"cuts as {cut.told} {how} ignore_merges")
    texts, types = _vocabulary(model["vocab"], added, vocab_size, model_dir)
    begin = tokenizer.bos_token_id
    adds_begin, limits = _added_around(tokenizer, chat_template)
    ends = _ends(tokenizer, model_dir, stop_ids)
    if not ends:  # llama.cpp would take token 11
        raise _refused(model_dir, "names no token that ends an answer")
    if len(ends) > MAX_ENDS:
        limits.append(
            f"llama.cpp is told of {MAX_ENDS} tokens that end an answer, and of "
            f"{', '.join(texts[i] for i in ends[MAX_ENDS:])} it is not: give them as stop strings."
        )
    if (both := _overlapping([token["content"] for token in added])) is not None:
        limits.append(
            f"The marker {both[0]!r} ends as {both[1]!r} begins: of two that share characters in a "
            "text llama.cpp takes the longer one and the tokenizer the first."
        )
    if described["normalizer"] is not None:
        limits.append(
            "Text is not brought into Unicode's form NFC before it is cut, as the tokenizer does: "
            "accents that are typed as characters of their own are read otherwise."
        )
    return GgufTokens(
        cut=cut,
        pre=pre,
        texts=texts,
        types=types,
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        begin=begin,
        ends=ends[:MAX_ENDS],
        padding=tokenizer.pad_token_id,
        adds_begin=adds_begin,
        limits=tuple(limits),
    )


MAX_ENDS = 3


def _refused(model_dir: Path, what: str) -> ExportError:
    return ExportError(
        f"{model_dir}: the tokenizer {what}, which llama.cpp reads otherwise or not at all. "
        f"{INSTEAD}"
    )


def _refusals(described: dict[str, Any]) -> Iterator[str]:
    """What sets a tokenizer apart from llama.cpp's byte-level BPE; words after "the tokenizer"."""
    model = described["model"]
    if model.get("type") != "BPE":
        yield f"is of the kind {model.get('type')}, not byte-level BPE"
        return
    if model.get("byte_fallback"):
        yield "has byte_fallback (the BPE of SentencePiece, not the byte-level one)"
    if model.get("dropout"):
        yield "has dropout"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        yield "marks the parts of words (continuing_subword_prefix, end_of_word_suffix)"
    normalizer = described["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        yield f"has the normalizer {normalizer['type']}"
    steps = _steps(described["pre_tokenizer"])
    if "add_prefix_space" in steps:
        yield "puts a space before a text (add_prefix_space)"
    elif steps not in CUTS:
        yield (
            f"cuts a text by a rule that is not recognised ({' then '.join(steps)}; recognised "
            f"are {', '.join(dict.fromkeys(cut.told for cut in CUTS.values()))})"
        )
    if lacking := set(_byte_letters()) - set(model["vocab"]):
        yield f"has no token for {len(lacking)} of the {NUM_BYTES} bytes"
    if any(
        " " in part for merge in model["merges"] if not isinstance(merge, str) for part in merge
    ):
        yield "merges tokens with spaces in them"
    for token in described["added_tokens"]:
        if odd := [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]:
            yield f"takes the token {token['content']!r} with {', '.join(odd)}"


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """A pre-tokenizer as the keys of `CUTS` have it: regular expressions and names."""
    if pre_tokenizer is None:
        return ("nothing",)
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    steps: list[str] = []
    for place, part in enumerate(parts):
        is_last = place == len(parts) - 1
        match part:
            case {"type": "ByteLevel", "add_prefix_space": True}:
                return ("add_prefix_space",)
            case {"type": "ByteLevel", "use_regex": False} if is_last and steps:
                pass
            case {"type": "ByteLevel"} if part.get("use_regex", True) and is_last:
                steps.append("GPT-2")
            case {
                "type": "Split",
                "pattern": {"Regex": regex},
                "behavior": "Isolated",
                "invert": False,
            } if not is_last:
                steps.append(regex)
            case {"type": "Digits", "individual_digits": True} if not is_last:
                steps.append("digits")
            case _:
                steps.append(json.dumps(part)[:300])
    return tuple(steps)


def _overlapping(markers: Sequence[str]) -> tuple[str, str] | None:
    """A marker whose end is the beginning of one, maybe of itself; and that one."""
    beginnings = {marker[:i]: marker for marker in markers for i in range(1, len(marker))}
    for marker in markers:
        for i in range(1, len(marker)):
            if marker[i:] in beginnings:
                return marker, beginnings[marker[i:]]
    return None


def _byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _vocabulary(
    vocab: dict[str, int], added: list[dict[str, Any]], vocab_size: int, model_dir: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The text and type of each row of the embedding; rows that no token has are marked unused."""
    texts = {index: text for text, index in vocab.items()}
    types = dict.fromkeys(texts, NORMAL)
    for token in added:
        texts[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(texts) >= vocab_size:
        raise _refused(model_dir, f"has token {max(texts)}, where the model has {vocab_size} rows")
    if len(set(texts.values())) != len(texts):
        raise _refused(model_dir, "has two tokens of one text")
    taken = set(texts.values())
    for index in range(vocab_size):
        if index not in texts:
            name: str = f"[UNUSED{index}]"
            while name in taken:
                name = f"[{name}]"
            texts[index], types[index] = name, UNUSED
    return (
        tuple(texts[i] for i in range(vocab_size)),
        tuple(types[i] for i in range(vocab_size)),
    )


def _added_around(tokenizer: Any, chat_template: str) -> tuple[bool, list[str]]:
    """Whether llama.cpp has to begin each text with the begin token, and what is lost if not.

    It does so to every prompt of a chat too, after taking one off that the template wrote. So it is
    told to only where the tokenizer begins plain text and the template begins a chat like that.
    """
    begin = tokenizer.bos_token_id
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    if whole == plain:
        return False, []
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}],
        chat_template=chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    if begin is not None and whole == [begin, *plain] and chat[:1] == [begin]:
        return True, []
    where = whole.index(plain[0]) if plain[0] in whole else 0
    return False, [
        f"Plain text (not a chat) gets no {_marks(tokenizer, whole[:where])} before it and no "
        f"{_marks(tokenizer, whole[where + len(plain) :])} after it, as the tokenizer puts there."
    ]


def _marks(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids))) or "token"


def _ends(tokenizer: Any, model_dir: Path, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Which tokens end an answer, the tokenizer's own first if it is among them."""
    if not stop_ids:
        stop_ids = _model_ends(model_dir)
    own = tokenizer.eos_token_id
    if own is None or (stop_ids and own not in stop_ids):
        return tuple(dict.fromkeys(stop_ids))
    return tuple(dict.fromkeys((own, *stop_ids)))


def _model_ends(model_dir: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        if not path.is_file():
            continue
        given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if isinstance(given, int):
            return [given]
        if isinstance(given, list):
            return [token for token in given if isinstance(token, int)]
    return []


def add_tokens(writer: Any, tokens: GgufTokens, chat_template: str) -> None:
    """Put a tokenizer into a GGUF file; everything explicit, for what is left out is guessed."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges)
    if tokens.begin is not None:
        writer.add_bos_token_id(tokens.begin)
    for end, add in zip(
        tokens.ends,
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        strict=False,
    ):
        add(end)
    if tokens.padding is not None:
        writer.add_pad_token_id(tokens.padding)
    writer.add_add_bos_token(tokens.adds_begin)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(chat_template)
