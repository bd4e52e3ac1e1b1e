// The review page: events in the order of their use, their images and boxes, and answers by keys.
// Whatever a file or a person says is put in as text, never as HTML.
import { by, make, place } from "./boxes.js";
import { access, readImage, readReply } from "./server.js";

const KEYS = [
  ["Enter", "save the species below, or accept the model's answer", () => submit()],
  ["s", "type a species; Enter adds it, Enter again saves"],
  ["b h v u", "blank, human, vehicle, unknown", (key) => saveKind({ b: "blank", h: "human", v: "vehicle", u: "unknown" }[key])],
  ["1 2 3 4 5 6 7 8 9", "count of the last species", (key) => setCount(Number(key))],
  ["+ -", "one more, one fewer", (key) => setCount((state.draft.at(-1)?.count ?? 1) + (key === "+" ? 1 : -1))],
  ["Backspace", "remove the last species", () => { state.draft.pop(); show(); }],
  ["ArrowLeft ArrowRight", "previous or next image of the event", (key) => goToFrame(state.frame + (key === "ArrowLeft" ? -1 : 1))],
  ["ArrowUp ArrowDown k j", "previous or next event", (key) => move("ArrowUp k".includes(key) ? -1 : 1)],
  ["x", "select or deselect the event; an answer is for all that are selected", () => select(current())],
  ["X", "select all events from the last selected one to this one", () => selectRange()],
  ["Escape", "deselect all", () => { state.selected.clear(); show(); }],
  ["z", "undo", () => turnBack(state.done, state.undone, "before")],
  ["y Z", "redo", () => turnBack(state.undone, state.done, "number")],
  ["o", "hide or show the boxes", () => { by("layer").hidden = !by("layer").hidden; }],
  ["?", "these keys", () => by("keys").showModal()],
];
const WINDOW = 40; // events in the list at once: a survey has thousands
const MAX_IMAGES = 120; // images that stay in memory
const POLL = 3000; // milliseconds until another reviewer's answers are visible
const state = { events: [], names: [], number: 0, visible: [], event: 0, frame: 0, draft: [], selected: new Set(), last: null, done: [], undone: [], reviewer: "", insists: "", option: -1 };
const images = new Map();
let work = Promise.resolve();

const current = () => state.events[state.event];
const say = (text) => { by("status").textContent = text; };
const isOpen = (event) => !event.people?.is_done;
const chosen = (event) => event.people?.answers.find((answer) => answer.is_chosen);
const own = (event) => event.people?.answers.find((answer) => answer.reviewer === state.reviewer && answer.names.length);
const write = (names) => names.map(({ name, count }) => (count ? `${name} × ${count}` : name)).join(", ");
const titles = (event) => (chosen(event) ?? { names: event.answers }).names;

// One thing after the other: a key that comes while an answer is being saved must find the next event.
function run(action) {
  by("problem").hidden = true;
  work = work.then(action).catch((error) => {
    by("problem").textContent = error.message.startsWith("authorization") ? "The server was started again: open the address that it printed." : error.message;
    by("problem").hidden = false;
  });
  return work;
}

// ---- answers ----

// The model's answer: what it sees beside empty frames; nothing where it names nothing at all.
function suggest(event) {
  const seen = event.answers.filter(({ kind }) => kind !== "blank");
  return (seen.length ? (seen.every(({ kind }) => kind === "unknown") ? [] : seen) : event.answers.slice(0, 1)).map(({ name, count, frame }) => ({ name, count: count || null, frame }));
}

async function send(answers) {
  const reply = await readReply("review/answers", { reviewer: state.reviewer, since: state.number, answers });
  take(reply);
  return reply.numbers;
}

function take({ number, events }) {
  // A reply that was overtaken by that to an answer.
  if (number < state.number) return;
  state.number = number;
  for (const [index, people] of Object.entries(events)) state.events[index].people = people;
}

// Save an answer for the selected events, or this one, and go on. `namesOf` returns the names for an event.
async function save(namesOf, insists = false) {
  const events = state.selected.size ? [...state.selected] : [current()];
  const answers = events.map((event) => ({ event: event.index, names: namesOf(event), takes_new: insists }));
  if (answers.some(({ names }) => !names.length)) throw new Error("The model has no answer to accept here: type a species, or press u for unknown.");
  const before = events.map((event) => own(event)?.number ?? 0);
  const numbers = await send(answers);
  state.done.push(events.map((event, i) => ({ event: event.index, before: before[i], number: numbers[i] })));
  state.undone = [];
  // A name that was insisted on is a known one from now on.
  if (insists) state.names.push(...state.draft.filter(({ name }) => !state.names.some(([known]) => known === name)).map(({ name }) => [name, ""]));
  say(`Saved: ${events.length > 1 ? `${events.length} events` : write(titles(events[0]))}`);
  state.selected.clear();
  Object.assign(state, { draft: [], insists: "" });
  const place = state.visible.indexOf(state.event);
  const next = [...state.visible.slice(place + 1), ...state.visible.slice(0, place)].find((index) => isOpen(state.events[index]));
  if (next === undefined) show(); else open(next);
}

async function turnBack(from, to, field) {
  const action = from.at(-1);
  if (!action) { say("Nothing to undo or redo"); return; }
  await send(action.map((entry) => ({ event: entry.event, restores: entry[field] })));
  to.push(from.pop());
  open(action[0].event);
  say(field === "before" ? "Undone" : "Done again");
}

// A name is checked when it is added, and again by the server: one that no taxon has needs a second Enter.
async function submit() {
  const input = by("name"), text = input.value.trim(), option = by("options").children[state.option];
  if (text) {
    addName(option ? option.dataset.name : text);
    return;
  }
  const { draft } = state, frame = state.frame, several = state.selected.size > 1;
  try {
    await save((event) => (draft.length ? draft.map((entry) => ({ ...entry, frame: event === current() ? entry.frame ?? frame : event.answers[0].frame })) : suggest(event)), draft.length > 0 && state.insists === write(draft));
  } catch (error) {
    if (!draft.length || !error.message.includes("no taxon")) throw error;
    state.insists = write(draft);
    throw new Error(`${error.message.replace(/[^.?]$/, "$&.")} Enter again takes it as it is written${several ? " for all selected events" : ""}.`);
  }
}

function addName(name) {
  const known = state.draft.find((entry) => entry.name.toLowerCase() === name.toLowerCase());
  if (known) known.count = (known.count ?? 1) + 1; else state.draft.push({ name, count: null, frame: state.frame });
  by("name").value = "";
  complete();
  show();
}

const saveKind = (kind) => save((event) => [{ name: kind, count: null, frame: event === current() ? state.frame : event.answers[0].frame }]);

function setCount(count) {
  if (!state.draft.length) state.draft = suggest(current()).filter(({ name }) => name !== "blank");
  if (state.draft.length) state.draft.at(-1).count = Math.min(Math.max(count, 1), 1000000);
  show();
}

// ---- moving ----

function open(index) {
  const event = state.events[index];
  Object.assign(state, { event: index, frame: event.answers[0].frame, insists: "", draft: own(event)?.names.map((entry) => ({ ...entry })) ?? [] });
  // What is being typed is for the event that comes.
  if (document.activeElement !== by("name")) { by("name").value = ""; complete(); }
  show();
}

function move(step) {
  const place = state.visible.indexOf(state.event) + step;
  if (place >= 0 && place < state.visible.length) open(state.visible[place]); else say(step > 0 ? "The last event" : "The first event");
}

function goToFrame(frame) { state.frame = Math.min(Math.max(frame, 0), current().frames.length - 1); show(); }

function select(event) {
  if (!state.selected.delete(event)) state.selected.add(event);
  state.last = event.index;
  say(`${state.selected.size} selected`);
  show();
}

function selectRange() {
  const [from, to] = [state.visible.indexOf(state.last ?? state.event), state.visible.indexOf(state.event)].sort((a, b) => a - b);
  for (const index of state.visible.slice(Math.max(from, 0), to + 1)) state.selected.add(state.events[index]);
  say(`${state.selected.size} selected`);
  show();
}

function filter() {
  const [wanted, camera, name, score] = ["by-state", "by-camera", "by-name", "by-score"].map((id) => by(id).value);
  const states = { open: isOpen, done: (event) => !isOpen(event), differs: (event) => event.people?.differs, "": () => true };
  const fits = (event) => states[wanted](event) && (!camera || event.camera === camera) && (!name || titles(event).some((entry) => entry.name === name))
    && (score === "" || Math.min(...event.answers.map((answer) => answer.score ?? 0)) <= Number(score));
  state.visible = state.events.filter(fits).map((event) => event.index);
  state.selected.clear();
  if (!state.visible.includes(state.event) && state.visible.length) open(state.visible[0]); else show();
}

function fillFilters() {
  const fill = (id, values) => {
    const { value } = by(id);
    by(id).replaceChildren(...["", ...[...new Set(values)].sort()].map((each) => make("option", { value: each }, each || "all")));
    by(id).value = value;
  };
  fill("by-camera", state.events.map(({ camera }) => camera));
  fill("by-name", state.events.flatMap((event) => [...event.answers, ...titles(event)].map(({ name }) => name)));
}

// ---- the page ----

// The last images stay in memory, for an <img> sends no key.
async function load(event, frame, size) {
  const path = `review/images/${event.index}/${frame}/${size}`, url = images.get(path) ?? URL.createObjectURL(await readImage(path));
  images.delete(path);
  images.set(path, url);
  for (const [old, first] of images) {
    if (images.size <= MAX_IMAGES) break;
    images.delete(old);
    URL.revokeObjectURL(first);
  }
  return url;
}

async function showImage(event, frame) {
  const image = by("image"), { file, time, boxes } = event.frames[frame];
  const isCurrent = () => event === current() && frame === state.frame;
  by("caption").textContent = [`${frame + 1} of ${event.frames.length}`, file, time].filter(Boolean).join(" · ");
  try {
    const url = await load(event, frame, "large");
    if (!isCurrent()) return;
    Object.assign(image, { src: url, alt: `${file}: ${boxes.map(([, label]) => label).join(", ") || "no box"}` });
    await image.decode();
    by("stage").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  } catch (error) { if (isCurrent()) { image.removeAttribute("src"); image.alt = by("caption").textContent = `${file}: ${error.message}`; } return; }
  if (!isCurrent()) return;
  const names = new Set(event.answers.map(({ name }) => name));
  by("layer").replaceChildren(...boxes.map(([sides, label, score]) => {
    const box = make("span", { className: "box" }, make("b", {}, `${label} ${score.toFixed(2)}`));
    for (const [name, is] of [["other", !names.has(label)], ["high", sides[1] < 0.08], ["right", sides[0] > 0.6]]) box.classList.toggle(name, is);
    place(box, sides);
    return box;
  }));
  const next = state.events[state.visible[state.visible.indexOf(state.event) + 1]];
  if (next) load(next, next.answers[0].frame, "large").catch(() => {});
}

function showStrip(event) {
  const strip = by("strip");
  if (strip.dataset.event !== String(event.index)) {
    strip.dataset.event = event.index;
    strip.replaceChildren(...event.frames.map(({ file }, frame) => {
      const button = make("button", { type: "button", "aria-label": `Image ${frame + 1}: ${file}` }, `${frame + 1}`);
      button.addEventListener("click", () => goToFrame(frame));
      return make("li", {}, button);
    }));
  }
  [...strip.children].forEach(({ firstChild: button }, frame) => {
    button.setAttribute("aria-current", String(frame === state.frame));
    if (Math.abs(frame - state.frame) < 9 && !button.dataset.size) {
      button.dataset.size = "small";
      load(event, frame, "small").then((src) => button.replaceChildren(make("img", { src, alt: "" })), () => {});
    }
  });
  strip.children[state.frame].scrollIntoView({ block: "nearest", inline: "nearest" });
}

function show() {
  const event = current(), { draft, selected } = state, num = state.events.filter((each) => !isOpen(each)).length;
  for (const id of ["view", "panel"]) by(id).hidden = !event;
  by("count").textContent = `${num} of ${state.events.length} reviewed`;
  showList();
  if (!event) return;
  showImage(event, state.frame);
  showStrip(event);
  by("title").textContent = `${event.id} · ${event.reasons.join("; ") || "sure"}`;
  by("model").replaceChildren(...event.answers.map(({ name, rank, score, count, alternatives }) => make("li", {},
    make("b", {}, count ? `${name} × ${count}` : name), make("span", { className: "note" }, [rank, score?.toFixed(2), alternatives.slice(1).map(([other, value]) => `${other} ${value.toFixed(2)}`).join(", ")].filter(Boolean).join(" · ")))));
  by("why").replaceChildren(...event.answers.flatMap(({ steps }) => steps).map((step) => make("li", {}, step)));
  const given = event.people?.answers.filter(({ names }) => names.length) ?? [];
  by("people").replaceChildren(...(event.people?.differs ? [make("li", { className: "problem" }, "Answers differ; the latest decides")] : []),
    ...given.map((answer) => make("li", { className: answer.is_chosen ? "chosen" : "" }, `${answer.is_chosen ? "✓ " : ""}${answer.reviewer}: ${write(answer.names)}`, make("small", {}, answer.time.slice(0, 16).replace("T", " ")))));
  by("draft").replaceChildren(...draft.map((entry) => {
    const count = make("input", { type: "number", min: "1", max: "1000000", value: entry.count ?? "", placeholder: "count", "aria-label": `Count of ${entry.name}` });
    count.addEventListener("change", () => { entry.count = count.value && count.checkValidity() ? Number(count.value) : null; show(); });
    const remove = make("button", { type: "button", className: "round", "aria-label": `Remove ${entry.name}` }, "×");
    remove.addEventListener("click", () => { draft.splice(draft.indexOf(entry), 1); show(); });
    return make("li", {}, make("b", {}, entry.name), count, remove);
  }));
  const many = selected.size > 1 ? ` ${selected.size} events` : "", saved = own(event);
  by("save").textContent = draft.length ? `Save${many}` : `Accept${many}`;
  by("name-label").textContent = event.frames.length > 1 ? `Species, seen in image ${state.frame + 1}` : "Species";
  by("name").placeholder = draft.length ? "another species, or Enter to save" : saved ? "type another name" : "type a name";
  by("undo").disabled = !state.done.length;
  by("redo").disabled = !state.undone.length;
}

function showList() {
  const focus = document.activeElement?.dataset.index, tag = document.activeElement?.localName;
  const start = Math.max(0, Math.min(state.visible.indexOf(state.event) - WINDOW / 4, state.visible.length - WINDOW));
  by("events").replaceChildren(...state.visible.slice(start, start + WINDOW).map((index) => {
    const event = state.events[index], box = make("input", { type: "checkbox", checked: state.selected.has(event), "aria-label": `Select ${event.id}` });
    box.dataset.index = index;
    box.addEventListener("change", () => select(event));
    const button = make("button", { type: "button", className: isOpen(event) ? "" : "done" }, make("i", {}, event.people?.differs ? "≠ " : isOpen(event) ? "" : "✓ "), write(titles(event)), make("small", {}, `${event.id} · ${event.frames.length}`));
    button.setAttribute("aria-current", String(index === state.event));
    button.addEventListener("click", () => open(index));
    button.dataset.index = index;
    return make("li", {}, box, button);
  }));
  if (focus) by("events").querySelector(`${tag}[data-index="${focus}"]`)?.focus({ preventScroll: true });
  by("all").textContent = `Select all ${state.visible.length}`;
}

// ---- names ----

function complete() {
  const text = by("name").value.trim().toLowerCase();
  const rank = ([name, common]) => Math.min(...[name, common].map((each) => {
    const at = each.toLowerCase().indexOf(text);
    return at < 0 ? 9 : at === 0 ? 0 : each[at - 1] === " " ? 1 : 2;
  }));
  const matches = text ? state.names.map((pair, i) => [rank(pair), i, pair]).filter(([value]) => value < 9).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, 7) : [];
  by("options").replaceChildren(...matches.map(([, , [name, common]], i) => {
    const option = make("li", { id: `option-${i}`, role: "option" }, name, make("small", {}, common && ` ${common}`));
    option.dataset.name = name;
    option.addEventListener("pointerdown", (event) => { event.preventDefault(); addName(name); });
    return option;
  }));
  by("options").hidden = !matches.length;
  by("name").setAttribute("aria-expanded", String(matches.length > 0));
  choose(matches.length ? 0 : -1);
}

function choose(option) {
  state.option = option;
  [...by("options").children].forEach((each, i) => each.setAttribute("aria-selected", String(i === option)));
  if (option < 0) by("name").removeAttribute("aria-activedescendant"); else by("name").setAttribute("aria-activedescendant", `option-${option}`);
}

by("name").addEventListener("input", () => complete());
by("name").addEventListener("keydown", (event) => {
  const count = by("options").children.length;
  if (event.key === "Escape") { if (count) { by("options").replaceChildren(); by("options").hidden = true; choose(-1); } else by("title").focus(); }
  // Past the last one is the text as it is written.
  else if (event.key === "ArrowDown" && count) choose(state.option + 1 < count ? state.option + 1 : -1);
  else if (event.key === "ArrowUp" && count) choose(state.option < 0 ? count - 1 : state.option - 1);
  else return;
  event.preventDefault();
  event.stopPropagation();
});

// ---- the start ----

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  // Out of the field at once: the keys after Enter are no text.
  if (!by("name").value.trim()) by("title").focus({ preventScroll: true });
  run(submit);
});
for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => run(() => saveKind(button.dataset.kind)));
for (const [id, action] of [["undo", () => turnBack(state.done, state.undone, "before")], ["redo", () => turnBack(state.undone, state.done, "number")], ["previous", () => move(-1)], ["next", () => move(1)], ["help", () => by("keys").showModal()]]) by(id).addEventListener("click", () => run(action));
for (const id of ["by-state", "by-camera", "by-name", "by-score"]) by(id).addEventListener("change", filter);
by("by-name").addEventListener("focus", fillFilters);
by("all").addEventListener("click", () => { for (const index of state.visible) state.selected.add(state.events[index]); say(`${state.selected.size} selected`); show(); });
document.addEventListener("keydown", (event) => {
  const { target } = event, isText = target.closest("input:not([type=checkbox]), select, dialog");
  if (isText || event.ctrlKey || event.metaKey || event.altKey || (event.key === "Enter" && target.closest("button, summary, input"))) return;
  const match = KEYS.find(([keys]) => keys.split(" ").includes(event.key));
  if (!match) return;
  event.preventDefault();
  // Not after an answer that is being saved: the letters that follow "s" would be keys.
  if (event.key === "s") by("name").focus(); else run(() => match[2](event.key));
});
by("key-list").append(...KEYS.flatMap(([keys, text]) => [make("dt", {}, keys.replace("1 2 3 4 5 6 7 8 9", "1 … 9").replaceAll("Arrow", "")), make("dd", {}, text)]));
const root = document.documentElement, wish = matchMedia("(prefers-color-scheme: dark)");
by("theme").addEventListener("click", () => { root.dataset.theme = (root.dataset.theme ?? (wish.matches ? "dark" : "light")) === "dark" ? "light" : "dark"; });

async function askReviewer() {
  try { state.reviewer ||= sessionStorage.reviewer ?? ""; } catch { /* a browser without storage asks at each start */ }
  if (!state.reviewer) {
    by("ask").addEventListener("cancel", (event) => event.preventDefault());
    by("ask").showModal();
    await new Promise((resolve) => { by("ask").addEventListener("close", resolve, { once: true }); });
    state.reviewer = by("reviewer").value.trim();
    try { sessionStorage.reviewer = state.reviewer; } catch { /* as above */ }
  }
  by("who").textContent = state.reviewer;
}

async function poll() {
  const before = state.number;
  try { take(await readReply(`review/answers?since=${before}`)); } catch { return; }
  // The draft and the place stay; only what others say is new.
  if (state.number !== before) show();
}

run(async () => {
  access.key = location.hash.slice(1);
  const content = await readReply("review/events");
  Object.assign(state, { events: content.events.map((event, index) => ({ ...event, index })), names: content.names, reviewer: content.reviewer });
  take({ number: content.number, events: content.answered });
  await askReviewer();
  fillFilters();
  filter();
  if (state.visible.length) open(state.visible[0]); else { by("by-state").value = ""; filter(); }
  setInterval(poll, POLL);
});
