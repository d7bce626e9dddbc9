"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text = "", className = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
};

// Light, dark, or what the system says.
document.getElementById("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});

document.getElementById("fair").addEventListener("change", (event) =>
  document.body.classList.toggle("fair", event.target.checked));

// Sorting: the largest numbers or the first names come first, then the other way round, then the order of the page.
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" ? b - a : String(a).localeCompare(String(b), undefined, { numeric: true });
}
function nextOrder(header, headers) {
  const first = header.classList.contains("number") ? "descending" : "ascending";
  const second = first === "descending" ? "ascending" : "descending";
  const order = { [first]: second, [second]: null }[header.getAttribute("aria-sort")];
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  const next = order === undefined ? first : order;
  if (next) header.setAttribute("aria-sort", next);
  return next === null ? 0 : next === first ? 1 : -1;
}
function sorted(items, value, sign) {
  if (!sign) return items;
  return [...items].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    // What is missing stays last.
    return left === null || right === null ? compare(left, right) : sign * compare(left, right);
  });
}
all("table.sortable").forEach((table) => {
  const headers = all("thead th", table);
  const body = table.tBodies[0];
  const rows = [...body.rows];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const sign = nextOrder(header, headers);
    table.classList.toggle("sorted", sign !== 0);
    const value = (row) => {
      const cell = row.cells[column];
      if (!header.classList.contains("number")) return cell.textContent;
      return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    };
    body.append(...sorted(rows, value, sign));
  }));
});

// Filters
const hiddenValues = { prompts: new Set(), model: new Set(), guide: new Set() };
const find = document.getElementById("find");
const tag = document.getElementById("tag");
const differs = document.getElementById("differs");
const isShown = (entry) => Object.entries(hiddenValues).every(([kind, values]) => !values.has(entry[kind]));
function filter() {
  const filtered = "tbody tr[data-guide], .headline, .plots figure, .plot g, .card, .model, .column";
  all(filtered).forEach((element) => element.toggleAttribute("hidden", !isShown(element.dataset)));
  const words = find.value.toLowerCase();
  const cards = all(".card");
  cards.forEach((card) => {
    const wanted = card.dataset.prompt.includes(words) && (!tag.value || card.dataset.tag === tag.value)
      && (!differs.checked || card.dataset.differs === "1");
    if (!wanted) card.hidden = true;
  });
  const number = cards.filter((card) => !card.hidden).length;
  document.getElementById("shown").textContent = `${number} of ${cards.length} shown`;
  page = 0;
  showRows();
}
all(".chip").forEach((chip) => chip.addEventListener("click", () => {
  const values = hiddenValues[chip.closest("fieldset").dataset.kind];
  const pressed = chip.getAttribute("aria-pressed") === "true";
  chip.setAttribute("aria-pressed", String(!pressed));
  pressed ? values.add(chip.dataset.value) : values.delete(chip.dataset.value);
  filter();
}));
[find, tag, differs].forEach((control) => control.addEventListener("input", filter));

// Images: the large one of a column is the chosen sample's.
function choose(model, number) {
  const columns = all(".column", model);
  const chosen = columns.map((column) => {
    const samples = all(".sample", column);
    const sample = samples[Math.min(number, samples.length - 1)];
    samples.forEach((other) => other.setAttribute("aria-pressed", String(other === sample)));
    return { column, sample, scores: JSON.parse(sample.dataset.scores), own: JSON.parse(column.dataset.self) };
  });
  const best = {};
  chosen.forEach(({ scores }) => Object.entries(scores).forEach(([label, value]) => {
    best[label] = Math.max(best[label] ?? -Infinity, value);
  }));
  chosen.forEach(({ column, sample, scores, own }) => {
    const large = column.querySelector(".large");
    large.src = sample.querySelector("img").src;
    large.title = sample.dataset.file;
    ["right", "wrong"].forEach((name) => large.classList.toggle(name, sample.classList.contains(name)));
    column.querySelector(".reason").textContent = sample.dataset.reason;
    const known = data.metrics.filter((label) => label in scores);
    column.querySelector(".scores").replaceChildren(...known.map((label) => {
      const value = scores[label];
      const row = make("tr", "", value === best[label] && chosen.length > 1 ? "best" : "");
      row.append(make("td", label + (own.includes(label) ? " †" : "")), make("td", value.toFixed(3)));
      return row;
    }));
  });
}
all(".model").forEach((model) => {
  all(".sample", model).forEach((sample) => sample.addEventListener("click", () =>
    choose(model, [...sample.parentElement.children].indexOf(sample))));
  choose(model, 0);
});
// Enlarged pixels look better as squares than blurred.
all(".strip img, .large").forEach((image) => {
  const mark = () => image.classList.toggle("small-image", image.naturalWidth > 0 && image.naturalWidth <= 128);
  image.addEventListener("load", mark);
  mark();
});

// All prompts, a page at a time
const ROWS = 50;
let page = 0;
let order = { value: null, sign: 0 };
const judged = data.rows.some((row) => row[6] !== null);
const columns = ["prompts", "number", "task", "model", "guide", "prompt"]
  .map((name, index) => ({ name, value: (row) => row[index], number: false }))
  .filter(({ name, value }) => !["prompts", "model"].includes(name) || new Set(data.rows.map(value)).size > 1);
if (judged) columns.push({ name: "correct", value: (row) => row[6], number: true });
data.metrics.forEach((label) => columns.push({ name: label, value: (row) => row[7][label] ?? null, number: true }));
const heading = document.querySelector("#rows thead tr");
columns.forEach((column) => {
  const header = make("th", "", column.number ? "number" : "");
  header.scope = "col";
  const button = make("button", column.name);
  button.type = "button";
  header.append(button);
  heading.append(header);
  button.addEventListener("click", () => {
    order = { value: column.value, sign: nextOrder(header, [...heading.children]) };
    page = 0;
    showRows();
  });
});
function showRows() {
  const words = find.value.toLowerCase();
  const wanted = data.rows.filter((row) => isShown({ prompts: row[0], model: row[3], guide: row[4] })
    && row[5].toLowerCase().includes(words) && (!tag.value || row[2] === tag.value));
  const rows = sorted(wanted, order.value, order.sign);
  const pages = Math.max(1, Math.ceil(rows.length / ROWS));
  document.querySelector("#rows tbody").replaceChildren(...rows.slice(page * ROWS, (page + 1) * ROWS).map((row) => {
    const line = make("tr");
    columns.forEach((column) => {
      const value = column.value(row);
      const shown = column.name === "task" ? data.tasks[value] || value : value;
      const text = value === null ? "–" : column.number ? value.toFixed(3) : shown;
      const cell = make("td", text, column.number ? "number" : column.name);
      if (column.name === "guide") cell.prepend(make("span", "", `dot g${data.guides.indexOf(value) % 8}`));
      line.append(cell);
    });
    return line;
  }));
  document.getElementById("page").textContent = `${rows.length} rows, page ${page + 1} of ${pages}`;
  document.getElementById("previous").disabled = page === 0;
  document.getElementById("next").disabled = page >= pages - 1;
}
document.getElementById("previous").addEventListener("click", () => { page -= 1; showRows(); });
document.getElementById("next").addEventListener("click", () => { page += 1; showRows(); });
filter();
