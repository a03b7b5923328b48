"""What each key of a row means: the data of `forms`, and the table of it in docs/data.md.

A key that stands nowhere here is not used, and is named once before the first step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

from rows.tool_calls import TOOL_KEYS

PAIRS = (("instruction", "output"), ("prompt", "completion"), ("input", "output"))
QUESTION_KEYS = ("prompt", "instruction", "question", "input")  # where a row may hold no more
CONTEXT_KEYS = ("input", "context")
TEXT_KEYS = {  # where JSON text is a text like any other
    *(key for pair in PAIRS for key in pair), "question", "context", "content", "value", "topic",
    "system", "system_prompt", "system_message", "reasoning_content", "reasoning", "thinking",
}  # fmt: skip
SHAPES = (
    '"messages", "conversations", "instruction"+"output", "prompt"+"completion" or "input"+"output"'
)
PROMPT_SHAPES = f'{SHAPES}, or what is asked alone: "prompt", "instruction", "question", "input", '
PROMPT_SHAPES += "or messages that end with the user's"
ROLES = {  # the names that files in the wild use, in lower case
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",  # ShareGPT: the value is the call
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# The loss of a message or row is multiplied by it; the yes-or-no ones stand for 1 and 0.
WEIGHT_KEYS = ("weight", "loss_weight", "loss_scale")
MIN_WEIGHT = 1e-6  # less is none in the floats of a loss
MAX_WEIGHT = 1_000_000  # more is a column of something else
TRAINED_KEYS = ("train", "trainable", "training", "loss", "loss_mask")
LIKED_KEYS = ("label", "kto_tag", "desirable", "is_desirable", "is_chosen")
LIKING = (True, "true", "yes", "t", "y", "desirable", "chosen", "good", "positive", "like", "liked")
DISLIKING = (
    *(False, "false", "no", "f", "n", "undesirable", "rejected", "bad", "negative", "dislike"),
    "disliked",
)

_PREFERENCE = (
    "it holds a preferred and a rejected answer, which preference training (DPO) takes and this "
    "does not; keep the preferred answer as a row of its own, or set method to dpo"
)
DISLIKED = (
    "it marks its answer as disliked, which would be trained as if it were liked; take such rows "
    "out, or set method to dpo, which pairs them with liked ones (if the key is no such mark, name "
    "it another way)"
)
PAIR_SHAPES = (
    '"prompt"+"chosen"+"rejected", whole conversations in "chosen"+"rejected", '
    '"comparison"+"label", or a "label" (true or false) beside "prompt"+"completion"'
)
IN_COMPARISON = ("prompt_conversation", "completion_A", "completion_B")
_MEDIA = "only text is trained, and the row would teach an answer to what the model does not see"
_TOKENS = "its tokens and masks are made from the text here; keep the text alone"
_TEMPLATE = "the chat format is settled by renderer_name for all rows; take the key out"
CONTEXT = (
    "the answer may rest on it, and the form of the row has no place for it; put it into the "
    'question, or name it in data.columns as "input" beside "instruction" and "output"'
)
CHOICE_KEYS = ("choices", "options", "endings")
CHOICES = (
    "the answer is one of them, and the row would be asked without; write them into the question, "
    "or take the key out"
)
TO_ANSWER = "to_answer"  # marks what `registry.py feedback` found no right answer for
_UNANSWERED = (
    "it is a prompt that was answered wrongly, and waits for a right answer; write that beside it "
    'as "correction" and give the file to registry.py feedback'
)
_EITHER_WAY = "it can mean to train or not to; say it as weight 0 or 1"
OTHER_PREFERENCE_KEYS = (
    "chosen_response", "rejected_response", "rejected_responses", "rejected_messages",
    "rejected_output", "rejected_answer", "preferred_output", "non_preferred_output",
    "response_chosen", "response_rejected",
)  # fmt: skip
REFUSED = {
    **dict.fromkeys(("chosen", "rejected", "comparison", *OTHER_PREFERENCE_KEYS), _PREFERENCE),
    **dict.fromkeys(
        ("image", "images", "image_path", "image_url", "video", "videos", "audio", "audios",
         "pixel_values", "input_audio"),
        _MEDIA,
    ),
    **dict.fromkeys(
        ("input_ids", "labels", "attention_mask", "assistant_masks", "completion_mask",
         "position_ids"),
        _TOKENS,
    ),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "enable_thinking"), _TEMPLATE),
    **dict.fromkeys(
        ("documents", "document", "passages", "passage", "knowledge", "chat_history",
         "dialogue_history"),
        CONTEXT,
    ),
    **dict.fromkeys(("mask", "masked", "is_masked", "ignore", "no_loss"), _EITHER_WAY),
    TO_ANSWER: _UNANSWERED,
}  # fmt: skip
_NOT_IN_A_MESSAGE = "it belongs beside the messages, in the row"
REFUSED_IN_MESSAGE = {
    **REFUSED,
    **dict.fromkeys(TOOL_KEYS, _NOT_IN_A_MESSAGE),
    "refusal": "the model is not trained to say what stands in no content; make it the content",
    "train_detail": "parts of a message cannot be trained apart; say it as weight 0 or 1",
    "training_detail": "parts of a message cannot be trained apart; say it as weight 0 or 1",
}
HARMONY = {"channel": "final", "recipient": "all"}  # other values are no plain answer
SYNONYMS = {  # what public files call these, the likeliest first
    "instruction": (
        "instruction",
        "question",
        "query",
        "prompt",
        "user",
        "input",
        "problem",
        "text",
        "q",
    ),
    "input": ("context", "passage"),
    "output": (
        "output",
        "answer",
        "response",
        "completion",
        "assistant",
        "target",
        "solution",
        "correct_answer",
        "best_answer",
        "expected_answer",
        "expected_output",
        "gold_answer",
        "ground_truth",
        "gold",
        "label",
        "a",
    ),
}
HEADING_WORDS = {  # what a spreadsheet's headings have among other words
    "instruction": ("question", "query", "prompt", "instruction", "problem"),
    "output": ("answer", "response", "reply", "solution"),
}
NUMBERING_WORDS = {"id", "no", "nr", "number", "date", "time"}
# What public files call an answer, or the right one of several; their spellings differ in case
# and signs ("answerKey", "answer_key").
ANSWER_KEYS = (
    *SYNONYMS["output"], "answers", "outputs", "responses", "completions", "targets", "solutions",
    "reply", "correct_answers", "correct", "correct_option", "correct_response", "right_answer",
    "final_answer", "short_answer", "exact_answer", "answer_key",
    "answer_idx", "answer_index", "answer_text", "standard_answer", "golds",
    "golden_answer", "golden_answers", "gold_label", "gt", "gt_answer", "reference",
    "references", "reference_answer", "reference_solution", "ref_answer", "expected",
    "expected_response", "ideal", "canonical_solution",
    "cop", "reward_model",
)  # fmt: skip
_ANSWER_NAMES = frozenset(key.replace("_", "") for key in ANSWER_KEYS)
TEXT_PARTS = ("text", "input_text", "output_text")
THINKING_PARTS = ("thinking", "reasoning")


def is_answer_key(key: object) -> bool:
    """Whether a key may hold an answer by its name, in any spelling of it."""
    name = "".join(c for c in str(key).casefold() if c.isalnum())
    # Columns A, B, C and D are what there is to choose from.
    return (name if len(name) > 1 else key) in _ANSWER_NAMES


def guess_columns(found: Collection[str]) -> dict[str, str]:
    """`data.columns` for rows with these keys; empty where they have a form, or nothing like it.

    A heading of several words, as "Customer question", counts by a word of it, where it alone does.
    """
    if not {"messages", "conversations"}.isdisjoint(found) or any(
        set(p) <= set(found) for p in PAIRS
    ):
        return {}
    guess = {ours: _column_of(ours, found) for ours in SYNONYMS}
    if guess["instruction"] is None or guess["output"] is None:
        return {}
    return {ours: theirs for ours, theirs in guess.items() if theirs is not None}


def asked_column(found: Collection[str]) -> str | None:
    """The key of what is asked, by its name; None where nothing is called so."""
    return _column_of("instruction", found)


def _column_of(ours: str, found: Collection[str]) -> str | None:
    named = {str(key).casefold(): str(key) for key in found}
    exact = next((named[one] for one in SYNONYMS[ours] if one in named), None)
    return exact or _heading_with(HEADING_WORDS.get(ours, ()), named)


def _heading_with(words: Collection[str], named: Mapping[str, str]) -> str | None:
    """The one heading that has one of `words` and numbers nothing; None where more or none do."""
    parts = {name: set(key.replace("_", " ").split()) for key, name in named.items()}
    held = [name for name, of in parts.items() if of & set(words) and not of & NUMBERING_WORDS]
    return held[0] if len(held) == 1 else None


# --- the table ------------------------------------------------------------------------------------


def _shown(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


USED_IN_A_ROW = {
    "`messages`, `conversations`": "the conversation; with both, `messages`",
    "`instruction` + `output`, `prompt` + `completion`, `input` + `output`": (
        "a question and its answer; `prompt` and `completion` may be lists of messages, and then "
        "answers in the prompt carry no loss"
    ),
    _shown(QUESTION_KEYS): (
        "alone, or messages that end with the user's: what is asked, in a row without an answer, "
        "with method `rl` or `distill`; refused beside a key that may hold the answer, in any "
        f"spelling of its name ({_shown(ANSWER_KEYS)})"
    ),
    "`input`, `context`": (
        "beside a question and an answer: appended to the question; beside a conversation it has "
        "to stand in it already, or the row is refused"
    ),
    _shown(CHOICE_KEYS): (
        "texts to choose from: what is asked has to hold each of them, or the row is refused; "
        "anything else under these names is not used"
    ),
    "`history`": "earlier turns, as pairs or messages, before a question and its answer",
    _shown(SYSTEM_KEYS): "the system message",
    _shown(TOOL_KEYS): "what the model may call",
    _shown(REASONING_KEYS): "the reasoning before an answer, in a row of a question and an answer",
    "`topic`": "the topic that scores and mining go by",
    _shown(WEIGHT_KEYS): "the row's loss is multiplied by it; at 0 the row is dropped",
    _shown(TRAINED_KEYS): "the same as weight 1 or 0; a `loss` that is another number is not used",
    _shown(LIKED_KEYS): (
        "a row that it marks as liked is trained, one that it marks as disliked (false, 0 or "
        "below) is refused; another value is not used"
    ),
}
USED_IN_A_PAIR = {
    "`prompt` + `chosen` + `rejected`": (
        "a question, or messages, with its preferred and its rejected answer; `instruction` may "
        "stand for `prompt`, and `input`, `context`, `history`, `system` and `tools` mean what "
        "they mean in other rows"
    ),
    "`chosen` + `rejected`": (
        "two conversations, as messages or as a text of `Human:` and `Assistant:` turns, that "
        "differ in the last answer alone; a `prompt` beside them has to stand in them"
    ),
    "`comparison` + `label`": (
        "`prompt_conversation`, `completion_A` and `completion_B`, and which is preferred: `A`, "
        "`B` or `Tie`"
    ),
    _shown(LIKED_KEYS): (
        "a row of another form that it marks as liked (true) or disliked (false) is paired with "
        "one of the other mark and the same prompt"
    ),
    _shown(WEIGHT_KEYS): "the pair's loss is multiplied by it; at 0 the pair is dropped",
    "`topic`": "the topic that scores and mining go by",
}
USED_IN_A_MESSAGE = {
    "`role`, `from`": "who speaks; ShareGPT's names and `developer` (system) are known",
    "`content`, `value`": "a text, or parts of type text and thinking",
    "`tool_calls`, `function_call`": "calls of tools; `arguments` as JSON text or an object",
    "`tool_call_id`, `name`": "which call a tool's turn answers; elsewhere `name` is not used",
    _shown(REASONING_KEYS): "the reasoning before an answer",
    _shown((*WEIGHT_KEYS, *TRAINED_KEYS)): (
        "how much the message counts in the loss, relative to the row's others; 0 is no loss. It "
        "adds none to messages that `data.train_on` does not train"
    ),
}


def keys_table() -> str:
    """A Markdown table of all keys that are used or refuse a row."""
    lines = ["| where | key | what becomes of it |", "|---|---|---|"]
    for where, used in (
        ("row", USED_IN_A_ROW),
        ("row of a pair", USED_IN_A_PAIR),
        ("message", USED_IN_A_MESSAGE),
    ):
        lines += [f"| {where} | {keys} | {said} |" for keys, said in used.items()]
    in_message = {k: v for k, v in REFUSED_IN_MESSAGE.items() if REFUSED.get(k) != v}
    for where, refused in (("row, message", REFUSED), ("message", in_message)):
        for said, group in groupby(refused, key=lambda key: refused[key]):
            lines.append(f"| {where} | {_shown(tuple(group))} | refused: {said} |")
    others = " and ".join(f"`{key}` other than {value}" for key, value in HARMONY.items())
    lines.append(f"| message | {others} | refused: it is no plain answer |")
    lines.append("| | any other key | not used, and named once before the first step |")
    return "\n".join(lines)


def as_question(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of one question and its answer by the names of a question file; others as they are."""
    pair = next((pair for pair in PAIRS if set(pair) <= set(fields)), None)
    if pair is None or {"question", "answer"} & set(fields):
        return fields
    names = dict(zip(pair, ("question", "answer"), strict=True))
    return {names.get(key, key): value for key, value in fields.items()}
