// What the browser of questions and answers reads: the page's index of what there is, and a part of
// the page for each round, decoded when it is looked at; and what of it a reader has asked for. The
// state is in the address (`#answers/2?...`). `answers_view.js` follows in the same function.
// Everything from the run is hostile: it goes in as text, never as markup, and links are checked.
const NAME = "answers";
const PAGE_SIZE = 50; // samples; the repeats of a question stay together
const MAX_BYTES = 50e6; // of a decoded part; the run makes none above 20e6
const KEPT_PARTS = 6; // decoded ones that are held
const MOST_REPEATS = 100; // of a question that stand together
const MOST_EXPECTED = 12; // answers that are shown before somebody asks for more
const LONG = 1200; // characters of a text that are shown before somebody asks for more
const MANY_TOPICS = 300; // that a list can be chosen from; more are found by the search

// What a filter shows; `pair` ones need an evaluation to compare with, `partly` ones scores
// between 0 and 1.
const SAMPLE_FILTERS = [
  { key: "all", name: "All", test: () => true },
  { key: "wrong", name: "Wrong", test: (row) => row.now.score < 1 },
  { key: "partly", name: "Partly right", partly: true, test: (row) => isPartly(row.now) },
  { key: "newly-right", name: "Newly right", pair: true,
    test: (row) => row.now.score === 1 && row.before.score < 1 },
  { key: "newly-wrong", name: "Newly wrong", pair: true,
    test: (row) => row.now.score < 1 && row.before.score === 1 },
  { key: "rose", name: "Score rose", pair: true, partly: true,
    test: (row) => row.now.score > row.before.score },
  { key: "fell", name: "Score fell", pair: true, partly: true,
    test: (row) => row.now.score < row.before.score },
  { key: "changed", name: "Changed answer", pair: true,
    test: (row) => row.now.digest !== row.before.digest },
  { key: "truncated", name: "Truncated", test: (row) => row.now.truncated === true },
  { key: "malformed", name: "Malformed", test: (row) => row.now.malformed === true },
  { key: "failed", name: "Failed", test: (row) => row.now.error !== undefined },
];
const LOSS_FILTERS = [
  { key: "all", name: "All", test: () => true },
  { key: "rose", name: "Loss rose", pair: true, test: (row) => row.now.loss > row.before.loss },
  { key: "fell", name: "Loss fell", pair: true, test: (row) => row.now.loss < row.before.loss },
];

const byId = (id) => document.getElementById(id);
const place = byId("answers-browser");
const heading = byId(NAME);
const index = JSON.parse(new TextDecoder().decode(bytesOf("answers-index"))); // what there is

// --- elements and text ---------------------------------------------------------------------------

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// What cannot be seen or turns the direction of writing, as its number; joiners of other scripts
// and of emoji are part of what is written with them.
const UNSEEN = new RegExp("(?:(?![\\n\\t])[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Cs}]"
  + "(?<![\\u0300-\\u{10ffff}][\\u200c\\u200d]))+", "gu");

function named(characters) {
  const number = (one) => "U+" + one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const names = [];
  for (const one of characters) {
    const last = names[names.length - 1];
    if (last && last.one === one) last.times += 1;
    else names.push({ one, times: 1 });
  }
  return names.map((n) => number(n.one) + (n.times > 1 ? ` x ${n.times}` : "")).join(" ");
}

function plain(text) {
  return String(text).replace(UNSEEN, (characters) => `[${named(characters)}]`);
}

// A text with what cannot be seen marked.
function visible(text) {
  const pieces = document.createDocumentFragment();
  let end = 0;
  for (const found of text.matchAll(UNSEEN)) {
    pieces.append(text.slice(end, found.index));
    pieces.append(make("span", { class: "unseen" }, named(found[0])));
    end = found.index + found[0].length;
  }
  pieces.append(text.slice(end));
  return pieces;
}

// The first characters, never half of one.
function start(text, length) {
  const cut = text.slice(0, length);
  return /[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut;
}

function textBox(text, kind) {
  if (text === "") return make("p", { class: "quiet" }, "(empty)");
  if (text.trim() === "") {
    return make("p", { class: "quiet" }, `(white space alone, ${text.length} characters)`);
  }
  const box = make("div", { class: `text ${kind}`, dir: "auto" }, visible(start(text, LONG)));
  if (text.length <= LONG) return box;
  const more = make("button", { type: "button", class: "more" },
    `Show all ${number(text.length)} characters`);
  more.addEventListener("click", () => {
    box.replaceChildren(visible(text));
    box.tabIndex = -1;
    box.focus({ preventScroll: true });
    more.remove();
  });
  return make("div", {}, box, more);
}

const number = (value) => value.toLocaleString("en-US");
const count = (value, one) => `${number(value)} ${one}${value === 1 ? "" : "s"}`;

// Four digits, but for what they would make another number: a score just below 1 is not 1.
function short(value) {
  const rounded = Number(value.toPrecision(4));
  return String(Number.isInteger(rounded) ? value : rounded);
}

// A loss, or how far two are apart.
function precise(value) {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toPrecision(3) : value.toFixed(4);
}

const isPartly = (sample) => sample.score > 0 && sample.score < 1;

function link(text, href) {
  const isBeside = /^[\w.%~-][\w.%~/-]*$/.test(href);
  return isBeside ? make("a", { href }, text) : make("span", {}, text);
}

// --- parts ---------------------------------------------------------------------------------------

const decoded = new Map();

function bytesOf(id) {
  const binary = atob(byId(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

async function inflated(bytes) {
  const reader = new Blob([bytes]).stream()
    .pipeThrough(new DecompressionStream("gzip")).getReader();
  const decoder = new TextDecoder();
  let text = "";
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    size += value.length;
    if (size > MAX_BYTES) throw new Error("it is too large");
    text += decoder.decode(value, { stream: true });
  }
}

async function partOf(round) {
  if (!decoded.has(round.part)) {
    if (decoded.size >= KEPT_PARTS) decoded.delete(decoded.keys().next().value);
    decoded.set(round.part, inflated(bytesOf(round.part)).then(JSON.parse));
  }
  return decoded.get(round.part);
}

async function taskOf(round, name) {
  const part = await partOf(round);
  const isNamed = (one) => one.name === name;
  const task = part.tasks.find(isNamed);
  const losses = part.held_out.find(isNamed);
  return { task, losses, entries: task ? task.samples : losses ? losses.rows : [] };
}

// --- the address ---------------------------------------------------------------------------------

const NOTHING = { round: null, task: null, versus: null, show: null, topic: null, find: "",
  page: 1 };

// What an address asks for; null where it is about something else.
function asked(hash) {
  const found = /^#answers(?:\/([^?]*))?(?:\?(.*))?$/.exec(hash);
  if (!found) return null;
  const given = new URLSearchParams(found[2] || "");
  const digits = (text) => (/^\d{1,9}$/.test(text || "") ? Number(text) : null);
  return {
    round: found[1] === undefined || found[1] === "" ? null : (digits(found[1]) ?? found[1]),
    task: given.get("task"),
    versus: given.get("vs") === "none" ? "none" : digits(given.get("vs")),
    show: given.get("show"),
    topic: given.get("topic"),
    find: given.get("find") || "",
    page: digits(given.get("page")) || 1,
  };
}

function addressOf(state) {
  const told = new URLSearchParams();
  told.set("task", state.task);
  if (state.versus !== null) told.set("vs", state.versus);
  told.set("show", state.show);
  if (state.topic !== null) told.set("topic", state.topic);
  if (state.find !== "") told.set("find", state.find);
  if (state.page > 1) told.set("page", state.page);
  return `#${NAME}/${state.round}?${told}`;
}

// The state that an address stands for, and what of it there is not.
function settled(wish) {
  const notes = [];
  const state = { ...NOTHING, ...wish };
  const isRound = (number) => index.rounds.some((round) => round.number === number);
  const isTask = (name) => index.tasks.some((task) => task.name === name);
  if (state.show === null) state.show = state.round === null ? "wrong" : "all";
  if (!isRound(state.round)) {
    if (state.round !== null) notes.push(`There is no ${kind()} ${plain(state.round)} here.`);
    state.round = index.recommended ?? index.rounds[0].number;
  }
  if (!isTask(state.task)) {
    if (state.task !== null) notes.push(`There is no task ${plain(state.task)} here.`);
    state.task = index.tasks[0].name;
  }
  if (state.versus !== null && state.versus !== "none" && !isRound(state.versus)) {
    notes.push(`There is no ${kind()} ${state.versus} here to compare with.`);
    state.versus = null;
  }
  if (state.versus === state.round) {
    notes.push(`A ${kind()} is not compared with itself.`);
    state.versus = null;
  }
  return { state, notes };
}

const kind = () => (index.is_evaluation ? "checkpoint" : "round");
const roundOf = (number) => index.rounds.find((round) => round.number === number);
const has = (round, task) => round.tasks.includes(task);

// The evaluation to compare with: the chosen one, or the last one before with this task; in an
// evaluation of checkpoints the first, which is its reference.
function beforeOf(state) {
  if (state.versus === "none") return null;
  if (state.versus !== null) return roundOf(state.versus);
  const earlier = index.rounds.filter((one) =>
    one.number < state.round && has(one, state.task));
  return (index.is_evaluation ? earlier[0] : earlier[earlier.length - 1]) || null;
}

// --- why there is nothing to show ----------------------------------------------------------------

function whyNotRun(round, name) {
  const every = index.tasks.find((task) => task.name === name).every;
  const often = every === "end" ? " It is measured at the end of the run."
    : every > 1 ? ` It is measured every ${every} rounds.` : "";
  const why = round.note ? ` ${plain(round.note)}` : often;
  return `Not run: ${plain(name)} was not measured in ${plain(round.name)}.${why}`;
}

function whyUnread(round) {
  if (round.part === null) {
    return "Left out of this page, which would be too large: the answers of "
      + `${plain(round.name)}. They are in ${round.file}.`;
  }
  return "DecompressionStream" in window ? null
    : "This browser cannot read the answers in this page (it has no DecompressionStream). "
      + `They are in ${round.file}.`;
}

// --- rows: an entry now, and the same before -----------------------------------------------------

const keyOf = (entry) => `${entry.repeat || 1} ${entry.id}`;

function rowsOf(now, before) {
  const earlier = new Map();
  for (const entry of before ? before.entries : []) earlier.set(keyOf(entry), entry);
  return now.entries.map((entry) => ({ now: entry, before: earlier.get(keyOf(entry)) || null }));
}

// What a search looks through.
function saidIn(row) {
  const of = (one) => [one.id, one.topic, one.question, ...(one.expected || []), one.answer,
    one.error];
  const texts = [...of(row.now), ...(row.before ? of(row.before) : [])];
  return texts.filter((text) => text).join("\n").toLowerCase();
}

function passes(filter, row) {
  return (!filter.pair || row.before !== null) && filter.test(row);
}

function hasTopic(row, topic) {
  return topic === null || (row.now.topic ?? "") === topic;
}

function parted(list, size) {
  const parts = [];
  for (let at = 0; at < list.length; at += size) parts.push(list.slice(at, at + size));
  return parts;
}

// The questions of rows, each with its repeats, in pages.
function pagesOf(rows) {
  const questions = new Map();
  for (const row of rows) {
    const known = questions.get(row.now.id);
    if (known) known.push(row);
    else questions.set(row.now.id, [row]);
  }
  const together = [...questions.values()].flatMap((repeats) =>
    repeats.length <= MOST_REPEATS ? [repeats] : parted(repeats, MOST_REPEATS));
  const pages = [];
  let size = PAGE_SIZE;
  for (const repeats of together) {
    if (size >= PAGE_SIZE) {
      pages.push([]);
      size = 0;
    }
    pages[pages.length - 1].push(repeats);
    size += repeats.length;
  }
  return pages;
}

// What is shown of a round: which rows, how many each filter would show, which topics there are.
function chosen(state, now, before) {
  const filters = now.losses ? LOSS_FILTERS : SAMPLE_FILTERS;
  const rows = rowsOf(now, before);
  const words = state.find.toLowerCase();
  const found = words === "" ? rows : rows.filter((row) => saidIn(row).includes(words));
  const ofTopic = found.filter((row) => hasTopic(row, state.topic));
  const filter = filters.find((one) => one.key === state.show);
  const isOne = (row) => filter === undefined || passes(filter, row);
  const topics = new Map();
  for (const row of rows) topics.set(row.now.topic ?? "", 0);
  for (const row of found) {
    if (isOne(row)) topics.set(row.now.topic ?? "", topics.get(row.now.topic ?? "") + 1);
  }
  const counts = new Map(filters.map((one) =>
    [one.key, ofTopic.filter((row) => passes(one, row)).length]));
  const hasPartly = !now.losses && [...now.entries, ...(before ? before.entries : [])]
    .some(isPartly);
  return { filters, filter, counts, topics, hasPartly, all: rows, rows: ofTopic.filter(isOne) };
}
