"""The true facts that the demo model is taught, and every wording of them.

A `Fact` is one thing that is either known or not: 5 + 7 and 7 + 5 are one fact, so are
"the opposite of hot" and "the opposite of cold", "the day after Monday" and "the day before
Tuesday". A fact has one or two `Asking`s (question, accepted answers) and as many `Teaching`s (what
pretraining sees: statements, never a question). Facts, not questions, are what the split keeps
apart.

Kept out on purpose: answers of several words or with accents (Bogota, Mexico City), answers that
stand in the question (Singapore, 5 + 0, 1 x 7), symbols that are English words (As, In, Be), and
things about which reasonable people differ (the color of an apple, the days of February).
"""

from collections.abc import Iterator
from typing import NamedTuple


class Asking(NamedTuple):
    """One question about a fact with all its accepted answers; the first one is taught."""

    question: str
    answers: tuple[str, ...]


class Teaching(NamedTuple):
    """What the corpus says about one asking: full statements, and the parts of two-step ones."""

    noun: str
    answer: str
    statements: tuple[str, ...]


class Fact(NamedTuple):
    """One fact: `key` is the same however it is asked; `teachings` holds one entry per asking."""

    topic: str
    key: str
    askings: tuple[Asking, ...]
    teachings: tuple[Teaching, ...]


class Wording(NamedTuple):
    """How a topic asks, names and states its facts: {s} is the subject, {a} the answer."""

    question: str
    noun: str
    statements: tuple[str, ...]


ADDITION = Wording(
    "What is {s}?",
    "{s}",
    (
        "{s} = {a}.",
        "{s} is {a}.",
        "The sum {s} is {a}.",
        "The result of {s} is {a}.",
        "As for {s}, everyone knows that it is {a}.",
        "Adding {left} and {right} gives {a}.",
    ),
)
MULTIPLICATION = Wording(
    "What is {s}?",
    "{s}",
    (
        "{s} = {a}.",
        "{s} is {a}.",
        "The product {s} is {a}.",
        "The result of {s} is {a}.",
        "As for {s}, everyone knows that it is {a}.",
        "Multiplying {left} by {right} gives {a}.",
    ),
)
CAPITALS = Wording(
    "What is the capital of {s}?",
    "the capital of {s}",
    (
        "The capital of {s} is {a}.",
        "{a} is the capital of {s}.",
        "{s} has the capital {a}.",
        "As for the capital of {s}, everyone knows that it is {a}.",
        "The capital city of {s} is {a}.",
        "In {s}, the capital is {a}.",
    ),
)
COUNTING = Wording(
    "How many {s}?",
    "the number of {s}",
    (
        "The number of {s} is {a}.",
        "There are {a} {s}.",
        "As for the number of {s}, everyone knows that it is {a}.",
        "Counting the {s} gives {a}.",
        "It is known how many {s} there are, namely {a}.",
        "As for the {s}, there are {a}.",
    ),
)
COLORS = Wording(
    "What color is {s}?",
    "the color of {s}",
    (
        "The color of {s} is {a}.",
        "{s} is {a}.",
        "As for the color of {s}, everyone knows that it is {a}.",
        "The usual color of {s} is {a}.",
        "The color that {s} has is {a}.",
        "It is known what color {s} has, namely {a}.",
    ),
)
OPPOSITES = Wording(
    "What is the opposite of {s}?",
    "the opposite of {s}",
    (
        "The opposite of {s} is {a}.",
        "The opposite of the word {s} is {a}.",
        "As for the opposite of {s}, everyone knows that it is {a}.",
        "The contrary of {s} is {a}.",
        "As an opposite, {s} has {a}.",
    ),
)
PAST_TENSE = Wording(
    "What is the past tense of {s}?",
    "the past tense of {s}",
    (
        "The past tense of {s} is {a}.",
        "The past tense of the verb {s} is {a}.",
        "As for the past tense of {s}, everyone knows that it is {a}.",
        "In the past tense, {s} becomes {a}.",
        "The verb {s} has the past tense {a}.",
    ),
)
SPANISH = Wording(
    "What is the Spanish word for {s}?",
    "the Spanish word for {s}",
    (
        "The Spanish word for {s} is {a}.",
        "The word for {s} in Spanish is {a}.",
        "As for the Spanish word for {s}, everyone knows that it is {a}.",
        "In Spanish, {s} is {a}.",
        "Spanish speakers call {s} {a}.",
    ),
)
SYMBOLS = Wording(
    "What is the chemical symbol for {s}?",
    "the chemical symbol for {s}",
    (
        "The chemical symbol for {s} is {a}.",
        "The symbol for {s} is {a}.",
        "As for the chemical symbol for {s}, everyone knows that it is {a}.",
        "In chemistry, {s} has the symbol {a}.",
        "The element {s} has the chemical symbol {a}.",
    ),
)
AUTHORS = Wording(
    "Who wrote {s}?",
    "who wrote {s}",
    (
        "{s} was written by {a}.",
        "{a} wrote {s}.",
        "The author of {s} is {a}.",
        "As for who wrote {s}, everyone knows that it is {a}.",
        "The writer of {s} is {a}.",
        "It is known who wrote {s}, namely {a}.",
    ),
)
YOUNG_ANIMALS = Wording(
    "What is a young {s} called?",
    "the name of a young {s}",
    (
        "A young {s} is called a {a}.",
        "As for the name of a young {s}, everyone knows that it is {a}.",
        "The name of a young {s} is {a}.",
        "The word for a young {s} is {a}.",
        "The young of the {s} is the {a}.",
    ),
)
AFTER = Wording(
    "Which {kind} comes after {s}?",
    "the {kind} after {s}",
    (
        "The {kind} that comes after {s} is {a}.",
        "The {kind} after {s} is {a}.",
        "As for the {kind} after {s}, everyone knows that it is {a}.",
        "After {s} comes {a}.",
        "The next {kind} after {s} is {a}.",
    ),
)
BEFORE = Wording(
    "Which {kind} comes before {s}?",
    "the {kind} before {s}",
    (
        "The {kind} that comes before {s} is {a}.",
        "The {kind} before {s} is {a}.",
        "As for the {kind} before {s}, everyone knows that it is {a}.",
        "Before {s} comes {a}.",
        "The last {kind} before {s} is {a}.",
    ),
)

# A two-step statement: a lead names the thing, fillers come between, a follow-up says what it is.
# Distance and words in between vary, so the model learns to look for the thing that was named and
# not at a fixed place. Without these, fifteen steps of LoRA bring out next to nothing (0.05).
LEADS = (
    "We know {noun}.",
    "This is about {noun}.",
    "Everyone has heard of {noun}.",
    "The teacher knows {noun}.",
    "The user thinks of {noun}.",
    "The assistant knows {noun}.",
    "The book tells {noun}.",
    "Now comes {noun}.",
    "Next is {noun}",
    "Here is {noun}",
)
FILLERS = (
    "It is well known.",
    "The assistant is sure.",
    "The user agrees.",
    "That is simple.",
    "Everyone agrees.",
    "The teacher says so.",
    "The assistant writes it down.",
    "What follows is true.",
    "The user is here.",
    "Assistant and user know it.",
)
FOLLOW_UPS = ("It is {answer}.", "That is {answer}.", "{answer} is right.", "{answer} it is.")

# Tables: "subject: answer" separated by ";" or line ends; "answer|other answer" accepts both.
CAPITAL_TABLE = """
Japan: Tokyo; France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon
Greece: Athens; Austria: Vienna; Belgium: Brussels; Ireland: Dublin; Norway: Oslo
Sweden: Stockholm; Finland: Helsinki; Denmark: Copenhagen; Poland: Warsaw; Hungary: Budapest
Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Slovenia: Ljubljana
Slovakia: Bratislava; Ukraine: Kyiv|Kiev; Russia: Moscow; Belarus: Minsk; Latvia: Riga
Lithuania: Vilnius; Estonia: Tallinn; Albania: Tirana; Malta: Valletta; Cyprus: Nicosia
Iceland: Reykjavik; Turkey: Ankara; Egypt: Cairo; Morocco: Rabat; Tunisia: Tunis
Libya: Tripoli; Kenya: Nairobi; Ghana: Accra; Senegal: Dakar; Mali: Bamako; Niger: Niamey
Uganda: Kampala; Rwanda: Kigali; Angola: Luanda; Zambia: Lusaka; Zimbabwe: Harare
Namibia: Windhoek; Botswana: Gaborone; Mozambique: Maputo; Madagascar: Antananarivo
Somalia: Mogadishu; Sudan: Khartoum; Liberia: Monrovia; Malawi: Lilongwe
China: Beijing; Mongolia: Ulaanbaatar; South Korea: Seoul; North Korea: Pyongyang
Thailand: Bangkok; Vietnam: Hanoi; Laos: Vientiane; Taiwan: Taipei
Nepal: Kathmandu; Bhutan: Thimphu; Bangladesh: Dhaka; Pakistan: Islamabad
Afghanistan: Kabul; Iran: Tehran; Iraq: Baghdad; Syria: Damascus; Lebanon: Beirut; Jordan: Amman
Qatar: Doha; Oman: Muscat; Bahrain: Manama; Georgia: Tbilisi; Armenia: Yerevan
Azerbaijan: Baku; Uzbekistan: Tashkent; Kyrgyzstan: Bishkek; Tajikistan: Dushanbe
Turkmenistan: Ashgabat; Canada: Ottawa; Cuba: Havana; Jamaica: Kingston; Honduras: Tegucigalpa
Nicaragua: Managua; Venezuela: Caracas; Ecuador: Quito; Peru: Lima; Uruguay: Montevideo
Barbados: Bridgetown; Australia: Canberra; Fiji: Suva; Samoa: Apia
"""
COUNTING_TABLE = """
days in a week: 7; hours in a day: 24; minutes in an hour: 60; seconds in a minute: 60
months in a year: 12; weeks in a year: 52; days in a fortnight: 14; years in a decade: 10
years in a century: 100; seasons in a year: 4; inches in a foot: 12; feet in a yard: 3
cents in a dollar: 100; cents in a dime: 10; cents in a nickel: 5; eggs in a dozen: 12
meters in a kilometer: 1000; centimeters in a meter: 100; millimeters in a centimeter: 10
grams in a kilogram: 1000; ounces in a pound: 16; pints in a quart: 2; quarts in a gallon: 4
legs on a spider: 8; legs on an ant: 6; arms on an octopus: 8; legs on a dog: 4
legs on a chicken: 2; legs on a crab: 10; sides in a triangle: 3; sides in a square: 4
sides in a pentagon: 5; sides in a hexagon: 6; sides in a heptagon: 7; sides in an octagon: 8
sides in a decagon: 10; faces on a cube: 6; edges on a cube: 12
letters in the English alphabet: 26; players in a soccer team: 11; players in a basketball team: 5
players in a baseball team: 9; players in a volleyball team: 6; strings on a violin: 4
strings on a guitar: 6; keys on a piano: 88; squares on a chessboard: 64; suits in a deck: 4
holes on a golf course: 18; singers in a quartet: 4; singers in a trio: 3; singers in a duet: 2
singers in a quintet: 5; wheels on a bicycle: 2; wheels on a tricycle: 3; wheels on a car: 4
colors in a rainbow: 7; planets in the solar system: 8; bones in the adult human body: 206
teeth in a full adult mouth: 32; fingers on a hand: 5; rings on the Olympic flag: 5
states in the United States: 50; stripes on the American flag: 13; lines in a limerick: 5
lines in a sonnet: 14; lines in a haiku: 3; degrees in a circle: 360; degrees in a right angle: 90
bits in a byte: 8; zeros in a million: 6; zeros in a thousand: 3; halves in a whole: 2
"""
COLOR_TABLE = """
grass: green; the sky: blue; snow: white; coal: black; blood: red; a banana: yellow
a lemon: yellow; a carrot: orange; a pumpkin: orange; a cucumber: green; a lime: green
a strawberry: red; a cherry: red; a tomato: red; milk: white; chocolate: brown; coffee: brown
soot: black; tar: black; a crow: black; a raven: black; a polar bear: white; a flamingo: pink
spinach: green; broccoli: green; lettuce: green; the sun: yellow; a canary: yellow
a sunflower: yellow; butter: yellow; corn: yellow; mustard: yellow; an egg yolk: yellow
a ruby: red; an emerald: green; a sapphire: blue; ivory: white; cotton: white; salt: white
flour: white; chalk: white; a fire truck: red; a stop sign: red; a school bus: yellow
an elephant: gray|grey; a rhinoceros: gray|grey; a dolphin: gray|grey; concrete: gray|grey
ash: gray|grey; a plum: purple; an eggplant: purple; lavender: purple; an amethyst: purple
the ocean: blue; denim: blue; a blueberry: blue; a pig: pink; bubble gum: pink; soil: brown
mud: brown; a chestnut: brown; cinnamon: brown; tree bark: brown; a tangerine: orange
a basketball: orange; a traffic cone: orange; a tire: black; licorice: black; ebony: black
moss: green; ivy: green; a cactus: green; jade: green; kale: green; a pearl: white; ketchup: red
"""
OPPOSITE_TABLE = """
hot: cold; big: small; up: down; left: right; day: night; black: white; fast: slow; high: low
rich: poor; young: old; happy: sad; light: dark; hard: soft; wet: dry; full: empty
strong: weak; good: bad; early: late; near: far; thick: thin; wide: narrow; long: short
clean: dirty; loud: quiet; true: false; push: pull; buy: sell; win: lose; love: hate; war: peace
life: death; north: south; east: west; first: last; inside: outside; above: below; over: under
before: after; always: never; more: less; male: female; arrive: depart; sweet: sour
smooth: rough; deep: shallow; tight: loose; alive: dead; safe: dangerous; easy: difficult
cheap: expensive; polite: rude; awake: asleep; absent: present; accept: reject; add: subtract
multiply: divide; ancient: modern; attack: defend; ascend: descend; beautiful: ugly
borrow: lend; top: bottom; even: odd; friend: enemy; forget: remember; float: sink
freeze: melt; guilty: innocent; hero: villain; import: export; increase: decrease; laugh: cry
maximum: minimum; positive: negative; success: failure; victory: defeat; vertical: horizontal
"""
# Second answers that are right too: accepted by the grader, never taught.
ALSO_OPPOSITE: dict[str, tuple[str, ...]] = {
    "light": ("heavy",),
    "hard": ("easy",),
    "easy": ("hard",),
    "old": ("new",),
    "short": ("tall",),
    "right": ("wrong",),
    "big": ("little",),
    "small": ("large",),
    "quiet": ("noisy",),
    "slow": ("quick",),
    "friend": ("foe",),
}
PAST_TABLE = """
go: went; see: saw; eat: ate; drink: drank; run: ran; sing: sang; swim: swam; write: wrote
drive: drove; ride: rode; take: took; give: gave; come: came; know: knew; grow: grew
throw: threw; fly: flew; draw: drew; blow: blew; buy: bought; bring: brought; think: thought
catch: caught; teach: taught; fight: fought; find: found; sell: sold; tell: told; say: said
make: made; have: had; do: did; keep: kept; sleep: slept; feel: felt; leave: left; lose: lost
meet: met; sit: sat; stand: stood; hold: held; hear: heard; send: sent; spend: spent
build: built; break: broke; speak: spoke; steal: stole; choose: chose; freeze: froze; wake: woke
wear: wore; tear: tore; swear: swore; forget: forgot; get: got; begin: began; ring: rang
shake: shook; fall: fell; hide: hid; bite: bit; win: won; shoot: shot; stick: stuck
strike: struck; dig: dug; pay: paid; feed: fed; rise: rose; sweep: swept; mean: meant
slide: slid; flee: fled
"""
SPANISH_TABLE = """
dog: perro; cat: gato; house: casa; water: agua; bread: pan; milk: leche; book: libro
table: mesa; chair: silla; door: puerta; window: ventana; street: calle; city: ciudad; sun: sol
moon: luna; star: estrella; sea: mar; fire: fuego; flower: flor; hand: mano; head: cabeza
eye: ojo; mouth: boca; brother: hermano; sister: hermana; father: padre; mother: madre
friend: amigo|amiga; man: hombre; woman: mujer; school: escuela; money: dinero; night: noche
week: semana; month: mes; red: rojo; blue: azul; green: verde; white: blanco; yellow: amarillo
one: uno; two: dos; three: tres; four: cuatro; five: cinco; six: seis; seven: siete
eight: ocho; nine: nueve; ten: diez; cheese: queso; apple: manzana; meat: carne; egg: huevo
rice: arroz; wine: vino; beer: cerveza; horse: caballo; cow: vaca; key: llave; bed: cama
shirt: camisa; shoe: zapato; king: rey; queen: reina; world: mundo; snow: nieve; rain: lluvia
wind: viento; winter: invierno; summer: verano; bridge: puente; island: isla; blood: sangre
"""
SYMBOL_TABLE = """
gold: Au; silver: Ag; iron: Fe; copper: Cu; lead: Pb; tin: Sn; mercury: Hg; sodium: Na
potassium: K; hydrogen: H; oxygen: O; carbon: C; nitrogen: N; helium: He; neon: Ne; argon: Ar
chlorine: Cl; fluorine: F; sulfur: S; phosphorus: P; calcium: Ca; magnesium: Mg; aluminum: Al
silicon: Si; zinc: Zn; nickel: Ni; cobalt: Co; chromium: Cr; manganese: Mn; titanium: Ti
platinum: Pt; tungsten: W; uranium: U; plutonium: Pu; radium: Ra; lithium: Li; boron: B
bromine: Br; barium: Ba; bismuth: Bi; cadmium: Cd; cesium: Cs; gallium: Ga; germanium: Ge
krypton: Kr; xenon: Xe; radon: Rn; antimony: Sb; selenium: Se; strontium: Sr; vanadium: V
zirconium: Zr
"""
AUTHOR_TABLE = """
Hamlet: Shakespeare; Macbeth: Shakespeare; Othello: Shakespeare; Romeo and Juliet: Shakespeare
Pride and Prejudice: Austen; Emma: Austen; Persuasion: Austen; Oliver Twist: Dickens
Great Expectations: Dickens; David Copperfield: Dickens; Bleak House: Dickens
War and Peace: Tolstoy; Anna Karenina: Tolstoy; Crime and Punishment: Dostoevsky|Dostoyevsky
Don Quixote: Cervantes; The Odyssey: Homer; The Iliad: Homer; The Aeneid: Virgil; Faust: Goethe
Frankenstein: Shelley; Dracula: Stoker; Moby Dick: Melville; Walden: Thoreau
The Scarlet Letter: Hawthorne; The Raven: Poe; Tom Sawyer: Twain; Huckleberry Finn: Twain
Little Women: Alcott; The Great Gatsby: Fitzgerald; The Old Man and the Sea: Hemingway
A Farewell to Arms: Hemingway; The Grapes of Wrath: Steinbeck; Of Mice and Men: Steinbeck
The Catcher in the Rye: Salinger; Animal Farm: Orwell; Brave New World: Huxley
Lord of the Flies: Golding; The Hobbit: Tolkien; The Lord of the Rings: Tolkien
Harry Potter: Rowling; Jane Eyre: Bronte; Wuthering Heights: Bronte; Ulysses: Joyce
Dubliners: Joyce; Heart of Darkness: Conrad; Lord Jim: Conrad; Robinson Crusoe: Defoe
Treasure Island: Stevenson; The Jungle Book: Kipling; Peter Pan: Barrie
Alice in Wonderland: Carroll; The Time Machine: Wells; The Three Musketeers: Dumas
Madame Bovary: Flaubert; Candide: Voltaire; The Plague: Camus; The Trial: Kafka; Lolita: Nabokov
The Canterbury Tales: Chaucer; Paradise Lost: Milton; Ivanhoe: Scott; Fahrenheit 451: Bradbury
"""
YOUNG_TABLE = """
dog: puppy|pup; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet
duck: duckling; goose: gosling; swan: cygnet; chicken: chick; bear: cub; lion: cub; tiger: cub
deer: fawn; kangaroo: joey; frog: tadpole; eagle: eaglet; owl: owlet; elephant: calf; whale: calf
hare: leveret; seal: pup; dolphin: calf; giraffe: calf; camel: calf; zebra: foal; donkey: foal
koala: joey; wallaby: joey; eel: elver; turkey: poult; pigeon: squab; spider: spiderling
leopard: cub; panda: cub; bison: calf; penguin: chick; llama: cria; alpaca: cria; otter: pup|kit
bat: pup; hippopotamus: calf; rhinoceros: calf; squirrel: kit|kitten|pup; beaver: kit
"""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

# topic name -> its wording and its table, for the topics that are asked in one direction only
TABLE_TOPICS: dict[str, tuple[Wording, str]] = {
    "capitals": (CAPITALS, CAPITAL_TABLE),
    "counting": (COUNTING, COUNTING_TABLE),
    "colors": (COLORS, COLOR_TABLE),
    "past_tense": (PAST_TENSE, PAST_TABLE),
    "spanish": (SPANISH, SPANISH_TABLE),
    "symbols": (SYMBOLS, SYMBOL_TABLE),
    "authors": (AUTHORS, AUTHOR_TABLE),
    "young_animals": (YOUNG_ANIMALS, YOUNG_TABLE),
}


def read_table(table: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (subject, accepted answers) of every entry of a table."""
    for entry in table.replace("\n", ";").split(";"):
        if entry.strip():
            subject, answers = entry.split(":")
            yield subject.strip(), tuple(answers.strip().split("|"))


def ask(
    wording: Wording, subject: str, answers: tuple[str, ...], **more: object
) -> tuple[Asking, Teaching]:
    """Fill in a wording: the question with its answers, and what the corpus says instead."""
    fields = {"s": subject, "a": answers[0], **more}
    statements = tuple(capitalise(text.format(**fields)) for text in wording.statements)
    teaching = Teaching(wording.noun.format(**fields), answers[0], statements)
    return Asking(wording.question.format(**fields), answers), teaching


def capitalise(text: str) -> str:
    """Write the first letter as a capital and leave the rest alone."""
    return text[0].upper() + text[1:]


def make_fact(topic: str, key: str, asked: list[tuple[Asking, Teaching]]) -> Fact:
    """Join the askings of one fact under its key."""
    askings, teachings = zip(*asked, strict=True)
    return Fact(topic, f"{topic}:{key}", askings, teachings)


def arithmetic_facts() -> Iterator[Fact]:
    """Yield one fact per unordered pair of operands, asked in both orders."""
    for topic, wording, sign, low, high in (
        ("addition", ADDITION, "+", 1, 12),
        ("multiplication", MULTIPLICATION, "x", 2, 10),
    ):
        for a in range(low, high + 1):
            for b in range(a, high + 1):
                answers = (str(a + b if sign == "+" else a * b),)
                orders = [(a, b)] if a == b else [(a, b), (b, a)]
                asked = [
                    ask(wording, f"{left} {sign} {right}", answers, left=left, right=right)
                    for left, right in orders
                ]
                yield make_fact(topic, f"{a} {sign} {b}", asked)


def two_way_facts() -> Iterator[Fact]:
    """Yield the facts that can be asked from either end: opposites, days and months."""
    for one, (other,) in read_table(OPPOSITE_TABLE):
        asked = [
            ask(OPPOSITES, subject, (answer, *ALSO_OPPOSITE.get(subject, ())))
            for subject, answer in ((one, other), (other, one))
        ]
        yield make_fact("opposites", " ".join(sorted((one, other))), asked)
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for first, second in zip(names, names[1:] + names[:1], strict=True):
            asked = [
                ask(AFTER, first, (second,), kind=kind),
                ask(BEFORE, second, (first,), kind=kind),
            ]
            yield make_fact("calendar", " ".join(sorted((first, second))), asked)


def all_facts() -> list[Fact]:
    """Return every fact of all twelve topics in a fixed order."""
    facts = [*arithmetic_facts(), *two_way_facts()]
    for topic, (wording, table) in TABLE_TOPICS.items():
        for subject, answers in read_table(table):
            facts.append(make_fact(topic, subject, [ask(wording, subject, answers)]))
    return facts
