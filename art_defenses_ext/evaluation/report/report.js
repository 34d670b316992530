// Tables that a reader sorts by a column and folds group by group; without a script they stand as they are.
"use strict";

const NUMBER = /^[+-]?[0-9]+(\.[0-9]+)?/;

function button(cell) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(...cell.childNodes);
  cell.append(made);
  return made;
}

// What a row is sorted by: the number that its cell begins with, else the text; rows without either come last.
function value(row, column) {
  const cell = row.cells[column];
  const text = cell === undefined ? "" : cell.textContent.trim();
  const number = NUMBER.exec(text);
  return number !== null ? Number(number[0]) : text === "-" ? "" : text;
}

function compared(first, second, sign) {
  if (first === "" || second === "") return (first === "") - (second === "");
  if (typeof first === "number" && typeof second === "number") return sign * (first - second);
  return sign * String(first).localeCompare(String(second));
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => !row.matches(".group"))]);
  heads.forEach((head, column) => {
    button(head).addEventListener("click", () => {
      const order = { ascending: "descending", descending: "none" }[head.ariaSort] ?? "ascending";
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = order;
      const sign = order === "descending" ? -1 : 1;
      for (const [body, rows] of bodies) {
        const sorted = order === "none" ? rows : rows.toSorted((a, b) => compared(value(a, column), value(b, column), sign));
        body.append(...sorted);
      }
    });
  });
}

function foldable(body) {
  const head = body.rows[0];
  const fold = button(head.cells[0]);
  fold.ariaExpanded = "true";
  fold.addEventListener("click", () => {
    const folded = fold.ariaExpanded === "true";
    fold.ariaExpanded = String(!folded);
    for (const row of body.rows) row.hidden = folded && row !== head;
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.sortable tbody:has(> .group)").forEach(foldable);
