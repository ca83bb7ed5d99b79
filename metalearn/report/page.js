"use strict";

/* The small figures beside the findings show the images of the whole ones, which stand once in the page. */
for (const link of document.querySelectorAll(".small a")) {
  link.firstElementChild.src = document.getElementById(link.hash.slice(1)).src;
}

const words = new Intl.Collator("en", { numeric: true });

/* The column's cells in order; blanks and, in a column of numbers, words come last both ways. */
function compare(column, numeric, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    return numeric ? (cell.dataset.key === undefined ? null : Number(cell.dataset.key)) : cell.textContent || null;
  };
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? (x > y) - (x < y) : words.compare(x, y));
  };
}

for (const table of document.querySelectorAll("table")) {
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
