/* Line charts by inner step, as SVG. */

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 210;
const EDGES = { left: 52, right: 12, top: 12, bottom: 34 };

function part(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/* Round numbers between two values, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

const plain = (value) => String(Number(value.toPrecision(3)));

/* Draw lines of values by inner step into `place`, at its width.

   lines: [{name, kind, values}]; a value may be null. kind is a class of the style sheet.
   options: steps, step (the marked one), log ([least, largest] of a logarithmic axis), top (of a linear one),
   level ([value, text] of a horizontal line), label (for a screen reader), y (the axis's title). */
export function lineChart(place, lines, options) {
  const { steps, step, log, level } = options;
  const width = Math.max(200, place.clientWidth);
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const [low, high] = log ?? [0, options.top ?? Math.max(0.1, ...known)];
  const scale = log ? Math.log10 : (value) => value;
  const x = (i) => EDGES.left + ((width - EDGES.left - EDGES.right) * i) / Math.max(1, steps);
  const y = (value) => {
    const share = (scale(Math.min(high, Math.max(low, value))) - scale(low)) / (scale(high) - scale(low));
    return HEIGHT - EDGES.bottom - share * (HEIGHT - EDGES.top - EDGES.bottom);
  };
  const svg = part("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": options.label });
  const marks = log
    ? Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, i) => low * 10 ** i)
    : ticks(low, high, 4);
  const ends = (value) => (log && value === low ? "≤ " : log && value === high ? "≥ " : "") + plain(value);
  for (const value of marks) {
    svg.append(part("line", { class: "grid", x1: EDGES.left, x2: width - EDGES.right, y1: y(value), y2: y(value) }));
    svg.append(part("text", { class: "tick", x: EDGES.left - 6, y: y(value) + 4, "text-anchor": "end" }, ends(value)));
  }
  for (const i of ticks(0, steps, Math.min(10, steps)).filter(Number.isInteger)) {
    svg.append(part("text", { class: "tick", x: x(i), y: HEIGHT - EDGES.bottom + 16, "text-anchor": "middle" }, i));
  }
  svg.append(part("text", { class: "tick", x: (x(0) + x(steps)) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "inner step"));
  if (level) {
    svg.append(part("line", { class: "level", x1: x(0), x2: x(steps), y1: y(level[0]), y2: y(level[0]) }));
    svg.append(part("text", { class: "tick", x: x(steps), y: y(level[0]) - 5, "text-anchor": "end" }, level[1]));
  }
  svg.append(part("line", { class: "now", x1: x(step), x2: x(step), y1: EDGES.top, y2: HEIGHT - EDGES.bottom }));
  for (const { kind, values } of lines) {
    let path = "";
    values.forEach((value, i) => {
      if (value === null) return;
      const begun = i > 0 && values[i - 1] !== null;
      path += `${begun ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    });
    svg.append(part("path", { class: `line ${kind}`, d: path }));
    values.forEach((value, i) => {
      if (value === null) return;
      svg.append(part("circle", { class: `dot ${kind}`, cx: x(i), cy: y(value), r: i === step ? 5 : 2.5 }));
    });
  }
  place.replaceChildren(svg);
}

/* A key of the lines' names, to stand beside a chart. */
export function key(lines) {
  const list = document.createElement("p");
  list.className = "key";
  for (const { name, kind } of lines) {
    const item = document.createElement("span");
    item.className = kind;
    item.textContent = name;
    list.append(item);
  }
  return list;
}
