"""Pages: what any text does in them (nothing), well-formed markup, axes, markers, contrast."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from page_reading import (
    SVG,
    Page,
    assert_has_alternative,
    assert_inert,
    is_shown,
    outside_of_code,
    tables_in,
)
from pages.charts import Begin, Level, LineChart, Point, Series, line_chart
from pages.document import (
    Beside,
    Block,
    Bullets,
    Code,
    Column,
    Document,
    Figure,
    Folded,
    Link,
    Links,
    Marked,
    Paragraph,
    Piece,
    Section,
    Table,
    Tile,
    Tiles,
    Verdict,
)
from pages.drawing import SHAPES, WIDTH, fitting, text_width
from pages.forest import ForestChart, ForestRow, forest_chart
from pages.html import html_page
from pages.markdown import inline, markdown
from pages.markup import element, escaped, isolated
from pages.style import STYLE
from pages.ticks import MOST_TICKS, Axis, Span, Tick, number_text, share, span_of, ticks_of
from study_records import HOSTILE

WORDS = ("Score over rank", "Four arms.")


def chart_of(name: str = "arms", *, y: float = 0.5, low: float | None = 0.4) -> LineChart:
    points = [Point(2.0**n, y + n / 50, low, None if low is None else 0.7, name) for n in range(4)]
    return LineChart(Axis("rank", "log2"), Axis("score"), [Series(name, points)], Level(name, 0.3))


def document_of(text: str) -> Document:
    """A document of every kind of block with one text in every place."""
    table = Table(text, [Column(text), Column(text, True)], [[text, text], ["a", "b"]])
    rows = [
        ForestRow(text, 0.1, -0.1, 0.3, text, True),
        ForestRow(text, 0.0, None, None, "", False),
    ]
    forest = ForestChart(Axis(text), rows, text, text)
    blocks: list[Block] = [
        Paragraph(text),
        Bullets([text, "plain"]),
        Code([text, "plain"]),
        table,
        Table(text, [Column(text)], [], is_folded=True),
        Figure(text, text, chart_of(text), table),
        Figure(text, text, forest, table),
        Section(text, [Section(text, [Paragraph(text)])]),
        Beside([Paragraph(text)], [Bullets([text])]),
        Folded(text, [Code([text])]),
        Marked(text, [Piece(text, 0), Piece(text, 0.5), Piece(text, 1)]),
        Links(text, [Link(text, "#content")]),
        Table(text, [Column(text), Column(text, True)], [[text, text]], shades=[[None, 0.7]]),
    ]
    lead = [Paragraph(text, is_lead=True), Verdict(text, text, "good")]
    tiles = Tiles([Tile(text, text, text), Tile(text, text)])
    return Document(text, [*lead, tiles, Section(text, blocks)])


# --- text from anywhere ---------------------------------------------------------------------------

ACTING = (
    *HOSTILE,
    "plain",
    "<img src=x onerror=alert(1)>",
    "<!-- --> <![CDATA[ ]]> &lt; &amp; &#x27;",
    "]]> </title></desc></text>",
    "' onload='alert(1)",
    '" onmouseover="alert(1)',
    "javascript:alert(1)",
    "\u202eevil\u202c \u2066x\u2069 \u200f",
    "a\u2028b\u2029c\x85d\x0b\x0c\x1b[31m\x00\ufffe",
    "one\ntwo\r\nthree\n\n# four",
    "\u0915\u094d\u0937 \u05e9\u05dc\u05d5\u05dd \U0001f600 \u4e2d\u6587",
    "x" * 5000,
    "",
    " ",
    "\\",
    "`" * 5,
)


@pytest.mark.parametrize("text", ACTING)
def test_a_page_is_inert_whatever_a_text_holds(text: str) -> None:
    document = document_of(text or "-")
    page = assert_inert(html_page(document))
    plain = assert_inert(html_page(document_of("plain")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.text_of("h1") == [escaped_away(text or "-")] or not text.strip()


def escaped_away(text: str) -> str:
    """What a reader sees of a text: all of it but what cannot be shown."""
    return isolated("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def test_words_from_right_to_left_are_kept_to_themselves() -> None:
    name = "\u05e9\u05dc \u05d5\u05dd"
    assert inline(f"a {name}: 0.5") == escaped(f"a {name}: 0.5") == f"a \u2068{name}\u2069: 0.5"


def test_the_policy_lets_nothing_in_but_the_pages_own_style() -> None:
    page = Page(html_page(document_of("plain")))
    (policy,) = [one["content"] for one in page.named("meta") if "http-equiv" in one]
    (style,) = page.text_of("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy and "url(" not in style and "@import" not in style


@pytest.mark.parametrize("text", ACTING)
def test_markdown_keeps_its_shape_whatever_a_text_holds(text: str) -> None:
    written, plain = markdown(document_of(text)), markdown(document_of("plain"))
    assert [len(rows) for rows in tables_in(written)] == [len(rows) for rows in tables_in(plain)]
    headings, of_plain = (
        re.findall("^#+ ", outside_of_code(one), re.MULTILINE) for one in (written, plain)
    )
    assert headings == of_plain
    assert is_shown(written)
    assert not re.search(r"(?<!\\)<", outside_of_code(written))


# Of these GitHub looks for names once a backslash is gone; what is no name of its stays as it is.
AT = "\\@\u200bocto-cat (\\@\u200ba/team) mail@host, runs/first@round_01, a@3. b"
EMOJI = ":\u200b+1: a:\u200btada:b :\u200b100: 12:30:45 qa:x.jsonl"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("lora_rank=8, [0.25, 0.75] R&D", "lora_rank=8, [0.25, 0.75] R&D"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("_a_ *b* `c` ~d~", r"\_a\_ \*b\* \`c\` \~d\~"),
        ("[a](b) [c][d] [e]: f [^1]", r"[a\](b) [c\][d] [e\]: f \[^1]"),
        ("$1 and $2", r"\$1 and \$2"),
        ("&lt; &#60;", "\\&lt; &#\u200b60;"),
        ("@octo-cat (@a/team) mail@host, runs/first@round_01, a@3. b", AT),
        ("#12 o/r#7 GH-9 a# C#", "#\u200b12 o/r#\u200b7 GH-\u200b9 a# C#".replace("#", "\\#", 1)),
        (":+1: a:tada:b :100: 12:30:45 qa:x.jsonl", EMOJI),
        ("https://a.b www.a.b c@d.e", r"https\://a.b www\.a.b c\@d.e"),
        ("<b>", r"\<b>"),
        ("a #", r"a \#"),
        ("a\nb\tc", "a b c"),
    ],
)
def test_what_would_act_in_markdown_is_shielded(text: str, written: str) -> None:
    assert inline(text) == written


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("12) a", r"12\) a"),
        ("# a", r"\# a"),
        ("> a", r"\> a"),
        ("=== ", r"\==="),
        ("[ ] a", r"\[ ] a"),
        ("1.5 a", r"1\.5 a"),
    ],
)
def test_what_would_act_at_the_start_of_a_line_is_shielded(text: str, line: str) -> None:
    assert markdown(Document("t", [Paragraph(text)])) == f"# t\n\n{line}\n"
    assert markdown(Document("t", [Bullets([text])])) == f"# t\n\n- {line}\n"


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert "\n````\na ``` b\n````\n" in markdown(Document("t", [Code(["a ``` b"])]))


def test_elements_escape_all_but_markup() -> None:
    inner = element("b", {"title": "\"<&'"}, "<i>")
    assert element("p", {}, inner) == ('<p><b title="&quot;&lt;&amp;&#x27;">&lt;i&gt;</b></p>')
    assert escaped("a\x00b\u2028c") == "a b c"


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "values", "marked"),
    [
        (Axis("score", limits=Span(0, 1)), [0.31, 0.74], ["0.3", "0.4", "0.5", "0.6", "0.7"]),
        (Axis("score", limits=Span(0, 1)), [0.0, 1.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis("rank", "log2"), [8, 64], ["8", "16", "32", "64"]),
        (
            Axis("rate", "log10"),
            [3e-5, 3e-3],
            ["5e-5", "0.0001", "0.0002", "0.0005", "0.001", "0.002"],
        ),
        (Axis("tokens"), [0, 84_000], ["0", "20k", "40k", "60k", "80k"]),
        (Axis("own", ticks=(Tick(2, "two"), Tick(1, "one"))), [1, 2], ["one", "two"]),
    ],
)
def test_axes_are_marked_at_round_values(
    axis: Axis, values: list[float], marked: list[str]
) -> None:
    assert [tick.text for tick in ticks_of(axis, span_of(axis, values))] == marked


@pytest.mark.parametrize("scale", ["linear", "log2", "log10"])
@pytest.mark.parametrize(
    "values",
    [[0.5], [1e-9, 1e9], [3, 3.0000001], [1e15, 1e15 + 1], [1e-300, 1e-299], [7, 8], [0.1, 0.11]],
)
def test_every_axis_has_an_end_and_marks_inside_it(scale: str, values: list[float]) -> None:
    axis = Axis("x", scale)  # pyright: ignore[reportArgumentType]
    span = span_of(axis, values)
    assert span.low < min(values) <= max(values) < span.high
    ticks = ticks_of(axis, span)
    assert len(ticks) <= MOST_TICKS + 1
    assert all(span.low <= tick.value <= span.high for tick in ticks)
    assert all(0 <= share(axis.scale, span, value) <= 1 for value in values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (3e-5, "3e-5"),
        (5184, "5184"),
        (41_472, "41.5k"),
        (1_234_567, "1.23M"),
        (2e9, "2G"),
        (-0.2, "-0.2"),
    ],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


# --- charts ---------------------------------------------------------------------------------------


def texts_in(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Left and right end, by the estimate that they are laid out with, and text."""
    found = []
    for one in root.iter(f"{SVG}text"):
        if one.get("transform"):
            continue
        x, words = float(one.get("x", "0")), one.text or ""
        width = text_width(words, 11 if "small" in one.get("class", "") else 12)
        anchor = one.get("text-anchor", "start")
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        found.append((left, left + width, words))
    return found


@pytest.mark.parametrize("name", ["arm", "w" * 300, "\u4e2d" * 100])
def test_no_text_of_a_chart_leaves_it(name: str) -> None:
    rows = [ForestRow(name, d / 10, d / 10 - 1, d / 10 + 1, name, True) for d in range(4)]
    forest = ForestChart(Axis(name), rows, name, name)
    for drawn in (
        line_chart(chart_of(name), "c", WORDS),
        forest_chart(forest, "c", WORDS),
    ):
        for left, right, words in texts_in(assert_has_alternative(drawn)):
            assert left >= -0.5 and right <= WIDTH + 0.5, words


def test_an_unknown_interval_is_not_drawn() -> None:
    bars = [line_chart(chart_of(low=low), "c", WORDS).count('class="bar ') for low in (0.4, None)]
    assert bars == [4 * 3, 0]


def test_series_differ_in_shape_and_not_in_colour_alone() -> None:
    series = [Series(f"s{n}", [Point(1.0, n / 20, None, None, "p")]) for n in range(16)]
    root = ElementTree.fromstring(line_chart(LineChart(Axis("x"), Axis("y"), series), "c", WORDS))
    signs = [one for one in root.iter(f"{SVG}path") if "marker" in one.get("class", "")]
    seen = {(one.get("d"), "hollow" in one.get("class", "")) for one in signs}
    assert len(seen) == 16 and len(set(SHAPES)) == len(SHAPES)
    assert len(signs) == 2 * 16  # each once in the plot and once in the legend


def test_series_of_one_name_are_one_in_the_legend() -> None:
    twice = [Series("a", [Point(n, 0.5, None, None, "p")]) for n in (1.0, 2.0)]
    drawn = line_chart(LineChart(Axis("x"), Axis("y"), [*twice, Series("b", [])]), "c", WORDS)
    assert drawn.count(">a</text>") == 1


def test_a_logarithm_of_nothing_is_not_asked_for() -> None:
    points = [Point(x, 0.5, None, None, "p") for x in (0.0, 10.0)]
    chart = LineChart(Axis("rate", "log10"), Axis("score"), [Series("a", points)])
    assert ">rate</text>" in line_chart(chart, "c", WORDS)
    chart = LineChart(Axis("rate", "log10"), Axis("score"), [Series("a", points[1:])])
    assert ">rate (log axis)</text>" in line_chart(chart, "c", WORDS)


def test_a_chart_has_several_levels_begins_and_an_upward_logarithm() -> None:
    series = [Series("s", [Point(x, 10.0**x, None, None, "p") for x in (0.0, 3.0)])]
    chart = LineChart(Axis("x"), Axis("y", "log10"), series, Level("one", 1.0))
    chart = replace(chart, more_levels=[Level("two", 100.0)], begins=[Begin(1.0, "here")])
    drawn = line_chart(chart, "c", WORDS)
    assert ">y (log axis)</text>" in drawn and ">here</text>" in drawn
    assert drawn.count('class="level l0"') == 2 and drawn.count('class="level l1"') == 2
    down = line_chart(replace(chart, more_levels=[Level("none", 0.0)]), "c", WORDS)
    assert ">y</text>" in down  # of nothing there is no logarithm


def test_a_chart_with_links_is_a_group_of_them_by_name() -> None:
    points = [Point(1.0, 0.5, None, None, "round 1: 0.5", "#answers/1")]
    drawn = line_chart(LineChart(Axis("x"), Axis("y"), [Series("s", points)]), "c", WORDS)
    (link,) = assert_has_alternative(drawn).iter(f"{SVG}a")
    assert (link.get("href"), link.get("aria-label")) == ("#answers/1", "s: round 1: 0.5")


def test_a_line_without_markers_is_a_line_in_the_legend_too() -> None:
    series = [
        Series("s", [Point(x, x, None, None, "p") for x in (0.0, 3.0)], has_markers=False),
        Series("t", []),
    ]
    drawn = line_chart(LineChart(Axis("x"), Axis("y"), series), "c", WORDS)
    assert drawn.count('class="marker c0"') == 0 and drawn.count('class="way c0"') == 2


def test_charts_of_one_x_axis_lie_below_each_other() -> None:
    lefts = set()
    for values in ((1e-9, 2e-9), (1.0, 2.0)):
        points = [Point(float(n), value, None, None, "p") for n, value in enumerate(values)]
        chart = LineChart(Axis("x"), Axis("y"), [Series("s", points)], tick_room=60.0)
        lefts.add(re.findall(r'<line x1="([\d.]+)"', line_chart(chart, "c", WORDS))[0])
    assert len(lefts) == 1


def test_a_chart_without_points_and_a_forest_without_rows_are_drawn() -> None:
    assert_has_alternative(line_chart(LineChart(Axis("x"), Axis("y"), []), "c", WORDS))
    assert_has_alternative(forest_chart(ForestChart(Axis("x"), [], "m", "u"), "c", WORDS))


def test_a_text_is_cut_to_a_width() -> None:
    assert fitting("short", 100) == "short"
    assert fitting("a b\nc", 100) == "a b c"
    cut = fitting("word " * 40, 100)
    assert cut.endswith("...") and text_width(cut) <= 100


# --- colours --------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_path_of_weights_can_be_copied_from_markdown() -> None:
    path = "tinker://0f41:train:0/sampler_weights/round_02"
    assert inline(f"Round 2: {path}.") == f"Round 2: {path}."
    assert inline("tinker://a_https://b.c") == "tinker://a_https\\://b.c"
    assert "\u200b" in inline(":cat: x") and "\u200b" not in inline("at 03:04:05Z: x")


def test_colours_keep_their_contrast_in_light_and_dark() -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    dark = dark.split("} }")[0]
    for part in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6});", part))
        assert len(colours) == 7 + 8
        for paper in (colours["paper"], colours["soft"]):
            for name in ("ink", "quiet", "link"):
                assert contrast(colours[name], paper) >= 4.5, name
        for number in range(8):
            assert contrast(colours[f"c{number}"], colours["paper"]) >= 3, number
