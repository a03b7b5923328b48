"""A run directory from somebody else is data: it is read or refused, and nothing in it acts.

A real finished run and one that was killed are changed in some 300 seeded ways, and each command
that takes a run directory is given them. Every one ends with an exit code of its own and at most
one paragraph; nothing outside the directory is read or written, no code is run, and nothing that a
terminal would act on is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import evalops_client
import local_tinker
import report
import trainer_with_eval
from conftest import IS_THOROUGH
from fake_evalops import OK_P, fake_evalops
from ledger.store import RunStore
from test_loop import Workspace, row, start, wait_for

NUM_MUTATIONS = 300
CANARY = "canary.json"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202e"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    None, True, -1, 0, 7, 10**30, -(2**70), 1e308, -1e308, float("nan"), float("inf"), 0.5, "",
    "x", "5", ESCAPES, f"a\n{ESCAPES}", "\ud800", "x" * 5000, "/etc/passwd", "../../../etc/passwd",
    f"../{CANARY}", f"evals/../../{CANARY}", "tinker://a/../../x", "tinker://", "tinker://\x00/a/b",
    "tinker://" + "a" * 300 + "/weights/b", [], {}, [1], ["x"], {"x": 1}, [None], deep(60),
    "2026-99-99T00:00:00Z", "stop_passed", "rollback", "continue", "embedded",
]  # fmt: skip


# --- the runs that are changed --------------------------------------------------------------------


class Runs:
    """A finished run and a killed one on a service that stays up."""

    def __init__(self, folder: Path, service: local_tinker.Service, model_dir: Path) -> None:
        self.folder = folder
        self.key = service.open_folder(folder / "elsewhere")
        self.workspace = Workspace(folder, model_dir)
        self.workspace.write_rows("val.jsonl", [row(i) for i in range(300, 303)])
        self.workspace.settings |= {
            "base_url": service.base_url,
            "learning_rate": 0.001,
            "val_file": "val.jsonl",
            "checkpoint_every_steps": 2,
            "evaluation": {"max_tokens": 4, "held_out_every_steps": 2},
        }
        os.environ["TINKER_API_KEY"] = self.key
        assert self.workspace.run("finished") == 0
        os.environ["TINKER_API_KEY"] = self.key
        process = start(self.workspace, "killed")
        wait_for(process, folder / "killed/ledger.jsonl", "selected", 2)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        del os.environ["TINKER_API_KEY"]
        self.make_halted()
        (folder / CANARY).write_bytes((folder / "finished/evals/round_01.json").read_bytes())

    def make_halted(self) -> None:
        """The finished run as it was while its last evaluation went on."""
        halted = self.folder / "halted"
        shutil.copytree(self.folder / "finished", halted)
        lines = (halted / "ledger.jsonl").read_text().splitlines()
        ends = [
            i
            for i, e in enumerate(map(json.loads, lines))
            if e["type"] == "measured" and e["round"] == 2
        ]
        (halted / "ledger.jsonl").write_text("\n".join(lines[: ends[0]]) + "\n")
        evaluated = json.loads((halted / "evals/round_02.json").read_text())
        subject = RunStore.open(halted).weights_of(evaluated["checkpoint"])
        records: list[dict[str, Any]] = [{"subject": subject}]
        for sample in evaluated["tasks"][0]["samples"][:3]:
            tokens = {"num_prompt_tokens": 9, "num_sampled_tokens": 1}
            records.append({"key": f"{sample['id']} 1", **tokens, "fields": sample})
        (halted / "evals/round_02.json").unlink()
        journal = halted / "evals/round_02.partial.jsonl"
        journal.write_text("".join(json.dumps(record) + "\n" for record in records))

    def copy(self, name: str) -> Path:
        target = self.folder / "hostile"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder / name, target)
        return target


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, service: local_tinker.Service, llama_dir: Path
) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), service, llama_dir)


# --- what is watched ------------------------------------------------------------------------------


class Watch:
    """An audit hook: what is written outside of some folders, and whether the canary is opened."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.is_on = False
        self.offences: list[str] = []
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event not in CHANGES or isinstance(arguments[0], int):
            return
        folder = ""
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder
            folder = os.readlink(f"/proc/self/fd/{arguments[1]}")
        path = os.path.realpath(os.path.join(folder, os.fsdecode(arguments[0])))
        is_read = event == "open" and not (arguments[2] or 0) & WRITING
        if path.endswith(CANARY) or not (is_read or path.startswith(self.allowed)):
            self.offences.append(f"{event} {path}")


CHANGES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod",
           "os.symlink", "os.link")  # fmt: skip


@pytest.fixture(scope="module")
def watch(runs: Runs) -> Watch:
    made = Watch()
    inside = [runs.folder / name for name in ("hostile", "elsewhere", "evaluation")]
    made.allowed = (*map(os.path.realpath, inside), "/dev/null", "/dev/shm")
    return made


Command = Callable[[str, Path], tuple[int, str]]


def _page_beside(config: Path) -> str:
    return str(config.parent / "elsewhere/page.html")


COMMANDS: dict[str, Callable[[Path, Path], int]] = {
    "resume": lambda run, _: trainer_with_eval.main(["--resume", str(run)]),
    "dry run": lambda run, _: trainer_with_eval.main(["--resume", str(run), "--dry-run"]),
    "list": lambda run, _: trainer_with_eval.main(["--list", str(run)]),
    "list json": lambda run, _: trainer_with_eval.main(["--list", str(run), "--json"]),
    "evaluate": lambda run, config: trainer_with_eval.main(
        ["--evaluate", str(run), "--config", str(config), "--dry-run"]
    ),
    "sync": lambda run, _: evalops_client.main(["sync", str(run)]),
    "page": lambda run, config: report.main([str(run), "--out", _page_beside(config)]),
    "compare": lambda run, config: report.main(
        [str(run), str(config.parent / "finished"), "--out", _page_beside(config)]
    ),
}


@pytest.fixture
def command(
    runs: Runs, watch: Watch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Command]:
    """Run a command on a directory, and judge how it ended."""
    monkeypatch.setenv("EVALOPS_API_KEY", "a-key-of-evalops")

    def run(name: str, run_dir: Path) -> tuple[int, str]:
        monkeypatch.setenv("TINKER_API_KEY", runs.key)
        watch.offences.clear()
        watch.is_on = True
        code = COMMANDS[name](run_dir, runs.folder / "config.json")
        watch.is_on = False
        output = capsys.readouterr()
        said = f"{name}: exit {code}\n{output.out}\n{output.err}"
        assert not watch.offences, said
        assert code in (0, 1, 2), said
        assert "Traceback" not in said and "Unexpected" not in said, said
        assert all(c.isprintable() or c == "\n" for c in output.out + output.err), said
        if code == 2:
            last = output.err.splitlines()[-1]
            is_error = last.startswith("error: ")
            if name.endswith("json"):
                is_error = json.loads(last)["type"] == "error"
            assert is_error, said
        return code, said

    yield run
    watch.is_on = False


# --- seeded changes -------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys or positions."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, one in inner:
        yield value, key
        if isinstance(one, dict | list):
            yield from places(one)


def change_value(rng: Random, value: Any) -> None:
    container, key = rng.choice(list(places(value)))
    action = rng.choice(["replace", "replace", "replace", "remove", "add"])
    if action == "replace":
        container[key] = rng.choice(VALUES)
    elif action == "remove":
        del container[key]
    elif isinstance(container, dict):
        container[rng.choice(["x", ESCAPES, "../x"])] = rng.choice(VALUES)
    else:
        container.append(rng.choice([*VALUES, container[key]]))


def change_json(rng: Random, file: Path) -> None:
    value = json.loads(file.read_text())
    change_value(rng, value)
    file.write_text(json.dumps(value))


def change_line(rng: Random, file: Path) -> None:
    """Change one line of a file of JSON lines, or the order of all; a ledger stays numbered."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    at = rng.randrange(len(lines))
    action = rng.choice(["value", "value", "value", "value", "leave out", "repeat", "move", "type"])
    if action == "value":
        change_value(rng, lines[at])
    elif action == "leave out":
        del lines[at]
    elif action == "repeat":
        lines.insert(rng.randrange(len(lines)), dict(lines[at]))
    elif action == "move":
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    else:
        lines[at]["type"] = rng.choice(lines).get("type")
    if action != "value":
        for number, line in enumerate(lines):
            if "seq" in line:
                line["seq"] = number
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_file(rng: Random, run_dir: Path, file: Path) -> None:
    """Put something else in the place of a file."""
    action = rng.choice(["cut", "empty", "noise", "link", "folder", "pipe", "gone", "no object"])
    content = file.read_bytes()
    if action == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif action == "empty":
        file.write_bytes(b"")
    elif action == "noise":
        file.write_bytes(rng.randbytes(200))
    elif action == "no object":
        file.write_text("[" * rng.choice([1, 5000]) + "]")
    else:
        file.unlink()
        if action == "link":
            file.symlink_to(run_dir.parent / CANARY)
        elif action == "folder":
            file.mkdir()
        elif action == "pipe":
            os.mkfifo(file)


def change(rng: Random, run_dir: Path) -> str:
    """Change one of the files that commands read; says which."""
    names = [
        "ledger.jsonl", "ledger.jsonl", "ledger.jsonl", "config.resolved.json",
        "data_manifest.json", "evals/round_00.json", "evals/round_01.json",
        "selections/round_01.json", "selections/round_02.json", "selections/losses_02.json",
        "evals/round_02.partial.jsonl", "evals/round_02.json",
    ]  # fmt: skip
    file = run_dir / rng.choice([name for name in names if (run_dir / name).exists()])
    if rng.random() < 0.15:
        change_file(rng, run_dir, file)
    elif file.suffix == ".jsonl":
        change_line(rng, file)
    else:
        change_json(rng, file)
    return str(file)


@pytest.mark.parametrize("part", range(10 if IS_THOROUGH else 3))
def test_changed_run_directories_are_read_or_refused(
    runs: Runs, command: Command, part: int
) -> None:
    rng = Random(part)
    names = list(COMMANDS)
    for number in range(NUM_MUTATIONS // 10):
        run_dir = runs.copy(rng.choice(["finished", "killed", "halted"]))
        file = change(rng, run_dir)
        name = names[number % len(names)]
        code, said = command(name, run_dir)
        is_setting = file.endswith("config.resolved.json")  # then the setting is named
        assert code == 0 or is_setting or str(runs.folder) in said, f"{file} is not named: {said}"


# --- chosen changes -------------------------------------------------------------------------------


def change_events(run_dir: Path, kind: str, **fields: Any) -> None:
    """Change fields of all events of one kind."""
    ledger = run_dir / "ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    changed = [{**event, **fields} if event["type"] == kind else event for event in events]
    ledger.write_text("".join(json.dumps(event) + "\n" for event in changed))


def change_object(file: Path, *groups: str, **fields: Any) -> None:
    """Change fields of a group in a JSON file."""
    whole = json.loads(file.read_text())
    group = whole
    for name in groups:
        group = group[name]
    group.update(fields)
    file.write_text(json.dumps(whole))


def test_unchanged_they_are_read(runs: Runs, command: Command) -> None:
    for name in COMMANDS:
        code, said = command(name, runs.copy("finished"))
        assert code == 0, said
    for name in ("killed", "halted"):
        code, said = command("resume", runs.copy(name))
        assert code == 0 and "after 2 of 2 rounds" in said


@pytest.mark.parametrize(
    "file", [f"../{CANARY}", f"evals/../../{CANARY}", "/etc/passwd", "evals/", "", ".lock", None, 7]
)
def test_an_event_names_no_file_outside(runs: Runs, command: Command, file: Any) -> None:
    for kind in ("evaluated", "selected"):
        run_dir = runs.copy("finished")
        change_events(run_dir, kind, file=file)
        for name in ("resume", "list", "evaluate"):
            code, said = command(name, run_dir)
            assert code == 2 and f"{run_dir}/ledger.jsonl line " in said and "file: " in said


@pytest.mark.parametrize(
    "path", ["tinker://a/../../x", "tinker:///etc", "/etc/passwd", f"tinker://a/{ESCAPES}", "", 7]
)
def test_weights_are_named_by_plain_paths(runs: Runs, command: Command, path: Any) -> None:
    for field in ("state_path", "sampler_path"):
        run_dir = runs.copy("killed")
        change_events(run_dir, "checkpoint", **{field: path})
        for name in ("resume", "dry run", "list", "list json", "evaluate"):
            code, said = command(name, run_dir)
            assert code == 2 and "ledger.jsonl line " in said and field in said


@pytest.mark.parametrize(
    "name",
    [".lock", "ledger.jsonl", "config.resolved.json", "evals", "selections", "inspect_logs",
     "evalops", "checkpoints", "eval_report.md.tmp",
     "report.html"],
)  # fmt: skip
def test_a_link_leads_nowhere(runs: Runs, command: Command, name: str, tmp_path: Path) -> None:
    run_dir, precious = runs.copy("killed"), tmp_path / "precious"
    link = run_dir / name
    is_folder = link.is_dir() or "." not in name
    if link.exists():
        link.rename(precious)
    elif is_folder:
        precious.mkdir()
    else:
        precious.write_text("precious")
    link.symlink_to(precious)
    before = {
        path: path.read_bytes() for path in [precious, *precious.rglob("*")] if path.is_file()
    }
    for one in COMMANDS:
        code, said = command(one, run_dir)
        assert code == 2 and f"{link}: " in said, said
    after = {path: path.read_bytes() for path in [precious, *precious.rglob("*")] if path.is_file()}
    assert before == after


def test_no_string_is_a_command_to_the_terminal(runs: Runs, command: Command) -> None:
    """`command` looks at what is printed; here it is made sure that the strings are printed."""
    run_dir = runs.copy("finished")
    change_events(run_dir, "decided", sentence=f"sentence {ESCAPES} of {ESCAPES}")
    code, said = command("resume", run_dir)
    assert code == 0 and "sentence ?]0;owned??[2J?31m" in said
    change_object(run_dir / "config.resolved.json", "config", base_url=f"http://{ESCAPES}")
    change_object(run_dir / "config.resolved.json", "resolved", service="compatible")
    assert "http://" in command("list", run_dir)[1]
    change_object(
        run_dir / "data_manifest.json", "files", train_file={"path": 1, "sha256": ESCAPES}
    )
    assert command("resume", run_dir)[0] == 2
    run_dir = runs.copy("killed")
    change_object(run_dir / "config.resolved.json", "config", train_file=f"no{ESCAPES}such")
    for name in ("resume", "dry run"):
        code, said = command(name, run_dir)
        assert code == 2 and "train_file" in said


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("decided", {"best_round": 3}, "cannot be the best"),
        ("checkpoint", {"step": 1}, "weights of 1 steps after"),
        ("selected", {"round": 2}, "without its"),
        ("evaluated", {"round": 10**9}, "out of order"),
        ("resumed", {"type": "run_started", "run_id": "x"}, "begins with run_started"),
        ("step", {"lr": 1e300}, "lr: "),
        ("step", {"time": "2026-02-30T00:00:00Z"}, "time: "),
        ("run_started", {"run_id": "../x"}, "run_id: "),
    ],
)
def test_what_no_run_writes_is_refused(
    runs: Runs, command: Command, kind: str, fields: dict[str, Any], why: str
) -> None:
    run_dir = runs.copy("killed")
    if kind == "resumed":
        assert command("resume", run_dir)[0] == 0
    change_events(run_dir, kind, **fields)
    code, said = command("resume", run_dir)
    assert code == 2 and why in said, said


def test_results_and_selections_of_other_rows_are_refused(runs: Runs, command: Command) -> None:
    for name, change_it, why in (
        ("evals/round_01.json", lambda d: d["tasks"][0]["samples"].pop(), "its answers come to"),
        ("evals/round_00.json", lambda d: d["tasks"].clear(), "no task enters the score"),
        ("selections/round_02.json", lambda d: d["picks"].pop(), "other rows or counts"),
        ("selections/round_02.json", lambda d: d.update(train_cursor=10**12), "other rows"),
        (
            "selections/round_02.json",
            lambda d: d["picks"][0].update(example_id="of nobody"),
            "of nobody, which may not be trained on",
        ),
    ):
        run_dir = runs.copy("killed")
        content = json.loads((run_dir / name).read_text())
        change_it(content)
        (run_dir / name).write_text(json.dumps(content))
        code, said = command("resume", run_dir)
        assert code == 2 and f"{run_dir / name}: " in said and why in said, said


def test_a_journal_of_something_else_is_refused(runs: Runs, command: Command) -> None:
    run_dir = runs.copy("halted")
    journal = run_dir / "evals/round_02.partial.jsonl"
    content = journal.read_text()
    for old, new in (('"score": 0.0', '"score": 5'), ('"expected": [', '"expected": [7, ')):
        assert old in content
        journal.write_text(content.replace(old, new))
        code, said = command("resume", run_dir)
        assert code == 2 and f"{journal}: " in said, said


def test_a_planted_outbox_is_not_sent(runs: Runs, command: Command) -> None:
    run_dir = runs.copy("finished")
    with fake_evalops() as server:
        server.play(OK_P)
        config = {"evalops_enabled": True, "evalops_test_suite_id": "s"}
        config["evalops_api_url"] = server.url
        change_object(run_dir / "config.resolved.json", "config", **config)
        (run_dir / "evalops").mkdir()
        for number, planted in enumerate(("[]", "[" * 5000, '{"key": 1e999}', ESCAPES)):
            (run_dir / f"evalops/round_0{number}-x.json").write_text(planted)
        (run_dir / "evalops/round_09-x.json").symlink_to(runs.folder / CANARY)
        code, said = command("sync", run_dir)
        assert (code, server.requests) == (1, [])
        assert said.count("Nothing of it is sent") == 5


# --- code -----------------------------------------------------------------------------------------

TASKS = """
from pathlib import Path
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
try:
    import planted_helper
except ImportError:
    pass
Path({canary!r}).write_text("was run")

@task
def words():
    return Task(dataset=[Sample(input=n, target="x") for n in "abcd"], scorer=includes())
"""


class Coded:
    """A finished run with a task file that leaves a trace when it is run."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.trace, self.file = runs.folder / "trace", runs.folder / "coded_tasks.py"
        self.file.write_text(TASKS.format(canary=str(self.trace)))
        os.environ["TINKER_API_KEY"] = runs.key
        assert runs.workspace.run("coded", eval_tasks=["coded_tasks.py@words"], max_rounds=1) == 0
        del os.environ["TINKER_API_KEY"]
        runs.workspace.arguments("unused")  # the config without that task again


@pytest.fixture(scope="module")
def coded(runs: Runs) -> Coded:
    return Coded(runs)


def refused(coded: Coded, command: Command, run_dir: Path, *why: str) -> None:
    coded.trace.unlink(missing_ok=True)
    for name in ("resume", "dry run"):
        code, said = command(name, run_dir)
        assert code == 2 and all(part in said for part in why), said
    assert not coded.trace.exists()


def test_a_task_file_is_run_only_as_it_was(
    runs: Runs, coded: Coded, command: Command, watch: Watch
) -> None:
    content = coded.file.read_text()
    run_dir = runs.copy("coded")
    coded.file.write_text(content + "\n")
    refused(coded, command, run_dir, f"{coded.file}: this Python file", "it was not run")
    coded.file.write_text(content)
    helper = runs.folder / "planted_helper.py"
    helper.write_text(f"open({str(coded.trace)!r}, 'w')")
    refused(coded, command, run_dir, f"{helper}: this Python file", "sha256 was None")
    helper.unlink()
    for code in ({}, {"/etc/passwd": "x"}, {str(coded.file): "x"}, {"/dev/zero": "x"}, [], 7):
        run_dir = runs.copy("coded")
        change_object(run_dir / "data_manifest.json", code=code)
        refused(coded, command, run_dir)
    (run_dir / "ledger.jsonl").unlink()
    refused(coded, command, run_dir, "the run has not started")
    for name in ("list", "list json", "evaluate", "sync"):
        command(name, runs.copy("coded"))
    assert not coded.trace.exists()
    watch.allowed += (str(coded.trace),)
    code, said = command("dry run", runs.copy("coded"))
    assert code == 0 and f"task code: {coded.file}" in said
    assert coded.trace.exists()  # the trace does tell


def test_a_folder_is_no_package_of_tasks(
    runs: Runs, coded: Coded, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspect looks for tasks in a folder that is named like one, and runs what it finds."""
    monkeypatch.chdir(runs.folder)
    run_dir = runs.copy("coded")
    (run_dir / "evil").mkdir()
    (run_dir / "evil/tasks.py").write_text(coded.file.read_text())
    change_object(run_dir / "config.resolved.json", "config", eval_tasks=["hostile/evil"])
    change_object(run_dir / "data_manifest.json", code={})
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "ledger.jsonl").write_text("".join(lines[:-1]))  # a finished run loads no task
    refused(coded, command, run_dir, "hostile/evil: no Inspect task of this name was found")
