// Boxes over an image: the user's are drawn, moved and resized by pointer or keys; those of an answer can be clicked.
// Sides are fractions of the image, so that the window may change its size.

export const by = (id) => document.getElementById(id);

export function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function place(element, [x1, y1, x2, y2]) {
  const sides = { left: x1, top: y1, width: x2 - x1, height: y2 - y1 };
  for (const [name, value] of Object.entries(sides)) element.style[name] = `${100 * value}%`;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const MIN_SIDE = 0.01;
const SLIP = 4; // pixels that a hand may move during a click
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class BoxLayer {
  // `on` has change(), draw(number) and name(number) for the user's boxes, choose(box) for a box of an answer.
  constructor(layer, list, on) {
    Object.assign(this, { layer, list, on, boxes: [], selected: 0, width: 1, height: 1, drag: null });
    layer.addEventListener("pointerdown", (event) => this.start(event));
    layer.addEventListener("pointermove", (event) => this.move(event));
    layer.addEventListener("pointerup", () => this.end());
    layer.addEventListener("pointercancel", () => this.cancel());
    layer.addEventListener("keydown", (event) => this.press(event));
  }

  open(width, height) {
    Object.assign(this, { width, height, boxes: [], selected: 0 });
    this.layer.replaceChildren();
    this.show();
  }

  corners(number) {
    return this.boxes[number - 1].sides.map((side, i) => Math.round(side * (i % 2 ? this.height : this.width))).join(", ");
  }

  add(sides) {
    const box = { sides, element: make("div", { className: "box mine", tabIndex: 0, role: "button" }, make("b"), make("i", { className: "handle" })) };
    box.element.addEventListener("focus", () => { this.selected = this.boxes.indexOf(box); this.show(); });
    this.layer.append(box.element);
    this.selected = this.boxes.push(box) - 1;
    this.show();
    return box;
  }

  remove(box) {
    this.boxes.splice(this.boxes.indexOf(box), 1);
    box.element.remove();
    this.selected = clamp(this.selected, 0, Math.max(0, this.boxes.length - 1));
    this.show();
    (this.boxes[this.selected]?.element ?? by("add")).focus();
  }

  // Draw the boxes of an answer, each with its label, in the place of those before.
  answer(boxes) {
    this.layer.querySelectorAll(".answer").forEach((element) => element.remove());
    for (const box of boxes) {
      const element = make("button", { type: "button", className: "box answer", title: "Put it into the question" }, make("b", {}, box.label || "box"));
      element.classList.toggle("high", box.sides[1] < 0.08);
      element.classList.toggle("right", box.sides[0] > 0.6);
      place(element, box.sides);
      // A click by pointer ends in end(), for the layer has captured it; one by key has no detail.
      element.addEventListener("click", (event) => { if (event.detail === 0) this.on.choose(box); });
      Object.assign(element, { box });
      this.layer.prepend(element);
    }
  }

  show() {
    this.boxes.forEach(({ element, sides }, index) => {
      place(element, sides);
      element.classList.toggle("selected", index === this.selected);
      element.firstChild.textContent = index + 1;
      element.setAttribute("aria-label", `Box ${index + 1}: ${this.corners(index + 1)}`);
    });
    this.list.replaceChildren(...this.boxes.map((box, index) => this.row(box, index + 1)));
    this.on.change();
  }

  row(box, number) {
    const corners = make("input", { value: this.corners(number), "aria-label": `Corners of box ${number} in pixels: left, top, right, bottom` });
    corners.addEventListener("change", () => {
      const sides = corners.value.split(/[\s,]+/).map((part, i) => Number(part) / (i % 2 ? this.height : this.width));
      const valid = sides.length === 4 && sides.every((side) => side >= 0 && side <= 1) && sides[0] < sides[2] && sides[1] < sides[3];
      corners.setAttribute("aria-invalid", String(!valid));
      if (valid) { box.sides = sides; place(box.element, sides); box.element.setAttribute("aria-label", `Box ${number}: ${this.corners(number)}`); }
    });
    const use = make("button", { type: "button", className: "number", title: "Name it in the question", "aria-label": `Name box ${number} in the question` }, `${number}`);
    use.addEventListener("click", () => { this.selected = number - 1; this.show(); this.on.name(number); });
    const remove = make("button", { type: "button", className: "round", "aria-label": `Remove box ${number}` }, "×");
    remove.addEventListener("click", () => this.remove(box));
    return make("li", {}, use, corners, remove);
  }

  point(event) {
    const frame = this.layer.getBoundingClientRect();
    return [clamp((event.clientX - frame.left) / frame.width, 0, 1), clamp((event.clientY - frame.top) / frame.height, 0, 1)];
  }

  start(event) {
    if (event.button !== 0) return;
    const mine = event.target.closest(".mine"), box = this.boxes.find(({ element }) => element === mine);
    const kind = !box ? "draw" : event.target.closest(".handle") ? "resize" : "move";
    this.drag = { kind, box, event, from: this.point(event), before: box?.sides, answer: event.target.closest(".answer") };
    this.layer.setPointerCapture(event.pointerId);
    box?.element.focus();
    event.preventDefault();
  }

  move(event) {
    const { drag } = this;
    if (!drag || (!drag.moved && Math.hypot(event.clientX - drag.event.clientX, event.clientY - drag.event.clientY) < SLIP)) return;
    const [x, y] = this.point(event), [x0, y0] = drag.from;
    drag.moved = true;
    if (drag.kind === "draw") {
      drag.box ??= this.add([x0, y0, x0, y0]);
      drag.box.sides = [Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)];
    } else this.shift(drag.box, drag.before, drag.kind === "resize", x - x0, y - y0);
    this.show();
  }

  end() {
    const { drag } = this;
    this.drag = null;
    if (drag && !drag.moved) {
      if (drag.answer) this.on.choose(drag.answer.box);
      else if (drag.box) this.on.name(this.boxes.indexOf(drag.box) + 1);
    } else if (drag?.kind === "draw") {
      const [x1, y1, x2, y2] = drag.box.sides;
      if (Math.min(x2 - x1, y2 - y1) < MIN_SIDE) { this.remove(drag.box); return; }
      drag.box.element.focus();
      this.on.draw(this.boxes.indexOf(drag.box) + 1);
    }
  }

  // The browser scrolls instead: a finger that moved up or down.
  cancel() {
    if (this.drag?.kind === "draw" && this.drag.box) this.remove(this.drag.box);
    this.drag = null;
  }

  shift(box, [x1, y1, x2, y2], resizes, dx, dy) {
    if (resizes) { box.sides = [x1, y1, clamp(x2 + dx, x1 + MIN_SIDE, 1), clamp(y2 + dy, y1 + MIN_SIDE, 1)]; return; }
    const x = clamp(x1 + dx, 0, 1 - (x2 - x1)), y = clamp(y1 + dy, 0, 1 - (y2 - y1));
    box.sides = [x, y, x + x2 - x1, y + y2 - y1];
  }

  press(event) {
    const index = this.boxes.findIndex(({ element }) => element === document.activeElement), box = this.boxes[index];
    if (!box) return;
    if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key].map((step) => step * (event.ctrlKey ? 0.002 : 0.02));
      this.shift(box, box.sides, event.shiftKey, dx, dy);
      this.show();
    } else if (event.key === "Enter" || event.key === " ") this.on.name(index + 1);
    else if (event.key === "Delete" || event.key === "Backspace") this.remove(box);
    else return;
    event.preventDefault();
  }
}
