"""Run the service alone, for other Tinker clients on this machine."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import os
import queue
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAIN_S = 30.0  # how long queued work may go on after Ctrl-C or SIGTERM; a second one ends it
IN_HAND_S = 5.0  # how much longer the request in hand may take then
LOOK_S = 1.0  # how often a service that nobody stops looks whether it still runs
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a number of bytes such as 512M, 8G or 8GiB; the units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 512M or 8G")
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if size == 0:
        raise argparse.ArgumentTypeError("no memory at all is too little; write 512M or 8G")
    return size


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_tinker",
        description="Serve Tinker's API on this machine: LoRA training and sampling of local "
        "models. Clients need the address and the key that are printed at the start; set "
        "TINKER_API_KEY (it must start with tml-) to choose the key.",
    )
    parser.add_argument(
        "--base-model",
        required=True,
        action="append",
        metavar="MODEL",
        help="a model directory, or the name of a model in the Hugging Face cache; NAME=DIRECTORY "
        "serves a directory under another name; give the option again for more models",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on (default: a free one)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s); anything but loopback needs "
        "TINKER_API_KEY to be set, and is not encrypted",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=Path("checkpoints"),
        help="where checkpoints are kept (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--max-memory",
        type=parse_size,
        metavar="SIZE",
        help="memory for base models and training runs, such as 8G; runs beyond it wait on disk "
        "(default: 70%% of the machine's or the GPU's)",
    )
    return parser.parse_args(argv)


def check_access(host: str, key: str | None) -> str | None:
    """Return what is wrong with this address and key, or None."""
    if key is not None and not re.fullmatch(r"tml-[!-~]+", key):
        return (
            "TINKER_API_KEY must start with tml- (the SDK refuses others) and hold no spaces; "
            "change or unset it."
        )
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return f"--host {host!r} is not an IP address; give one, such as 127.0.0.1."
    if not is_loopback and key is None:
        return (
            f"--host {host} can be reached from other machines, so choose the key yourself: set "
            "TINKER_API_KEY to tml- and a long random string, or leave --host out."
        )
    if not is_loopback and len(key or "") < 20:
        return "TINKER_API_KEY is too short for an open address; use at least 20 characters."
    return None


def name_and_path(model: str) -> tuple[str, str]:
    """Split NAME=DIRECTORY; a bare directory is served under the name that was given."""
    name, separator, directory = model.partition("=")
    if not separator or not name:
        name, directory = model, model
    return name, str(Path(directory).resolve()) if Path(directory).is_dir() else directory


def check_folder(folder: Path) -> str | None:
    """Make the checkpoint folder; return what is wrong with it, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return f"--checkpoint-dir {folder} is not a directory; name another one."
    except OSError as error:
        return f"--checkpoint-dir {folder} cannot be made: {error.strerror}."
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"--checkpoint-dir {folder} cannot be written to: {error.strerror}; name another one."
        )


class StopSignals:
    """SIGTERM and Ctrl-C: the first one while the service runs asks it to stop, any other ends it.

    Nothing is raised: an exception from a signal handler that comes up within a finalizer, or in a
    library that catches everything, is lost, and the service would go on as if never asked.
    """

    def __init__(self) -> None:
        self.has_service = False
        self._is_asked = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # whose `put` a handler may call

    def on_signal(self, *_: object) -> None:
        if self._is_asked or not self.has_service:
            os._exit(130)  # a thread may be amid torch, which a normal exit trips over
        self._is_asked = True
        self._wake.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as the service is asked to stop, False if it is not."""
        try:
            self._wake.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Take SIGTERM and Ctrl-C, and in the background SIGINT as well."""
    stop = StopSignals()
    # SIGINT too: a shell that starts the service in the background has it ignored.
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop.on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    key = os.environ.get("TINKER_API_KEY") or None
    problem = check_access(args.host, key)
    if problem is not None:
        return complain(problem)
    if not 0 <= args.port < 65536:
        return complain(f"--port {args.port} is not between 0 and 65535.")
    problem = check_folder(args.checkpoint_dir)
    if problem is not None:
        return complain(problem)
    with stop_signals() as stop:
        return run(args, key, stop)


def run(args: argparse.Namespace, key: str | None, stop: StopSignals) -> int:
    """Load the models and serve them until `stop`; return the exit code."""
    models = [name_and_path(model) for model in args.base_model]
    names = ", ".join(name for name, _ in models)
    # Libraries and weights take seconds to minutes, which without a word look like a hang.
    print(f"loading {names}; address and key follow", file=sys.stderr, flush=True)
    from local_tinker.service import Service
    from local_tinker.wire import UserError

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    logging.getLogger("local_tinker").setLevel(logging.INFO)
    host = "127.0.0.1" if args.host == "localhost" else args.host
    try:
        service = Service(args.port, host, args.max_memory, args.device)
    except OSError as error:
        return complain(
            f"cannot listen on {args.host} port {args.port}: {error}. Choose another --port."
        )
    try:
        for name, path in models:
            service.serve_model(name, path)
        made = service.open_folder(args.checkpoint_dir.resolve(), key)
    except UserError as error:
        service.close()
        return complain(str(error))
    stop.has_service = True
    # A search of all that is loaded for cycles stops every thread for a tenth of a second or more.
    gc.freeze()
    service.serve()
    print(
        f"serving {names} on {service.base_url}, checkpoints in {args.checkpoint_dir}; "
        "Ctrl-C stops",
        file=sys.stderr,
    )
    print(f"export TINKER_BASE_URL={service.base_url}")
    print(f"export TINKER_API_KEY={made}", flush=True)
    while service.is_running and not stop.wait(LOOK_S):
        pass
    print("stopping: finishing what is queued; again to stop now", file=sys.stderr)
    if not service.close(DRAIN_S, DRAIN_S + IN_HAND_S):
        print("the request in hand took too long; it was given up", file=sys.stderr)
        os._exit(0)  # the compute thread is amid torch, as above
    return 0


if __name__ == "__main__":
    exit_code = main()
    # Python's end would search all that torch and transformers hold for cycles and take it apart:
    # 1.5 s of a core, which were 45 s where many others wanted the cores.
    gc.freeze()
    sys.exit(exit_code)
