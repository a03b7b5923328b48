"""The service's own figures of a checkpoint, asked for once: what an export is held against.

The embedded service is started for it with the run's folder of checkpoints; any other is asked
with the keys of the environment, and what that costs in tokens is said first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.boundary import in_loop
from errors import ConfigError, ExportError, one_line
from exports.asked import (
    AWKWARD,
    BUILT_IN,
    NUM_CONVERSATIONS,
    NUM_QUESTIONS,
    NUM_TEXTS,
    Asked,
    AskedQuestion,
    asked_of,
    spread,
)
from exports.reference import GreedyAnswer, Reference, ScoredText
from exports.source import Source, place_of
from ledger.registry_weights import path_in
from loop.planning.fitting import limits_of
from loop.rounds.adopting import adopted
from loop.rounds.session import hosting
from rows.chat_formats import load_renderer
from rows.control_tokens import Guarded, guard
from services.faults import SDK_ERRORS, explain
from services.keys import TINKER, redact
from services.place import ServiceChoice
from services.sdk import Clients, open_clients
from services.waiting import aside
from services.watched_client import watched
from simple_eval import Turn, build_prompt

if TYPE_CHECKING:
    import tinker
    from tinker_cookbook.renderers import Renderer

    from loop.reports.progress import Progress

MAX_SCORED_TOKENS = 512  # of a conversation; the rest of a longer one is cut off
NUM_AT_ONCE = 64  # requests
NUM_LOOK_ALIKES = 8  # texts that hold what looks like a token of the chat format


class Prompts(NamedTuple):
    """What is sent: conversations in tokens, and questions with theirs."""

    conversations: list[tuple[int, ...]]
    questions: list[tuple[AskedQuestion, tuple[int, ...]]]
    texts: list[tuple[str, tuple[int, ...]]]
    max_tokens: int
    notes: list[str]
    origin: str  # of the questions


class _Answered(NamedTuple):
    scored: list[list[float]]
    untouched: list[list[float]]
    answers: list[list[int]]


def gather_reference(source: Source, env: Mapping[str, str], progress: Progress) -> Reference:
    """Ask the service that has the checkpoint's weights; what it costs is said first.

    `env` holds the keys and TINKER_BASE_URL. Raises `LoopError` children.
    """
    renderer = load_renderer(source.renderer, str(source.base_dir))
    guard(renderer)
    asked = asked_of(source)
    prompts = prompts_of(asked, renderer, source.base_dir)
    choice = place_of(source, env)
    num_tokens = 2 * sum(map(len, prompts.conversations)) + sum(
        len(prompt) for _, prompt in prompts.questions
    )
    progress.line(
        f"the self-check asks the {choice.kind} service: log-probabilities of "
        f"{len(prompts.conversations)} conversations, by the checkpoint and by the untouched "
        f"model, and {len(prompts.questions)} greedy answers; {num_tokens} prompt tokens, at most "
        f"{len(prompts.questions) * prompts.max_tokens} sampled ones"
    )
    progress.lines(prompts.notes)
    key = env.get(TINKER)
    with hosting(choice, progress) as service:
        base_url = choice.base_url
        if service is not None:
            base_url, key = service.base_url, _serve(service, source)
        progress.live("asking the service what the export is held against")
        answered = in_loop(_ask(source, prompts, _stops(renderer), base_url, key))
    return _reference(source, asked, prompts, choice, _stops(renderer), answered)


def _serve(service: Any, source: Source) -> str:
    """Load the base model into the embedded service under the name that the checkpoint gives it;
    the key that opens the checkpoints that it lies among."""
    _serve_base(service, source)
    return service.open_folder(source.adapter_dir.parents[2])


def _serve_base(service: Any, source: Source) -> None:
    from local_tinker.wire import UserError

    try:
        service.serve_model(_model_name(source), str(source.base_dir))
    except UserError as error:
        raise ConfigError(str(error)) from None


def adopt(source: Source, env: Mapping[str, str], progress: Progress, folder: Path) -> Source:
    """An adapter that another program wrote, held against its base model and kept in a folder of
    checkpoints, in PEFT's layout. Raises `ConfigError` where it does not fit."""
    assert source.adapter is not None and source.sampler_path is not None, "the caller has looked"
    with hosting(place_of(source, env), progress) as service:
        _serve_base(service, source)
        adopted(f"export {source.label}", service, _model_name(source), source.adapter, folder)
    return replace(source, adapter_dir=path_in(folder, source.sampler_path))


def _model_name(source: Source) -> str:
    return source.base_name if source.checkpoint is None else source.checkpoint.base_model


# --- what is asked --------------------------------------------------------------------------------


def prompts_of(asked: Asked, renderer: Renderer, base_dir: Path) -> Prompts:
    """Conversations, questions and sample texts in the tokens of training."""
    context = limits_of(base_dir).context
    longest = min(MAX_SCORED_TOKENS, context - 1 if context else MAX_SCORED_TOKENS)
    room = None if context is None else context - asked.max_tokens
    notes, origin = list(asked.notes), asked.origin

    def fitting(candidates: Sequence[AskedQuestion]) -> list[tuple[AskedQuestion, tuple[int, ...]]]:
        prompts = ((one, _prompt(renderer, one.turns)) for one in candidates)
        return [(one, p) for one, p in prompts if p and (room is None or len(p) <= room)]

    # Twice as many as are asked, for some may not be fit; not all of a very large task.
    candidates = spread(asked.questions, lambda one: one.group[0], 2 * NUM_QUESTIONS)
    usable = fitting(candidates)
    if left_out := len(candidates) - len(usable):
        notes.append(
            f"{left_out} of {len(candidates)} questions are left out: they hold a word that is a "
            "token of the chat format, which a served template reads as one, or leave no room for "
            "an answer."
        )
    if not usable and (usable := fitting(BUILT_IN)):
        origin = f"built-in questions, since none of the {asked.origin} can be asked"
    if not usable:
        raise ExportError(
            f"None of {len(asked.questions)} questions ({asked.origin}) can be asked, and no "
            f"built-in one: prompt and answer have to fit the model's context of {context} tokens. "
            "Without an answer of the service there is nothing to check an export by; evaluate the "
            "checkpoint with a smaller evaluation.max_tokens, in a run of its own."
        )
    of_topics = spread(asked.questions, lambda one: one.group, 2 * NUM_CONVERSATIONS)
    conversations = [one for one, _ in fitting(of_topics)] or [one for one, _ in usable]
    conversations = spread(conversations, lambda one: one.group, NUM_CONVERSATIONS)
    scored = [_conversation(renderer, one, longest) for one in conversations]
    extra = (_conversation(renderer, one, longest) for one in BUILT_IN)
    while len(scored) < NUM_CONVERSATIONS and (more := next(extra, None)) is not None:
        scored.append(more)
    return Prompts(
        [one for one in scored if one is not None],
        spread(usable, lambda one: one[0].group[0], NUM_QUESTIONS),
        sample_texts(conversations, guard(renderer)),
        asked.max_tokens,
        notes,
        origin,
    )


def _prompt(renderer: Renderer, turns: Sequence[Turn]) -> tuple[int, ...] | None:
    """A question in tokens; None where the chat format cannot say it, or a template could not."""
    tokenizer = guard(renderer)
    if any(tokenizer.controls_in(turn.content) for turn in turns):
        return None
    try:
        return tuple(build_prompt(renderer, turns).to_ints())
    except (ValueError, TypeError):  # of what is no text, the latter
        return None


def _conversation(renderer: Renderer, one: AskedQuestion, longest: int) -> tuple[int, ...] | None:
    """A question with its answer in tokens, cut at `longest`."""
    turns = [*one.turns, Turn("assistant", one.answer)]
    messages: list[Any] = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        tokens = renderer.build_supervised_example(messages)[0].to_ints()
    except (ValueError, TypeError):
        return None
    return tuple(tokens[:longest]) if len(tokens) > 1 else None


def sample_texts(
    questions: Sequence[AskedQuestion], tokenizer: Guarded
) -> list[tuple[str, tuple[int, ...]]]:
    """Texts of the run and awkward ones, each with the tokens that it has in training.

    What looks like a token of the chat format is plain text there, letter by letter; where this
    tokenizer cannot write it so, it is in no sample.
    """
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values()]
    look_alikes = [f"a {one} b" for one in added[:NUM_LOOK_ALIKES]]
    of_run = [
        text for one in (*questions, *BUILT_IN) for text in (one.turns[-1].content, one.answer)
    ]
    chosen: dict[str, tuple[int, ...]] = {}
    for text in (*AWKWARD, *look_alikes, *of_run):
        if len(chosen) < NUM_TEXTS and (tokens := _plain_tokens(text, tokenizer)) is not None:
            chosen[text] = tokens
    return list(chosen.items())


def _plain_tokens(text: str, tokenizer: Guarded) -> tuple[int, ...] | None:
    """A text's tokens in training; None where what is served could not write it the same."""
    options = {"add_special_tokens": False}
    try:
        trained = tokenizer.encode(tokenizer.marked(text), **options)
    except (ValueError, TypeError):
        return None
    plain = tokenizer.encode(text, split_special_tokens=True, **options)
    return tuple(trained) if list(trained) == list(plain) else None


def _stops(renderer: Renderer) -> list[str] | list[int]:
    return renderer.get_stop_sequences()


# --- asking ---------------------------------------------------------------------------------------


async def _ask(
    source: Source, prompts: Prompts, stop: list[str] | list[int], base_url: str | None,
    key: str | None,
) -> _Answered:  # fmt: skip
    """All figures of the checkpoint. Raises `ServiceError`."""
    clients: Clients | None = None
    try:
        clients = await aside(lambda: open_clients(base_url, key))
        return await _asked_of(source, prompts, stop, clients, key)
    except SDK_ERRORS as error:
        explained = explain(error, base_url)
        if explained is None:
            raise
        raise explained from error
    finally:
        if clients is not None:
            await clients.service.close("success").result_async()


async def _asked_of(
    source: Source, prompts: Prompts, stop: list[str] | list[int], clients: Clients,
    key: str | None,
) -> _Answered:  # fmt: skip
    import tinker

    def redacted(text: str) -> str:
        return redact(text, key or "")

    path, service = source.sampler_path, clients.service
    name = _model_name(source)
    if source.checkpoint is None and source.state_path is not None:
        # Of no known run the service alone knows what it calls the base model.
        name = (await clients.rest.get_weights_info_by_tinker_path(source.state_path)).base_model
    base = watched(await service.create_sampling_client(None, name), lambda seconds: None, redacted)
    ours = base
    if path is not None:
        client = await service.create_sampling_client(path, None)
        ours = watched(client, lambda seconds: None, redacted)
    params = tinker.SamplingParams(
        max_tokens=prompts.max_tokens, temperature=0.0, seed=0, stop=stop
    )
    slots = asyncio.Semaphore(NUM_AT_ONCE)

    async def score(of: tinker.SamplingClient, tokens: Sequence[int]) -> list[float]:
        async with slots:
            found = await of.compute_logprobs(tinker.ModelInput.from_ints(list(tokens)))
        return [float("nan") if one is None else float(one) for one in found[1:]]

    async def answer(prompt: Sequence[int]) -> list[int]:
        async with slots:
            made = await ours.sample(tinker.ModelInput.from_ints(list(prompt)), 1, params)
        return list(made.sequences[0].tokens)

    return _Answered(
        await asyncio.gather(*(score(ours, one) for one in prompts.conversations)),
        await asyncio.gather(*(score(base, one) for one in prompts.conversations)),
        await asyncio.gather(*(answer(prompt) for _, prompt in prompts.questions)),
    )


def _reference(
    source: Source, asked: Asked, prompts: Prompts, choice: ServiceChoice,
    stop: list[str] | list[int], answered: _Answered,
) -> Reference:  # fmt: skip
    answers = (
        GreedyAnswer(
            one.id,
            tuple((turn.role, turn.content) for turn in one.turns),
            prompt,
            tuple(tokens),
        )
        for (one, prompt), tokens in zip(prompts.questions, answered.answers, strict=True)
    )
    scored = zip(prompts.conversations, answered.scored, strict=True)
    return Reference(
        service=choice.kind,
        scored=tuple(ScoredText(tokens, tuple(logprobs)) for tokens, logprobs in scored),
        answers=tuple(answers),
        texts=tuple(prompts.texts),
        max_tokens=prompts.max_tokens,
        stop=tuple(one for one in stop if isinstance(one, int)),
        stop_texts=tuple(one for one in stop if isinstance(one, str)),
        untouched=tuple(map(tuple, answered.untouched)),
        precision=_precision(choice),
        origin=one_line(prompts.origin),
        notes=tuple(prompts.notes),
    )


def _precision(choice: ServiceChoice) -> str:
    """What the service computes in: the embedded one in float32 on a CPU, any other is taken to
    compute in bfloat16, as they do on accelerators."""
    import torch

    is_float32 = choice.kind == "embedded" and not torch.cuda.is_available()
    return "float32" if is_float32 else "bfloat16"
