"use strict";
(() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const served = settings.session === null;
  const RETRY_MS = 5000;
  const PASS = 0.6; // of a row's height, after which the held row and that row change places

  let session = settings.session;
  let code = "";
  let language = settings.language;
  let index = 0; // of the trial shown; trials.length once all are done
  let dimension = settings.dimensions[0];
  let draft = null; // {order: dimension to card ids, confirmed: [dimension], began: ms, spent: s}
  let votes = {}; // trial to vote, newest revision
  let pending = {}; // trials whose vote the server has not acknowledged
  let keeps = true; // whether the browser stores anything
  let sending = false;
  let message = null; // key of a text, so that it changes with the language

  const say = (key, values = {}) =>
    settings.texts[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const $ = (id) => document.getElementById(id);

  // Everything on the page is made here; text is only ever set as text.
  function make(tag, options = {}, ...children) {
    const { on = {}, text, ...attributes } = options;
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null) element.setAttribute(name, value);
    }
    for (const [event, handler] of Object.entries(on)) element.addEventListener(event, handler);
    if (text !== undefined) element.textContent = text;
    element.append(...children);
    return element;
  }

  const storageName = () => `ranking-${session.study}-${session.rater}`;

  function remember() {
    try {
      const state = { votes, pending, draft, index, consented: true };
      localStorage.setItem(storageName(), JSON.stringify(state));
    } catch {
      keeps = false;
    }
  }

  function recall() {
    try {
      const state = JSON.parse(localStorage.getItem(storageName()));
      return state && typeof state === "object" ? state : {};
    } catch {
      keeps = false;
      return {};
    }
  }

  const labels = () => "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const trial = () => session.trials[index];
  const labelOf = (card) => {
    const place = trial().cards.findIndex((other) => other.id === card);
    return labels()[place] ?? String(place + 1);
  };

  function open(stored) {
    const known = recall();
    votes = { ...(known.votes ?? {}), ...stored };
    pending = {};
    for (const key of Object.keys(known.pending ?? {})) {
      // A vote that was never acknowledged is newer than what the server has.
      if (!stored[key] || stored[key].revision < known.votes[key].revision) {
        votes[key] = known.votes[key];
        pending[key] = true;
      }
    }
    const first = session.trials.findIndex((one) => !votes[one.trial]);
    index = first < 0 ? session.trials.length : first;
    if (known.draft && trial() && known.draft.trial === trial().trial) draft = known.draft;
    if (known.consented) begin();
    else showConsent();
    send();
  }

  function begin() {
    if (!draft || !trial() || draft.trial !== trial().trial) startDraft();
    dimension = settings.dimensions.find((name) => !draft?.confirmed.includes(name))
      ?? settings.dimensions[0];
    remember();
    show();
  }

  function startDraft() {
    if (!trial()) return void (draft = null);
    const old = votes[trial().trial];
    const shown = trial().cards.map((card) => card.id);
    draft = { trial: trial().trial, order: {}, confirmed: [], spent: old ? old.seconds : 0 };
    for (const name of settings.dimensions) draft.order[name] = [...(old?.rankings[name] ?? shown)];
    if (old) draft.confirmed = [...settings.dimensions];
    dimension = settings.dimensions[0];
  }

  // Seconds count while the page is seen.
  setInterval(() => {
    if (draft && document.visibilityState === "visible") draft.spent += 1;
  }, 1000);

  function frame() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    $("title").textContent = settings.title || say("title");
    $("language").textContent = say("other");
    $("crisis").textContent = say("crisis");
    $("message").hidden = message === null && keeps;
    $("message").textContent = message !== null ? say(message) : keeps ? "" : say("unsaved");
    if (!session) return;
    const done = session.trials.filter((one) => votes[one.trial]).length;
    $("progress").max = session.trials.length;
    $("progress").value = done;
    $("count").textContent = `${done} / ${session.trials.length}`;
  }

  function tell(key) {
    message = key;
    frame();
  }

  function showLogin() {
    frame();
    const input = make("input", { id: "code", autocomplete: "off", spellcheck: "false" });
    const enter = () => logIn(input.value.trim());
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") enter();
    });
    $("main").replaceChildren(
      make("p", {}, make("label", { for: "code", text: say("code") })),
      make("div", { class: "row" }, input,
        make("button", { type: "button", class: "main", text: say("enter"), on: { click: enter } })),
    );
  }

  function showConsent() {
    frame();
    $("main").replaceChildren(
      make("h2", { text: say("consent_title") }),
      make("p", { text: say("consent") }),
      make("p", { text: say("warning") }),
      make("p", { text: say("crisis") }),
      make("button", {
        id: "agree", type: "button", class: "main", text: say("agree"), on: { click: begin },
      }),
    );
  }

  function show() {
    frame();
    if (!trial()) return showDone();
    const cards = trial().cards.map((card) =>
      make("section", { class: "answer" },
        make("h3", { text: `${say("answer")} ${labelOf(card.id)}` }),
        make("div", { class: "text", dir: "auto", tabindex: "0", text: card.text })));
    $("main").replaceChildren(
      make("h2", { text: say("question") }),
      make("div", { class: "text question", dir: "auto", tabindex: "0", text: trial().question }),
      make("div", { class: "trial" },
        make("div", {}, make("h2", { text: say("answer") }), ...cards),
        make("div", { class: "ranking", id: "ranking" })),
    );
    showRanking();
  }

  function showRanking(focus = null) {
    const tabs = settings.dimensions.map((name) =>
      make("button", {
        type: "button", text: say(name), "aria-pressed": String(name === dimension),
        "data-dimension": name, class: draft.confirmed.includes(name) ? "done" : "",
        on: { click: () => choose(name) },
      }));
    const list = make("ol", { id: "list", "aria-label": say(dimension) });
    for (const card of draft.order[dimension]) list.append(row(card));
    const open = settings.dimensions.filter((name) => !draft.confirmed.includes(name));
    const all = open.length === 0;
    $("ranking").replaceChildren(
      make("div", { class: "tabs" }, ...tabs),
      make("h2", { text: `${say(dimension)}: ${say(`${dimension}_hint`)}` }),
      make("p", { class: "dim", text: say("how") }),
      list,
      make("div", { class: "row" },
        make("button", {
          id: "confirm", type: "button", class: all ? "" : "main", text: say("confirm"),
          on: { click: confirm },
        }),
        make("button", {
          id: "submit", type: "button", class: all ? "main" : "", text: say("submit"),
          disabled: all ? null : "", on: { click: submit },
        })),
      make("div", { class: "row" }, ...around()),
    );
    number();
    if (focus !== null) list.children[focus]?.querySelector(".grip").focus();
  }

  function around() {
    const move = (step) => () => {
      index += step;
      startDraft();
      remember();
      show();
      scrollTo(0, 0);
    };
    const made = [
      make("button", {
        id: "previous", type: "button", text: say("previous"),
        disabled: index > 0 ? null : "", on: { click: move(-1) },
      }),
      make("button", {
        id: "next", type: "button", text: say("next"),
        disabled: trial() && votes[trial().trial] ? null : "", on: { click: move(1) },
      }),
    ];
    return served ? made : [...made, downloadButton()];
  }

  function choose(name) {
    dimension = name;
    showRanking();
  }

  function row(card) {
    const found = trial().cards.find((other) => other.id === card);
    const grip = make("button", { type: "button", class: "grip", "data-card": card },
      make("b", { text: labelOf(card) }), make("span", { text: found.text.slice(0, 60) }));
    const step = (sign, key, by) => make("button", {
      type: "button", class: "step", text: sign, "aria-label": `${labelOf(card)} ${say(key)}`,
      on: { click: () => place(card, draft.order[dimension].indexOf(card) + by) },
    });
    const item = make("li", {}, grip, step("▲", "up", -1), step("▼", "down", 1));
    grip.addEventListener("keydown", (event) => onKey(event, card));
    grip.addEventListener("pointerdown", (event) => onPointer(event, item, grip));
    return item;
  }

  // Names of the rows for screen readers, with their places.
  function number() {
    const items = [...$("list").children];
    items.forEach((item, at) => {
      const grip = item.querySelector(".grip");
      const values = { label: labelOf(grip.dataset.card), place: at + 1, of: items.length };
      grip.setAttribute("aria-label", say("place", values));
    });
  }

  function place(card, to) {
    const order = draft.order[dimension];
    const from = order.indexOf(card);
    to = Math.max(0, Math.min(order.length - 1, to));
    if (to !== from) {
      order.splice(to, 0, order.splice(from, 1)[0]);
      remember();
      showRanking(to);
    }
    const values = { label: labelOf(card), place: to + 1, of: order.length };
    $("announce").textContent = say("place", values);
  }

  function onKey(event, card) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = draft.order[dimension].indexOf(card);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: Infinity }[event.key]
      ?? (/^[1-9]$/.test(event.key) ? Number(event.key) - 1 : null);
    if (to === null) return;
    event.preventDefault();
    place(card, to);
  }

  // Mouse, pen and touch alike: the row follows the pointer, the others make way.
  function onPointer(event, item, grip) {
    if (event.button !== 0 || !event.isPrimary) return;
    const list = item.parentElement;
    let origin = event.clientY;
    grip.setPointerCapture(event.pointerId);
    item.classList.add("held");
    const move = (moved) => {
      let shift = moved.clientY - origin;
      const pass = (other, side) => {
        const old = item.offsetTop;
        item[side](other); // the held row stays where it is, or it would lose the pointer
        origin += item.offsetTop - old;
        shift = moved.clientY - origin;
      };
      let other;
      while ((other = item.previousElementSibling) && shift < -PASS * other.offsetHeight) {
        pass(other, "after");
      }
      while ((other = item.nextElementSibling) && shift > PASS * other.offsetHeight) {
        pass(other, "before");
      }
      item.style.transform = `translateY(${shift}px)`;
    };
    const end = (ended) => {
      grip.removeEventListener("pointermove", move);
      grip.removeEventListener("pointerup", end);
      grip.removeEventListener("pointercancel", end);
      item.classList.remove("held");
      item.style.transform = "";
      if (ended.type === "pointerup") {
        draft.order[dimension] = [...list.children].map(
          (one) => one.querySelector(".grip").dataset.card);
        remember();
        number();
      } else {
        showRanking();
      }
    };
    grip.addEventListener("pointermove", move);
    grip.addEventListener("pointerup", end);
    grip.addEventListener("pointercancel", end);
  }

  function confirm() {
    if (!draft.confirmed.includes(dimension)) draft.confirmed.push(dimension);
    const open = settings.dimensions.find((name) => !draft.confirmed.includes(name));
    if (open) dimension = open;
    remember();
    showRanking(open ? 0 : null);
    if (!open) $("submit").focus();
  }

  function submit() {
    const key = trial().trial;
    const revision = (votes[key]?.revision ?? 0) + 1;
    const rankings = Object.fromEntries(
      settings.dimensions.map((name) => [name, [...draft.order[name]]]));
    votes[key] = { trial: key, revision, rankings, seconds: draft.spent };
    if (served) pending[key] = true;
    if (message === "conflict") message = null;
    const next = session.trials.findIndex((one) => !votes[one.trial]);
    index = next < 0 ? session.trials.length : next;
    startDraft();
    remember();
    show();
    scrollTo(0, 0);
    send();
  }

  function showDone() {
    $("main").replaceChildren(
      make("h2", { id: "done", text: say("done") }),
      ...(served ? [] : [make("p", { text: say("send_file") }), downloadButton()]),
      make("div", { class: "row" }, around()[0]),
    );
  }

  function downloadButton() {
    return make("button", {
      id: "download", type: "button", text: say("download"), on: { click: download },
    });
  }

  function download() {
    const saved = { study: session.study, rater: session.rater, votes: Object.values(votes) };
    const blob = new Blob([JSON.stringify(saved)], { type: "application/json" });
    const link = make("a", {
      href: URL.createObjectURL(blob), download: `votes-${session.rater}.json`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const ask = (path, options = {}) => fetch(path, {
    ...options,
    headers: { Authorization: `Bearer ${code}`, "Content-Type": "application/json" },
  });

  async function logIn(given) {
    code = given;
    let reply;
    try {
      reply = await ask("/api/session");
    } catch {
      showLogin();
      return tell("offline");
    }
    if (!reply.ok) {
      showLogin();
      return tell(reply.status === 401 ? "bad_code" : "offline");
    }
    message = null;
    session = await reply.json();
    try {
      localStorage.setItem("ranking-code", code);
    } catch {
      keeps = false;
    }
    open(session.votes);
  }

  // Sends what the server has not acknowledged, one by one, until it has all.
  async function send() {
    if (!served || sending) return;
    sending = true;
    try {
      for (const key of Object.keys(pending)) {
        const vote = votes[key];
        const reply = await ask("/api/votes", { method: "POST", body: JSON.stringify(vote) });
        if (reply.status === 409) {
          votes[key] = (await reply.json()).vote;
          if (draft?.trial === key) startDraft();
          tell("conflict");
        } else if (reply.status >= 500 || reply.status === 429) {
          throw new Error("later");
        } else if (!reply.ok) {
          return tell("refused");
        } else if (message === "offline") {
          message = null;
        }
        if (reply.status === 409 || votes[key] === vote) delete pending[key];
        remember();
      }
    } catch {
      tell("offline");
      setTimeout(send, RETRY_MS);
    } finally {
      sending = false;
      frame();
    }
    const waits = message === "offline" || message === "refused";
    if (!waits && Object.keys(pending).length > 0) send();
  }

  $("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    if (!session) showLogin();
    else if ($("agree")) showConsent();
    else show();
  });
  addEventListener("pagehide", () => {
    if (session && draft && !$("agree")) remember();
  });

  if (!served) {
    open({});
  } else {
    let known = location.hash.slice(1);
    history.replaceState(null, "", "/"); // the code shall not stay in the address
    try {
      known ||= localStorage.getItem("ranking-code") ?? "";
    } catch {
      keeps = false;
    }
    if (known) logIn(known);
    else showLogin();
  }
})();
