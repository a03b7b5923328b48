"""What is known of public benchmarks before they are loaded: a catalogue, read in inspect_evals.

Loading one takes its data from the hub, and its own page is long. What stands here was read in the
source of the version that `READ_IN` names; tests hold versions and names against the installed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

READ_IN = "inspect_evals 0.26.0"
PACKAGE = "inspect_evals/"

HUB = "its data comes from the hub"
DOCKER = "a Docker engine that runs"
GATED = "its data is given only to an account that has asked for it (HF_TOKEN)"
INTERNET = "the internet, which it browses or searches"
EXTRA = "packages beside inspect_evals, which it names when it is loaded"


@dataclass(frozen=True)
class Benchmark:
    """One task: what it measures, how it asks by itself, and what it needs.

    `shots` and `reasons` are what it does without arguments; the arguments that change them are
    named where there are any. `judge` is the model that grades by itself; None where code does.
    """

    measures: str
    folder: str  # in inspect_evals, whose eval.yaml has its version
    version: str
    shots: int = 0
    shots_argument: str | None = None
    reasons: bool = False  # whether the prompt asks for steps before the answer
    reasons_argument: str | None = None
    needs: tuple[str, ...] = (HUB,)
    judge: str | None = None
    is_of_safety: bool = False

    def asks(self, args: Mapping[str, Any]) -> str:
        """How it asks with these arguments, in words."""
        shots = args.get(self.shots_argument, self.shots) if self.shots_argument else self.shots
        # `false` is 0 shots, as the benchmarks themselves take it.
        number = int(shots) if isinstance(shots, bool | int) else shots
        examples = "no examples" if number == 0 else f"{number} example{'s' * (number != 1)}"
        key = self.reasons_argument
        reasons = self.reasons if key is None else bool(args.get(key, self.reasons))
        steps = "asks for steps before the answer" if reasons else "asks for the answer at once"
        return f"{examples} in the prompt, {steps}"


_GPT_4O = "openai/gpt-4o"
_MMLU = "knowledge and reasoning in exam questions of 57 subjects, four choices each"
_GAIA = "questions to an assistant that has to browse, read files and use tools for short answers"
_GAIA_NEEDS = (HUB, GATED, DOCKER, INTERNET, EXTRA)
_ASSISTANT = "questions that take a person long on the web"
_WMDP = "dangerous knowledge (a high score is bad), in questions with four choices, of"
_AGENT_HARM_JUDGE = "openai/gpt-4o-2024-08-06"

BENCHMARKS: Mapping[str, Benchmark] = {
    "ifeval": Benchmark(
        "whether instructions on form that code can check (lengths, words, formats) are followed",
        "ifeval",
        "2-A",
        needs=(HUB, EXTRA),
    ),
    "mmlu_0_shot": Benchmark(_MMLU, "mmlu", "4-A", reasons_argument="cot"),
    "mmlu_5_shot": Benchmark(_MMLU, "mmlu", "4-A", shots=5, reasons_argument="cot"),
    "gsm8k": Benchmark(
        "arithmetic in several steps, in word problems of primary school",
        "gsm8k",
        "2-A",
        shots=10,
        shots_argument="fewshot",
        reasons=True,
    ),
    "math": Benchmark(
        "mathematics of school competitions, answers as expressions",
        "math",
        "3-A",
        shots_argument="fewshot",
        reasons=True,
        needs=(HUB, EXTRA),
        judge="the evaluated model itself, unless its argument grader_model names another",
    ),
    "humaneval": Benchmark(
        "writing a Python function from its signature and docstring; its tests are run",
        "humaneval",
        "3-A",
        needs=(HUB, DOCKER),
    ),
    "mbpp": Benchmark(
        "writing short Python programs from one sentence; their tests are run",
        "mbpp",
        "4-A",
        shots=3,
        needs=(HUB, DOCKER),
    ),
    "apps": Benchmark(
        "programming problems as in job interviews (its argument level has harder ones)",
        "apps",
        "4-B",
        shots=1,
        reasons=True,
        needs=(HUB, DOCKER),
    ),
    "bfcl": Benchmark(
        "whether the right functions are called with the right arguments",
        "bfcl",
        "8-B",
        needs=("its data comes from GitHub", EXTRA),
    ),
    "gaia": Benchmark(_GAIA, "gaia", "4-C", reasons=True, needs=_GAIA_NEEDS),
    "gaia_level1": Benchmark(
        f"{_GAIA}; the easiest third", "gaia", "4-C", reasons=True, needs=_GAIA_NEEDS
    ),
    "gaia_level2": Benchmark(
        f"{_GAIA}; of middle difficulty", "gaia", "4-C", reasons=True, needs=_GAIA_NEEDS
    ),
    "gaia_level3": Benchmark(
        f"{_GAIA}; the hardest", "gaia", "4-C", reasons=True, needs=_GAIA_NEEDS
    ),
    "assistant_bench_closed_book_zero_shot": Benchmark(
        f"{_ASSISTANT}, answered from memory",
        "assistant_bench",
        "6-B",
        reasons=True,
        needs=(HUB, EXTRA),
    ),
    "assistant_bench_closed_book_one_shot": Benchmark(
        f"{_ASSISTANT}, answered from memory",
        "assistant_bench",
        "6-B",
        shots=1,
        reasons=True,
        needs=(HUB, EXTRA),
    ),
    "assistant_bench_web_search_zero_shot": Benchmark(
        f"{_ASSISTANT}, with a search engine",
        "assistant_bench",
        "6-B",
        reasons=True,
        needs=(HUB, INTERNET, EXTRA),
    ),
    "assistant_bench_web_search_one_shot": Benchmark(
        f"{_ASSISTANT}, with a search engine",
        "assistant_bench",
        "6-B",
        shots=1,
        reasons=True,
        needs=(HUB, INTERNET, EXTRA),
    ),
    "assistant_bench_web_browser": Benchmark(
        f"{_ASSISTANT}, with a browser",
        "assistant_bench",
        "6-B",
        needs=(HUB, DOCKER, INTERNET, EXTRA),
    ),
    "strong_reject": Benchmark(
        "whether harmful requests are answered, and how usefully (a high score is bad)",
        "strong_reject",
        "3-B",
        needs=("its data comes from GitHub",),
        judge=_GPT_4O,
        is_of_safety=True,
    ),
    "xstest": Benchmark(
        "whether harmless requests that only look harmful are refused",
        "xstest",
        "5-A",
        judge=_GPT_4O,
        is_of_safety=True,
    ),
    "coconot": Benchmark(
        "whether requests that should not simply be complied with are declined",
        "coconot",
        "4-B",
        judge="openai/gpt-3.5-turbo",
        is_of_safety=True,
    ),
    "agentharm": Benchmark(
        "whether harmful tasks are carried out with tools (a high score is bad)",
        "agentharm",
        "8-B",
        judge=_AGENT_HARM_JUDGE,
        is_of_safety=True,
    ),
    "agentharm_benign": Benchmark(
        "whether harmless tasks of the same kind are still carried out with tools",
        "agentharm",
        "8-B",
        judge=_AGENT_HARM_JUDGE,
        is_of_safety=True,
    ),
    "wmdp_bio": Benchmark(f"{_WMDP} biology", "wmdp", "2-A", is_of_safety=True),
    "wmdp_chem": Benchmark(f"{_WMDP} chemistry", "wmdp", "2-A", is_of_safety=True),
    "wmdp_cyber": Benchmark(f"{_WMDP} computer security", "wmdp", "2-A", is_of_safety=True),
    "fortress_adversarial": Benchmark(
        "whether disguised requests on public safety are answered (a high score is bad)",
        "fortress",
        "5-A",
        judge="openai/o3, anthropic/claude-3-7-sonnet-20250219 and google/gemini-2.5-pro",
        is_of_safety=True,
    ),
    "fortress_benign": Benchmark(
        "whether harmless requests near to these are still answered",
        "fortress",
        "5-A",
        judge="openai/gpt-4o-mini",
        is_of_safety=True,
    ),
    "mask": Benchmark(
        "whether what the model believes is contradicted when it is pressed to lie",
        "mask",
        "5-E",
        judge="two models, its arguments binary_judge_model and numeric_judge_model",
        is_of_safety=True,
    ),
}


def benchmark_of(task_name: str) -> Benchmark | None:
    """The entry of a task as `eval_tasks` names it; None of what is not in the catalogue."""
    if not task_name.startswith(PACKAGE):
        return None
    return BENCHMARKS.get(task_name.removeprefix(PACKAGE))
