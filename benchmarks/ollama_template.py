"""Run the templates of a Modelfile by Go's text/template, and count the prompts that are equal.

    .venv/bin/python benchmarks/ollama_template.py

For every renderer of the cookbook, on a small tokenizer with its tokens: the sample conversations
that a chat template is proven on (exports/templates.py), written as Ollama writes them and compared
token by token with the renderer. Needs Go 1.18 or newer (`apt-get install golang-go`), so it is not
part of the tests. Ollama itself is not run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"


class Asked(NamedTuple):
    """A conversation of one renderer."""

    renderer: str
    conversation: str
    is_main: bool
    template: str
    messages: list[dict[str, str]]
    bos: str  # that Ollama puts before the text
    expected: list[int]
    tokenizer: Any

    def is_equal(self, text: str) -> bool:
        written = self.tokenizer.encode(self.bos + text, add_special_tokens=False)
        return written == self.expected


def fitting_dirs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each renderer with the first tokenizer of the tests that it fits."""
    from chat_models import SHAPES, make_tokenizer_dir  # pyright: ignore[reportMissingImports]
    from errors import ConfigError
    from rows.chat_formats import MARKERS, choose_format

    folders = [
        make_tokenizer_dir(folder / str(number), shape)
        for number, shape in enumerate(SHAPES.values())
    ]
    for name in MARKERS:
        for directory in folders:
            try:
                choose_format(name, str(directory))
            except ConfigError:
                continue
            yield name, directory
            break


def asked_of(name: str, directory: Path) -> Iterator[Asked]:
    from exports.templates import FURTHER, MAIN, expected_prompts, served_template
    from rows.chat_formats import load_renderer

    served = served_template(directory, name)
    if served.go is None:
        print(f"{name}: none: {served.no_go}")
        return
    renderer = load_renderer(name, str(directory))
    tokenizer: Any = renderer.tokenizer
    expected = expected_prompts(renderer)
    bos = str(tokenizer.bos_token) if served.reader_adds_bos else ""
    for one in (*MAIN, *FURTHER):
        if one.name in expected:
            yield Asked(
                name, one.name, one in MAIN, served.go, one.messages, bos, expected[one.name],
                tokenizer,
            )  # fmt: skip


def run_go(cases: list[Asked]) -> list[dict[str, str]]:
    given = json.dumps([{"template": one.template, "messages": one.messages} for one in cases])
    source = str(Path(__file__).with_suffix(".go"))
    ended = subprocess.run(
        ["go", "run", source], input=given, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout)


def main() -> None:
    if shutil.which("go") is None:
        raise SystemExit("There is no `go` here: apt-get install golang-go")
    with tempfile.TemporaryDirectory() as folder:
        cases = [one for found in fitting_dirs(Path(folder)) for one in asked_of(*found)]
        written = run_go(cases)
    for is_main, kind in ((True, "main"), (False, "further")):
        pairs = [(c, w) for c, w in zip(cases, written, strict=True) if c.is_main == is_main]
        unequal = [(c, w) for c, w in pairs if w["error"] or not c.is_equal(w["text"])]
        num_renderers = len({c.renderer for c, _ in pairs})
        print(f"{kind}: {len(pairs) - len(unequal)} of {len(pairs)}, {num_renderers} renderers")
        for name in dict.fromkeys(c.conversation for c, _ in unequal):
            whose = [c.renderer for c, _ in unequal if c.conversation == name]
            print(f"  unequal in {name}: {len(whose)} renderers, {whose[0]} among them")
        for case, one in unequal:
            if one["error"]:
                print(f"  {case.renderer}: {one['error']}")


if __name__ == "__main__":
    main()
