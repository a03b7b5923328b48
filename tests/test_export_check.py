"""The self-check of exports: right ones pass, and each way in which one can be wrong is caught."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from safetensors.torch import load_file, save_file

import local_tinker
import run_records
from config_schema import TrainingConfig
from errors import ConfigError, ExportError, ServiceError
from exports.asked import BUILT_IN, asked_of, spread
from exports.check import Check
from exports.gathering import gather_reference, prompts_of
from exports.loaded_transformers import TransformersExport, load_adapter, open_transformers
from exports.reference import Reference
from exports.rounding import RoundedModel, q8_0, rounding_noise
from exports.rounding import merged as merge_all
from exports.self_check import Noise, check, check_answers, check_logprobs, difference, limits_for
from exports.source import Source, place_of
from ledger.records import Checkpoint
from ledger.store import RunStore
from loop.reports.progress import Progress
from model_dirs import make_model_dir
from rows.chat_formats import load_renderer
from sdk_client import ADAM, checkpoint_dir, using
from test_loop import Workspace

FAMILIES = {  # name -> family of tests/model_dirs, tied, renderer
    "llama": ("llama", False, "llama3"),
    "llama_tied": ("llama", True, "llama3"),
    "qwen3_tied": ("qwen3", True, "qwen3_instruct"),
    "moe": ("qwen3_moe", False, "qwen3_instruct"),
}
QUESTIONS = [
    {"question": f"Which word stands at place {i}?", "answer": "a few words", "topic": "ab"[i % 2]}
    for i in range(8)
]
EVALUATION = {"max_tokens": 8}


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a family, what the service says of it, and the noise of float32."""

    source: Source
    earlier: Path  # the adapter of the round before
    reference: Reference
    noise: Noise

    @property
    def base(self) -> Path:
        return self.source.base_dir


def datums(base: Path, renderer_name: str) -> list[tinker.Datum]:
    from tinker_cookbook.supervised.common import datum_from_model_input_weights

    renderer = load_renderer(renderer_name, str(base))
    made = []
    for one in QUESTIONS:
        said = [("user", one["question"]), ("assistant", one["answer"])]
        rendered = renderer.build_supervised_example(
            [{"role": role, "content": content} for role, content in said]
        )
        made.append(datum_from_model_input_weights(*rendered, max_length=200))
    return made


def recorded_run(run_dir: Path, base: Path, renderer: str, paths: Sequence[str]) -> RunStore:
    """A run directory that says of itself what an export looks up."""
    questions = run_dir.parent / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    sealed = run_dir.parent / "sealed.jsonl"
    sealed.write_text(json.dumps({"question": "What is sealed?", "answer": "this"}))
    store = RunStore.create(
        run_dir,
        {
            "config": {
                "base_model": base.parent.name,
                "eval_tasks": ["qa:questions.jsonl"],
                "evaluation": {**EVALUATION, "test_tasks": ["qa:sealed.jsonl"]},
            },
            "config_file": str(run_dir.parent / "config.json"),
            "resolved": {
                "renderer_name": renderer,
                "learning_rate": 0.01,
                "warmup_steps": 0,
                "service": "embedded",
            },
            "files": {
                "base_model": str(base),
                "eval_tasks.qa:questions.jsonl": str(questions),
                "evaluation.test_tasks.qa:sealed.jsonl": str(sealed),
            },
        },
    )
    store.append("run_started", run_id="run", config_hash="-", started_from=None)
    for number, path in enumerate(paths, start=1):
        state = path.replace("/sampler_weights/", "/weights/")
        store.record_checkpoint(
            Checkpoint(
                round=number,
                step=10 * number,
                state_path=state,
                sampler_path=path,
                base_model=base.parent.name,
                lora_rank=4,
                lora_alpha=32,
                train_attn=True,
                train_mlp=True,
                train_unembed=True,
                renderer=renderer,
                expires_at=None,
            )
        )
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Each family trained for a few steps by the service, which then tells its own figures."""
    root = tmp_path_factory.mktemp("exported")
    bases = {
        name: make_model_dir(root / name / "base", family, tied=tied, is_lively=True)
        for name, (family, tied, _) in FAMILIES.items()
    }
    made = {}
    with local_tinker.start((name, str(base)) for name, base in bases.items()) as service:
        for name, (_, _, renderer) in FAMILIES.items():
            data = datums(bases[name], renderer)
            folder = root / name / "saved"

            async def body(
                client: tinker.ServiceClient, name: str = name, data: Any = data
            ) -> list[str]:
                run = await client.create_lora_training_client(name, rank=4, seed=1)
                paths = []
                for number in (1, 2):
                    steps = []
                    for _ in range(12 if name == "llama" else 4):
                        steps += [run.forward_backward(data, "cross_entropy"), run.optim_step(ADAM)]
                    for step in steps:
                        await step
                    saved = await run.save_weights_for_sampler(f"round_{number:02d}")
                    paths.append(saved.path)
                return paths

            made[name] = using(service, folder, body)
    return {name: _gathered(root / name, bases[name], name, made[name]) for name in FAMILIES}


def _gathered(folder: Path, base: Path, name: str, paths: Sequence[str]) -> Trained:
    run_dir, renderer = folder / "run", FAMILIES[name][2]
    store = recorded_run(run_dir, base, renderer, paths)
    shutil.move(folder / "saved", run_dir / "checkpoints")
    earlier, adapter = (checkpoint_dir(run_dir / "checkpoints", path) for path in paths)
    checkpoint = store.checkpoint(2)
    source = Source(name, paths[1], adapter, base, name, {}, renderer, store, checkpoint)
    reference = gather_reference(source, os.environ, Progress(verbose=False))
    noise = rounding_noise(base, adapter, "float32", reference)
    assert noise is not None, "these models are small enough for float64"
    return Trained(source, earlier, reference, noise)


# --- exports, right ones and wrong ones -----------------------------------------------------------


def beside_weights(one: Trained, folder: Path) -> None:
    """The tokenizer with its chat template, and generation settings with the stop token."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(one.base / name, folder / name)
    settings = {"eos_token_id": list(one.reference.stop)}
    (folder / "generation_config.json").write_text(json.dumps(settings))


def adapter_export(one: Trained, folder: Path, adapter: Path | None = None) -> Path:
    folder.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile((adapter or one.source.adapter_dir) / file, folder / file)
    beside_weights(one, folder)
    return folder


def merged_export(
    one: Trained, folder: Path, dtype: torch.dtype = torch.float32, adapter: Path | None = None
) -> Path:
    model = load_adapter(one.base, adapter or one.source.adapter_dir, torch.float32)
    merged = merge_all(model)
    merged.config.tie_word_embeddings = False
    merged.to(dtype).save_pretrained(folder)
    beside_weights(one, folder)
    return folder


def failing(checks: Sequence[Check]) -> dict[str, str]:
    return {one.name: one.sentence for one in checks if not one.passed}


@pytest.mark.parametrize("name", FAMILIES)
def test_right_exports_pass(trained: dict[str, Trained], tmp_path: Path, name: str) -> None:
    one = trained[name]
    adapter = open_transformers(adapter_export(one, tmp_path / "peft"), one.base, "peft")
    merged = open_transformers(merged_export(one, tmp_path / "merged"), one.base, "merged")
    for loaded in (adapter, merged):
        checks = check(loaded, one.reference, one.noise)
        assert not failing(checks)
        by_name = {c.name: c.figures for c in checks}
        assert list(by_name) == ["tokens", "prompts", "log-probabilities", "greedy answers"]
        assert by_name["tokens"]["num"] == 50
        assert by_name["prompts"]["num"] == by_name["greedy answers"]["num"] == len(QUESTIONS)
        assert by_name["greedy answers"]["num_identical"] == len(QUESTIONS)
        assert by_name["log-probabilities"]["num_texts"] == 20
        mean = by_name["log-probabilities"]["mean"]
        effect = by_name["log-probabilities"]["adapter_mean"]
        assert isinstance(mean, float) and isinstance(effect, float)
        assert f"{mean:.2g} off the service's" in checks[2].sentence
        assert effect > 1000 * mean  # what is compared would show a lost adapter


def changed_tensors(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Any:
    """A change of an adapter's file, tensor by tensor; None leaves one out."""

    def apply(folder: Path, one: Trained) -> None:
        file = folder / "adapter_model.safetensors"
        kept = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        save_file({k: v.contiguous() for k, v in kept.items() if v is not None}, file)

    return apply


def changed_json(name: str, **changes: Any) -> Any:
    def apply(folder: Path, one: Trained | None) -> None:
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**held, **changes}))

    return apply


def permuted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """B of q and k, as llama.cpp wants it: halves of each head interleaved."""
    if not name.endswith(("q_proj.lora_B.weight", "k_proj.lora_B.weight")):
        return tensor
    return tensor.reshape(-1, 2, 4, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def one_layer_zeroed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if "layers.1" in name and "lora_B" in name else tensor


def one_matrix_zeroed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if "layers.0.self_attn.o_proj.lora_B" in name else tensor


def nan_in_one(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * math.nan if "layers.0.self_attn.v_proj.lora_B" in name else tensor


def without_head(folder: Path, one: Trained) -> None:
    """The head's part lost from the weights and from the config alike, so that nothing warns."""
    changed_tensors(lambda name, t: None if "lm_head" in name else t)(folder, one)
    modules = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    kept = [module for module in modules if module != "lm_head"]
    changed_json("adapter_config.json", target_modules=kept)(folder, one)


def other_round(folder: Path, one: Trained) -> None:
    name = "adapter_model.safetensors"
    shutil.copyfile(one.earlier / name, folder / name)


def one_more_token(folder: Path, one: Trained) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    token = {**held["added_tokens"][-1], "id": 9_999, "content": "few words", "special": False}
    held["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(held))


def template_of_another(folder: Path, one: Trained) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )


def template_that_refuses(folder: Path, one: Trained) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no \u00e9 for you') }}")


WRONG_ADAPTERS: Mapping[str, tuple[Any, str]] = {  # what is done to it -> the check that fails
    "B permuted": (changed_tensors(permuted), "log-probabilities"),
    "B scaled": (changed_tensors(lambda n, t: 1.1 * t if "lora_B" in n else t), "log-prob"),
    "a layer zeroed": (changed_tensors(one_layer_zeroed), "log-probabilities"),
    "a matrix zeroed": (changed_tensors(one_matrix_zeroed), "log-probabilities"),
    "no number": (changed_tensors(nan_in_one), "log-probabilities"),
    "all zeroed": (changed_tensors(lambda n, t: torch.zeros_like(t)), "greedy answers"),
    "head lost": (without_head, "log-probabilities"),
    "alpha doubled": (changed_json("adapter_config.json", lora_alpha=64), "log-probabilities"),
    "alpha rank-stabilised": (changed_json("adapter_config.json", use_rslora=True), "log-prob"),
    "another round": (other_round, "log-probabilities"),
    "template of another": (template_of_another, "prompts"),
    "template that refuses": (template_that_refuses, "prompts"),
    "no stop token": (changed_json("generation_config.json", eos_token_id=None), "greedy"),
    "another stop token": (changed_json("generation_config.json", eos_token_id=[0]), "greedy"),
    "penalty": (changed_json("generation_config.json", repetition_penalty=5.0), "greedy"),
}


@pytest.mark.parametrize("what", WRONG_ADAPTERS)
def test_a_wrong_adapter_fails(trained: dict[str, Trained], tmp_path: Path, what: str) -> None:
    one = trained["llama"]
    apply, name = WRONG_ADAPTERS[what]
    folder = adapter_export(one, tmp_path / "export")
    apply(folder, one)
    loaded = open_transformers(folder, one.base, "peft")
    failed = failing(check(loaded, one.reference))  # by the widest limits that there are
    assert any(found.startswith(name) for found in failed), failed
    if name.startswith(("prompts", "greedy")) and what != "all zeroed":
        assert len(failed) == 1  # the weights are right, and no other check says they are not


def without_a_layer(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    return None if "layers.1.mlp.up_proj" in name else tensor


def half_of_one(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :2] if "layers.1.mlp.up_proj.lora_B" in name else tensor


UNLOADABLE: Mapping[str, tuple[Any, str]] = {  # what is done to it -> what the error says
    "tensors missing": (changed_tensors(without_a_layer), "issing adapter keys"),
    "head's tensors missing": (
        changed_tensors(lambda n, t: None if "lm_head" in n else t),
        "lm_head",
    ),
    "a layer not named": (
        changed_json("adapter_config.json", target_modules=["q_proj", "v_proj"]),
        "does not name their layers",
    ),
    "another shape": (changed_tensors(half_of_one), "size mismatch"),
    "one more token": (one_more_token, "'few words'"),
    "no generation settings": (
        lambda folder, one: (folder / "generation_config.json").unlink(),
        "generation_config",
    ),
    "no tokenizer": (lambda folder, one: (folder / "tokenizer.json").unlink(), "export"),
    "damaged": (
        lambda folder, one: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 9),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("what", UNLOADABLE)
def test_what_brings_a_warning_is_an_error(
    trained: dict[str, Trained], tmp_path: Path, what: str
) -> None:
    one = trained["llama"]
    folder = adapter_export(one, tmp_path / "export")
    apply, said = UNLOADABLE[what]
    apply(folder, one)
    with pytest.raises(ExportError) as caught:
        open_transformers(folder, one.base, "peft")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_on_another_base_fails(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["llama"]
    other = make_model_dir(tmp_path / "other", "llama", seed=1, is_lively=True)
    loaded = open_transformers(adapter_export(one, tmp_path / "export"), other, "peft")
    assert "log-probabilities" in failing(check(loaded, one.reference, one.noise))


# --- merged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3_tied"])
def test_a_plain_merge_of_a_tied_model_fails(
    trained: dict[str, Trained], tmp_path: Path, name: str, is_said: bool
) -> None:
    """It changes the embedding as well; tied or not in what is saved, with PEFT's option or not."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    one = trained[name]
    base = AutoModelForCausalLM.from_pretrained(one.base, dtype=torch.float32)
    config = PeftConfig.from_pretrained(str(one.source.adapter_dir))
    config.ensure_weight_tying = is_said  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path / "export"
    with warnings.catch_warnings(action="ignore"):
        model: Any = PeftModel.from_pretrained(base, str(one.source.adapter_dir), config=config)
        model.merge_and_unload().save_pretrained(folder)
    beside_weights(one, folder)
    try:
        failed = failing(check(open_transformers(folder, one.base, "merged"), one.reference))
    except ExportError as error:
        failed = {"log-probabilities": str(error)}
    assert "log-probabilities" in failed


def test_an_untied_model_that_says_it_is_tied_is_an_error(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    one = trained["llama_tied"]
    folder = merged_export(one, tmp_path / "export")
    changed_json("config.json", tie_word_embeddings=True)(folder, one)
    with pytest.raises(ExportError, match="NOT tie"):
        open_transformers(folder, one.base, "merged")


def test_merged_weights_that_lack_a_tensor_or_have_one_too_many(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    one = trained["llama"]
    folder = merged_export(one, tmp_path / "export")
    file = folder / "model.safetensors"
    held = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in held.items() if k != lost}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"MISSING.*newly init|missing keys"):
        open_transformers(folder, one.base, "merged")
    save_file({**held, "model.extra": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"UNEXPECTED|unexpected keys"):
        open_transformers(folder, one.base, "merged")
    save_file({**held, "lm_head.weight": torch.ones(2, 32)}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"size|mismatch"):
        open_transformers(folder, one.base, "merged")
    save_file(held, file, {"format": "pt"})
    shutil.copyfile(one.source.adapter_dir / "adapter_config.json", folder / "adapter_config.json")
    with pytest.raises(ExportError, match="once more"):
        open_transformers(folder, one.base, "merged")


# --- rounded --------------------------------------------------------------------------------------


class AsLlamaCpp(TransformersExport):
    """An export that computes as llama.cpp does."""

    def __init__(self, made: TransformersExport, rounding: Any) -> None:
        super().__init__(made.model, made.tokenizer)
        object.__setattr__(self, "rounded", RoundedModel(made.model, rounding))

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        return self.rounded.logprobs(tokens)  # pyright: ignore[reportAttributeAccessIssue]

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        with self.rounded.multiplying():  # pyright: ignore[reportAttributeAccessIssue]
            return super().greedy(prompt, max_tokens, stop)


@pytest.mark.parametrize("rounding", ["bfloat16", "gguf-f16", "gguf-q8_0"])
def test_a_rounded_export_passes_and_a_wrong_one_does_not(
    trained: dict[str, Trained], tmp_path: Path, rounding: Any
) -> None:
    one = trained["llama"]
    noise = rounding_noise(one.base, one.source.adapter_dir, rounding, one.reference)
    assert noise is not None and noise.mean > one.noise.mean

    def rounded(folder: Path, adapter: Path | None = None) -> TransformersExport:
        is_gguf = rounding.startswith("gguf")
        dtype = torch.float32 if is_gguf else getattr(torch, rounding)
        made = open_transformers(merged_export(one, folder, dtype, adapter), one.base, "merged")
        return AsLlamaCpp(made, rounding) if is_gguf else made

    right = check(rounded(tmp_path / "right"), one.reference, noise)
    assert not failing(right)
    figures = right[3].figures
    assert figures["num_wrong"] == 0
    assert figures["num"] == figures["num_identical"] + figures["num_at_ties"]  # pyright: ignore
    for number, what in enumerate(("B permuted", "a layer zeroed", "head lost")):
        wrong = adapter_export(one, tmp_path / f"adapter_{number}")
        WRONG_ADAPTERS[what][0](wrong, one)
        made = rounded(tmp_path / f"wrong_{number}", wrong)
        assert not check_logprobs(made, one.reference, limits_for(noise)).passed, what


def test_q8_0_rounds_to_127_steps_of_a_block() -> None:
    weights = torch.tensor([[0.0] * 32, [1.27, 0.014, -1.27, *[0.004] * 29]])
    rounded = q8_0(weights)
    assert rounded[0].tolist() == [0.0] * 32
    assert rounded[1, :4].tolist() == pytest.approx([1.27, 0.01, -1.27, 0.0], abs=1e-3)


# --- figures that are no figures ------------------------------------------------------------------


@dataclass
class Replayed:
    """An export that says what the service says, but for what is changed."""

    reference: Reference
    logprob: Callable[[list[float]], list[float]] = list
    answer: Callable[[list[int]], list[int]] = list

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        of = {one.tokens: one.logprobs for one in self.reference.scored}
        return self.logprob(list(of.get(tuple(tokens), (-1.0,))))

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        (found,) = {one.answer for one in self.reference.answers if one.prompt == tuple(prompt)}
        return self.answer(list(found))

    def tokens_of(self, text: str) -> list[int]:
        return list(dict(self.reference.texts)[text])

    def prompt_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        asked = tuple((one["role"], one["content"]) for one in messages)
        return next(list(o.prompt) for o in self.reference.answers if o.messages == asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: [*found[:-1], math.nan], "nan by the export"),
        (lambda found: [-math.inf, *found[1:]], "-inf by the export"),
        (lambda found: found[:-1], "the export gives"),
        (lambda found: [*found, -1.0], "the export gives"),
        (lambda found: [], "the export gives 0 log-probabilities"),
        (lambda found: [one - 1e-3 for one in found], "0.001 off the service's on average"),
        (lambda found: [*found[:-1], found[-1] - 1], "1 at most"),
        (lambda found: [one * 1e30 for one in found], "e+3"),
    ],
)
def test_figures_that_are_off_or_none_fail(
    trained: dict[str, Trained], change: Callable[[list[float]], list[float]], said: str
) -> None:
    reference = trained["llama"].reference
    failed = failing(check(Replayed(reference, logprob=change), reference))
    assert said in failed["log-probabilities"]
    assert not failing(check(Replayed(reference), reference))


def test_what_the_service_says_must_be_numbers_too(trained: dict[str, Trained]) -> None:
    reference = trained["llama"].reference
    first, *rest = reference.scored
    broken = replace(
        reference, scored=(first._replace(logprobs=(math.nan, *first.logprobs[1:])), *rest)
    )
    assert "nan by the service" in failing(check(Replayed(reference), broken))["log-probabilities"]
    empty = replace(reference, scored=(), answers=(), texts=(), untouched=())
    assert len(failing(check(Replayed(empty), empty))) == 4


def test_an_answer_at_a_tie_is_told_from_another_answer(trained: dict[str, Trained]) -> None:
    reference = trained["llama"].reference
    gaps = {"value": 0.0}

    def other_end(found: list[int]) -> list[int]:
        return [*found[:-1], found[-1] + 1]

    class Tied(Replayed):
        def logprobs(self, tokens: Sequence[int]) -> list[float]:
            ends = {one.answer[-1] for one in self.reference.answers}
            return [-1.0 if tokens[-1] in ends else -1.0 + gaps["value"]]

    noise = Noise(1e-3, 1e-2, "a test")
    limit = limits_for(noise).tie
    loaded = Tied(reference, answer=other_end)
    gaps["value"] = limit / 2
    answers = check_answers(loaded, reference, limits_for(noise))
    num = len(reference.answers)
    assert answers.passed and answers.figures["num_at_ties"] == num
    assert f"0 of {num} greedy answers" in answers.sentence
    assert answers.figures["largest_tie"] == pytest.approx(limit / 2)
    for gap in (2 * limit, math.nan):
        gaps["value"] = gap
        answers = check_answers(loaded, reference, limits_for(noise))
        assert not answers.passed and answers.figures["num_wrong"] == num
    # A wide gap is rounding's where the rounded checkpoint has it too, and else it is not.
    gaps["value"] = 2 * limit
    answers = check_answers(loaded, reference, limits_for(noise._replace(rounded=loaded.logprobs)))
    assert answers.passed and answers.figures["num_as_rounded"] == num
    other = limits_for(noise._replace(rounded=lambda tokens: [-1.0]))
    answers = check_answers(loaded, reference, other)
    assert not answers.passed and "prefers the latter by 0" in answers.sentence
    longer = Replayed(reference, answer=lambda found: [*found, 5])
    assert "goes on after" in failing(check(longer, reference))["greedy answers"]
    shorter = Replayed(reference, answer=lambda found: found[:-1])
    assert "ends after" in failing(check(shorter, reference))["greedy answers"]
    # A text ends the turns of this format, and no token: the export cannot know where.
    by_text = replace(reference, stop=(), stop_texts=("\n\nUser:",))
    assert not failing(check(longer, by_text))


def test_differences_are_of_equal_lengths() -> None:
    apart = difference([[-1.0, -2.0]], [[-1.5, -2.0]])
    assert apart == (2, 0.25, 0.5)
    assert math.isnan(difference([], []).mean)
    with pytest.raises(ValueError):
        difference([[1.0]], [[1.0, 2.0]])


# --- what is asked --------------------------------------------------------------------------------


def test_the_run_s_own_questions_are_asked_and_never_the_sealed_ones(
    trained: dict[str, Trained],
) -> None:
    one = trained["llama"]
    reference = one.reference
    asked = [dict(answer.messages)["user"] for answer in reference.answers]
    assert asked == [question["question"] for question in QUESTIONS]
    assert not any("sealed" in text for text, _ in reference.texts)
    assert (reference.max_tokens, len(reference.stop), reference.stop_texts) == (8, 1, ())
    assert reference.origin == "questions of the run's evaluation"
    assert len(reference.untouched) == len(reference.scored) == 20
    assert reference.answers[0].answer[-1] == reference.stop[0]  # trained to say it and end
    assert any("\u65e5" in text for text, _ in reference.texts)


def test_where_the_question_file_is_gone_rows_or_built_in_ones_are_asked(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    source = trained["llama"].source
    assert source.store is not None
    moved = shutil.copytree(source.store.run_dir, tmp_path / "moved" / "run")
    held = json.loads((moved / "config.resolved.json").read_text())
    held["files"]["eval_tasks.qa:questions.jsonl"] = str(tmp_path / "gone.jsonl")
    (moved / "config.resolved.json").write_text(json.dumps(held))
    found = asked_of(replace(source, store=RunStore.open(moved)))
    assert found.questions == BUILT_IN and found.origin.startswith("built-in")
    assert "gone.jsonl" in found.notes[0] and "rows cannot be read" in found.notes[1]
    unknown = asked_of(replace(source, store=None, checkpoint=None))
    assert unknown.questions == BUILT_IN and "not known here" in unknown.origin


def test_what_the_evals_hold_is_asked_where_the_file_changed(
    llama_dir: Path, tmp_path: Path
) -> None:
    """Of a run whose file is gone, or says something else by now, and whose texts are hostile."""
    shape = run_records.Shape(num_questions=3, text="</script>\u2028\u202e <|eot_id|> e\u0301")
    store = run_records.finished(tmp_path / "run", shape)
    source = Source("r", None, tmp_path, llama_dir, "m", {}, "llama3", store, store.checkpoint(1))
    gone = asked_of(source)
    assert [one.id for one in gone.questions] == [f"{run_records.TASK}/{n}" for n in range(3)]
    assert not any(run_records.SECRET in turn.content for q in gone.questions for turn in q.turns)
    assert "3 of 3 questions are asked as the evals hold them" in gone.notes[-1]

    recorded = [one.turns[-1].content for one in gone.questions]
    rows = [
        {"id": "0", "question": recorded[0], "answer": "x", "system": "Be short."},
        {"id": "1", "question": "Another by now", "answer": "x"},
    ]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = json.loads((tmp_path / "run/config.resolved.json").read_text())
    held["files"][f"eval_tasks.{run_records.TASK}"] = str(tmp_path / "dev.jsonl")
    held["config"]["evaluation"]["system_prompt"] = "Be kind."
    (tmp_path / "run/config.resolved.json").write_text(json.dumps(held))
    changed = asked_of(replace(source, store=RunStore.open(tmp_path / "run")))
    assert [one.turns[-1].content for one in changed.questions] == recorded
    assert [one.turns[0].content for one in changed.questions] == [
        *("Be kind.\n\nBe short.", "Be kind.", "Be kind."),
    ]
    assert "2 of 3" in changed.notes[-1]
    renderer = load_renderer("llama3", str(llama_dir))
    # Each holds a token of the chat format, which no served template could keep apart from one.
    prompts = prompts_of(changed, renderer, llama_dir)
    assert prompts.origin.startswith("built-in questions, since none of the questions of the run")
    assert {one.id.partition("/")[0] for one, _ in prompts.questions} == {"built-in"}
    with pytest.raises(ExportError, match="None of 3 questions") as refused:
        prompts_of(replace(changed, max_tokens=512), renderer, llama_dir)
    assert "evaluation.max_tokens" in str(refused.value)


def test_a_run_whose_questions_are_unknown_is_asked_its_rows(workspace: Workspace) -> None:
    """Of a run that was killed before its baseline, and whose question file is gone; questions that
    leave no room for an answer are left out."""
    rows = [{"instruction": f"Say {n} " + "so " * n * n, "output": str(n)} for n in range(30)]
    workspace.write_rows("train.jsonl", rows)
    model_dir = Path(workspace.settings["base_model"])
    changes = {"eval_tasks": ["qa:gone.jsonl"]}
    config = TrainingConfig.model_validate({**workspace.settings, **changes})
    resolved = {
        "config": config.model_dump(mode="json"),
        "config_file": str(workspace.folder / "config.json"),
        "resolved": {"renderer_name": "llama3", "learning_rate": 0.1, "warmup_steps": 0,
                     "service": "embedded"},
        "files": {"base_model": str(model_dir)},
    }  # fmt: skip
    store = RunStore.create(workspace.folder / "run", resolved)
    source = Source("r", None, model_dir, model_dir, "m", {}, "llama3", store, None)
    asked = asked_of(source)
    assert asked.origin.startswith("rows of the run's training") and len(asked.questions) == 30
    assert asked.questions[1].turns[0].content.startswith("Say 1 so")
    prompts = prompts_of(asked, load_renderer("llama3", str(model_dir)), model_dir)
    assert len(prompts.conversations) == 20 and 3 < len(prompts.questions) < 30
    assert "left out" in prompts.notes[-1]
    longest = max(map(len, prompts.conversations))
    assert longest < 512  # the model's context


def test_groups_take_turns_and_items_keep_their_order() -> None:
    items = ["a1", "a2", "a3", "b1", "c1", "c2"]
    assert spread(items, lambda one: one[0], 4) == ["a1", "a2", "b1", "c1"]
    assert spread(items, lambda one: one[0], 9) == items
    assert spread([], lambda one: one, 3) == []


def test_a_compatible_service_is_asked_with_the_key(
    trained: dict[str, Trained], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it computes in is not known, so bfloat16's noise is granted; the key is said nowhere."""
    one, key = trained["llama"], "tml-" + "k" * 20
    assert one.source.store is not None
    held = shutil.copytree(one.source.store.run_dir, tmp_path / "run")
    said = json.loads((held / "config.resolved.json").read_text())
    with local_tinker.start([("llama", str(one.base))]) as service:
        service.open_folder(held / "checkpoints", key)
        said["resolved"] |= {"service": "compatible", "base_url": service.base_url}
        (held / "config.resolved.json").write_text(json.dumps(said))
        source = replace(one.source, store=RunStore.open(held))
        env = {"TINKER_API_KEY": key}
        found = gather_reference(source, env, Progress(verbose=False))
        with pytest.raises(ServiceError, match="refuses") as caught:
            gather_reference(
                replace(source, sampler_path="tinker://gone:train:0/sampler_weights/none"),
                env,
                Progress(verbose=False),
            )
    assert key not in str(caught.value) + capsys.readouterr().err
    assert replace(found, service="embedded", precision="float32") == one.reference
    assert (found.service, found.precision) == ("compatible", "bfloat16")
    noise = rounding_noise(one.base, source.adapter_dir, "float32", found)
    assert noise is not None and "the service's bfloat16" in noise.how
    assert noise.mean > 100 * one.noise.mean
    with pytest.raises(ConfigError, match="Nothing answers"):
        gather_reference(source, env, Progress(verbose=False))


def test_a_checkpoint_is_asked_for_where_its_run_was(trained: dict[str, Trained]) -> None:
    source = trained["llama"].source
    assert place_of(source, {}).kind == "embedded"
    bare = replace(source, store=None, checkpoint=None, base_name="some/hub-model")
    assert place_of(bare, {"TINKER_API_KEY": "tml-x"}).kind == "tinker"
