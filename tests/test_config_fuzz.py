"""Hostile configs through the real command: each is refused in one paragraph, or planned.

The configs are drawn from one seed. Most start as a valid config, with one to three parts wrong,
so that they die late; the files, datasets, task files and models that they name are real, some of
them broken. Every one runs as `--dry-run` in process: it ends with 0 and a plan or with 2 and one
printable line that names a file or a setting, without a traceback and in a few seconds.

Of the 10,000 of a thorough run, about 6,800 are refused by the schema, 2,200 while models, files
and tasks are read or rendered, and 1,000 are planned, 900 of them with the tokenizer; that takes
35 s of processor time or more. Otherwise they are the first 1,000.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from config_schema import describe_settings
from conftest import IS_THOROUGH
from settings.groups import NO_TEXT
from trainer_with_eval import main

SEED = 20_250_702
NUM_CONFIGS = 10_000 if IS_THOROUGH else 400
SIGN_OF_LIFE = re.compile(r"(?:[^\n]*: reading settings and data, loading libraries\n)?")
MAX_MESSAGE = 20_000  # characters
LIMIT_S = 60  # for one config; most take some milliseconds, the first one imports torch
MODEL = "model"  # stands for the model directory

KEYS = tuple(setting.key for setting in describe_settings())
GROUPS = (*("data", "evaluation", "gate", "budget", "mining", "tracking", "dpo", "rl", "distill"),)
NUMBER_KEYS = (
    *("seed", "lora_rank", "learning_rate", "lr_decay", "min_lr", "warmup_steps", "weight_decay"),
    *("max_steps", "batch_size", "steps_per_round", "num_epochs", "max_seq_length"),
    "eval_threshold",
    *(
        "max_rounds",
        "checkpoint_every_steps",
        "data.max_steps_in_flight",
        "data.min_words",
        "data.max_words",
        "gate.alpha",
    ),
    *("data.max_repetition", "data.near_duplicates", "data.val_share", "data.accumulate"),
    *("evaluation.temperature", "evaluation.max_tokens", "evaluation.num_repeats"),
    *("evaluation.concurrency", "evaluation.held_out_every_steps", "gate.margin", "gate.patience"),
    *("budget.tokens", "budget.minutes", "budget.usd", "mining.replay_share", "mining.new_share"),
    *("mining.noise_cap", "mining.num_candidates", "dpo.beta", "rl.group_size", "rl.max_tokens"),
    *("rl.temperature", "rl.kl_coef", "rl.max_turns", "distill.group_size", "distill.max_tokens"),
)
FLOAT_KEYS = (
    *("learning_rate", "lr_decay", "min_lr", "weight_decay", "eval_threshold", "gate.alpha"),
    *("data.max_repetition", "data.near_duplicates", "data.val_share", "evaluation.temperature"),
    *("gate.margin", "budget.minutes", "budget.usd", "mining.replay_share", "mining.new_share"),
    *("mining.noise_cap", "num_epochs", "dpo.beta", "rl.temperature", "rl.kl_coef"),
)
INTEGERS = (0, 1, 2, 3, 7, 8, 9, 100, 10_000, 2**31 - 1, 2**31, 2**53, 2**63, 2**70, 10**400, -1)
FLOATS = (0.0, -0.0, 1e-320, 1e-200, 1e-9, 0.05, 0.25, 0.5, 0.999999, 1.0, 1.5, 1e16, 1e308, -1.0)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", " ", "3", "true", "null", "NaN", "x", "\n", "a\nb", "a\r\nerror: b", "\t", "\0", "a\0b"),
    *("\x1b[31mred", "\x1b]0;title\x07", "\x7f", "\x9b31m", "\u202e", "\u2028", "\ud800"),
    *("\U0001f600", "é", "%s%n", "{0}", "${HOME}", "~", "x" * 5000, "\ud800" * 70, "y\n" * 40),
)
PATHS = (
    *("../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/full", "/dev/null", "/dev/stdin"),
    *("/proc/self/mem", "/proc/self/environ", ".", "..", "/", "folder", "pipe", "loop", "dangling"),
    *("gone.jsonl", "empty.jsonl", "bad.jsonl", "broken.jsonl.gz", "broken.zst", "broken.parquet"),
    *("rows.csv", "broken.csv", "rows.json", "broken.json", "train.jsonl/x", "train.jsonl"),
    *("https://example.com/a.jsonl", "s3://a/b", "file:///etc/passwd", "hf:", "hf:a/b/c", "hf:a/b"),
    *("hf:..", "hf:folder", "hf:\n", "x" * 300, "a/" * 3000, "pool.jsonl", "two\nlines.jsonl"),
    *(
        "cut.jsonl.gz",
        "rows.zst",
        "questions.jsonl",
        "held.jsonl",
        "train.tsv",
        "deep.jsonl",
        "saved",
    ),
)
MISNAMED_TASKS = (
    *("qa:", "nll:", "a/b/c", ".py@", "x.py@", "@", "x.py@a b", "../..", "./.", "simple_qa "),
    *("qa:a\nb", "nll:\x1b[31m", "tasks.py@good\n", "two\nlines.jsonl", "nll:split", "qa:\ud800"),
)
TASKS = (
    *("simple_qa", "qa:questions.jsonl", "nll:held.jsonl", "qa:second.jsonl", "qa:train.jsonl"),
    *("nll:questions.jsonl", "nll:pool.jsonl", "qa:pipe", "nll:/dev/zero", "qa:gone"),
    *("inspect_evals/nothing", "gone.py@t", "fails.py@t", "leaves.py@t", "syntax.py@t", "nul.py@t"),
    *("empty.py@t", "folder.py@t", "pipe.py@t", "./tasks.py@good", "a/b", "folder/x"),
    *("tasks.py@fails", "tasks.py@leaves", "tasks.py@odd", "tasks.py@empty", "tasks.py@twins"),
    *("tasks.py@graded", "tasks.py@unscored", "tasks.py@own", "tasks.py@nothing", "tasks.py@other"),
    *("tasks.py@badly", "tasks.py@good", "tasks.py@gone"),
)
MODELS = (
    *(MODEL, "nobody/nothing", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "a/b/c", "folder"),
    *(
        "no_sizes",
        "odd_sizes",
        "text_sizes",
        "zero_sizes",
        "no_tokenizer",
        "odd_tokenizer",
        "list_config",
    ),
    *("no_json", "-x", "//"),
)
COLUMNS = (
    *(None, {}, {"prompt": "question"}, {"prompt": "a\nb"}, {"a\nb": "c"}, {"prompt": "\ud800"}),
    *({"x" * 5000: "c"}, {"input": 1}),
)
ARGUMENTS = (
    *({}, {"number": 2}, {"numbr": 2}, {"a\nb": 1}, {"kind": []}, {"\ud800": 1}, 1),
    {"kind": "\ud800"},
)
OVERRIDE_KEYS = ("", ".", "a..b", "seed.x", "data.columns.prompt", "\n", "\udcff")
OVERRIDE_VALUES = (
    *("", "null", "1", "-1", "1e400", "NaN", '"', "[", "{}", '{"a": 1, "a": 2}', "\udcff", "a\nb"),
    *("[" * 100_000, "9" * 5000, "[" * 900 + "]" * 900, "\x1b[31m", "true", "x" * 5000),
    '["tasks.py@good"]',
)
NO_OBJECTS = (b"1", b"null", b'"x"', b"true", b"[]", b"{}", b"NaN", b"1e999", b"-", b"")
RENDERERS = (
    *("llama3", "qwen3", "role_colon", "qwen3_vl", "kimi_k2", "gpt_oss_no_sysprompt", "tml_v0"),
    *("deepseekv3", "nemotron3", "glm5_3_low_reasoning", "nothing", "a\nb"),
)
TASK_FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import exact, includes, model_graded_qa


def samples(**metadata):
    return [Sample(input=f"What is {i}?", target="x", metadata=metadata) for i in range(3)]


@task
def good(number: int = 1, kind: str = "a"):
    return Task(dataset=samples(topic="t", cluster="c"), scorer=[exact(), includes()])


@task
def odd(number: int = 1):
    return Task(dataset=samples(topic=["a", {}], cluster={"a": 1}), scorer=exact())


@task
def empty():
    return Task(dataset=MemoryDataset([]), scorer=exact())


@task
def twins():
    return Task(dataset=[Sample(id=1, input="a"), Sample(id="1", input="b")], scorer=exact())


@task
def graded():
    return Task(dataset=samples(), scorer=model_graded_qa())


@task
def unscored():
    return Task(dataset=samples())


@task
def own():
    return Task(dataset=samples(), scorer=exact(), model="mockllm/model")


@task
def nothing():
    return None


@task
def other():
    return type("Other", (), {})()


@task
def badly():
    return Task(dataset=[Sample(input=[])], scorer=exact(), sandbox="gone", epochs=3)


@task
def fails():
    raise ZeroDivisionError("first \\x1b[31m line\\nsecond line")


@task
def leaves():
    raise SystemExit("goodbye")
"""


# --- the files that configs name ------------------------------------------------------------------


def make_files(folder: Path, model_dir: Path) -> None:
    """Write what the configs name, good and broken, below `folder`."""
    rows = [{"instruction": f"Say {i}", "output": str(i), "topic": "ab"[i % 2]} for i in range(8)]
    pool = [{"instruction": f"Say {i}", "output": str(i), "topic": "a"} for i in range(50, 70)]
    held = [{"instruction": f"Repeat {i} once", "output": f"{i}"} for i in range(100, 103)]
    asked = [{"question": f"Which word stands at {i}?", "answer": "x"} for i in range(5)]
    for name, content in (
        *(("train.jsonl", rows), ("pool.jsonl", pool), ("held.jsonl", held)),
        *(("questions.jsonl", asked), ("second.jsonl", [{"question": "One?", "answer": "1"}])),
        ("two\nlines.jsonl", rows),
    ):
        (folder / name).write_text("\n".join(map(json.dumps, content)) + "\n")
    text = (folder / "train.jsonl").read_bytes()
    for name, content in (
        *(("empty.jsonl", b""), ("bad.jsonl", b"nonsense\n\xff\xfe\n"), ("nul.py", b"@task\0")),
        *(("broken.jsonl.gz", b"no gzip"), ("cut.jsonl.gz", gzip.compress(text)[:-9])),
        *(("broken.zst", b"no zstd"), ("broken.parquet", b"PAR1PAR1"), ("rows.zst", b"")),
        *(("rows.csv", b"prompt,completion\na,b\nc,d\n"), ("broken.csv", b'a,a\n"')),
        *(("train.tsv", b"instruction\toutput\na\tb\n"), ("rows.json", b"[%s]" % text[:-1])),
        *(("broken.json", b'[{"a": 1}'), ("deep.jsonl", b"[" * 100_000)),
        *(("fails.py", b"raise OSError()"), ("leaves.py", b"import sys; sys.exit(0)")),
        *(("syntax.py", b"def"), ("empty.py", b""), ("tasks.py", TASK_FILE.encode())),
    ):
        (folder / name).write_bytes(content)
    (folder / "rows.json").write_text(json.dumps(rows))
    for name in ("fails.py", "leaves.py"):
        own = "from inspect_ai import Task, task\n\n@task\ndef t():\n    return Task()\n\n"
        (folder / name).write_text(own + (folder / name).read_text())
    for name in ("folder", "folder.py", "saved"):
        (folder / name).mkdir()
    (folder / "saved" / "state.json").write_text("{}")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.py")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    make_models(folder, model_dir)


def make_models(folder: Path, model_dir: Path) -> None:
    """Model directories that lack something, or hold nonsense."""
    good = json.loads((model_dir / "config.json").read_text())
    untyped = {key: value for key, value in good.items() if key != "model_type"}
    tokenizer = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name, config in (
        ("no_sizes", {"model_type": "llama"}),
        ("odd_sizes", {**untyped, "hidden_size": "32"}),
        ("text_sizes", {**good, "hidden_size": "32"}),
        ("zero_sizes", {**untyped, "num_attention_heads": 0, "head_dim": None}),
        ("odd_tokenizer", good),
        ("no_tokenizer", good),
        ("list_config", [good]),
        ("no_json", None),
    ):
        (folder / name).mkdir()
        text = "{" if config is None else json.dumps(config)
        (folder / name / "config.json").write_text(text)
        if name != "no_tokenizer":
            for file in tokenizer:
                (folder / name / file).write_bytes((model_dir / file).read_bytes())
    (folder / "odd_tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    (folder / MODEL).symlink_to(model_dir)


def ordinary() -> dict[str, Any]:
    """A valid config with some of everything."""
    return {
        "run_name": "fuzz",
        "base_model": MODEL,
        "train_file": "train.jsonl",
        "eval_tasks": ["qa:questions.jsonl", "nll:held.jsonl"],
        "learning_rate": 0.01,
        "lora_rank": 4,
        "batch_size": 4,
        "steps_per_round": 3,
        "max_rounds": 2,
        "eval_threshold": 0.9,
        "evaluation": {"max_tokens": 4, "temperature": 0.5},
        "gate": {"rule": "paired"},
        "budget": {"prices": price_table(MODEL, 1)},
        "mining": {"pool_file": "pool.jsonl", "replay_share": 0.25},
    }


def price_table(model: str, train: Any) -> dict[str, Any]:
    prices = {"train": train, "prefill": 1, "cached_prefill": 0.1, "sample": 1.5}
    return {"as_of": "2025-01-01", "source": "a page", "usd_per_million_tokens": {model: prices}}


# --- hostile configs ------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One config as the command gets it."""

    kind: str
    content: bytes
    overrides: list[str]
    is_json: bool


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, if its groups are still groups."""
    *groups, leaf = key.split(".")
    inner: Any = config
    for group in groups:
        inner = inner.setdefault(group, {}) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[leaf] = value


def any_value(rng: random.Random, depth: int = 2) -> Any:
    """A value of any type, most of them wrong wherever they stand."""
    simple = (
        *INTEGERS,
        *FLOATS,
        *NOT_FINITE,
        *TEXTS,
        *PATHS[:12],
        *MISNAMED_TASKS,
        True,
        False,
        None,
    )
    kind = rng.randrange(10) if depth else 9
    if kind == 0:
        return [any_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 3)))]
    if kind == 1:
        names = rng.choices(
            (*TEXTS, *MISNAMED_TASKS, "file", "weight", "prompt"), k=rng.choice((0, 1, 3))
        )
        return {name: any_value(rng, depth - 1) for name in names}
    if kind == 2 and depth == 2:
        return rng.choice(([[]] * 5000, dict.fromkeys(map(str, range(5000)), 0), nested(400)))
    return rng.choice(simple)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def wrong_value(rng: random.Random, config: dict[str, Any]) -> None:
    put(config, rng.choice(KEYS), any_value(rng))


def odd_numbers(rng: random.Random, config: dict[str, Any]) -> None:
    """Several numbers, of the right type or not, that are hard to reckon with."""
    for key in rng.sample(NUMBER_KEYS, rng.choice((1, 1, 2, 4))):
        put(config, key, rng.choice(INTEGERS + FLOATS))


def legal_numbers(rng: random.Random, config: dict[str, Any]) -> None:
    """Several numbers that the schema lets through, one by one at least."""
    for key in rng.sample(NUMBER_KEYS, rng.choice((1, 2, 4))):
        is_float = key in FLOAT_KEYS
        values = (0.3, 0.6, 1e-9, 1e-320) if is_float else (1, 2, 3, 8, 8, 100, 10**4, 10**12)
        put(config, key, rng.choice(values))


def odd_source(rng: random.Random, config: dict[str, Any]) -> None:
    """Files of all kinds, given in all forms."""
    key = rng.choice(("train_file", "mining.pool_file", "val_file"))
    name = rng.choice(PATHS)
    full: dict[str, Any] = {"file": name}
    for field, values in (
        ("weight", (1, 0.5, 1e-320, 1e308, *NOT_FINITE, "1", True)),
        ("split", ("train", "", "train[:1]", "train[", "a\nb", None, "\ud800")),
        ("subset", (None, "", "a", "../..", "\0")),
        ("revision", (None, "main", "", "x" * 5000)),
        ("columns", COLUMNS),
        ("fil", ("x",)),
    ):
        if rng.random() < 0.12:
            full[field] = rng.choice(values)
    many = [
        rng.choice((rng.choice(PATHS), "train.jsonl", full)) for _ in range(rng.choice((1, 2, 4)))
    ]
    put(config, key, rng.choice((name, name, full, many, [], [full] * 200)))


def odd_tasks(rng: random.Random, config: dict[str, Any]) -> None:
    names = rng.sample(TASKS, rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.15:
        names.append(rng.choice(MISNAMED_TASKS))
    if rng.random() < 0.7 and "qa:questions.jsonl" not in names:
        names.insert(0, "qa:questions.jsonl")
    put(config, rng.choice(("eval_tasks", "eval_tasks", "evaluation.test_tasks")), names)


def odd_map(rng: random.Random, config: dict[str, Any]) -> None:
    """A setting of one task, which there is or not."""
    known = ("qa:questions.jsonl", "nll:held.jsonl", "tasks.py@good", "tasks.py@odd")
    name = rng.choice((*known * 4, *TASKS, *MISNAMED_TASKS))
    key, values = rng.choice(
        (
            ("evaluation.every", (1, 2, 10**9, "end", 0, "start", None)),
            ("evaluation.layers", (2, 3, 1, "2", 2.0)),
            ("evaluation.limit", (1, 2, 2**70, 0, None)),
            ("evaluation.score_key", ("exact", "", "a\nb", 1)),
            ("evaluation.cluster_key", ("cluster", "topic", "", "\ud800", "gone")),
            *(("evaluation.task_args", ARGUMENTS), ("evaluation.task_args", ({"a": nested(40)},))),
            ("gate.guards", (0, 0.5, 1, -1, "x", None)),
        )
    )
    put(config, key, {name: rng.choice(values)})
    if "@" in name or rng.random() < 0.2:
        names = ("qa:questions.jsonl", name, "qa:second.jsonl")
        put(config, "eval_tasks", list(dict.fromkeys(names)))


def odd_model(rng: random.Random, config: dict[str, Any]) -> None:
    key = rng.choice(("base_model", "base_model", "evaluation.grader_model"))
    put(config, key, rng.choice((*MODELS, *MODELS, *TEXTS, *PATHS)))
    if rng.random() < 0.5:
        put(config, "renderer_name", rng.choice((*RENDERERS, *TEXTS)))
    if rng.random() < 0.2:
        put(config, "use_recommended_lr", True)


def odd_rest(rng: random.Random, config: dict[str, Any]) -> None:
    """Names, addresses, flags, choices and prices."""
    texts = (*TEXTS, "http://[::1", "http://x:99999", "javascript:", "http://127.0.0.1:9")
    model = rng.choice((MODEL, MODEL, "other", "a\nb", "\ud800"))
    prices = price_table(model, rng.choice((0, 1.5, 1e308, "1")))
    if rng.random() < 0.2:
        prices["as_of"] = rng.choice(("today", "2025-01-01\n", "9999-99-99"))
    for key, values in rng.sample(
        (
            ("run_name", (*TEXTS, "../up", "a" * 64, "a" * 65, "a\n")),
            ("base_url", texts),
            ("evalops_api_url", texts),
            ("evalops_test_suite_id", texts),
            ("evalops_enabled", (True, False, 1, "yes")),
            ("renderer_name", (*RENDERERS, *TEXTS)),
            ("train_attn", (False, 0)),
            ("train_mlp", (False,)),
            ("train_unembed", (False,)),
            ("gate.rule", ("mean", "lower_bound", "paired", "Mean", "")),
            ("gate.rollback", (True, False, None)),
            ("gate.stop", (True, False, "no")),
            ("data.on_bad_row", ("stop", "skip", "STOP")),
            ("data.contamination", ("drop", "list", "stop", "")),
            ("data.train_on", ("all_tokens", "all_user_and_system_messages", "x")),
            ("data.columns", COLUMNS),
            ("mining.strategy", ("uniform", "topics", "similar", "loss", "hybrid", "x")),
            ("budget.prices", (prices, {}, None, "pool.jsonl", "gone.json", "/dev/zero", "")),
            ("budget.usd", (1, 1e-320, 1e308)),
            ("tracking.trackers", ([], ["trackio", "trackio"], ["wandb"], "mlflow", None)),
            ("tracking.project", (*TEXTS, "a" * 65, "registry-a", "a_system", "a/b")),
            ("tracking.run_name", (*TEXTS, None, "a" * 65)),
            ("tracking.mlflow_uri", (*texts, None, "mlruns", "http://a:b@c", "http://a?token=b")),
        ),
        k=3,
    ):
        put(config, key, rng.choice(values))


def odd_key(rng: random.Random, config: dict[str, Any]) -> None:
    """A key that is unknown, misspelt, in the wrong place, or missing."""
    key = rng.choice(KEYS)
    at = rng.randrange(len(key))
    misspelt = key[:at] + rng.choice(("", key[at] * 2, "_", "é", "\n", ".")) + key[at + 1 :]
    name = rng.choice((misspelt, misspelt, key.rpartition(".")[2], key.upper(), *TEXTS))
    groups = [config, *(group for group in config.values() if isinstance(group, dict))]
    chance = rng.random()
    if chance < 0.1:
        config.pop(rng.choice(("base_model", "train_file", "eval_tasks")), None)
    elif chance < 0.2:
        rng.choice(groups).update({f"{name}{i}": i for i in range(3000)})
    else:
        rng.choice(groups)[name] = any_value(rng)


def nulls(rng: random.Random, config: dict[str, Any]) -> None:
    for key in rng.sample(KEYS, rng.choice((1, 5, len(KEYS)))):
        put(config, key, None)


MUTATIONS: tuple[tuple[Callable[[random.Random, dict[str, Any]], None], int], ...] = (
    *((wrong_value, 2), (odd_numbers, 1), (legal_numbers, 6), (odd_source, 8), (odd_tasks, 7)),
    *((odd_map, 6), (odd_model, 6), (odd_rest, 4), (odd_key, 1), (nulls, 1)),
)


def raw_bytes(rng: random.Random, text: str) -> bytes:
    """The text of a config as a file that is none, or hardly one."""
    at, data = rng.randrange(1, len(text)), text.encode()
    twice = f', "{rng.choice(KEYS)}": 1, "base_model": "a\\nb"}}'
    many = "".join(f', "k{i}": {i}' for i in range(20_000)) + "}"
    flipped = bytes(b if rng.random() > 0.01 else rng.randrange(256) for b in data)
    return rng.choice(
        (
            *(
                data[:at],
                data[at:],
                data + data,
                data + b" // end",
                b"[" + data + b"]",
                b" " * 1000,
            ),
            *(b"\xef\xbb\xbf" + data, text.encode("utf-16"), b"\xff" + data, rng.randbytes(200)),
            *(data[:at] + b"\0" + data[at:], data[:at] + b"\xed\xa0\x80" + data[at:], flipped),
            *(data.replace(b":", b":\x1b[31m", 1), rng.choice(NO_OBJECTS)),
            *((text[:-1] + twice).encode(), (text[:-1] + many).encode()),
            *(b"[" * 2**20, b'{"data":' * 100_000, b"{" + b'"seed": 1,' * 20_000 + b'"seed": 1}'),
            *(b"[" * 990 + b"]" * 990, b'{"data": ' * 980 + b"1" + b"}" * 980),
            *(b"9" * 5000, b'{"seed": ' + b"9" * 5000 + b"}"),
        )
    )


def override(rng: random.Random) -> str:
    """A `--set` that is meant badly."""
    key = rng.choice((*KEYS * 2, *GROUPS, *OVERRIDE_KEYS))
    value = rng.choice((*OVERRIDE_VALUES, *PATHS[:12], *TASKS[:4]))
    return rng.choice((f"{key}={value}",) * 8 + (key, value))


def draw(rng: random.Random) -> Draw:
    config, kinds = ordinary(), []
    if rng.random() < 0.06:
        content, kinds = raw_bytes(rng, json.dumps(config)), ["raw_bytes"]
    else:
        functions, weights = zip(*MUTATIONS, strict=True)
        for mutate in rng.choices(functions, weights, k=rng.choice((1, 1, 1, 1, 2, 3))):
            mutate(rng, config)
            kinds.append(mutate.__name__)
        content = json.dumps(config).encode()
    overrides = [override(rng) for _ in range(rng.choice((1, 1, 2)))] if rng.random() < 0.1 else []
    return Draw("+".join(kinds), content, overrides, rng.random() < 0.1)


# --- the command ----------------------------------------------------------------------------------


class Hang(BaseException):
    """Raised where a config takes too long; no handler of the program's may take it for its own."""


class Outcome(NamedTuple):
    """What the user of one config sees."""

    exit_code: int
    out: str
    err: str


def run(arguments: list[str]) -> Outcome:
    """Run the command as a shell would: standard output strict, errors escaped."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit():
        exit_code = main(arguments)
    return Outcome(exit_code, *(read_back(stream) for stream in (out, err)))


def dry_run(*arguments: str) -> Outcome:
    return run(["--config", "c.json", "--dry-run", *arguments])


def read_back(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def on_alarm(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said_in(err: str) -> str:
    """What the JSON lines of standard error say, as a person would be told."""
    lines = map(json.loads, err.splitlines())
    return "".join(
        f"error: {one['message']}\n" if one["type"] == "error" else f"{one['text']}\n"
        for one in lines
    )


def flaw_of(outcome: Outcome, *, is_json: bool) -> str | None:
    """What is wrong with how a config was answered; None where nothing is."""
    exit_code, out, err = outcome
    if is_json:
        err = said_in(err)
    if "Traceback" in err or "Unexpected" in err:
        return "a crash"
    if exit_code not in (0, 2):
        return f"exit code {exit_code}"
    if exit_code == 0:
        told = "\n".join(json.loads(out)["plan"]) if is_json else out
        has_plan = "schedule: at most" in told and "round  steps  learning rate" in told
        is_quiet = SIGN_OF_LIFE.fullmatch(err) is not None
        return None if has_plan and is_quiet else "no plan, or something on stderr besides"
    *before, last = err.removesuffix("\n").split("\n")  # others may have warned before it
    if not last.startswith("error: ") or any(line.startswith("error: ") for line in before):
        return "not one paragraph"
    if NO_TEXT.search(last):
        return "control characters"
    if len(last) > MAX_MESSAGE:
        return "an endless message"
    if not PLACE.search(last):
        return "names neither file nor setting"
    if is_json:
        return None if json.loads(out)["exit_code"] == 2 else "no JSON"
    return "output beside an error" if out else None


NAMED = "|".join(map(re.escape, KEYS))
PLACE = re.compile(
    rf"c\.json|--set|--config|\b({NAMED})\b|"
    r"\.(jsonl|json|csv|tsv|py|gz|zst|parquet)\b|error: (/|hf:)"
)


@pytest.fixture
def folder(tmp_path: Path, llama_dir: Path) -> Path:
    make_files(tmp_path, llama_dir)
    return tmp_path


def test_hostile_configs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    # It logs names as they are, and half a character cannot be part of a test's report.
    caplog.set_level(logging.ERROR, logger="inspect_ai._eval.registry")
    rng = random.Random(SEED)
    exit_codes: Counter[int] = Counter()
    flaws: dict[str, str] = {}
    for number in range(NUM_CONFIGS):
        config = draw(rng)
        (folder / "c.json").write_bytes(config.content)
        arguments = ["--json"] if config.is_json else []
        outcome = dry_run(*arguments, *(f"--set={one}" for one in config.overrides))
        exit_codes[outcome.exit_code] += 1
        flaw = flaw_of(outcome, is_json=config.is_json)
        if flaw is not None:
            said = (outcome.err or outcome.out)[:300]
            told = f"{number} {config.kind} {config.overrides} {config.content[:600]!r}: {said!r}"
            flaws.setdefault(f"{flaw} {said[:60]!r}", f"{flaw}: {told}")
    assert not flaws, "\n\n".join([f"{len(flaws)} kinds of flaws", *list(flaws.values())[:20]])
    assert exit_codes[0] > NUM_CONFIGS / 20  # or hardly any gets far


# --- what was found -------------------------------------------------------------------------------


def answer(folder: Path, config: dict[str, Any] | bytes, *arguments: str) -> Outcome:
    content = config if isinstance(config, bytes) else json.dumps({**ordinary(), **config}).encode()
    (folder / "c.json").write_bytes(content)
    return dry_run(*arguments)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        # What was shown raw would break the message's line, or act on the terminal.
        ({"a\nb": 1}, "c.json: a\\nb is not a setting"),
        ({"gate": {"guards": {"a\x1b[31mb": "x"}}}, "gate.guards.a\\x1b[31mb: input"),
        ({"train_file": "a\nb"}, "train_file: input should hold no control character"),
        ({"renderer_name": "a\nb"}, "renderer_name: input should hold no control character"),
        ({"eval_tasks": ["qa:a\nb"]}, "eval_tasks.0: input should hold no control character"),
        # It could be loaded and not be printed.
        ({"base_url": "\ud800"}, "base_url: input should hold no control character and no lone"),
        # These overflowed, or were counted one by one.
        ({"max_steps": 10**400, "steps_per_round": 10**400}, "steps_per_round: input should be le"),
        ({"max_rounds": 10**12, "max_steps": 10**12}, "max_rounds: input should be less than"),
        # Inspect looked for tasks there, and ran what it found.
        ({"eval_tasks": ["../.."]}, "eval_tasks names '../..', which is none of the kinds"),
        # It was accepted and left out.
        ({"eval_tasks": ["simple_qa", "nll:split"]}, "Set data.val_share, or take the task out"),
        ({"train_file": "hf:a/b/c"}, "c.json: train_file: 'hf:a/b/c' names no dataset"),
        ({"base_model": "rows.json"}, "c.json: base_model names the file"),
        ({"base_model": "list_config"}, "config.json: not a JSON object. Give base_model a"),
        ({"evaluation": {"grader_model": "no_json"}}, "Give evaluation.grader_model a complete"),
        ({"base_model": "odd_sizes"}, "config.json: its sizes are not all positive numbers"),
        ({"base_model": "text_sizes"}, "its config.json holds what is no size or setting of a"),
        ({"base_url": "http://a:sk-x@b"}, "without user name, password, query or fragment; found"),
        ({"base_url": ""}, "base_url: input should be an address such as"),
        ({"base_model": "zero_sizes"}, "config.json: its sizes are not all positive numbers"),
        ({"eval_tasks": ["leaves.py@t"]}, "leaves.py@t: the Inspect task cannot be loaded"),
        ({"eval_tasks": ["tasks.py@leaves"]}, "cannot be loaded: SystemExit: goodbye."),
        ({"eval_tasks": ["tasks.py@fails"]}, "ZeroDivisionError: first [31m line. Check"),
    ],
)
def test_it_is_refused_in_one_line(folder: Path, change: dict[str, Any], part: str) -> None:
    outcome = answer(folder, change)
    assert flaw_of(outcome, is_json=False) is None
    assert outcome.exit_code == 2
    assert part in outcome.err


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=" + "[" * 100_000, "--set seed=[[[[[[["),
        ("data.columns=" + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a\x1b[31m", "--set a\\x1b[31m: expected KEY=VALUE"),
        ("x" * 5000, "...: expected KEY=VALUE"),
        ("lora_rank.a\nb=1", "lora_rank.a\\nb=1: lora_rank is not a group of settings"),
    ],
)
def test_an_override_is_refused_in_one_line(folder: Path, override: str, part: str) -> None:
    outcome = answer(folder, {}, f"--set={override}")
    assert flaw_of(outcome, is_json=False) is None
    assert part in outcome.err
    assert len(outcome.err) < 300


def test_a_group_of_another_method_is_refused_as_what_it_is(folder: Path) -> None:
    """A recorded config has the groups of other methods as null."""
    outcome = answer(folder, {"method": "rl", "dpo": None}, "--set=dpo.beta=0.5")
    assert "dpo is set, and method is rl, which does not use it" in outcome.err


def test_what_is_nested_deeply_is_refused_at_once(folder: Path) -> None:
    """Near the interpreter's limit it could be read, and the message about it failed."""
    outcome = answer(folder, {"evaluation": {"task_args": {"a/b": {"c": nested(300)}}}})
    assert outcome.err == "error: c.json: objects and lists are nested more than 50 deep.\n"


@pytest.mark.parametrize(
    "config",
    [
        {f"learning_rate{i}": i for i in range(50_000)},
        {"data": {f"colums{i}": i for i in range(50_000)}},
        {"eval_tasks": [1] * 50_000},
        {"train_file": ["bad.jsonl"] * 500},
    ],
    ids=["keys", "keys_of_a_group", "values", "sources"],
)
def test_many_problems_are_told_in_part_and_soon(folder: Path, config: dict[str, Any]) -> None:
    """Each was compared with every setting and told, in megabytes."""
    outcome = answer(folder, config)
    assert flaw_of(outcome, is_json=False) is None
    assert re.search(r"And \d+ more (problems|of the sources)\.$", outcome.err.rstrip())


def test_many_keys_are_looked_through_once(folder: Path) -> None:
    """Each was counted among all others, which takes minutes for these."""
    keys = ", ".join(f'"{i}": {i}' for i in range(200_000))
    assert answer(folder, f"{{{keys}}}".encode()).exit_code == 2
    assert "'0' stands twice" in answer(folder, f'{{{keys}, "0": 1}}'.encode()).err


@pytest.mark.parametrize("path", ["/dev/zero", "", "/", "folder", "x" * 300, "a\0b", "loop"])
def test_a_config_file_that_is_none(folder: Path, path: str) -> None:
    outcome = run(["--config", path, "--dry-run"])
    assert outcome.exit_code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.rstrip().endswith(("Give --config a JSON file.", "JSON file of settings."))


def test_an_inspect_sample_may_have_a_list_as_its_topic(folder: Path) -> None:
    outcome = answer(folder, {"eval_tasks": ["tasks.py@odd"]})
    assert outcome.exit_code == 0 and SIGN_OF_LIFE.fullmatch(outcome.err)
    assert "tasks.py@odd, 3 questions in 1 topic" in outcome.out
