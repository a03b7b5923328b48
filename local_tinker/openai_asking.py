"""OpenAI's requests on their way through the worker: asked, waited for, streamed, dropped."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from local_tinker.answers import EXPECTED, OPENAI_PREFIX, OpenAIError, refused
from local_tinker.choosing import Choice
from local_tinker.engine import Engine
from local_tinker.openai_answers import (
    Response,
    Scored,
    Shape,
    as_scored,
    finish_reason,
    read_response,
    usage,
)
from local_tinker.openai_text import Delta, Format, StreamedText, read_answer
from local_tinker.openai_wire import ChatRequest, CompletionRequest
from local_tinker.sample_queue import Client, Result
from local_tinker.sample_requests import SampleRequest, check_request
from local_tinker.state import State
from local_tinker.wire import Prompt, PromptChunk, Sample, SamplingParams, UserError

CHUNK_S = 0.05  # how long a stream gathers tokens, at least, before it reads the answer again
STREAMS_FRAC = 0.2  # of one thread's time that reading answers for streams may take
LONG_LOOK_TOKENS = 2000  # about a millisecond's worth
CLIENT_LEFT = 499  # for nobody: the connection has ended


class Model(NamedTuple):
    """What `model` names: a base model, or sampler weights on it."""

    engine: Engine
    weights: Path | None = None
    renderer_name: str | None = None


class Pace:
    """How often streams look at their answers: all together in a share of one thread's
    time, so that many of them do not hold up training and everybody else's requests."""

    def __init__(self) -> None:
        self._num_live = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        self._num_live += 1
        try:
            yield
        finally:
            self._num_live -= 1

    def pause_s(self, spent_s: float) -> float:
        """How long a stream waits that has spent this much at its last look."""
        return max(CHUNK_S, spent_s * self._num_live / STREAMS_FRAC)


@dataclass
class Asked:
    """A prompt that the worker has, and what has been sampled of its answers."""

    prompt: list[int]
    future: Future[Result]
    drawn: list[list[Choice]]  # of each answer, filled by the compute thread
    num_top: int  # of the likeliest tokens beside each

    def response(self) -> Response:
        """What came back. Raises what the worker refused it with."""
        result = self.future.result()
        assert isinstance(result, bytes)  # samples are answered as protobuf
        return read_response(result, self.prompt)


@dataclass
class Asking:
    """The prompts of one request, and the answers that the compute thread is drawing to them.

    It wakes nobody for a token: every wake-up would hand Python's lock over, and streams look now
    and again anyway.
    """

    state: State
    client: Client
    model: Model
    form: Format
    body: ChatRequest | CompletionRequest
    pace: Pace
    asked: list[Asked] = field(default_factory=list)

    def ask(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        num_top: int,
        with_scores: bool = False,
    ) -> None:
        """Queue prompts, all or none. Raises `OpenAIError` for one that cannot be sampled."""
        requests = [self._request(each, max_tokens, num_top, with_scores) for each in prompts]
        for request in requests:
            drawn: list[list[Choice]] = [[] for _ in range(self.body.n)]
            if self.body.stream:
                request = dataclasses.replace(request, on_token=self._listener(drawn))
            future = self.state.worker.sample(self.model.engine, request, self.client)
            self.asked.append(Asked(request.prompt, future, drawn, num_top))

    def _listener(self, drawn: list[list[Choice]]) -> Callable[[int, Choice], None]:
        def listen(index: int, choice: Choice) -> None:
            drawn[index].append(choice)

        return listen

    def _request(
        self, prompt: list[int], max_tokens: int | None, num_top: int, with_scores: bool
    ) -> SampleRequest:
        body, engine = self.body, self.model.engine
        sample = Sample(
            sampling_session_id="",
            seq_id=0,
            num_samples=body.n,
            prompt=Prompt(chunks=[PromptChunk(type="encoded_text", tokens=prompt)]),
            sampling_params=SamplingParams(
                max_tokens=max_tokens,
                seed=body.seed,
                temperature=body.temperature,
                top_k=body.top_k,
                top_p=body.top_p,
            ),
            topk_sample_logprobs=num_top,
            prompt_logprobs=with_scores,
            topk_prompt_logprobs=num_top if with_scores else 0,
        )
        try:
            checked = check_request(engine, sample, self.model.weights)
        except UserError as error:
            is_long = len(prompt) >= engine.max_context_length
            raise OpenAIError(
                str(error),
                "messages" if isinstance(body, ChatRequest) else "prompt",
                code="context_length_exceeded" if is_long else None,
            ) from None
        return dataclasses.replace(
            checked,
            stop_ids=self.form.stop_ids,
            stop_strings=(*self.form.stop_strings, *body.stops),
        )

    def drop(self) -> None:
        """Let go of what nobody waits for any more; what is answered stays so."""
        for asked in self.asked:
            self.state.worker.cancel(asked.future, UserError("the client has left"))

    def usage(self, responses: Sequence[Response]) -> dict[str, int]:
        sampled = sum(len(answer.tokens) for r in responses for answer in r.answers)
        is_only_echo = isinstance(self.body, CompletionRequest) and self.body.max_tokens == 0
        return usage(sum(len(asked.prompt) for asked in self.asked), 0 if is_only_echo else sampled)


# --- answering ----------------------------------------------------------------------------------


async def answered(request: Request, asking: Asking, shape: Shape) -> HttpResponse:
    if asking.body.stream:
        return _Stream(asking, shape)
    responses = await _whole(request, asking)
    if responses is None:
        return HttpResponse(status_code=CLIENT_LEFT)
    return await asyncio.to_thread(_written, asking, shape, responses)


def _written(asking: Asking, shape: Shape, responses: list[Response]) -> JSONResponse:
    """Read the answers and write them; with scores that may be many megabytes."""
    choices: list[dict[str, Any]] = []
    for response in responses:
        for answer in response.answers:
            said = read_answer(asking.form, answer.ids, asking.body.stops)
            choices.append(shape.whole(len(choices), said, answer, asking.form, response.prompt))
    return JSONResponse(shape.head.filled(choices, asking.usage(responses)))


async def _whole(request: Request, asking: Asking) -> list[Response] | None:
    """Wait for all answers; None when the client leaves before."""
    is_left = asyncio.ensure_future(_left(request))
    futures = [asyncio.wrap_future(asked.future) for asked in asking.asked]
    all_done = asyncio.gather(*futures)
    # Looked at also where the client has left, or asyncio complains that nobody did.
    all_done.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait([is_left, all_done], return_when=asyncio.FIRST_COMPLETED)
        if not all_done.done():
            return None
        await all_done
        return [asked.response() for asked in asking.asked]
    finally:
        is_left.cancel()
        asking.drop()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """An answer that comes as it is sampled, or is dropped, also where it was never begun."""

    def __init__(self, asking: Asking, shape: Shape) -> None:
        super().__init__(_stream(asking, shape), media_type="text/event-stream")
        self._asking = asking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asking.drop()


async def _stream(asking: Asking, shape: Shape) -> AsyncIterator[str]:
    """What goes wrong on the way is an event too: the status has been sent."""
    try:
        async for event in _events(asking, shape):
            yield event
        yield "data: [DONE]\n\n"
    except EXPECTED as error:
        yield f"data: {refused(error, OPENAI_PREFIX).body.decode()}\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


async def _events(asking: Asking, shape: Shape) -> AsyncIterator[str]:
    body, head = asking.body, shape.head
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()

    def tell_end(_: object) -> None:
        loop.call_soon_threadsafe(has_ended.set)

    streams = [
        _StreamedPrompt(asked, asking, shape, place * body.n)
        for place, asked in enumerate(asking.asked)
    ]
    for stream in streams:
        stream.asked.future.add_done_callback(tell_end)
        for choice in stream.first():
            yield _event(head.filled([choice], None))
    live = streams
    with asking.pace.one_more():
        while live:
            has_ended.clear()
            spent_s = 0.0
            for stream in live:
                if stream.has_news:
                    look = stream.look
                    news = await asyncio.to_thread(look) if stream.is_long else look()
                    spent_s += news.spent_s
                    for event in news.events:
                        yield event
            live = [stream for stream in live if stream.response is None]
            if live:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(asking.pace.pause_s(spent_s)):
                        await has_ended.wait()
    if body.stream_options.include_usage:
        responses = [stream.response for stream in streams if stream.response is not None]
        yield _event(head.filled([], asking.usage(responses)))


class _News(NamedTuple):
    """What a stream can send now, and what it took to find out."""

    events: list[str]
    spent_s: float


class _StreamedPrompt:
    """The answers to one prompt on their way; `first_index` is that of the first among all."""

    def __init__(self, asked: Asked, asking: Asking, shape: Shape, first_index: int) -> None:
        self.asked = asked
        self.response: Response | None = None
        self._asking = asking
        self._shape = shape
        self._first_index = first_index
        self._texts = [StreamedText(asking.form, asking.body.stops) for _ in asked.drawn]
        self._num_read = [0] * len(asked.drawn)  # tokens whose text was looked at
        self._num_scored = [0] * len(asked.drawn)  # tokens whose log-probabilities were sent

    def first(self) -> list[dict[str, Any]]:
        firsts = [self._shape.first(self._first_index + i) for i in range(len(self._texts))]
        return [choice for choice in firsts if choice is not None]

    @property
    def has_news(self) -> bool:
        drawn = [len(choices) for choices in self.asked.drawn]
        return self.asked.future.done() or drawn != self._num_read

    @property
    def is_long(self) -> bool:
        """Whether a look takes so long that another thread had better do it. For a short one, to
        wait twice for Python's lock would take longer."""
        num_tokens = sum(map(len, self.asked.drawn))
        return num_tokens * (1 + self.asked.num_top) > LONG_LOOK_TOKENS

    def look(self) -> _News:
        """Find out what can be sent now. Raises what the worker refused the prompt with."""
        begun_s = time.thread_time()
        events = [_event(self._shape.head.filled([choice], None)) for choice in self._choices()]
        return _News(events, time.thread_time() - begun_s)

    def _choices(self) -> list[dict[str, Any]]:
        if self.asked.future.done():
            self.response = self.asked.response()
            return [c for index in range(len(self._texts)) for c in self._ended(index)]
        return [c for index in range(len(self._texts)) for c in self._grown(index)]

    def _grown(self, index: int) -> list[dict[str, Any]]:
        drawn = list(self.asked.drawn[index])
        if len(drawn) == self._num_read[index]:
            return []
        self._num_read[index] = len(drawn)
        delta = self._texts[index].advance([choice.token for choice in drawn])
        if not any(delta):
            return []
        # The last token may be what ends the answer, and has no place in it then.
        scored = [as_scored(choice) for choice in drawn[:-1]]
        return [self._part(index, delta, scored)]

    def _part(self, index: int, delta: Delta, scored: list[Scored]) -> dict[str, Any]:
        """A chunk with the log-probabilities that have not been sent yet, `scored` being all."""
        num_sent = self._num_scored[index]
        self._num_scored[index] = max(num_sent, len(scored))
        place = self._first_index + index
        return self._shape.part(place, delta, scored, num_sent, self._asking.form)

    def _ended(self, index: int) -> list[dict[str, Any]]:
        assert self.response is not None
        answer, form = self.response.answers[index], self._asking.form
        said = read_answer(form, answer.ids, self._asking.body.stops)
        delta = self._texts[index].finish(said)
        if delta is None:
            raise OpenAIError(
                f"the chat format {form.name} reads the answer, now that it is whole, otherwise "
                "than its beginning, which was sent; ask again with stream: false",
                status=500,
            )
        scored = self._shape.scored(answer, form)
        has_part = any(delta) or len(scored) > self._num_scored[index]
        part = [self._part(index, delta, scored)] if has_part else []
        reason = finish_reason(said, answer)
        return [*part, self._shape.last(self._first_index + index, said, reason)]
