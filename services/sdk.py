"""The clients of the Tinker SDK, all made here, and one spelling for all versions from 0.25 on.

Everything else is written as SDK 0.38 is spelled. The engines that people run themselves want 0.25
(requirements-selfhosted.txt), where what makes a client waits and has a twin to await, an answer is
a plain future that cannot be awaited, and no session is finished. So of an SDK before 0.38 the
clients are handed out as `_Older` ones, which are spelled as those of 0.38.

A run makes its REST client once, and before its session: of SDK 0.38, one that is made beside a
session at work has been seen to wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import tinker
from tinker.lib.api_future_impl import QueueState, QueueStateObserver
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from errors import ConfigError, one_line
from services.faults import said_by
from services.held_up import HoldUps

MOST_SAID = 200  # characters of what a service says
# From here on the SDK is spelled as our code is.
PRESENT_SPELLING = (0, 38)


class NotInThisSdk(tinker.TinkerError):
    """What is asked for came with a later SDK: nothing was sent."""


class Clients(NamedTuple):
    """What a run speaks to its service through. `rest` has no session of its own."""

    rest: tinker.RestClient
    service: tinker.ServiceClient


def open_clients(
    base_url: str | None, api_key: str | None, held_up: HoldUps | None = None
) -> Clients:
    """Open a session on the service at `base_url` (None: Tinker's own). The clients that are made
    in it tell `held_up` of the states of their requests in the service's queue."""
    rest, service = rest_client(base_url, api_key), service_client(base_url, api_key)
    if held_up is not None:
        service = cast("tinker.ServiceClient", _Telling(service, held_up))
    return Clients(rest, service)


def service_client(base_url: str | None, api_key: str | None) -> tinker.ServiceClient:
    """A client that opens a session once it makes others."""
    service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
    if is_older(tinker.__version__):
        return cast("tinker.ServiceClient", _OlderService(service))
    return service


def rest_client(base_url: str | None, api_key: str | None) -> tinker.RestClient:
    """A client for what needs no session: what is known of weights, how long they are kept.

    Raises `ConfigError` where the service does not know what it is asked first.
    """
    try:
        if is_older(tinker.__version__):
            service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
            return cast("tinker.RestClient", _OlderRest(service.create_rest_client(), service))
        return tinker.RestClient(base_url=base_url, api_key=api_key)
    except tinker.NotFoundError as error:
        raise ConfigError(
            f"What answers at {base_url or 'Tinker'} is no Tinker service, or one for another "
            f"version of the SDK: it does not know what tinker {tinker.__version__} asks first "
            f"({one_line(said_by(error), MOST_SAID)}). Correct base_url (or TINKER_BASE_URL); "
            "docs/engines.md says which SDK an engine wants."
        ) from None


def names_to_train(capabilities: tinker.types.GetServerCapabilitiesResponse) -> list[str]:
    """The models that a service lists, but for those of which it says that it trains none."""
    models = capabilities.supported_models
    return [one.model_name for one in models if one.model_name and one.trainable is not False]


def names_to_sample(capabilities: tinker.types.GetServerCapabilitiesResponse) -> list[str]:
    """The models that a service lists, but for those of which it says that it samples none."""
    models = capabilities.supported_models
    return [one.model_name for one in models if one.model_name and one.sampleable is not False]


def is_older(version: str) -> bool:
    """Whether an SDK is spelled otherwise than our code is."""
    return tuple(int(part) for part in version.split(".")[:2]) < PRESENT_SPELLING


# --- what tells of the queue ----------------------------------------------------------------------

_MAKES_CLIENTS = (
    "create_lora_training_client",
    "create_training_client_from_state",
    "create_training_client_from_state_with_optimizer",
    "create_sampling_client",
    "save_weights_and_get_sampling_client",
)


class _Telling:
    """A client whose clients, once they are awaited, tell of queue states."""

    def __init__(self, client: Any, held_up: HoldUps) -> None:
        self._client, self._held_up = client, held_up

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        attribute = getattr(self._client, name)
        return self._making(attribute) if name in _MAKES_CLIENTS else attribute

    def _making(self, make: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            return telling(await make(*arguments, **options), self._held_up)

        return call


def telling(client: Any, held_up: HoldUps) -> Any:
    """A training or a sampling client that tells of the states of its requests in the queue.

    It takes the place of what the SDK (0.25 to 0.38) has for it, which logs a pause in training
    after 15 minutes, and of sampling at once, with whatever the service has said.
    """
    observer = _Observer(held_up)
    inner = client._client if isinstance(client, _Older) else client
    if isinstance(inner, tinker.SamplingClient):  # which observes its requests itself
        inner.on_queue_state_change = observer.on_queue_state_change
        return client
    assert isinstance(inner._queue_state_logger, QueueStateObserver)
    inner._queue_state_logger = observer  # pyright: ignore[reportAttributeAccessIssue]
    return _Telling(client, held_up)


class _Observer(QueueStateObserver):
    def __init__(self, held_up: HoldUps) -> None:
        self._held_up = held_up

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        reason = None if queue_state_reason is None else str(queue_state_reason)
        self._held_up.queued(queue_state.value, reason)


# --- older SDKs -----------------------------------------------------------------------------------


class _Older:
    """A client of an older SDK, each of whose futures can be awaited."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        attribute = getattr(self._client, name, _MISSING)
        if attribute is _MISSING:
            return _unknown(name)
        return _awaitable(attribute) if callable(attribute) else attribute


_MISSING = object()


def _unknown(name: str) -> Callable[..., Any]:
    """A method that came with a later SDK: as little to be had as what a service refuses."""

    def call(*arguments: Any, **options: Any) -> Any:
        raise NotInThisSdk(f"tinker {tinker.__version__} has no {name}")

    return call


def _awaitable(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        given = method(*arguments, **options)
        return AwaitableConcurrentFuture(given) if isinstance(given, Future) else given

    return call


class _OlderService(_Older):
    """Makes clients without blocking whoever awaits them."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._has_session = False

    async def create_lora_training_client(self, *arguments: Any, **options: Any) -> _OlderTraining:
        client = await self._in_session()
        return await _training(client.create_lora_training_client_async(*arguments, **options))

    async def create_training_client_from_state(
        self, *arguments: Any, **options: Any
    ) -> _OlderTraining:
        client = await self._in_session()
        return await _training(
            client.create_training_client_from_state_async(*arguments, **options)
        )

    async def create_training_client_from_state_with_optimizer(
        self, *arguments: Any, **options: Any
    ) -> _OlderTraining:
        client = await self._in_session()
        make = client.create_training_client_from_state_with_optimizer_async
        return await _training(make(*arguments, **options))

    async def create_sampling_client(self, *arguments: Any, **options: Any) -> _Older:
        client = await self._in_session()
        return _Older(await client.create_sampling_client_async(*arguments, **options))

    async def _in_session(self) -> Any:
        """The client, which opens its session in a thread, since that waits for the service."""
        await asyncio.to_thread(lambda: self._client.holder)
        self._has_session = True
        return self._client

    def close(self, status: str) -> AwaitableConcurrentFuture[None]:
        """End the heartbeats, by whose absence a service knows that a session is over; such an SDK
        has no word for it."""
        if self._has_session:
            self._client.holder.close()
        done: Future[None] = Future()
        done.set_result(None)
        return AwaitableConcurrentFuture(done)


async def _training(made: Awaitable[Any]) -> _OlderTraining:
    client = await made
    return _OlderTraining(client, await client.get_info_async())


class _OlderTraining(_Older):
    """Trains and saves as it is; `forward_backward_custom` returns once its first pass is done."""

    def __init__(self, client: Any, info: tinker.types.GetInfoResponse) -> None:
        super().__init__(client)
        self._info = info

    def get_info(self) -> tinker.types.GetInfoResponse:
        """What was asked when the client was made, as SDK 0.38 does it."""
        return self._info

    async def save_weights_and_get_sampling_client(self) -> _Older:
        return _Older(await self._client.save_weights_and_get_sampling_client_async())


class ModelServed(NamedTuple):
    """A model of a service's list, as SDK 0.38 tells of it."""

    model_name: str | None
    max_context_length: int | None
    trainable: bool | None = None  # an older SDK reads no word of this and the next
    sampleable: bool | None = None


class ModelsServed(NamedTuple):
    supported_models: list[ModelServed]


class _OlderRest(_Older):
    """Asks by the twin of each method that is there to be awaited: the method itself warns of a
    loop that it is called in. Knows what the service can do as well, which was asked of the other
    client."""

    def __init__(self, client: Any, service: Any) -> None:
        super().__init__(client)
        self._service = service

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._client, f"{name}_async", None) or super().__getattr__(name)

    async def get_server_capabilities(self) -> ModelsServed:
        found = await self._service.get_server_capabilities_async()
        return ModelsServed(
            [ModelServed(one.model_name, one.max_context_length) for one in found.supported_models]
        )
