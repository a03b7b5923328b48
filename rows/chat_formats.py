"""A model's tokenizer and its chat format: chosen where no name is given, compared, refused.

The chat template in the model's directory, or in its repository on the hub, says which format the
model was made for; the cookbook's renderers are held against it (rows/chat_templates.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import ConfigError, TokenizerError, one_line
from rows.chat_templates import (
    CONVERSATION,
    DECISIVE,
    NO_TEMPLATE,
    NUM_SHOWN,
    SECOND_PROMPT,
    TWO_ANSWERS,
    Comparison,
    Template,
    compare,
    ending_note,
    read_template,
    text_of,
    write_probe,
)

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer, TrainOnWhat

_CHATML, _THINK = ("<|im_start|>", "<|im_end|>"), ("<think>", "</think>")
_LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
_DEEPSEEK = tuple(
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "User", "Assistant", "end\u2581of\u2581sentence")
)
_KIMI = (
    *("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
    *_THINK,
)
_GLM = (
    *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|endoftext|>", *_THINK),
)

# The tokens that the cookbook's renderers write, all of which a tokenizer has to have.
# Of several renderers that suit a model the first is taken, so those of a family stand in the
# cookbook's order. Left out is tml_v0, whose tokenizer is one of its own.
_FORMATS = (
    (_LLAMA3, "llama3"),
    ((*_CHATML, *_THINK), "qwen3 qwen3_disable_thinking"),
    (_CHATML, "qwen3_instruct qwen3_vl_instruct"),
    (
        (*_CHATML, *_THINK),
        "qwen3_vl qwen3_5 qwen3_5_disable_thinking qwen3_5_preserve_thinking "
        "qwen3_8_xhigh_reasoning qwen3_8_disable_thinking qwen3_8_medium_reasoning "
        "qwen3_8_low_reasoning nemotron3 nemotron3_disable_thinking nemotron3_preserve_thinking "
        "nemotron3_low_thinking nemotron3_ultra nemotron3_ultra_disable_thinking "
        "nemotron3_ultra_medium_thinking nemotron3_ultra_preserve_thinking",
    ),
    ((*_DEEPSEEK, "</think>"), "deepseekv3 deepseekv3_disable_thinking"),
    ((*_DEEPSEEK, *_THINK), "deepseekv3_thinking"),
    (
        (*_DEEPSEEK, "<\uff5cSystem\uff5c>", *_THINK),
        "deepseekv4_1 deepseekv4_1_low_reasoning deepseekv4_1_max_reasoning "
        "deepseekv4_1_disable_thinking deepseekv4_1_preserve_thinking",
    ),
    (
        _HARMONY,
        "gpt_oss_no_sysprompt gpt_oss_medium_reasoning gpt_oss_low_reasoning "
        "gpt_oss_high_reasoning",
    ),
    (
        _KIMI,
        "kimi_k2 kimi_k25 kimi_k25_disable_thinking kimi_k26 kimi_k26_disable_thinking "
        "kimi_k26_preserve_thinking",
    ),
    (_GLM, "glm5_3_max_reasoning glm5_3_low_reasoning glm5_3_high_reasoning"),
    ((), "role_colon"),
)
MARKERS = {name: markers for markers, names in _FORMATS for name in names.split()}
MAX_SAID = 300  # characters of what a library says
NUM_NEAREST = 3  # renderers that a refusal shows beside the template


@dataclass(frozen=True)
class ChatFormat:
    """A model's renderer, why it is this one, and how it stands to the model's chat template."""

    name: str
    renderer: Renderer
    source: str
    comparison: Comparison | None = None  # None: as a run began, not compared again

    @property
    def is_near(self) -> bool:
        return self.comparison is not None and self.comparison.is_same_after_opening

    def lines(self, *, is_trained: bool = True) -> Iterator[str]:
        """What the plan says of it; with what it means for rows, if any are trained."""
        from local_tinker.tokenizer import loss_note, reading_note

        yield f"renderer: {self.name} ({self.source})"
        for note in (reading_note(self.renderer.tokenizer), loss_note(self.renderer.tokenizer)):
            if note is not None:
                yield f"tokenizer: {note}"
        if self.comparison is None:
            return
        yield f"chat template: {self.comparison}"
        if is_trained and (note := ending_note(self.renderer)) is not None:
            yield f"warning: {note}"
        if is_trained and (note := _prefill_note(self.renderer)) is not None:
            yield f"rows without reasoning: {note}"


def load_tokenizer(base_model: str, key: str = "base_model") -> Any:
    """The tokenizer of a hub model or of a model directory, read so that texts keep their spaces;
    `key` is the setting that names it.

    Raises `TokenizerError` when there is none on this machine or the hub, or it loses text.
    """
    from huggingface_hub.errors import StrictDataclassError
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    from local_tinker.tokenizer import TextLostError, keeping_text, load_by_auto

    try:
        # A directory not through the cookbook, which loads those with trust_remote_code.
        tokenizer = (
            load_by_auto(base_model, trust_remote_code=False)
            if _is_dir(base_model)
            else keeping_text(get_tokenizer(base_model))
        )
    except TextLostError as error:
        raise TokenizerError(f"{key} {base_model!r}: its tokenizer loses text: {error}") from None
    except StrictDataclassError as error:  # none of the kinds below (huggingface_hub 1)
        raise TokenizerError(
            f"{key} {base_model!r}: its config.json holds what is no size or setting of a model: "
            f"{one_line(str(error), MAX_SAID)}. Give a complete model directory."
        ) from None
    # What transformers raises for files that are not what they should be: there is no list of it.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(
            f"{key} {base_model!r}: its tokenizer cannot be loaded: {first_line} "
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


def choose_format(
    explicit: str | None,
    base_model: str,
    *,
    key: str = "base_model",
    fallback: ChatFormat | None = None,
) -> ChatFormat:
    """The renderer to use, held against the model's chat template.

    It is the one named; else the first known one that agrees with the template; else the first
    that agrees from the first question on (Llama 3.1 differs by its date header before that).
    Where there is no template to go by, it is `fallback`, or a hub model's recommended one.
    `key` is the setting that names the model, a directory or a hub name.

    Raises `ConfigError` when nothing settles it, or when the tokenizer lacks what the one named
    writes; `TokenizerError` when there is no tokenizer.
    """
    recommended = _recommended(base_model)
    try:
        tokenizer = load_tokenizer(base_model)
    except TokenizerError:
        if explicit is None and not recommended and not _is_dir(base_model):
            raise _unknown_model(base_model, key) from None
        raise
    template = Template({}, LENT)
    if not _has_lent_tokenizer(base_model, recommended):
        template = read_template(tokenizer)
    if explicit is not None:
        return _named(explicit, base_model, tokenizer, template)
    if template.is_known:
        return _found(base_model, key, tokenizer, template, recommended)
    if fallback is not None:
        return fallback
    if not recommended:
        raise ConfigError(
            f"{key}: which chat format {base_model} was made for cannot be told: "
            f"{template.problem}{_WHERE if template.problem == NO_TEMPLATE else ''}. "
            f"{_what_to_set(key, base_model, _families(tokenizer, base_model))}"
        )
    renderer = _build(recommended[0], tokenizer, base_model)
    source = "by default: the cookbook's recommendation for this name"
    return ChatFormat(recommended[0], renderer, source, Comparison(template))


LENT = "the model's tokenizer is lent by another one, whose chat template is not its own"
_WHERE = " (chat_template.jinja, or chat_template in tokenizer_config.json)"


def _named(name: str, base_model: str, tokenizer: Any, template: Template) -> ChatFormat:
    """The renderer that was asked for; only tokens that are not there refuse it."""
    renderer = _build(name, tokenizer, base_model)
    if lacking := _spelled_out(name, renderer, tokenizer):
        raise ConfigError(
            f"renderer_name {name!r} does not fit {base_model}: its tokenizer lacks "
            f"{', '.join(lacking)} as tokens that this chat format can write, so it would write "
            "them letter by letter. Leave it null for the format of the model's chat template, or "
            f"set one that it can write: {', '.join(_families(tokenizer, base_model))}."
        )
    return ChatFormat(name, renderer, "renderer_name", compare(template, renderer, tokenizer))


def _found(
    base_model: str, key: str, tokenizer: Any, template: Template, recommended: list[str]
) -> ChatFormat:
    """The first known renderer that agrees with the template, else the first that nearly does."""
    others: list[ChatFormat] = []
    for name in dict.fromkeys([*recommended, *_fitting(tokenizer)]):
        try:
            renderer = _build(name, tokenizer, base_model)
            if _spelled_out(name, renderer, tokenizer):
                continue
            comparison = compare(template, renderer, tokenizer)
        except (ConfigError, ValueError):  # of a recommended one whose tokens are not there
            continue
        source = "by default"
        if recommended and name != recommended[0]:
            source += f"; the cookbook recommends {recommended[0]} for this name"
        found = ChatFormat(name, renderer, source, comparison)
        if comparison.agrees_in_all:
            return found
        others.append(found)
    for one in others:
        if one.comparison is not None and one.comparison.agrees:
            return one
    if (near := next((o for o in others if o.is_near), None)) is not None:
        return near
    others.sort(key=lambda one: -(one.comparison.num_same if one.comparison else 0))
    said = {str(one.comparison and one.comparison.first): one.name for one in reversed(others)}
    nearest = [one for one in others if one.name in said.values()][:NUM_NEAREST]
    shown = "; ".join(f"{one.name} {one.comparison and one.comparison.first}" for one in nearest)
    raise ConfigError(
        f"{key}: none of the known chat formats is that of {base_model}'s chat template, and vLLM "
        f"and Ollama write prompts by the template. The nearest: {shown}. "
        f"{_what_to_set(key, base_model, [one.name for one in nearest])}"
    )


def _what_to_set(key: str, base_model: str, names: list[str]) -> str:
    """The remedy where nothing settles a model's chat format."""
    if key != "base_model":
        where = f"Put its chat template into {base_model}/chat_template.jinja, or name"
        return f"{where if _is_dir(base_model) else 'Name'} another model as {key}."
    names = names or ["role_colon"]
    return (
        f'Set the one to train with, for example "renderer_name": "{names[0]}" (its tokenizer '
        f"has the tokens of {', '.join(dict.fromkeys([*names, 'role_colon']))}; role_colon suits a "
        "model that was not made for chat)."
    )


def _recommended(base_model: str) -> list[str]:
    """The cookbook's renderers for a hub model, the first one first; none for a directory."""
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.model_info import get_recommended_renderer_names

    if _is_dir(base_model):
        return []
    try:
        return list(get_recommended_renderer_names(base_model))
    except (ConfigurationError, KeyError, ValueError):
        return []


def _has_lent_tokenizer(base_model: str, recommended: list[str]) -> bool:
    """Whether the cookbook loads another model's tokenizer for a base model, which has no template.

    It does so for all of Llama 3, whose own repositories ask for a login.
    """
    return base_model.startswith("meta-llama/Llama-3") and recommended == ["role_colon"]


def _unknown_model(base_model: str, key: str) -> ConfigError:
    or_set = ", or set renderer_name to the chat format that the model was trained with"
    return ConfigError(
        f"{key}: the cookbook recommends no renderer for {base_model!r}, which is no directory "
        f"beside the config or here either, and its tokenizer cannot be loaded. Correct {key}"
        f"{or_set if key == 'base_model' else ''}."
    )


def former_name(base_model: str) -> str | None:
    """The renderer that runs took which did not record it, by the vocabulary; None where none."""
    if not _is_dir(base_model):
        return next(iter(_recommended(base_model)), None)
    vocabulary = load_tokenizer(base_model).get_vocab()
    if {"<|start_header_id|>", "<|eot_id|>"} <= vocabulary.keys():
        return "llama3"
    if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
        return "qwen3" if "<think>" in vocabulary else "qwen3_instruct"
    return None


def load_renderer(renderer_name: str, base_model: str) -> Renderer:
    """Build the cookbook's renderer over the model's tokenizer, comparing it with nothing.

    Raises `ConfigError` for an unknown name, or when the tokenizer lacks the renderer's tokens.
    """
    return _build(renderer_name, load_tokenizer(base_model), base_model)


def _build(renderer_name: str, tokenizer: Any, base_model: str) -> Renderer:
    from tinker_cookbook.exceptions import RendererError
    from tinker_cookbook.renderers import get_renderer

    try:
        renderer = get_renderer(renderer_name, tokenizer, model_name=base_model)
        for probe in DECISIVE:
            write_probe(renderer, probe)
        renderer.get_stop_sequences()
    except RendererError as error:
        raise ConfigError(
            f"renderer_name {renderer_name!r} cannot be used: {error} Leave it null for the "
            "model's recommended one, or name one of the cookbook's renderers, such as llama3, "
            "qwen3 or role_colon."
        ) from None
    except (AssertionError, TypeError, ValueError, KeyError):
        lacking = ", ".join(_lacking(renderer_name, tokenizer)) or "special tokens"
        raise ConfigError(
            f"renderer_name {renderer_name!r} does not fit {base_model}: its tokenizer lacks "
            f"{lacking} that this chat format needs. Choose the model's own format, or role_colon."
        ) from None
    return renderer


def _id_of(marker: str, tokenizer: Any) -> int | None:
    """The token that a marker is, if it is one."""
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return None
    found = tokenizer.convert_tokens_to_ids(marker)
    return None if found is None or found == tokenizer.unk_token_id else int(found)


def _lacking(renderer_name: str, tokenizer: Any) -> list[str]:
    """The markers of a renderer that are no tokens."""
    markers = MARKERS.get(renderer_name, ())
    return [marker for marker in markers if _id_of(marker, tokenizer) is None]


def _fitting(tokenizer: Any) -> list[str]:
    """The renderers whose markers a tokenizer has."""
    return [name for name in MARKERS if not _lacking(name, tokenizer)]


def _families(tokenizer: Any, base_model: str) -> list[str]:
    """Of the renderers that a tokenizer can write, the first of each family."""
    first = {MARKERS[name]: name for name in reversed(_fitting(tokenizer))}
    names: list[str] = []
    for name in sorted(first.values(), key=list(MARKERS).index):
        try:
            renderer = _build(name, tokenizer, base_model)
        except ConfigError:  # its tokens are there, and something else is in the way
            continue
        if not _spelled_out(name, renderer, tokenizer):
            names.append(name)
    return names


def _spelled_out(renderer_name: str, renderer: Renderer, tokenizer: Any) -> list[str]:
    """The markers that a renderer writes as text, letter by letter: those that are no tokens, and
    those that it cannot write as one (Qwen3's renderers write their text without special tokens,
    so <think> has to be an added token that is not special, as it is in Qwen3)."""
    lacking = _lacking(renderer_name, tokenizer)
    if lacking or renderer_name not in MARKERS:
        return lacking
    tokens = [token for probe in DECISIVE for token in write_probe(renderer, probe)]
    text = text_of(tokenizer, tokens)
    return [
        marker
        for marker in MARKERS[renderer_name]
        if text.count(marker) > tokens.count(_id_of(marker, tokenizer) or 0)
    ]


# --- what is trained, and what it is trained after ------------------------------------------------


def _prefill_note(renderer: Renderer) -> str | None:
    """How a row without reasoning is trained where its chat format has a place for reasoning."""
    tokenizer, answer = renderer.tokenizer, CONVERSATION.end
    trained = write_probe(renderer, CONVERSATION)
    sampled = write_probe(renderer, SECOND_PROMPT)
    if trained[: len(sampled)] != sampled:
        after = text_of(tokenizer, trained).rpartition(answer)[0][-NUM_SHOWN:]
        return (
            f"their answers are trained after {after!r}, and sampled after "
            f"{text_of(tokenizer, sampled)[-NUM_SHOWN:]!r}; rows with reasoning are trained as "
            "they are sampled, as is all with a renderer that disables thinking"
        )
    block = text_of(tokenizer, trained[len(sampled) :]).rpartition(answer)[0]
    if "</think>" not in block:
        return None
    return (
        f"{block!r} before the answer is trained, which teaches not to reason; a renderer that "
        "disables thinking has it in the prompt"
    )


def resolve_train_on(renderer: Renderer, train_on: str | None) -> TrainOnWhat:
    """Which messages carry loss: what `data.train_on` says, or for null all that can be right.

    A message is trained rightly when the tokens before it, and its own, are those that sampling
    would meet at that place. Renderers that write an earlier answer otherwise than the last one,
    as those do that drop its reasoning, can train only the last; so with them

    - all_assistant_messages, all_messages and all_tokens are wrong for every row of two answers;
    - last_assistant_turn is wrong where it writes two answers in a row otherwise than one;
    - all_user_and_system_messages trains no answer, and what it trains is written alike everywhere;
    - last_assistant_message is right.

    A value that is a `TrainOnWhat` already, as a resumed run has it, is taken as it is. Raises
    `ConfigError` for one that is wrong.
    """
    from tinker_cookbook.renderers import TrainOnWhat

    if isinstance(train_on, TrainOnWhat):
        return train_on
    all_answers = TrainOnWhat.ALL_ASSISTANT_MESSAGES
    last = TrainOnWhat.LAST_ASSISTANT_MESSAGE
    can_train_all = renderer.has_extension_property
    chosen = TrainOnWhat(train_on or (all_answers if can_train_all else last))
    if chosen in (all_answers, TrainOnWhat.ALL_MESSAGES, TrainOnWhat.ALL_TOKENS):
        is_wrong, which = not can_train_all, "of earlier turns"
    else:
        is_wrong = chosen == TrainOnWhat.LAST_ASSISTANT_TURN and _rewrites_in_turn(renderer)
        which = "of all answers in a turn but the last"
    if is_wrong:
        raise ConfigError(
            f"data.train_on is {chosen.value}, and the chat format drops the reasoning {which}, or "
            "writes them otherwise than they are sampled, so they would be trained on what "
            "sampling never sees. Set it to last_assistant_message, or choose another "
            "renderer_name."
        )
    return chosen


def _rewrites_in_turn(renderer: Renderer) -> bool:
    """Whether last_assistant_turn trains the first of two answers to one question as something
    else than what it is when it is last.

    Tried without and, where the format has a place for it, with reasoning.
    """
    if renderer.has_extension_property:
        return False
    question, *answers = TWO_ANSWERS
    reasoned = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A short thought."},
                {"type": "text", "text": one["content"]},
            ],
        }
        for one in answers
    ]
    try:
        return _is_rewritten(renderer, [question, *answers]) or _is_rewritten(
            renderer, [question, *reasoned]
        )
    except ValueError:  # the renderer refuses them, and so it does each such row, with the reason
        return False


def _is_rewritten(renderer: Renderer, messages: list[Any]) -> bool:
    from tinker_cookbook.renderers import TrainOnWhat

    turn = TrainOnWhat.LAST_ASSISTANT_TURN
    both, weights = renderer.build_supervised_example(messages, train_on_what=turn)
    tokens = both.to_ints()
    trained = [token for token, weight in zip(tokens, weights.tolist(), strict=True) if weight]
    if TWO_ANSWERS[1]["content"] not in text_of(renderer.tokenizer, trained):
        return False
    first = renderer.build_supervised_example(messages[:2])[0].to_ints()
    return tokens[: len(first)] != first
