// What can be done: each task has its labels, a request and a way to show the reply.
import { by, make, place } from "./boxes.js";
import { readData, readEvents, readImage, readReply, request } from "./server.js";

const phrases = (text) => text.split(";").map((phrase) => phrase.trim()).filter(Boolean);
const named = (text) => [...new Set([...text.matchAll(/<(\d+)>/g)].map((match) => Number(match[1])))];
// Four digits are finer than a pixel, and readable in a request.
const round = (sides) => sides.map((side) => Number(side.toFixed(4)));
const need = (state) => { if (!state.image) throw new Error(state.clip ? "This is for images; a clip can only be asked about." : "Choose an image first."); return state.image; };
const bar = (name, value, text) => make("li", {}, make("span", {}, name), make("meter", { min: 0, max: 1, value, "aria-label": name }), make("span", { className: "value" }, text));
// That nothing was found, and why; words that the text tower does not know.
function showVerdict(entry, verdicts, end = ".") {
  const missing = verdicts.filter(({ has_match: hasMatch }) => !hasMatch), words = [...new Set(verdicts.flatMap((each) => each.unknown_words ?? []))];
  entry.body.append(...missing.map(({ phrase, reason }) => make("p", {}, make("b", {}, "Not found"), `${[phrase && `: ${phrase}`, reason && `: ${reason}`].filter(Boolean).join("")}${end}`)));
  if (words.length) entry.body.append(make("p", {}, `Unknown to the text tower: ${words.map((word) => `“${word}”`).join(", ")}.`));
}

export const TASKS = {
  chat: {
    title: "Ask", label: "Question", verb: "Ask", sample: "Where is the red boat?",
    hint: "Click a box to name it: <1>.",
    async run({ layer, state, clip: source }, text, entry, signal) {
      // Only boxes that the question names are sent, numbered in the order in which it names them.
      const numbers = named(text).filter((number) => number <= layer.boxes.length);
      const question = text.replace(/<(\d+)>/g, (name, number) => (numbers.includes(Number(number)) ? `<${numbers.indexOf(Number(number)) + 1}>` : name));
      const turns = by("follow").checked && !source ? state.turns : [];
      const content = [{ type: "text", text: question }];
      if (source) content.unshift({ type: "video_url", video_url: { url: source } });
      else if (state.image && !turns.length) content.unshift({ type: "image_url", image_url: { url: state.image } });
      const body = { model: by("model").value, messages: [...turns, { role: "user", content }], stream: true, stream_options: { include_usage: true } };
      if (by("tokens").value) body.max_tokens = Number(by("tokens").value);
      if (Number(by("temperature").value)) body.temperature = Number(by("temperature").value);
      if (source) body.foveate = { frame_images: true };
      if (numbers.length) body.foveate = { ...body.foveate, boxes: numbers.map((number) => round(layer.boxes[number - 1].sides)) };
      entry.sent("v1/chat/completions", body);
      const answer = make("p", { className: "answer-text" });
      entry.body.append(answer);
      let usage, reason, clip, boxes = [];
      try {
        for await (const event of readEvents(await request("v1/chat/completions", body, signal))) {
          for (const { delta, finish_reason } of event.choices ?? []) {
            answer.append(delta?.content ?? "");
            reason = finish_reason ?? reason;
          }
          answer.classList.toggle("long", answer.textContent.length > 120);
          usage = event.usage ?? usage;
          boxes = event.foveate?.boxes ?? boxes;
          clip = event.foveate?.clip ?? clip;
        }
      } finally {
        if (!answer.textContent) answer.remove();
      }
      // Numbers of boxes mean those of the last question alone.
      const asked = [...content.slice(0, -1), { type: "text", text: text.replace(/<\d+>/g, "it") }];
      state.turns = [...turns, { role: "user", content: asked }, { role: "assistant", content: answer.textContent }];
      if (clip) entry.frames(clip);
      entry.boxes(boxes.map(({ box, phrase, score }) => ({ label: phrase, score, sides: box })));
      return { spoken: answer.textContent, note: usage && `${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}${reason === "length" ? ", cut off there" : ""}` };
    },
  },
  search: {
    title: "Search", label: "Words", verb: "Search", sample: "a red boat", free: true,
    hint: "Words, the image, a box of it, or words with one of these.",
    async run({ layer, state, takeImage }, text, entry, signal) {
      const source = by("with").value, body = { model: by("model").value, count: Number(by("count").value) };
      if (text) body.text = text;
      if (source) body.image = need(state);
      if (Number(source)) body.box = round(layer.boxes[Number(source) - 1].sides);
      if (by("negative").value.trim()) body.negative = by("negative").value.trim();
      entry.sent("v1/search", body);
      const reply = await readReply("v1/search", body, signal), hits = reply.data;
      showVerdict(entry, [reply], ". The nearest:");
      const list = make("ol", { className: "hits" });
      entry.body.append(list);
      await Promise.all(hits.map(async (hit) => {
        const image = make("img", { alt: hit.caption || hit.key }), name = hit.phrase || hit.caption || hit.key;
        const button = make("button", { type: "button", title: "Take it as the image", "aria-label": `Take as the image: ${name}` }, image);
        list.append(make("li", {}, button, make("span", { className: "note" }, name), make("span", { className: "note" }, hit.z == null ? hit.score.toFixed(2) : `z ${hit.z.toFixed(1)}`)));
        const blob = await readImage(hit.image);
        image.src = URL.createObjectURL(blob);
        if (hit.box) place(button.appendChild(make("span", { className: "box" })), hit.box);
        button.addEventListener("click", () => takeImage(blob, hit.key, hit.box));
      }));
      return { spoken: reply.has_match ? `${hits.length} hits` : `Not found; the nearest ${hits.length}`, note: hits.some(({ z }) => z != null) && "z: standard deviations above chance" };
    },
  },
  locate: {
    title: "Where is", label: "Phrase", verb: "Find", sample: "red boat",
    hint: "Several phrases: a semicolon between them.",
    async run({ state }, text, entry, signal) {
      const body = { model: by("model").value, image: need(state), phrases: phrases(text) };
      entry.sent("v1/locate", body);
      const rows = await readData("v1/locate", body, signal);
      const hits = rows.filter(({ box, has_match: hasMatch }) => box && hasMatch);
      entry.boxes(hits.map(({ phrase, box, score }) => ({ label: phrase, sides: box, score })));
      showVerdict(entry, rows);
      return { spoken: `${hits.length} of ${rows.length} found` };
    },
  },
  classify: {
    title: "Classify", verb: "Classify", free: true, silent: true, hint: "Of the whole image.",
    async run({ state }, text, entry, signal) {
      const body = { model: by("model").value, image: need(state) };
      entry.sent("v1/classify", body);
      const rows = await readData("v1/classify", body, signal);
      entry.body.append(make("ol", { className: "bars" }, ...rows.map(({ name, probability, calibrated }) => bar(name, calibrated ?? probability, (calibrated ?? probability).toFixed(3)))));
      return { spoken: rows.map(({ name }) => name).join(", "), note: rows[0]?.calibrated == null ? "not calibrated" : "calibrated" };
    },
  },
  embeddings: {
    title: "Compare", label: "Names", verb: "Compare", sample: "cat; dog; boat",
    hint: "Names, a semicolon between them: which is nearest to the selected box, or to the image?",
    async run({ layer, state }, text, entry, signal) {
      const model = by("model").value, names = phrases(text), box = layer.boxes[layer.selected];
      const bodies = [{ model, input: names }, { model, images: [need(state)], ...(box && { boxes: [round(box.sides)] }) }];
      bodies.forEach((body) => entry.sent("v1/embeddings", body));
      const [texts, [target]] = await Promise.all(bodies.map(async (body) => (await readData("v1/embeddings", body, signal)).map(({ embedding }) => embedding)));
      const rows = names.map((name, i) => [name, texts[i].reduce((sum, value, j) => sum + value * target[j], 0)]).sort((a, b) => b[1] - a[1]);
      entry.body.append(make("ol", { className: "bars" }, ...rows.map(([name, cosine]) => bar(name, Math.max(0, cosine), cosine.toFixed(3)))));
      return { spoken: rows[0][0], note: box ? `cosine with box ${layer.selected + 1}` : "cosine with the image" };
    },
  },
};
