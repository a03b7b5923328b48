"""The chat template of an export: what writes prompts as the renderer does, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_models import CHATML_TEMPLATE, SHAPES, Shape, make_tokenizer_dir
from conftest import IS_THOROUGH, REPO
from errors import ExportError
from exports.ollama import AnswerSettings, modelfile
from exports.served_template import ServedTemplate
from exports.template_parts import REFUSED_TOOLS, REFUSED_TURN, parts_of
from exports.templates import FURTHER, MAIN, OWN, expected_prompts, served_template
from rows.chat_formats import MARKERS, load_renderer, load_tokenizer

QWEN, KIMI, DEEPSEEK = "Qwen3", "Kimi-K2-Thinking", "DeepSeek-V3.1"
NANO, ULTRA = "Nemotron 3 Nano, Super", "Nemotron 3 Ultra"
MADE = "made"
# Each renderer with a tokenizer that it fits: whose template is served, and for Ollama as well.
TABLE: dict[str, tuple[str, str, bool]] = {
    "llama3": ("Llama 3", MADE, True),  # the model's own takes white space off
    "qwen3": (QWEN, OWN, True),
    "qwen3_disable_thinking": (QWEN, MADE, True),
    "qwen3_instruct": ("Qwen3-Instruct-2507", OWN, True),
    "qwen3_vl_instruct": (QWEN, OWN, True),
    "qwen3_vl": (QWEN, OWN, True),
    "qwen3_5": (QWEN, MADE, True),
    "qwen3_5_disable_thinking": (QWEN, MADE, True),
    "qwen3_5_preserve_thinking": (QWEN, MADE, True),
    "qwen3_8_xhigh_reasoning": (QWEN, MADE, True),
    "qwen3_8_disable_thinking": (QWEN, MADE, True),
    "qwen3_8_medium_reasoning": (QWEN, MADE, True),
    "qwen3_8_low_reasoning": (QWEN, MADE, True),
    "nemotron3": (NANO, MADE, True),
    "nemotron3_disable_thinking": (NANO, MADE, True),
    "nemotron3_preserve_thinking": (NANO, MADE, True),
    "nemotron3_low_thinking": (NANO, MADE, True),
    "nemotron3_ultra": (ULTRA, MADE, True),
    "nemotron3_ultra_disable_thinking": (ULTRA, MADE, True),
    "nemotron3_ultra_medium_thinking": (ULTRA, MADE, True),
    "nemotron3_ultra_preserve_thinking": (ULTRA, MADE, True),
    "deepseekv3": (DEEPSEEK, OWN, True),
    "deepseekv3_disable_thinking": (DEEPSEEK, OWN, True),
    "deepseekv3_thinking": (DEEPSEEK, MADE, True),
    "gpt_oss_no_sysprompt": ("gpt-oss", MADE, True),
    "gpt_oss_medium_reasoning": ("gpt-oss", OWN, False),
    "gpt_oss_low_reasoning": ("gpt-oss", MADE, False),
    "gpt_oss_high_reasoning": ("gpt-oss", MADE, False),
    "kimi_k2": (KIMI, MADE, True),
    "kimi_k25": (KIMI, MADE, True),
    "kimi_k25_disable_thinking": (KIMI, MADE, True),
    "kimi_k26": (KIMI, MADE, True),
    "kimi_k26_disable_thinking": (KIMI, MADE, True),
    "kimi_k26_preserve_thinking": ("Kimi-K2.5", OWN, True),
    "glm5_3_max_reasoning": ("GLM-5.3", OWN, True),
    "glm5_3_low_reasoning": ("GLM-5.3", MADE, True),
    "glm5_3_high_reasoning": ("GLM-5.3", MADE, True),
    "role_colon": ("Llama 3", MADE, True),
}


@pytest.fixture(scope="module")
def tokenizer_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    names = dict.fromkeys(shape for shape, *_ in TABLE.values())
    return {
        name: make_tokenizer_dir(folder / str(number), SHAPES[name])
        for number, name in enumerate(names)
    }


def prompt(template: str, tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> list:
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **more,
    )


def test_table_has_every_renderer() -> None:
    without_a_tokenizer = {name for name in MARKERS if name.startswith("deepseekv4_1")}
    assert TABLE.keys() == MARKERS.keys() - without_a_tokenizer


@pytest.mark.parametrize("name", TABLE)
def test_served_template_writes_what_the_renderer_writes(
    name: str, tokenizer_dirs: dict[str, Path]
) -> None:
    shape, origin, has_go = TABLE[name]
    served = served_template(tokenizer_dirs[shape], name)
    assert (OWN if served.origin == OWN else MADE) == origin
    assert (served.go is not None) == has_go
    assert {one.name for one in MAIN} <= set(served.proven_on)
    # What is said to be proven is compared once more, and so is the one in plain constructs.
    renderer = load_renderer(name, str(tokenizer_dirs[shape]))
    tokenizer, expected = renderer.tokenizer, expected_prompts(renderer)
    for one in (*MAIN, *FURTHER):
        if one.name in served.proven_on:
            found = prompt(served.jinja, tokenizer, one.messages)
            assert found == expected[one.name], one.name
    plain = served.plain or served
    assert plain.origin != OWN
    last = MAIN[4]
    assert prompt(plain.jinja, tokenizer, last.messages) == expected[last.name]
    # What differs is said by its name.
    for one in FURTHER:
        is_said = any(limit.startswith(f"{one.name}: ") for limit in served.limits)
        assert is_said == (one.name not in served.proven_on)
    assert len(served.plain_limits) == len(served.limits), "each is said on the card as well"
    assert not any("from token" in limit for limit in served.plain_limits)
    assert served.stop_texts


def test_stops_are_tokens_or_text(tokenizer_dirs: dict[str, Path]) -> None:
    llama = served_template(tokenizer_dirs["Llama 3"], "llama3")
    tokenizer = load_tokenizer(str(tokenizer_dirs["Llama 3"]))
    assert llama.stop_texts == ("<|eot_id|>",)
    assert llama.stop_ids == (tokenizer.convert_tokens_to_ids("<|eot_id|>"),)
    colon = served_template(tokenizer_dirs["Llama 3"], "role_colon")
    assert (colon.stop_texts, colon.stop_ids) == (("\n\nUser:",), ())


def test_template_made_refuses_what_it_cannot_write(tokenizer_dirs: dict[str, Path]) -> None:
    directory = tokenizer_dirs[QWEN]
    served = served_template(directory, "qwen3_disable_thinking")
    question = {"role": "user", "content": "Who?"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a"}}]}
    late = [question, {"role": "system", "content": "Be kind."}, question]
    for messages, more, why in (
        ([question], {"tools": [{"type": "function", "function": {"name": "a"}}]}, REFUSED_TOOLS),
        ([question, call, question], {}, REFUSED_TOOLS),
        ([question, {"role": "tool", "content": "4"}], {}, REFUSED_TURN),
        (late, {}, REFUSED_TURN),
    ):
        with pytest.raises(Exception, match=why):
            prompt(served.jinja, load_tokenizer(str(directory)), messages, **more)


def test_tokenizer_that_puts_spaces_before_words_is_served_too() -> None:
    served = served_template(REPO / "demo_model", "llama3")
    assert {one.name for one in MAIN} <= set(served.proven_on)


def test_qwen_25_gets_no_system_turn_that_training_had_not(tmp_path: Path) -> None:
    directory = make_tokenizer_dir(tmp_path, SHAPES["Qwen2.5"])
    served = served_template(directory, "qwen3_instruct")
    assert served.origin != OWN
    tokenizer = load_tokenizer(str(directory))
    tokens = prompt(served.jinja, tokenizer, [{"role": "user", "content": "Who?"}])
    assert "system" not in tokenizer.decode(tokens)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            marks=pytest.mark.skipif(not IS_THOROUGH, reason="it takes its five seconds"),
        ),
        "{{ messages[99].content }}",
        "{% if messages | length > 3 %}{{ raise_exception('no') }}{% endif %}" + CHATML_TEMPLATE,
        "{{ ''.__class__.__mro__ }}",
        "{% broken",
    ],
    ids=["endless", "empty", "raises later", "unsafe", "no template"],
)
def test_own_template_that_fails_is_replaced(own: str, tmp_path: Path) -> None:
    shape = SHAPES["Qwen3-Instruct-2507"]._replace(template=own)
    served = served_template(make_tokenizer_dir(tmp_path, shape), "qwen3_instruct")
    assert served.origin == "made from the renderer qwen3_instruct"


@pytest.fixture
def odd_renderer() -> Iterator[str]:
    """A renderer that numbers the turns, which no text with gaps can say."""
    from tinker_cookbook.renderers import register_renderer, unregister_renderer
    from tinker_cookbook.renderers.role_colon import RoleColonRenderer

    class Numbered(RoleColonRenderer):
        def render_message(self, message: Any, ctx: Any) -> Any:
            content = f"{ctx.idx + 1}. {message['content']}"
            said: Any = {**message, "content": content}
            return super().render_message(said, ctx)

    register_renderer("numbered", lambda tokenizer, *_: Numbered(tokenizer))
    yield "numbered"
    unregister_renderer("numbered")


def test_renderer_that_no_template_writes_is_refused(odd_renderer: str, tmp_path: Path) -> None:
    directory = make_tokenizer_dir(tmp_path, SHAPES["Qwen3-Instruct-2507"])
    with pytest.raises(ExportError) as raised:
        served_template(directory, odd_renderer)
    said = str(raised.value)
    assert f"The renderer {odd_renderer} of this checkpoint cannot be served" in said
    assert "its own chat template differs in one question: from token 0 on" in said
    assert "\n" not in said


def test_parts_keep_special_tokens_whole(tokenizer_dirs: dict[str, Path]) -> None:
    renderer = load_renderer("llama3", str(tokenizer_dirs["Llama 3"]))
    parts = parts_of(renderer, "llama3", reads_think_tags=False)
    assert parts.bos == "<|begin_of_text|>" and parts.opening == ""
    assert parts.user.before == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert parts.user.after == parts.assistant.after == "<|eot_id|>"


def test_llama_cpp_writes_the_same_prompts(llama_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from exports.gguf_model import write_gguf
    from exports.loaded_llama_cpp import open_llama_cpp

    served = served_template(llama_dir, "llama3")
    assert served.origin != OWN
    write_gguf(llama_dir, tmp_path / "model.gguf", "f32", served.jinja)
    expected = expected_prompts(load_renderer("llama3", str(llama_dir)))
    with open_llama_cpp(tmp_path / "model.gguf") as loaded:
        for one in (*MAIN, *FURTHER):
            if one.name in served.proven_on:
                assert loaded.prompt_of(one.messages) == expected[one.name], one.name


# --- Ollama ---------------------------------------------------------------------------------------


def stops_in(text: str) -> list[str]:
    """The stops of a Modelfile, read as Ollama does: no escapes between the quotes."""
    return [piece.split('"\n')[0] for piece in text.split('PARAMETER stop "')[1:]]


def test_modelfile_names_stops_and_asks_as_the_run_did(tokenizer_dirs: dict[str, Path]) -> None:
    directory = tokenizer_dirs["Llama 3"]
    text = modelfile(
        served_template(directory, "llama3"), "model-f16.gguf", AnswerSettings(0.0, 64, 512)
    )
    lines = text.splitlines()
    assert lines[0] == "FROM ./model-f16.gguf"
    assert lines[1].startswith('TEMPLATE """{{- ') and lines[1].endswith('}}"""')
    assert stops_in(text) == ["<|eot_id|>"]
    assert "PARAMETER temperature 0.0" in lines and "PARAMETER repeat_penalty 1.0" in lines
    assert "PARAMETER num_predict 64" in lines and "PARAMETER num_ctx 512" in lines
    colon = served_template(directory, "role_colon")
    warm = modelfile(colon, "m.gguf", AnswerSettings(0.7, None, 10**6))
    assert stops_in(warm) == ["\n\nUser:"]
    assert "PARAMETER temperature 0.7\nPARAMETER top_k 0\nPARAMETER top_p 1.0\n" in warm
    assert "num_predict" not in warm and "num_ctx 8192" in warm


def test_first_token_is_written_once_for_ollama(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    directory = make_tokenizer_dir(tmp_path, SHAPES["Llama 3"])
    without = served_template(directory, "llama3")
    assert without.opens_with_bos and not without.reader_adds_bos
    assert without.go is not None and "<|begin_of_text|>" in without.go
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.save_pretrained(directory)
    served = served_template(directory, "llama3")
    assert served.reader_adds_bos and served.jinja == without.jinja
    assert served.go is not None and "<|begin_of_text|>" not in served.go


PLAIN = ServedTemplate("{{ 1 }}", "{{ 1 }}", ("</s>",), (2,), OWN, ("one question",))


@pytest.mark.parametrize(
    ("template", "name", "why"),
    [
        (replace(PLAIN, go=None, no_go="the prompt holds the day's date"), "m.gguf", "day's date"),
        (PLAIN, "../m.gguf", "names its model's file"),
        (PLAIN, 'm"\nFROM x', "names its model's file"),
        (replace(PLAIN, stop_texts=('a"b',)), "m.gguf", "cannot be written between quotes"),
        (replace(PLAIN, stop_texts=("a\u200bb",)), "m.gguf", "cannot be written between quotes"),
    ],
)
def test_modelfile_refuses_by_name(template: ServedTemplate, name: str, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        modelfile(template, name, AnswerSettings())


def test_go_template_holds_nothing_that_a_modelfile_leaves_out(tmp_path: Path) -> None:
    """Of a renderer whose marks cannot be printed."""
    from tinker_cookbook.renderers import register_renderer, unregister_renderer
    from tinker_cookbook.renderers.role_colon import RoleColonRenderer

    class Marked(RoleColonRenderer):
        def render_message(self, message: Any, ctx: Any) -> Any:
            said: Any = {**message, "content": '\u200b"\\ ' + message["content"]}
            return super().render_message(said, ctx)

    register_renderer("marked", lambda tokenizer, *_: Marked(tokenizer))
    try:
        shape = Shape(None, SHAPES["Llama 3"].special, [], None, "<|eot_id|>")
        served = served_template(make_tokenizer_dir(tmp_path, shape), "marked")
    finally:
        unregister_renderer("marked")
    assert served.go is not None and served.go.isprintable()
    assert '\\U0000200b\\"\\\\ ' in served.go
