/* The results: predictions by inner step, side by side, and the charts of the inner loops. */

import { key, lineChart } from "/charts.js";

const NAMES = "ABCDEFGHIJ";
const BEAT = 220; /* ms for an inner step */
const STABILITY = [0.01, 100]; /* the axis of the chart */
const $ = (id) => document.getElementById(id);
const percent = (value) => `${Math.round(100 * value)} %`;

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function largest(values) {
  return values.indexOf(Math.max(...values));
}

function isEven(values) {
  return Math.max(...values) - Math.min(...values) < 1e-6;
}

function number(value) {
  if (value === undefined) return "…";
  if (value === null) return "none";
  return value !== 0 && value < 0.001 ? value.toExponential(1) : value.toFixed(3);
}

export class Results {
  constructor(setup) {
    this.truth = null; /* the class of an example, or null */
    this.found = null;
    this.step = 0;
    this.timer = null;
    const methods = setup.initialisations.map((own) => own.method);
    const alone = new Set(methods).size === methods.length;
    this.panels = setup.initialisations.map((own, i) => {
      const panel = make("section", "panel");
      const title = make("h3", `k${i}`, own.method[0].toUpperCase() + own.method.slice(1));
      const steps = own.trained_steps === 1 ? "1 inner step" : `${own.trained_steps || "no"} inner steps`;
      const verdict = make("p", "verdict");
      const bars = make("ol", "bars");
      const chart = make("div", "chart");
      const caption = make("figcaption", "");
      const figure = make("figure", "");
      figure.append(caption, chart);
      panel.append(title, make("p", "note", `${own.name}, trained with ${steps}`), verdict, bars, figure);
      $("panels").append(panel);
      return { name: alone ? own.method : own.name, kind: `k${i}`, verdict, bars, chart, caption };
    });
    for (const id of ["losses", "stability"]) if (this.panels.length > 1) $(id).before(key(this.panels));
    $("play").addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
    $("step").addEventListener("input", () => {
      this.pause();
      this.step = Number($("step").value);
      this.show();
    });
  }

  wait(sentence) {
    this.pause();
    this.found = null;
    $("results").hidden = true;
    $("hint").textContent = sentence;
  }

  /* The number of points of an initialisation's path, fewer than the steps where it diverges. */
  points(i) {
    return this.found?.[i].losses.length ?? 0;
  }

  /* Show the answer of the server; `fresh` if the classes are others than before. */
  set(found, steps, drawings, fresh) {
    this.found = found;
    this.steps = steps;
    this.drawings = drawings;
    if (fresh) {
      this.stability = found.map(() => Array(steps + 1).fill(undefined));
      this.pause();
    }
    $("results").hidden = false;
    $("step").max = steps;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (fresh && !still) this.play();
    else {
      if (fresh || this.step > steps) this.step = steps;
      this.show();
    }
    this.say();
  }

  setStability(i, step, value) {
    this.stability[i][step] = value;
    this.show();
  }

  play() {
    this.pause();
    this.step = 0;
    this.timer = setInterval(() => {
      if (this.step >= this.steps) return this.pause();
      this.step += 1;
      this.show();
    }, BEAT);
    $("play").textContent = "Pause";
    this.show();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    $("play").textContent = "Play";
  }

  /* Say the last predictions, for the screen and for a screen reader. */
  say() {
    const said = this.panels.map(({ name }, i) => {
      const rows = this.found[i].predictions;
      if (!this.points(i)) return `${name}: the inner loop diverges`;
      if (!rows) return null;
      if (isEven(rows.at(-1))) return `${name}: no class yet`;
      const best = largest(rows.at(-1));
      return `${name}: class ${NAMES[best]} with ${percent(rows.at(-1)[best])}`;
    });
    const known = said.filter((text) => text !== null);
    const steps = this.steps === 1 ? "1 inner step" : `${this.steps} inner steps`;
    $("hint").textContent = known.length ? `After ${steps}, ${known.join("; ")}.` : "Draw a new character to have it recognised.";
  }

  show() {
    if (!this.found) return;
    $("step").value = this.step;
    $("step-label").textContent = `Inner step ${this.step} of ${this.steps}`;
    $("step").setAttribute("aria-valuetext", `inner step ${this.step} of ${this.steps}`);
    this.panels.forEach((panel, i) => this.showPanel(panel, this.found[i]));
    const common = { steps: this.steps, step: this.step };
    const line = (values) => ({ name, kind }, i) => ({ name, kind, values: values(i) });
    const losses = this.panels.map(line((i) => this.found[i].losses));
    const ends = losses.map(({ name, values }) => `${name} from ${number(values[0])} to ${number(values.at(-1))}`);
    lineChart($("losses"), losses, { ...common, label: `Inner loss by inner step: ${ends.join("; ")}` });
    const rates = this.panels.map(line((i) => this.stability[i].map((value) => value ?? null)));
    const firsts = this.panels.map(({ name }, i) => `${name} ${number(this.stability[i][0])} at the start`);
    const label = `Stability by inner step: ${firsts.join("; ")}; the edge is 1`;
    lineChart($("stability"), rates, { ...common, log: STABILITY, level: [1, "edge"], label });
    this.showTable();
  }

  showPanel({ name, kind, verdict, bars, chart, caption }, { losses, diverges, predictions }) {
    const reached = Math.min(this.step, losses.length - 1);
    const row = reached < 0 || !predictions ? null : predictions[reached];
    const best = row && largest(row);
    const right = this.truth === null || !row ? "" : best === this.truth ? " ✓" : ` ✗, it is ${NAMES[this.truth]}`;
    const even = row && isEven(row);
    if (even) verdict.textContent = "No class yet, all are equal";
    else verdict.textContent = row ? `Class ${NAMES[best]}, ${percent(row[best])}${right}` : "No new character yet";
    if (row && diverges && reached < this.step) verdict.textContent += ` (diverges after step ${reached})`;
    if (losses.length === 0) verdict.textContent = "The inner loop diverges on these drawings";
    bars.replaceChildren(
      ...this.drawings.map((drawing, label) => {
        const item = make("li", row && !even && label === best ? `best ${kind}` : kind);
        const thumb = make("canvas", "thumb");
        thumb.width = thumb.height = 56;
        thumb.getContext("2d").drawImage(drawing, 0, 0, 56, 56);
        thumb.setAttribute("aria-hidden", "true");
        const track = make("span", "track");
        const bar = make("span", "bar");
        bar.style.width = `${100 * (row?.[label] ?? 0)}%`;
        track.append(bar);
        item.append(thumb, make("span", "letter", NAMES[label]), track, make("span", "share", row ? percent(row[label]) : "–"));
        return item;
      }),
    );
    const shown = predictions?.length ? largest(predictions.at(-1)) : null;
    chart.parentElement.hidden = shown === null;
    if (shown === null) return;
    caption.textContent = `Probability of class ${NAMES[shown]} in colour, of the other classes in grey`;
    const lines = this.drawings.map((_, label) => ({
      kind: label === shown ? kind : "other",
      values: predictions.map((values) => values[label]),
    }));
    lines.push(...lines.splice(shown, 1)); /* the coloured line lies above the grey ones */
    const ends = `from ${percent(predictions[0][shown])} to ${percent(predictions.at(-1)[shown])}`;
    const label = `${name}: probability of class ${NAMES[shown]} by inner step, ${ends}`;
    lineChart(chart, lines, { steps: this.steps, step: this.step, top: 1, label });
  }

  showTable() {
    const cells = (tag, texts) => {
      const row = make("tr", "");
      row.append(...texts.map((text) => make(tag, "", text)));
      return row;
    };
    const heads = this.panels.flatMap(({ name }) => [`${name}: inner loss`, `${name}: stability`, `${name}: prediction`]);
    const rows = Array.from({ length: this.steps + 1 }, (_, step) => {
      const own = this.found.flatMap(({ losses, diverges, predictions }, i) => {
        const row = predictions?.[step];
        const best = row && largest(row);
        return [
          step < losses.length ? number(losses[step]) : diverges ? "diverged" : "none",
          step < losses.length ? number(this.stability[i][step]) : "none",
          row && !isEven(row) ? `${NAMES[best]}, ${percent(row[best])}` : "none",
        ];
      });
      return cells("td", [String(step), ...own]);
    });
    $("numbers").replaceChildren(cells("th", ["inner step", ...heads]), ...rows);
  }
}
