"""Downloads by the unmodified SDK, its command line and the cookbook; addresses without a key."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pyrage
import pytest
import tinker
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tinker.cli.__main__ import main_cli
from tinker_cookbook import weights
from transformers import AutoModelForCausalLM

import local_tinker
from local_tinker import checkpoints
from sdk_client import (
    adapter_of,
    checkpoint_dir,
    name_in_environment,
    new_run,
    same_bits,
    train,
    using,
)

_pyrage: Any = pyrage  # the extension has no types


class Saved:
    """A run's state and sampler weights on the service, and a key to it."""

    def __init__(self, service: local_tinker.Service, folder: Path) -> None:
        async def body(client: tinker.ServiceClient) -> tuple[str, str]:
            run = await new_run(client)
            await train(run, 1)
            state = await run.save_state("s")
            return state.path, (await run.save_weights_for_sampler("p")).path

        self.service, self.folder = service, folder
        self.state_path, self.sampler_path = using(service, folder, body)
        self.key = service.open_folder(folder)
        self.http = httpx.Client(
            base_url=f"{service.base_url}/api/v1", headers={"X-API-Key": self.key}, timeout=60
        )
        self.rest = tinker.RestClient(base_url=service.base_url, api_key=self.key)

    def export(self, *args: Any, **options: Any) -> str:
        async def body(client: tinker.ServiceClient) -> str:
            run = await client.create_training_client_from_state(self.state_path)
            return (await run.save_weights_external(*args, **options)).path

        return using(self.service, self.folder, body)

    def archive(self, path: str) -> httpx.Response:
        run_id, kind, name = path.removeprefix("tinker://").split("/")
        return self.http.get(f"/training_runs/{run_id}/checkpoints/{kind}/{name}/archive")


@pytest.fixture
def saved(service: local_tinker.Service, tmp_path: Path) -> Iterator[Saved]:
    made = Saved(service, tmp_path / "kept")
    yield made
    made.http.close()


@pytest.fixture
def in_environment(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    name_in_environment(monkeypatch, saved.service.base_url, saved.key)


def as_given(folder: Path, path: str) -> dict[str, Any]:
    """A checkpoint's tensors by Tinker's names."""
    tensors = adapter_of(folder, path).items()
    return {name.replace(".lm_head.", ".model.unembed_tokens."): one for name, one in tensors}


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:  # with no key
        return answer.read()


@pytest.mark.usefixtures("in_environment")
@pytest.mark.filterwarnings("ignore::FutureWarning:tinker_cookbook")
def test_the_cookbook_and_the_command_line_download_a_state(
    saved: Saved, llama_dir: Path, tmp_path: Path
) -> None:
    """The same tensors, which the cookbook makes an adapter of PEFT's of; no export is left."""
    state = saved.state_path
    weights.download(tinker_path=state, output_dir=str(tmp_path / "cookbook"))
    arguments = ["checkpoint", "download", state, "--output", str(tmp_path / "cli")]
    said = CliRunner().invoke(main_cli, arguments)
    assert said.exit_code == 0, said.output
    (from_cli,) = (tmp_path / "cli").iterdir()
    for folder in (tmp_path / "cookbook", from_cli):
        assert sorted(file.name for file in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        given = load_file(folder / "adapter_model.safetensors")
        assert same_bits(given, as_given(saved.folder, state))
        assert any(".unembed_tokens." in name for name in given)
    assert not list(saved.folder.glob("*/external_weights/*"))
    peft = tmp_path / "peft"
    weights.build_lora_adapter(
        base_model=str(llama_dir), adapter_path=str(from_cli), output_path=str(peft)
    )
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_dir), str(peft))
    ours = adapter_of(saved.folder, state)
    assert same_bits(load_file(peft / "adapter_model.safetensors"), ours)


def test_external_weights_are_listed_renewed_deleted_and_never_loaded(saved: Saved) -> None:
    path = saved.export("given", ttl_seconds=3600)
    run_id = path.removeprefix("tinker://").split("/")[0]
    (listed,) = saved.rest.list_checkpoints(run_id).result().checkpoints
    assert (listed.tinker_path, listed.checkpoint_type) == (path, "external")
    assert listed.checkpoint_id == "external_weights/given" and listed.expires_at is not None
    saved.rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    (listed,) = saved.rest.list_checkpoints(run_id).result().checkpoints
    assert listed.expires_at is None
    (run,) = (
        run
        for run in saved.rest.list_training_runs().result().training_runs
        if run.training_run_id == run_id
    )
    assert run.last_checkpoint is None and run.last_sampler_checkpoint is None
    assert saved.rest.get_weights_info_by_tinker_path(path).result().lora_rank == 4

    async def load(client: tinker.ServiceClient) -> None:
        with pytest.raises(tinker.BadRequestError, match="to download, which are not loaded"):
            await client.create_training_client_from_state(path)
        with pytest.raises(tinker.BadRequestError, match="to download, which are not loaded"):
            await client.create_sampling_client(model_path=path)

    using(saved.service, saved.folder, load)
    saved.rest.delete_checkpoint_from_tinker_path(path).result()
    assert not saved.rest.list_checkpoints(run_id).result().checkpoints


def test_an_export_is_encrypted_for_whom_it_is_for(saved: Saved) -> None:
    reader, other = _pyrage.x25519.Identity.generate(), _pyrage.x25519.Identity.generate()
    path = saved.export("e", age_encryption_recipients=[str(reader.to_public())])
    answer = saved.rest.get_external_weights_urls(path).result()
    assert sorted(answer.urls) == ["adapter_config.json.age", "adapter_model.safetensors.age"]
    encrypted = fetched(answer.urls["adapter_config.json.age"])
    config = json.loads(_pyrage.decrypt(encrypted, [reader]))
    assert (config["r"], config["target_modules"]) == (4, "all-linear")
    with pytest.raises(_pyrage.DecryptError):
        _pyrage.decrypt(encrypted, [other])
    stored = checkpoint_dir(saved.folder, path)
    assert not list(stored.glob("*.safetensors"))
    with pytest.raises(tinker.BadRequestError, match=r"'age1x' is no recipient"):
        saved.export("f", age_encryption_recipients=["age1x"])


def test_an_address_opens_one_file_for_a_while_and_no_other(saved: Saved) -> None:
    path = saved.export("given")
    answer = saved.rest.get_external_weights_urls(path).result()
    urls = answer.urls
    assert 3000 < answer.expires.timestamp() - time.time() <= 3600
    folder = checkpoint_dir(saved.folder, path)
    assert sorted(urls) == ["adapter_config.json", "adapter_model.safetensors"]
    for name, address in urls.items():
        assert fetched(address) == (folder / name).read_bytes()
    one, other = urls["adapter_config.json"], urls["adapter_model.safetensors"]
    until = one.partition("expires=")[2].partition("&")[0]
    for wrong in (
        one.replace("adapter_config.json", "adapter_model.safetensors"),
        one.replace("adapter_config.json", "checkpoint.json"),
        one.replace("/given/adapter_config.json", "/given/..%2F..%2Fx"),
        one.replace(f"expires={until}", f"expires={int(until) + 3600}"),
        one[:-1] + ("0" if one[-1] != "0" else "1"),
        one.partition("signature=")[0] + "signature=%C3%A9",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetched(wrong)
        assert refused.value.code == 404, wrong
    assert httpx.get(one.partition("?")[0]).status_code == 422
    saved.rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetched(other)


def test_an_archive_is_a_tar_by_a_redirect_and_whole_also_when_it_is_deleted_meanwhile(
    saved: Saved,
) -> None:
    """SDKs up to 0.35 ask for it."""
    for path in (saved.state_path, saved.sampler_path):
        answer = saved.archive(path)
        assert answer.status_code == 302
        until = parsedate_to_datetime(answer.headers["Expires"]).timestamp()
        assert 3000 < until - time.time() <= 3600
        wanted = as_given(saved.folder, path)
        with httpx.stream("GET", answer.headers["Location"]) as response:
            chunks = response.iter_raw(chunk_size=512)
            first = next(chunks)  # the rest is opened
            saved.rest.delete_checkpoint_from_tinker_path(path).result()
            archive = b"".join((first, *chunks))
        assert len(archive) == int(response.headers["Content-Length"])
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert tar.getnames() == [
                "adapter_config.json",
                "adapter_model.safetensors",
                "checkpoint_complete",
            ]
            tar.extractall(saved.folder.parent / "out", filter="data")
        given = load_file(saved.folder.parent / "out" / "adapter_model.safetensors")
        assert same_bits(given, wanted)
        assert saved.archive(path).status_code == 404
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetched(answer.headers["Location"])


def test_an_address_does_not_open_what_replaces_its_checkpoint(saved: Saved) -> None:
    before = saved.archive(saved.state_path).headers["Location"]
    folder = checkpoint_dir(saved.folder, saved.state_path)
    info = checkpoints.read_info(folder)
    other = saved.folder / "z_train_0" / "weights" / "z"
    checkpoints.copy(saved.folder, folder, other, None)
    checkpoints.delete(saved.folder, folder)
    os.rename(other, folder)
    assert checkpoints.read_info(folder).created_at != info.created_at
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetched(before)
    fetched(saved.archive(saved.state_path).headers["Location"])


def test_refusals_name_the_folder_or_the_damage(saved: Saved) -> None:
    folder = checkpoint_dir(saved.folder, saved.state_path)
    with pytest.raises(tinker.BadRequestError, match=f"is the folder {folder}, and there is nob"):
        saved.rest.publish_checkpoint_from_tinker_path(saved.state_path).result()
    run_id, kind, name = saved.state_path.removeprefix("tinker://").split("/")
    route = f"/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls"
    answer = saved.http.get(route)
    assert answer.status_code == 400 and f"is the folder {folder} on" in answer.text
    (folder / "adapter_config.json").write_text("{")
    location = saved.archive(saved.state_path).headers["Location"]
    damaged = httpx.get(location)
    assert damaged.status_code == 400 and "the checkpoint is damaged" in damaged.text


def test_a_tensor_file_is_given_out_without_being_read_into_memory(tmp_path: Path) -> None:
    """Its header alone is another one, and what follows begins at the same alignment."""
    import torch

    from local_tinker.external import ADAPTER, CONFIG, given_files

    tensors = {f"a.lm_head.{n}": torch.full((n,), float(n)) for n in range(1, 9)}
    save_file(tensors, tmp_path / ADAPTER, metadata={"format": "pt"})
    (tmp_path / CONFIG).write_text('{"r": 1}')
    with (tmp_path / CONFIG).open("rb") as config, (tmp_path / ADAPTER).open("rb") as adapter:
        _, given = given_files({CONFIG: config, ADAPTER: adapter})
        (tmp_path / "given").write_bytes(b"".join(given.chunks()))
        assert (tmp_path / "given").stat().st_size == given.num_bytes
    assert len(given.head) % 8 == 0
    found = load_file(tmp_path / "given")
    assert same_bits(
        found, {n.replace("lm_head", "model.unembed_tokens"): t for n, t in tensors.items()}
    )
