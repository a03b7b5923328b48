"""The wire forms of the Tinker protocol: request models, protobuf in, protobuf out.

Requests are read with our own models, which ignore fields they do not know, because the SDK's
request classes forbid unknown fields and change between versions. Byte fields are raw little-endian
arrays. Results of forward_backward and sample must be protobuf; everything else is JSON.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from tinker.proto import tinker_public_pb2 as pb

PROTOBUF = "application/x-protobuf"


MAX_NUMBER = 2**31 - 1  # of sequence and model numbers; the protobuf field is an int32
MAX_TTL_S = 10 * 366 * 24 * 3600
MAX_TARGETS_PER_POSITION = 4096
MAX_TARGET_CELLS = 1 << 24  # positions times targets of one request
MAX_HYPERPARAMETER = 1e4
MAX_PROMPT_CELLS = 1 << 22  # prompt positions times top-k width, targets or draws
MAX_STOPS = 64
EMPTY_LOGPROB = -99999.0  # where fewer likeliest tokens than were asked for are left
MAX_METADATA_ENTRIES = 256
MAX_METADATA_CHARS = 16_384


class UserError(Exception):
    """A request that can never succeed as it stands; the message goes back to the client."""


class NotFound(Exception):
    """The request names a session, run, sampler, checkpoint or future that does not exist here."""


# --- JSON requests -----------------------------------------------------------------------------


def _as_strings(user_metadata: object) -> dict[str, str]:
    """Requests may hold any values, responses must map strings to strings."""
    if not isinstance(user_metadata, dict | None):
        raise ValueError("user_metadata must be an object")
    try:
        entries = {
            key: value if isinstance(value, str) else str(value)
            for key, value in (user_metadata or {}).items()
        }
    except RecursionError:
        raise ValueError("user_metadata is nested too deeply") from None
    num_chars = sum(len(f"{key}{value}".encode()) for key, value in entries.items())
    if len(entries) > MAX_METADATA_ENTRIES or num_chars > MAX_METADATA_CHARS:
        raise ValueError(
            f"user_metadata may hold {MAX_METADATA_ENTRIES} entries and {MAX_METADATA_CHARS} "
            f"characters, found {len(entries)} and {num_chars}"
        )
    return entries


Metadata = Annotated[dict[str, str], BeforeValidator(_as_strings)]
Id = Annotated[str, Field(max_length=300)]
Number = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
TtlSeconds = Annotated[int, Field(ge=1, le=MAX_TTL_S)]


class Request(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


class LoraConfig(Request):
    rank: int = Field(default=32, ge=1, le=512)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Request):
    type: str = "adamw"


class CreateModel(Request):
    session_id: Id
    model_seq_id: Number
    base_model: str = Field(max_length=4096)
    lora_config: LoraConfig = LoraConfig()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: Metadata = {}


class ModelRequest(Request):
    model_id: Id


class AdamParams(Request):
    """Defaults are the SDK's; the optimizer is `torch.optim.AdamW`. 0 turns the clipping off."""

    learning_rate: float = Field(default=1e-4, ge=0, le=MAX_HYPERPARAMETER)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, ge=0, le=MAX_HYPERPARAMETER)
    weight_decay: float = Field(default=0.0, ge=0, le=MAX_HYPERPARAMETER)
    grad_clip_norm: float = Field(default=0.0, ge=0)


class OptimStep(Request):
    model_id: Id
    seq_id: Number
    adam_params: AdamParams | None = None


class SaveWeights(Request):
    model_id: Id
    path: str | None = None
    seq_id: Number
    sampling_session_seq_id: Number | None = None
    ttl_seconds: TtlSeconds | None = None
    overwrite: bool = False
    user_metadata: Metadata = {}
    age_encryption_recipients: Annotated[list[str], Field(max_length=10)] = []


class LoadWeights(Request):
    """Either a new run made from a checkpoint (session), or a load into a run (model)."""

    path: str
    optimizer: bool = False
    session_id: Id | None = None
    model_seq_id: Number | None = None
    model_id: Id | None = None
    seq_id: Number | None = None
    user_metadata: Metadata = {}


class CopyWeights(Request):
    """`destination_project_id` is not read: one person's service has no projects."""

    source_path: str
    ttl_seconds: TtlSeconds | None = None


class SetTtl(Request):
    ttl_seconds: TtlSeconds | None


class TinkerPathRequest(Request):
    tinker_path: str


class SessionRequest(Request):
    session_id: Id


class CreateSamplingSession(Request):
    session_id: Id
    sampling_session_seq_id: Number
    model_path: str | None = None
    base_model: str | None = None


class SamplingParams(Request):
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | Annotated[list[str] | list[int], Field(max_length=MAX_STOPS)] | None = None
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = -1
    top_p: float = Field(default=1.0, gt=0, le=1)


class PromptChunk(Request):
    type: str
    tokens: list[int] | None = None


class Prompt(Request):
    chunks: list[PromptChunk]


class TensorData(Request):
    """A tensor in JSON, dense or sparse CSR; unlisted cells of a sparse one ask for nothing."""

    data: list[int]
    shape: list[int]
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Sample(Request):
    sampling_session_id: Id
    seq_id: int
    num_samples: int = Field(default=1, ge=1, le=1024)
    prompt: Prompt
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool | None = False
    prompt_logprobs_last_n: int | None = Field(default=None, ge=1)
    topk_prompt_logprobs: int = Field(default=0, ge=0)
    topk_sample_logprobs: int = Field(default=0, ge=0)
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = Field(default=0, ge=0)
    record_stability_info: bool | None = False

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
    request_id: Id


class FuturesTarget(Request):
    """One client of a sampling session; clones of the first one have ids of their own."""

    type: Literal["sampling_session"]
    sampling_session_id: Id
    cloned_sampler_id: int = Field(default=0, ge=0)


class RetrieveFutures(Request):
    """Ask for what was completed after `prev_cursor`; the results named here are not needed more.

    `timeout` is in seconds; without one the service holds the request as long as it likes.
    """

    target: FuturesTarget
    prev_cursor: int = Field(default=0, ge=0)
    timeout: float | None = Field(default=None, ge=0)
    retrieved_request_ids: list[Id] = []


class JoinSamplingSession(Request):
    sampling_session_id: Id


# --- forward/backward ---------------------------------------------------------------------------


class LossDatum(NamedTuple):
    """One training sequence: N input tokens, N targets (already shifted), inputs of the loss.

    Targets are (N,) or, as soft targets, (N, K); `weights` have the targets' shape, the other
    inputs (`logprobs`, `advantages`, `sequence_ratio_mask`) are (N,).
    """

    input_tokens_N: np.ndarray
    target_tokens: np.ndarray
    inputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class ForwardBackward:
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool
    data: tuple[LossDatum, ...]


LOSS_INPUTS = ("weights", "logprobs", "advantages", "sequence_ratio_mask")

_DTYPES = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
# Whether the installed SDK's messages lack fields, as those of 0.25 do, which self-hosted engines
# want. Who speaks by such an SDK cannot ask for what would be in them.
IS_OLDER_SDK = "topk_sampled_logprobs" not in pb.SampledSequence.DESCRIPTOR.fields_by_name
TOPK_LENGTH = 4  # the number of the field for the number of rows


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    """Parse the envelope. Raises `UserError` when the bytes are not such a message."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise UserError(f"the body is not a ForwardBackwardRequest: {error}") from None
    return message


def read_forward_backward(message: pb.ForwardBackwardRequest, max_tokens: int) -> ForwardBackward:
    """Read the datums, each of at most `max_tokens`.

    Raises `UserError` for tensors that do not fit each other or would become too large; sizes are
    checked before anything is allocated, since a sparse tensor's shape costs nothing to write.
    """
    num_cells = 0
    for datum in message.data:
        widths = [t.shape[1] for t in datum.loss_fn_inputs.values() if len(t.shape) == 2]
        num_tokens = sum(len(chunk.encoded_text.tokens) // 4 for chunk in datum.model_input)
        num_cells += num_tokens * max([1, *widths])
    if num_cells > MAX_TARGET_CELLS:
        raise UserError(
            f"the request has {num_cells} targets in all and {MAX_TARGET_CELLS} are allowed; send "
            "less in one call"
        )
    config: dict[str, float | str] = dict(message.loss_fn_config)
    if not IS_OLDER_SDK:
        for name, value in message.loss_fn_config_v2.items():
            config[name] = value.text if value.WhichOneof("value") == "text" else value.number
    return ForwardBackward(
        loss_fn=message.loss_fn,
        loss_fn_config=config,
        forward_only=message.forward_only,
        data=tuple(
            _read_datum(f"datum {index}", datum, max_tokens)
            for index, datum in enumerate(message.data)
        ),
    )


def _read_datum(where: str, datum: pb.Datum, max_tokens: int) -> LossDatum:
    chunks = []
    for chunk in datum.model_input:
        kind = chunk.WhichOneof("chunk")
        if kind not in (None, "encoded_text"):
            raise UserError(f"{where}: {kind} chunks are not supported, this service is text only")
        chunks.append(_array(chunk.encoded_text.tokens, np.dtype("<i4"), where))
    tokens = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32)
    if tokens.size == 0:
        raise UserError(f"{where}: model_input is empty")
    if tokens.size > max_tokens:
        raise UserError(f"{where}: {tokens.size} tokens exceed the model's context of {max_tokens}")
    if "target_tokens" not in datum.loss_fn_inputs:
        raise UserError(f"{where}: loss_fn_inputs has no target_tokens")
    targets = _read_tensor(datum.loss_fn_inputs["target_tokens"], tokens.size, where, "targets")
    if targets.dtype.kind != "i":
        raise UserError(f"{where}: target_tokens must be integers, found {targets.dtype}")
    inputs = {"weights": np.ones(targets.shape, dtype=np.float32)}
    for name in LOSS_INPUTS:  # others are ignored; the cookbook sends some
        if name in datum.loss_fn_inputs:
            values = _read_tensor(datum.loss_fn_inputs[name], tokens.size, where, name)
            inputs[name] = values.astype(np.float32)
    for name, values in (("target_tokens", targets), *inputs.items()):
        expected = targets.shape if name in ("target_tokens", "weights") else tokens.shape
        if values.shape != expected or len(values) != tokens.size:
            raise UserError(
                f"{where}: model_input has {tokens.size} tokens, but {name} has shape "
                f"{values.shape}; expected one row per token, and weights shaped as target_tokens"
            )
    return LossDatum(tokens.astype(np.int64), targets.astype(np.int64), inputs)


def _read_tensor(tensor: pb.Tensor, num_tokens: int, where: str, name: str) -> np.ndarray:
    """Read a dense or sparse CSR tensor of shape (N,) or (N, K)."""
    where = f"{where}: {name}"
    if tensor.dtype not in _DTYPES:
        raise UserError(f"{where}: dtype {tensor.dtype} is not supported; send float32 or int64")
    dtype, shape = _DTYPES[tensor.dtype], tuple(tensor.shape)
    if len(shape) > 2 or (len(shape) == 2 and not 1 <= shape[1] <= MAX_TARGETS_PER_POSITION):
        raise UserError(
            f"{where}: shape {shape} is not supported; send (N,) or (N, K) with K up to "
            f"{MAX_TARGETS_PER_POSITION}"
        )
    if tensor.WhichOneof("encoding") == "sparse_csr":
        # Checked before anything is allocated: a shape costs nothing to write down.
        if len(shape) != 2 or shape[0] != num_tokens:
            raise UserError(f"{where}: a sparse tensor must have shape ({num_tokens}, K)")
        sparse = tensor.sparse_csr
        rows, columns = csr_cells(
            _array(sparse.crow_indices, np.dtype("<i8"), where),
            _array(sparse.col_indices, np.dtype("<i8"), where),
            (num_tokens, shape[1]),
            where,
        )
        values = _array(sparse.values, dtype, where)
        if values.size != columns.size:
            raise UserError(f"{where}: {values.size} sparse values for {columns.size} columns")
        dense = np.zeros(shape, dtype=dtype)
        dense[rows, columns] = values
        return dense
    values = _array(tensor.dense, dtype, where)
    if len(shape) < 2:
        return values
    if values.size != shape[0] * shape[1]:
        raise UserError(f"{where}: {values.size} values do not fill shape {shape}")
    return values.reshape(shape)


def csr_cells(
    crow: np.ndarray, columns: np.ndarray, shape: tuple[int, int], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each listed cell. Raises `UserError` for indices that do not fit."""
    counts = np.diff(crow)
    if (
        crow.size != shape[0] + 1
        or crow[0] != 0
        or crow[-1] != columns.size
        or (counts < 0).any()
        or (columns.size and not 0 <= columns.min() <= columns.max() < shape[1])
    ):
        raise UserError(f"{where}: the sparse indices do not describe a tensor of shape {shape}")
    return np.repeat(np.arange(shape[0]), counts), columns


def _array(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise UserError(f"{where}: {len(data)} bytes are not a whole number of {dtype.name} values")
    return np.frombuffer(data, dtype=dtype)


def forward_backward_output(loss_sum: float, logprobs: list[np.ndarray]) -> bytes:
    """Encode the result: `loss:sum` and per datum float32 `logprobs` shaped as its targets."""
    output = pb.ForwardBackwardOutput(
        loss_fn_output_type="TorchLossReturn", metrics={"loss:sum": loss_sum}
    )
    # One record holds arrays that agree in all but their first dimension.
    for trailing_shape, group in itertools.groupby(logprobs, key=lambda array: array.shape[1:]):
        arrays = [np.ascontiguousarray(array, dtype="<f4") for array in group]
        offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype="<i8")
        batched = pb.BatchedTensor(
            data=b"".join(array.tobytes() for array in arrays),
            offsets=offsets.tobytes(),
            dtype=pb.DTYPE_FLOAT32,
            trailing_shape=trailing_shape,
        )
        output.loss_fn_outputs.append(
            pb.ArrayRecord(
                type_tag="TorchLossReturn", fields={"logprobs": batched}, num_datums=len(arrays)
            )
        )
    return output.SerializeToString()


# --- samples ------------------------------------------------------------------------------------


class TopK(NamedTuple):
    """The likeliest tokens of L positions; a row of NaN was not asked for."""

    token_ids_LK: np.ndarray
    logprobs_LK: np.ndarray


class SampledTokens(NamedTuple):
    """What one sample produced; `tokens` includes the stop token, exactly once, at the end."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]
    topk: TopK | None = None


class PromptScores(NamedTuple):
    """What a request asked to know about its prompt of T tokens; NaN where undefined.

    `target_logprobs` has the shape of the targets that were asked for (a flat array of the listed
    cells for sparse ones); `alt_tokens` and `alt_logprobs` are (T-1, k).
    """

    logprobs_T: np.ndarray | None = None
    topk: TopK | None = None
    targets: TensorData | None = None
    target_logprobs: np.ndarray | None = None
    alt_tokens: np.ndarray | None = None
    alt_logprobs: np.ndarray | None = None


def sample_response(sequences: list[SampledTokens], scores: PromptScores | None) -> bytes:
    """Encode the samples of one request with the scores of its prompt."""
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
    for made, sequence in zip(response.sequences, sequences, strict=True):
        if sequence.topk is not None:
            _refuse_older_sdk("the likeliest tokens of an answer")
            _write_topk(made.topk_sampled_logprobs, sequence.topk)
    if scores is None:
        return response.SerializeToString()
    if scores.logprobs_T is not None:
        response.prompt_logprobs = np.asarray(scores.logprobs_T, dtype="<f4").tobytes()
    if scores.topk is not None:
        _write_topk(response.topk_prompt_logprobs, scores.topk)
    if scores.targets is not None and scores.target_logprobs is not None:
        _refuse_older_sdk("the log-probabilities of given tokens")
        response.target_prompt_logprobs.CopyFrom(_as_asked(scores.targets, scores.target_logprobs))
    if scores.alt_tokens is not None and scores.alt_logprobs is not None:
        _refuse_older_sdk("other tokens at a prompt's places")
        for field, array, dtype in (
            (response.prompt_alt_tokens.tokens, scores.alt_tokens, "<i8"),
            (response.prompt_alt_tokens.logprobs, scores.alt_logprobs, "<f4"),
        ):
            field.dense = np.ascontiguousarray(array, dtype=dtype).tobytes()
            field.dtype = pb.DTYPE_INT64 if dtype == "<i8" else pb.DTYPE_FLOAT32
            field.shape.extend(array.shape)
    return response.SerializeToString()


def _refuse_older_sdk(what: str) -> None:
    """Raise `UserError` where the SDK that is installed here has no field for it."""
    if IS_OLDER_SDK:
        raise UserError(
            f"the messages of the Tinker SDK that this service is installed beside do not hold "
            f"{what}; install the SDK of requirements.txt"
        )


def _write_topk(message: pb.TopkLogprobs, topk: TopK) -> None:
    """Rows that were not asked for become the protocol's empty cells: id 0, `EMPTY_LOGPROB`."""
    is_empty = np.isnan(topk.logprobs_LK)
    ids = np.where(is_empty, 0, topk.token_ids_LK)
    logprobs = np.where(is_empty, EMPTY_LOGPROB, topk.logprobs_LK)
    message.token_ids = np.ascontiguousarray(ids, dtype="<i4").tobytes()
    message.logprobs = np.ascontiguousarray(logprobs, dtype="<f4").tobytes()
    message.k = ids.shape[1]
    # The same field of the wire, which has had two names.
    setattr(message, message.DESCRIPTOR.fields_by_number[TOPK_LENGTH].name, ids.shape[0])


def _as_asked(targets: TensorData, logprobs: np.ndarray) -> pb.Tensor:
    """The answer has the layout of the question, dense or sparse."""
    tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=targets.shape)
    data = np.ascontiguousarray(logprobs, dtype="<f4").tobytes()
    if targets.sparse_crow_indices is None:
        tensor.dense = data
    else:
        tensor.sparse_csr.values = data
        tensor.sparse_csr.crow_indices = np.array(targets.sparse_crow_indices, "<i8").tobytes()
        tensor.sparse_csr.col_indices = np.array(targets.sparse_col_indices, "<i8").tobytes()
    return tensor
