"""The wire forms of the Tinker protocol: request models, protobuf in, protobuf out.

Requests are read with our own models, which ignore fields they do not know, because the SDK's
request classes forbid unknown fields and change between versions. Byte fields are raw little-endian
arrays. Results of forward_backward and sample must be protobuf; everything else is JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field
from tinker.proto import tinker_public_pb2 as pb

PROTOBUF = "application/x-protobuf"


class UserError(Exception):
    """A request that can never succeed as it stands; the message goes back to the client."""


# --- JSON requests -----------------------------------------------------------------------------


class Request(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class CreateSession(Request):
    user_metadata: dict[str, Any] | None = None


class LoraConfig(Request):
    rank: int = Field(default=32, ge=1, le=512)
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Request):
    type: str = "adamw"


class CreateModel(Request):
    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraConfig = LoraConfig()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


class ModelRequest(Request):
    model_id: str


class AdamParams(Request):
    """Defaults are the SDK's; the optimizer is `torch.optim.AdamW`. 0 turns the clipping off."""

    learning_rate: float = Field(default=1e-4, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip_norm: float = Field(default=0.0, ge=0)


class OptimStep(Request):
    model_id: str
    seq_id: int
    adam_params: AdamParams | None = None


class SaveWeights(Request):
    model_id: str
    path: str | None = None
    seq_id: int
    sampling_session_seq_id: int | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class LoadWeights(Request):
    """Either a new run made from a checkpoint (session), or a load into a run (model)."""

    path: str
    optimizer: bool = False
    session_id: str | None = None
    model_seq_id: int | None = None
    model_id: str | None = None
    seq_id: int | None = None
    user_metadata: dict[str, Any] | None = None


class CreateSamplingSession(Request):
    session_id: str
    sampling_session_seq_id: int
    model_path: str | None = None
    base_model: str | None = None


class SamplingParams(Request):
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = -1
    top_p: float = Field(default=1.0, gt=0, le=1)


class PromptChunk(Request):
    type: str
    tokens: list[int] | None = None


class Prompt(Request):
    chunks: list[PromptChunk]


class Sample(Request):
    sampling_session_id: str
    seq_id: int
    num_samples: int = Field(default=1, ge=1, le=1024)
    prompt: Prompt
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool | None = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0

    def prompt_tokens(self) -> list[int]:
        """Concatenate the text chunks; the cookbook's renderers send several."""
        tokens: list[int] = []
        for chunk in self.prompt.chunks:
            if chunk.type != "encoded_text" or chunk.tokens is None:
                raise UserError(
                    f"prompt chunks of type {chunk.type!r} are not supported; send encoded_text"
                )
            tokens.extend(chunk.tokens)
        if not tokens:
            raise UserError("the prompt is empty; send at least one token")
        return tokens


class RetrieveFuture(Request):
    request_id: str


# --- forward/backward ---------------------------------------------------------------------------


class LossDatum(NamedTuple):
    """One training sequence: N input tokens, N targets (already shifted), N float weights."""

    input_tokens_N: np.ndarray
    target_tokens_N: np.ndarray
    weights_N: np.ndarray


@dataclass(frozen=True)
class ForwardBackward:
    loss_fn: str
    forward_only: bool
    data: tuple[LossDatum, ...]


_DTYPES = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    """Parse the envelope. Raises `UserError` when the bytes are not such a message."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise UserError(f"the body is not a ForwardBackwardRequest: {error}") from None
    return message


def read_forward_backward(message: pb.ForwardBackwardRequest) -> ForwardBackward:
    """Read the datums. Raises `UserError` for tensors that do not fit each other."""
    return ForwardBackward(
        loss_fn=message.loss_fn,
        forward_only=message.forward_only,
        data=tuple(_read_datum(index, datum) for index, datum in enumerate(message.data)),
    )


def _read_datum(index: int, datum: pb.Datum) -> LossDatum:
    where = f"datum {index}"
    chunks = []
    for chunk in datum.model_input:
        if chunk.WhichOneof("chunk") not in (None, "encoded_text"):
            raise UserError(
                f"{where}: only encoded_text chunks are supported, found "
                f"{chunk.WhichOneof('chunk')}"
            )
        chunks.append(_array(chunk.encoded_text.tokens, np.dtype("<i4"), where))
    tokens = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32)
    if tokens.size == 0:
        raise UserError(f"{where}: model_input is empty")
    if "target_tokens" not in datum.loss_fn_inputs:
        raise UserError(f"{where}: loss_fn_inputs has no target_tokens")
    targets = _read_tensor(datum.loss_fn_inputs["target_tokens"], f"{where}: target_tokens")
    if "weights" in datum.loss_fn_inputs:
        weights = _read_tensor(datum.loss_fn_inputs["weights"], f"{where}: weights")
    else:
        weights = np.ones(targets.shape, dtype=np.float32)
    if targets.shape != tokens.shape or weights.shape != tokens.shape:
        raise UserError(
            f"{where}: model_input has {tokens.size} tokens, target_tokens shape {targets.shape} "
            f"and weights shape {weights.shape}; all three must be one-dimensional and equally long"
        )
    return LossDatum(tokens.astype(np.int64), targets.astype(np.int64), weights.astype(np.float32))


def _read_tensor(tensor: pb.Tensor, where: str) -> np.ndarray:
    if tensor.WhichOneof("encoding") == "sparse_csr":
        raise UserError(f"{where}: sparse tensors are not supported yet; send a dense one")
    if tensor.dtype not in _DTYPES:
        raise UserError(f"{where}: dtype {tensor.dtype} is not supported; send float32 or int64")
    return _array(tensor.dense, _DTYPES[tensor.dtype], where).reshape(
        -1 if len(tensor.shape) <= 1 else tensor.shape
    )


def _array(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise UserError(f"{where}: {len(data)} bytes are not a whole number of {dtype.name} values")
    return np.frombuffer(data, dtype=dtype)


def forward_backward_output(loss_sum: float, logprobs: list[np.ndarray]) -> bytes:
    """Encode the result: `loss:sum` and, per datum, float32 `logprobs` of its N positions."""
    arrays = [np.ascontiguousarray(array, dtype="<f4") for array in logprobs]
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype="<i8")
    batched = pb.BatchedTensor(
        data=b"".join(array.tobytes() for array in arrays),
        offsets=offsets.tobytes(),
        dtype=pb.DTYPE_FLOAT32,
    )
    record = pb.ArrayRecord(
        type_tag="TorchLossReturn", fields={"logprobs": batched}, num_datums=len(arrays)
    )
    return pb.ForwardBackwardOutput(
        loss_fn_output_type="TorchLossReturn",
        loss_fn_outputs=[record],
        metrics={"loss:sum": loss_sum},
    ).SerializeToString()


# --- samples ------------------------------------------------------------------------------------


class SampledTokens(NamedTuple):
    """What one sample produced; `tokens` includes the stop token, exactly once, at the end."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]


def sample_response(sequences: list[SampledTokens], prompt_logprobs: np.ndarray | None) -> bytes:
    """Encode the samples of one request; prompt log-probabilities hold NaN where undefined."""
    response = pb.SampleResponse(
        sequences=[
            pb.SampledSequence(
                stop_reason=pb.STOP_REASON_STOP
                if sequence.stop_reason == "stop"
                else pb.STOP_REASON_LENGTH,
                tokens=np.asarray(sequence.tokens, dtype="<i4").tobytes(),
                logprobs=np.asarray(sequence.logprobs, dtype="<f4").tobytes(),
            )
            for sequence in sequences
        ]
    )
    if prompt_logprobs is not None:
        response.prompt_logprobs = np.asarray(prompt_logprobs, dtype="<f4").tobytes()
    return response.SerializeToString()
