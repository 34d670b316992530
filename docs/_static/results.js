// The page of results: rows unfold to what is written below their table, and a form filters them. The page is
// `art-defenses leaderboard`'s: below each heading "DATA SET, NORM, eps EPS" a table, and then for each of its rows, in
// their order, a paragraph and a command. The filter stands in the address, so that a link can be handed on.
"use strict";

const NONE = "all";

function groupsOf(page) {
  const isGroup = (section) => section.querySelector(":scope > h2") && section.querySelector("table");
  return [...page.querySelectorAll("section")].filter(isGroup).map((section) => {
    const [data, norm, eps] = section.querySelector("h2").firstChild.textContent.split(", ");
    const rows = [...section.querySelectorAll("table tbody tr")];
    const details = [...section.querySelectorAll(":scope > p, :scope > div[class*=highlight]")];
    section.classList.add("runs");
    rows.forEach((row) => labelled(row, section.querySelectorAll("table thead th")));
    rows.forEach((row, number) => unfoldable(row, details.slice(2 * number, 2 * number + 2)));
    return { section, data, threat: `${norm}, ${eps}`, rows };
  });
}

// On a telephone a row is a list of "column: figure" (site.css).
function labelled(row, heads) {
  [...row.cells].slice(1).forEach((cell, column) => {
    if (cell.textContent.trim()) cell.dataset.column = heads[column + 1].textContent.trim();
  });
}

function unfoldable(row, details) {
  const first = row.cells[0];
  const below = row.parentElement.insertBefore(document.createElement("tr"), row.nextSibling);
  const cell = below.appendChild(document.createElement("td"));
  cell.colSpan = row.cells.length;
  cell.append(...details);
  below.className = "details";
  below.hidden = true;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "unfold";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Command, checks and cost of ${first.textContent.trim()}`);
  button.addEventListener("click", () => {
    below.hidden = !below.hidden;
    button.setAttribute("aria-expanded", String(!below.hidden));
  });
  (first.querySelector("p") || first).prepend(button);
}

function select(form, name, label, values) {
  const field = form.appendChild(document.createElement("label"));
  field.append(label, " ");
  const menu = field.appendChild(document.createElement("select"));
  menu.name = name;
  for (const value of [NONE, ...new Set(values)]) menu.add(new Option(value, value));
}

function defenceOf(row) {
  return row.cells[0].textContent.trim();
}

function build(groups) {
  const form = document.createElement("form");
  form.className = "filter";
  form.setAttribute("aria-label", "Filter the results");
  select(form, "data", "Data set", groups.map((group) => group.data));
  select(form, "threat", "Threat", groups.map((group) => group.threat));
  select(form, "established", "Robust accuracy", ["established", "upper bound"]);
  const field = form.appendChild(document.createElement("label"));
  field.append("Defence ");
  const text = field.appendChild(document.createElement("input"));
  text.name = "defence";
  text.type = "search";
  text.placeholder = "part of its name";
  const count = form.appendChild(document.createElement("output"));
  form.append("A row unfolds to its checks, its cost and its command.");
  const apply = () => filter(groups, new FormData(form), count);
  form.addEventListener("input", () => {
    apply();
    const chosen = [...new FormData(form)].filter(([, value]) => value !== NONE && value !== "");
    history.replaceState(null, "", `${location.pathname}?${new URLSearchParams(chosen)}${location.hash}`);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [name, value] of new URLSearchParams(location.search)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  groups[0].section.before(form);
  apply();
}

function filter(groups, wanted, count) {
  const is = (name, value) => [NONE, null, value].includes(wanted.get(name));
  const part = (wanted.get("defence") || "").trim().toLowerCase();
  let shown = 0;
  let total = 0;
  for (const { section, data, threat, rows } of groups) {
    let some = false;
    for (const row of rows) {
      const bound = row.cells[1].textContent.includes("at most") ? "upper bound" : "established";
      const fits = is("data", data) && is("threat", threat) && is("established", bound);
      row.hidden = !(fits && defenceOf(row).toLowerCase().includes(part));
      if (row.hidden) {
        row.nextSibling.hidden = true;
        row.querySelector(".unfold").setAttribute("aria-expanded", "false");
      }
      total += 1;
      shown += !row.hidden;
      some = some || !row.hidden;
    }
    section.hidden = !some;
  }
  count.textContent = `${shown} of ${total} runs`;
}

function start() {
  const groups = groupsOf(document);
  if (groups.length) build(groups);
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
