// The page: what people see and do. Text is only ever set as text.
(() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  // Numbers to call, as links in what was written for people in danger; never in a model's text.
  const NUMBERS = /(?<![\d-])(116 123|12356|18111|1925|110|112|119|120|911|988|999)(?![\d-])/;
  const NEAR = 80; // pixels from the end of the page, within which it is followed

  let language = kept("localStorage", "empathy_jax-language");
  if (!settings.texts[language]) language = /^zh/i.test(navigator.language) ? "zh" : "en";
  let token = kept("sessionStorage", "empathy_jax-token") ?? "";
  let model = null; // its name, once the server has told it
  let guard = null; // "on" or "off", once the server has told it
  let turns = []; // the conversation, each turn with its `view`; nothing of it is kept elsewhere
  let running = null; // AbortController of the reply that is being written

  const $ = (id) => document.getElementById(id);
  const text = $("text");

  // What the browser keeps, if it does: the language, and the token for as long as the tab is open.
  function kept(storage, name, value) {
    try {
      if (value !== undefined) window[storage].setItem(name, value);
      return window[storage].getItem(name);
    } catch {
      return null;
    }
  }

  // --- texts and elements ---

  const given = new WeakMap(); // what stands in the text of an element

  // The text of a key; a value that is itself a key is put in as its text.
  function say(key, values = {}) {
    const texts = settings.texts[language];
    return texts[key].replace(/\{(\w+)\}/g, (_, name) => texts[values[name]] ?? values[name]);
  }

  function write(element) {
    const told = say(element.dataset.text, given.get(element));
    if (element.classList.contains("numbers")) element.replaceChildren(...callable(told));
    else element.textContent = told;
  }

  // Gives an element a text that follows the language.
  function label(element, key, values = {}) {
    element.dataset.text = key;
    given.set(element, values);
    write(element);
    return element;
  }

  function make(tag, className = "", ...children) {
    const element = document.createElement(tag);
    element.className = className;
    element.append(...children);
    return element;
  }

  function makeText(className, content = "") {
    const element = make("div", `text ${className}`, content);
    element.dir = "auto";
    return element;
  }

  function makeButton(key, onClick) {
    const button = label(make("button"), key);
    button.type = "button";
    button.addEventListener("click", onClick);
    return button;
  }

  function callable(told) {
    return told.split(NUMBERS).map((part, at) => {
      if (at % 2 === 0) return part;
      const link = make("a", "", part);
      link.href = `tel:${part.replaceAll(" ", "")}`;
      return link;
    });
  }

  function makeBanner({ code, message }) {
    const kind = code === "urgent" ? "urgent" : "gentle";
    const banner = make("div", `banner ${kind}`, label(make("b"), kind), ...callable(message));
    banner.setAttribute("role", kind === "urgent" ? "alert" : "note");
    banner.dir = "auto";
    return banner;
  }

  function frame() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    $("language").lang = language === "zh" ? "en" : "zh-CN";
    for (const element of document.querySelectorAll("[data-text]")) write(element);
    for (const id of ["new", "save-text", "save-json"]) $(id).hidden = turns.length === 0;
    text.rows = turns.length === 0 ? 6 : 2;
    const [shown, other] = running ? [$("stop"), $("send")] : [$("send"), $("stop")];
    const focused = document.activeElement === other;
    shown.hidden = false;
    other.hidden = true;
    if (focused) shown.focus({ preventScroll: true });
    grow();
  }

  function grow() {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
    const count = [...text.value].length;
    label($("count"), count === 0 ? "nothing" : "count", { count });
  }

  // --- the server ---

  async function ask(path, options = {}) {
    const headers = { "Content-Type": "application/json" };
    // A header holds bytes: those of UTF-8, as the server compares them.
    const bytes = new TextEncoder().encode(token);
    if (token) headers.Authorization = `Bearer ${String.fromCharCode(...bytes)}`;
    const reply = await fetch(path, { ...options, headers });
    if (!reply.ok) throw await refusal(reply, token !== "", turns.length < 2);
    return reply;
  }

  async function learnGuard() {
    try {
      guard = (await (await fetch("health")).json()).guard === "on" ? "on" : "off";
    } catch {
      guard = "off";
    }
    $("unguarded").hidden = guard === "on";
  }

  async function learnModel(signal) {
    model = (await (await ask("v1/models", { signal })).json()).data[0].id;
    $("model").textContent = model;
  }

  async function converse(turn, signal) {
    if (model === null) await learnModel(signal);
    const body = JSON.stringify({ model, stream: true, messages: messagesOf(turns) });
    const reply = await ask("v1/chat/completions", { method: "POST", body, signal });
    for await (const event of readEvents(reply.body)) {
      if (event.error) {
        const key = event.error.code === "deadline" ? "deadline" : "closing";
        throw failure(key, {}, event.error.guard);
      }
      for (const { delta, finish_reason: reason } of event.choices) {
        show(turn, delta);
        turn.ended = reason ?? turn.ended;
      }
    }
  }

  // --- a turn ---

  function begin(question) {
    const turn = newTurn(question), answer = makeText("answer"), tail = make("span");
    // Whole sentences are announced; the one that grows is not.
    answer.setAttribute("aria-live", "polite");
    tail.setAttribute("aria-hidden", "true");
    answer.append(tail);
    const chain = make("div", "chain");
    const reply = make("section", "reply", label(make("h2"), "reply"), chain, answer);
    const asked = [label(make("h2"), "you"), makeText("question", question)];
    const article = make("article", "turn", ...asked, reply);
    const layers = {}, banner = null, note = null, told = 0;
    turn.view = { article, reply, chain, answer, tail, layers, banner, note, told };
    $("conversation").append(article);
    turns.push(turn);
    return turn;
  }

  function show(turn, delta) {
    const page = document.documentElement;
    const following = innerHeight + scrollY >= page.scrollHeight - NEAR;
    const layer = hear(turn, delta);
    if (delta.guard) showGuard(turn);
    if (layer) showLayer(turn, layer);
    if (delta.content) showAnswer(turn, true);
    // What is urgent stays in sight.
    if (following && turn.guard?.code !== "urgent") scrollTo(0, page.scrollHeight);
  }

  function showGuard({ guard: found, view }) {
    if (!found.message) return;
    const banner = makeBanner(found);
    if (view.banner?.isEqualNode(banner)) return;
    view.banner?.remove();
    view.banner = banner;
    view.chain.before(banner);
    if (found.code === "urgent") banner.scrollIntoView();
  }

  function showLayer({ layers, view }, name) {
    if (!(name in view.layers)) {
      const title = name === "between" ? [] : [`${name} `];
      const summary = make("summary", "", ...title, label(make("span"), name));
      const details = make("details", "", summary, makeText(""));
      details.open = !view.answer.textContent;
      summary.addEventListener("click", () => (details.dataset.chosen = "yes"));
      view.layers[name] = details;
      view.chain.append(details);
      label($("status"), "thinking", { layer: name });
    }
    for (const [other, details] of Object.entries(view.layers)) {
      details.classList.toggle("now", other === name);
    }
    const shown = view.layers[name].lastChild;
    shown.append(layers[name].slice(shown.textContent.length));
  }

  function showAnswer(turn, grows) {
    const { view } = turn, answer = answerOf(turn);
    if (answer && !view.answer.textContent) fold(view);
    for (let end = 1; end > 0; view.told += end) {
      end = sentenceEnd(answer.slice(view.told), grows);
      if (end > 0) view.tail.before(make("span", "", answer.slice(view.told, view.told + end)));
    }
    view.tail.textContent = answer.slice(view.told);
  }

  // The answer begins: layers close, but for those that the reader has opened or closed.
  function fold(view) {
    for (const details of Object.values(view.layers)) {
      details.classList.remove("now");
      if (!details.dataset.chosen) details.open = false;
    }
    label($("status"), "answering");
  }

  function finish(turn, failed) {
    const { view } = turn;
    showAnswer(turn, false);
    for (const details of Object.values(view.layers)) details.classList.remove("now");
    if (failed) {
      turn.ended = failed.key;
      if (failed.guard) showGuard(Object.assign(turn, { guard: failed.guard }));
    }
    if (turn.guard?.held_back?.length) view.reply.append(label(make("p", "dim"), "held_back"));
    const silent = !answerOf(turn) && !turn.guard?.message;
    const key = failed?.key ?? (turn.ended === "length" ? "length" : silent ? "silent" : null);
    if (key === null) return;
    view.note = make("div", "", label(make("p", failed ? "problem" : "dim"), key, failed?.given));
    view.note.setAttribute("role", "alert");
    if (failed || silent) view.note.append(makeButton("again", () => again(turn)));
    view.reply.append(view.note);
  }

  function again(turn) {
    if (running) return;
    remove(turn);
    send(turn.question);
  }

  function remove(turn) {
    turns = turns.filter((other) => other !== turn);
    turn.view.article.remove();
  }

  // --- sending ---

  function submit() {
    const question = text.value;
    if (running || !question.trim()) return void text.focus();
    text.value = "";
    send(question);
  }

  async function send(question) {
    for (const old of turns) old.view.note?.querySelector("button")?.remove();
    hideProblem();
    const turn = begin(question), controller = new AbortController();
    running = controller;
    label($("status"), "sent");
    frame();
    // "Try again" has gone, and with it the focus.
    if (document.activeElement === document.body) $("stop").focus({ preventScroll: true });
    turn.view.article.scrollIntoView();
    learnGuard();
    let failed = null;
    try {
      await converse(turn, controller.signal);
    } catch (error) {
      const lost = failure(isHeard(turn) ? "lost" : "offline");
      failed = controller.signal.aborted ? failure("stopped") : error.key ? error : lost;
    }
    if (running !== controller) return; // the conversation was cleared meanwhile
    running = null;
    if (failed && !isHeard(turn)) giveBack(turn, failed);
    else finish(turn, failed);
    label($("status"), failed ? "nothing" : "done");
    frame();
  }

  // Nothing came: the text goes back to where it was written, and the reason stands beside it.
  function giveBack(turn, failed) {
    remove(turn);
    text.value = [turn.question, text.value].filter((part) => part.trim()).join("\n\n");
    if (failed.given.status === 401) $("door").hidden = false;
    if (failed.key === "refused") model = null; // it may have another name by now
    if (failed.key !== "stopped") showProblem(failed);
  }

  function showProblem(failed) {
    const why = label(make("p", "problem"), failed.key, failed.given);
    why.setAttribute("role", "alert");
    $("problem").replaceChildren(why);
    if (failed.guard?.message) $("problem").prepend(makeBanner(failed.guard));
    if ($("door").hidden && text.value.trim()) $("problem").append(makeButton("again", submit));
    $("problem").hidden = false;
    frame();
    $("problem").scrollIntoView();
  }

  function hideProblem() {
    $("problem").replaceChildren();
    $("problem").hidden = true;
  }

  // Asks for the name of the model, and so whether a token is wanted.
  async function enter() {
    try {
      await learnModel();
      $("door").hidden = true;
      hideProblem();
    } catch (failed) {
      if (failed.given?.status === 401) $("door").hidden = false;
      if (failed.key !== "token_wanted") showProblem(failed.key ? failed : failure("offline"));
    }
  }

  function clear() {
    if (!confirm(say("confirm_new"))) return;
    running?.abort();
    running = null;
    turns.forEach(remove);
    text.value = "";
    hideProblem();
    label($("status"), "nothing");
    frame();
    text.focus();
  }

  // --- files of the conversation ---

  function transcript() {
    const parts = ["# empathy_jax", plain(`${model}, ${new Date().toLocaleString()}`)];
    parts.push(plain(say("standing")));
    for (const turn of turns) {
      parts.push(`## ${say("you")}`, plain(turn.question), `## ${say("reply")}`);
      if (turn.guard?.message) parts.push(plain(turn.guard.message).replace(/^/gm, "> "));
      for (const [name, layer] of Object.entries(turn.layers)) {
        parts.push(`### ${name === "between" ? "" : `${name} `}${say(name)}`, plain(layer));
      }
      parts.push("---", plain(answerOf(turn)));
      if (turn.view.note) parts.push(`*${turn.view.note.firstChild.textContent}*`);
    }
    return `${parts.join("\n\n")}\n`;
  }

  function save(content, type, ending) {
    const now = new Date(), two = (number) => String(number).padStart(2, "0");
    const day = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
    link.download = `conversation-${day}-${two(now.getHours())}${two(now.getMinutes())}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function saveRecord() {
    const record = { model, guard, saved: new Date().toISOString(), turns: recordOf(turns) };
    save(JSON.stringify(record, null, 2), "application/json", "json");
  }

  // --- what people do ---

  $("send").addEventListener("click", submit);
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", clear);
  $("save-text").addEventListener("click", () => save(transcript(), "text/markdown", "md"));
  $("save-json").addEventListener("click", saveRecord);
  $("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    kept("localStorage", "empathy_jax-language", language);
    frame();
  });
  $("door").addEventListener("submit", (event) => {
    event.preventDefault();
    token = $("token").value.trim();
    kept("sessionStorage", "empathy_jax-token", token);
    enter();
  });
  text.addEventListener("input", grow);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  addEventListener("beforeunload", (event) => {
    if (text.value.trim()) event.preventDefault();
  });

  // What is scrolled to, or gets the focus, is not hidden behind what stays in sight.
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const height = getComputedStyle(target).position === "sticky" ? target.offsetHeight : 0;
      document.documentElement.style.setProperty(`--${target.id}`, `${height}px`);
    }
  });
  resized.observe($("standing"));
  resized.observe($("composer"));

  frame();
  learnGuard();
  enter();
})();
