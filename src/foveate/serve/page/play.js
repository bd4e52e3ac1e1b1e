// The playground: an image, boxes, a question, an answer. Whatever a model says is put in as text, never as HTML.
import { BoxLayer, by, make } from "./boxes.js";
import { access, readData, request } from "./server.js";
import { asCurl, asPython, shorten } from "./snippets.js";
import { TASKS } from "./tasks.js";

const state = { models: [], task: "chat", image: null, clip: null, turns: [], asked: "", abort: null };
const say = (text) => { by("status").textContent = text; };
const isNew = () => [state.asked, ""].includes(by("text").value.trim());
const answersClips = () => Boolean(state.models.find((model) => model.id === by("model").value)?.foveate?.clips);
const endpoints = (id) => state.models.find((model) => model.id === id)?.foveate?.endpoints ?? ["chat"];

// ---- an answer ----

function addEntry(title) {
  const body = make("div", { className: "reply" }), chips = make("ul", { className: "chips" }), note = make("p", { className: "note" });
  const code = make("details", { hidden: true }, make("summary", {}, "curl and Python"));
  const article = make("article", { "aria-label": title, "aria-busy": "true" }, make("h2", {}, title), body, chips, note, code);
  by("feed").prepend(article);
  article.scrollIntoView({ block: "nearest" });
  layer.answer([]);
  return {
    body,
    sent(path, content) {
      code.hidden = false;
      for (const [name, write] of [["curl", asCurl], ["Python", asPython]]) {
        const written = (part) => write(new URL(path, document.baseURI).href, part, Boolean(access.key));
        const copy = make("button", { type: "button", className: "pill", "aria-label": `Copy ${name} with the whole image` }, "Copy");
        copy.addEventListener("click", async () => { await copyText(written(content)); copy.textContent = "Copied"; });
        code.append(make("p", { className: "row code" }, make("b", {}, name), copy), make("pre", { tabIndex: 0, role: "region", "aria-label": name }, written(shorten(content))));
      }
    },
    boxes(boxes) {
      layer.answer(boxes);
      for (const box of boxes) {
        const chip = make("button", { type: "button", className: "pill", title: "Put it into the question" }, box.label || "box");
        if (box.score != null) chip.append(make("small", {}, ` ${box.score.toFixed(2)}`));
        chip.addEventListener("click", () => takeBox(box));
        chips.append(make("li", {}, chip));
      }
    },
    // Sampled frames of a clip, as the model saw them.
    frames({ how, frames, num_decoded: total, fitted, warnings }) {
      const slow = frames.filter((frame) => frame.is_slow).length, seconds = (time) => `${time.toFixed(time < 10 ? 2 : 1)} s`;
      body.append(make("p", { className: "note" }, [`${frames.length} of ${total} frames, ${slow} slow (${how})`, ...fitted, ...warnings].join("; ")));
      body.append(make("ol", { className: "hits frames", "aria-label": "Sampled frames" }, ...frames.map(({ image, time, is_slow: isSlow }) => make("li", { className: isSlow ? "slow" : "" },
        make("img", { src: image, alt: `Frame at ${seconds(time)}` }), make("span", { className: "note" }, seconds(time), ...(isSlow ? [make("b", {}, " slow")] : []))))));
    },
    problem(text) { body.append(make("p", { className: "problem" }, text)); },
    end(text) { note.textContent = text; article.setAttribute("aria-busy", "false"); },
  };
}

async function copyText(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    // Plain http on a network is no secure context, which the clipboard needs.
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// ---- image and boxes ----

const readUrl = (blob) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => resolve(reader.result));
  reader.readAsDataURL(blob);
});

// An image with several frames: it is a clip for models that answer clips, and its first frame for others.
async function isAnimated(blob) {
  const text = new TextDecoder("latin1").decode(await blob.arrayBuffer());
  return text.startsWith("GIF8") ? text.split("\x21\xf9\x04").length > 2 : /^(RIFF.{4}WEBP.{0,40}ANIM|\x89PNG.{0,60}acTL)/s.test(text);
}

async function takeImage(blob, name, box) {
  const url = await readUrl(blob), image = new Image(), isVideo = blob.type.startsWith("video/"), isClip = isVideo || await isAnimated(blob);
  image.src = isVideo ? "" : url;
  try { if (!isVideo) await image.decode(); } catch {
    const entry = addEntry(name);
    entry.problem("This browser cannot show the file; expected an image such as JPEG, PNG or WebP, or a clip.");
    entry.end("");
    return;
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  Object.assign(state, { image: isVideo ? null : url, clip: isClip ? url : null, turns: [] });
  URL.revokeObjectURL(by("video").src);
  if (isVideo) by("video").src = URL.createObjectURL(blob);
  else { by("video").removeAttribute("src"); Object.assign(by("image"), { src: url, alt: name }); }
  by("video").setAttribute("aria-label", name);
  by("image").hidden = isVideo;
  by("video").hidden = !isVideo;
  by("stage").style.setProperty("--ratio", isVideo ? 16 / 9 : width / height);
  by("drop").hidden = true;
  by("stage").hidden = by("tools").hidden = false;
  by("layer").hidden = by("add").hidden = by("keys").hidden = isVideo;
  by("size").textContent = [name, !isVideo && `${width} × ${height}`, isClip && "a clip"].filter(Boolean).join(", ");
  layer.open(width, height);
  if (box) layer.add(box);
  say(`${isClip ? "Clip" : "Image"} ${name}`);
}

function nameBox(number) {
  const text = by("text"), name = `<${number}>`;
  if (state.task === "search") by("with").value = number;
  if (state.task === "chat" && isNew()) text.value = `What is ${name}?`;
  else if (state.task === "chat") text.setRangeText(name, text.selectionStart, text.selectionEnd, "end");
  if (!text.hidden) text.focus();
}

function takeBox({ sides }) {
  const same = layer.boxes.findIndex((box) => box.sides.every((side, i) => side === sides[i]));
  if (same < 0) layer.add(sides); else layer.selected = same;
  nameBox(layer.selected + 1);
}

const layer = new BoxLayer(by("layer"), by("boxes"), {
  name: nameBox,
  choose: takeBox,
  draw(number) {
    if (state.task === "search") by("with").value = number;
    if (state.task === "chat" && isNew()) by("text").value = `What is <${number}>?`;
  },
  change() {
    const { value } = by("with"), number = layer.selected + 1;
    const options = [["", "words"], ["0", "the image"], ...layer.boxes.map((box, i) => [`${i + 1}`, `box ${i + 1}`])];
    by("with").replaceChildren(...options.map(([each, text]) => make("option", { value: each }, text)));
    by("with").value = options.some(([each]) => each === value) ? value : "";
    by("quick").hidden = !layer.boxes.length || !by("quick").querySelector("button:not([hidden])");
    if (layer.boxes.length && layer.layer.contains(document.activeElement)) say(`Box ${number}: ${layer.corners(number)}`);
  },
});

// ---- the form ----

async function loadModels() {
  try { state.models = await readData("v1/models"); } catch (error) {
    say(error.message);
    if (!by("unlock").hidden) return;
    const entry = addEntry("Models");
    entry.problem(error.message);
    entry.end("");
    return;
  }
  by("unlock").hidden = true;
  by("model").replaceChildren(...state.models.map(({ id, foveate }) => make("option", { value: id }, foveate ? `${id} (${foveate.kind})` : id)));
  for (const button of by("quick").children) button.hidden = !state.models.some(({ id }) => endpoints(id).includes(button.dataset.quick));
  showTasks();
}

function showTasks() {
  const tasks = Object.keys(TASKS).filter((task) => endpoints(by("model").value).includes(task));
  if (!tasks.includes(state.task)) state.task = tasks[0];
  by("tasks").replaceChildren(by("tasks").firstElementChild, ...tasks.map((task) => {
    const radio = make("input", { type: "radio", name: "task", value: task, checked: task === state.task });
    radio.addEventListener("change", () => { state.task = task; showTask(); });
    return make("label", {}, radio, make("span", {}, TASKS[task].title));
  }));
  showTask();
}

function showTask() {
  const { label = "", sample = "", silent = false, hint, verb } = TASKS[state.task];
  by("text-label").textContent = label;
  by("text").placeholder = sample;
  by("text").hidden = by("text-label").hidden = silent;
  by("hint").textContent = hint;
  by("send").textContent = verb;
  by("source").hidden = state.task !== "search";
  for (const option of by("options").children) option.hidden = option.dataset.for !== state.task;
  by("settings").hidden = !by("options").querySelector("label:not([hidden])");
}

async function send() {
  const task = TASKS[state.task], text = task.silent ? "" : by("text").value.trim(), model = by("model").value;
  if (state.abort || !model) return;
  if (!text && !task.free) { by("text").focus(); return; }
  const entry = addEntry(text || (task.silent ? task.title : `${task.title}: ${by("with").selectedOptions[0].textContent}`)), start = performance.now();
  const from = document.activeElement;
  const running = (abort) => {
    const left = [from, by("stop"), document.body].includes(document.activeElement);
    state.abort = abort;
    by("send").hidden = Boolean(abort);
    by("stop").hidden = !abort;
    // Not always to the text: on a phone its keyboard would cover the answer.
    if (left) (abort ? by("stop") : from.matches("textarea, .pill") ? from : by("send")).focus();
  };
  state.asked = text;
  running(new AbortController());
  say("Working");
  let note;
  try {
    const reply = await task.run({ layer, state, takeImage, clip: state.clip && (answersClips() || !state.image) ? state.clip : null }, text, entry, state.abort.signal);
    note = reply.note;
    say(reply.spoken);
  } catch (error) {
    note = error.name === "AbortError" ? "stopped" : "";
    if (!note) entry.problem(error.message);
    say(note || error.message);
  }
  entry.end([model, note, `${((performance.now() - start) / 1000).toFixed(1)} s`].filter(Boolean).join(" · "));
  running(null);
}

by("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
by("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } });
by("stop").addEventListener("click", () => state.abort?.abort());
by("model").addEventListener("change", showTasks);
by("add").addEventListener("click", () => { layer.add([0.3, 0.3, 0.7, 0.7]).element.focus(); layer.on.draw(layer.boxes.length); });
addEventListener("locked", () => { by("unlock").hidden = false; by("key").focus(); });
by("unlock").addEventListener("submit", (event) => { event.preventDefault(); access.key = by("key").value; by("key").value = ""; loadModels(); });
for (const button of by("quick").children) button.addEventListener("click", () => {
  const task = button.dataset.quick, model = by("model"), number = layer.selected + 1;
  if (!endpoints(model.value).includes(task)) model.value = state.models.find(({ id }) => endpoints(id).includes(task)).id;
  state.task = task;
  showTasks();
  by("text").value = task === "chat" ? `What is <${number}>?` : "";
  by("with").value = number;
  send();
});

const takeFile = (files) => { if (files[0]) takeImage(files[0], files[0].name || "pasted image"); };
for (const id of ["choose", "other"]) by(id).addEventListener("click", () => by("file").click());
by("file").addEventListener("change", () => { takeFile(by("file").files); by("file").value = ""; });
by("example").addEventListener("click", async () => {
  await takeImage(await (await request("page/example.jpg")).blob(), "example.jpg");
  if (!by("text").value) by("text").value = { chat: "Where is the keyboard?", locate: "keyboard" }[state.task] ?? "";
});
addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); takeFile(event.clipboardData.files); } });
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, (event) => {
  event.preventDefault();
  document.body.classList.toggle("over", kind === "dragover");
  if (kind === "drop") takeFile(event.dataTransfer.files);
});

const root = document.documentElement, wish = matchMedia("(prefers-color-scheme: dark)");
by("theme").addEventListener("click", () => { root.dataset.theme = (root.dataset.theme ?? (wish.matches ? "dark" : "light")) === "dark" ? "light" : "dark"; });

layer.on.change();
loadModels();
