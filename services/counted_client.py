"""What requests take, in tokens, told before they are sent; and a training client that tells it.

It is told when a request is handed to the SDK, which sends it at once or behind those before it; so
what has been told is never less than what a service has taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import tinker
    import torch


class Tokens(NamedTuple):
    """What a request takes. Of answers that have not come the longest that was asked for counts;
    once they have, what they are shorter by is told as a negative number."""

    train_tokens: int = 0
    prompt_tokens: int = 0  # read without a gradient
    sampled_tokens: int = 0


Note = Callable[[Tokens], None]
CustomLoss = Callable[
    ["list[tinker.Datum]", "list[torch.Tensor]"], "tuple[torch.Tensor, dict[str, float]]"
]


def not_noted(tokens: Tokens) -> None:
    """Where no ledger is kept."""


def counted(client: tinker.TrainingClient, note: Note) -> tinker.TrainingClient:
    """A client, as the loop and its methods use one, that tells `note` of each pass before it."""
    return cast("tinker.TrainingClient", _CountedClient(client, note))


class _CountedClient:
    def __init__(self, client: tinker.TrainingClient, note: Note) -> None:
        self._client = client
        self._note = note

    def __getattr__(self, name: str) -> Any:
        """What reads and trains no tokens."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._client, name)

    def forward(self, data: list[tinker.Datum], loss_fn: Any) -> Any:
        self._note(Tokens(prompt_tokens=num_tokens(data)))
        return self._client.forward(data, loss_fn)

    def forward_backward(self, data: list[tinker.Datum], loss_fn: Any) -> Any:
        self._note(Tokens(train_tokens=num_tokens(data)))
        return self._client.forward_backward(data, loss_fn)

    def forward_backward_custom(self, data: list[tinker.Datum], loss_fn: CustomLoss) -> Any:
        """Two passes, of which the SDK sends the second one once the loss is worked out here."""

        def noted(
            data: list[tinker.Datum], logprobs: list[torch.Tensor]
        ) -> tuple[torch.Tensor, dict[str, float]]:
            made = loss_fn(data, logprobs)
            self._note(Tokens(train_tokens=num_tokens(data)))
            return made

        self._note(Tokens(prompt_tokens=num_tokens(data)))
        return self._client.forward_backward_custom(data, noted)


def num_tokens(data: Sequence[tinker.Datum]) -> int:
    """Tokens that a pass over these reads."""
    return sum(one.model_input.length for one in data)
