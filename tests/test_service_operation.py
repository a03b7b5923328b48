"""Running the service: options, start and stop, memory of results, checkpoints that outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

import forked
import local_tinker
from conftest import REPO, thorough_only
from local_tinker import checkpoints, state, wire
from local_tinker import futures as futures_module
from local_tinker.__main__ import check_access, parse_size
from local_tinker.background import Background
from local_tinker.futures import Futures
from local_tinker.sample_queue import Client
from local_tinker.sample_requests import check_request
from local_tinker.sampling import Wave
from local_tinker.state import RunQueue
from local_tinker.wire import UserError
from local_tinker.worker import Closed
from sdk_client import (
    ADAM,
    DATA,
    KEY,
    PROMPT,
    adapter_of,
    checkpoint_dir,
    datum,
    new_run,
    same_bits,
    sample,
    standalone,
    standalone_program,
    train,
    using,
)

# --- start -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "key", "part"),
    [
        ("127.0.0.1", None, None),
        ("::1", "tml-x", None),
        ("localhost", None, None),
        ("0.0.0.0", "tml-0123456789abcdef", None),
        ("0.0.0.0", None, "choose the key yourself"),
        ("192.168.1.7", "tml-short", "too short"),
        ("127.0.0.1", "sk-123", "must start with tml-"),
        ("127.0.0.1", "tml-with space", "no spaces"),
        ("my-laptop", None, "not an IP address"),
    ],
)
def test_only_a_key_chosen_on_purpose_opens_other_addresses_than_loopback(
    host: str, key: str | None, part: str | None
) -> None:
    problem = check_access(host, key)
    assert (problem is None) if part is None else (problem is not None and part in problem)


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 * 2**20), ("8GiB", 8 * 2**30), ("1.5g", 1.5 * 2**30)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--base-model", "nowhere/at-all"], "there is no such directory, nor a cached model"),
        (["--base-model", "{model}", "--checkpoint-dir", "{model}/config.json"], "not a directory"),
        (["--base-model", "{model}", "--max-memory", "0"], "too little"),
        (["--base-model", "{model}", "--max-memory", "10K"], "raise --max-memory"),
        (["--base-model", "{model}", "--device", "cuda"], "torch sees no GPU"),
        (["--base-model", "{model}", "--device", "abacus"], "use cpu or cuda"),
        (["--base-model", "{model}", "--port", "99999999"], "not between 0 and 65535"),
        (["--base-model", "{model}", "--host", "0.0.0.0"], "choose the key yourself"),
        (["--base-model", "{model}", "--max-memory", "much"], "'much' is not a size"),
    ],
)
def test_what_cannot_start_says_why_and_exits_2(
    llama_dir: Path, tmp_path: Path, options: list[str], part: str
) -> None:
    outcome = forked.run(
        *("-m", "local_tinker", "--checkpoint-dir", tmp_path / "c"),
        *(option.format(model=llama_dir) for option in options),
        env={**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""},
        timeout=60,
    )
    assert outcome.returncode == 2, outcome.stderr
    assert part in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


def test_two_models_one_log_without_keys_and_a_page_that_needs_none(
    llama_dir: Path, qwen_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    with standalone([llama_dir, Path(f"friendly={qwen_dir}")], folder) as (process, address, log):
        assert "local_tinker" in httpx.get(f"{address}/").text
        assert "friendly" in httpx.get(f"{address}/").text
        assert httpx.get(f"{address}/api/v1/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{address}/api/v1/get_server_capabilities").status_code == 401

        async def body() -> set[str | None]:
            client = tinker.ServiceClient(base_url=address, api_key=KEY)
            for model in (str(llama_dir), "friendly"):
                run = await client.create_lora_training_client(model, rank=2, seed=1)
                await run.forward_backward(DATA, "cross_entropy")
                await run.optim_step(ADAM)
                await run.save_state("x")
            rest = tinker.RestClient(base_url=address, api_key=KEY)
            models = (await rest.get_server_capabilities()).supported_models
            await client.close("success")
            return {model.model_name for model in models}

        assert asyncio.run(body()) == {str(llama_dir), "friendly", str(qwen_dir)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    text = log.read_text()
    assert KEY not in text
    assert text.count("saved tinker://") == 2
    for part in ("opened", "created on friendly", "finished", "stopping"):
        assert part in text
    assert not list(folder.glob(".scratch-*/*"))


# --- stop --------------------------------------------------------------------------------------

NewClient = Callable[[str, str], tinker.ServiceClient]


@pytest.fixture
def new_client() -> Iterator[NewClient]:
    """Make clients whose service ends before they do; they are left without a word to it.

    Otherwise their heartbeats go on, and after two minutes print that they fail, which whatever
    test runs then takes for what its own program has printed.
    """
    made: list[tinker.ServiceClient] = []

    def make(base_url: str, api_key: str) -> tinker.ServiceClient:
        made.append(tinker.ServiceClient(base_url=base_url, api_key=api_key))
        return made[-1]

    yield make
    for client in made:
        client.holder.close()


def test_stopping_finishes_what_is_queued_and_answers_who_waits(
    llama_dir: Path, tmp_path: Path, new_client: NewClient
) -> None:
    """SIGTERM with steps and a save queued behind them: the save is on disk, and was answered."""
    folder = tmp_path / "c"
    with standalone([llama_dir], folder) as (process, address, _):

        async def body() -> str:
            page = httpx.AsyncClient()
            client = new_client(address, KEY)
            run = await client.create_lora_training_client(str(llama_dir), rank=4, seed=1)
            long = run.forward([datum([5 + i % 90 for i in range(400)])] * 400, "cross_entropy")
            for _ in range(10):
                run.forward_backward(DATA, "cross_entropy")
                run.optim_step(ADAM)
            save = run.save_state("end")
            while "21 training requests" not in (await page.get(f"{address}/")).text:
                await asyncio.sleep(0.01)  # until all of it is queued behind the long one
            process.send_signal(signal.SIGTERM)
            await long
            return (await save).path

        path = asyncio.run(body())
        assert process.wait(30) == 0
    info = json.loads((checkpoint_dir(folder, path) / "checkpoint.json").read_text())
    assert info["num_optimizer_steps"] == 10


def test_closing_refuses_what_is_queued_and_says_so(
    llama_dir: Path, tmp_path: Path, new_client: NewClient
) -> None:
    service = local_tinker.start([("llama", str(llama_dir))])

    async def body() -> list[str]:
        page = httpx.AsyncClient()
        client = new_client(service.base_url, service.open_folder(tmp_path))
        run = await new_run(client)
        long = [datum([5 + i % 90 for i in range(400)])] * 400
        futures = [run.forward(long, "cross_entropy")]
        futures += [run.forward(DATA, "cross_entropy") for _ in range(20)]
        pending = [asyncio.ensure_future(_outcome(future)) for future in futures]
        # A request that is still on its way when the service has gone is retried for minutes.
        while "20 training requests" not in (await page.get(f"{service.base_url}/")).text:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(service.close)
        return [await task for task in pending]

    first, *queued = asyncio.run(asyncio.wait_for(body(), 60))
    assert first == "done"
    assert all("the service is shutting down" in outcome for outcome in queued)


async def _outcome(future: Any) -> str:
    try:
        await future
    except tinker.TinkerError as error:
        return str(error)
    return "done"


def until(is_met: Callable[[], bool]) -> None:
    """Wait, but not for ever, for what does come."""
    give_up_at = time.monotonic() + 120
    while not is_met():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


IN_A_FINALIZER = """
import signal
from local_tinker.service import Service
class Signalling:
    def __del__(self):
        signal.raise_signal(signal.{name})
method = Service.{method}
def with_a_finalizer(*arguments):
    method(*arguments)
    Signalling()
Service.{method} = with_a_finalizer
"""


@pytest.mark.parametrize(
    ("name", "method", "exit_code"), [("SIGTERM", "serve_model", 130), ("SIGINT", "serve", 0)]
)
def test_a_signal_within_a_finalizer_is_not_lost(
    llama_dir: Path, tmp_path: Path, name: str, method: str, exit_code: int
) -> None:
    """Python drops what a finalizer raises, so the handler may not count on an exception."""
    prelude = IN_A_FINALIZER.format(name=name, method=method)
    program = standalone_program([llama_dir], tmp_path / "c", prelude=prelude)
    outcome = forked.run(*program, env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=120)
    assert outcome.returncode == exit_code, outcome.stderr
    assert "Exception ignored" not in outcome.stderr
    assert ("stopping" in outcome.stderr) == (exit_code == 0)


WITH_A_LOOK_AT_WHAT_IS_SEARCHED = """
import gc, os, signal, sys
from local_tinker.service import Service
method = Service.serve
def serve(service):
    searched = {type(one).__name__ for one in gc.get_objects()}
    print("searched:", searched & {"Engine", "LlamaForCausalLM"}, file=sys.stderr)
    method(service)
    signal.raise_signal(signal.SIGTERM)
Service.serve = serve
"""


def test_what_is_loaded_is_not_searched_for_cycles(llama_dir: Path, tmp_path: Path) -> None:
    """Each search of it stops all threads for a tenth of a second or more."""
    program = standalone_program(
        [llama_dir], tmp_path / "c", prelude=WITH_A_LOOK_AT_WHAT_IS_SEARCHED
    )
    outcome = forked.run(*program, env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert "searched: set()" in outcome.stderr


WHILE_TORCH_IS_IMPORTED = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.{name})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_there_is_a_service_ends_at_once(
    llama_dir: Path, tmp_path: Path, name: str
) -> None:
    prelude = WHILE_TORCH_IS_IMPORTED.format(name=name)
    program = standalone_program([llama_dir], tmp_path / "c", prelude=prelude)
    outcome = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (outcome.returncode, outcome.stdout) == (130, "")
    assert outcome.stderr == f"loading {llama_dir}; address and key follow\n"  # said before torch


CANARY = """
import os, sys
class Canary:
    def __del__(self, write=os.write):
        write(2, b"taken apart")
sys.canary = Canary()
sys.canary.itself = sys.canary
"""


@thorough_only
def test_neither_silent_connections_nor_what_is_in_memory_hold_up_the_end(
    llama_dir: Path, tmp_path: Path
) -> None:
    """Python's end looks through all that is in memory for cycles, such as the canary's, and takes
    them apart: under load that took longer than all else together, once more than 30 seconds."""
    with standalone([llama_dir], tmp_path / "c", prelude=CANARY, is_forked=False) as started:
        process, address, log = started
        host, port = address.removeprefix("http://").split(":")
        head = f"POST /api/v1/create_session HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
        with (
            socket.create_connection((host, int(port))),
            socket.create_connection((host, int(port))) as half,
            httpx.Client() as kept_alive,
        ):
            half.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert kept_alive.get(f"{address}/").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert "stopping" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "taken apart" not in log.read_text()


STUCK = """
import os, sys, threading
from local_tinker import __main__, engine, state
__main__.DRAIN_S = __main__.IN_HAND_S = 0.0
def stuck(*_):
    os.write(2, b"in hand ")
    threading.Event().wait()
claim = state.Futures.claim
def noted(*arguments):
    os.write(2, b"asked ")
    return claim(*arguments)
engine.Engine.optim_step, state.Futures.claim = stuck, noted
sys.exit(__main__.main())
"""


def test_a_step_that_does_not_end_is_given_up_and_its_client_told(
    llama_dir: Path, tmp_path: Path
) -> None:
    folder, model = tmp_path / "c", Path(f"llama={llama_dir}")
    with (
        standalone([model], folder, prelude=STUCK) as (process, address, log),
        ThreadPoolExecutor() as pool,
        by_hand_at(address, KEY) as (post, run_id),
    ):
        num_asked = log.read_text().count("asked")
        step = pool.submit(post, "/optim_step", model_id=run_id, seq_id=1, adam_params={})
        until(lambda: "in hand" in log.read_text() and log.read_text().count("asked") > num_asked)
        process.send_signal(signal.SIGTERM)
        assert "the service is shutting down" in step.result(60)["error"]
        assert process.wait(60) == 0
    assert "it was given up" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_samples_are_refused_after_the_job_in_hand(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wave gets as long as the job before it took, but not in a service that closes."""
    is_queued, has_begun, has_ended = (threading.Event() for _ in range(3))  # the job
    advanced: list[bool] = []
    advance = Wave.advance

    def noted(wave: Wave) -> None:
        advanced.append(has_ended.is_set())
        is_queued.wait()
        time.sleep(0.001)  # so that the wave does not end within its turn
        advance(wave)

    monkeypatch.setattr(Wave, "advance", noted)
    service = local_tinker.start([("llama", str(llama_dir))])
    worker, engine = service._state.worker, service._state.engines["llama"]

    def job() -> dict[str, Any]:
        has_begun.set()
        until(lambda: worker._close_at is not None)
        time.sleep(0.5)
        has_ended.set()
        return {}

    ask = wire.Sample.model_validate(
        {
            "sampling_session_id": "s",
            "seq_id": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": {"max_tokens": 100, "stop": []},
        }
    )
    sampled = worker.sample(engine, check_request(engine, ask, None))
    until(lambda: bool(advanced))
    submitted = worker.submit("run", engine, job)
    is_queued.set()
    until(has_begun.is_set)
    service.close()
    assert submitted.result() == {}
    assert isinstance(sampled.exception(), Closed)
    assert True not in advanced


def test_a_wait_for_a_thread_that_a_signal_breaks_off_can_be_repeated() -> None:
    """Of `threading.Thread`, Python 3.11 and 3.12 say after it that it has ended."""
    main, is_let_go = threading.get_ident(), threading.Event()

    def work() -> None:
        until(lambda: "join" in functions_of(main))
        os.kill(os.getpid(), signal.SIGUSR1)
        is_let_go.wait()

    def interrupt(*_: object) -> None:
        raise InterruptedError

    thread = Background("interrupting", work)
    assert not thread.is_alive()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        thread.start()
        with pytest.raises(InterruptedError):
            thread.join()
        assert thread.is_alive()
        thread.join(0.01)
        assert thread.is_alive()
    finally:
        signal.signal(signal.SIGUSR1, before)
        is_let_go.set()
    thread.join()
    assert not thread.is_alive()


def functions_of(thread_id: int) -> list[str]:
    """The functions that a thread is in."""
    frame = sys._current_frames().get(thread_id)
    names: list[str] = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


INTERRUPTED = """
import os, signal, sys, threading, time
import torch
import local_tinker

service = local_tinker.start([("llama", sys.argv[1])])
main, moments, has_begun = threading.get_ident(), sys.argv[2:], threading.Event()
layer = torch.nn.Linear(400, 400)

def job():
    has_begun.set()
    while moments:
        layer(torch.randn(512, 400)).tanh().sum().backward()
        if {moments[0], "join"} <= set(functions_of(main)):
            moments.pop(0)
            os.kill(os.getpid(), signal.SIGINT)
    ends_at = time.monotonic() + 1.0
    while time.monotonic() < ends_at:
        layer(torch.randn(512, 400)).tanh().sum().backward()
    print("finished", flush=True)
    return {}

service._worker.submit("run", service._state.engines["llama"], job)
has_begun.wait()
try:
    service.close()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("moments", "outcome"),
    [
        (["close"], (7, "interrupted\nfinished\n")),
        (["close", "_close_at_exit"], (130, "interrupted\n")),
    ],
)
def test_an_embedded_service_whose_close_is_interrupted_closes_at_the_end(
    llama_dir: Path, moments: list[str], outcome: tuple[int, str]
) -> None:
    """Python's end amid torch would abort the process; one more Ctrl-C leaves at once."""
    program = f"from __future__ import annotations\n{inspect.getsource(functions_of)}{INTERRUPTED}"
    arguments = "-c", program, str(llama_dir), *moments
    done = forked.run(*arguments, env={**os.environ, "PYTHONPATH": str(REPO)}, timeout=120)
    assert (done.returncode, done.stdout) == outcome, done.stderr


# --- the disk ----------------------------------------------------------------------------------


SMALL_FILES = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


def test_a_full_disk_is_explained_and_loses_nothing(
    llama_dir: Path, tmp_path: Path, new_client: NewClient
) -> None:
    """A limit on the size of files makes the second, larger save fail half way through."""
    folder = tmp_path / "c"
    with standalone([llama_dir], folder, prelude=SMALL_FILES) as (_, address, log):

        async def body() -> tuple[str, str]:
            client = new_client(address, KEY)
            small = await client.create_lora_training_client(str(llama_dir), rank=1, seed=1)
            kept = (await small.save_weights_for_sampler("kept")).path
            large = await client.create_lora_training_client(str(llama_dir), rank=64, seed=1)
            with pytest.raises(tinker.RequestFailedError, match="could not be written") as refusal:
                await large.save_weights_for_sampler("large")
            sampler = await client.create_sampling_client(kept)
            await sample(sampler, PROMPT, max_tokens=2, temperature=0.0)
            await large.forward_backward(DATA, "cross_entropy")  # and training goes on
            return kept, str(refusal.value)

        kept, message = asyncio.run(body())
    assert "make room" in message
    assert "could not be written" in log.read_text()
    assert checkpoint_dir(folder, kept).is_dir()
    assert not list(folder.glob("*/sampler_weights/large"))
    assert not list(folder.glob(".scratch-*/write-*"))


def test_a_killed_service_leaves_only_whole_checkpoints_and_its_leftovers_are_cleaned(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """What kill -9 leaves at its worst moments, as the next start finds it."""

    async def body(client: tinker.ServiceClient) -> str:
        run = await new_run(client)
        await train(run, 1)
        return (await run.save_state("x")).path

    path = using(service, tmp_path, body)
    weights = adapter_of(tmp_path, path)
    whole = checkpoint_dir(tmp_path, path)
    whole.rename(whole.with_name(".old-x"))  # between the two renames of an overwrite
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    half = tmp_path / f".scratch-{gone.pid}" / "write-1"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")
    service.open_folder(tmp_path)
    assert same_bits(adapter_of(tmp_path, path), weights)
    assert not half.parent.exists()


def test_checkpoints_expire_are_copied_and_are_listed_by_a_later_service(
    service: local_tinker.Service, tmp_path: Path, llama_dir: Path
) -> None:
    async def first(client: tinker.ServiceClient) -> tuple[str, str, str]:
        run = await client.create_lora_training_client(
            "llama", rank=4, seed=1, user_metadata={"renderer_name": "role_colon"}
        )
        await train(run, 1)
        kept = (await run.save_state("kept")).path
        brief = (await run.save_weights_for_sampler("brief", ttl_seconds=3600)).path
        return run.get_info().model_id, kept, brief

    run_id, kept, brief = using(service, tmp_path, first)

    async def later(client: tinker.ServiceClient) -> None:
        rest = tinker.RestClient(base_url=other.base_url, api_key=other.open_folder(tmp_path))
        (run,) = (await rest.list_training_runs()).training_runs
        assert (run.training_run_id, run.base_model, run.lora_rank) == (run_id, "llama", 4)
        assert run.user_metadata == {"renderer_name": "role_colon"}
        assert run.last_checkpoint is not None
        assert run.last_checkpoint.tinker_path == kept
        of_run = (await rest.list_checkpoints(run_id)).checkpoints
        assert [c.tinker_path for c in of_run] == [kept, brief]
        assert [c.checkpoint_type for c in of_run] == ["training", "sampler"]
        assert of_run[0].expires_at is None
        assert of_run[1].expires_at is not None
        copy = await rest.copy_weights(kept, "any-project")
        assert copy != kept
        await rest.set_checkpoint_ttl_from_tinker_path(kept, 3600)
        await rest.set_checkpoint_ttl_from_tinker_path(brief, None)
        assert [
            c.expires_at is None for c in (await rest.list_checkpoints(run_id)).checkpoints
        ] == [
            False,
            True,
        ]
        everything = (await rest.list_user_checkpoints()).checkpoints
        assert {c.tinker_path for c in everything} == {kept, brief, copy}
        info = await rest.get_weights_info_by_tinker_path(copy)
        assert (info.base_model, info.lora_rank, info.train_unembed) == ("llama", 4, True)
        resumed = await client.create_training_client_from_state_with_optimizer(copy)
        again = (await resumed.save_state("again")).path
        assert same_bits(adapter_of(tmp_path, again), adapter_of(tmp_path, kept))
        with pytest.raises(tinker.BadRequestError, match="stay on this machine"):
            await rest.publish_checkpoint_from_tinker_path(kept)

        file = checkpoint_dir(tmp_path, kept) / "checkpoint.json"
        stored = json.loads(file.read_text())
        file.write_text(json.dumps({**stored, "expires_at": time.time() - 1}))
        with pytest.raises(tinker.BadRequestError, match="expired at"):
            await client.create_training_client_from_state(kept)
        assert kept not in {c.tinker_path for c in (await rest.list_user_checkpoints()).checkpoints}
        other.open_folder(tmp_path)
        assert not file.parent.exists()

    with local_tinker.start([("llama", str(llama_dir))]) as other:
        using(other, tmp_path, later)


def test_a_damaged_description_is_named(service: local_tinker.Service, tmp_path: Path) -> None:
    folder = tmp_path / "s_train_0" / "weights" / "x"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text('{"base_model": 3}')
    with pytest.raises(UserError, match=r"checkpoint\.json cannot be read"):
        checkpoints.find([tmp_path], checkpoints.parse_path("tinker://s:train:0/weights/x"))


# --- memory of requests ------------------------------------------------------------------------


def test_results_are_kept_for_a_while_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    monkeypatch.setattr(futures_module, "KEEP_RESULT_S", 0.0)
    futures = Futures()
    made: list[Future[Any]] = []

    def make() -> Future[Any]:
        made.append(Future())
        return made[-1]

    first = futures.once(Client("s"), ("train", "r", 1), make)
    assert futures.once(Client("s"), ("train", "r", 1), make) == first
    other = futures.once(Client("s"), ("train", "r", 2), make)
    assert len(made) == 2
    futures.purge()
    assert len(futures) == 2  # neither is done
    made[0].set_result({})
    futures.fetched(first)
    futures.purge()
    assert len(futures) == 1
    futures.purge("s")
    assert len(futures) == 1  # still open, although its session has ended
    made[1].set_result({})
    futures.purge("s")
    assert len(futures) == 0
    assert other != first


def test_a_session_that_falls_silent_is_ended_and_frees_its_run(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    inner = service._state
    with httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers) as http:
        session = http.post("/create_session", json={}).json()["session_id"]
        body = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
        made = http.post("/create_model", json=body).json()
        http.post("/retrieve_future", json=made)
        assert f"{session}:train:0" in inner.runs
        inner.sessions[session].last_seen_at -= state.SESSION_SILENCE_S + 1
        inner.housekeeping()
        assert f"{session}:train:0" not in inner.runs
        beat = http.post("/session_heartbeat", json={"session_id": session})
        assert beat.status_code == 410
        info = http.post("/get_info", json={"model_id": f"{session}:train:0"})
        assert info.status_code == 404


# --- order -------------------------------------------------------------------------------------


@contextmanager
def by_hand(
    service: local_tinker.Service, folder: Path, rank: int = 4
) -> Iterator[tuple[Callable[..., dict[str, Any]], str]]:
    """A run made over plain HTTP: a function that posts and waits for the result, and its id."""
    with by_hand_at(service.base_url, service.open_folder(folder), rank) as made:
        yield made


@contextmanager
def by_hand_at(
    address: str, key: str, rank: int = 4
) -> Iterator[tuple[Callable[..., dict[str, Any]], str]]:
    headers = {"X-API-Key": key}
    with httpx.Client(base_url=f"{address}/api/v1", headers=headers, timeout=60) as http:

        def post(route: str, **body: Any) -> dict[str, Any]:
            answer = http.post(route, json=body)
            if "request_id" not in answer.json():
                return {"status": answer.status_code, **answer.json()}
            while (result := http.post("/retrieve_future", json=answer.json())).status_code == 408:
                pass
            return result.json()

        session = post("/create_session")["session_id"]
        made = post(
            "/create_model",
            session_id=session,
            model_seq_id=0,
            base_model="llama",
            lora_config={"rank": rank, "seed": 1},
        )
        yield post, made["model_id"]
        with contextlib.suppress(httpx.ConnectError):  # the test may have stopped the service
            http.post(f"/sessions/{session}/finish", json={"reason": {"type": "success"}})


def test_a_malformed_request_does_not_stop_its_run(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """Numbers far ahead, refused by any rule, are not waited for; handled ones never run twice."""
    with by_hand(service, tmp_path) as (post, run_id):
        for bad in (10**40, -1, 2**31 - 1, "one"):
            assert post("/optim_step", model_id=run_id, seq_id=bad, adam_params={})["status"] in (
                400,
                422,
            )
        assert post("/optim_step", model_id=run_id, seq_id=1, adam_params={"beta1": 7})[
            "status"
        ] == 422  # fmt: skip
        assert "path" in post("/save_weights", model_id=run_id, seq_id=2, path="x")
        late = post("/save_weights", model_id=run_id, seq_id=1, path="y")
        assert "came after number 2 had been run" in late["error"]
        taken = post(
            "/save_weights_for_sampler", model_id=run_id, seq_id=3, sampling_session_seq_id=0
        )
        other = post(
            "/save_weights_for_sampler", model_id=run_id, seq_id=4, sampling_session_seq_id=0
        )
        assert "sampling_session_id" in taken
        assert "take another number" in other["error"]
        assert "path" in post("/save_weights", model_id=run_id, seq_id=5, path="z")


def test_a_number_that_never_comes_is_given_up_while_others_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "GAP_S", 0.2)

    async def main() -> list[int]:
        queue, ran = RunQueue(), []
        for seq_id in range(2, 12):
            queue.add(seq_id, lambda seq_id=seq_id: ran.append(seq_id))
            await asyncio.sleep(0.05)
        with pytest.raises(UserError, match="number 1 of this run came after number 11"):
            queue.add(1, lambda: ran.append(1))
        return ran

    assert asyncio.run(main()) == list(range(2, 12))


def test_a_checkpoint_of_another_shape_changes_nothing(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """The older form of load_weights, into a run that exists: its first request, as on Tinker."""
    with by_hand(service, tmp_path) as (post, run_id), by_hand(service, tmp_path, 8) as (put, big):
        other = put("/save_weights", model_id=big, seq_id=1, path="other")["path"]
        refused = post("/load_weights", model_id=run_id, seq_id=1, path=other, optimizer=True)
        assert refused["category"] == "user"
        assert "load it into a new run" in refused["error"]
        before = post("/save_weights", model_id=run_id, seq_id=2, path="before")["path"]
        late = post("/load_weights", model_id=run_id, seq_id=3, path=before, optimizer=True)
        assert "not permitted with seq_id 3" in late["error"]
        assert "create_training_client_from_state_with_optimizer" in late["error"]
        after = post("/save_weights", model_id=run_id, seq_id=4, path="after")["path"]
        assert same_bits(adapter_of(tmp_path, before), adapter_of(tmp_path, after))
    with by_hand(service, tmp_path) as (post, run_id):
        loaded = post("/load_weights", model_id=run_id, seq_id=1, path=before, optimizer=True)
        assert loaded["path"] == before
        same = post("/save_weights", model_id=run_id, seq_id=2, path="same")["path"]
        assert same_bits(adapter_of(tmp_path, before), adapter_of(tmp_path, same))


def test_one_damaged_checkpoint_does_not_hide_the_others(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    with by_hand(service, tmp_path) as (post, run_id):
        good = post("/save_weights", model_id=run_id, seq_id=1, path="good")["path"]
        bad = post("/save_weights", model_id=run_id, seq_id=2, path="bad")["path"]
        (checkpoint_dir(tmp_path, bad) / "checkpoint.json").write_text("{")
        rest = tinker.RestClient(base_url=service.base_url, api_key=service.open_folder(tmp_path))
        listed = rest.list_user_checkpoints().result().checkpoints
        assert [checkpoint.tinker_path for checkpoint in listed] == [good]


# --- what a stranger met -----------------------------------------------------------------------


def test_ending_a_session_drops_what_it_had_queued(
    service: local_tinker.Service, tmp_path: Path
) -> None:
    """A client that goes away does not keep the machine busy, nor leave unnamed saves behind."""
    headers = {"X-API-Key": service.open_folder(tmp_path)}
    with httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers, timeout=60) as http:
        session = http.post("/create_session", json={}).json()["session_id"]
        run_id = f"{session}:train:0"
        body = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
        http.post("/retrieve_future", json=http.post("/create_model", json=body).json())
        busy = service._state.worker.submit(
            "busy", service._state.engines["llama"], lambda: time.sleep(1.0) or {}
        )
        save = {"model_id": run_id, "seq_id": 1, "sampling_session_seq_id": 0}
        queued = http.post("/save_weights_for_sampler", json=save).json()
        http.post(f"/sessions/{session}/finish", json={"reason": {"type": "success"}})
        answer = http.post("/retrieve_future", json=queued)
        assert not busy.done()
        assert "the session of this run has ended" in answer.json()["error"]
        busy.result(30)
        while service._state.worker.num_queued[0]:
            time.sleep(0.01)
    assert not list(tmp_path.glob(".scratch-*/*"))


def test_a_run_that_cannot_be_parked_refuses_the_new_one_and_loses_nothing(
    llama_dir: Path, tmp_path: Path
) -> None:
    """The scratch folder is a file, as a disk that refuses: the first run trains on."""
    with local_tinker.start([("llama", str(llama_dir))]) as tight:
        memory = tight._memory

        async def body(client: tinker.ServiceClient) -> None:
            first = await new_run(client)
            await train(first, 1)
            memory.limit_bytes -= memory.room_bytes - int(1.5 * memory.num_run_bytes)
            block = checkpoints.scratch_path(tmp_path)
            block.parent.mkdir(exist_ok=True)
            block.write_text("no folder")
            with pytest.raises(tinker.RequestFailedError, match="could not be written"):
                await new_run(client)
            await train(first, 1)
            assert memory.num_run_bytes <= memory.room_bytes
            block.unlink()
            second = await new_run(client)
            await train(second, 1)
            await train(first, 1)

        using(tight, tmp_path, body)


def test_clients_wait_while_a_service_starts(llama_dir: Path, tmp_path: Path) -> None:
    """Until models and key are there a connection is held, so that no right key is refused."""
    from local_tinker.service import Service

    service = Service()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{service.base_url}/api/v1/healthz", timeout=0.5)
        service.serve_model("llama", str(llama_dir))
        service.open_folder(tmp_path, KEY)
        service.serve()
        headers = {"X-API-Key": KEY}
        answer = httpx.get(f"{service.base_url}/api/v1/get_server_capabilities", headers=headers)
        assert answer.json()["supported_models"][0]["model_name"] == "llama"
    finally:
        service.close()


def test_a_second_signal_ends_at_once(
    llama_dir: Path, tmp_path: Path, new_client: NewClient
) -> None:
    with standalone([llama_dir], tmp_path / "c") as (process, address, log):

        async def body() -> None:
            page = httpx.AsyncClient()
            client = new_client(address, KEY)
            run = await client.create_lora_training_client(str(llama_dir), rank=4, seed=1)
            rows = [datum([5 + i % 90 for i in range(400)])] * 400
            _ = [run.forward(rows, "cross_entropy") for _ in range(8)]
            while "6 training requests" not in (await page.get(f"{address}/")).text:
                await asyncio.sleep(0.01)

        asyncio.run(body())
        process.send_signal(signal.SIGINT)
        while "again to stop now" not in log.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130  # and not 0, as after the queue
    assert "Traceback" not in log.read_text()
    assert "again to stop now" in log.read_text()
