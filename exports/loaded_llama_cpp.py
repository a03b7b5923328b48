"""A GGUF file, loaded by llama.cpp in a process of its own, which may crash without harm."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import secrets
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import httpx

from errors import ExportError, one_line
from exports.gguf_model import need_gguf
from exports.gguf_tokenizer import NORMAL
from exports.loaded import Loaded

CONTEXT = 4096  # tokens of a prompt and its answer
REQUEST_S = 600.0  # a prompt of a large model on few processors
START_S = 60.0
START_S_A_GIGABYTE = 60.0  # from a slow disk
SMALL_BYTES = 64 * 2**20  # of a model that several threads would only wait for each other on
LOG_CHARS = 600  # of llama.cpp's words in an error
BROKEN = "\ufffd"  # what a part of a character is read as
FEW, MANY = 256, 8192  # of the likeliest tokens, among which the one asked for mostly is
ARRAY, INT32 = 9, 5  # types of a GGUF file
LEAST = -1e30  # a logarithm below it is llama.cpp's of 0
CERTAIN = 1e4  # added to a logit, no other token is taken

_WORKER = Path(__file__).with_name("llama_cpp_worker.py")


@contextlib.contextmanager
def open_llama_cpp(
    gguf: Path, adapter: Path | None = None, *, context: int = CONTEXT
) -> Iterator[Loaded]:
    """Load a GGUF file, with an adapter on it if one is given, as exactly as llama.cpp can: a
    float32 cache, no flash attention, one question at a time.

    Raises `ExportError`, with llama.cpp's own words, where it does not load or ends, and
    `ConfigError` where the packages are not installed.
    """
    need_gguf()
    for path in (gguf, adapter):
        if path is not None and not path.is_file():
            raise ExportError(f"{path}: there is no such file, so llama.cpp cannot load it.")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"PYTHONUTF8": "1"},
            encoding="utf-8",
        )
        try:
            key = secrets.token_hex()
            size = sum(os.path.getsize(path) for path in (gguf, adapter) if path is not None)
            asked = {
                "gguf": str(gguf.absolute()),
                "adapter": None if adapter is None else str(adapter.absolute()),
                "context": context,
                "num_threads": 1 if size < SMALL_BYTES else len(os.sched_getaffinity(0)),
                "key": key,
            }
            address = _started(process, asked, START_S + START_S_A_GIGABYTE * size / 1e9)
            if address is None:
                raise ExportError(
                    f"{_names(gguf, adapter)}: llama.cpp does not load it ({_ended(process)}). "
                    f"{_last_words(log)}"
                )
            with httpx.Client(
                base_url=address,
                headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
                timeout=REQUEST_S,
                trust_env=False,  # no proxy stands between
            ) as http:
                yield _LlamaCpp(_Server(http, process, log, _names(gguf, adapter)), gguf, context)
        finally:
            process.kill()
            process.communicate()


def _names(gguf: Path, adapter: Path | None) -> str:
    # By name alone: while an export is made it lies in a folder that nobody will find.
    return gguf.name if adapter is None else f"{adapter.name} on {gguf.name}"


def _started(process: subprocess.Popen[str], asked: dict[str, Any], limit_s: float) -> str | None:
    """The address of the server; None where it has none within the limit, or has ended."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    give_up_at = time.monotonic() + limit_s
    while (left := give_up_at - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], min(left, 1.0))[0]:
            line = process.stdout.readline()
            return json.loads(line)["address"] if line else None
    return None


def _ended(process: subprocess.Popen[str]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(1.0)
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"
    return "it does not answer"


def _last_words(log: IO[bytes]) -> str:
    text = os.pread(log.fileno(), 2**20, max(0, os.fstat(log.fileno()).st_size - 2**20))
    lines = text.decode(errors="replace").splitlines()
    told = [line for line in lines if " E " in line or "Error" in line] or lines[-3:]
    return f"Its words: {one_line(' '.join(told), LOG_CHARS)}" if told else "It said nothing."


class _Server:
    """llama.cpp's server: a question over HTTP, an answer in JSON."""

    def __init__(
        self, http: httpx.Client, process: subprocess.Popen[str], log: IO[bytes], names: str
    ) -> None:
        self._http = http
        self._process = process
        self._log = log
        self._names = names

    def ask(self, route: str, question: dict[str, Any]) -> dict[str, Any]:
        try:
            # In ASCII: half a surrogate pair, which is no text, is refused rather than unsendable.
            answer = self._http.post(route, content=json.dumps(question))
            if answer.status_code == httpx.codes.OK:
                return answer.json()
            why = f"it refuses {route} with {answer.status_code}: {one_line(answer.text, 300)}"
        except (httpx.HTTPError, ValueError) as error:
            why = f"{route} has no answer ({one_line(str(error), 200)}); {_ended(self._process)}"
        raise self.failed(f"{why}. {_last_words(self._log)}")

    def failed(self, why: str) -> ExportError:
        return ExportError(f"{self._names}: llama.cpp has loaded it, and {why}")


class _LlamaCpp:
    """What a loaded file can be asked."""

    def __init__(self, server: _Server, gguf: Path, context: int) -> None:
        self._server = server
        self._context = context
        self._vocabulary = _Vocabulary(gguf, server)

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """The natural log-probability of each token but the first, given those before it.

        llama.cpp says it of the tokens that it generates, before any sampler, so it is made to
        generate these, by a grammar that allows nothing else. No grammar takes markers, which can
        end a generation, nor parts of characters: the former are made certain one by one, and of
        the latter, of which nothing is said, it is read from what could have stood there instead.
        """
        found: list[float] = []
        places = range(1, len(tokens))
        for is_plain, run in itertools.groupby(
            places, lambda i: self._vocabulary.is_plain(tokens[i])
        ):
            steps = list(run)
            if is_plain:
                wanted = [tokens[i] for i in steps]
                grammar = "root ::= " + " ".join(f"<[{token}]>" for token in wanted)
                found += self._generated(tokens[: steps[0]], wanted, {"grammar": grammar})
                continue
            for i in steps:
                if self._vocabulary.is_marker(tokens[i]):
                    certain = {"logit_bias": [[tokens[i], CERTAIN]]}
                    found += self._generated(tokens[:i], [tokens[i]], certain)
                else:
                    found.append(self._offered(tokens[:i], tokens[i]))
        return found

    def _generated(
        self, before: Sequence[int], wanted: list[int], forced: dict[str, Any]
    ) -> list[float]:
        answer = self._generate(before, len(wanted), {"n_probs": 1, **forced})
        told = answer.get("completion_probabilities", [])
        if [step["id"] for step in told] != wanted:
            raise self._server.failed(
                f"asked for the tokens {wanted} it has generated {answer.get('tokens')}, so their "
                "probabilities are not known."
            )
        return [self._logprob(step) for step in told]

    def _offered(self, before: Sequence[int], wanted: int) -> float:
        """What it says of one token while it generates another, which is sure to be said."""
        bias = [[self._vocabulary.a_plain_one(), CERTAIN]]
        for number in (FEW, MANY, self._vocabulary.size):  # all of a large one is a long answer
            answer = self._generate(before, 1, {"n_probs": number, "logit_bias": bias})
            for step in answer.get("completion_probabilities", []):
                for offered in step["top_logprobs"]:
                    if offered["id"] == wanted:
                        return self._logprob(offered)
        raise self._server.failed(f"it says no probability of token {wanted}.")

    def _logprob(self, step: dict[str, Any]) -> float:
        """It keeps probabilities, in 32 bits, so that of a very unlikely token is 0."""
        if step["logprob"] < LEAST:
            raise self._server.failed(
                f"it rounds the probability of token {step['id']} to 0, so its logarithm is not "
                "known."
            )
        return float(step["logprob"])

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        """The likeliest tokens one by one, as far as the file lets them go.

        llama.cpp takes some tokens for the end of an answer by their look, which the service does
        not; after one of those it is asked to go on. Where it goes on by itself after one of
        `stop`, the file does not say that it ends an answer, and all is returned.
        """
        found: list[int] = []
        while len(found) < max_tokens:
            new = self._generate([*prompt, *found], max_tokens - len(found), {})["tokens"]
            if not new:
                raise self._server.failed(f"it generates nothing after {len(prompt)} tokens.")
            found += new
            if any(token in stop for token in new):
                break
        return found

    def _generate(self, before: Sequence[int], number: int, more: dict[str, Any]) -> dict[str, Any]:
        if len(before) + number > self._context:
            raise self._server.failed(
                f"{len(before)} tokens and {number} more do not fit into the {self._context} that "
                "it was opened with."
            )
        question = {
            "prompt": list(before),
            "n_predict": number,
            "temperature": 0.0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return self._server.ask("/completion", {**question, **more})

    def tokens_of(self, text: str) -> list[int]:
        """A plain text in tokens, without what is put around one."""
        return self._tokens(text, adds=False)

    def prompt_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation that ends with the user, as the file's chat template writes it."""
        asked = {"messages": [dict(message) for message in messages]}
        return self._tokens(self._server.ask("/apply-template", asked)["prompt"], adds=True)

    def _tokens(self, text: str, *, adds: bool) -> list[int]:
        # In a prompt markers are markers; in a plain text they are words like any other.
        asked = {"content": text, "add_special": adds, "parse_special": adds}
        return self._server.ask("/tokenize", asked)["tokens"]


class _Vocabulary:
    """Which tokens of a loaded file are whole characters and no markers."""

    def __init__(self, gguf: Path, server: _Server) -> None:
        self._types = _token_types(gguf)
        self._server = server
        self._is_whole: dict[int, bool] = {}

    @property
    def size(self) -> int:
        return len(self._types)

    def is_marker(self, token: int) -> bool:
        return 0 <= token < self.size and self._types[token] != NORMAL

    def is_whole(self, token: int) -> bool:
        if token not in self._is_whole:
            text = self._server.ask("/detokenize", {"tokens": [token]})["content"]
            self._is_whole[token] = BROKEN not in text and "\0" not in text
        return self._is_whole[token]

    def is_plain(self, token: int) -> bool:
        return not self.is_marker(token) and self.is_whole(token)

    def a_plain_one(self) -> int:
        return next(token for token in range(self.size) if self.is_plain(token))


def _token_types(gguf: Path) -> Sequence[int]:
    """The array `tokenizer.ggml.token_type` of a GGUF file: its name, two types, length, numbers.

    The package's reader takes many seconds for all the strings of a large vocabulary.
    """
    name = b"tokenizer.ggml.token_type"
    start = struct.pack("<Q", len(name)) + name + struct.pack("<II", ARRAY, INT32)
    with open(gguf, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(start)
        if found < 0:
            raise ExportError(f"{gguf}: it does not say what kinds of tokens it has.")
        place = found + len(start)
        (number,) = struct.unpack_from("<Q", content, place)
        return struct.unpack_from(f"<{number}i", content, place + 8)
