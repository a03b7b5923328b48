"""One base model in memory and the LoRA adapters on it: made, trained, saved, loaded.

Everything here runs on the one compute thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from local_tinker import checkpoints, decoder_weights, lora, losses, training
from local_tinker.checkpoints import CheckpointInfo
from local_tinker.decoder_weights import DecoderWeights, LoraPair
from local_tinker.lora import LoraShape
from local_tinker.tokenizer import TextLostError, load_by_auto
from local_tinker.training import ForwardResult, TrainingRun, on_cpu
from local_tinker.wire import AdamParams, ForwardBackward, LossDatum, UserError

logger = logging.getLogger(__name__)

MAX_LOGITS_ELEMENTS = 64 * 1024 * 1024  # rows x tokens x vocabulary of one forward pass
MAX_WAVE_TOKENS = 64 * 1024  # rows x padded prompt tokens of one wave of samples
DEFAULT_NUM_THREADS = torch.get_num_threads()
SMALL_MODEL_PARAMETERS = 20_000_000  # below this, threads wait for each other longer than they work
MAX_SAMPLER_ADAPTERS = 8  # least recently used sampler weights are dropped from memory beyond this


@dataclass
class SamplerAdapter:
    """Sampler weights in memory; those that a wave is using stay until it has ended.

    Either a decoder of our own holds them, or an adapter of PEFT does; the base model needs none.
    """

    decoder: DecoderWeights | None
    name: str | None = None
    num_users: int = 0
    is_stale: bool = False  # overwritten on disk, or not wanted any more


@dataclass
class Engine:
    """A base model with its adapters. Clients call it `name`; `path` loads its tokenizer."""

    name: str
    path: str
    device: torch.device
    model: Any
    tokenizer: Any
    num_base_bytes: int  # of the base model, with the copy of an unembedding that was untied
    aliases: set[str] = field(default_factory=set)  # under which other services knew it
    _peft: Any = None
    _active: str | None = None  # the adapter that forward passes go through now
    _sampler_adapters: OrderedDict[Path, SamplerAdapter] = field(default_factory=OrderedDict)
    _num_adapters_made: int = 0

    @classmethod
    def load(
        cls, name: str, path: str, device: str | None = None, max_bytes: int | None = None
    ) -> Engine:
        """Load a causal LM from a directory or the Hugging Face cache; never from the network.

        Raises `UserError` when it is not there, or would take more than `max_bytes`.
        """
        if (Path(path) / "adapter_config.json").is_file():
            raise UserError(
                f"base model {path!r}: there is an adapter in it (adapter_config.json), "
                "which loaders lay over the weights beside it, and torchtune's have it merged in "
                "already. Give the directory of the model that the adapter was trained on, or a "
                "copy of this one without adapter_* files"
            )
        chosen = _device(device)
        dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
        transformers_logging.disable_progress_bar()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            if max_bytes is not None:
                _check_size(path, options, dtype.itemsize, max_bytes)
            tokenizer = load_by_auto(path, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            first_line = str(error).strip().splitlines()[0]
            if not (Path(path).is_dir() or isinstance(error, TextLostError)):
                first_line = "there is no such directory, nor a cached model of that name."
            raise UserError(
                f"base model {path!r} cannot be loaded on this machine: {first_line} Give a "
                "directory with config.json, safetensors weights and a tokenizer, or a model "
                "already in the Hugging Face cache (download it first with `hf download NAME`)."
            ) from error
        lora.check_model(model)
        _choose_kernels(model)
        model.to(device=chosen)  # pyright: ignore[reportCallIssue]
        model.eval().requires_grad_(False)
        if (short := _short_context(model)) is not None:
            logger.warning(
                "%s: its rotary positions (LongRoPE) change for a whole batch when one of its "
                "texts is longer than %d tokens, so it is served up to that length",
                name,
                short,
            )
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        return cls(name, path, chosen, model, tokenizer, num_bytes)

    # --- facts about the base model ---------------------------------------------------------

    @functools.cached_property
    def is_small(self) -> bool:
        return _count_parameters(self.model) < SMALL_MODEL_PARAMETERS

    def num_slots(self, padded_length_tokens: int, with_prompt_logits: bool) -> int:
        """Rows of every wave of samples whose prompts are padded to this length.

        It follows from model, device and request alone: another shape can give other last bits.
        Idle rows are computed too, and a large model on a CPU feels each of them.
        """
        slots = 32 if self.is_small or self.device.type == "cuda" else 8
        slots = min(slots, MAX_WAVE_TOKENS // padded_length_tokens)
        if with_prompt_logits:
            slots = min(slots, MAX_LOGITS_ELEMENTS // (padded_length_tokens * self.vocab_size))
        return max(1, slots)

    @property
    def piece_tokens(self) -> int:
        """Tokens of prompts that one product takes, beside which a longer prompt is alone.

        It follows from model and device alone. More leave more of the last piece idle, and save no
        time once the weights' way through memory takes less than the arithmetic, or, of a small
        model, Python.
        """
        if self.device.type == "cuda":
            return 2048
        return 256 if self.is_small else 96

    @property
    def num_threads(self) -> int:
        """Threads for this model's arithmetic.

        It follows from the model and the machine alone, since another number of threads can give
        other last bits.
        """
        return 1 if self.is_small else DEFAULT_NUM_THREADS

    @functools.cached_property
    def vocab_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @functools.cached_property
    def max_context_length(self) -> int:
        """Positions from 0 up that a forward pass may use, also in rows that nobody waits for."""
        config = self.model.config.get_text_config()
        longest = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        return min(longest, _short_context(self.model) or longest)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's own end tokens, used where a sample request names no stop."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return frozenset() if ids is None else frozenset(ids if isinstance(ids, list) else [ids])

    def check_tokens(self, tokens: list[int] | np.ndarray, where: str) -> None:
        array = np.asarray(tokens)
        if array.min() < 0 or array.max() >= self.vocab_size:
            raise UserError(
                f"{where}: token ids must lie in 0..{self.vocab_size - 1}, found "
                f"{array.min()}..{array.max()}"
            )
        if array.shape[0] > self.max_context_length:
            raise UserError(
                f"{where}: {array.shape[0]} tokens exceed the model's context of "
                f"{self.max_context_length}"
            )

    # --- training runs ------------------------------------------------------------------------

    def create_run(
        self, run_id: str, shape: LoraShape, seed: int | None, user_metadata: dict[str, str]
    ) -> TrainingRun:
        """Add a fresh adapter. The same seed gives the same initial weights; none draws one."""
        adapter = self._new_adapter_name()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(secrets.randbits(63) if seed is None else seed)
            self._add_adapter(adapter, shape)
        self._activate(adapter)
        parameters = [(n, p) for n, p in self._peft.named_parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [p for _, p in parameters], lr=0.0, weight_decay=0.0, fused=self.device.type == "cpu"
        )
        return TrainingRun(run_id, adapter, shape, optimizer, parameters, user_metadata)

    def _new_adapter_name(self) -> str:
        self._num_adapters_made += 1
        return f"adapter{self._num_adapters_made}"

    def _add_adapter(self, adapter: str, shape: LoraShape) -> None:
        was_tied = lora.is_tied(self.model)
        config = lora.make_config(self.model, self.name, shape)
        if was_tied and not lora.is_tied(self.model):
            unembedding = self.model.get_output_embeddings().weight
            self.num_base_bytes += unembedding.numel() * unembedding.element_size()
        if self._peft is None:
            self._peft = PeftModel(self.model, config, adapter_name=adapter)
            self._peft.eval()
        else:
            self._peft.add_adapter(adapter, config)
        self._active = "?"  # peft has changed what is active; the next _activate sets it

    def _activate(self, adapter: str | None) -> None:
        """Make one adapter (None: none, the base model) the one that forward passes go through."""
        if self._peft is None or adapter == self._active:
            return
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(adapter)
        self._active = adapter

    def forward_backward(self, run: TrainingRun, request: ForwardBackward) -> ForwardResult:
        """Add the gradient of the request's loss to the run's; forward only when it says so.

        Nothing is added when any part of the request is refused.
        """
        config = losses.check_loss(request.loss_fn, request.loss_fn_config)
        if not request.data:
            raise UserError("the request holds no data")
        for index, datum in enumerate(request.data):
            self._check_datum(request.loss_fn, datum, f"datum {index}")
        self._activate(run.adapter)
        return training.forward_backward(self.model, run, request, config)

    def _check_datum(self, loss_fn: str, datum: LossDatum, where: str) -> None:
        self.check_tokens(datum.input_tokens_N, f"{where}: model_input")
        self.check_tokens(datum.target_tokens, f"{where}: target_tokens")
        missing = [name for name in losses.required_inputs(loss_fn) if name not in datum.inputs]
        if missing:
            raise UserError(f"{where}: loss {loss_fn} needs {', '.join(missing)} in loss_fn_inputs")
        if datum.target_tokens.ndim == 2 and loss_fn != "cross_entropy":
            raise UserError(
                f"{where}: loss {loss_fn} takes one target per position, found target_tokens of "
                f"shape {datum.target_tokens.shape}; several targets are for cross_entropy"
            )

    def optim_step(self, run: TrainingRun, params: AdamParams) -> dict[str, float]:
        return training.optim_step(run, params)

    # --- checkpoints --------------------------------------------------------------------------

    def save(
        self,
        run: TrainingRun,
        root: Path,
        target: Path,
        *,
        with_optimizer: bool,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> None:
        """Write the adapter, and for a state checkpoint the optimizer, as the folder `target`."""
        now = time.time()
        info = CheckpointInfo.of_shape(
            run.shape,
            base_model=self.name,
            num_optimizer_steps=run.num_optimizer_steps,
            created_at=now,
            expires_at=checkpoints.expiry(now, ttl_seconds),
            user_metadata={**run.user_metadata, **(user_metadata or {})},
        )

        def write_files(directory: Path) -> None:
            adapter = get_peft_model_state_dict(
                self._peft, adapter_name=run.adapter, save_embedding_layers=False
            )
            save_file(
                on_cpu(adapter), directory / "adapter_model.safetensors", metadata={"format": "pt"}
            )
            self._peft.peft_config[run.adapter].save_pretrained(str(directory))
            if with_optimizer:
                state = {
                    name: tensor
                    for name, tensor in run.tensors().items()
                    if not name.endswith((".value", ".grad"))
                }
                save_file(on_cpu(state), directory / "optimizer.safetensors")

        checkpoints.write(root, target, info, write_files, overwrite=overwrite)
        self.forget_sampler(target)  # overwritten, perhaps while it was loaded for sampling

    def load_run(
        self, run_id: str, directory: Path, *, with_optimizer: bool, user_metadata: dict[str, str]
    ) -> TrainingRun:
        """Make a training run from a state checkpoint."""
        info = checkpoints.read_info(directory)
        run = self.create_run(
            run_id, info.shape, seed=0, user_metadata={**info.user_metadata, **user_metadata}
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.unload_run, run)  # half of a run must not be trained
            self.load_into(run, directory, with_optimizer=with_optimizer)
            undo.pop_all()
        return run

    def load_into(self, run: TrainingRun, directory: Path, *, with_optimizer: bool) -> None:
        """Replace a run's weights, and its optimizer's state, by a checkpoint's.

        Raises `UserError`, and changes nothing, when they do not fit the run.
        """
        stored = checkpoints.read_weights(directory, with_optimizer=with_optimizer)
        info = stored.info
        if info.base_model not in (self.name, *self.aliases) or info.shape != run.shape:
            raise UserError(
                f"checkpoint {directory.name!r} is of {info.base_model} with {info.shape}, the run "
                f"is of {self.name} with {run.shape}; load it into a new run instead"
            )
        self._set_adapter(run.adapter, stored.adapter, directory)
        run.restore(stored.optimizer)
        run.refusal = None
        run.num_optimizer_steps = info.num_optimizer_steps if with_optimizer else 0

    def _set_adapter(self, adapter: str, weights: dict[str, torch.Tensor], directory: Path) -> None:
        result = set_peft_model_state_dict(self._peft, weights, adapter_name=adapter)
        if result.unexpected_keys or any(f".{adapter}." in key for key in result.missing_keys):
            raise UserError(f"checkpoint {directory.name} does not fit base model {self.name}")

    def adapter_shapes(self, shape: LoraShape) -> dict[str, tuple[int, ...]]:
        """The tensors of an adapter of this shape, by their names in its file."""
        name = self._new_adapter_name()
        self._add_adapter(name, shape)
        try:
            tensors = get_peft_model_state_dict(
                self._peft, adapter_name=name, save_embedding_layers=False
            )
            return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        finally:
            self._delete_adapter(name)

    def unload_run(self, run: TrainingRun) -> None:
        """Forget a run; `run` must not be used afterwards."""
        self._delete_adapter(run.adapter)

    def _delete_adapter(self, adapter: str) -> None:
        if len(self._peft.peft_config) == 1:
            self._peft.unload()  # peft keeps at least one; the base model is bare again
            self._peft = None
        else:
            if adapter in self._peft.active_adapters:  # else peft warns that it chooses another
                others = (other for other in self._peft.peft_config if other != adapter)
                self._peft.set_adapter(next(others))
            self._peft.delete_adapter(adapter)
        self._active = "?"

    # --- sampling -----------------------------------------------------------------------------

    def acquire_sampler(self, directory: Path | None) -> SamplerAdapter:
        """Load saved sampler weights (None: the base model) and keep them until their release."""
        if directory is None:
            return SamplerAdapter(self._decoder({}, self.name) if self._is_known else None)
        if directory not in self._sampler_adapters:
            self._sampler_adapters[directory] = self._load_sampler(directory)
        sampler = self._sampler_adapters[directory]
        sampler.num_users += 1
        self._sampler_adapters.move_to_end(directory)
        idle = [d for d, other in self._sampler_adapters.items() if other.num_users == 0]
        for directory in idle[: max(0, len(self._sampler_adapters) - MAX_SAMPLER_ADAPTERS)]:
            self.forget_sampler(directory)
        return sampler

    @functools.cached_property
    def _is_known(self) -> bool:
        return decoder_weights.is_known(self.model)

    def _decoder(self, matrices: dict[str, LoraPair], name: str) -> DecoderWeights:
        return decoder_weights.read_weights(self.model, matrices, name)

    def _load_sampler(self, directory: Path) -> SamplerAdapter:
        stored = checkpoints.read_weights(directory, with_optimizer=False)
        shape = stored.info.shape
        if self._is_known:
            matrices = decoder_weights.read_lora(stored.adapter, shape, self.device)
            return SamplerAdapter(self._decoder(matrices, directory.name))
        name = self._new_adapter_name()
        self._add_adapter(name, shape)
        with contextlib.ExitStack() as undo:
            undo.callback(self._delete_adapter, name)
            self._set_adapter(name, stored.adapter, directory)
            undo.pop_all()
        return SamplerAdapter(None, name)

    def release_sampler(self, sampler: SamplerAdapter) -> None:
        sampler.num_users -= 1
        if sampler.is_stale:
            self._delete_when_unused(sampler)

    def forget_sampler(self, directory: Path) -> None:
        """Let go of sampler weights when no wave uses them; what is not in memory is no error."""
        sampler = self._sampler_adapters.pop(directory, None)
        if sampler is not None:
            sampler.is_stale = True
            self._delete_when_unused(sampler)

    def _delete_when_unused(self, sampler: SamplerAdapter) -> None:
        if sampler.num_users == 0 and sampler.name is not None:
            self._delete_adapter(sampler.name)

    def activate_sampler(self, sampler: SamplerAdapter) -> None:
        """Let the model's own forward go through these weights."""
        if sampler.decoder is None:
            self._activate(sampler.name)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"device {name!r} is not known; use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no GPU here; use --device cpu")
    return device


def _choose_kernels(model: Any) -> None:
    """Set what transformers would choose wrongly for this service."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # sdpa leaves the soft cap out without a word
    is_small = _count_parameters(model) < SMALL_MODEL_PARAMETERS
    if model._can_set_experts_implementation() and is_small:
        # The only one whose bits do not depend on the other rows; it copies an expert's weights
        # for every token, which large models have no memory for.
        model.set_experts_implementation("batched_mm")


def _short_context(model: Any) -> int | None:
    """How long texts may be before LongRoPE takes its other factors, for every text beside them.

    None: the model has no LongRoPE. Its parameters are the whole model's, or each layer type's.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return min(
        (k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"),
        default=None,
    )


def _count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_size(path: str, options: dict[str, Any], itemsize: int, max_bytes: int) -> None:
    """Refuse a model that is too large, by its configuration, before anything is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, **options))
    num_bytes = _count_parameters(model) * itemsize
    if num_bytes > max_bytes:
        raise UserError(
            f"base model {path!r} takes {num_bytes / 2**20:.1f} MiB and only "
            f"{max(0, max_bytes) / 2**20:.1f} MiB of the memory limit are left; raise "
            "--max-memory or serve a smaller model"
        )
