"""A user's file has modules of its own: not another file's, not ours, at any time."""

from __future__ import annotations

import ast
import gc
import hashlib
import sys
from pathlib import Path

import pytest

from conftest import REPO
from user_code.finding import OURS, code_of
from user_code.modules import UserModules
from user_code.parsing import parsed

ROOT_NAMES = sorted(
    {path.stem for path in REPO.glob("*.py")}
    | {path.name for path in REPO.iterdir() if path.is_dir() and path.name.isidentifier()}
)
WAYS = {  # of meaning the module `helpers` and taking WORD from it
    "from": "from helpers import WORD",
    "import": "import helpers\nWORD = helpers.WORD",
    "renamed": "import helpers as h\nWORD = h.WORD",
    "importlib": "import importlib\nWORD = importlib.import_module('helpers').WORD",
    "import_module": "from importlib import import_module\nWORD = import_module('helpers').WORD",
    "importlib.util": "import importlib.util\nWORD = importlib.import_module('helpers').WORD",
    "builtin": "WORD = __import__('helpers').WORD",
    "exec": "exec('from helpers import WORD')",
    "relative": "from .helpers import WORD",
    "relative module": "from . import helpers\nWORD = helpers.WORD",
    "by its place": (
        "import importlib.util, pathlib\n"
        "place = pathlib.Path(__file__).parent / 'helpers.py'\n"
        "spec = importlib.util.spec_from_file_location('helpers', place)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\nWORD = module.WORD"
    ),
    "run": "import runpy\nWORD = runpy.run_path('helpers.py')['WORD']",
    "behind another": "from between import WORD",
    "starred": "from helpers import *",
    "tried": "try:\n    from helpers import WORD\nexcept ImportError:\n    WORD = None",
}


def folder_of(tmp_path: Path, word: str, statement: str, name: str = "helpers") -> Path:
    folder = tmp_path / word
    folder.mkdir()
    (folder / f"{name}.py").write_text(f"WORD = {word!r}\n")
    (folder / "between.py").write_text("from helpers import WORD\n")
    (folder / "task.py").write_text(statement + "\n")
    return folder / "task.py"


@pytest.mark.parametrize("way", WAYS)
def test_two_files_get_each_their_own_helpers(tmp_path: Path, way: str) -> None:
    files = [folder_of(tmp_path, word, WAYS[way]) for word in ("ash", "birch")]
    loaded = [UserModules(file) for file in files]
    assert [one.load().WORD for one in loaded] == ["ash", "birch"]
    for one, file in zip(loaded, files, strict=True):
        helpers = file.parent / "helpers.py"
        assert one.code[str(helpers)] == hashlib.sha256(helpers.read_bytes()).hexdigest()
        assert set(one.code) <= {str(path) for path in file.parent.glob("*.py")}
    assert "helpers" not in sys.modules and "between" not in sys.modules


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("run", "by its place")])
def test_what_is_imported_later_is_the_files_own(tmp_path: Path, way: str) -> None:
    body = WAYS[way].replace("from helpers import *", "from helpers import WORD")
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    later = f"def later():\n{indented}\n    return locals()['WORD']"
    files = [folder_of(tmp_path, word, later) for word in ("ash", "birch")]
    modules = [UserModules(file) for file in files]
    loaded = [one.load() for one in modules]
    assert [module.later() for module in loaded] == ["ash", "birch"]
    assert [module.later() for module in reversed(loaded)] == ["birch", "ash"]
    if way not in ("importlib", "import_module", "importlib.util", "builtin", "exec"):
        assert all(str(one.file.parent / "helpers.py") in one.code for one in modules)


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_a_module_of_any_name_of_ours_is_the_users(tmp_path: Path, name: str) -> None:
    file = folder_of(tmp_path, "ash", f"from {name} import WORD", name)
    before = sys.modules.get(name)
    assert UserModules(file).load().WORD == "ash"
    assert sys.modules.get(name) is before


@pytest.mark.parametrize("name", ["random", "calendar", "secrets", "types", "json", "tinker"])
def test_a_module_of_a_librarys_name_is_the_users_and_the_libraries_keep_theirs(
    tmp_path: Path, name: str
) -> None:
    file = folder_of(tmp_path, "ash", f"import email.utils\nfrom {name} import WORD", name)
    before = sys.modules.get(name)
    assert UserModules(file).load().WORD == "ash"
    assert sys.modules.get(name) is before


def test_a_folder_of_data_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "task.py").write_text("from yaml import safe_load\nWORD = safe_load('ash')\n")
    assert UserModules(tmp_path / "task.py").load().WORD == "ash"


def test_packages_without_an_init_are_packages_too(tmp_path: Path) -> None:
    for word in ("ash", "birch"):
        (tmp_path / word / "parts" / "inner").mkdir(parents=True)
        (tmp_path / word / "parts" / "inner" / "deep.py").write_text(f"WORD = {word!r}\n")
        (tmp_path / word / "task.py").write_text("import parts.inner.deep\nM = parts\n")
    modules = [UserModules(tmp_path / word / "task.py") for word in ("ash", "birch")]
    assert [one.load().M.inner.deep.WORD for one in modules] == ["ash", "birch"]
    assert all(str(one.file.parent / "parts/inner/deep.py") in one.code for one in modules)


def test_a_file_of_a_package_starts_at_the_package(tmp_path: Path) -> None:
    package = tmp_path / "project" / "mine" / "sub"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package.parent / "above.py").write_text("WORD = 'ash'\n")
    (package / "beside.py").write_text("from ..above import WORD as UP\nWORD = 'birch'\n")
    (package / "task.py").write_text(
        "from .beside import UP, WORD\nfrom mine.above import WORD as WHOLE\n"
    )
    modules = UserModules(package / "task.py")
    module = modules.load()
    assert (module.UP, module.WORD, module.WHOLE) == ("ash", "birch", "ash")
    assert {Path(path).name for path in modules.code} == {
        "__init__.py",
        "above.py",
        "beside.py",
        "task.py",
    }


def test_places_on_the_path_are_the_users_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "shared_words.py").write_text("WORD = 'ash'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    (tmp_path / "task.py").write_text("from shared_words import WORD\n")
    modules = UserModules(tmp_path / "task.py")
    assert modules.load().WORD == "ash"
    assert str(tmp_path / "lib" / "shared_words.py") in modules.code
    assert "shared_words" not in sys.modules


def test_a_place_that_the_file_itself_puts_on_the_path(tmp_path: Path) -> None:
    path = list(sys.path)
    for word in ("ash", "birch"):
        (tmp_path / word / "lib").mkdir(parents=True)
        (tmp_path / word / "lib" / "words.py").write_text(f"WORD = {word!r}\n")
        (tmp_path / word / "task.py").write_text(
            "import sys, pathlib\n"
            "sys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib'))\n"
            "from words import WORD\n"
        )
    modules = [UserModules(tmp_path / word / "task.py") for word in ("ash", "birch")]
    assert [one.load().WORD for one in modules] == ["ash", "birch"]
    assert sys.path == path
    assert all(str(one.file.parent / "lib/words.py") in one.code for one in modules)


def test_changed_code_is_run_as_it_stands_now(tmp_path: Path) -> None:
    """Bytecode of an older one may have the same time and size."""
    file = folder_of(tmp_path, "ash", "from helpers import WORD")
    assert UserModules(file).load().WORD == "ash"
    (file.parent / "helpers.py").write_text("WORD = 'oak'\n")
    assert UserModules(file).load().WORD == "oak"


def test_a_module_of_the_loop_is_taken_where_no_other_has_its_name(tmp_path: Path) -> None:
    import simple_eval

    (tmp_path / "task.py").write_text("import simple_eval\nM = simple_eval\n")
    assert UserModules(tmp_path / "task.py").load().M is simple_eval
    assert "simple_eval" in OURS


def test_what_lies_in_a_module_can_be_looked_up_by_its_name(tmp_path: Path) -> None:
    """As dataclasses, pickle and type hints do."""
    import pickle
    import typing

    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\n"
        "@dataclass\nclass Word:\n    text: str\n    _: KW_ONLY\n    n: int = 1\n"
    )
    (tmp_path / "helpers.py").write_text(text)
    (tmp_path / "task.py").write_text("from helpers import Word\n")
    word = UserModules(tmp_path / "task.py").load().Word("ash", n=2)
    assert pickle.loads(pickle.dumps(word)) == word
    assert typing.get_type_hints(type(word))["n"] is int


def test_names_that_no_import_statement_can_say(tmp_path: Path) -> None:
    for name in ("my-task.py", "a.b.py", "für.py", "1.py", "class.py", "__init__.py"):
        (tmp_path / name).write_text("WORD = __name__\n")
        assert UserModules(tmp_path / name).load().WORD


def test_an_error_is_told_in_the_users_words(tmp_path: Path) -> None:
    file = folder_of(tmp_path, "ash", "from helpers import NOTHING")
    modules = UserModules(file)
    with pytest.raises(ImportError) as caught:
        modules.load()
    assert "cannot import name 'NOTHING' from 'helpers'" in modules.in_users_words(
        str(caught.value)
    )


def test_the_code_is_known_without_running_any(tmp_path: Path) -> None:
    statement = "from helpers import WORD\nraise SystemExit('it was run')"
    file = folder_of(tmp_path, "ash", statement)
    assert set(code_of(file)) == {str(file), str(file.parent / "helpers.py")}


IN_FOLDER = {  # how a file takes WORD from lib/rules.py, in a folder without __init__.py
    "top": "from lib.rules import WORD\ndef later():\n    return WORD\n",
    "later": "def later():\n    from lib.rules import WORD\n    return WORD\n",
    "both": "import lib.rules\ndef later():\n    from lib.rules import WORD\n    return WORD\n",
}


@pytest.mark.parametrize("first", IN_FOLDER)
@pytest.mark.parametrize("second", IN_FOLDER)
def test_folders_without_an_init_are_each_files_own(
    tmp_path: Path, first: str, second: str
) -> None:
    for word, way in (("ash", first), ("birch", second)):
        (tmp_path / word / "lib").mkdir(parents=True)
        (tmp_path / word / "lib" / "rules.py").write_text(f"WORD = {word!r}\n")
        (tmp_path / word / "task.py").write_text(IN_FOLDER[way])
    modules = [UserModules(tmp_path / word / "task.py") for word in ("ash", "birch")]
    loaded = [one.load() for one in modules]
    for _ in range(2):
        assert [module.later() for module in loaded] == ["ash", "birch"]
    assert "lib" not in sys.modules and "lib.rules" not in sys.modules
    for one in modules:
        assert set(one.code) == {str(one.file), str(one.file.parent / "lib/rules.py")}


class _Parsing:
    """Garbage that parses when it is collected, as a report with a traceback does."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("1 + 1")


def test_a_file_is_parsed_whatever_is_collected_meanwhile() -> None:
    text = "\n".join(f"def f{i}(a, b):\n    return [(a, (b, (1, {i})))]" for i in range(50))
    thresholds = gc.get_threshold()
    try:
        for threshold in range(1, 400, 20):
            gc.disable()
            _Parsing()
            gc.set_threshold(threshold, 1, 1)
            gc.enable()
            assert len(parsed(text).body) == 50
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
