"""One base model in memory and the LoRA adapters on it: forward, backward, optimizer, save, load.

Everything here runs on the one compute thread. Losses are plain sums over all positions of all
datums, as the protocol demands; the client does the normalising. LoRA alpha is 32 for every rank
and dropout is 0, as the vendor documents.
"""

from __future__ import annotations

import functools
import logging
import math
import secrets
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from local_tinker import checkpoints
from local_tinker.checkpoints import CheckpointInfo, TinkerPath
from local_tinker.wire import AdamParams, ForwardBackward, LossDatum, UserError

logger = logging.getLogger(__name__)

LORA_ALPHA = 32
ATTENTION_NAMES = frozenset({"attn", "self_attn", "attention", "self_attention"})
MAX_LOGITS_ELEMENTS = (
    64 * 1024 * 1024
)  # rows x tokens x vocabulary held at once in one forward pass
DEFAULT_NUM_THREADS = torch.get_num_threads()
SMALL_MODEL_PARAMETERS = 20_000_000  # below this, threads wait for each other longer than they work
MAX_SAMPLER_ADAPTERS = 8  # least recently used sampler weights are dropped from memory beyond this


@dataclass(frozen=True)
class LoraShape:
    """Which LoRA matrices a run has."""

    rank: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool


class ForwardResult(NamedTuple):
    """`loss_sum` is -sum(weights * logprobs) over the request; one array of logprobs per datum."""

    loss_sum: float
    logprobs: list[np.ndarray]


@dataclass
class TrainingRun:
    """A LoRA adapter that is being trained, with its optimizer."""

    run_id: str
    adapter: str
    shape: LoraShape
    optimizer: torch.optim.AdamW
    named_parameters: list[tuple[str, torch.nn.Parameter]]
    user_metadata: dict[str, str]
    num_optimizer_steps: int = 0


@dataclass
class Engine:
    """A base model with its adapters. Clients call it `name`; `path` loads its tokenizer."""

    name: str
    path: str
    device: torch.device
    model: Any
    tokenizer: Any
    runs: dict[str, TrainingRun] = field(default_factory=dict)
    _peft: Any = None
    _active: str | None = None  # the adapter that forward passes go through now
    _sampler_adapters: OrderedDict[str, str] = field(
        default_factory=OrderedDict
    )  # folder -> adapter name
    _num_adapters_made: int = 0

    @classmethod
    def load(cls, name: str, path: str, device: str | None = None) -> Engine:
        """Load a causal LM from a directory or the Hugging Face cache; never from the network."""
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
        transformers_logging.disable_progress_bar()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError, SafetensorError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UserError(
                f"base model {path!r} cannot be loaded on this machine: {first_line} Give a "
                "directory with config.json, safetensors weights and a tokenizer, or a model "
                "already in the Hugging Face cache (download it first with `hf download NAME`)."
            ) from error
        model.to(device=chosen)  # pyright: ignore[reportCallIssue]
        model.eval().requires_grad_(False)
        return cls(name=name, path=path, device=chosen, model=model, tokenizer=tokenizer)

    # --- facts about the base model ---------------------------------------------------------

    @functools.cached_property
    def is_small(self) -> bool:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return num_parameters < SMALL_MODEL_PARAMETERS

    @property
    def num_slots(self) -> int:
        """Rows of every wave of samples, following from model and device alone.

        Another shape can give other last bits. Idle rows are computed too, and a large model on a
        CPU feels each of them.
        """
        return 32 if self.is_small or self.device.type == "cuda" else 8

    @property
    def num_threads(self) -> int:
        """Threads for this model's arithmetic.

        It follows from the model and the machine alone, since another number of threads can give
        other last bits.
        """
        return 1 if self.is_small else DEFAULT_NUM_THREADS

    @property
    def vocab_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def max_context_length(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 20)

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
        if array.size > self.max_context_length:
            raise UserError(
                f"{where}: {array.size} tokens exceed the model's context of "
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
            self._add_adapter(adapter, self._lora_config(shape))
        self._activate(adapter)
        parameters = [(n, p) for n, p in self._peft.named_parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([p for _, p in parameters], lr=0.0, weight_decay=0.0)
        run = TrainingRun(run_id, adapter, shape, optimizer, parameters, user_metadata)
        self.runs[run_id] = run
        return run

    def _lora_config(self, shape: LoraShape) -> LoraConfig:
        targets = self._target_modules(shape)
        if not targets:
            raise UserError(
                "none of attention, MLP and unembedding is to be trained; set at least one train_* "
                "flag"
            )
        if shape.train_unembed:
            self._untie_unembedding()
        return LoraConfig(
            r=shape.rank, lora_alpha=LORA_ALPHA, lora_dropout=0.0, bias="none",
            task_type="CAUSAL_LM", target_modules=targets, base_model_name_or_path=self.name,
        )  # fmt: skip

    def _target_modules(self, shape: LoraShape) -> list[str]:
        """The linear layers to adapt, told apart by where they stand in the model."""
        unembedding = self.model.get_output_embeddings()
        targets, others = [], []
        for name, module in self.model.named_modules():
            if ".lora_" in name or not isinstance(module, torch.nn.Linear):
                continue
            is_unembedding = module is unembedding or module is getattr(
                unembedding, "base_layer", None
            )
            is_attention = any(part in ATTENTION_NAMES for part in name.split("."))
            wanted = (
                shape.train_unembed
                if is_unembedding
                else shape.train_attn
                if is_attention
                else shape.train_mlp
            )
            (targets if wanted else others).append(name.removesuffix(".base_layer"))
        # Other tools read the short names (q_proj); full paths where those would catch too much.
        leaves = {name.rsplit(".", 1)[-1] for name in targets}
        is_ambiguous = any(name.rsplit(".", 1)[-1] in leaves for name in others)
        return targets if is_ambiguous else sorted(leaves)

    def _untie_unembedding(self) -> None:
        """Give a tied unembedding its own copy, so that merging its LoRA spares the embedding."""
        unembedding = self.model.get_output_embeddings()
        if unembedding.weight is self.model.get_input_embeddings().weight:
            unembedding.weight = torch.nn.Parameter(
                unembedding.weight.detach().clone(), requires_grad=False
            )
            self.model.config.tie_word_embeddings = False

    def _new_adapter_name(self) -> str:
        self._num_adapters_made += 1
        return f"adapter{self._num_adapters_made}"

    def _add_adapter(self, adapter: str, config: LoraConfig) -> None:
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
        """Add the gradient of the request's loss to the run's; forward only when it says so."""
        if request.loss_fn != "cross_entropy":
            raise UserError(
                f"loss function {request.loss_fn!r} is not supported yet; this service has "
                "cross_entropy"
            )
        if not request.data:
            raise UserError("the request holds no data")
        for index, datum in enumerate(request.data):
            self.check_tokens(datum.input_tokens_N, f"datum {index}: model_input")
            self.check_tokens(datum.target_tokens_N, f"datum {index}: target_tokens")
        self._activate(run.adapter)
        loss_sum, logprobs = 0.0, []
        for rows in self._micro_batches(request.data):
            with torch.set_grad_enabled(not request.forward_only):
                loss, rows_logprobs = self._cross_entropy(rows)
            if not request.forward_only:
                loss.backward()
            loss_sum += float(loss.detach())
            logprobs += rows_logprobs
        return ForwardResult(loss_sum, logprobs)

    def _micro_batches(self, data: tuple[LossDatum, ...]) -> list[tuple[LossDatum, ...]]:
        """Split in order, so that the logits of one forward pass stay within memory."""
        longest = max(datum.input_tokens_N.size for datum in data)
        num_rows = max(1, MAX_LOGITS_ELEMENTS // (longest * self.vocab_size))
        return [data[start : start + num_rows] for start in range(0, len(data), num_rows)]

    def _cross_entropy(self, rows: tuple[LossDatum, ...]) -> tuple[torch.Tensor, list[np.ndarray]]:
        """-sum(weights * logprob of target), with right padding that a mask of zeros hides."""
        lengths = [row.input_tokens_N.size for row in rows]
        shape = (len(rows), max(lengths))
        tokens_BT, targets_BT = (
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
        )
        weights_BT, mask_BT = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            tokens_BT[index, :length] = torch.tensor(row.input_tokens_N)
            targets_BT[index, :length] = torch.tensor(row.target_tokens_N)
            weights_BT[index, :length] = torch.tensor(row.weights_N)
            mask_BT[index, :length] = 1
        logits_BTV = self.model(
            input_ids=tokens_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            use_cache=False,
        ).logits
        logprobs_BT = (
            torch.log_softmax(logits_BTV.float(), dim=-1)
            .gather(-1, targets_BT.to(self.device)[..., None])
            .squeeze(-1)
        )
        # Positions that weigh nothing must not turn an infinite logprob into 0 * inf = nan.
        weights_BT = weights_BT.to(self.device)
        loss = -torch.where(weights_BT != 0, weights_BT * logprobs_BT, 0.0).sum()
        host_BT = logprobs_BT.detach().cpu().numpy()
        return loss, [host_BT[index, :length].copy() for index, length in enumerate(lengths)]

    def optim_step(self, run: TrainingRun, params: AdamParams) -> dict[str, float]:
        """Take one AdamW step with the accumulated gradients, then clear them.

        Gradients that are not finite are refused and cleared; the weights stay as they were.
        """
        gradients = [p.grad for _, p in run.named_parameters if p.grad is not None]
        if not gradients:
            raise UserError(
                "optim_step without a forward_backward before it: there are no gradients to apply"
            )
        max_norm = params.grad_clip_norm if params.grad_clip_norm > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in run.named_parameters], max_norm)
        if not torch.isfinite(norm):
            run.optimizer.zero_grad(set_to_none=True)
            raise UserError("the gradients are not finite, so the optimizer step was refused")
        for group in run.optimizer.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.num_optimizer_steps += 1
        return {"grad_norm": float(norm)}

    # --- checkpoints --------------------------------------------------------------------------

    def save(
        self,
        run: TrainingRun,
        root: Path,
        path: TinkerPath,
        *,
        ttl_seconds: int | None,
        overwrite: bool,
        user_metadata: dict[str, str],
    ) -> None:
        """Write the adapter (and for state checkpoints the optimizer) under `root`."""
        now = time.time()
        info = CheckpointInfo(
            base_model=self.name,
            lora_rank=run.shape.rank,
            lora_alpha=LORA_ALPHA,
            train_attn=run.shape.train_attn,
            train_mlp=run.shape.train_mlp,
            train_unembed=run.shape.train_unembed,
            num_optimizer_steps=run.num_optimizer_steps,
            created_at=now,
            expires_at=None if ttl_seconds is None else now + ttl_seconds,
            user_metadata={**run.user_metadata, **user_metadata},
        )

        def write_files(directory: Path) -> None:
            adapter = get_peft_model_state_dict(
                self._peft, adapter_name=run.adapter, save_embedding_layers=False
            )
            save_file(
                _on_cpu(adapter), directory / "adapter_model.safetensors", metadata={"format": "pt"}
            )
            self._peft.peft_config[run.adapter].save_pretrained(str(directory))
            if path.kind == "weights":
                save_file(
                    _on_cpu(self._optimizer_tensors(run)), directory / "optimizer.safetensors"
                )

        checkpoints.write(root, path, info, write_files, overwrite=overwrite)
        stale = self._sampler_adapters.pop(str(checkpoints.folder(root, path)), None)
        if stale is not None:  # overwritten while it was loaded for sampling
            self._delete_adapter(stale)

    def _optimizer_tensors(self, run: TrainingRun) -> dict[str, torch.Tensor]:
        state = run.optimizer.state
        return {
            f"{_stable_name(name, run.adapter)}.{key}": value
            for name, parameter in run.named_parameters
            for key, value in state.get(parameter, {}).items()
        }

    def load_run(
        self, run_id: str, directory: Path, *, with_optimizer: bool, user_metadata: dict[str, str]
    ) -> TrainingRun:
        """Make a training run from a state checkpoint."""
        info = checkpoints.read_info(directory)
        shape = LoraShape(info.lora_rank, info.train_attn, info.train_mlp, info.train_unembed)
        run = self.create_run(
            run_id, shape, seed=0, user_metadata={**info.user_metadata, **user_metadata}
        )
        self.load_into(run, directory, with_optimizer=with_optimizer)
        return run

    def load_into(self, run: TrainingRun, directory: Path, *, with_optimizer: bool) -> None:
        """Replace a run's weights, and its optimizer's state, by a checkpoint's."""
        self._load_adapter(run.adapter, directory)
        run.optimizer.state.clear()
        run.optimizer.zero_grad(set_to_none=True)
        run.num_optimizer_steps = 0
        if not with_optimizer:
            return
        file = directory / "optimizer.safetensors"
        if not file.is_file():
            raise UserError(
                f"{directory.name} has no optimizer state; sampler weights hold none, load a "
                "weights/ path"
            )
        tensors = load_file(file)
        for name, parameter in run.named_parameters:
            prefix = f"{_stable_name(name, run.adapter)}."
            state = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            # AdamW keeps its step counter on the CPU, the moments beside the parameter.
            run.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device)
                for key, value in state.items()
            }
        run.num_optimizer_steps = checkpoints.read_info(directory).num_optimizer_steps

    def _load_adapter(self, adapter: str, directory: Path) -> None:
        weights = load_file(directory / "adapter_model.safetensors")
        result = set_peft_model_state_dict(self._peft, weights, adapter_name=adapter)
        if result.unexpected_keys:
            raise UserError(f"checkpoint {directory.name} does not fit base model {self.name}")

    def unload_run(self, run_id: str) -> None:
        run = self.runs.pop(run_id, None)
        if run is not None:
            self._delete_adapter(run.adapter)

    def _delete_adapter(self, adapter: str) -> None:
        if len(self._peft.peft_config) == 1:
            self._peft.unload()  # peft keeps at least one; the base model is bare again
            self._peft = None
        else:
            with warnings.catch_warnings():  # that the active adapter is deleted is what we want
                warnings.simplefilter("ignore", UserWarning)
                self._peft.delete_adapter(adapter)
        self._active = "?"

    # --- sampling -----------------------------------------------------------------------------

    def activate_sampler(self, directory: Path | None) -> None:
        """Make saved sampler weights (None: the base model) the ones that sample."""
        if directory is None:
            self._activate(None)
            return
        key = str(directory)
        if key not in self._sampler_adapters:
            info = checkpoints.read_info(directory)
            shape = LoraShape(info.lora_rank, info.train_attn, info.train_mlp, info.train_unembed)
            adapter = self._new_adapter_name()
            self._add_adapter(adapter, self._lora_config(shape))
            self._load_adapter(adapter, directory)
            self._sampler_adapters[key] = adapter
            while len(self._sampler_adapters) > MAX_SAMPLER_ADAPTERS:
                self._delete_adapter(self._sampler_adapters.popitem(last=False)[1])
        self._sampler_adapters.move_to_end(key)
        self._activate(self._sampler_adapters[key])


def _stable_name(parameter_name: str, adapter: str) -> str:
    """The parameter's name without the adapter's, which differs from process to process."""
    return parameter_name.replace(f".{adapter}.", ".")


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
