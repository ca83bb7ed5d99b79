"use strict";

const words = new Intl.Collator("en", { numeric: true });

/* The text of what is compressed by gzip, in base64. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/* The column's cells in order; blanks and, in a column of numbers, words come last both ways. */
function compare(column, numeric, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    const text = (numeric && cell.dataset.key) || cell.textContent;
    if (!numeric || !text) return text || null;
    return Number.isNaN(Number(text)) ? null : Number(text);
  };
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? (x > y) - (x < y) : words.compare(x, y));
  };
}

/* Let the heads sort a table, and the field above it filter the rows. */
function enliven(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = next;
      const rows = [...original];
      if (next !== "none") {
        rows.sort(compare(column, head.classList.contains("number"), next === "ascending" ? 1 : -1));
      }
      body.append(...rows);
    });
  });

  const input = table.closest(".table").querySelector("input");
  const count = table.closest(".table").querySelector("output");
  input?.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of original) {
      const text = [...row.cells].map((cell) => cell.textContent).join("\n").toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.value = wanted.length ? `${shown} of ${original.length} rows` : `${original.length} rows`;
  });
}

function element(name, parent, properties = {}) {
  return parent.appendChild(Object.assign(document.createElement(name), properties));
}

/* The table of all measurements, which is made once it is looked at. */
function tabulate({ columns, numeric, rows }) {
  const table = document.createElement("table");
  const head = element("tr", element("thead", table));
  columns.forEach((column, i) => {
    const cell = element("th", head, { scope: "col", ariaSort: "none", className: numeric[i] ? "number" : "" });
    element("button", cell, { type: "button", textContent: column });
  });
  const body = element("tbody", table);
  for (const row of rows) {
    const line = element("tr", body);
    row.forEach((text, i) => {
      const cell = element("td", line, { textContent: text, className: numeric[i] ? "n" : "" });
      if (numeric[i] && text.endsWith("inf")) cell.dataset.key = text.replace("inf", "Infinity");
    });
  }
  return table;
}

/* Show what is compressed within an opened part of the page, but not within parts that are closed. */
async function show(part) {
  for (const packed of part.querySelectorAll("[data-packed]")) {
    if (!packed.dataset.packed || packed.closest("details:not([open])")) continue;
    const content = packed.dataset.packed;
    packed.removeAttribute("data-packed");
    const text = await unpack(content);
    if (packed.tagName === "IMG") {
      packed.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
    } else {
      const table = tabulate(JSON.parse(text));
      packed.querySelector(".scroll").append(table);
      enliven(table);
    }
  }
}

/* The figures beside the conclusions show the images of the studies, which stand once in the page. */
for (const image of document.querySelectorAll("[data-same]")) {
  image.src = document.getElementById(image.dataset.same).src;
}
for (const table of document.querySelectorAll("table")) enliven(table);
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => details.open && show(details));
}
/* A link into a closed part opens it. */
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);
if (location.hash) reveal();
