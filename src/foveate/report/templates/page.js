"use strict";
(function () {
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));

  // Dark and light: the system's wish until the reader chooses; a page opened from disk may have no storage.
  const store = {
    get() { try { return localStorage.getItem("foveate-theme"); } catch (error) { return null; } },
    set(value) { try { localStorage.setItem("foveate-theme", value); } catch (error) { return; } },
  };
  const wish = matchMedia("(prefers-color-scheme: dark)");
  const saved = store.get();
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const now = root.dataset.theme || (wish.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    store.set(root.dataset.theme);
  });

  const holds = (boxes, box) => boxes.split(" ").includes(box);

  // The live image: a phrase lights its box; it walks on by itself until someone touches it.
  const stage = document.querySelector(".stage");
  const asks = all(".ask");
  if (stage && asks.length) {
    const slides = all(".slide", stage);
    stage.classList.add("live");
    const light = (ask) => {
      asks.forEach((other) => other.setAttribute("aria-pressed", String(other === ask)));
      slides.forEach((slide, number) => {
        const on = number === Number(ask.dataset.slide);
        slide.classList.toggle("on", on);
        const boxes = ask.dataset.boxes;
        all(".box", slide).forEach((box) => box.classList.toggle("lit", on && holds(boxes, box.dataset.box)));
        all(".reply", slide).forEach((reply) => reply.classList.toggle("lit", reply.dataset.boxes === boxes));
      });
    };
    let at = 0;
    let walking = null;
    const stop = () => { clearInterval(walking); walking = null; };
    asks.forEach((ask) => {
      const choose = () => { stop(); light(ask); };
      ask.addEventListener("click", choose);
      ask.addEventListener("focus", choose);
      ask.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") choose(); });
    });
    light(asks[0]);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
      walking = setInterval(() => { at = (at + 1) % asks.length; light(asks[at]); }, 2600);
    }
  }

  // A scene with questions: the selected one shows its boxes.
  all(".scene").forEach((scene) => {
    const picks = all(".pick", scene);
    const spots = all(".spot", scene);
    const select = (number) => {
      spots.forEach((spot) => spot.setAttribute("aria-pressed", String(spot.dataset.spot === number)));
      all(".spot-replies [data-spot]", scene).forEach((reply) => { reply.hidden = reply.dataset.spot !== number; });
      all(".spot-hint", scene).forEach((hint) => { hint.hidden = number !== null; });
    };
    const pick = (picked) => {
      select(null);
      picks.forEach((other) => other.setAttribute("aria-pressed", String(other === picked)));
      all(".box", scene).forEach((box) => box.classList.toggle("lit", holds(picked.dataset.boxes, box.dataset.box)));
    };
    scene.classList.add("live");
    picks.forEach((one) => one.addEventListener("click", () => pick(one)));
    spots.forEach((spot) => spot.addEventListener("click", () => {
      picks.forEach((other) => other.setAttribute("aria-pressed", "false"));
      all(".box", scene).forEach((box) => box.classList.remove("lit"));
      select(spot.dataset.spot);
    }));
    if (picks.length) pick(picks[0]);
  });

  // Further boxes of 'where is': one switch per rule, for its whole section.
  all(".legend input[data-rule]").forEach((input) => {
    const section = input.closest("section");
    const show = () => all(".box-rule-" + input.dataset.rule, section)
      .forEach((box) => box.classList.toggle("shown", input.checked));
    input.addEventListener("change", show);
    show();
  });

  // A click on a command copies it.
  all(".command pre").forEach((pre) => {
    if (!navigator.clipboard) return;
    pre.title = "Click to copy";
    pre.addEventListener("click", () => {
      if (String(getSelection())) return;
      navigator.clipboard.writeText(pre.textContent).then(() => { pre.title = "Copied"; });
    });
  });
})();
