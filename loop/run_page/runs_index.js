(() => {
  const EVERY_MS = 5000;
  const made = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };
  const main = document.querySelector("main");
  const rows = [...main.querySelectorAll("tbody tr")].filter((row) => row.querySelector("a"));

  // --- a filter, and the choice of runs to compare
  const bar = made("div", "finding served", "");
  bar.setAttribute("role", "search");
  const label = made("label", "", "Show runs with ");
  const filter = made("input", "", "");
  filter.type = "search";
  filter.name = "runs-find";
  label.append(filter);
  const count = made("p", "", "");
  count.setAttribute("role", "status");
  const compare = made("button", "", "Compare the chosen runs");
  compare.type = "button";
  compare.disabled = true;
  const renew = made("button", "", "There is news of the runs: show it");
  renew.type = "button";
  renew.hidden = true;
  renew.addEventListener("click", () => location.reload());
  bar.append(label, compare, renew, count);
  (main.querySelector("section") || main.lastElementChild).before(bar);

  const chosen = new Set();
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    const few = chosen.size > 0 ? "; " + chosen.size + " chosen, 2 to " + MOST + " can be compared" : "";
    count.textContent = shown + " of " + rows.length + " shown" + few;
    compare.disabled = chosen.size < 2 || chosen.size > MOST;
  };
  filter.addEventListener("input", show);
  compare.addEventListener("click", () => {
    const asked = new URLSearchParams([...chosen].map((id) => ["run", id]));
    location.assign("/compare?" + asked);
  });
  for (const row of rows) {
    if (row.closest("section[aria-labelledby=evaluations]")) continue; // no runs
    if ([...row.cells].some((cell) => cell.textContent === "evaluation")) continue;
    const link = row.querySelector("a");
    const box = made("input", "", "");
    box.type = "checkbox";
    box.name = "runs-chosen";
    box.autocomplete = "off";
    box.setAttribute("aria-label", "compare " + link.textContent);
    const id = decodeURIComponent(new URL(link.href).pathname).replace(/^\/run\/|\/$/g, "");
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(id); else chosen.delete(id);
      show();
    });
    link.before(box, " ");
  }
  show();

  // --- sorting by a column
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = Number.parseFloat(text.replaceAll(",", ""));
    return /^-?[\d,.]+(\s|$)/.test(text) ? number : text.toLowerCase();
  };
  const order = (one, other) => {
    if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
    return typeof one === "number" ? -1 : 1;
  };
  for (const table of main.querySelectorAll("table")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = made("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      head.classList.add("finding");
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const body = table.tBodies[0];
        const sorted = [...body.rows].sort((a, b) => order(key(a, column), key(b, column)));
        body.append(...(rising ? sorted : sorted.reverse()));
      });
    });
  }

  // --- news
  const ask = async () => {
    try {
      if (!document.hidden) {
        const answer = await fetch("/changes.json", { cache: "no-store", credentials: "omit" });
        const now = await answer.json();
        renew.hidden = now.version === MADE_OF;
      }
    } catch {
      count.textContent = "The server has ended.";
      return;
    }
    setTimeout(ask, EVERY_MS);
  };
  ask();
})();
