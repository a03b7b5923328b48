"""What answers an evaluation is the checkpoint at hand: no cache, no other run, no file near."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinker

import local_tinker
from conftest import pairs, thorough_only
from evaluation.inspect_model import inspect_model
from evaluation.inspect_runs import InspectSetting, run_inspect
from evaluation.inspect_scores import InspectScores
from evaluation.inspect_tasks import InspectTask, TaskOptions, load_inspect_task
from evaluation.surroundings import set_aside
from sdk_client import new_run, train, using
from simple_eval import SamplingSettings
from test_loop import Workspace
from trainer_with_eval import main

TASKS = """
import json
import os
from pathlib import Path
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    CachePolicy, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
)
from inspect_ai.scorer import Score, choice, includes, mean, scorer
from inspect_ai.solver import generate, multiple_choice, solver
from inspect_ai.util import sandbox


def asked():
    return [Sample(id=i, input=f"Say what comes after {i}.", target="e") for i in range(4)]


@solver
def by_hand():
    async def solve(state, generate):
        state.output = await get_model().generate(state.messages, cache=True)
        return state

    return solve


def of(solver, **options):
    return Task(dataset=asked(), solver=solver, scorer=includes(), **options)


@task
def plain():
    return of(generate())


@task
def cached():
    return of(generate(cache=True))


@task
def for_good():
    return of(generate(cache=CachePolicy(expiry=None, per_epoch=False)))


@task
def by_config():
    return of(generate(), config=GenerateConfig(cache=True))


@task
def by_solver():
    return of(by_hand())


@solver
def counting():
    async def solve(state, generate):
        state.metadata["counted"] = await get_model().count_tokens("one two three")
        return await generate(state)

    return solve


@task
def counted():
    return of(counting())


@task
def instructed():
    return of(generate(), config=GenerateConfig(system_message="Be brief."))


@scorer(metrics=[mean()])
def sees(names, goal):
    async def score(state, target):
        said = [(await sandbox().exec(["sh", "-c", "env"])).stdout, str(dict(os.environ))]
        return Score(value=goal, explanation="\\n".join(said))

    return score


@solver
def nothing():
    async def solve(state, generate):
        return state

    return solve


@task
def boxed(goal: int = 1):
    return Task(dataset=asked(), solver=nothing(), scorer=sees([], goal), sandbox="local")


@task
def filed(rows_file: str):
    rows = json.loads(Path(rows_file).read_text())
    samples = []
    for i, row in enumerate(rows):
        messages = [ChatMessageSystem(content=row["system"]), ChatMessageUser(content="Say 1."),
                    ChatMessageAssistant(content=row["shot"]), ChatMessageUser(content="Say 2.")]
        samples.append(Sample(id=i, input=messages, target="A", choices=row["choices"],
                              metadata=row["metadata"], files=row["files"], setup=row["setup"]))
    return Task(dataset=samples, solver=multiple_choice(), scorer=choice())
"""
SAMPLED = SamplingSettings(temperature=0.0, max_tokens=6, seed=5)


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(file: Path, name: str, **args: Any) -> InspectTask:
    return load_inspect_task(f"tasks.py@{name}", f"{file}@{name}", TaskOptions(args=args))


def evaluations(
    service: local_tinker.Service,
    model_dir: Path,
    folder: Path,
    tasks: list[InspectTask],
    say: Callable[[str], None] = lambda text: None,
) -> list[list[InspectScores]]:
    """The tasks on the untouched model and on a trained one, each under the name `round_01`."""
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    renderer = get_renderer("llama3", get_tokenizer(str(model_dir)))

    async def evaluate(client: tinker.ServiceClient) -> list[list[InspectScores]]:
        run = await new_run(client)
        await train(run, 8)
        trained = await run.save_weights_and_get_sampling_client()
        untouched = await client.create_sampling_client(base_model="llama")
        found = []
        for number, sampler in enumerate((untouched, trained)):
            setting = InspectSetting(
                inspect_model(sampler, renderer, SAMPLED.seed, "round_01", say),
                None,
                SAMPLED,
                log_dir=folder / f"logs_{number}",
                tags=[],
                metadata={"run": "r1", "round": 1},
            )
            found.append(list(await run_inspect(tasks, setting)))
        return found

    return using(service, folder / "checkpoints", evaluate)


def answers(scores: InspectScores) -> list[str | None]:
    assert isinstance(scores, InspectScores), scores
    return [sample.answer for sample in scores.samples]


CACHING = ("cached", "for_good", "by_config", "by_solver")


def test_a_task_that_caches_is_answered_by_the_weights_at_hand(
    service: local_tinker.Service,
    llama_dir: Path,
    tasks_file: Path,
    tmp_path: Path,
    own_cache: Path,
) -> None:
    tasks = [load(tasks_file, name) for name in ("plain", *CACHING)]
    said: list[str] = []
    for folder in ("first", "again"):  # the second time whatever was kept is there for both
        done = evaluations(service, llama_dir, tmp_path / folder, tasks, said.append)
        (plain_before, *before), (plain_after, *after) = done
        assert answers(plain_before) != answers(plain_after)
        assert [answers(one) for one in before] == [answers(plain_before)] * len(CACHING)
        assert [answers(one) for one in after] == [answers(plain_after)] * len(CACHING)
    assert not own_cache.exists()
    assert len(set(said)) == 1 and "cache of answers is off" in said[0]


def test_tokens_are_counted_by_the_models_own_tokenizer_and_system_messages_said_once(
    service: local_tinker.Service, llama_dir: Path, tasks_file: Path, tmp_path: Path
) -> None:
    from inspect_ai.log import read_eval_log
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    tasks = [load(tasks_file, name) for name in ("plain", "counted", "instructed")]
    said: list[str] = []
    (plain, counted, instructed), _ = evaluations(service, llama_dir, tmp_path, tasks, said.append)
    assert not said  # of a cache that nobody asked for
    assert answers(counted) == answers(plain)
    log = read_eval_log(str(counted.log))
    tokenizer = get_tokenizer(str(llama_dir))
    expected = len(tokenizer.encode("one two three", add_special_tokens=False))
    assert {sample.metadata["counted"] for sample in log.samples or []} == {expected}
    message = len(tokenizer.encode("Be brief.", add_special_tokens=False))
    header = 6  # at most, of a system turn in this format
    for before, after in zip(plain.samples, instructed.samples, strict=True):
        added = after.num_prompt_tokens - before.num_prompt_tokens
        assert message < added <= 2 * message + header and added < 2 * (message + 3)


ROW = {
    "system": "Be brief.",
    "shot": "Yes.",
    "choices": ["a", "b"],
    "metadata": {"points": 1, "tags": ["x"]},
    "files": {"a.txt": "a"},
    "setup": "true",
}


@pytest.mark.parametrize("changed", [*ROW, "nothing"])
def test_all_that_a_task_asks_is_in_its_hash(
    tasks_file: Path, tmp_path: Path, changed: str
) -> None:
    import json

    others = {
        "system": "Be long.",
        "shot": "No.",
        "choices": ["b", "a"],
        "metadata": {"points": 0, "tags": ["x"]},
        "files": {"a.txt": "b"},
        "setup": "false",
    }
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([ROW, ROW]))
    before = load(tasks_file, "filed", rows_file=str(file))
    changes = {} if changed == "nothing" else {changed: others[changed]}
    file.write_text(json.dumps([ROW, {**ROW, **changes}]))
    after = load(tasks_file, "filed", rows_file=str(file))
    assert (before.sha256 == after.sha256) == (changed == "nothing")


KEY = "tml-planted-2f6c1b9e7d"


@pytest.mark.parametrize(("way", "goal"), pairs(["file", "exported", "both", "file above"], [1, 0]))
def test_a_key_reaches_nothing_that_a_run_writes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, way: str, goal: int
) -> None:
    if way == "file above":
        below = workspace.folder / "below"
        below.mkdir()
        monkeypatch.chdir(below)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(workspace.folder / "home"))
    if way != "exported":
        (workspace.folder / ".env").write_text(
            f"TINKER_API_KEY={KEY}\nEVALOPS_API_KEY={KEY}\nOPENAI_API_KEY={KEY}\n"
            "INSPECT_EVAL_MODEL=mockllm/model\n"
        )
    if way in ("exported", "both"):
        monkeypatch.setenv("TINKER_API_KEY", KEY)
        monkeypatch.setenv("EVALOPS_API_KEY", KEY)
    (workspace.folder / "tasks.py").write_text(TASKS)
    code = workspace.run(
        "run",
        "--local",
        "--gate",
        eval_tasks=["tasks.py@boxed"],
        evaluation={"max_tokens": 4, "task_args": {"tasks.py@boxed": {"goal": goal}}},
        max_rounds=1,
        steps_per_round=1,
    )
    assert code == (0 if goal else 3)
    result = workspace.store("run").result(1)
    assert result is not None and result.score == goal
    files = [path for path in workspace.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".eval" for path in files)
    for path in files:
        if path.name != ".env":
            assert KEY not in text_of(path), path


def text_of(path: Path) -> str:
    """All that a file holds, also one that is packed."""
    import zipfile

    import zstandard

    content = path.read_bytes()
    if path.suffix == ".eval":
        with zipfile.ZipFile(path) as packed:
            for one in packed.infolist():
                with path.open("rb") as file:
                    file.seek(one.header_offset + 26)
                    lengths = file.read(4)
                    skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(
                        lengths[2:], "little"
                    )
                    file.seek(skip, os.SEEK_CUR)
                    raw = file.read(one.compress_size)
                if one.compress_type == 93:
                    raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
                elif one.compress_type == zipfile.ZIP_DEFLATED:
                    raw = packed.read(one.filename)
                content += raw
    return content.decode("utf-8", "replace")


def test_what_inspect_would_take_from_around_is_set_aside_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_EVAL_MODEL", "mockllm/model")
    monkeypatch.setenv("INSPECT_SANDBOX_MAX_READ_FILE_SIZE", "1000000")
    (tmp_path / ".env").write_text("INSPECT_LOG_DIR=elsewhere\nOPENAI_API_KEY=x\n")
    lines = set_aside()
    assert "INSPECT_EVAL_MODEL" not in os.environ
    assert "INSPECT_SANDBOX_MAX_READ_FILE_SIZE" in os.environ
    assert any("INSPECT_EVAL_MODEL" in line for line in lines)
    assert any(str(tmp_path / ".env") in line for line in lines)


def test_a_key_that_a_task_reads_from_a_file_is_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"TINKER_API_KEY={KEY}\nMY_SETTING=1\n")
    text = "from dotenv import load_dotenv\nload_dotenv('.env')\n" + TASKS
    (tmp_path / "tasks.py").write_text(text)
    monkeypatch.setenv("MY_SETTING", "0")
    load(tmp_path / "tasks.py", "plain")
    assert "TINKER_API_KEY" not in os.environ


def test_code_that_no_statement_names_is_held_against_the_record(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    lib = workspace.folder / "lib"
    lib.mkdir()
    (lib / "words.py").write_text("NUMBER = 4\n")
    head = "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib'))\n"
    head += "import importlib\nNUMBER = importlib.import_module('words').NUMBER\n"
    (workspace.folder / "tasks.py").write_text(head + TASKS)
    changes: dict[str, Any] = {
        "eval_tasks": ["tasks.py@plain"],
        "evaluation": {"max_tokens": 4},
        "max_rounds": 1,
        "steps_per_round": 1,
    }
    assert workspace.run("run", **changes) == 0
    assert workspace.store("run").manifest().code.keys() == {"tasks.py", "lib/words.py"}
    more = ["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]
    assert main(more) == 0
    (lib / "words.py").write_text("NUMBER = 5\n")
    capsys.readouterr()
    assert main([*more[:-1], "max_rounds=3"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "lib/words.py" in said and "it was not run" in said


def test_weights_of_one_path_that_were_trained_anew_are_asked_anew(workspace: Workspace) -> None:
    """A run that goes back saves its next round under the path that the round had before."""
    from inspect_ai.log import read_eval_log

    (workspace.folder / "tasks.py").write_text(TASKS)
    changes: dict[str, Any] = {
        "eval_tasks": ["tasks.py@plain", "qa:questions.jsonl"],
        "evaluation": {"max_tokens": 4},
        "max_rounds": 2,
        "steps_per_round": 1,
    }
    assert workspace.run("run", **changes) == 0
    store = workspace.store("run")
    before = store.checkpoint(2)
    assert before is not None
    marked = store.weights_of(before.sampler_path)
    assert main(["--resume", f"{workspace.folder / 'run'}@round_01"]) == 0
    store = workspace.store("run")
    after = store.checkpoint(2)
    assert after is not None
    assert store.weights_of(after.sampler_path) != marked
    logs = sorted((workspace.folder / "run" / "inspect_logs").glob("*.eval"))
    weights = [(read_eval_log(str(log), header_only=True).eval.metadata or {}) for log in logs]
    of_round_2 = [one["weights"] for one in weights if one["round"] == 2]
    assert len(of_round_2) == len(set(of_round_2)) == 2


HUB_TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, hf_dataset
from inspect_ai.scorer import includes


@task
def of_rows():
    rows = hf_dataset("json", data_files="rows.jsonl", split="train",
                      sample_fields=FieldSpec(input="q", target="a"))
    return Task(dataset=rows, scorer=includes())
"""


def test_rows_are_those_of_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspect keeps rows by the words of the call that loaded them."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / "datasets")

    def asked(folder: Path, question: str) -> tuple[str, ...]:
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text(f'{{"q": "{question}", "a": "x"}}\n')
        (folder / "tasks.py").write_text(HUB_TASK)
        return load(folder / "tasks.py", "of_rows").questions

    assert asked(tmp_path / "one", "What is it?") == ("What is it?",)
    assert asked(tmp_path / "one", "What was it then?") == ("What was it then?",)
    assert asked(tmp_path / "two", "Which one?") == ("Which one?",)


@pytest.mark.parametrize(
    "order", [("learns", "does_not"), pytest.param(("does_not", "learns"), marks=thorough_only)]
)
def test_two_runs_of_one_config_each_get_their_own_score(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace.folder / "cache"))
    (workspace.folder / "tasks.py").write_text(TASKS)
    names = ["tasks.py@plain", *(f"tasks.py@{name}" for name in CACHING)]
    found: dict[str, list[list[str | None]]] = {}
    for run_dir in order:
        learning = (
            {"steps_per_round": 6}
            if run_dir == "learns"
            else {"learning_rate": 1e-6, "steps_per_round": 1}
        )
        assert (
            workspace.run(
                run_dir,
                eval_tasks=names,
                evaluation={"max_tokens": 6},
                max_rounds=1,
                **learning,
            )
            == 0
        )
        result = workspace.store(run_dir).result(1)
        assert result is not None
        plain, *cached = ([one.answer for one in task.samples] for task in result.tasks)
        assert cached == [plain] * len(CACHING)
        found[run_dir] = [plain]
    assert found["learns"] != found["does_not"]


LEAVING = """

@scorer(metrics=[mean()])
def leaving():
    async def score(state, target):
        raise SystemExit("I have had enough.")

    return score


@task
def left():
    return Task(dataset=asked(), solver=nothing(), scorer=leaving())
"""


def test_a_scorer_that_ends_the_program_is_told_of(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """Python lets a SystemExit pass by all that awaits the code that raised it."""
    (workspace.folder / "tasks.py").write_text(TASKS + LEAVING)
    assert workspace.run("run", eval_tasks=["tasks.py@left"], max_rounds=1) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: The code of a task ended the program (SystemExit: I have had enough.)" in said
    assert workspace.events("run")[-1]["type"] == "failed"


VARYING = """
import random, uuid
import numpy

def some(shuffle):
    samples = asked() + [Sample(id=f"m{i}", input=f"More {i}.", target="e") for i in range(40)]
    shuffle(samples)
    return Task(dataset=samples, solver=generate(), scorer=includes())

@task
def seeded():
    return some(random.Random(1).shuffle)

@task
def shuffled():
    return some(random.shuffle)

@task
def shuffled_by_numpy():
    return some(numpy.random.shuffle)

@task
def shuffled_by_inspect():
    made = plain()
    made.dataset = __import__("inspect_ai.dataset").dataset.MemoryDataset(asked() * 1)
    for i in range(4, 40):
        made.dataset.samples.append(Sample(id=i, input=f"More {i}.", target="e"))
    made.dataset.shuffle()
    return made

@task
def named_anew():
    return some(lambda samples: [setattr(s, "id", uuid.uuid4().hex) for s in samples])
"""
ANEW = ("shuffled", "shuffled_by_numpy", "shuffled_by_inspect", "named_anew")


def test_a_task_that_is_another_each_time_is_told_of_before_the_first_step(
    workspace: Workspace, capsys: pytest.CaptureFixture
) -> None:
    """A run of it could not be resumed, and would say so only then."""
    (workspace.folder / "tasks.py").write_text(TASKS + VARYING)
    names = [f"tasks.py@{name}" for name in ("plain", "seeded", *ANEW)]
    assert workspace.run("run", "--dry-run", eval_tasks=names) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "loaded twice" in line]
    assert [line.split(": ")[1] for line in warned] == [f"tasks.py@{name}" for name in ANEW]
    assert all("Give each shuffle in the task a seed" in line for line in warned)
