// Uses the page as a person would, and leaves what it saw in #seen. Stands behind the page's own script.
"use strict";
const seen = { errors: window.errors };

function rowsOf(id) {
  const table = document.getElementById(id);
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  return [...table.tBodies[0].rows].map((row) => Object.fromEntries([...row.cells].map((cell, place) => [labels[place], cell.innerText ?? cell.textContent])));
}

function head(id, label) {
  return [...document.getElementById(id).tHead.rows[0].cells].find((cell) => cell.textContent === label);
}

function sorted(label) {
  head("msrs", label).querySelector("button").click();
  return { sort: head("msrs", label).ariaSort, rows: rowsOf("msrs") };
}

function search(text) {
  const field = document.querySelector("section[aria-labelledby=msrs-heading] input");
  field.value = text;
  field.dispatchEvent(new Event("input"));
  const found = { status: document.querySelector("section[aria-labelledby=msrs-heading] [role=status]").textContent, rows: rowsOf("msrs") };
  field.value = "";
  field.dispatchEvent(new Event("input"));
  return found;
}

const press = (label) => document.querySelector(`button[aria-label="${label}"]`).click();
const inView = () => document.getElementById("in-view").textContent;

function drag(from, to) {
  const picture = document.getElementById("timeline");
  const box = picture.getBoundingClientRect();
  const at = (part) => ({ clientX: box.left + box.width * part, clientY: box.top + 5, bubbles: true });
  picture.dispatchEvent(new PointerEvent("pointerdown", at(from)));
  picture.dispatchEvent(new PointerEvent("pointermove", at(to)));
  picture.dispatchEvent(new PointerEvent("pointerup", at(to)));
}

function key(name) {
  document.getElementById("timeline").dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
}

function see() {
  seen.title = document.title;
  seen.text = document.body.innerText;
  seen.hacked = window.hacked ?? null;
  seen.tiles = Object.fromEntries([...document.querySelectorAll(".tiles li")].map((tile) => [tile.lastChild.textContent, tile.firstChild.textContent]));
  seen.lanes = [...document.querySelectorAll("#timeline text")].map((text) => text.textContent);
  seen.cells = [...document.querySelectorAll("a.cell")].map((cell) => cell.getAttribute("aria-label"));
  seen.rows = rowsOf("msrs");
  seen.up = sorted("Reads");
  seen.down = sorted("Reads");
  seen.found = search("bios_sign");
  seen.nothing = search("no such register");
  seen.views = [inView()];
  for (const act of [() => press("Zoom in"), () => press("Later"), () => key("-"), () => key("Home"), () => drag(0.3, 0.6), () => press("Whole trace")]) {
    act();
    seen.views.push(inView());
  }
  // A cell of the map leads to its row, whatever was searched for.
  const field = document.querySelector("section[aria-labelledby=msrs-heading] input");
  field.value = "no such register";
  field.dispatchEvent(new Event("input"));
  const cell = [...document.querySelectorAll("a.cell")].at(-1);
  if (cell) cell.click();
  seen.isRevealed = !cell || Boolean(document.querySelector(cell.getAttribute("href")));
  if (document.getElementById("comparison")) seen.comparison = rowsOf("comparison");
  // What a phone shows must not be wider than it.
  seen.isTooWide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  seen.isReady = true;
}

addEventListener("load", () => {
  try {
    see();
  } catch (error) {
    seen.errors.push(String(error.stack));
  }
  const place = document.createElement("pre");
  place.id = "seen";
  place.textContent = JSON.stringify(seen);
  document.body.append(place);
});
