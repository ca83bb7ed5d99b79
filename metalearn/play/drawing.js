/* A drawing: strokes on a canvas, by mouse, touch, pen or keyboard. */

const PEN = 5 / 105; /* the width of Omniglot's strokes, as a share of the side */
const MOVE = 1 / 24; /* an arrow key's, as a share of the side */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function trace(context, strokes, side) {
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(([x, y], i) => (i ? context.lineTo(x * side, y * side) : context.moveTo(x * side, y * side)));
    if (stroke.length === 1) context.lineTo(stroke[0][0] * side + 0.01, stroke[0][1] * side);
    context.stroke();
  }
}

export class Drawing {
  /* `name` is read by a screen reader; `changed(drawing)` is called after each stroke, undo or clearing. */
  constructor(name, side, changed) {
    this.name = name;
    this.side = side; /* of the image that is sent, in pixels */
    this.changed = changed;
    this.example = null; /* bytes of ink below the strokes */
    this.strokes = [];
    this.encoded = null; /* the ink of what is drawn now, once it has been asked for */
    this.pen = null; /* the keyboard's: [x, y, down] */
    this.element = document.createElement("div");
    this.element.className = "drawing";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.undoButton = this.button("Undo", "Undo the last stroke", () => this.undo());
    this.clearButton = this.button("Clear", "Clear", () => this.clear());
    const tools = document.createElement("div");
    tools.className = "tools";
    tools.append(this.undoButton, this.clearButton);
    this.element.append(this.canvas, tools);
    this.listen();
    this.show();
  }

  button(text, label, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", `${label}: ${this.name}`);
    button.addEventListener("click", action);
    return button;
  }

  get blank() {
    return !this.example && !this.strokes.length;
  }

  listen() {
    const canvas = this.canvas;
    let pointer = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || pointer !== null) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      pointer = event.pointerId;
      this.pen = null;
      this.strokes.push([at(event)]);
      this.show();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== pointer) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const each of passed.length ? passed : [event]) this.strokes.at(-1).push(at(each));
      this.show();
    });
    const end = (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      this.done();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      if (this.pen?.[2]) this.done();
      this.pen = null;
      this.show();
    });
    new ResizeObserver(() => this.show()).observe(canvas);
  }

  key(event) {
    const undo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
    const known = undo || event.key in ARROWS || [" ", "Delete", "Backspace"].includes(event.key);
    if (!known || (!undo && (event.ctrlKey || event.metaKey || event.altKey))) return;
    event.preventDefault();
    if (undo) return this.undo();
    if (event.key === "Delete" || event.key === "Backspace") return this.clear();
    this.pen ??= [0.5, 0.5, false];
    if (event.key === " ") {
      this.pen[2] = !this.pen[2];
      if (!this.pen[2]) return this.done();
      this.strokes.push([this.pen.slice(0, 2)]);
    } else {
      const [dx, dy] = ARROWS[event.key];
      this.pen[0] = Math.min(1, Math.max(0, this.pen[0] + MOVE * dx));
      this.pen[1] = Math.min(1, Math.max(0, this.pen[1] + MOVE * dy));
      if (this.pen[2]) this.strokes.at(-1).push(this.pen.slice(0, 2));
    }
    this.show();
  }

  done() {
    this.show();
    this.changed(this);
  }

  undo() {
    if (this.blank) return;
    if (!this.strokes.pop()) this.example = null;
    if (this.pen) this.pen[2] = false;
    this.done();
  }

  clear() {
    if (this.blank) return;
    this.set(null);
    this.changed(this);
  }

  /* Replace all by an example's ink, or by nothing; the caller knows of the change. */
  set(example) {
    this.example = example;
    this.strokes = [];
    this.pen = null;
    this.show();
  }

  show() {
    this.encoded = null;
    const style = getComputedStyle(this.canvas);
    const side = Math.round((this.canvas.clientWidth || 105) * (window.devicePixelRatio || 1));
    this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    context.strokeStyle = style.color;
    if (this.example) context.drawImage(tinted(this.example, this.side, style.color), 0, 0, side, side);
    trace(context, this.strokes, side);
    if (this.pen) {
      context.beginPath();
      context.arc(this.pen[0] * side, this.pen[1] * side, 0.04 * side, 0, 7);
      context.lineWidth = 2;
      context.strokeStyle = style.outlineColor;
      context.stroke();
    }
    const drawn = this.example ? "an example" : this.strokes.length ? "drawn" : "empty";
    const strokes = this.strokes.length === 1 ? "1 stroke" : `${this.strokes.length} strokes`;
    this.canvas.setAttribute("aria-label", `${this.name}: ${drawn}${this.strokes.length ? `, ${strokes}` : ""}`);
    this.undoButton.disabled = this.clearButton.disabled = this.blank;
    this.element.classList.toggle("blank", this.blank);
  }

  /* The ink in base64: side x side bytes, 255 for ink, row by row. */
  ink() {
    return (this.encoded ??= this.encode());
  }

  encode() {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = this.side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, this.side, this.side);
    if (this.example) context.drawImage(tinted(this.example, this.side, "rgb(255, 255, 255)"), 0, 0);
    context.strokeStyle = "white";
    trace(context, this.strokes, this.side);
    const pixels = context.getImageData(0, 0, this.side, this.side).data;
    let text = "";
    for (let i = 0; i < pixels.length; i += 4) text += String.fromCharCode(pixels[i]);
    return btoa(text);
  }
}

/* The ink of an example as a canvas of one colour, whose transparency is the ink. */
function tinted(bytes, side, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const [red, green, blue] = colour.match(/[\d.]+/g).map(Number);
  const image = context.createImageData(side, side);
  bytes.forEach((ink, i) => image.data.set([red, green, blue, ink], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

/* The bytes of base64. */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
