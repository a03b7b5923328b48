"""How an export is served, as sections of Markdown with commands.

What servers are known to take of an adapter stands in loop/plan_page/serving.py; here are the
commands for the files at hand. The self-check loads an export in transformers or in llama.cpp;
vLLM and Ollama were not run here, and that is said beside their commands.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

from exports.ollama import AnswerSettings
from exports.served_template import ServedTemplate
from loop.plan_page.serving import NO, UNKNOWN, YES, Adapter, ways_of

NAME = "tuned"  # what the commands call the model
QUESTION = "Which colour has a clear sky?"
VLLM_RANKS = (16, 32, 64, 128, 256)  # of those that --max-lora-rank takes
VERDICTS = {
    YES: "It is known to take",
    NO: "It does not take",
    UNKNOWN: "It is not known to take",
}
NUM_CONTEXT = 4096  # of a command that has to name a length; the model's own may not fit in memory


class Served(NamedTuple):
    """What is served: one of the formats, and the files that the commands name."""

    format: str  # peft, merged, gguf, gguf-adapter or ollama
    base: str  # the base model's directory or hub name
    adapter: Adapter
    template: ServedTemplate
    asked: AnswerSettings
    gguf: str = "model.gguf"  # the model's, or the adapter's file in the folder
    base_gguf: str = "BASE.gguf"  # what an adapter in GGUF is put on
    half_dtype: str | None = None  # of an adapter's base model, where transformers loads it so


def how_to_serve(served: Served) -> str:
    """Markdown: a section (`### ...`) for each program, with its commands and what it cannot do."""
    has_gguf = served.format in ("gguf", "gguf-adapter", "ollama")
    sections = [
        ("transformers", _not_here("peft", "merged") if has_gguf else _transformers(served)),
        ("vLLM", _not_here("merged") if has_gguf else _vllm(served)),
        ("llama.cpp", _llama_cpp(served) if has_gguf else _not_here("gguf")),
        ("Ollama", _ollama(served)),
        ("What each of them has to be told", _told(served)),
    ]
    opening = "Commands are run in this folder."
    return "\n\n".join([opening, *(_section(title, lines) for title, lines in sections)]) + "\n"


def _section(title: str, lines: Iterator[str]) -> str:
    return "\n\n".join([f"### {title}", *lines])


def _not_here(*formats: str) -> Iterator[str]:
    named = " or ".join(f"`--format {one}`" for one in formats)
    yield f"Not from this folder: export with {named}."


def _block(language: str, lines: list[str]) -> str:
    """A block of code, whatever backticks a name in it has."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


# --- transformers ---------------------------------------------------------------------------------


def _transformers(served: Served) -> Iterator[str]:
    is_adapter = served.format == "peft"
    yield (
        "Loaded so when this folder was made, and compared with the service that trained it, by "
        "these versions:"
    )
    packages = ("torch", "transformers", *(("peft",) if is_adapter else ()))
    yield _block("bash", [f"pip install {' '.join(map(_pinned, packages))}"])
    loaded = ['model = AutoModelForCausalLM.from_pretrained(".")']
    if is_adapter:
        # As the check loads it: transformers would take the base model's own precision, and its
        # own settings, where a penalty on repetitions may stand that the run did not have.
        precise = "" if served.half_dtype is None else ', dtype="float32"'
        loaded = [
            f"base = AutoModelForCausalLM.from_pretrained({served.base!r}{precise})",
            'model = PeftModel.from_pretrained(base, ".")',
            'model.generation_config = GenerationConfig.from_pretrained(".")',
        ]
    imported = ["AutoModelForCausalLM", "AutoTokenizer", *(["GenerationConfig"] * is_adapter)]
    yield _block(
        "python",
        [
            *(["from peft import PeftModel"] if is_adapter else []),
            f"from transformers import {', '.join(imported)}",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            *loaded,
            f'messages = [{{"role": "user", "content": {QUESTION!r}}}]',
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            f"answer = model.generate(**prompt, {', '.join(_generating(served))})",
            'tokens = answer[0, prompt["input_ids"].shape[1] :]',
            "print(tokenizer.decode(tokens, skip_special_tokens=True))",
        ],
    )
    yield (
        "`pipeline` has settings of its own, which it takes before those in generation_config.json "
        f"(it draws at temperature 0.7): give it `{', '.join(_generating(served))}` in each call."
    )
    if is_adapter and served.half_dtype is not None:
        yield (
            f"Without `dtype` the base model is loaded in {served.half_dtype}, as its files are: "
            "half the memory, and two answers that were near each other may change places."
        )
    if is_adapter and served.adapter.train_unembed:
        yield (
            "PEFT alone loads all of it: `AutoModelForCausalLM.from_pretrained` on an adapter "
            "leaves the unembedding's part out, or refuses the folder."
        )


def _pinned(package: str) -> str:
    """As pip takes it; a build's own suffix (+cpu) is left out, since no index has it."""
    return f"{package}=={version(package).partition('+')[0]}"


def _generating(served: Served) -> Iterator[str]:
    asked, template = served.asked, served.template
    if asked.temperature > 0:
        yield f"do_sample=True, temperature={asked.temperature!r}, top_k=0, top_p=1.0"
    else:
        yield "do_sample=False"
    if asked.max_tokens is not None:
        yield f"max_new_tokens={asked.max_tokens}"
    if template.stop_ids:
        yield f"eos_token_id={list(template.stop_ids)!r}"
    if texts := _spelt_stops(template):
        yield f"stop_strings={texts!r}, tokenizer=tokenizer"


def _spelt_stops(template: ServedTemplate) -> list[str]:
    """The ends of an answer that are no tokens, so that no file can name them."""
    return [] if template.stop_ids else list(template.stop_texts)


# --- servers --------------------------------------------------------------------------------------


def _vllm(served: Served) -> Iterator[str]:
    yield "vLLM was not run here."
    told = ["--chat-template chat_template.jinja", "--generation-config ."]
    if served.format == "merged":
        yield _block("bash", [f"vllm serve . --served-model-name {NAME} {' '.join(told)}"])
        yield _request(served, 8000)
        return
    way = next(one for one in ways_of(served.adapter) if one.how.startswith("vLLM"))
    yield f"{VERDICTS[way.verdict]} this adapter: {way.why}.{_instead(served)}"
    if way.verdict != YES:
        yield "A release that takes it is started so:"
    rank = next((one for one in VLLM_RANKS if one >= served.adapter.rank), served.adapter.rank)
    yield _block(
        "bash",
        [
            f"vllm serve {shlex.quote(served.base)} --tokenizer . --enable-lora "
            f"--max-lora-rank {rank} --lora-modules {NAME}=. {' '.join(told)}"
        ],
    )
    yield _request(served, 8000)


def _instead(served: Served) -> str:
    """What vLLM takes in the place of an adapter that it may refuse."""
    adapter = served.adapter
    way = next(one for one in ways_of(adapter) if one.how.startswith("vLLM"))
    if way.verdict == YES:
        return ""
    can_fold = adapter.train_unembed and not adapter.has_experts
    fold = ", or with `--format peft --fold-unembed`" if can_fold else ""
    return f" Export with `--format merged`{fold} instead."


def _llama_cpp(served: Served) -> Iterator[str]:
    yield "Loaded by llama.cpp when this folder was made, and compared with the service."
    model = f"-m {shlex.quote(served.gguf)}"
    if served.format == "gguf-adapter":
        model = f"-m {shlex.quote(served.base_gguf)} --lora {shlex.quote(served.gguf)}"
    length = min(served.asked.context or NUM_CONTEXT, NUM_CONTEXT)
    yield _block("bash", [f"llama-server {model} --jinja -c {length} --port 8080"])
    yield _request(served, 8080)
    yield (
        "Or from Python, without a compiler (`pip install xllamacpp`; export.json has the version "
        "that was used here):"
    )
    yield _block("python", list(_llama_cpp_in_python(served, length)))
    yield (
        "The check kept keys and values in float32. llama-server keeps them in float16 unless it "
        "is told `--cache-type-k f32 --cache-type-v f32 --flash-attn off`; two answers that were "
        "near each other may then change places."
    )
    if "<think>" in served.template.jinja:
        yield (
            "It gives what stands between `<think>` and `</think>` as `reasoning_content`, apart "
            "from the answer; `--reasoning-format none` leaves it there."
        )


def _llama_cpp_in_python(served: Served, length: int) -> Iterator[str]:
    """llama.cpp's server inside of a Python process, asked as any other server is."""
    is_adapter = served.format == "gguf-adapter"
    yield from ("import json", "import urllib.request", "", "import xllamacpp", "")
    yield "params = xllamacpp.CommonParams()"
    yield f"params.model.path = {(served.base_gguf if is_adapter else served.gguf)!r}"
    if is_adapter:
        loaded = f"xllamacpp.CommonAdapterLoraInfo({served.gguf!r}, 1.0)"
        yield f"params.lora_adapters = [{loaded}]"
    yield "params.use_jinja = True"
    yield f"params.n_ctx = {length}"
    yield "params.port = 0  # any that is free"
    yield "server = xllamacpp.Server(params)"
    yield "request = urllib.request.Request("
    yield '    f"{server.listening_address}/v1/chat/completions",'
    yield f"    json.dumps({_sent(served)!r}).encode(),"
    yield '    {"Content-Type": "application/json"},'
    yield ")"
    yield "with urllib.request.urlopen(request) as reply:"
    yield '    print(json.load(reply)["choices"][0]["message"]["content"], flush=True)'


def _request(served: Served, port: int) -> str:
    body = json.dumps(_sent(served)).replace("'", "\\u0027")  # which would end the shell's quotes
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    return _block("bash", [f"curl {address} -H 'Content-Type: application/json' -d '{body}'"])


def _sent(served: Served) -> dict[str, Any]:
    """A question as the run's evaluation asked, in the form that all servers take."""
    asked = served.asked
    sent: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": asked.temperature,
    }
    if asked.temperature > 0:
        sent |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    if asked.max_tokens is not None:
        sent["max_tokens"] = asked.max_tokens
    if texts := _spelt_stops(served.template):
        sent["stop"] = texts
    return sent


def _ollama(served: Served) -> Iterator[str]:
    template = served.template
    if template.go is None:
        yield f"Not this model: {template.no_go}, which the template of a Modelfile cannot say."
        return
    if served.format != "ollama":
        yield from _not_here("ollama")
        return
    yield "Ollama was not run here; the template in `Modelfile` says the same in Go's language."
    yield _block("bash", [f"ollama create {NAME} -f Modelfile", f"ollama run {NAME}"])
    if template.go_limits:
        yield "\n".join(["Written otherwise than in training:", "", *_bullets(template.go_limits)])


def _bullets(sentences: tuple[str, ...]) -> list[str]:
    return [f"- {one}" for one in sentences]


# --- what is common -------------------------------------------------------------------------------


def _told(served: Served) -> Iterator[str]:
    template, asked = served.template, served.asked
    ends = ", ".join(f"`{json.dumps(text)}`" for text in template.stop_texts)
    if template.stop_ids:
        yield (
            f"Answers end at {ends}, in tokens {', '.join(map(str, template.stop_ids))}, as "
            "generation_config.json or the GGUF file says."
        )
    else:
        yield (
            f"Answers end at the text {ends}, which is no token. transformers reads it in "
            "generation_config.json and then wants a tokenizer to find it with (`tokenizer=...`, "
            "of a pipeline as well); a server has to be told in each request (`stop`), or the "
            "model goes on with a question of its own. The space that an answer begins with "
            "belongs to the format."
        )
    how = f"temperature {asked.temperature:g}"
    if asked.max_tokens is not None:
        how += f", at most {asked.max_tokens} tokens"
    yield f"The run asked its questions with {how}; its results hold for that."
    if template.origin != "the model's own":
        yield (
            "A server that is started on the base model's folder has to be given the chat template "
            "in this one: the base model's own, where it has one, writes some prompts otherwise "
            "than this model was trained on."
        )
