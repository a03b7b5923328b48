"""What `--init` knows of a use case beyond its settings, which are those in `examples/`.

Tasks are named by the last part of their name, such as `ifeval`. What a public benchmark measures
stands in the catalogue; here stands what our own tasks measure, and why each task is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class UseCase:
    """One kind of model that somebody wants, with a row of its data and one of its questions."""

    title: str
    data: str  # what its training rows are
    row: str  # one of them, as JSON
    question: str  # one of its questions, as JSON
    questions: str  # what its own questions have to cover
    why: Mapping[str, str]  # the task's last name -> why it is asked here


# What is not in the catalogue of public benchmarks, or is asked otherwise than it says there.
MEASURES = {
    "nll": "the loss of held-out rows, a token and a byte",
    "questions": "your own questions, each with the answers that you accept",
    "test_questions": "more of your own questions, opened once, at the end",
    "instruction_following": "133 instructions on form that a program can check",
    "refusal": "40 harmful requests refused, 40 harmless look-alikes answered; read by phrases",
    "calibration": "stated probabilities of true and false statements (1 minus the Brier score)",
    "mgsm": "word problems of primary school in other languages",
    "aime2024": "30 competition problems with whole numbers as answers",
    "agent_threat_bench_memory_poison": "whether text found in memory can redirect an agent",
    "xstest": "whether harmless requests that only look harmful are answered",
    "strong_reject": "whether harmful requests are refused",
    "truthfulqa": "choosing the true answer over common errors",
}
_LOSS = "shows overfitting first: it rises while the loss in training still falls"
_TEST = "the one figure that no choice of yours has leaned on"
_FORM = "training on narrow answers is what makes models forget how to follow a form"
_REFUSAL = "fine-tuning, also on harmless rows, is known to loosen refusals"

USE_CASES: Mapping[str, UseCase] = {
    "chat": UseCase(
        title="a general assistant",
        data="conversations, or questions with the answers that you would want",
        row='{"messages": [{"role": "user", "content": "How do I return a parcel?"}, '
        '{"role": "assistant", "content": "Within 30 days, at any counter."}], "topic": "returns"}',
        question='{"question": "Within how many days can a parcel be returned?", "answer": "30", '
        '"topic": "returns", "grader": "numeric"}',
        questions="made-up facts, questions that should be declined, long ones, other languages",
        why={
            "nll": _LOSS,
            "questions": "decides: what users of this assistant ask",
            "test_questions": _TEST,
            "instruction_following": _FORM,
            "refusal": _REFUSAL,
            "ifeval": "the public measure of the same, for comparison with other models",
            "mmlu_0_shot": "knowledge that should not be lost on the way",
            "gsm8k": "reasoning in steps, which short answers unteach",
        },
    ),
    "code": UseCase(
        title="a code assistant",
        data="tasks with the code that solves them, in the style of your repository",
        row='{"instruction": "Write a function that reverses a list in place.", '
        '"output": "```python\\ndef reverse(items):\\n    items.reverse()\\n```", '
        '"topic": "lists"}',
        question='{"question": "Which method sorts a list in place?", "answer": ["sort", '
        '".sort()"], "topic": "lists"}',
        questions="faults of your repository, names that do not exist, harmful code asked for",
        why={
            "nll": _LOSS,
            "questions": "decides: what this repository's people ask",
            "test_questions": _TEST,
            "instruction_following": _FORM,
            "refusal": _REFUSAL,
            "humaneval": "functions from docstrings: the guard against losing code as such",
            "mbpp": "short programs: a second look that humaneval's 164 cannot give",
            "apps": "harder programs, where gains on easy ones may end",
        },
    ),
    "math": UseCase(
        title="a model that works out mathematics",
        data="problems with their steps and a result that can be checked",
        row='{"instruction": "A pen costs 3 and a book 12. What do 2 of each cost?", '
        '"output": "2 * 3 + 2 * 12 = 6 + 24 = 30. ANSWER: 30", "topic": "prices"}',
        question='{"question": "A pen costs 4 and a book 9. What do 3 of each cost?", '
        '"answer": "39", "topic": "prices", "grader": "numeric"}',
        questions="units, negative and large numbers, problems that have no solution",
        why={
            "nll": _LOSS,
            "questions": "decides: problems of the kind that you want solved",
            "test_questions": _TEST,
            "refusal": _REFUSAL,
            "gsm8k": "the guard: school problems must not get worse",
            "math": "whether gains reach harder problems",
            "mgsm": "whether gains hold in other languages",
            "aime2024": "sealed: problems that no choice of yours has leaned on; 30 show only "
            "large differences",
        },
    ),
    "tools": UseCase(
        title="an assistant that calls tools",
        data="conversations with the tools on offer, the calls and what the tools answered",
        row='{"tools": [{"type": "function", "function": {"name": "stock", "description": '
        '"Parts in stock.", "parameters": {"type": "object", "properties": {"part": {"type": '
        '"string"}}}}}], "messages": [{"role": "user", "content": "Are bolts in stock?"}, '
        '{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "1", '
        '"function": {"name": "stock", "arguments": "{\\"part\\": \\"bolt\\"}"}}]}, '
        '{"role": "tool", "tool_call_id": "1", "content": "41"}, '
        '{"role": "assistant", "content": "Yes, 41."}]}',
        question='{"question": "The tool stock says 41 bolts. How many bolts can I have?", '
        '"answer": "41", "topic": "stock", "grader": "numeric"}',
        questions="tools that fail or are missing, calls that nobody asked for, text in a tool's "
        "answer that gives orders",
        why={
            "nll": _LOSS,
            "questions": "decides: journeys of this assistant's users, from question to answer",
            "test_questions": _TEST,
            "instruction_following": _FORM,
            "refusal": _REFUSAL,
            "bfcl": "the guard: the right call with the right arguments, and none where none fits",
            "agent_threat_bench_memory_poison": "safety: what a tool returns is data, no order",
            "assistant_bench_closed_book_zero_shot": "what is left without the tools",
            "gaia": "whole tasks with tools; dear, so at the end and few",
        },
    ),
    "safety": UseCase(
        title="refusals that are right, and doubts that are true",
        data="requests to be declined with a good refusal, and look-alikes with a good answer",
        row='{"instruction": "How do I kill a Python process?", '
        '"output": "With `kill PID`, or `taskkill /PID` on Windows.", "topic": "look-alikes"}',
        question='{"question": "What is the boiling point of water in degrees Celsius?", '
        '"answer": "100", "topic": "harmless", "grader": "numeric"}',
        questions="harmless questions that must still be answered, of your own domain",
        why={
            "nll": _LOSS,
            "refusal": "decides: refusing what harms and answering what only looks so",
            "calibration": "a model that learns to refuse may learn to doubt everything",
            "questions": "the guard of usefulness: a model that refuses all is safe and of no use",
            "instruction_following": _FORM,
            "xstest": "the guard against refusing what is harmless",
            "strong_reject": "the guard against answering what is harmful",
            "truthfulqa": "saying what is true over what is often said",
        },
    ),
}
