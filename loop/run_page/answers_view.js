// How the browser of questions and answers shows what it reads, and what a reader can do with it.

let view; // the elements that change
let current; // the state that is shown
let typing = null; // the timer of a search that is being typed
let drawing = 0; // the number of the newest drawing; an older one that comes late is dropped

// --- controls ------------------------------------------------------------------------------------

function labelled(words, control) {
  return make("label", {}, make("span", {}, words), control);
}

function select(name, words, changed) {
  const control = make("select", { name: `answers-${name}` });
  control.addEventListener("change", () => changed(control.value));
  return { control, label: labelled(words, control) };
}

function fill(control, options, chosenValue) {
  control.replaceChildren(...options.map(([value, text, isOff]) =>
    make("option", isOff ? { value, disabled: "" } : { value }, text)));
  control.value = chosenValue;
}

function button(words, clicked) {
  const made = make("button", { type: "button" }, words);
  made.addEventListener("click", () => {
    if (made.getAttribute("aria-disabled") !== "true") clicked();
  });
  return made;
}

function pager(name, turned) {
  const words = make("span", {});
  const back = button("Previous", () => turned(-1));
  const on = button("Next", () => turned(1));
  return { words, back, on, nav: make("nav", { "aria-label": name }, back, words, on) };
}

function built() {
  const turned = (by) => {
    go({ page: current.page + by });
    view.list.focus({ preventScroll: true });
    view.status.scrollIntoView();
  };
  const find = make("input",
    { name: "answers-find", type: "search", autocomplete: "off", spellcheck: "false" });
  const parts = {
    task: select("task", "Task", (value) => go({ task: value, topic: null, page: 1 })),
    round: select("round", kind() === "round" ? "Round" : "Checkpoint",
      (value) => go({ round: Number(value), page: 1 })),
    versus: select("versus", "Compared with", (value) =>
      go({ versus: value === "none" ? "none" : value === "" ? null : Number(value), page: 1 })),
    topic: select("topic", "Topic", (value) =>
      go({ topic: value === "" ? null : value.slice(1), page: 1 })),
    find,
    filters: make("fieldset", {}),
    notes: make("div", { class: "notes" }),
    status: make("p", { role: "status" }),
    list: make("div", { class: "samples", tabindex: "-1" }),
    above: pager("Pages of samples", turned),
    below: pager("Pages of samples, below them", turned),
    filterKinds: null,
  };
  find.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = null;
      go({ find: find.value, page: 1 }, true);
    }, 150);
  });
  const choices = make("div", { class: "choices" }, parts.task.label, parts.round.label,
    parts.versus.label, parts.topic.label, labelled("Find in texts", find));
  place.replaceChildren(choices, parts.filters, parts.notes, parts.status, parts.above.nav,
    parts.list, parts.below.nav);
  return parts;
}

function drawChoices(state) {
  const tasks = index.tasks.map((task) => [task.name, plain(task.name)]);
  fill(view.task.control, tasks, state.task);
  const named = (round) => plain(round.name) + (has(round, state.task) ? "" : " (not run)");
  const rounds = index.rounds.map((round) => [String(round.number), named(round)]);
  fill(view.round.control, rounds, String(state.round));
  const usual = beforeOf({ ...state, versus: null });
  const own = index.is_evaluation ? "the first of them" : "the one before";
  const others = index.rounds.filter((round) => round.number !== state.round).map((round) =>
    [String(round.number), named(round), !has(round, state.task)]);
  const first = [["", usual ? `${own}: ${plain(usual.name)}` : `${own}: there is none`],
    ["none", "nothing"]];
  fill(view.versus.control, [...first, ...others],
    state.versus === null ? "" : String(state.versus));
  if (typing === null) view.find.value = state.find;
}

function drawTopics(state, topics) {
  const names = [...topics.keys()].sort().slice(0, MANY_TOPICS);
  if (state.topic !== null && !names.includes(state.topic)) names.push(state.topic);
  const options = names.map((name) =>
    [`=${name}`, `${name === "" ? "(none)" : plain(name)} (${number(topics.get(name) || 0)})`]);
  const left = topics.size - MANY_TOPICS;
  const all = left > 0 ? `All; ${number(left)} more are not listed` : "All";
  fill(view.topic.control, [["", all], ...options], state.topic === null ? "" : `=${state.topic}`);
}

// The filters' elements stay while they mean the same, so that the focus does.
function drawFilters(state, what, before) {
  if (view.filterKinds !== what.filters) {
    view.filterKinds = what.filters;
    view.radios = what.filters.map((filter) => {
      const radio = make("input", { type: "radio", name: "answers-show", value: filter.key });
      radio.addEventListener("change", () => go({ show: filter.key, page: 1 }));
      const counted = make("span", { class: "count" });
      return { filter, radio, counted,
        label: make("label", {}, radio, `${filter.name} `, counted) };
    });
    view.filters.replaceChildren(make("legend", {}, "Show"),
      ...view.radios.map((one) => one.label));
  }
  for (const { filter, radio, counted, label } of view.radios) {
    radio.checked = filter.key === state.show;
    radio.disabled = filter.pair === true && before === null;
    label.hidden = filter.partly === true && !what.hasPartly && !radio.checked && !what.isLoss;
    counted.textContent = radio.disabled ? "(nothing to compare with)"
      : `(${number(what.counts.get(filter.key))})`;
  }
}

function drawPagers(state, numPages) {
  for (const one of [view.above, view.below]) {
    one.nav.hidden = numPages < 2;
    one.words.textContent = `Page ${number(state.page)} of ${number(numPages)}`;
    one.back.setAttribute("aria-disabled", String(state.page <= 1));
    one.on.setAttribute("aria-disabled", String(state.page >= numPages));
  }
}

// --- samples -------------------------------------------------------------------------------------

function verdictOf(sample) {
  const word = sample.score === 1 ? "right" : isPartly(sample) ? "partly right" : "wrong";
  const flags = ["truncated", "malformed"].filter((flag) => sample[flag]);
  if (sample.error !== undefined) flags.push("failed");
  return { word, text: [`${word}, score ${short(sample.score)}`, ...flags].join(", ") };
}

function changeOf(now, before) {
  if (now.score === before.score) {
    return `${now.score === 1 ? "right in both" : now.score === 0 ? "wrong in both"
      : `score ${short(now.score)} in both`}${now.digest === before.digest ? ", same answer" : ""}`;
  }
  if (now.score === 1) return "newly right";
  if (before.score === 1) return "newly wrong";
  return now.score > before.score ? "score rose" : "score fell";
}

function answerBox(round, sample) {
  const name = plain(round.name);
  if (sample === null) {
    return make("div", { class: "answer" }, make("p", { class: "head" }, name),
      make("p", { class: "quiet" }, "Not asked."));
  }
  const verdict = verdictOf(sample);
  const head = make("p", { class: "head" }, `${name}: `, make("b", {}, verdict.text));
  const answer = sample.answer === null ? make("p", { class: "quiet" }, "(no answer)")
    : textBox(sample.answer, "given");
  const failed = sample.error === undefined ? null
    : make("div", {}, make("p", { class: "quiet" }, "It failed:"), textBox(sample.error, "error"));
  const others = Object.entries(sample.other_scores || {})
    .map(([scorer, value]) => `${plain(scorer)}: ${plain(value)}`);
  const [asked, given] = sample.tokens;
  const facts = [`${count(asked, "token")} read, ${number(given)} sampled`,
    ...(others.length ? [`other scorers: ${others.join(", ")}`] : []),
    ...(sample.cut ? [`cut; whole in ${round.file}`] : [])];
  return make("div", { class: `answer ${verdict.word.replace(" ", "-")}` }, head, answer, failed,
    make("p", { class: "quiet facts" }, facts.join("; ")));
}

function expectedBox(expected) {
  if (expected.length === 0) return make("p", { class: "quiet" }, "No expected answer is known.");
  const boxes = expected.slice(0, MOST_EXPECTED).map((one) => textBox(one, "wanted"));
  const more = expected.slice(MOST_EXPECTED);
  if (more.length > 0) {
    const shown = button(`${number(more.length)} more`, () =>
      shown.replaceWith(...more.map((one) => textBox(one, "wanted"))));
    boxes.push(shown);
  }
  const title = expected.length === 1 ? "Expected" : "Expected, one of";
  return make("div", { class: "expected" }, make("p", { class: "head" }, title), ...boxes);
}

// One question with its repeats, of which a filter may have left some out.
function questionBox(repeats, round, before, all) {
  const first = repeats[0].now;
  const isLong = first.question.length > LONG / 4;
  const title = isLong ? `${start(first.question, LONG / 4)} ...` : first.question;
  const question = make("h3", { class: "text", dir: "auto" },
    title.trim() === "" ? "(no question is recorded)" : visible(title));
  const whole = isLong ? make("details", {}, make("summary", {}, "The whole question"),
    textBox(first.question, "asked")) : null;
  const numAsked = all.get(first.id) || 1;
  const boxes = repeats.map((row) => {
    const pair = make("div", { class: before ? "pair" : "pair alone" },
      before ? answerBox(before, row.before) : null, answerBox(round, row.now));
    const change = row.before === null ? "" : changeOf(row.now, row.before);
    const which = numAsked > 1 ? `Repeat ${row.now.repeat || 1} of ${numAsked}` : "";
    const said = [which, change].filter((words) => words !== "").join(": ");
    return make("div", {}, said === "" ? null : make("p", { class: "change" }, said), pair);
  });
  const topic = first.topic === null ? "" : `, topic ${plain(first.topic)}`;
  return make("li", {}, question, whole, expectedBox(first.expected), ...boxes,
    make("p", { class: "quiet facts" }, `${plain(first.id)}${topic}`));
}

function drawSamples(pages, state, what, round, before) {
  const all = new Map();
  for (const row of what.all) all.set(row.now.id, (all.get(row.now.id) || 0) + 1);
  const questions = pages[state.page - 1] || [];
  const first = 1 + pages.slice(0, state.page - 1).reduce((sum, one) => sum + one.length, 0);
  const boxes = questions.map((one) => questionBox(one, round, before, all));
  view.list.replaceChildren(...(boxes.length ? [make("ol", { start: first }, ...boxes)] : []));
}

function drawLosses(pages, state, round, before) {
  const columns = ["Row", "Topic", "Tokens", `Loss a token, ${plain(round.name)}`];
  if (before) columns.push(`${plain(before.name)}`, "Difference");
  const head = columns.map((title) => make("th", { scope: "col" }, title));
  const body = (pages[state.page - 1] || []).flat().map(({ now, before: was }) => {
    const cells = [now.topic ?? "", number(now.num_tokens), precise(now.loss)];
    if (before) {
      const change = was && now.loss - was.loss;
      cells.push(was ? precise(was.loss) : "not measured",
        was ? (change > 0 ? "+" : "") + precise(change) : "");
    }
    return make("tr", {}, make("th", { scope: "row" }, visible(now.id)),
      ...cells.map((cell, at) => make("td", at ? { class: "number" } : {}, visible(cell))));
  });
  const table = make("table", {}, make("caption", {}, make("span", {},
    "Held-out rows by their ids. Their texts are in the file that the task names.")),
  make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  const box = make("div", { class: "scroll", role: "region", tabindex: "0",
    "aria-label": "Losses of held-out rows" }, table);
  view.list.replaceChildren(box);
}

// --- drawing -------------------------------------------------------------------------------------

function note(...words) {
  view.notes.append(make("p", {}, ...words));
}

function drawNothing(words) {
  view.status.textContent = words;
  view.list.replaceChildren();
  view.filters.hidden = true;
  drawPagers({ page: 1 }, 0);
}

function drawNotes(notes, round, before, now, earlier) {
  for (const words of notes) note(words);
  if (round.note) note(visible(round.note));
  const { task, losses, entries } = now;
  const num = task ? task.num_samples : losses.num_rows;
  if (entries.length < num) {
    note(`Only the first ${number(entries.length)} of ${number(num)} are in this page; `
      + `all are in ${round.file}.`);
  }
  if (earlier && earlier.entries.some((one) => one.cut) || entries.some((one) => one.cut)) {
    note("Long texts are cut in this page, and a search looks through what is left of them.");
  }
  const files = make("p", {}, `${plain(round.name)} as recorded: `,
    link(round.file, round.href));
  if (task && task.log) {
    files.append("; its Inspect log: ", link(plain(task.log.name), task.log.href),
      ", opened from the run's directory by ", make("code", {}, task.log.command),
      " (of the project's .venv/bin)");
  }
  view.notes.append(files);
}

function statusOf(state, what, pages) {
  const rows = what.rows.length;
  const unit = view.filterKinds === LOSS_FILTERS ? "row" : "sample";
  const name = what.filter ? what.filter.name.toLowerCase() : "all";
  const asked = [...(name === "all" ? [] : [name]),
    ...(state.topic === null ? [] : [`topic ${plain(state.topic) || "(none)"}`]),
    ...(state.find === "" ? [] : [`with "${plain(state.find)}"`])].join(", ");
  const of = `${count(what.all.length, unit)}${asked === "" ? "" : `: ${asked}`}`;
  if (rows === 0) return `None of ${of}.`;
  const sizes = pages.map((page) => page.flat().length);
  const before = sizes.slice(0, state.page - 1).reduce((sum, size) => sum + size, 0);
  const last = before + sizes[state.page - 1];
  const range = pages.length > 1 ? `${number(before + 1)} to ${number(last)} of ` : "";
  return asked === "" ? `${range}${count(rows, unit)}.` : `${range}${number(rows)} of ${of}.`;
}

async function draw({ state, notes }) {
  const own = ++drawing;
  current = state;
  drawChoices(state);
  const round = roundOf(state.round);
  view.notes.replaceChildren();
  const problem = has(round, state.task) ? whyUnread(round) : whyNotRun(round, state.task);
  if (problem !== null) {
    for (const words of notes) note(words);
    drawTopics(state, new Map());
    drawNothing(problem);
    return;
  }
  let before = beforeOf(state);
  const why = before && (has(before, state.task) ? whyUnread(before)
    : whyNotRun(before, state.task));
  if (why) {
    notes = [...notes, `Nothing is compared. ${why}`];
    before = null;
  }
  if (!decoded.has(round.part)) view.status.textContent = `Reading ${plain(round.name)} ...`;
  try {
    const now = await taskOf(round, state.task);
    const earlier = before && await taskOf(before, state.task);
    if (own !== drawing) return;
    if (now.task || now.losses) drawRows(state, notes, { round, before, now, earlier });
    else drawNothing(`Too large for this page. The answers are in ${round.file}.`);
  } catch (error) { // somebody has changed the part
    if (own === drawing) {
      drawNothing(`The answers in this page cannot be read (${plain(error.message)}). `
        + `They are in ${round.file}.`);
    }
  }
}

function drawRows(state, notes, { round, before, now, earlier }) {
  const what = { ...chosen(state, now, earlier), isLoss: now.losses !== undefined };
  if (what.filter === undefined) {
    if (state.show !== "wrong") notes = [...notes, `There is no filter ${plain(state.show)} here.`];
    current = state = { ...state, show: "all" };
    what.filter = what.filters[0];
  }
  const pages = pagesOf(what.rows);
  current = state = { ...state, page: Math.max(1, Math.min(state.page, pages.length)) };
  view.filters.hidden = false;
  drawFilters(state, what, before);
  drawTopics(state, what.topics);
  view.notes.replaceChildren();
  drawNotes(notes, round, before, now, earlier);
  drawPagers(state, pages.length);
  view.status.textContent = statusOf(state, what, pages);
  if (what.isLoss) drawLosses(pages, state, round, before);
  else drawSamples(pages, state, what, round, before);
}

// --- going about ---------------------------------------------------------------------------------

const KNOWN = { answers: true }; // what marks the steps that this browser has seen

// Change the state, in the address as well; `isTyping` leaves no step to go back to.
function go(changes, isTyping = false) {
  const state = { ...current, ...changes };
  if (state.versus === state.round) state.versus = null;
  try {
    history[isTyping ? "replaceState" : "pushState"](KNOWN, "", addressOf(state));
  } catch { // some viewers of files let no page change its address: there is none to go back to
  }
  draw(settled(state));
}

// Follow the address where it is about the answers. A link to them brings the reader there, a step
// back or forth to where the reader was.
function follow() {
  const wish = asked(location.hash);
  if (wish === null) {
    if (location.hash === "" && drawing > 0) draw(settled(NOTHING));
    return false;
  }
  const drawn = draw(settled(wish));
  if (!history.state || history.state.answers !== true) {
    history.replaceState(KNOWN, "");
    drawn.then(come); // not before: what is drawn makes the page long enough to scroll there
  }
  return true;
}

function come() {
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  heading.scrollIntoView();
}

// A link to the address that is open already changes nothing that `hashchange` would tell of.
function clicked(event) {
  const found = event.target instanceof Element && event.target.closest("a[href]");
  if (found && found.getAttribute("href") === location.hash && asked(location.hash)) come();
}

function begin() {
  if (index.rounds.length === 0 || index.tasks.length === 0) {
    place.replaceChildren(make("p", {}, "Nothing has been asked yet."));
    return;
  }
  view = built();
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", clicked);
  if (follow()) return;
  const start = settled(NOTHING);
  current = start.state;
  drawChoices(start.state);
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    if (drawing === 0) draw(start);
  }, { rootMargin: "400px" });
  seen.observe(place);
}

begin();
