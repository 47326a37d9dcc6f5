// The conversation: a list of messages in memory and in localStorage, drawn as turns. Editing a
// message or asking for another answer cuts the list there and goes on.

import { make, render } from "./markdown.js";
import { complete } from "./stream.js";

const $ = (id) => document.getElementById(id);
const KNOBS = ["temperature", "top_k", "top_p", "max_tokens"];
const store = {
  get(key, fallback) {
    try { return JSON.parse(localStorage.getItem(key)) ?? fallback; } catch { return fallback; }
  },
  set(key, value) {
    try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* private mode: not kept */ }
  },
};

// A message: {role, content, tokens: [{token, logprob, forced, top_logprobs}], calls, error}
let messages = store.get("messages", []);
let inside = store.get("inside", false);
let running = null; // the AbortController of the reply that is being written

// drawing ----------------------------------------------------------------------------------------

function draw() {
  $("log").replaceChildren(...messages.map(turn));
  $("log").setAttribute("aria-busy", running !== null);
  $("log").scrollTop = $("log").scrollHeight;
  $("inside").setAttribute("aria-pressed", inside);
  const busy = running !== null;
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").title = busy ? "Stop the reply (Esc)" : "";
  if (!messages.length) {
    $("log").append(make("p", "Nothing is said yet. Try: How many r are in strawberry?"));
    $("log").lastChild.className = "turn who";
  }
}

function turn(message, index) {
  const node = make("article");
  node.className = `turn ${message.role}`;
  const who = make("div", message.role === "user" ? "You" : "Model");
  who.className = "who";
  node.append(who, body(message, index), tools(message, index));
  return node;
}

function body(message, index) {
  const node = make("div");
  node.className = "body";
  if (message.role === "user") {
    node.textContent = message.content;
  } else if (inside && message.tokens.length) {
    node.append(tokens(message));
  } else {
    for (const piece of message.pieces) {
      node.append(piece.type === "text" ? render(piece.text) : call(piece));
    }
  }
  if (message.error) {
    const wrong = make("p", message.error);
    wrong.className = "wrong";
    node.append(wrong);
  }
  if (running !== null && index === messages.length - 1) node.classList.add("typing");
  return node;
}

function call(piece) {
  const node = make("span", (piece.type === "call" ? "calculator: " : "= ") + piece.text);
  node.className = "call";
  return node;
}

function tools(message, index) {
  const node = make("div");
  node.className = "tools";
  if (running !== null) return node;
  if (message.role === "user") {
    node.append(button("Edit", "Edit this message and ask again", () => edit(index)));
  } else {
    node.append(button("Again", "Ask for another answer", () => again(index)));
  }
  node.append(button("Copy", "Copy the text", async (event) => {
    await navigator.clipboard.writeText(message.content);
    event.target.textContent = "Copied";
  }));
  return node;
}

function button(text, label, action) {
  const node = make("button", text);
  node.type = "button";
  node.title = label;
  node.setAttribute("aria-label", label);
  node.addEventListener("click", action);
  return node;
}

// looking inside ---------------------------------------------------------------------------------

function tokens(message) {
  const box = make("div");
  box.className = "tokens";
  box.setAttribute("role", "toolbar");
  box.setAttribute("aria-label", "Tokens; the arrow keys go from one to the next");
  box.addEventListener("keydown", step);
  for (const token of message.tokens) {
    const p = Math.exp(token.logprob);
    const node = make("button", shown(token.token));
    node.type = "button";
    node.className = token.forced ? "token forced" : "token";
    node.tabIndex = box.childElementCount ? -1 : 0; // one stop of the Tab key for all of them
    node.style.setProperty("--p", p.toFixed(3));
    node.setAttribute("aria-label", token.forced ? `${token.token}, given by the calculator`
      : `${token.token}, probability ${(100 * p).toFixed(0)} percent`);
    node.addEventListener("click", (event) => { event.stopPropagation(); alternatives(node, token); });
    box.append(node);
  }
  return box;
}

function step(event) {
  const all = [...event.currentTarget.children], at = all.indexOf(document.activeElement);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
  if (at < 0 || !all[to]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

function shown(text) {
  return text.replace(/\n/g, "⏎\n");
}

function alternatives(node, token) {
  closeAlternatives();
  const box = make("div");
  box.id = "alternatives";
  box.setAttribute("role", "dialog");
  box.setAttribute("aria-label", "What else was likely here");
  if (token.forced) {
    box.append("Given by the calculator, not chosen.");
  } else {
    const table = make("table");
    const listed = token.top_logprobs.some((t) => t.token === token.token);
    for (const other of [...token.top_logprobs, ...(listed ? [] : [token])]) {
      const row = make("tr", make("td", JSON.stringify(other.token)),
                       make("td", `${(100 * Math.exp(other.logprob)).toFixed(1)} %`));
      if (other.token === token.token) row.className = "taken";
      table.append(row);
    }
    box.append(table);
  }
  box.tabIndex = -1;
  document.body.append(box);
  const place = node.getBoundingClientRect();
  const below = place.bottom + box.offsetHeight + 8 < innerHeight;
  box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${below ? place.bottom + 4 : Math.max(8, place.top - box.offsetHeight - 4)}px`;
  box.dataset.opener = "";
  box.opener = node;
  box.focus();
}

function closeAlternatives() {
  const box = $("alternatives");
  if (!box) return false;
  box.remove();
  box.opener.focus();
  return true;
}

// asking -----------------------------------------------------------------------------------------

async function ask() {
  const settings = Object.fromEntries(KNOBS.map((k) => [k, Number($(k).value)]));
  const sent = messages.map(({ role, content }) => ({ role, content }));
  const reply = { role: "assistant", content: "", pieces: [], tokens: [], error: "" };
  messages.push(reply);
  running = new AbortController();
  say("The model writes…");
  draw();
  const began = performance.now();
  let dropped = 0;
  try {
    const body = { messages: sent, logprobs: true, top_logprobs: 8, ...settings };
    for await (const choice of complete(body, running.signal)) {
      dropped = choice.dropped;
      take(reply, choice);
      const last = $("log").lastChild;
      const follow = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
      last.replaceChild(body_(reply), last.children[1]);
      if (follow) $("log").scrollTop = $("log").scrollHeight;
    }
    const seconds = (performance.now() - began) / 1000;
    say(`${reply.tokens.length} tokens, ${(reply.tokens.length / seconds).toFixed(0)} a second`
        + (dropped ? `; the ${dropped} oldest messages no longer fit and were left out` : ""));
  } catch (error) {
    if (error.name === "AbortError") {
      say("Stopped.");
    } else {
      reply.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
      say(reply.error);
    }
  }
  running = null;
  store.set("messages", messages);
  const busy = document.activeElement?.closest("#settings"); // who sets something stays there
  draw();
  if (!busy) $("text").focus();
  // To a screen reader the reply is told once and whole, not letter by letter.
  $("said").textContent = reply.pieces.map((p) => (p.type === "output" ? `= ${p.text} ` : p.text))
    .join("");
}

const body_ = (message) => body(message, messages.length - 1);

function take(reply, choice) {
  const { content, calculator } = choice.delta;
  if (content) {
    reply.content += content;
    add(reply.pieces, "text", content);
  }
  for (const piece of calculator ?? []) reply.pieces.push(piece);
  reply.tokens.push(...(choice.logprobs?.content ?? []));
}

function add(pieces, type, text) {
  const last = pieces[pieces.length - 1];
  if (last?.type === type) last.text += text;
  else pieces.push({ type, text });
}

function say(text) {
  $("status").textContent = text;
}

function send(text) {
  if (!text.trim() || running !== null) return;
  messages = messages.filter((m) => m.role === "user" || !m.error || m.content);
  if (messages.at(-1)?.role === "user") messages.pop(); // its answer failed: it is asked anew
  messages.push({ role: "user", content: text });
  ask();
}

function again(index) {
  messages.length = index;
  ask();
}

function edit(index) {
  const box = $("log").children[index].querySelector(".body");
  const area = make("textarea");
  area.className = "edit";
  area.value = messages[index].content;
  area.setAttribute("aria-label", "Edit the message; Enter asks again, Escape leaves it");
  box.replaceChildren(area);
  grow(area);
  area.focus();
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && area.value.trim()) {
      event.preventDefault();
      messages.length = index;
      send(area.value);
    }
  });
}

function clear() {
  running?.abort();
  messages = [];
  store.set("messages", messages);
  say("A new conversation.");
  draw();
  $("text").focus();
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

// controls ---------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running !== null) { running.abort(); return; }
  const text = $("text").value;
  $("text").value = "";
  grow($("text"));
  send(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (running === null) $("form").requestSubmit();
  }
  if (event.key === "ArrowUp" && !$("text").value && running === null) {
    const last = messages.findLastIndex((m) => m.role === "user");
    if (last >= 0) { event.preventDefault(); edit(last); }
  }
});
$("text").addEventListener("input", () => grow($("text")));
$("new").addEventListener("click", clear);
$("inside").addEventListener("click", () => {
  inside = !inside;
  store.set("inside", inside);
  draw();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !closeAlternatives()) running?.abort();
  if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    clear();
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#alternatives")) closeAlternatives();
  if (!event.target.closest("#settings")) $("settings").open = false;
});

function theme(name) {
  document.documentElement.dataset.theme = name;
}
theme(store.get("theme", matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  store.set("theme", document.documentElement.dataset.theme);
});

const facts = await (await fetch("api/model")).json().catch(() => ({}));
$("model").textContent = facts.name
  ? [facts.name, facts.parameters && `${(facts.parameters / 1e6).toFixed(1)} M parameters`,
     `context ${facts.context}`].filter(Boolean).join(", ") : "";
const standard = { temperature: facts.temperature ?? 0, top_k: 0, top_p: 1,
                   max_tokens: facts.context ?? 256 };
const kept = { ...standard, ...store.get("knobs", {}) };
for (const knob of KNOBS) {
  const field = $(knob), output = document.querySelector(`output[for=${knob}]`);
  field.value = kept[knob];
  const update = () => { if (output) output.textContent = field.value; };
  update();
  field.addEventListener("input", () => {
    update();
    store.set("knobs", Object.fromEntries(KNOBS.map((k) => [k, Number($(k).value)])));
  });
}
draw();
$("text").focus();
