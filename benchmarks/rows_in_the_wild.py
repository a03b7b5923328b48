"""Is any key of the field's public formats silent? Each one is honoured, refused or named.

    .venv/bin/python benchmarks/rows_in_the_wild.py

For each key a plain row of its format is read with and without it. Honoured: the conversation, its
weights or the row's id differ. Refused: the row is rejected with a reason. Named: the key is
handed back as unused, and so is said before the first step. Anything else is silent, and exit 1.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rows.forms import read_form

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def chat(**more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {"messages": turns, **more}


SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
ALPACA = {"instruction": "q", "output": "a"}
TRL = {"prompt": "q", "completion": "a"}


class Key(NamedTuple):
    """A key of a format: where it stands, as a path, with a value that it has in the wild."""

    format: str
    row: dict[str, Any]
    path: tuple[str | int, ...]
    value: Any


KEYS = [
    Key("OpenAI fine-tuning", chat(), ("messages", 1, "weight"), 0),
    Key("OpenAI fine-tuning", chat(), ("messages", 1, "tool_calls"), [CALL]),
    Key("OpenAI fine-tuning", chat(), ("messages", 1, "function_call"),
        {"name": "look", "arguments": "{}"}),
    Key("OpenAI fine-tuning", chat(), ("messages", 1, "refusal"), "I cannot."),
    Key("OpenAI fine-tuning", chat(), ("messages", 1, "name"), "helper"),
    Key("OpenAI fine-tuning", chat(), ("messages", 0, "role"), "developer"),
    Key("OpenAI fine-tuning", chat(), ("tools",), [TOOL]),
    Key("OpenAI fine-tuning", chat(), ("functions",), [TOOL["function"]]),
    Key("OpenAI fine-tuning", chat(), ("parallel_tool_calls",), False),
    Key("OpenAI fine-tuning", chat(), ("response_format",), {"type": "json_object"}),
    Key("OpenAI chat logs", chat(), ("messages", 1, "reasoning_content"), "r"),
    Key("OpenAI chat logs", chat(), ("messages", 1, "annotations"), [{"type": "url"}]),
    Key("OpenAI chat logs", chat(), ("messages", 1, "audio"), {"id": "x"}),
    Key("OpenAI chat logs", chat(), ("messages", 0, "content"),
        [{"type": "image_url", "image_url": {"url": "u"}}]),
    Key("OpenAI preference", chat(), ("preferred_output",), [{"role": "assistant"}]),
    Key("OpenAI preference", chat(), ("non_preferred_output",), [{"role": "assistant"}]),
    Key("gpt-oss", chat(), ("messages", 1, "channel"), "analysis"),
    Key("gpt-oss", chat(), ("messages", 1, "recipient"), "functions.look"),
    Key("gpt-oss", chat(), ("messages", 1, "thinking"), "r"),
    Key("Anthropic parts", chat(), ("messages", 1, "content"),
        [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]),
    Key("Anthropic parts", chat(), ("messages", 1, "content"),
        [{"type": "tool_use", "id": "c", "name": "look", "input": {}}]),
    Key("Anthropic parts", chat(), ("messages", 0, "content"),
        [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]),
    Key("axolotl", chat(), ("messages", 1, "train"), False),
    Key("axolotl", chat(), ("messages", 1, "training"), False),
    Key("axolotl", chat(), ("messages", 1, "train_detail"), [{"begin_offset": 0}]),
    Key("ms-swift", chat(), ("messages", 1, "loss"), False),
    Key("ms-swift", chat(), ("messages", 1, "loss_scale"), 0.5),
    Key("ms-swift", chat(), ("rejected_response",), "b"),
    Key("ms-swift", chat(), ("images",), ["a.png"]),
    Key("ms-swift", chat(), ("label",), False),
    Key("verl", chat(), ("messages", 1, "loss_mask"), 0),
    Key("verl", chat(), ("messages", 1, "trainable"), False),
    Key("verl", chat(), ("enable_thinking",), False),
    Key("verl", chat(), ("data_source",), "gsm8k"),
    Key("verl", chat(), ("reward_model",), {"ground_truth": "4"}),
    Key("ShareGPT", SHAREGPT, ("conversations", 1, "weight"), 0),
    Key("ShareGPT", SHAREGPT, ("system",), "s"),
    Key("ShareGPT", SHAREGPT, ("tools",), '[{"name": "look"}]'),
    Key("ShareGPT", SHAREGPT, ("conversations", 1, "from"), "function_call"),
    Key("ShareGPT", SHAREGPT, ("conversations", 0, "from"), "observation"),
    Key("ShareGPT", SHAREGPT, ("conversations", 1, "markdown"), "*a*"),
    Key("ShareGPT", SHAREGPT, ("id",), "x1"),
    Key("Alpaca", ALPACA, ("input",), "i"),
    Key("Alpaca", ALPACA, ("history",), [["x", "y"]]),
    Key("Alpaca", ALPACA, ("system",), "s"),
    Key("Alpaca", ALPACA, ("text",), "### Instruction: q"),
    Key("Alpaca", ALPACA, ("kto_tag",), False),
    Key("Alpaca", ALPACA, ("images",), ["a.png"]),
    Key("LLaMA-Factory preference", ALPACA, ("chosen",), "a"),
    Key("LLaMA-Factory preference", ALPACA, ("rejected",), "b"),
    Key("TRL", TRL, ("completion_mask",), [0, 1]),
    Key("TRL", TRL, ("input_ids",), [1, 2]),
    Key("TRL", chat(), ("assistant_masks",), [0, 1]),
    Key("TRL", chat(), ("chat_template_kwargs",), {"enable_thinking": False}),
    Key("TRL", TRL, ("weight",), 0.5),
    Key("KTO", TRL, ("label",), False),
    Key("preference", TRL, ("chosen",), "a"),
    Key("preference", chat(), ("rejected",), "b"),
    Key("preference", chat(), ("score_chosen",), 9.0),
    Key("OpenOrca", TRL, ("system_prompt",), "s"),
    Key("OpenOrca", TRL, ("id",), "cot.1"),
    Key("Dolly", ALPACA, ("context",), "c"),
    Key("Dolly", ALPACA, ("category",), "open_qa"),
    Key("UltraChat", chat(), ("prompt",), "q"),
    Key("UltraChat", chat(), ("prompt_id",), "p1"),
    Key("retrieval", TRL, ("documents",), ["d"]),
    Key("retrieval", chat(), ("context",), "c"),
    Key("multiple choice", ALPACA, ("choices",), ["x", "y"]),
    Key("multiple choice", ALPACA, ("options",), {"A": "x", "B": "y"}),
    Key("multiple choice", ALPACA, ("answerKey",), "A"),
    Key("evaluation sets", TRL, ("gold",), "a"),
    Key("evaluation sets", TRL, ("correct_answer",), "b"),
    Key("evaluation sets", chat(), ("target",), "a"),
    Key("Hermes tools", SHAREGPT, ("category",), "tools"),
    Key("ChatML dump", chat(), ("source",), "web"),
    Key("ChatML dump", chat(), ("lang",), "en"),
    Key("ChatML dump", chat(), ("messages", 0, "timestamp"), 1),
]  # fmt: skip


def changed(key: Key) -> dict[str, Any]:
    row = copy.deepcopy(key.row)
    place: Any = row
    for step in key.path[:-1]:
        place = place[step]
    place[key.path[-1]] = key.value
    return row


def outcome(key: Key) -> str:
    """What becomes of a key: honoured, refused, named, or silent."""
    before = read_form(key.row)
    try:
        after = read_form(changed(key))
    except ValueError:
        return "refused"
    *above, last = key.path
    name = f"messages[].{last}" if above else str(last)
    if any(one == name or one.startswith(f"{name}[") for one in after.unused):
        return "named"
    return "silent" if after.record == before.record else "honoured"


def main() -> int:
    counts: Counter[str] = Counter()
    for key in KEYS:
        found = outcome(key)
        counts[found] += 1
        path = ".".join("[]" if isinstance(step, int) else step for step in key.path)
        print(f"{key.format:26} {path.replace('.[]', '[]'):34} {found}")
    print(f"{len(KEYS)} keys: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"silent {counts['silent']}")
    return int(counts["silent"] > 0)


if __name__ == "__main__":
    sys.exit(main())
