"""The learning-rate formula against a table written by hand, and the capacity arithmetic."""

import json
from pathlib import Path

import pytest

from config_schema import load_and_validate_config
from conftest import REPO
from errors import ConfigError
from hyperparam_utils import (
    Schedule,
    capacity_sentence,
    known_lora_param_count,
    lora_param_count,
    recommended_lr,
    resolve_warmup_steps,
)

# step, missed gates, rate: demo_config.json, 3 rounds of 5 steps, 0.003 * 0.6**k, warm-up 1 step,
# times 0.5 * (1 + cos(pi * step / 1000)).
DEMO_RATES = [
    (0, 0, 0.003),
    (1, 0, 0.00299999259780279),
    (4, 0, 0.00299988156630572),
    (5, 1, 0.00179988896923349),
    (9, 1, 0.00179964027688523),
    (10, 2, 0.00107973354259750),
    (14, 2, 0.00107947778472619),
]


@pytest.mark.parametrize(("step", "missed", "rate"), DEMO_RATES)
def test_demo_learning_rates(step: int, missed: int, rate: float) -> None:
    config = load_and_validate_config(REPO / "demo_config.json").config
    assert config.steps_per_round is not None
    total = config.steps(config.steps_per_round).total
    assert (config.learning_rate, config.lr_decay, total) == (0.003, 0.6, 15)
    warmup = resolve_warmup_steps(config.warmup_steps, total)
    schedule = Schedule(0.003, config.min_lr, config.lr_decay, warmup, config.max_steps)
    assert warmup == 1
    assert schedule.lr(step, missed) == pytest.approx(rate, rel=1e-12)


def test_warm_up_runs_over_the_global_step_and_ends_at_the_full_rate() -> None:
    schedule = Schedule(1.0, 0.0, 0.5, warmup_steps=4, max_steps=10**9)
    rates = [schedule.lr(step, 0) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_cosine_halves_at_the_middle_and_ends_at_zero_and_min_lr_holds_it_up() -> None:
    free = Schedule(1.0, 0.0, 1.0, warmup_steps=0, max_steps=100)
    held = Schedule(1.0, 0.25, 1.0, warmup_steps=0, max_steps=100)
    assert free.lr(50, 0) == pytest.approx(0.5)
    assert free.lr(100, 0) == free.lr(1000, 0) == 0.0
    assert held.lr(100, 0) == 0.25


@pytest.mark.parametrize(
    ("explicit", "total", "resolved"), [(None, 15, 1), (None, 3, 0), (None, 5000, 100), (7, 30, 7)]
)
def test_warm_up_resolution(explicit: int | None, total: int, resolved: int) -> None:
    assert resolve_warmup_steps(explicit, total) == resolved


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        # 5e-5 * 10 * (2000 / hidden_size) ** P, with P = .781 for Llama and .0775 for Qwen
        ("meta-llama/Llama-3.1-8B-Instruct", 5e-4 * (2000 / 4096) ** 0.781),
        ("Qwen/Qwen3-8B", 5e-4 * (2000 / 4096) ** 0.0775),
    ],
)
def test_recommended_rate_is_the_cookbooks(model: str, rate: float) -> None:
    assert recommended_lr(model) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "nobody/nothing-1b", "demo_model"])
def test_no_rate_is_made_up(model: str) -> None:
    with pytest.raises(ConfigError, match=r"use_recommended_lr.*learning_rate"):
        recommended_lr(model)


def test_lora_parameters_of_a_model_are_those_that_peft_makes(llama_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    everything = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    made = sum(p.numel() for p in everything.parameters() if p.requires_grad)
    config = json.loads((llama_dir / "config.json").read_text())
    flags = {"train_attn": True, "train_mlp": True}
    assert lora_param_count(config, 4, **flags, train_unembed=False) == made
    with_unembed = lora_param_count(config, 4, **flags, train_unembed=True)
    assert with_unembed == made + 4 * (config["hidden_size"] + config["vocab_size"])


def test_our_arithmetic_agrees_with_the_cookbooks_table() -> None:
    # Llama-3.1-8B's published shape
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    flags = {"train_attn": True, "train_mlp": True, "train_unembed": True}
    ours = lora_param_count(shape, 16, **flags)
    assert ours == known_lora_param_count("meta-llama/Llama-3.1-8B-Instruct", 16, **flags)
    assert ours == 16 * (32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 4096 + 128256)


def test_unknown_shapes_have_no_count() -> None:
    flags = {"train_attn": True, "train_mlp": True, "train_unembed": True}
    assert lora_param_count({"hidden_size": 8}, 4, **flags) is None
    assert known_lora_param_count("nobody/nothing-1b", 4, **flags) is None


def test_capacity_is_told_in_one_sentence() -> None:
    assert capacity_sentence(100, 100, 8).endswith(
        "100 parameters >= 100 loss tokens (room for all of them)"
    )
    assert "99 parameters < 100 loss tokens (raise lora_rank" in capacity_sentence(99, 100, 8)
