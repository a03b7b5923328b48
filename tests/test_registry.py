"""The registry: a chain of lines, names that never mean other weights, one writer at a time."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import registry
import report
import trainer_with_eval
from errors import RegistryError, StorageError
from killed_registries import entry_of as entry_of_no_run
from killed_registries import run_kills, write_one
from ledger.references import find_start, find_subjects, named_round
from ledger.registry_chain import hash_of
from ledger.registry_file import MAX_BYTES, Registry, alias_problem, name_problem
from ledger.registry_names import locate
from ledger.registry_weights import weights_dir
from ledger.registry_writing import lock_of, who, writing
from ledger.store import RunStore
from promotion.showing import describe, shown_of
from registry_records import BY, entry_of, promoted, with_weights
from run_records import finished
from test_loop import Workspace

FILE = Path("registry.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two rounds in runs/r, both versions of `support`."""
    folder = tmp_path_factory.mktemp("made")
    store = with_weights(finished(folder / "runs/r"))
    promoted(folder / FILE, store, "support", 1, 2)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run registry.py here; gives exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = registry.main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["support", "a", "0", "a.b_c-d", "x" * 64])
def test_what_can_be_a_name(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "a b", "a@1", "a/b", "a\n", "x" * 65, "\u00fc", "</script>"]
)
def test_what_can_be_no_name(name: str) -> None:
    assert name_problem(name) is not None
    with writing(FILE) as writer, pytest.raises(RegistryError, match="can be no name"):
        writer.promote(entry_of_no_run(name, 1))
    assert not FILE.exists()


@pytest.mark.parametrize("alias", ["3", "v3", "007", "champion\n", "", "a@b"])
def test_what_can_be_no_alias(alias: str, command: Any) -> None:
    assert alias_problem(alias) is not None
    code, _, err = command("alias", "support@1", alias)
    assert code == 2 and "can be no alias" in err


def test_a_name_cannot_be_taken_for_the_alias(folder: Path) -> None:
    with writing(FILE) as writer, pytest.raises(RegistryError, match="a name is another word"):
        writer.promote(entry_of_no_run("champion", 1))


def test_what_names_mean(folder: Path) -> None:
    found = Registry.read(FILE)
    for name in ("support@2", "registry:support@2", "support@champion", "registry:champion"):
        assert found.find(name).reference == "registry:support@2"
    refused = {
        "support": "a name alone does not tell which of its checkpoints. Give one of "
        "registry:support@champion, registry:support@2, registry:support@1",
        "support@3": "support has versions 1 to 2",
        "support@0": "support has versions 1 to 2",
        "support@02": "support has versions 1 to 2",
        "support@best": "of aliases it has champion",
        "other@1": "nothing was promoted as 'other'",
        "other": "no name has this alias",
        "": "no name has this alias",
        "@": "nothing was promoted as ''",
    }
    for name, why in refused.items():
        with pytest.raises(RegistryError, match=re.escape(why)):
            found.find(name)


def test_an_alias_that_two_names_have_is_refused_with_both(folder: Path) -> None:
    with writing(FILE) as writer:
        writer.promote(entry_of_no_run("triage", 1), ["champion"])
    with pytest.raises(RegistryError) as refused:
        Registry.read(FILE).find("registry:champion")
    assert "registry:support@champion, registry:triage@champion. Name one" in str(refused.value)
    assert Registry.read(FILE).find("registry:triage@champion").version == 1


# --- the chain ------------------------------------------------------------------------------------


def test_each_line_carries_the_hash_of_the_one_before(folder: Path) -> None:
    with writing(FILE) as writer:
        writer.move_alias(writer.registry.find("support@1"), "staging", BY)
        writer.record("feedback", {"counts": {"rows": 3}})
    *lines, rest = FILE.read_bytes().split(b"\n")
    assert rest == b"" and len(lines) == 4
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == [0, 1, 2, 3]
    assert [event["previous"] for event in events] == [None, *map(hash_of, lines[:-1])]
    assert [event["type"] for event in events] == ["promoted", "promoted", "alias", "feedback"]
    assert Registry.read(FILE).head == hash_of(lines[-1])


def _edited(line: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(line), **changes}).encode()


HOSTILE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "another score": lambda ls: [ls[0].replace(b"0.4,", b"0.9,"), *ls[1:]],
    "a line taken out": lambda ls: ls[1:],
    "lines swapped": lambda ls: [ls[1], ls[0], *ls[2:]],
    "a line twice": lambda ls: [ls[0], *ls],
    "an empty line": lambda ls: [*ls, b""],
    "no object": lambda ls: [*ls, b"[]"],
    "no JSON": lambda ls: [*ls, b"hello"],
    "not UTF-8": lambda ls: [*ls, b"\xff\xfe{}"],
    "a number without end": lambda ls: [*ls, b'{"seq": 2, "x": NaN}'],
    "a key twice": lambda ls: [ls[0], ls[1][:-1] + b', "type": "promoted"}'],
    "a deep nest": lambda ls: [*ls, b"[" * 100_000],
    "a wrong number": lambda ls: [ls[0], _edited(ls[1], seq=True)],
    "no hash": lambda ls: [ls[0], _edited(ls[1], previous=None)],
    "a time of day": lambda ls: [ls[0], _edited(ls[1], time="noon")],
    "no type": lambda ls: [ls[0], _edited(ls[1], type="</script>")],
    "a version left out": lambda ls: [
        ls[0],
        _edited(ls[1], entry={**json.loads(ls[1])["entry"], "version": 3}),
    ],
    "a path of no service": lambda ls: [
        ls[0],
        _edited(ls[1], entry={**json.loads(ls[1])["entry"], "sampler_path": "tinker://../../x"}),
    ],
    "a score above 1": lambda ls: [
        ls[0],
        _edited(ls[1], entry={**json.loads(ls[1])["entry"], "results": {"score": 1e300}}),
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_registry_that_does_not_verify_takes_nothing(
    what: str, folder: Path, command: Any
) -> None:
    lines = FILE.read_bytes().split(b"\n")[:-1]
    changed = b"".join(line + b"\n" for line in HOSTILE[what](lines))
    FILE.write_bytes(changed)
    with pytest.raises(RegistryError, match="it does not fit"):
        Registry.read(FILE)
    for words in (
        ("alias", "support@1", "staging"),
        ("retire", "support@1", "--reason", "x"),
        ("show", "support@1"),
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, "") and "it does not fit" in err
    for words in (("list",), ("verify",), ("list", "--json"), ("verify", "--json")):
        code, out, err = command(*words)
        assert code == 1 and f"{FILE} line " in err + out
    assert FILE.read_bytes() == changed
    assert not lock_of(FILE).exists() or lock_of(FILE).stat().st_size < 20


def test_what_is_torn_is_read_by_nobody_and_cut_off_by_the_next_writer(
    folder: Path, command: Any
) -> None:
    first, second, _ = FILE.read_bytes().split(b"\n")
    for kept in (1, 2, len(second) // 2, len(second) - 1):
        FILE.write_bytes(first + b"\n" + second[:kept])
        found = Registry.read(FILE)
        assert [one.key for one in found.entries] == ["support@1"]
        assert found.num_torn_bytes == kept
        code, out, err = command("list")
        assert code == 0 and "support@2" not in out and f"{kept} bytes after its last line" in err
        code, out, err = command("alias", "support@1", "staging")
        assert code == 0 and f"cut off {kept} bytes" in err
        found = Registry.read(FILE)
        assert [event["type"] for event in found.events] == ["promoted", "cut", "alias"]
        assert found.events[1]["num_bytes"] == kept


def test_a_line_that_lacks_its_newline_alone_counts_and_gets_it(folder: Path) -> None:
    whole = FILE.read_bytes()
    FILE.write_bytes(whole[:-1])
    assert Registry.read(FILE).find("champion").version == 2
    with writing(FILE) as writer:
        writer.record("note", {})
    assert FILE.read_bytes().startswith(whole)
    assert [event["type"] for event in Registry.read(FILE).events] == ["promoted"] * 2 + ["note"]


def test_a_whole_last_line_that_does_not_fit_is_no_torn_one(folder: Path) -> None:
    first, second, _ = FILE.read_bytes().split(b"\n")
    FILE.write_bytes(first + b"\n" + _edited(second, seq=7))
    with pytest.raises(RegistryError, match="its number is 7, and 1 is next"):
        Registry.read(FILE)


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "pipe", "huge", "device"])
def test_what_is_no_file_is_refused_and_left_alone(kind: str, tmp_path: Path, command: Any) -> None:
    path = tmp_path / FILE
    target = tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    elif kind in ("link", "dangling link"):
        path.symlink_to(target)
        if kind == "link":
            target.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, MAX_BYTES + 1)
    else:
        path = Path("/dev/null")
    for words in (
        ("list",),
        ("verify",),
        ("alias", "a@1", "b"),
        ("retire", "a@1", "--reason", "x"),
    ):
        code, _, err = command(*words, "--registry", str(path))
        assert code == 2 and f"error: {path}: " in err
    with pytest.raises(RegistryError), writing(path):
        pass
    assert not target.exists() or target.read_text() == "mine"


def test_what_cannot_be_recorded_is_not(folder: Path) -> None:
    before = FILE.read_bytes()
    with writing(FILE) as writer:
        entry = writer.registry.find("support@2")
        for record in (
            lambda: writer.record("note", {"x": float("nan")}),
            lambda: writer.record("note", {"x": 2**70}),
            lambda: writer.record("note", {"x": "\ud800"}),
            lambda: writer.record("note", {"x": object()}),
            lambda: writer.record("note", {"seq": 0}),
            lambda: writer.record("alias", {}),
            lambda: writer.record("No Type", {}),
            lambda: writer.promote(entry_of_no_run("support", 2)),
            lambda: writer.promote(entry_of_no_run("support", 4)),
            lambda: writer.retire(entry, "it is the champion", BY),
            lambda: writer.remove_alias("support", "staging", BY),
        ):
            with pytest.raises(RegistryError):
                record()
        assert FILE.read_bytes() == before
        assert writer.promote(entry_of_no_run("support", 3)).key == "support@3"


def test_a_file_that_something_else_changes_meanwhile_is_not_written_to(folder: Path) -> None:
    with writing(FILE) as writer:
        with open(FILE, "ab") as file:
            file.write(b"\n")
        before = FILE.read_bytes()
        with pytest.raises(RegistryError, match="changed by something else while it was held"):
            writer.record("note", {})
        assert FILE.read_bytes() == before


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a child process that does the work: 0, or 1 where it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_full_disk_leaves_the_registry_as_it_was(folder: Path) -> None:
    before = FILE.read_bytes()

    def fill() -> None:
        size = len(before) + 100
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write is refused with an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with writing(FILE) as writer, pytest.raises(StorageError, match="refused to write it"):
            writer.promote(entry_of_no_run("support", 3))

    assert in_child(fill) == 0
    assert FILE.read_bytes() == before


# --- one writer at a time, and kills --------------------------------------------------------------


@pytest.fixture
def holder(folder: Path) -> Iterator[int]:
    """A process that holds the registry until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with writing(FILE):
                os.write(writer, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    yield pid
    if os.waitpid(pid, os.WNOHANG)[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_of_two_writers_one_is_refused_at_once(holder: int, folder: Path, command: Any) -> None:
    before = FILE.read_bytes()
    code, _, err = command("alias", "support@1", "staging")
    assert code == 2
    assert f"another promotion is at work (process {holder})" in err
    code, _, err = command("promote", "runs/r@round_01", "support", "--force", "both at once")
    assert code == 2 and f"another promotion is at work (process {holder})" in err
    assert FILE.read_bytes() == before
    assert command("list")[0] == command("verify")[0] == 0  # readers need not wait
    os.kill(holder, signal.SIGKILL)
    while os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT) is None:
        pass
    assert command("alias", "support@1", "staging")[0] == 0  # its death has freed it


def test_the_lock_is_taken_through_no_link(folder: Path) -> None:
    (folder / "mine").write_text("mine")
    lock_of(FILE).unlink(missing_ok=True)
    lock_of(FILE).symlink_to(folder / "mine")
    with pytest.raises(StorageError), writing(FILE):
        pass
    assert (folder / "mine").read_text() == "mine"


def test_threads_are_kept_apart_as_well(folder: Path) -> None:
    refused: list[str] = []

    def write() -> None:
        try:
            with writing(FILE):
                pass
        except RegistryError as error:
            refused.append(str(error))

    with writing(FILE):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


def test_kills_lose_nothing_that_was_said_to_be_recorded(tmp_path: Path) -> None:
    kills = run_kills(tmp_path, 10, seed=3)
    assert [one.problems for one in kills] == [[]] * 10
    assert {one.how for one in kills} == {"moment", "amid", "command"}
    assert sum(one.num_said for one in kills) > 0
    assert any(one.num_torn_bytes for one in kills)  # a line was cut short, as a power cut does


# --- the weights that a name means ----------------------------------------------------------------


def refusal(name: str) -> str:
    with pytest.raises(RegistryError) as refused:
        locate(FILE, name)
    return str(refused.value)


def test_a_name_is_the_round_and_an_alias_is_said_to_be_one(folder: Path) -> None:
    for name, number in (("registry:support@1", 1), ("registry:champion", 2)):
        found = locate(FILE, name)
        assert found.store.run_dir.resolve() == folder / "runs/r"
        assert found.checkpoint == found.store.checkpoint(number)
        (subject,) = find_subjects([name], Path("runs"))
        assert subject.label == f"registry:support@{number}"  # what is recorded does not move
        assert subject.path == found.checkpoint.sampler_path and subject.round == number
        start = find_start(name, [Path("elsewhere"), Path()])
        assert start.state_path == found.checkpoint.state_path
        assert start.name == f"registry:support@{number}"
        assert named_round(name, name, [Path()])[1:] == (number, found.notes)
    assert locate(FILE, "registry:support@1").notes == ()
    assert locate(FILE, "registry:champion").notes == ("registry:champion is registry:support@2",)


def test_one_checkpoint_by_two_names_is_named_once(folder: Path) -> None:
    from errors import ConfigError

    with pytest.raises(ConfigError, match="registry:champion is the same checkpoint as runs/r@r"):
        find_subjects(["runs/r@round_02", "registry:champion"], Path("runs"))


def test_a_retired_entry_can_be_named_and_is_said_to_be_retired(folder: Path, command: Any) -> None:
    assert command("retire", "support@1", "--reason", "it invents\nprices")[0] == 0
    (note,) = locate(FILE, "registry:support@1").notes
    assert re.fullmatch(
        r"registry:support@1 was retired on \d{4}-\d\d-\d\d: it invents prices", note
    )


def test_a_run_that_was_moved_is_found_by_its_id(folder: Path) -> None:
    (folder / "runs/study").mkdir()
    (folder / "runs/r").rename(folder / "runs/study/other")
    with_weights(finished(folder / "runs/r"), "of another run")
    found = locate(FILE, "registry:champion")
    assert found.store.run_dir.resolve() == folder / "runs/study/other"


def test_the_registry_and_its_runs_can_move_together(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "moved"
    to.mkdir()
    (folder / "runs").rename(to / "runs")
    (folder / FILE).rename(to / FILE)
    assert locate(to / FILE, "registry:champion").store.run_dir == to / "runs/r"


def _weights(round_no: int, kind: str) -> Path:
    entry = Registry.read(FILE).find(f"support@{round_no}")
    path = entry.sampler_path if kind == "sampler" else entry.state_path
    return weights_dir(Path("runs/r"), path)


@pytest.mark.parametrize("kind", ["sampler", "state"])
def test_a_name_never_means_other_weights(kind: str, folder: Path) -> None:
    file = _weights(2, kind) / "adapter_model.safetensors"
    file.write_text("trained again")
    if kind == "sampler":
        assert "adapter_model.safetensors of tinker://" in refusal("registry:champion")
        assert "is not the file that was promoted" in refusal("registry:support@2")
        assert locate(FILE, "registry:support@1").checkpoint.round == 1
    with pytest.raises(Exception, match="is not the file that was promoted"):
        find_start("registry:champion", [Path()])
    shutil.rmtree(file.parent)
    with pytest.raises(Exception, match=r"has no adapter_config\.json, adapter_model"):
        find_start("registry:champion", [Path()])


def test_a_run_that_went_back_has_not_the_round_any_more(folder: Path) -> None:
    store = RunStore.open(folder / "runs/r", to_resume=True)
    last = [event for event in store.effective() if event["round"] == 1][-1]
    store.append("resumed", durable_seq=last["seq"])
    store.close()
    assert "it has no weights of round 2 any more" in refusal("registry:champion")


def test_a_round_that_was_trained_again_on_a_service_is_told_by_its_event(tmp_path: Path) -> None:
    """Where there is no file to look at."""
    store = finished(tmp_path / "runs/r")
    promoted(FILE, store, "support", 1, weights_sha256=None)
    assert locate(FILE, "registry:champion").checkpoint.round == 1
    checkpoint = store.checkpoint(1)
    assert checkpoint is not None
    store.record_checkpoint(checkpoint)
    assert "its round 1 was trained again since" in refusal("registry:champion")


def test_a_run_that_is_gone_is_refused_with_where_it_was(folder: Path) -> None:
    shutil.rmtree(folder / "runs/r")
    said = refusal("registry:champion")
    assert "runs/r" in said and "not a run directory" in said and "Put the run back" in said


@pytest.mark.parametrize("where", ["/", "\x00", "a" * 5000, "../../../../../../etc", "~"])
def test_an_entry_may_say_any_place(where: str, folder: Path) -> None:
    store = RunStore.open(folder / "runs/r")
    with writing(FILE) as writer:
        entry = entry_of(store, "triage", 1, 1, run_dir=where)
        if not where.isprintable():
            with pytest.raises(RegistryError, match="no line has"):
                writer.promote(entry)
            return
        writer.promote(entry)
    assert locate(FILE, "registry:triage@1").checkpoint.round == 1  # found by its id


# --- the command ----------------------------------------------------------------------------------


def test_without_a_registry_each_command_says_how_one_is_made(command: Any) -> None:
    for words in (
        ("list",),
        ("show", "a@1"),
        ("verify",),
        ("alias", "a@1", "b"),
        ("alias", "a", "b", "--remove"),
        ("retire", "a@1", "--reason", "x"),
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert err.startswith("error: registry.jsonl: there is no registry here. The first")
    assert not list(Path().iterdir())  # not even a lock


def test_the_list_fits_a_terminal(folder: Path, command: Any) -> None:
    store = RunStore.open(folder / "runs/r")
    with writing(FILE) as writer:
        by = "\u8cc7\u8cc7\u8cc7\u8cc7\x1b[31m\n" * 9
        long = entry_of(store, "x" * 64, 1, 1, promoted_by=by, forced="why", results={})
        aliases = ["champion", *(f"alias-number-{n}" for n in range(9))]
        writer.promote(long, aliases)
    code, out, _ = command("list")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].startswith("support@1") and " champion" in lines[2]
    from loop.reports.lines import columns_of

    assert max(map(columns_of, lines)) <= 80
    assert "\x1b" not in out and "not measured" in out and "FORCED" in out
    code, out, _ = command("list", "--name", "support")
    assert code == 0 and "xxx" not in out
    code, _, err = command("list", "--name", "other")
    assert code == 2 and "nothing was promoted as that" in err
    code, out, _ = command("list", "--json")
    shown = json.loads(out)
    assert [one["reference"] for one in shown["entries"]][:2] == [
        "registry:support@1",
        "registry:support@2",
    ]
    assert shown["entries"][1]["aliases"] == ["champion"]
    assert shown["head"] == Registry.read(FILE).head


def test_an_entry_is_shown_with_what_happened_to_it(folder: Path, command: Any) -> None:
    command("alias", "support@1", "staging", "--by", "ops")
    command("alias", "support@1", "staging", "--remove")
    command("retire", "support@1", "--reason", "too slow")
    code, out, _ = command("show", "registry:support@1")
    assert code == 0
    for said in ("registry:support@1, promoted on", "retired: too slow", "staging no more"):
        assert said in out
    code, out, _ = command("show", "support@1", "--json")
    history = json.loads(out)["history"]
    assert [event["type"] for event in history] == ["alias", "alias", "retired"]
    assert history[0]["by"] == "ops"
    assert history[0]["command"] == ["registry.py", "alias", "support@1", "staging", "--by", "ops"]


def test_the_steps_of_an_entry_are_those_of_its_weights(folder: Path) -> None:
    """A run that went back has taken others, which its counter has as well."""
    registry = Registry.read(FILE)
    entry = registry.find("support@1")

    def said(num_steps: int | None) -> str:
        shown = shown_of(registry, replace(entry, step=6, num_steps=num_steps))
        return next(line for line in describe(registry, shown) if line.startswith("checkpoint: "))

    assert said(6).endswith(f"of run {entry.run_id}, 6 steps")
    assert said(4).endswith(", 4 steps, and 2 that the run went back on")
    assert said(None).endswith("saved at step 6 of the run, with those that it went back on")


def test_the_champion_is_moved_by_hand_for_a_reason_alone(folder: Path, command: Any) -> None:
    before = FILE.read_bytes()
    for words in (
        ("alias", "support@1", "champion"),
        ("alias", "support", "champion", "--remove"),
    ):
        code, _, err = command(*words)
        assert code == 2 and "moving it by hand compares nothing" in err
    code, _, err = command("alias", "support@1", "champion", "--force", "  ")
    assert code == 2 and "--force is empty" in err
    assert FILE.read_bytes() == before
    code, out, _ = command("alias", "support@1", "champion", "--force", "version 2 is too slow")
    assert code == 0
    assert "registry:support@champion is registry:support@1; it was registry:support@2" in out
    event = Registry.read(FILE).events[-1]
    assert event["forced"] == "version 2 is too slow" and event["was"] == 2
    assert Registry.read(FILE).find("champion").version == 1
    code, out, _ = command("alias", "support", "champion", "--remove", "--force", "none", "--json")
    assert code == 0 and json.loads(out)["now"] is None
    assert Registry.read(FILE).alias_of("support", "champion") is None


def test_what_stands_for_something_is_not_retired(folder: Path, command: Any) -> None:
    code, _, err = command("retire", "champion", "--reason", "x")
    assert code == 2 and "registry:support@2 is champion still" in err
    code, out, _ = command("retire", "support@1", "--reason", "x", "--json")
    assert code == 0 and json.loads(out)["reference"] == "registry:support@1"
    for words in (
        ("retire", "support@1", "--reason", "again"),
        ("alias", "support@1", "staging"),
        ("alias", "support@2", "champion", "--force", "x"),
        ("alias", "support@2", "staging", "--remove"),
    ):
        code, _, err = command(*words)
        assert code == 2 and err.startswith("error: ")
    assert len(Registry.read(FILE).events) == 3


def test_the_record_of_a_command_has_no_keys(
    folder: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-0123456789")
    words = ("retire", "support@1", "--reason", "key tml-0123456789", "--by", "tml-0123456789")
    assert command(*words)[0] == 0
    text = FILE.read_text()
    assert "tml-0123456789" not in text and text.count("[redacted]") == 4


def test_of_a_command_to_run_the_program_alone_is_recorded() -> None:
    from services.keys import Keys

    args = registry.parse_arguments(["promote", "r", "n", "--then", "notify --token abc"])
    for words in (["--then", "notify --token abc"], ["--the=notify --token abc"]):
        args.words = ["promote", "r", "n", *words]
        recorded = registry._command_line(args, Keys())
        assert "abc" not in " ".join(recorded) and "notify ..." in " ".join(recorded)


def test_who_gives_a_command_may_have_bytes_that_are_no_text(folder: Path) -> None:
    with writing(FILE) as writer:
        writer.move_alias(writer.registry.find("support@1"), "b", who("x\udcff", ["\udcff"]))
    assert Registry.read(FILE).events[-1]["command"] == ["\\udcff"]


def test_refused_promotions_are_recorded_and_listed(folder: Path, command: Any) -> None:
    code, out, _ = command("promote", "runs/r@round_01", "triage", "--by", "ops")
    assert code == 3 and "is not promoted as triage" in out
    code, out, _ = command("list")
    assert code == 0 and "promotions that were refused: 1" in out
    code, out, _ = command("list", "--refused", "--name", "triage")
    assert code == 0 and "runs/r@round_01 as triage, by ops: " in out
    code, out, _ = command("list", "--refused", "--json")
    (event,) = json.loads(out)["refused"]
    assert event["type"] == "refused" and event["command"][:2] == ["registry.py", "promote"]
    with writing(FILE) as writer:  # whatever a refusal holds, it is shown
        for objections in (None, [], [1], [{"x": "\x1b"}], "x"):
            writer.refuse({"objections": objections})
    code, out, _ = command("list", "--refused")
    assert code == 0 and "no reason recorded" in out and "\x1b" not in out


def test_two_checkpoints_are_compared_as_they_were_measured(folder: Path, command: Any) -> None:
    code, out, _ = command("compare", "registry:support@1", "registry:champion")
    assert code == 0 and "registry:support@2" in out
    code, out, _ = command("compare", "registry:champion", "registry:support@1", "--json")
    compared = json.loads(out)
    assert code == 0 and compared["against"] == "registry:support@1" and compared["comparison"]
    code, _, err = command("compare", "registry:support@7", "registry:support@1")
    assert code == 2 and "support has versions 1 to 2" in err


# --- verify ---------------------------------------------------------------------------------------


def test_verify_proves_the_chain_and_the_files(folder: Path, command: Any) -> None:
    head = Registry.read(FILE).hashes[0]
    code, out, _ = command("verify", "--head", head)
    assert code == 0
    assert "support@2: as promoted: run, weights, evaluation, data" in out
    assert f"the line with the hash {head} is in it" in out
    code, out, _ = command("verify", "--head", "0" * 64, "--json")
    assert code == 1 and json.loads(out)["has_head"] is False


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("weights", "adapter_model.safetensors"),
        ("evaluation", "evals/round_02.json"),
        ("data", "data_manifest.json"),
    ],
)
def test_verify_names_what_was_changed_or_is_gone(
    what: str, file: str, folder: Path, command: Any
) -> None:
    path = _weights(2, "sampler") / file if what == "weights" else Path("runs/r") / file
    whole = path.read_bytes()
    for change, said in ((lambda: path.write_bytes(whole + b" "), "CHANGED"), (path.unlink, "")):
        change()
        code, out, _ = command("verify")
        assert code == 1 and f"support@2: {what} {said}" in out
        code, out, _ = command("verify", "--json")
        found = {one["reference"]: one for one in json.loads(out)["entries"]}
        assert code == 1 and not found["registry:support@2"]["holds"]


def test_of_a_retired_entry_the_weights_may_be_gone(folder: Path, command: Any) -> None:
    command("retire", "support@1", "--reason", "x")
    shutil.rmtree(_weights(1, "sampler"))
    code, out, _ = command("verify")
    assert code == 0 and "support@1 (retired): weights GONE" in out
    shutil.rmtree("runs/r")
    code, out, _ = command("verify")
    assert code == 1 and "support@2: run GONE" in out


# --- where a checkpoint is named ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Path:
    """A folder with a real run in runs/r whose rounds are versions of `support`."""
    folder = tmp_path_factory.mktemp("trained")
    workspace = Workspace(folder, llama_dir)
    assert workspace.run("runs/r", "--local", steps_per_round=1) == 0
    promoted(folder / FILE, workspace.store("runs/r"), "support", 1, 2)
    return folder


def test_an_evaluation_is_of_the_name_that_stays(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(trained)
    words = ["--config", "config.json", "--local", "--evaluate", "registry:champion", "--gate"]
    words += ["--run-dir", str(tmp_path / "e")]
    assert trainer_with_eval.main([*words, "--dry-run"]) == 0
    assert "registry:champion is registry:support@2" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    words[1] = str(trained / "config.json")
    assert trainer_with_eval.main(words) == 2  # there is no registry here
    assert "registry.jsonl: there is no registry here" in capsys.readouterr().err
    assert trainer_with_eval.main([*words, "--registry", str(trained / FILE), "--json"]) == 3
    printed = capsys.readouterr()
    (one,) = json.loads(printed.out)["checkpoints"]
    assert one["checkpoint"] == "registry:support@2"
    recorded = RunStore.open(tmp_path / "e").settled_config()["evaluate"]
    assert recorded[0]["label"] == "registry:support@2" and recorded[0]["promoted_sha256"]
    # resumed, it is held against the weights that it began on
    assert trainer_with_eval.main(["--resume", str(tmp_path / "e"), "--json"]) == 0
    capsys.readouterr()
    file = weights_dir(trained / "runs/r", recorded[0]["path"]) / "adapter_config.json"
    whole = file.read_bytes()
    file.write_bytes(whole + b" ")
    try:
        assert trainer_with_eval.main(["--resume", str(tmp_path / "e")]) == 2
        assert "is not the file that was promoted" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)


def test_a_run_starts_from_a_name(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The registry is looked for in the config's folder and in the working directory."""
    words = ["--config", str(trained / "config.json"), "--local", "--run-dir", str(tmp_path / "n")]
    words += ["--set", "start_from=registry:champion", "--set", "max_rounds=1"]
    assert trainer_with_eval.main([*words, "--registry", "x"]) == 2
    assert "--registry is where --evaluate" in capsys.readouterr().err
    assert trainer_with_eval.main(words) == 0
    origin = RunStore.open(tmp_path / "n").origin
    assert origin is not None and origin.parent.name == "registry:support@2"
    entry = Registry.read(trained / FILE).find("champion")
    assert origin.parent.state_path == entry.state_path and origin.parent.run_id == entry.run_id


def test_a_page_compares_what_names_mean(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.main(["registry:support@1", "registry:champion", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [one["round"] for one in compared] == [1, 2]


@pytest.mark.parametrize("name", ["registry:champion", "registry:support@champion", "registry:x"])
def test_a_study_takes_the_name_that_stays_alone(name: str) -> None:
    from studies.design.experiment import moves

    assert "may mean another checkpoint when a later run begins" in (
        moves("start_from", name) or ""
    )
    assert moves("start_from", "registry:support@3") is None


def test_a_registry_of_many_lines_is_read_once_per_event(tmp_path: Path) -> None:
    import random

    dice = random.Random(1)
    with writing(FILE) as writer:
        for _ in range(40):
            write_one(writer, dice)
    assert len(Registry.read(FILE).events) == 40
