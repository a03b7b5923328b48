"""Chat formats beside the models' own chat templates: chosen, compared, refused, and stopped."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker_cookbook.renderers as cookbook
from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tinker_cookbook.tokenizer_utils import register_tokenizer, unregister_tokenizer

import rows.chat_templates as chat_templates
from chat_models import (
    CHATML_TEMPLATE,
    DEEPSEEK_TOKENS,
    GLM_TOKENS,
    HARMONY_TOKENS,
    KIMI_TOKENS,
    SHAPES,
    THINK,
    Shape,
    make_tokenizer,
    make_tokenizer_dir,
)
from conftest import REPO
from errors import ConfigError, TokenizerError
from model_dirs import LLAMA3_TEMPLATE, LLAMA_TOKENS, QWEN_TOKENS, make_model_dir
from rows.chat_formats import (
    MARKERS,
    ChatFormat,
    choose_format,
    load_tokenizer,
    resolve_train_on,
)
from rows.chat_templates import Difference, read_template
from test_docs import block
from test_loop import Workspace
from trainer_with_eval import main

SYSTEM = {"role": "system", "content": "Be brief, and kind."}
CHAT = [
    {"role": "user", "content": "How many legs has a spider?"},
    {"role": "assistant", "content": "Eight."},
    {"role": "user", "content": "And a bee? (It is an insect.)"},
    {"role": "assistant", "content": "Six, in three pairs."},
]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A directory for each published shape."""
    folder = tmp_path_factory.mktemp("shapes")
    return {
        name: str(make_tokenizer_dir(folder / str(number), shape))
        for number, (name, shape) in enumerate(SHAPES.items())
    }


def directory(tmp_path: Path, template: Any, shape: str = "Qwen3", **changes: Any) -> str:
    changed = SHAPES[shape]._replace(template=template, **changes)
    return str(make_tokenizer_dir(tmp_path / "model", changed))


def line(chat_format: ChatFormat) -> str:
    return next(one for one in chat_format.lines() if one.startswith("chat template: "))


# --- what is chosen for which model -------------------------------------------------------------


CHOSEN = {
    "Llama 3": "llama3",
    "Llama 3.1, 3.2, 3.3": "llama3",
    "Llama 3 without a template": None,
    "Qwen3": "qwen3",
    "Qwen3-Instruct-2507": "qwen3_instruct",
    "Qwen3-Thinking-2507": "qwen3_5",
    "Qwen3.5, 3.6": "qwen3_5",
    "Qwen2.5": "qwen3_instruct",
    "Hermes 3 on Llama 3.1": "qwen3_instruct",
    "R1-Distill-Llama": None,
    "DeepSeek-V3.1": "deepseekv3",
    "gpt-oss": "gpt_oss_medium_reasoning",
    "Kimi-K2-Thinking": "kimi_k2",
    "Kimi-K2.5": "kimi_k25",
    "GLM-5.3": "glm5_3_max_reasoning",
    "Nemotron 3 Nano, Super": "nemotron3",
    "Nemotron 3 Ultra": "nemotron3_ultra",
    "Gemma 2": None,
    "a base model's `User:`, `Assistant:`": "role_colon",
}
DIFFERING = ("Llama 3.1, 3.2, 3.3", "Qwen2.5", "Hermes 3 on Llama 3.1")


@pytest.mark.parametrize("name", SHAPES)
def test_the_renderer_that_writes_what_the_template_writes_is_taken(
    shapes: dict[str, str], name: str
) -> None:
    """Of conversations that the comparison has not seen, by transformers itself."""
    expected = CHOSEN[name]
    if expected is None:
        with pytest.raises(ConfigError, match=r'"renderer_name": "\w+"'):
            choose_format(None, shapes[name])
        return
    found = choose_format(None, shapes[name])
    assert found.name == expected
    assert found.comparison is not None
    assert found.comparison.agrees == (name not in DIFFERING)
    tokenizer = load_tokenizer(shapes[name])
    for num in (1, 3):
        theirs = tokenizer.apply_chat_template(
            CHAT[:num], add_generation_prompt=True, return_dict=False
        )
        ours = found.renderer.build_generation_prompt(CHAT[:num]).to_ints()  # pyright: ignore[reportArgumentType]
        assert (theirs == ours) == found.comparison.agrees
    theirs = tokenizer.apply_chat_template(CHAT, tokenize=False)
    ours = tokenizer.decode(found.renderer.build_supervised_example(CHAT)[0].to_ints())  # pyright: ignore[reportArgumentType]
    if found.comparison.agrees:
        # What ends a turn by beginning the next is trained, and no part of the conversation.
        assert re.sub(r"User:$|<\|user\|>$", "", ours).rstrip() == theirs.rstrip()
    else:
        assert found.comparison.is_same_after_opening
        question = CHAT[0]["content"]
        assert ours.partition(question)[2] == theirs.partition(question)[2].rstrip()


def written(difference: Difference) -> str:
    theirs, ours = (
        f"`{side.encode('unicode_escape').decode() if side.isascii() else side}`"
        if side
        else "nothing"
        for side in (difference.template, difference.renderer)
    )
    return f"the template has {theirs}, the renderer {ours}"


def table(shapes: dict[str, str]) -> str:
    """The page's table, from what the code says of each shape."""
    rows = ["| model | `renderer_name: null` | beside its chat template |", "|---|---|---|"]
    for name, path in shapes.items():
        try:
            chosen = choose_format(None, path)
            result = f"`{chosen.name}`"
        except ConfigError as error:
            (named,) = re.findall(r'"renderer_name": "(\w+)"', str(error))
            chosen = choose_format(named, path)
            result = f"exit 2; `{named}` can be set"
        comparison = chosen.comparison
        assert comparison is not None
        differences = list(comparison.differences.items())
        if not comparison.template.is_known:
            said = "none to compare with"
        elif comparison.agrees:
            said = "; ".join(["equal", *(f"{n} differs" for n, _ in differences)])
        else:
            said = f"{differences[0][0]}: {written(differences[0][1])}"
            said += ", and from the first question on the same" * comparison.is_same_after_opening
        said += "".join(f"; {probe}: refused" for probe in comparison.template.refused)
        cells = name, result, said
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def test_the_page_shows_what_the_code_says(shapes: dict[str, str]) -> None:
    assert block("docs/data.md", "chat formats") == table(shapes)


# --- by name ------------------------------------------------------------------------------------


@pytest.fixture
def on_hub() -> Iterator[Any]:
    """Hub models whose tokenizers are at hand, as in the user's cache."""
    names: list[str] = []

    def put(name: str, shape: str) -> str:
        tokenizer: Any = make_tokenizer(SHAPES[shape])
        register_tokenizer(name, lambda: tokenizer)
        names.append(name)
        return name

    yield put
    for name in names:
        unregister_tokenizer(name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Qwen/Qwen3-8B", "Qwen3"),
        ("Qwen/Qwen3-8B-Base", "Qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen3-Instruct-2507"),
        ("Qwen/Qwen3.5-4B", "Qwen3.5, 3.6"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1, 3.2, 3.3"),
        ("deepseek-ai/DeepSeek-V3.1", "DeepSeek-V3.1"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("moonshotai/Kimi-K2-Thinking", "Kimi-K2-Thinking"),
        ("moonshotai/Kimi-K2.5", "Kimi-K2.5"),
        ("zai-org/GLM-5.3", "GLM-5.3"),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "Nemotron 3 Nano, Super"),
        ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", "Nemotron 3 Ultra"),
        ("nobody/hermes", "Hermes 3 on Llama 3.1"),
    ],
)
def test_a_name_and_a_directory_get_the_same_answer(
    on_hub: Any, shapes: dict[str, str], name: str, shape: str
) -> None:
    by_name, by_directory = (
        choose_format(None, one) for one in (on_hub(name, shape), shapes[shape])
    )
    assert by_name.name == by_directory.name == CHOSEN[shape]
    assert line(by_name) == line(by_directory)
    if name in ("Qwen/Qwen3-8B-Base", "openai/gpt-oss-20b"):
        assert "; the cookbook recommends " in by_name.source


def test_a_name_without_a_template_has_the_cookbooks_renderer(on_hub: Any) -> None:
    name = on_hub("meta-llama/Llama-3.3-70B-Instruct", "Llama 3 without a template")
    bare = choose_format(None, name)
    assert bare.name == "llama3"
    assert "the cookbook's recommendation for this name" in bare.source
    assert line(bare).endswith("has no chat template, so nothing is compared")


def test_llama_3s_base_models_have_no_template_of_their_own(on_hub: Any) -> None:
    base = choose_format(None, on_hub("meta-llama/Llama-3.2-1B", "Llama 3"))
    assert base.name == "role_colon"
    assert "lent" in line(base)


@pytest.mark.parametrize(
    ("name", "model", "is_told"),
    [
        ("role_colon", str(REPO / "demo_model"), True),  # it begins each piece with a space
        ("llama3", str(REPO / "demo_model"), False),
        ("role_colon", "Llama 3", False),
    ],
)
def test_an_end_that_no_row_has_is_told(
    shapes: dict[str, str], name: str, model: str, is_told: bool
) -> None:
    told = list(choose_format(name, shapes.get(model, model)).lines())
    warnings = [one for one in told if one.startswith("warning: ")]
    assert len(warnings) == is_told
    assert not is_told or "the rows have '\\n\\n User:' there" in warnings[0]


def test_names_that_cannot_be_looked_up() -> None:
    with pytest.raises(
        ConfigError, match="cookbook recommends no renderer for 'nobody/nothing-1b'"
    ):
        choose_format(None, "nobody/nothing-1b")
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        choose_format(None, "Qwen/Qwen3-8B")


# --- an explicit name ---------------------------------------------------------------------------


def test_a_name_that_differs_is_used_and_its_difference_shown(shapes: dict[str, str]) -> None:
    found = choose_format("qwen3", shapes["Qwen3-Instruct-2507"])
    assert (found.name, found.source) == ("qwen3", "renderer_name")
    assert "differs in a conversation of two turns: from token " in line(found)
    assert r"the renderer '<think>\n\n</think>\n\nGold" in line(found)
    assert "vLLM and Ollama write prompts by the template" in line(found)


@pytest.mark.parametrize(
    ("name", "shape", "lacking"),
    [
        (
            "kimi_k2",
            "Qwen3",
            "<|im_system|>, <|im_user|>, <|im_assistant|>, <|im_middle|> as tokens",
        ),
        ("qwen3", "Qwen2.5", "<think>, </think> as tokens"),
        ("nemotron3", "Qwen2.5", "<think>, </think>"),
        ("llama3", "Qwen3", "<|begin_of_text|>, <|start_header_id|>"),
        ("gpt_oss_no_sysprompt", "Llama 3", "<|start|>, <|channel|>"),
        ("deepseekv3", "Llama 3", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
    ],
)
def test_a_name_whose_markers_are_not_there_is_refused(
    shapes: dict[str, str], name: str, shape: str, lacking: str
) -> None:
    with pytest.raises(ConfigError, match=f"does not fit .* lacks {re.escape(lacking)}"):
        choose_format(name, shapes[shape])


def test_qwen3_on_a_tokenizer_that_declares_think_special_is_refused(tmp_path: Path) -> None:
    """Its text is cut with special tokens split, so <think> would be seven letters."""
    path = directory(tmp_path, SHAPES["Qwen3"].template, special=[*QWEN_TOKENS, *THINK], added=[])
    with pytest.raises(ConfigError, match=r"lacks <think>, </think> as tokens .* letter by letter"):
        choose_format("qwen3", path)


# --- templates that cannot be compared ------------------------------------------------------------


FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{{ raise_exception('only in French') }}",
            "it fails with TemplateError: 'only in French'",
        ),
        ("{% if %}", "it fails with TemplateSyntaxError: "),
        ("{{ 1 / 0 }}", "it fails with ZeroDivisionError: 'division by zero'"),
        ("{{ messages.gone.too }}", "it fails with UndefinedError: "),
        ("{{ messages.__class__.__mro__ }}", "it fails with SecurityError: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it fails with RecursionError: "),
        ("{# nothing #}", "it writes nothing"),
        ({"tool_use": "x"}, "it fails with ValueError: 'This model has multiple chat templates"),
    ],
)
def test_a_template_that_fails_is_nothing_to_go_by(
    tmp_path: Path, template: Any, problem: str
) -> None:
    path = directory(tmp_path, template)
    with pytest.raises(ConfigError) as refused:
        choose_format(None, path)
    assert f"the model's chat template cannot be compared: {problem}" in str(refused.value)
    assert '"renderer_name": "qwen3"' in str(refused.value)
    found = choose_format("qwen3_instruct", path)
    assert problem in line(found) and line(found).endswith("so nothing is compared")


def test_a_template_that_loops_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "LIMIT_S", 0.3)
    before = threading.active_count()
    start = time.monotonic()
    found = choose_format("qwen3", directory(tmp_path, FOREVER))
    assert time.monotonic() - start < 4
    assert line(found).startswith(
        "chat template: the model's chat template cannot be compared: it has not ended within 0.3 s"
    )
    assert threading.active_count() == before
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.1, "something still runs"


def test_a_template_that_loops_with_a_system_turn_alone_is_one_that_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "LIMIT_S", 0.3)
    some = f"{{% if messages[0].role == 'system' %}}{FOREVER}{{% endif %}}{CHATML_TEMPLATE}"
    with pytest.raises(ConfigError, match=r"has not ended within 0\.3 s, and was stopped"):
        choose_format(None, directory(tmp_path, some))


def test_ctrl_c_during_a_template_stops_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory(tmp_path, FOREVER))
    before = threading.active_count()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_template(tokenizer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert threading.active_count() == before


def test_a_template_that_refuses_a_system_turn_is_compared_without(shapes: dict[str, str]) -> None:
    found = choose_format("role_colon", shapes["Gemma 2"])
    assert "a prompt with a system turn: it fails with TemplateError: 'System role not" in line(
        found
    )
    assert "differs in a prompt: from token 1 on, after '<bos>' the template has" in line(found)


@pytest.mark.parametrize("template", [None, ""])
def test_no_template_is_said_with_where_it_would_be(tmp_path: Path, template: str | None) -> None:
    with pytest.raises(ConfigError, match=r"no chat template \(chat_template.jinja, or") as refused:
        choose_format(None, directory(tmp_path, template))
    assert '"renderer_name": "qwen3"' in str(refused.value)
    with pytest.raises(
        ConfigError, match=r"Put its chat template into .*chat_template.jinja, or na"
    ):
        choose_format(None, str(tmp_path / "model"), key="evaluation.grader_model")


def test_of_named_templates_the_default_one_counts(tmp_path: Path) -> None:
    found = choose_format(None, directory(tmp_path, {"tool_use": "x", "default": CHATML_TEMPLATE}))
    assert found.name == "qwen3_instruct"


def test_a_template_file_comes_before_the_one_in_the_config(tmp_path: Path) -> None:
    path = directory(tmp_path, None)
    file = Path(path) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    named = [{"name": "default", "template": LLAMA3_TEMPLATE}]
    for given in (SHAPES["Qwen3"].template, [*named, {"name": "tool_use", "template": "x"}]):
        file.write_text(json.dumps({**config, "chat_template": given}))
        if isinstance(given, str):
            assert choose_format(None, path).name == "qwen3"
        else:  # Llama 3's, on a tokenizer that has none of its tokens
            with pytest.raises(ConfigError, match="none of the known chat formats is that of"):
                choose_format(None, path)
    (Path(path) / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    assert choose_format(None, path).name == "qwen3_instruct"


def test_a_tokenizer_without_any_special_token(tmp_path: Path) -> None:
    bare = Shape(None, [], [], None, "a")
    tokenizer = make_tokenizer(bare)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(ConfigError, match='"renderer_name": "role_colon"'):
        choose_format(None, str(tmp_path / "none"))
    assert choose_format("role_colon", str(tmp_path / "none")).name == "role_colon"
    template = str(SHAPES["a base model's `User:`, `Assistant:`"].template)
    tokenizer.chat_template = template.replace("bos_token if loop.first", '"" if true')
    tokenizer.save_pretrained(tmp_path / "colon")
    assert choose_format(None, str(tmp_path / "colon")).name == "role_colon"


# --- what is trained, and what it is trained after ----------------------------------------------


@pytest.fixture(scope="session")
def everything() -> Any:
    """A tokenizer with the markers of all renderers."""
    system = "<\uff5cSystem\uff5c>"
    names = [
        *LLAMA_TOKENS,
        *QWEN_TOKENS,
        *HARMONY_TOKENS,
        *KIMI_TOKENS,
        *DEEPSEEK_TOKENS,
        *GLM_TOKENS,
    ]
    special = list(dict.fromkeys([*names, system]))
    return make_tokenizer(Shape(None, special, THINK, "<|begin_of_text|>", "<|im_end|>"))


def test_all_of_the_cookbooks_renderers_are_known(everything: Any) -> None:
    """With the markers that they write, and in its order where it recommends several."""
    from tinker_cookbook import model_info

    made = set(re.findall(r'name == "(\w+)"', inspect.getsource(cookbook.get_renderer)))
    assert made == {*MARKERS, "tml_v0"}
    for name, markers in MARKERS.items():
        renderer = get_renderer(name, everything)
        probes = [*chat_templates.DECISIVE, chat_templates.SYSTEM]
        text = "".join(
            everything.decode(chat_templates.write_probe(renderer, probe)) for probe in probes
        )
        found = set(
            re.findall(r"<[|\uff5c][^|\uff5c<>]+[|\uff5c]>|</?think>|<sop>|\[gMASK\]", text)
        )
        assert found - {"<|begin_of_text|>"} <= set(markers), name
    order = list(MARKERS)
    for family in [value for key, value in vars(model_info).items() if re.match("_[A-Z]", key)]:
        places = [order.index(name) for name in family if name in MARKERS]
        assert places == sorted(places), family


def reasoned(message: dict[str, str]) -> dict[str, Any]:
    parts = [
        {"type": "thinking", "thinking": "I count them."},
        {"type": "text", "text": message["content"]},
    ]
    return {"role": "assistant", "content": parts}


# Their own templates write otherwise than they ask (tinker-cookbook#860).
ASKED_OTHERWISE = {
    name
    for name in MARKERS
    if name.startswith("nemotron3") and not name.endswith("disable_thinking")
}


@pytest.mark.filterwarnings("ignore:use_system_prompt=True but messages already start")
@pytest.mark.parametrize("name", MARKERS)
def test_what_is_trained_begins_with_what_is_sampled(everything: Any, name: str) -> None:
    """Token by token, reasoning prefills included, with and without reasoning in the rows."""
    renderer: Any = get_renderer(name, everything)
    thinking = [CHAT[0], reasoned(CHAT[1]), CHAT[2], reasoned(CHAT[3])]
    for messages in (CHAT[:2], CHAT, [SYSTEM, *CHAT], thinking[:2], thinking):
        with_reasoning = not isinstance(messages[-1]["content"], str)
        try:
            trained, weights = renderer.build_supervised_example(messages)
        except ValueError:  # no place for reasoning, or told to have none
            assert with_reasoning
            continue
        sampled = renderer.build_generation_prompt(messages[:-1]).to_ints()
        is_same = trained.to_ints()[: len(sampled)] == sampled
        assert is_same == (with_reasoning or name not in ASKED_OTHERWISE)
        if is_same:
            assert not weights[: len(sampled)].any()
            assert weights[len(sampled)] > 0
    notes = list(
        ChatFormat(name, renderer, "", chat_templates.Comparison(read_template(None))).lines()
    )
    assert any("and sampled after" in note for note in notes) == (name in ASKED_OTHERWISE)


OLD_ANSWERS = ("all_assistant_messages", "all_messages", "all_tokens")
TRAINED_WRONGLY = {
    "llama3": (),
    "role_colon": (),
    "qwen3_instruct": (),
    "deepseekv3": (),
    "glm5_3_max_reasoning": (),
    "qwen3": (*OLD_ANSWERS, "last_assistant_turn"),
    "qwen3_disable_thinking": OLD_ANSWERS,  # it refuses rows of two answers to a question itself
    "qwen3_5": (*OLD_ANSWERS, "last_assistant_turn"),
    "deepseekv3_thinking": (*OLD_ANSWERS, "last_assistant_turn"),
    "gpt_oss_medium_reasoning": (*OLD_ANSWERS, "last_assistant_turn"),
    "kimi_k2": OLD_ANSWERS,
}


@pytest.mark.parametrize("name", TRAINED_WRONGLY)
def test_messages_that_sampling_would_not_meet_are_not_trained(everything: Any, name: str) -> None:
    renderer = get_renderer(name, everything)
    refused = set()
    for value in TrainOnWhat:
        if value == TrainOnWhat.CUSTOMIZED:  # not a setting
            continue
        try:
            assert resolve_train_on(renderer, value.value) == value
        except ConfigError as error:
            assert f"data.train_on is {value.value}" in str(error)
            assert "trained on what sampling never sees" in str(error)
            refused.add(value.value)
        assert resolve_train_on(renderer, TrainOnWhat(value)) == value  # as a run began
    assert refused == set(TRAINED_WRONGLY[name])
    default = "last_assistant_message" if OLD_ANSWERS[0] in refused else OLD_ANSWERS[0]
    assert resolve_train_on(renderer, None).value == default


TWO_IN_A_TURN = [CHAT[0], CHAT[1], CHAT[3]]


@pytest.mark.parametrize("name", TRAINED_WRONGLY)
def test_an_answer_is_trained_as_it_would_be_sampled(everything: Any, name: str) -> None:
    """What the guard lets through is right, by every answer that carries loss: the tokens up to its
    end are those of the conversation that ends there. What it refuses is not."""
    renderer: Any = get_renderer(name, everything)

    def is_right(messages: list[dict[str, str]], value: str) -> bool:
        made, weights = renderer.build_supervised_example(messages, TrainOnWhat(value))
        tokens = made.to_ints()
        trained = everything.decode([t for t, w in zip(tokens, weights.tolist(), strict=True) if w])
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and message["content"] in trained:
                alone = renderer.build_supervised_example(messages[: number + 1])[0].to_ints()
                if not renderer.has_extension_property and tokens[: len(alone)] != alone:
                    return False
                end = everything.decode(alone).rindex(message["content"])
                if everything.decode(tokens)[:end] != everything.decode(alone)[:end]:
                    return False
        return True

    for value in set(TrainOnWhat) - {TrainOnWhat.CUSTOMIZED}:
        rows = [CHAT[:2], CHAT] if name == "qwen3_disable_thinking" else [CHAT, TWO_IN_A_TURN]
        is_refused = value.value in TRAINED_WRONGLY[name]
        assert is_refused != all(is_right(row, value.value) for row in rows) or (
            name in ("kimi_k2", "deepseekv3_thinking") and is_refused  # by rows with reasoning
        ), value


# --- from the command line ------------------------------------------------------------------------


def test_a_dry_run_says_what_was_compared(
    tmp_path: Path, qwen_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    workspace = Workspace(tmp_path, qwen_dir)
    assert workspace.run("run", "--dry-run") == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "renderer: qwen3 (by default)" in told
    (compared,) = [one for one in told if one.startswith("chat template: ")]
    assert compared.startswith(
        "chat template: equal to the renderer's, token by token, in a prompt"
    )
    assert any(one.startswith("rows without reasoning: ") for one in told)
    assert any(one.startswith("trained on: last_assistant_message (by default") for one in told)
    assert workspace.run("run", "--dry-run", data={"train_on": "all_tokens"}) == 2
    assert "data.train_on is all_tokens" in capsys.readouterr().err


def test_a_directory_without_a_template_asks_for_the_format(
    workspace: Workspace, llama_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = workspace.folder / "bare"
    shutil.copytree(llama_dir, bare)
    (bare / "chat_template.jinja").unlink()
    assert workspace.run("run", "--dry-run", base_model="bare") == 2
    assert '"renderer_name": "llama3"' in capsys.readouterr().err
    judged = {"grader_model": "bare", "max_tokens": 4}
    setting = {"base_model": "bare", "renderer_name": "llama3"}
    assert workspace.run("run", "--dry-run", **setting, evaluation=judged) == 0
    told = capsys.readouterr().out
    assert "chat template: the model has no chat template, so nothing is compared" in told
    assert "grader's renderer: llama3 (renderer_name)" in told
    assert workspace.run("run", "--dry-run", evaluation=judged) == 2
    told = capsys.readouterr().err
    assert "evaluation.grader_model: which chat format" in told
    assert "or name another model as evaluation.grader_model" in told


@pytest.mark.trains
def test_a_run_goes_on_in_the_format_that_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also an older one, which recorded less and was refused less."""
    model = make_model_dir(tmp_path / "model", "qwen3")
    workspace = Workspace(tmp_path, model)
    assert workspace.run("run", max_rounds=1) == 0
    file = workspace.folder / "run" / "config.resolved.json"
    resolved = json.loads(file.read_text())
    assert resolved["resolved"]["train_on"] == "last_assistant_message"
    assert resolved["resolved"]["chat_template"].startswith("equal to the renderer's")
    for key in ("train_on", "chat_template", "grader_renderer_name"):
        del resolved["resolved"][key]
    resolved["config"]["data"]["train_on"] = "all_messages"
    file.write_text(json.dumps(resolved))
    (model / "chat_template.jinja").write_text("{{ raise_exception('changed') }}")
    arguments = ["--resume", str(workspace.folder / "run"), "--set", "max_rounds=2"]
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "renderer: qwen3 (by default, as recorded)" in told
    assert not [one for one in told if one.startswith("chat template: ")]
    assert "trained on: all_messages (data.train_on)" in told
