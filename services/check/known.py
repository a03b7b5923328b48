"""What a model's own files say of a text, computed here without any service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MAX_BYTES = 4 * 2**30  # of weights that are loaded for it


def known_logprobs(directory: Path, tokens: Sequence[int]) -> list[float] | str:
    """The log-probability of each token but the first, in nats, by transformers in float32; or why
    there are none."""
    num_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    if not 0 < num_bytes <= MAX_BYTES:
        return (
            f"its files hold {num_bytes / 2**30:.1f} GiB of safetensors, and up to "
            f"{MAX_BYTES / 2**30:.0f} GiB are loaded to compare"
        )
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        return f"its files cannot be loaded here ({type(error).__name__})"
    tokens_1T = torch.tensor([list(tokens)])
    with torch.inference_mode():
        logprobs_1TV = model(input_ids=tokens_1T).logits.float().log_softmax(-1)
    return logprobs_1TV[0, :-1].gather(-1, tokens_1T[0, 1:, None])[:, 0].tolist()
