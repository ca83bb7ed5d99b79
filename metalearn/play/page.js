/* The page: drawings go to the server of this machine, its answers become bars and charts. */

import { Drawing, bytesOf } from "/drawing.js";
import { Results } from "/results.js";

const NAMES = "ABCDEFGHIJ";
const PAUSE = 400; /* ms without a stroke before the stability is measured */
const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ask(path, body, signal) {
  const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(`/api/${path}`, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Start `metalearn play` again, then reload this page.");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `The server answers with status ${answer.status}. Its terminal says why.`);
  return found;
}

function fail(error) {
  if (error.name === "AbortError") return;
  $("fault").textContent = error.message;
  $("fault").hidden = false;
}

const setup = await ask("setup").catch(fail);
const results = new Results(setup);
const classes = []; /* a list of drawings for each class */
const query = new Drawing("The new character", setup.side, () => changed(true));
let latest = new AbortController(); /* of the request whose answer is wanted */
let measuring = new AbortController(); /* of the stability of the current classes */
let adapted = ""; /* the classes that the page shows results of */
let active = 0; /* the time of the last stroke, Infinity during one */

function truth(label) {
  $("truth").textContent = label === null ? "" : `This example is another drawing of class ${NAMES[label]}.`;
  results.truth = label;
}

function changed(isQuery = false) {
  if (isQuery) truth(null);
  adapt(performance.now());
}

function limited(input) {
  const value = Math.round(Number(input.value) || 0);
  input.value = Math.min(Number(input.max), Math.max(Number(input.min), value));
  return Number(input.value);
}

/* Make the cards of the classes; drawings that are there stay. */
function layOut() {
  const [ways, shots] = [limited($("ways")), limited($("shots"))];
  classes.length = Math.min(classes.length, ways);
  while (classes.length < ways) classes.push([]);
  const cards = classes.map((drawings, label) => {
    drawings.length = Math.min(drawings.length, shots);
    while (drawings.length < shots) {
      const name = `Class ${NAMES[label]}, drawing ${drawings.length + 1}`;
      drawings.push(new Drawing(name, setup.side, () => changed()));
    }
    const card = document.createElement("div");
    card.className = "card";
    card.setAttribute("role", "group");
    card.setAttribute("aria-label", `Class ${NAMES[label]}`);
    const title = document.createElement("h3");
    title.textContent = NAMES[label];
    const row = document.createElement("div");
    row.className = "row";
    row.append(...drawings.map((drawing) => drawing.element));
    card.append(title, row);
    return card;
  });
  $("classes").replaceChildren(...cards);
  if (results.truth !== null && results.truth >= ways) truth(null);
  adapt();
}

/* Ask for the adaptation to what is drawn; `stroke` is the time of the last stroke, if that is the reason. */
async function adapt(stroke = null) {
  latest.abort();
  latest = new AbortController();
  active = performance.now();
  $("timing").textContent = "";
  const drawn = classes.map((drawings) => drawings.filter((drawing) => !drawing.blank));
  const missing = drawn.flatMap((drawings, label) => (drawings.length ? [] : [NAMES[label]]));
  if (missing.length) {
    measuring.abort();
    adapted = "";
    const names = missing.length === classes.length ? "each class" : `class ${missing.join(", ")}`;
    return results.wait(`Draw a character of ${names}, or fill in examples.`);
  }
  const body = { classes: drawn.map((drawings) => drawings.map((drawing) => drawing.ink())), steps: limited($("steps")) };
  const now = JSON.stringify(body);
  const fresh = now !== adapted;
  if (fresh) {
    measuring.abort();
    adapted = "";
  }
  const asked = query.blank ? body : { ...body, query: query.ink() };
  if (!results.found) results.wait("Adapting to the drawings.");
  try {
    const found = await ask("adapt", asked, latest.signal);
    adapted = now;
    $("fault").hidden = true;
    results.set(found.initialisations, body.steps, drawn.map((drawings) => drawings[0].canvas), fresh);
    if (stroke !== null) requestAnimationFrame(() => setTimeout(() => took(performance.now() - stroke)));
    if (fresh) measure(body);
  } catch (error) {
    fail(error);
  }
}

function took(ms) {
  const what = query.blank ? "Adapted" : "Predicted";
  $("timing").textContent = `${what} ${Math.round(ms)} ms after the last stroke.`;
}

/* Measure the stability at each inner step, while nothing is drawn. */
async function measure(body) {
  measuring.abort();
  measuring = new AbortController();
  const signal = measuring.signal;
  try {
    for (let step = 0; step <= body.steps; step++) {
      for (let initialisation = 0; initialisation < setup.initialisations.length; initialisation++) {
        if (step >= results.points(initialisation)) continue;
        while (performance.now() < active + PAUSE) await sleep(PAUSE / 4);
        if (signal.aborted) return;
        const found = await ask("stability", { ...body, initialisation, step }, signal);
        results.setStability(initialisation, step, found.stability);
      }
    }
  } catch (error) {
    fail(error);
  }
}

async function fillExamples() {
  if (!results.found) results.wait("Drawing examples.");
  $("examples").disabled = true;
  try {
    const seed = Math.floor(Math.random() * 2 ** 31);
    const found = await ask("examples", { classes: classes.length, drawings: limited($("shots")), seed });
    found.classes.forEach((inks, label) => inks.forEach((ink, i) => classes[label][i].set(bytesOf(ink))));
    query.set(bytesOf(found.query));
    truth(found.query_class);
    adapt();
  } catch (error) {
    fail(error);
  } finally {
    $("examples").disabled = false;
  }
}

function clearAll() {
  for (const drawing of [...classes.flat(), query]) drawing.set(null);
  truth(null);
  adapt();
}

const { least, most, first } = setup.classes;
Object.assign($("ways"), { min: least, max: most, value: first, disabled: least === most });
$("shots").max = setup.drawings;
Object.assign($("steps"), { max: setup.steps.most, value: setup.steps.first });
$("query").append(query.element);
for (const id of ["ways", "shots"]) $(id).addEventListener("change", layOut);
$("steps").addEventListener("change", () => adapt());
$("examples").addEventListener("click", fillExamples);
$("clear-all").addEventListener("click", clearAll);
document.addEventListener("pointerdown", () => (active = Infinity));
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => (active = performance.now()));
window.addEventListener("resize", () => results.show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const drawing of [...classes.flat(), query]) drawing.show();
  results.show();
});
layOut();
