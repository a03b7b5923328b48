"""OpenAI's routes below `/oai/api/v1`: models, chat completions, text completions.

Such clients have no session; those of one key take turns with the sessions as one client. A sample
whose connection ends is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response as HttpResponse

from local_tinker import checkpoints
from local_tinker.answers import OPENAI_PREFIX, OpenAIError
from local_tinker.chat_formats import RENDERER_KEY, ChatFormats
from local_tinker.openai_answers import ChatShape, Head, TextShape
from local_tinker.openai_asking import Asking, Model, Pace, answered
from local_tinker.openai_text import Format
from local_tinker.openai_wire import CompletionRequest, read_chat, read_completion
from local_tinker.sample_queue import Client
from local_tinker.state import State
from local_tinker.wire import NotFound, UserError

R = TypeVar("R")


def add_openai_routes(app: FastAPI, state: State) -> None:
    formats, pace = ChatFormats(), Pace()

    @app.get(OPENAI_PREFIX + "models")
    def list_models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": _models(state, request.scope["api_key"])}

    @app.get(OPENAI_PREFIX + "models/{model:path}")
    def one_model(model: str) -> dict[str, Any]:
        """A model that requests may name, also one of another key's folder."""
        found = find_model(state, model)
        if found.weights is None:
            return _listed(model, state.started_at, "base model")
        info = checkpoints.read_whole_info(found.weights)
        return _listed(model, info.created_at, info.base_model)

    @app.post(OPENAI_PREFIX + "chat/completions")
    async def chat_completions(request: Request) -> HttpResponse:
        body = await _read(request, read_chat)
        model = await asyncio.to_thread(find_model, state, body.model)
        form = await asyncio.to_thread(formats.find, model.engine, model.renderer_name)
        num_chars = sum(len(message.text) for message in body.messages)
        formats.check_room(model.engine, num_chars, "messages")
        prompt = await asyncio.to_thread(form.prompt, body.messages)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        shape = ChatShape(Head(kind, "chatcmpl", body.model), body.stops, body.logprobs)
        asking = Asking(state, _client(state, request), model, form, body, pace)
        asking.ask([prompt], body.limit, (body.top_logprobs or 0) if body.logprobs else 0)
        return await answered(request, asking, shape)

    @app.post(OPENAI_PREFIX + "completions")
    async def completions(request: Request) -> HttpResponse:
        body = await _read(request, read_completion)
        model = await asyncio.to_thread(find_model, state, body.model)
        form = await asyncio.to_thread(formats.plain, model.engine)
        for prompt in body.prompts:
            if isinstance(prompt, str):
                formats.check_room(model.engine, len(prompt), "prompt")
        prompts = await asyncio.to_thread(_tokens, body.prompts, form)
        asking = Asking(state, _client(state, request), model, form, body, pace)
        with_scores = body.echo and body.logprobs is not None
        asking.ask(prompts, body.max_tokens or 1, body.logprobs or 0, with_scores)
        return await answered(request, asking, _text_shape(body, form))


def _tokens(prompts: Sequence[str | list[int]], form: Format) -> list[list[int]]:
    return [form.tokenizer.encode(one) if isinstance(one, str) else one for one in prompts]


def _text_shape(body: CompletionRequest, form: Format) -> TextShape:
    texts = [p if isinstance(p, str) else form.tokenizer.decode(p) for p in body.prompts]
    return TextShape(
        Head("text_completion", "cmpl", body.model),
        body.stops,
        body.logprobs,
        tuple(text for text in texts for _ in range(body.n)) if body.echo else (),
        is_only_echo=body.max_tokens == 0,
    )


async def _read(request: Request, read: Callable[[object], R]) -> R:
    try:
        return read(await request.json())
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise OpenAIError(f"the request body is not JSON: {error}") from None
    except RecursionError:
        raise OpenAIError("the request body is nested too deeply") from None


def _client(state: State, request: Request) -> Client:
    """Whose turn a request waits for: that of all OpenAI clients with its key."""
    return Client("openai", list(state.checkpoint_dirs).index(request.scope["api_key"]))


# --- models -------------------------------------------------------------------------------------


def _models(state: State, api_key: str) -> list[dict[str, Any]]:
    """The base models, and the sampler weights in the key's folder, the newest first."""
    listed = [_listed(name, state.started_at, "base model") for name in list(state.engines)]
    for path, _, info in checkpoints.list_all([state.checkpoint_dirs[api_key]])[::-1]:
        if path.kind == "sampler_weights":
            listed.append(_listed(str(path), info.created_at, info.base_model))
    return listed


def _listed(name: str, created_at: float, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": owner}


def find_model(state: State, name: str) -> Model:
    """What a request's `model` names: `BASE`, `tinker://RUN/sampler_weights/NAME`, or both with a
    semicolon between them. Raises `OpenAIError`."""
    base, _, path = name.rpartition(";") if "tinker://" in name else (name, "", "")
    try:
        if not path:
            return Model(state.engine_named(base))
        parsed = checkpoints.parse_path(path)
        if parsed.kind != "sampler_weights":
            raise OpenAIError(
                f"model: {path} is a state checkpoint, which training goes on from; answers come "
                "from sampler weights. Save them with save_weights_for_sampler and give their "
                "path, tinker://RUN/sampler_weights/NAME.",
                "model",
            )
        weights = state.find_checkpoint(path)
        info = checkpoints.read_whole_info(weights)
        engine = state.engine_named(info.base_model)
        if base and state.engine_named(base) is not engine:
            message = f"model: {path} was trained on {info.base_model}, not on {base}"
            raise OpenAIError(message, "model")
    except (UserError, NotFound) as error:
        raise OpenAIError(f"model: {error}", "model", status=404, code="model_not_found") from None
    return Model(engine, weights, info.user_metadata.get(RENDERER_KEY))
