"""Downloads: addresses of files that need no key, each for one file of one checkpoint for an hour.

An address is signed with a secret that dies with the service, so that none has to be remembered.
What is sent was opened at once: it is of one version of a checkpoint, and whole, also when that is
overwritten or deleted meanwhile. Nothing is built in memory or beside the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tarfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from local_tinker import checkpoints
from local_tinker.checkpoints import TinkerPath
from local_tinker.external import GivenFile, given_files
from local_tinker.placing import settled
from local_tinker.rest import stored
from local_tinker.state import State
from local_tinker.wire import NotFound, UserError

SIGNED = "/api/v1/downloads/"  # what begins so is opened by its signature, not by a key
LIFETIME_S = 3600  # the SDK and the cookbook ask for new addresses five minutes before the end
ARCHIVE = "archive.tar"  # in the place of a file's name
COMPLETE = "checkpoint_complete"  # an empty file, without which the SDK's push-hf refuses a tar


def add_download_routes(app: FastAPI, state: State) -> None:
    secret = secrets.token_bytes(32)
    checkpoint = "/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}"

    def address(
        request: Request, path: TinkerPath, created_at: float, file: str, until: int
    ) -> str:
        signature = _signature(secret, path, created_at, file, until)
        query = urlencode({"expires": until, "signature": signature})
        where = "/".join(quote(part, safe=":") for part in (*path, file))
        host = request.headers.get("host") or "{}:{}".format(*request.scope["server"])
        return f"{request.scope['scheme']}://{host}{SIGNED}{where}?{query}"

    @app.get(checkpoint + "/external_weights_urls")
    def external_weights_urls(run_id: str, kind: str, name: str, request: Request) -> Any:
        path, root, directory = stored(state, run_id, kind, name)
        if path.kind != "external_weights":
            raise UserError(
                f"{path} is the folder {directory} on this machine; addresses are given out for "
                "external weights, which a training client's save_weights_external makes of it"
            )
        until = int(time.time()) + LIFETIME_S
        with opened(root, directory) as files:
            created_at, names = _created_at(files), sorted(files)
        return {
            "urls": {file: address(request, path, created_at, file, until) for file in names},
            "expires": datetime.fromtimestamp(until, UTC).isoformat(),
        }

    @app.get(checkpoint + "/archive")
    def archive(run_id: str, kind: str, name: str, request: Request) -> Response:
        """Lead SDKs up to 0.35 to a tar of a checkpoint's adapter."""
        path, root, directory = stored(state, run_id, kind, name)
        until = int(time.time()) + LIFETIME_S
        with opened(root, directory) as files:
            where = address(request, path, _created_at(files), ARCHIVE, until)
        return RedirectResponse(where, 302, {"Expires": formatdate(until, usegmt=True)})

    @app.get(SIGNED + "{run_id}/{kind}/{name}/{file}")
    def download(
        run_id: str, kind: str, name: str, file: str, expires: int, signature: str
    ) -> Response:
        path, root, directory = stored(state, run_id, kind, name)
        with contextlib.ExitStack() as held:
            files = held.enter_context(opened(root, directory))
            wanted = _signature(secret, path, _created_at(files), file, expires)
            is_signed = hmac.compare_digest(wanted.encode(), signature.encode(errors="replace"))
            if not is_signed or expires < time.time():
                raise NotFound(
                    "this address opens nothing (any more): it has expired, the checkpoint was "
                    "replaced, or the service was started again; ask for a new one"
                )
            members = (
                [GivenFile(each, b"", files[each], 0) for each in sorted(files)]
                if path.kind == "external_weights"
                else given_files(files)
            )
            if file == ARCHIVE:
                members.append(GivenFile(COMPLETE, b"", *_at_end(members[0].file)))
                chunks, num_bytes = tar_bytes(members), tar_num_bytes(members)
            else:
                (member,) = (member for member in members if member.name == file)
                chunks, num_bytes = member.chunks(), member.num_bytes
            return _Download(held.pop_all(), chunks, num_bytes)


def _signature(secret: bytes, path: TinkerPath, created_at: float, file: str, until: int) -> str:
    """It holds for what is there now, and not for what replaces it."""
    text = "\n".join((str(path), repr(created_at), file, str(until)))
    return hmac.new(secret, text.encode(errors="replace"), hashlib.sha256).hexdigest()


class _Download(StreamingResponse):
    """Parts of open files, which are closed when it ends, also where the client goes away."""

    def __init__(self, held: contextlib.ExitStack, chunks: Iterator[bytes], num_bytes: int) -> None:
        super().__init__(
            chunks,
            headers={"Content-Length": str(num_bytes)},
            media_type="application/octet-stream",
        )
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


@contextlib.contextmanager
def opened(root: Path, checkpoint_dir: Path) -> Iterator[dict[str, BufferedReader]]:
    """Hold all files of a checkpoint open, of one version of it.

    Raises `NotFound` where it is not there any more.
    """
    with contextlib.ExitStack() as held:
        with settled(root, checkpoint_dir):
            try:
                paths = [file for file in checkpoint_dir.iterdir() if file.is_file()]
                files = {path.name: held.enter_context(path.open("rb")) for path in paths}
            except FileNotFoundError as error:
                raise checkpoints.gone(checkpoint_dir) from error
        yield files


def _at_end(file: BufferedReader) -> tuple[BufferedReader, int]:
    return file, os.fstat(file.fileno()).st_size


def _created_at(files: dict[str, BufferedReader]) -> float:
    """When a checkpoint was saved, by its description, which is taken out of its files."""
    return float(json.load(files.pop(checkpoints.INFO_FILE))["created_at"])


def tar_num_bytes(members: Sequence[GivenFile]) -> int:
    return (
        sum(
            tarfile.BLOCKSIZE + member.num_bytes + -member.num_bytes % tarfile.BLOCKSIZE
            for member in members
        )
        + 2 * tarfile.BLOCKSIZE
    )


def tar_bytes(members: Sequence[GivenFile]) -> Iterator[bytes]:
    """A tar of files, chunk by chunk: a header and padding for each, and two empty blocks."""
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.size, info.mode, info.mtime = member.num_bytes, 0o644, int(time.time())
        yield info.tobuf(tarfile.GNU_FORMAT)  # one block, however large the file is
        yield from member.chunks()
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
