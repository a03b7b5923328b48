"""What cleaning drops: planted copies of evaluation questions, other rows, and right ones of noisy.

    .venv/bin/python benchmarks/contamination.py [--seeds 5] [--old 2cbdb46]

Makes worlds of training rows beside evaluation questions, plants copies of the questions among the
rows (as they are, lightly edited, a fifth of the words edited, inside a longer turn), gives 15 % of
all rows a wrong answer, and prints per world which share of each kind is dropped: siblings are rows
made to be near a question that ask something else. Then tickets with labels: the share of wrong
labels before and after, and the accuracy of a classifier on what is left beside one on as many
rows by chance. Last the time per row. Every table has today's rule beside the rule of an earlier
commit, which is read from git. Exits 1 when a claim of docs/data.md does not hold.
"""

# ruff: noqa: RUF001 (marks of Chinese and Japanese are meant)
from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from million_rows import make_vocabulary  # noqa: E402

from rows.contamination import EvalText, EvalTexts  # noqa: E402

WRONG = 0.15  # share of rows with a wrong answer, whatever they are
NUM_PLANTS = 20  # of each kind
KINDS = ("exact", "light", "edit20", "embedded", "embedded+light")
Finder = Callable[[str, str], str | None]  # (question, answer) of a row -> what it is found as


class Row(NamedTuple):
    question: str
    answer: str


@dataclass
class World:
    """Evaluation questions, and rows that ask something else: near ones, and natural ones."""

    questions: list[Row]
    siblings: list[Row] = field(default_factory=list)
    others: list[Row] = field(default_factory=list)
    language: str = "en"


# --- worlds ---------------------------------------------------------------------------------------

# Text of made-up words with Zipf's frequencies, the commonest of which are English ones.
_MADE, WEIGHTS = make_vocabulary(random.Random(0))
VOCABULARY = ["the", "of", "a", "to", "in", "is", "and", "my", "it", "with", *_MADE[10:]]
COUNTRIES = """
France Spain Italy Norway Peru Chile Kenya Ghana Japan Nepal Laos Iran Iraq Oman Cuba Haiti Egypt
Mali Chad Fiji Malta Greece Turkey Latvia Serbia Poland Sweden Panama Brazil Canada Mexico Angola
Zambia Malawi Rwanda Uganda Bhutan Brunei Taiwan Israel Jordan Kuwait Cyprus Monaco Tonga
"""
FACTS = """
What is the capital of {}?|Which currency is used in {}?|What language do most people speak in {}?|
On which continent is {}?|How many people live in {}?|Who is the head of state of {}?
"""
LABELS = ("billing", "delivery", "login", "refund", "cancel", "damage")
TICKETS = """
My invoice for {} shows the wrong amount|I was charged twice for my {} order|
Why is the bill for {} so high this month|The {} receipt has no tax number on it|
Please send the invoice of my {} again|
My {} has not arrived yet|Where is the parcel with my {} now|
The courier left my {} at another house|When will the {} be shipped to me|
The tracking of my {} shows nothing new|
I cannot sign in to my {} account|The password of my {} profile is refused|
The {} app says that my code expired|How do I unlock the {} account|
No mail comes to reset my {} password|
I want my money back for the {}|When do I get the refund of my {}|
The refund for {} is too small|I sent the {} back and got nothing|
Can you refund the {} to another card|
I want to cancel my {} subscription|Stop the renewal of {} for me|
How can I end the {} contract early|Delete my order of the {} at once|
My {} plan should not go on|
My {} arrived broken in two|The screen of the {} is cracked|
The box was wet and my {} is ruined|A part of the {} is missing|The {} smells of smoke and burns
"""
CODE = (
    "Write a function in Python that takes a list of {} and returns the {} of all of them, without "
    "the use of any library and with a short comment"
)
HAN_AND_KANA = """
{}的首都是哪里？|请问{}使用什么货币呢？|{}有多少人口？|{}的国家元首是谁？|{}の首都はどこですか？|
{}ではどんな言葉が話されていますか？|{}の人口は何人ですか？
"""
CITIES = "法国 日本 德国 英国 美国 中国 埃及 印度 泰国 韩国 希腊 巴西 秘鲁 智利 古巴 挪威 瑞典"
THAI = "เมืองหลวงของ{}คือเมืองอะไร|ใน{}ใช้สกุลเงินอะไร|ประเทศ{}มีประชากรกี่คน"
THAI_NAMES = "ฝรั่งเศส ญี่ปุ่น เยอรมนี อังกฤษ อเมริกา อียิปต์ อินเดีย เกาหลี กรีซ บราซิล เปรู ชิลี"


def words(rng: random.Random, number: int) -> str:
    return " ".join(rng.choices(VOCABULARY, cum_weights=WEIGHTS, k=number))


def sentences(rng: random.Random, number: int) -> str:
    made = (words(rng, rng.randint(8, 14)) for _ in range(number))
    return " ".join(f"{one[0].upper()}{one[1:]}." for one in made)


def split(every: list[Row], number: int, rng: random.Random, **more: Any) -> World:
    """So many of the rows as questions, the others as their siblings."""
    rng.shuffle(every)
    return World(every[:number], every[number:], **more)


def filled(templates: str, names: str) -> list[Row]:
    shapes = [one.strip() for one in templates.split("|")]
    return [
        Row(t.format(name), f"{name}{i}") for i, t in enumerate(shapes) for name in names.split()
    ]


def lone_facts(rng: random.Random) -> World:
    """One question of each template in the evaluation, among others."""
    every = filled(FACTS, COUNTRIES)
    asked = [every[45 * i + i] for i in range(6)]
    openings = ("Who", "Which", "When did", "Why does", "How many", "Where is", "What")
    mixed = [f"{rng.choice(openings)} {words(rng, rng.randint(4, 8))}?" for _ in range(284)]
    rows = [Row(one, f"x{i % 40}") for i, one in enumerate(mixed)]
    return World([*asked, *rows[:84]], [row for row in every if row not in asked], rows[84:])


def tickets(rng: random.Random) -> World:
    """300 rows and 90 questions of the same 30 templates, 6 labels; names have 1 to 3 words."""
    rows, asked = [], []
    for number, template in enumerate(TICKETS.split("|")):
        names = {words(rng, 1 + (i > 9) + (i > 12)).title(): None for i in range(40)}
        made = [Row(template.strip().format(n), LABELS[number // 5]) for n in names]
        made = rng.sample(made[:14], 13)
        rows += made[:10]
        asked += made[10:]
    return World(asked, rows)


def long_tickets(rng: random.Random) -> World:
    made = [Row(sentences(rng, rng.randint(3, 5)), rng.choice(LABELS)) for _ in range(390)]
    return World(made[:90], others=made[90:])


def sums(rng: random.Random) -> World:
    pairs = rng.sample([(a, b) for a in range(2, 40) for b in range(2, 40)], 390)
    return split([Row(f"What is {a} + {b}?", str(a + b)) for a, b in pairs], 90, rng)


def stories(rng: random.Random) -> World:
    """Word problems, and rows that tell the same ones with other numbers."""

    def story() -> str:
        parts = (f"{words(rng, 7)} {{}} {words(rng, 4)}" for _ in range(4))
        return ". ".join(parts) + ". How many are left?"

    def told(text: str) -> Row:
        numbers = [rng.randint(2, 99) for _ in range(4)]
        return Row(text.format(*numbers), str(sum(numbers)))

    told_twice, told_once = ([story() for _ in range(number)] for number in (90, 200))
    return World(
        [told(one) for one in told_twice],
        [told(one) for one in told_twice[:50]],
        [told(one) for one in told_once],
    )


def documents(rng: random.Random) -> World:
    """Paragraphs of 30 to 120 words; one in 20 has a preamble, one in 4 one of 8 boilerplates."""
    preamble, boilerplates = sentences(rng, 2), [f"{words(rng, 17)}." for _ in range(8)]

    def document() -> Row:
        text = sentences(rng, rng.randint(3, 10))
        text = f"{preamble} {text}" if rng.random() < 0.05 else text
        return Row(f"{text} {rng.choice(boilerplates)}" if rng.random() < 0.25 else text, "done")

    made = [document() for _ in range(500)]
    return World(made[:200], others=made[200:])


def choices(rng: random.Random) -> World:
    """Multiple choice: the same stem with other options, and the same options under another."""
    asked, siblings = [], []
    for _ in range(60):
        stem, other = (f"Which of these {words(rng, 9)}?" for _ in range(2))
        first, second, third = (
            " ".join(f"({letter}) {words(rng, 3)}" for letter in "ABCD") for _ in range(3)
        )
        asked += [Row(f"{stem} {first}", "A"), Row(f"{stem} {second}", "A")]
        siblings += [Row(f"{stem} {third}", "A"), Row(f"{other} {first}", "A")]
    return World(asked, siblings)


def code(rng: random.Random) -> World:
    """52 rows of one template of over 20 words, of which the evaluation holds 4 more."""
    pairs = ((words(rng, 1), words(rng, 1)) for _ in range(56))
    made = [Row(CODE.format(*pair), " ".join(pair)) for pair in pairs]
    mixed = [Row(f"Write a program. {sentences(rng, 2)}", "code") for _ in range(200)]
    return World([*made[:4], *mixed[:60]], made[4:], mixed[60:])


def lone_policies(rng: random.Random) -> World:
    """Long texts with one name changed, where the evaluation has one question of each: what the
    rule takes for near copies."""
    texts = [f"{sentences(rng, 3)} What does {{}} say of it?" for _ in range(60)]
    rows = [[Row(text.format(name), name) for name in ("Anna", "Otto")] for text in texts]
    return World([one for one, _ in rows], [other for _, other in rows])


WORLDS: dict[str, Callable[[random.Random], World]] = {
    "facts, 6 templates": lambda rng: split(filled(FACTS, COUNTRIES), 90, rng),
    "facts, one a template": lone_facts,
    "tickets": tickets,
    "long tickets": long_tickets,
    "sums": sums,
    "stories": stories,
    "documents": documents,
    "multiple choice": choices,
    "code": code,
    "policies, one question each": lone_policies,
    "Chinese, Japanese": lambda rng: split(filled(HAN_AND_KANA, CITIES), 50, rng, language="cjk"),
    "Thai": lambda rng: split(filled(THAI, THAI_NAMES), 18, rng, language="thai"),
}

# --- plants ---------------------------------------------------------------------------------------

SYNONYMS = {
    "which": "what",
    "needed": "required",
    "find": "get",
    "people": "persons",
    "show": "list",
}
FILLERS = ("really", "actually", "exactly", "roughly", "currently")
SMALL = ("the", "a", "of", "is", "do", "does", "my", "to", "in")
FRAMES = {
    "en": (
        "I have something to ask. {} Thank you very much!",
        "Hello there,\n{}\nBest wishes, Ann",
    ),
    "cjk": ("我有一个问题。{}谢谢！", "こんにちは。{}教えてください。"),
    "thai": ("สวัสดีครับ {} ขอบคุณครับ", "มีคำถาม {} ช่วยตอบด้วย"),
}


def plant(kind: str, question: str, language: str, rng: random.Random) -> str:
    if kind == "exact":
        return question.upper().replace("?", "") if rng.random() < 0.5 else f" {question} "
    if kind == "edit20":
        return edited(question, language, rng)
    asked = light(question, language, rng) if kind.endswith("light") else question
    if kind == "light":
        return asked
    asked = f"{asked}." if language == "en" and asked[-1] not in ".?!" else asked
    return rng.choice(FRAMES[language]).format(asked)


def light(question: str, language: str, rng: random.Random) -> str:
    """One of: a typo, a small word less, "what's", a plural, a lead-in, "please"."""
    if language == "cjk":
        edits = [question.replace("的", "", 1), question.replace("？", ""), f"请问{question}"]
        edits += [question.replace("ですか", "でしょうか"), question.replace("は", "って", 1)]
        return rng.choice([one for one in edits if one != question])
    words = question.split()
    at = max(range(len(words)), key=lambda i: len(words[i]))
    swapped = words[at][:1] + words[at][2:3] + words[at][1:2] + words[at][3:]
    small = [i for i, word in enumerate(words) if word in SMALL]
    edits = [" ".join([*words[:at], swapped, *words[at + 1 :]])]
    if language == "en":
        edits += [f"So, {question}", f"{question.rstrip('.?')} please", f"Hello, {question}"]
        edits += [question.replace("What is", "What's")] if "What is" in question else []
        edits += [" ".join([*words[:i], *words[i + 1 :]]) for i in small[:1]]
    return rng.choice(edits)


def edited(question: str, language: str, rng: random.Random) -> str:
    """A fifth of the words changed, at least one; names and numbers stay."""
    if language != "en":
        at = rng.randrange(len(question))
        return question[:at] + rng.choice("多最ทลว") + question[at + 1 :]
    words = question.split()
    for _ in range(max(1, len(words) // 5)):
        free = [i for i, word in enumerate(words) if word.isalpha() and word.islower()]
        at = rng.choice(free or [len(words) - 1])
        if words[at] in SYNONYMS:
            words[at] = SYNONYMS[words[at]]
        elif words[at] in SMALL:
            del words[at]
        else:
            words.insert(at, rng.choice(FILLERS))
            if len(words) > 20 and rng.random() < 0.5:
                del words[at + 1]
    return " ".join(words)


# --- rules ----------------------------------------------------------------------------------------


def new_rule(questions: Sequence[Row]) -> Finder:
    texts = EvalTexts(EvalText("t", one.question) for one in questions)

    def find(question: str, answer: str) -> str | None:
        hit = texts.find_in("", [("user", question), ("assistant", answer)])
        return None if hit is None else hit.kind

    return find


def old_rule(commit: str) -> Callable[[Sequence[Row]], Finder]:
    """The rule of an earlier commit, whose file needs no other of this project."""
    command = ["git", "-C", str(REPO), "show", f"{commit}:contamination.py"]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    module: Any = types.ModuleType("old_contamination")
    sys.modules[module.__name__] = module
    exec(compile(source, f"{commit}:contamination.py", "exec"), module.__dict__)

    def made(questions: Sequence[Row]) -> Finder:
        texts = module.HeldOut(module.HeldOutText("t", q, (a,)) for q, a in questions)

        def find(question: str, answer: str) -> str | None:
            hit = texts.find_in("", (("user", question), ("assistant", answer)))
            return None if hit is None else hit.kind

        return find

    return made


# --- measured -------------------------------------------------------------------------------------


def noisy(rows: Sequence[Row], share: float, rng: random.Random) -> list[tuple[Row, bool]]:
    """Rows of which this share have another row's answer, and whether it is wrong."""
    answers = sorted({row.answer for row in rows} | {"no answer"})
    made = []
    for row in rows:
        is_wrong = rng.random() < share
        others = [answer for answer in answers if answer != row.answer]
        made.append((row._replace(answer=rng.choice(others)) if is_wrong else row, is_wrong))
    return made


def shares_dropped(world: World, find: Finder, rng: random.Random) -> dict[str, float]:
    """The share of each kind of rows that is dropped, and the change of the share of wrong ones."""
    groups = {"siblings": world.siblings, "others": world.others}
    for kind in KINDS:
        chosen = rng.sample(world.questions, min(NUM_PLANTS, len(world.questions)))
        asked = (row._replace(question=plant(kind, row[0], world.language, rng)) for row in chosen)
        groups[kind] = list(asked)
    shares, rows, kept = {}, [], []
    for name, group in groups.items():
        made = noisy(group, WRONG, rng)
        left = [is_wrong for row, is_wrong in made if find(*row) != "contaminated"]
        if made:
            shares[name] = 100 * (1 - len(left) / len(made))
        if name in ("siblings", "others"):
            rows += [is_wrong for _, is_wrong in made]
            kept += left
    if kept:
        shares["noise"] = 100 * (statistics.mean(kept) - statistics.mean(rows))
    return shares


class Outcome(NamedTuple):
    """Of one seed: shares of wrong labels in %, rows left, accuracies in %."""

    before: float
    after: float
    num_left: int
    accuracy: float
    accuracy_by_chance: float


def ticket_case(rule: Callable[[Sequence[Row]], Finder], share: float, seed: int) -> Outcome:
    rng = random.Random(seed)
    world = tickets(rng)
    find = rule(world.questions)
    rows = noisy(world.siblings, share, rng)
    kept = [pair for pair in rows if find(*pair[0]) != "contaminated"]
    by_chance = rng.sample(rows, len(kept))
    wrong = [
        100 * sum(is_wrong for _, is_wrong in some) / max(1, len(some)) for some in (rows, kept)
    ]
    scores = [accuracy([row for row, _ in some], world.questions) for some in (kept, by_chance)]
    return Outcome(wrong[0], wrong[1], len(kept), *scores)


def accuracy(rows: Sequence[Row], asked: Sequence[Row]) -> float:
    """Of a TF-IDF logistic regression on rows, asked these questions, in %."""
    if len({row.answer for row in rows}) < 2:
        return 0.0  # nothing to tell apart was left
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer: Any = TfidfVectorizer(ngram_range=(1, 2))
    vectors = vectorizer.fit_transform([row.question for row in rows])
    model: Any = LogisticRegression(max_iter=1000).fit(vectors, [row.answer for row in rows])
    said = model.predict(vectorizer.transform([row.question for row in asked]))
    return 100 * statistics.mean(one == row.answer for one, row in zip(said, asked, strict=True))


def us_per_row(rule: Callable[[Sequence[Row]], Finder], num_words: int) -> float:
    """Microseconds for a row of 25 + 62 words beside 1,000 questions; the best of three."""
    rng = random.Random(0)
    find = rule([Row(words(rng, num_words), "yes") for _ in range(1000)])
    rows = [(words(rng, 25), words(rng, 62)) for _ in range(5000)]
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for row in rows:
            find(*row)
        best = min(best, time.process_time() - start)
    return best / len(rows) * 1e6


# --- the tables -----------------------------------------------------------------------------------


def worlds_table(
    rules: dict[str, Callable[[Sequence[Row]], Finder]], num_seeds: int
) -> Iterator[str]:
    """Yield the table of worlds, a line for each world and rule, and what breaks a claim."""
    columns = (*KINDS, "siblings", "others", "noise")
    print(f"| world | rule | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name, make in WORLDS.items():
        of_rule: dict[str, dict[str, float]] = {}
        for rule_name, rule in rules.items():
            found: dict[str, list[float]] = defaultdict(list)
            for seed in range(num_seeds):
                world = make(random.Random(f"{name} {seed}"))
                find = rule(world.questions)
                for kind, share in shares_dropped(world, find, random.Random(seed)).items():
                    found[kind].append(share)
            mean = of_rule[rule_name] = {k: statistics.mean(v) for k, v in found.items()}
            cells = (f"{mean[k]:.0f}" if k in mean else "" for k in columns)
            print(f"| {name} | {rule_name} | {' | '.join(cells)} |", flush=True)
        new = of_rule["new"]
        if new["exact"] < 100 or new["embedded"] < 95:
            yield f"{name}: copies are missed"
        if abs(new.get("noise", 0)) > 1:
            yield f"{name}: the share of wrong answers moves by {new['noise']:.1f} points"


def tickets_table(
    rules: dict[str, Callable[[Sequence[Row]], Finder]], num_seeds: int
) -> Iterator[str]:
    """Yield what breaks a claim on noisy labels; print the table."""
    print("\n| wrong labels | rule | before | after | rows left of 300 | accuracy | by chance |")
    print("|---|---|---|---|---|---|---|")
    for share in (0.0, 0.05, WRONG, 0.3):
        for name, rule in rules.items():
            outcomes = [ticket_case(rule, share, seed) for seed in range(num_seeds)]
            mean = Outcome(*(statistics.mean(column) for column in zip(*outcomes, strict=True)))
            print(
                f"| {share:.0%} | {name} | {mean.before:.1f} | {mean.after:.1f} | "
                f"{mean.num_left:.0f} | {mean.accuracy:.1f} | {mean.accuracy_by_chance:.1f} |",
                flush=True,
            )
            if name == "new" and max(abs(one.after - one.before) for one in outcomes) > 1:
                yield f"tickets, {share:.0%}: the share of wrong labels moves by over a point"
            if name == "new" and mean.accuracy < mean.accuracy_by_chance:
                yield f"tickets, {share:.0%}: worse than as many rows by chance"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what cleaning drops.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--old", default="2cbdb46", help="the commit whose rule stands beside")
    args = parser.parse_args()
    rules = {"old": old_rule(args.old), "new": new_rule}
    print(
        f"Share dropped, %; noise: points by which the share of wrong answers moves. {args.seeds} "
        "seeds.\n"
    )
    broken = [*worlds_table(rules, args.seeds), *tickets_table(rules, args.seeds)]
    print("\n| words of a question | us a row, old | new |\n|---|---|---|")
    for num_words in (12, 25, 40):
        times = [us_per_row(rule, num_words) for rule in rules.values()]
        print(f"| {num_words} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)
    print("\n" + ("\n".join(broken) if broken else "Every claim holds."))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
