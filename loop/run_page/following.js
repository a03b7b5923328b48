(() => {
  const EVERY_MS = 2000;
  const EVERY_MS_AT_REST = 15000; // it may be resumed
  const RESTORE_MS = 3000; // parts of the page are read on demand, and come a little later
  const PLACE = "place " + location.pathname;

  const made = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };
  const bar = made("header", "served", "");
  const home = made("a", "", "All runs");
  home.href = "/";
  const state = made("p", "state", "");
  state.setAttribute("role", "status"); // told when it changes, which a step is not
  const figures = made("p", "figures-now", "");
  const renew = made("button", "", "");
  renew.type = "button";
  renew.hidden = true;
  bar.append(home, state, figures, renew);
  document.querySelector("main").before(bar);

  const say = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };
  const ago = (seconds) => {
    if (seconds < 90) return Math.round(seconds) + " s";
    return seconds < 5400 ? Math.round(seconds / 60) + " min" : Math.round(seconds / 3600) + " h";
  };

  const tell = (now) => {
    const round = now.round === null ? "" : ", round " + now.round;
    const score = now.score === null
      ? "" : "; round " + now.score_round + " scored " + now.score.toFixed(4);
    const why = now.detail ? ": " + now.detail : "";
    say(state, "This run: " + now.state + (now.state === "going on" ? round : "") + score + why);
    const told = [];
    if (now.state === "going on" && now.step !== null) told.push("step " + now.step);
    if (now.state === "going on" && now.value !== null) {
      told.push(now.measure + " " + now.value.toPrecision(5));
    }
    if (now.seconds_since_event !== null) {
      told.push("last event " + ago(now.seconds_since_event) + " ago");
    }
    say(figures, told.join(", "));
    if (now.page_seq > MADE_OF_SEQ) {
      say(renew, now.state === "going on" ? "There is more to see: show it"
        : "The run has gone on since: show it");
      renew.hidden = false;
    }
  };

  const keep = () => {
    const open = [...document.querySelectorAll("details")].map((one) => one.open);
    try {
      sessionStorage.setItem(PLACE, JSON.stringify({ y: scrollY, open }));
    } catch { /* no place to keep it: the page opens at its hash */ }
  };
  const restore = () => {
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(PLACE));
      sessionStorage.removeItem(PLACE);
    } catch { /* as above */ }
    if (kept === null) return;
    history.scrollRestoration = "manual";
    document.querySelectorAll("details").forEach((one, i) => { one.open = kept.open[i] === true; });
    const until = performance.now() + RESTORE_MS;
    let stopped = false;
    const stop = () => { stopped = true; };
    for (const name of ["wheel", "keydown", "pointerdown", "touchstart"]) {
      addEventListener(name, stop, { once: true, passive: true });
    }
    const go = () => {
      if (stopped) return;
      scrollTo(0, kept.y);
      if (Math.abs(scrollY - kept.y) > 2 && performance.now() < until) setTimeout(go, 50);
    };
    go();
  };
  renew.addEventListener("click", () => { keep(); location.reload(); });

  const ask = async () => {
    let wait = EVERY_MS;
    try {
      if (!document.hidden) {
        const answer = await fetch("state.json", { cache: "no-store", credentials: "omit" });
        if (!answer.ok) throw new Error("status " + answer.status);
        const now = await answer.json();
        tell(now);
        if (now.state !== "going on") wait = EVERY_MS_AT_REST;
      }
    } catch (error) {
      say(state, "No word of this run: the server has ended, or the directory is gone.");
      say(figures, "");
    }
    setTimeout(ask, wait);
  };
  restore();
  ask();
})();
