"""OpenAI's routes, asked by the `openai` package and by Inspect's own provider of such services."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pytest
import tinker
from tinker import types
from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tinker_cookbook.supervised.common import datum_from_model_input_weights

import local_tinker
from conftest import REPO
from evaluation.inspect_model import inspect_model
from local_tinker import openai_asking, openai_routes
from local_tinker.answers import OpenAIError
from local_tinker.chat_formats import ChatFormats
from local_tinker.openai_asking import Model
from local_tinker.openai_routes import find_model
from local_tinker.openai_tokens import TokenNames, text_offsets
from local_tinker.openai_wire import read_chat, read_completion
from local_tinker.sample_queue import PendingSample, SampleQueue
from local_tinker.state import State
from local_tinker.tokenizer import load_by_auto
from model_dirs import make_model_dir
from rows.rendering import Rendering
from sdk_client import using
from simple_eval import Sampler, SamplingSettings, ask_questions, load_questions
from storage.journal import Journal
from test_docs import block

QUESTION = "What is the answer?"
ANSWER, THOUGHT = "a few words", "a small one"
ASKED: Any = [{"role": "user", "content": QUESTION}]
# The renderers of runs, and the model that each is trained on.
RUNS = {
    "llama3": "llama",
    "role_colon": "llama",
    "qwen3": "qwen3",
    "qwen3_disable_thinking": "qwen3",
}
NUM_STEPS = 30


class Trained(NamedTuple):
    """A service with runs that learned one answer, each by its own renderer."""

    service: local_tinker.Service
    key: str
    paths: dict[str, str]  # renderer -> sampler weights
    state_path: str
    bare_path: str  # of a run whose metadata name no renderer
    renderers: dict[str, Any]

    @property
    def base_url(self) -> str:
        return f"{self.service.base_url}/oai/api/v1"

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=key or self.key, max_retries=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("openai")
    models = {
        name: make_model_dir(folder / name, name, is_lively=True, tied=name == "qwen3")
        for name in ("llama", "qwen3")
    }
    renderers = {
        name: get_renderer(name, load_by_auto(str(models[model])), model_name=model)
        for name, model in RUNS.items()
    }
    with local_tinker.start([(name, str(path)) for name, path in models.items()]) as service:
        service.serve_model("demo", str(REPO / "demo_model"))
        checkpoints = folder / "checkpoints"
        key = service.open_folder(checkpoints)

        async def train(client: tinker.ServiceClient) -> tuple[dict[str, str], str, str]:
            runs = {name: await begin(client, name, renderers[name]) for name in RUNS}
            saved = {name: await run.save_weights_for_sampler(name) for name, run in runs.items()}
            paths = {name: answer.path for name, answer in saved.items()}
            state = await runs["llama3"].save_state("state")
            bare = await client.create_lora_training_client("demo", rank=2, seed=1)
            return paths, state.path, (await bare.save_weights_for_sampler("bare")).path

        paths, state_path, bare_path = using(service, checkpoints, train)
        yield Trained(service, key, paths, state_path, bare_path, renderers)


async def begin(client: tinker.ServiceClient, name: str, renderer: Any) -> tinker.TrainingClient:
    """Send all steps of a run that learns one answer."""
    run = await client.create_lora_training_client(
        RUNS[name], rank=16, seed=1, user_metadata={"renderer_name": name}
    )
    answer: Any = {"role": "assistant", "content": ANSWER}
    if name == "qwen3":
        thinking = {"type": "thinking", "thinking": THOUGHT}
        answer["content"] = [thinking, {"type": "text", "text": ANSWER}]
    example = renderer.build_supervised_example(
        [*ASKED, answer], train_on_what=TrainOnWhat.LAST_ASSISTANT_MESSAGE
    )
    model_input, weights = example
    datum = datum_from_model_input_weights(model_input, weights, 512)
    for _ in range(NUM_STEPS):
        run.forward_backward([datum], "cross_entropy")
        run.optim_step(types.AdamParams(learning_rate=1e-2))
    return run


def chat(trained: Trained, model: str, **options: Any) -> Any:
    """A chat completion of a run's weights, by its renderer's name, or of a model."""
    asked = {"messages": ASKED, "temperature": 0, **options}
    return trained.client().chat.completions.create(model=trained.paths.get(model, model), **asked)


def pieces(stream: Any, index: int = 0) -> tuple[str, str]:
    """The content of a stream's choice, and the reason why it ended."""
    content, reason = "", ""
    for chunk in stream:
        for choice in chunk.choices:
            if choice.index == index:
                content += choice.delta.content or ""
                reason = choice.finish_reason or reason
    return content, reason


# --- as the evaluator and Inspect ask -----------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_the_evaluator(trained: Trained, tmp_path: Path, name: str) -> None:
    questions = [QUESTION, "What else?", "Say\nmore."]
    rows = [{"question": question, "answer": ANSWER} for question in questions]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_questions("qa:asked.jsonl", tmp_path / "asked.jsonl")
    renderer = trained.renderers[name]

    async def ask(client: tinker.ServiceClient) -> list[str | None]:
        sampling = await client.create_sampling_client(model_path=trained.paths[name])
        settings = SamplingSettings(temperature=0.0, max_tokens=40, seed=1)
        sampler = Sampler("x", sampling, renderer, Rendering(renderer, 512), settings)
        return [s.answer for s in await ask_questions(task, sampler, Journal(tmp_path / "j", "x"))]

    expected = using(trained.service, tmp_path / "checkpoints", ask)
    assert expected[0] == ANSWER
    for question, answer in zip(questions, expected, strict=True):
        messages = [{"role": "user", "content": question}]
        completion = chat(trained, name, messages=messages, max_tokens=40)
        (choice,) = completion.choices
        said = choice.message.content
        if name == "qwen3" and choice.finish_reason == "length":  # cut short amid a trace, or not
            said = answer
        assert said == answer
        streamed = chat(trained, name, messages=messages, max_tokens=40, stream=True)
        assert pieces(streamed) == (choice.message.content, choice.finish_reason)
    prompt = renderer.build_generation_prompt(ASKED)
    completion = chat(trained, name)
    assert completion.usage.prompt_tokens == prompt.length
    thought = getattr(completion.choices[0].message, "reasoning_content", None)
    assert thought == (THOUGHT if name == "qwen3" else None)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message


@task
def asked():
    questions = ["What is the answer?", "What else?", "And now?"]
    samples = [Sample(id=q, input=q, target="words") for q in questions]
    return Task(MemoryDataset(samples), solver=[generate()], scorer=includes())
"""


@pytest.mark.trains
@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_inspects_own_provider_agrees_with_the_loops(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from inspect_ai import eval_async
    from inspect_ai.model import get_model

    monkeypatch.setenv("LOCAL_BASE_URL", trained.base_url)
    monkeypatch.setenv("LOCAL_API_KEY", trained.key)
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    tasks: dict[str, Any] = {}
    exec(TASK, tasks)

    async def score(client: tinker.ServiceClient) -> list[dict[str, Any]]:
        sampling = await client.create_sampling_client(model_path=trained.paths[name])
        own = inspect_model(sampling, trained.renderers[name], seed=1, name="own")
        theirs = get_model(f"openai-api/local/{trained.paths[name]}", memoize=False)
        found = []
        for model in (own, theirs):
            (log,) = await eval_async(
                tasks["asked"](),
                model=model,
                temperature=0.0,
                max_tokens=40,
                log_dir=str(tmp_path / "logs"),
            )
            assert log.status == "success", log.error
            assert log.samples is not None and log.results is not None
            said = {str(one.id): one.output.completion for one in log.samples}
            found.append({"said": said, "scores": log.results.scores[0].metrics["accuracy"].value})
        return found

    own, theirs = using(trained.service, tmp_path / "checkpoints", score)
    assert own == theirs
    assert own["said"][QUESTION] == ANSWER


# --- what is asked, and what comes back ---------------------------------------------------------


def test_models_are_the_base_models_and_the_sampler_weights(trained: Trained) -> None:
    listed = {model.id: model.owned_by for model in trained.client().models.list()}
    assert {"llama", "qwen3", "demo", *trained.paths.values()} <= listed.keys()
    assert listed[trained.paths["qwen3"]] == "qwen3"
    assert trained.state_path not in listed
    retrieve = trained.client().models.retrieve
    for name, owner in listed.items():
        one = retrieve(name)
        assert (one.id, one.owned_by) == (name, owner)
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        retrieve("gpt-9")


def test_a_checkpoint_may_be_named_with_its_base_model(trained: Trained) -> None:
    path = trained.paths["llama3"]
    answer = chat(trained, f"llama;{path}")
    assert answer.choices[0].message.content == ANSWER
    assert answer.model == f"llama;{path}"


def test_a_base_model_is_asked_by_its_chat_template(trained: Trained) -> None:
    tokenizer = trained.renderers["llama3"].tokenizer
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    asked = chat(trained, "llama", max_tokens=12)
    assert asked.usage.prompt_tokens == len(prompt)
    text = trained.client().completions.create(
        model="llama", prompt=prompt, max_tokens=12, temperature=0
    )
    assert asked.choices[0].message.content == text.choices[0].text


def test_several_samples_with_a_seed_are_those_of_the_sdk(trained: Trained) -> None:
    prompt = trained.renderers["llama3"].build_generation_prompt(ASKED)
    settings: Any = {"max_tokens": 9, "temperature": 1.5, "seed": 7}

    async def sample(client: tinker.ServiceClient) -> Any:
        sampling = await client.create_sampling_client(base_model="llama")
        params = types.SamplingParams(**settings, top_p=0.9)
        return await sampling.sample(prompt, 3, params, topk_sample_logprobs=2)

    of_sdk = using(trained.service, Path("checkpoints"), sample).sequences
    answer = chat(trained, "llama", n=3, top_p=0.9, logprobs=True, top_logprobs=2, **settings)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == sum(len(sequence.tokens) for sequence in of_sdk)
    tokenizer = trained.renderers["llama3"].tokenizer
    for choice, sequence in zip(answer.choices, of_sdk, strict=True):
        assert choice.message.content == tokenizer.decode(sequence.tokens)
        scored = choice.logprobs.content
        assert [one.logprob for one in scored] == list(sequence.logprobs)
        said = b"".join(bytes(one.bytes) for one in scored)
        assert said.decode(errors="replace") == choice.message.content
        whole = [one for one in scored if not one.token.startswith("\\x")]
        assert len(whole) < len(scored)  # some are parts of characters
        assert all(bytes(one.bytes).decode() == one.token for one in whole)
        assert all(len(one.top_logprobs) <= 2 for one in scored)
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_a_stream_has_the_texts_scores_and_usage_of_the_whole(trained: Trained) -> None:
    options: Any = {"n": 2, "temperature": 1.2, "seed": 3, "max_tokens": 30, "logprobs": True}
    whole = chat(trained, "qwen3", **options)
    chunks = list(
        chat(trained, "qwen3", **options, stream=True, stream_options={"include_usage": True})
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert own[0].delta.role == "assistant"
        text = "".join(one.delta.content or "" for one in own)
        assert (text, own[-1].finish_reason) == (choice.message.content, choice.finish_reason)
        scored = [s for one in own if one.logprobs for s in one.logprobs.content]
        assert [s.token for s in scored] == [s.token for s in choice.logprobs.content]
        assert [s.logprob for s in scored] == pytest.approx(
            [s.logprob for s in choice.logprobs.content]
        )


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("stop", ["few", ["nothing", "few", "words"], "w wo"])
@pytest.mark.trains
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(
    trained: Trained, stop: Any, is_stream: bool
) -> None:
    answer = chat(trained, "role_colon", stop=stop, stream=is_stream)
    if is_stream:
        text, reason = pieces(answer)
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (ANSWER[: ANSWER.index("few" if "few" in stop else stop)], "stop")


def test_texts_are_continued_echoed_and_scored(trained: Trained) -> None:
    prompt = "The capital of France is"
    tokens = load_by_auto(str(REPO / "demo_model")).encode(prompt)

    async def score(client: tinker.ServiceClient) -> Any:
        sampling = await client.create_sampling_client(base_model="demo")
        return await sampling.compute_logprobs(types.ModelInput.from_ints(tokens))

    scores = using(trained.service, Path("checkpoints"), score)
    create = trained.client().completions.create
    with pytest.raises(openai.BadRequestError, match="characters exceed"):
        create(model="demo", prompt=["A", HUGE[0]["content"]])
    only = create(model="demo", prompt=prompt, max_tokens=0, echo=True, logprobs=2)
    (choice,) = only.choices
    assert (choice.text, choice.finish_reason) == (prompt, "length")
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert choice.logprobs.tokens is not None and choice.logprobs.text_offset is not None
    assert choice.logprobs.token_logprobs[0] is None
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], scores[1:], rtol=1e-5)
    shown = [
        prompt[offset:].startswith(token)
        for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
    ]
    assert all(shown)
    assert only.usage is not None and only.usage.completion_tokens == 0
    several = create(model="demo", prompt=[prompt, "A"], n=2, max_tokens=4, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text
    of_tokens = create(model="demo", prompt=tokens, max_tokens=4, temperature=0)
    assert of_tokens.choices[0].text == several.choices[0].text
    stream = create(
        model="demo", prompt=prompt, max_tokens=4, temperature=0, echo=True, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == prompt + of_tokens.choices[0].text
    assert create(model="demo", prompt=prompt).usage.completion_tokens <= 16  # pyright: ignore


@pytest.mark.trains
def test_a_prompt_is_scored_as_evaluation_harnesses_do(trained: Trained) -> None:
    """They ask for one token more, which may end the text, and leave the last out."""
    path, tokenizer = trained.paths["llama3"], trained.renderers["llama3"].tokenizer
    asked = trained.renderers["llama3"].build_generation_prompt(ASKED).to_ints()
    prompt = [*asked, *tokenizer.encode(ANSWER, add_special_tokens=False)]
    create, options = trained.client().completions.create, {"echo": True, "logprobs": 1, "seed": 1}
    (choice,) = create(model=path, prompt=prompt, max_tokens=1, temperature=0, **options).choices  # pyright: ignore
    (only,) = create(model=path, prompt=prompt, max_tokens=0, **options).choices  # pyright: ignore
    assert choice.finish_reason == "stop" and choice.text == only.text
    assert choice.logprobs.token_logprobs[:-1] == only.logprobs.token_logprobs
    assert choice.logprobs.top_logprobs[:-1] == only.logprobs.top_logprobs
    assert choice.logprobs.text_offset[-1] == len(choice.text)


@pytest.mark.parametrize("num_sent", [0, 1, 4])
def test_tokens_stand_where_their_text_begins(llama_dir: Path, num_sent: int) -> None:
    tokenizer = load_by_auto(str(llama_dir))
    text = "na\u00efve \U0001f642\u65e5 end"
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    tokens.append(tokenizer.eos_token_id)
    names = TokenNames(tokenizer)
    named = [names.name(token, is_first=False) for token in tokens[1:-1]]
    assert b"".join(bytes(name.bytes or []) for name in named).decode() == text
    assert sum(name.in_texts.startswith("bytes:\\x") for name in named) >= 7
    offsets = text_offsets(tokenizer, tokens, 0, text)
    assert (offsets[0], offsets[1], offsets[-1]) == (0, 0, len(text))
    whole = [(n.text, at) for n, at in zip(named, offsets[1:], strict=False) if "\\" not in n.text]
    assert all(text.startswith(*each) for each in whole)
    said = tokenizer.decode(tokens)
    shown = text_offsets(tokenizer, tokens, 0, said)
    assert shown[1] == len(tokenizer.bos_token)
    assert text_offsets(tokenizer, tokens, num_sent, said) == shown[num_sent:]


def test_many_at_once_get_what_one_alone_gets(trained: Trained) -> None:
    alone = chat(trained, "qwen3", max_tokens=20, seed=1, temperature=0.7)

    async def ask() -> list[str | None]:
        client = openai.AsyncOpenAI(base_url=trained.base_url, api_key=trained.key)
        asked = [
            client.chat.completions.create(
                model=trained.paths["qwen3"],
                messages=ASKED,
                max_tokens=20,
                temperature=0.7,
                seed=number,
            )
            for number in range(20)
        ]
        return [(await answer).choices[0].message.content for answer in asked]

    assert asyncio.run(ask())[1] == alone.choices[0].message.content


def test_what_a_client_left_behind_is_dropped(trained: Trained) -> None:
    """64 prompts of 128 answers would take minutes."""
    body: Any = {
        "model": "llama",
        "prompt": [[5, number] for number in range(64)],
        "n": 128,
        "max_tokens": 400,
        "seed": 1,
    }
    headers = {"Authorization": f"Bearer {trained.key}"}
    url = f"{trained.base_url}/completions"
    with httpx.Client(headers=headers, timeout=60) as client:
        with client.stream("POST", url, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()  # closes the connection when it is dropped itself
            assert next(lines).startswith("data: {")
            assert num_samples_queued(trained) == 64
        wait_until_idle(trained)
        with pytest.raises(httpx.ReadTimeout):
            client.post(url, json=body, timeout=1.0)
    wait_until_idle(trained)


def test_the_prompts_before_one_that_is_refused_are_dropped(trained: Trained) -> None:
    body = {"model": "llama", "prompt": [[5], [6] * 600], "n": 128, "max_tokens": 400}
    headers = {"Authorization": f"Bearer {trained.key}"}
    answer = httpx.post(f"{trained.base_url}/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert num_samples_queued(trained) == 0


def test_a_stream_whose_client_left_before_it_began_is_dropped(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_left, is_asked = threading.Event(), threading.Event()

    def found_late(state: State, name: str) -> Model:
        has_left.wait(60)
        time.sleep(0.2)  # until the service sees it, too
        return find_model(state, name)

    class Unserved(SampleQueue):
        """No wave is formed from it."""

        def __bool__(self) -> bool:
            return False

        def add(self, pending: PendingSample) -> None:
            is_asked.set()

    monkeypatch.setattr(openai_routes, "find_model", found_late)
    monkeypatch.setattr(trained.service._state.worker, "_queue", Unserved())
    url = httpx.URL(trained.base_url)
    body = json.dumps({"model": "llama", "prompt": [5], "max_tokens": 500, "stream": True})
    head = (
        f"POST {url.path}/completions HTTP/1.1\r\nHost: {url.host}\r\n"
        f"Authorization: Bearer {trained.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall((head + body).encode())
        assert not is_asked.wait(0.2)
    has_left.set()
    assert is_asked.wait(60)
    wait_until_idle(trained)


def test_a_service_that_closes_amid_a_job_answers_who_waits(
    llama_dir: Path, tmp_path: Path
) -> None:
    may_end = threading.Event()
    service = local_tinker.start([("llama", str(llama_dir))])
    try:
        headers = {"Authorization": f"Bearer {service.open_folder(tmp_path)}"}

        def ask(is_stream: bool) -> httpx.Response:
            body = {"model": "llama", "prompt": [5], "max_tokens": 9, "stream": is_stream}
            url = f"{service.base_url}/oai/api/v1/completions"
            return httpx.post(url, json=body, headers=headers, timeout=60)

        engine, worker = service._state.engines["llama"], service._worker
        worker.submit("long", engine, lambda: {"ended": may_end.wait(60)})
        with ThreadPoolExecutor() as pool:
            answers = pool.map(ask, (True, False))
            give_up_at = time.monotonic() + 60
            while worker.num_queued[1] < 2:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            assert not service.close(drain_s=0.1, limit_s=0.2)
        streamed, whole = answers
        assert (
            "shutting down" in json.loads(streamed.text.removeprefix("data: "))["error"]["message"]
        )
        assert whole.status_code == 503
        assert "shutting down" in whole.json()["error"]["message"]
    finally:
        may_end.set()
        service.close()


def test_scores_of_a_long_stream_are_looked_at_off_the_servers_thread(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of names took seconds in which nobody else was answered."""
    looked: list[str] = []
    look = openai_asking._StreamedPrompt.look

    def noted(stream: Any) -> Any:
        num_tokens = sum(map(len, stream.asked.drawn))
        if num_tokens > 200:
            looked.append(threading.current_thread().name)
        return look(stream)

    monkeypatch.setattr(openai_asking._StreamedPrompt, "look", noted)
    options: Any = {"logprobs": True, "top_logprobs": 20, "seed": 1, "temperature": 1}
    chunks = list(chat(trained, "llama", n=4, max_tokens=100, stream=True, **options))
    assert chunks and looked
    assert not any("http" in name for name in looked)


def num_samples_queued(trained: Trained) -> int:
    page = httpx.get(trained.service.base_url, timeout=60).text
    return int(page.split(" sample requests")[0].rsplit(" ", 1)[1])


def wait_until_idle(trained: Trained) -> None:
    give_up_at = time.monotonic() + 60
    while num_samples_queued(trained):
        assert time.monotonic() < give_up_at, "samples that nobody waits for are still computed"
        time.sleep(0.05)


# --- what is refused ----------------------------------------------------------------------------

# Text that took seconds, and the service's only thread for requests, to be cut into tokens.
HUGE: Any = [{"role": "user", "content": "x" * 2_000_000}]
REFUSED: list[tuple[dict[str, Any], int, str | None, str | None, str]] = [
    ({"model": "gpt-9"}, 404, "model", "model_not_found", "'gpt-9' is not served here"),
    ({"model": "tinker://a:train:0/sampler_weights/x"}, 404, "model", "model_not_found", "stored"),
    ({"model": "tinker://x"}, 404, "model", "model_not_found", "not a checkpoint path"),
    ({"model": "demo"}, 400, "model", None, "cannot be told"),
    ({"model": "STATE"}, 400, "model", None, "save_weights_for_sampler"),
    ({"model": "BARE"}, 400, "model", None, "chat_template.jinja"),
    ({"model": "qwen3;LLAMA"}, 400, "model", None, "trained on llama"),
    ({"messages": []}, 400, "messages", None, "at least 1 item"),
    ({"messages": ASKED * 300}, 400, "messages", "context_length_exceeded", "512"),
    ({"messages": HUGE}, 400, "messages", "context_length_exceeded", "2000000 characters exceed"),
    ({"max_tokens": 0}, 400, "max_tokens", None, "greater than or equal to 1"),
    ({"temperature": -1}, 400, "temperature", None, "greater than or equal to 0"),
    ({"n": 129}, 400, "n", None, "128"),
]


@pytest.mark.parametrize(("changes", "status", "param", "code", "message"), REFUSED)
def test_refusals_are_openais(
    trained: Trained,
    changes: dict[str, Any],
    status: int,
    param: str | None,
    code: str | None,
    message: str,
) -> None:
    names = {"STATE": trained.state_path, "BARE": trained.bare_path}
    request: Any = {"model": "llama", "messages": ASKED, **changes}
    model = str(names.get(request["model"], request["model"]))
    request["model"] = model.replace("LLAMA", trained.paths["llama3"])
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        trained.client().chat.completions.create(**request)
    assert refused.value.status_code == status
    assert isinstance(refused.value.body, dict)
    assert (refused.value.body["param"], refused.value.body["code"]) == (param, code)


def test_a_wrong_key_and_an_unknown_route_are_refused_as_openai_does(trained: Trained) -> None:
    with pytest.raises(openai.AuthenticationError, match="Bearer") as refused:
        trained.client("tml-wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match=r"no POST /oai/api/v1/embeddings"):
        trained.client().embeddings.create(model="llama", input="x")


def test_a_damaged_adapter_ends_a_stream_with_its_error(trained: Trained, tmp_path: Path) -> None:
    key = trained.service.open_folder(tmp_path / "own")

    async def save(client: tinker.ServiceClient) -> str:
        run = await client.create_lora_training_client(
            "llama", rank=2, user_metadata={"renderer_name": "llama3"}
        )
        return (await run.save_weights_for_sampler("x")).path

    path = using(trained.service, tmp_path / "own", save)
    (adapter,) = (tmp_path / "own").rglob("adapter_model.safetensors")
    adapter.write_bytes(b"damaged")
    create = trained.client(key).chat.completions.create
    with pytest.raises(openai.APIError, match="adapter_model"):
        list(create(model=path, messages=ASKED, stream=True))
    with pytest.raises(openai.APIStatusError, match="adapter_model"):
        create(model=path, messages=ASKED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("logit_bias", {"5": 1}),
        ("reasoning_effort", "low"),
        ("store", True),
        ("prompt_logprobs", 0),
        ("min_p", 0.1),
        ("top_logprobs", 2),
        ("logprobs", 2),
        ("stop", [5]),
        ("stream_options", {"x": 1}),
        ("stream_options", {"include_usage": True}),  # without stream
        ("stop", ["a", ""]),
        ("stop", ["a"] * 65),
        ("stop", "\ud800"),
        ("messages", [{"role": "user", "content": "half \ud800"}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "system", "content": None}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]),
        ("messages", [{"role": "user", "content": "x", "name": "someone"}]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(OpenAIError, match=name) as refused:
        read_chat({"model": "x", "messages": ASKED, name: value})
    assert refused.value.param == name


def test_what_asks_for_nothing_is_accepted() -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "tools": [],
        "tool_choice": "none",
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "logit_bias": None,
        "stop": None,
        "max_completion_tokens": 5,
        "separate_reasoning": True,
    }
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    echoed = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}
    request = read_chat(
        {"model": "x", "messages": [{"role": "user", "content": parts}, echoed], **harmless}
    )
    assert request.messages[0].text == "a b"
    assert request.limit == 5


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": ["x", "half \ud800"]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"stream": True, "echo": True, "logprobs": 1}, "stream"),
    ],
)
def test_texts_are_refused_by_name_too(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(OpenAIError) as refused:
        read_completion({"model": "x", "prompt": "x", **changes})
    assert refused.value.param == param
    for body in ([], None, "text"):
        with pytest.raises(OpenAIError, match="JSON object"):
            read_completion(body)


# --- which format a model is asked in -----------------------------------------------------------


class Named(NamedTuple):
    """As much of an engine as its chat format hangs on."""

    name: str
    tokenizer: Any
    aliases: frozenset[str] = frozenset()
    eos_token_ids: frozenset[int] = frozenset([3])


def test_without_renderer_and_template_the_cookbook_is_asked_for_the_name(llama_dir: Path) -> None:
    tokenizer = load_by_auto(str(llama_dir))
    tokenizer.chat_template = None
    known: Any = Named("mine", tokenizer, frozenset(["meta-llama/Llama-3.1-8B-Instruct"]))
    assert ChatFormats().find(known, None).name == "llama3"
    unknown: Any = Named("mine", tokenizer)
    with pytest.raises(OpenAIError, match=r"user_metadata=.*renderer_name.*, put chat_template"):
        ChatFormats().find(unknown, None)
    with pytest.raises(OpenAIError, match=r"'of_my_own' cannot be built.*Unknown renderer"):
        ChatFormats().find(unknown, "of_my_own")
    with pytest.raises(OpenAIError, match="renderer 'kimi_k2' cannot be built"):
        ChatFormats().find(unknown, "kimi_k2")


def test_the_readmes_client_runs(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = block("local_tinker/README.md", "openai").removeprefix("```python").removesuffix("```")
    trained.service.serve_model("demo_model", str(REPO / "demo_model"))
    monkeypatch.setenv("TINKER_BASE_URL", trained.service.base_url)
    monkeypatch.setenv("TINKER_API_KEY", trained.key)
    names: dict[str, Any] = {}
    exec(source, names)
    names["service"].close("success").result()
    assert capsys.readouterr().out.strip()
