"use strict";
// Draws the page from the document in #data. Texts become text nodes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);

// Who answered an access: a sign, a word and a colour each. The first of a register's decides how its cell looks.
const ANSWERERS = {
  gp: { sign: "#", word: "#GP for the guest" },
  policy: { sign: "P", word: "answered by the policy" },
  vmm: { sign: "V", word: "answered by the VMM itself" },
  kvm: { sign: "K", word: "done by KVM" },
};
const SAYS = { a: "the policy allows it", d: "the policy answers it", x: "the policy denies it" };
const ROWS_AT_ONCE = 500;

// ---- Making elements, and texts of numbers

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const count = (number) => number.toLocaleString("en");
const some = (number, one, more = one + "s") => `${count(number)} ${number === 1 ? one : more}`;
const hex = (number) => "0x" + number.toString(16);
const called = (row) => row.name ?? hex(row.index);
const rowId = (row) => "msr-" + row.index.toString(16);

function time(ns, step = 0) {
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]].find(([, size]) => Math.abs(ns) >= size) ?? ["ns", 1];
  const places = step ? Math.min(9, Math.max(0, Math.ceil(Math.log10(size / step)))) : size === 1 ? 0 : 3;
  return `${(ns / size).toFixed(places)} ${unit}`;
}

// A line may end behind the parts of a name.
const breakable = (name) => name.split(/(?<=_)/).map((part) => [part, h("wbr")]);

const answerer = (outcome) => data.answerers[outcome];
const word = (outcome) => (outcome === "fault" ? "#GP" : outcome);

function tag(outcome, text) {
  const who = answerer(outcome);
  return h("span", { class: "tag " + who, "data-sign": ANSWERERS[who].sign, title: ANSWERERS[who].word }, text);
}

// ---- Tables that are sorted and filtered

// A column: label, key(row) to sort by, cell(row) as text or element; number, code or long say how it looks.
function table(caption, columns, rows, { id = null, rowAttributes = () => ({}), sort = 0, down = false } = {}) {
  let shown = rows;
  let limit = ROWS_AT_ONCE;
  const body = h("tbody");
  const more = h("button", { type: "button", onclick: () => { limit = Infinity; draw(); } });
  const heads = columns.map((column, place) =>
    h("th", { scope: "col", class: column.number ? "number" : null },
      h("button", { type: "button", onclick: () => order(place, sort === place ? !down : Boolean(column.number)) }, column.label)));

  function order(place, isDown) {
    [sort, down] = [place, isDown];
    draw();
  }

  function draw() {
    const key = columns[sort].key;
    const sorted = [...shown].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    heads.forEach((head, place) => head.setAttribute("aria-sort", place !== sort ? "none" : down ? "descending" : "ascending"));
    body.replaceChildren(...sorted.slice(0, limit).map((row) =>
      h("tr", rowAttributes(row), columns.map((column, place) => {
        const style = ["number", "code", "long"].filter((style) => column[style]).join(" ") || null;
        return h(place ? "td" : "th", { class: style, scope: place ? null : "row" }, column.cell(row));
      }))));
    more.hidden = sorted.length <= limit;
    more.textContent = `Show all ${count(sorted.length)} rows`;
  }

  draw();
  const element = h("div", {},
    h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption },
      h("table", { id }, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), body)),
    h("p", {}, more));
  return { element, show: (rows, all = false) => { shown = rows; if (all) limit = Infinity; draw(); } };
}

// A table with a field to search in it and a choice of rows. text(row) is what is searched.
function searchable(rows, what, made, text, choices) {
  const texts = new Map(rows.map((row) => [row, text(row).toLowerCase()]));
  const field = h("input", { type: "search", "aria-label": `Search the ${what}s`, placeholder: "Name, index, value, rule, function …", oninput: draw });
  const choice = h("select", { "aria-label": "Show", onchange: draw },
    choices.map(([label], place) => h("option", { value: place }, label)));
  const status = h("span", { role: "status", class: "dim" });

  function draw() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = choices[choice.value][1];
    const found = rows.filter((row) => fits(row) && words.every((word) => texts.get(row).includes(word)));
    made.show(found);
    status.textContent = `${count(found.length)} of ${some(rows.length, what)}`;
  }

  // Searches for nothing, and draws all rows.
  function reset() {
    [field.value, choice.value] = ["", 0];
    draw();
    made.show(rows, true);
  }

  draw();
  return { element: h("div", {}, h("div", { class: "bar" }, field, choice, status), made.element), reset };
}

// ---- What ran

function overview(trace) {
  const of = { kvm: 0, policy: 0, vmm: 0, gp: 0 };
  for (const [outcome, bins] of trace.timeline) for (let at = 1; at < bins.length; at += 2) of[answerer(outcome)] += bins[at];
  const tiles = [["accesses", trace.events], ["reads", trace.reads], ["writes", trace.writes], [trace.hidden ? "MSRs shown" : "MSRs", trace.msrs.length],
    ["left the guest", trace.left], ["#GP", of.gp], ["lost", trace.lost]];
  const facts = [["Trace", trace.name], ["Began", new Date(trace.start_ms).toISOString().replace("T", " ").replace("Z", " UTC")], ...trace.facts];
  return h("section", { "aria-label": "What ran" },
    trace.gaps.map((sentence) => h("p", { class: "note" }, sentence)),
    h("ul", { class: "tiles" }, tiles.map(([label, number]) => h("li", {}, h("b", {}, count(number)), label))),
    trace.summary.map((sentence) => h("p", {}, sentence)),
    h("dl", { class: "facts" }, facts.map(([label, value]) => [h("dt", {}, label), h("dd", { class: label === "Command" ? "code" : null }, value)])));
}

// ---- Timeline: a lane for each outcome, each with a scale of its own

const LANE = { left: 96, right: 8, height: 54, gap: 12, axis: 26, column: 4 };

function timeline(trace) {
  const whole = [trace.first_ns, Math.max(trace.last_ns, trace.first_ns + 1)];
  const isComplete = trace.accesses.length === trace.events;
  const shortest = isComplete ? 100 : trace.bin_ns * 8;
  let view = whole;
  let width = 1000;
  const signs = "KPV#";
  const lanes = trace.timeline.map(([outcome, bins]) => ({ outcome, bins, order: signs.indexOf(ANSWERERS[answerer(outcome)].sign) }))
    .sort((a, b) => a.order - b.order);
  const height = lanes.length * (LANE.height + LANE.gap) + LANE.axis;
  const picture = svg("svg", { class: "timeline", role: "img", tabindex: 0, id: "timeline" });
  const status = h("p", { role: "status", class: "dim", id: "in-view" });
  const list = h("div");
  const right = () => width - LANE.right;
  const x = (ns) => LANE.left + ((ns - view[0]) / (view[1] - view[0])) * (right() - LANE.left);
  const ns = (x) => view[0] + ((x - LANE.left) / (right() - LANE.left)) * (view[1] - view[0]);

  // Pairs of a time and a count. Single accesses where all are here, else bins; a bin counts where it begins.
  function* counts({ outcome, bins }) {
    if (isComplete) {
      for (const access of trace.accesses) if (access[4] === outcome) yield [access[0], 1];
    } else {
      for (let at = 0; at < bins.length; at += 2) yield [Math.max(bins[at] * trace.bin_ns, whole[0]), bins[at + 1]];
    }
  }

  function columnsOf(lane) {
    const span = view[1] - view[0];
    const finest = (span / (right() - LANE.left)) * LANE.column;
    const size = isComplete ? finest : Math.max(1, Math.ceil(finest / trace.bin_ns)) * trace.bin_ns;
    const columns = new Map();
    let sum = 0;
    for (const [at, number] of counts(lane)) {
      if (at < view[0] || at > view[1]) continue;
      const column = Math.floor((isComplete ? at - view[0] : at) / size);
      columns.set(column, (columns.get(column) ?? 0) + number);
      sum += number;
    }
    const begin = isComplete ? view[0] : 0;
    return { sum, size, columns: [...columns].map(([column, number]) => ({ from: begin + column * size, number })) };
  }

  function draw() {
    let sum = 0;
    const parts = lanes.flatMap((lane, place) => {
      const { columns, size, sum: inLane } = columnsOf(lane);
      sum += inLane;
      const floor = (place + 1) * (LANE.height + LANE.gap);
      const most = columns.reduce((most, column) => Math.max(most, column.number), 0);
      const bars = columns.map(({ from, number }) => {
        const [left, end] = [Math.max(x(from), LANE.left), Math.min(x(from + size), right())];
        const high = Math.max(2, (number / most) * LANE.height);
        return svg("rect", { class: "fill-" + answerer(lane.outcome), x: left, y: floor - high, width: Math.max(2, end - left - 0.5), height: high },
          svg("title", {}, `${time(from, size)}: ${count(number)} ${word(lane.outcome)}`));
      });
      return [svg("line", { x1: LANE.left, x2: right(), y1: floor, y2: floor }),
        svg("text", { x: 8, y: floor - 36 }, `${ANSWERERS[answerer(lane.outcome)].sign} ${word(lane.outcome)}`),
        svg("text", { x: 8, y: floor - 20, class: "dim" }, count(inLane)),
        svg("text", { x: 8, y: floor - 5, class: "dim" }, most ? `highest ${count(most)}` : ""),
        ...bars];
    });
    const step = nice((view[1] - view[0]) / (width < 600 ? 3 : 8));
    for (let at = Math.ceil(view[0] / step) * step, left = 12; at <= view[1] && left; at += step, left--) {
      parts.push(svg("line", { x1: x(at), x2: x(at), y1: height - LANE.axis, y2: height - LANE.axis + 5 }),
        svg("text", { x: x(at), y: height - 8, class: "dim", "text-anchor": "middle" }, time(at, step)));
    }
    const text = `${some(sum, "access", "accesses")} from ${time(view[0], step / 10)} to ${time(view[1], step / 10)}`;
    picture.setAttribute("aria-label", `Accesses over time by outcome: ${text}. Plus and minus zoom, arrows move.`);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(...parts);
    status.textContent = text + ".";
    buttons.out.disabled = buttons.all.disabled = view === whole;
    buttons.in.disabled = view[1] - view[0] <= shortest;
    drawList();
  }

  function drawList() {
    const inView = trace.accesses.filter((access) => access[0] >= view[0] && access[0] <= view[1]);
    const made = () => accessTable(trace, inView).element;
    const label = isComplete ? `${some(inView.length, "access", "accesses")} in view, one by one`
      : `Of the first ${count(trace.accesses.length)} accesses, ${count(inView.length)} in view, one by one`;
    list.replaceChildren(h("details", { ontoggle: (event) => {
      if (event.target.open && event.target.children.length === 1) event.target.append(made());
    } }, h("summary", {}, label)));
  }

  function show(from, to) {
    const span = Math.min(Math.max(to - from, shortest), whole[1] - whole[0]);
    const begin = Math.min(Math.max((from + to - span) / 2, whole[0]), whole[1] - span);
    view = span >= whole[1] - whole[0] ? whole : [begin, begin + span];
    draw();
  }
  const zoom = (factor, at = (view[0] + view[1]) / 2) => show(at - (at - view[0]) * factor, at + (view[1] - at) * factor);
  const move = (part) => show(view[0] + part * (view[1] - view[0]), view[1] + part * (view[1] - view[0]));

  const button = (label, text, onclick) => h("button", { type: "button", "aria-label": label, title: label, onclick }, text);
  const buttons = {
    in: button("Zoom in", "+", () => zoom(0.5)), out: button("Zoom out", "−", () => zoom(2)),
    left: button("Earlier", "←", () => move(-0.5)), right: button("Later", "→", () => move(0.5)), all: button("Whole trace", "All", () => show(...whole)),
  };
  const keys = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25), Home: () => show(...whole) };
  picture.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // Dragging selects what is zoomed to.
  const at = (event) => {
    const box = picture.getBoundingClientRect();
    return Math.min(Math.max(((event.clientX - box.left) / box.width) * width, LANE.left), right());
  };
  picture.addEventListener("pointerdown", (event) => {
    const from = at(event);
    const selection = svg("rect", { class: "selection", x: from, y: 0, width: 0, height });
    picture.append(selection);
    const drag = (event) => {
      selection.setAttribute("x", Math.min(from, at(event)));
      selection.setAttribute("width", Math.abs(at(event) - from));
    };
    const stop = () => {
      removeEventListener("pointermove", drag);
      removeEventListener("pointerup", drop);
      removeEventListener("pointercancel", stop);
      selection.remove();
    };
    const drop = (event) => {
      const [left, right] = [from, at(event)].sort((a, b) => a - b).map(ns);
      const isDrag = Math.abs(at(event) - from) > 4;
      stop();
      if (isDrag) show(left, right);
    };
    addEventListener("pointermove", drag);
    addEventListener("pointerup", drop);
    addEventListener("pointercancel", stop);
  });

  // As wide as it is shown, so that its texts are as large as others; paper shrinks it.
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width && Math.abs(contentRect.width - width) > 1) {
      width = contentRect.width;
      draw();
    }
  }).observe(status);

  draw();
  return section("timeline-heading", "Timeline",
    h("p", { class: "dim" }, "Accesses over time, a lane for each outcome with a scale of its own. Drag over a part to see more of it."),
    h("div", { class: "bar" }, Object.values(buttons)), picture, status, list);
}

function nice(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return Math.max(1, [1, 2, 5, 10].find((step) => step * power >= rough) * power);
}

function accessTable(trace, accesses) {
  const rows = new Map(trace.msrs.map((row) => [row.index, row]));
  const columns = [
    { label: "Time", key: (it) => it[0], cell: (it) => time(it[0]), code: true },
    { label: "vCPU", key: (it) => it[1], cell: (it) => String(it[1]) },
    { label: "Instruction", key: (it) => it[3], cell: (it) => it[3], code: true },
    { label: "MSR", key: (it) => it[2], cell: (it) => (rows.has(it[2]) ? link(rows.get(it[2])) : hex(it[2])) },
    { label: "Value", key: (it) => BigInt(it[5]), cell: (it) => it[5], code: true },
    { label: "Outcome", key: (it) => it[4], cell: (it) => tag(it[4], word(it[4])) },
    { label: "RIP", key: (it) => BigInt(it[6] ?? 0), cell: (it) => it[6] ?? "–", code: true },
  ];
  return table("Accesses in view", columns, accesses);
}

// ---- Map

function map(trace) {
  const rows = new Map(trace.msrs.map((row) => [row.index, row]));
  const cell = (row, offset) => {
    const touched = rows.get(row.base + offset);
    const says = SAYS[row.policy[offset]];
    const name = row.names[offset];
    if (touched) {
      const who = Object.keys(ANSWERERS).find((who) => touched.answers.some((answer) => answerer(answer[1]) === who));
      const text = [called(touched), name ? hex(touched.index) : null, answersText(touched), says].filter(Boolean).join(", ");
      return h("a", { class: "cell " + who, href: "#" + rowId(touched), onclick: () => reveal(touched), title: text, "aria-label": text }, ANSWERERS[who].sign);
    }
    const text = [name, hex(row.base + offset), "not touched", says].filter(Boolean).join(", ");
    return h("span", { class: "cell untouched", title: text }, row.policy[offset] === "x" ? "×" : name ? "·" : "");
  };
  const windows = trace.map.map((it) => {
    const range = it.range ? `${hex(it.range[0])} to ${hex(it.range[1])}` : "what is in no other window";
    return h("div", { class: it.rows.length > 12 ? "wide" : null }, h("h3", {}, it.title), h("p", { class: "dim" }, range),
      it.rows.length ? null : h("p", { class: "dim" }, "Nothing was touched here."),
      h("div", { class: "rows" }, it.rows.map((row) => h("div", { class: "row" },
        h("span", { class: "code" }, hex(row.base)), Array.from({ length: 16 }, (_, offset) => cell(row, offset))))),
      it.more ? h("p", { class: "dim" }, `${some(it.more, "more row")} here.`) : null);
  });
  const legend = [...Object.entries(ANSWERERS).map(([who, { sign, word }]) => [who, sign, word]), ["", "·", "has a name, not touched"], ["", "×", "denied by the policy, not touched"]];
  return section("map-heading", "Map of the MSRs",
    h("p", { class: "dim" }, "Sixteen neighbours in a row; rows in which nothing was touched are left out. A cell leads to its line in the table, which has all of this as text."),
    h("ul", { class: "legend", "aria-label": "Signs" }, legend.map(([who, sign, word]) => h("li", {}, h("span", { class: "cell " + who }, sign), word))),
    h("div", { class: "windows" }, windows));
}

// ---- Table of MSRs

// The row may be beyond those that are drawn, or not among those that are searched for.
let reveal = () => {};
const link = (row) => h("a", { href: "#" + rowId(row), onclick: () => reveal(row) }, called(row));
const answersText = (row) => row.answers.map((it) => answerText(it)).join(", ");

function answerText([access, outcome, reason, number]) {
  return `${some(number, access)} ${word(outcome)}${reason === "none" || reason === "filter" ? "" : ` (${reason})`}`;
}

function ruleTexts(trace, row) {
  const directions = new Map();
  for (const [access, rule] of row.rules) directions.set(rule, [...(directions.get(rule) ?? []), access]);
  return [...directions].map(([rule, accesses]) => (accesses.length === 1 && directions.size > 1 ? `${accesses[0]}: ` : "") + trace.rules[rule]);
}

const lines = (texts) => texts.map((text) => h("div", {}, text));
const value = (text) => (text === null ? -1n : BigInt(text));

function msrTable(trace) {
  const rules = new Map(trace.msrs.map((row) => [row, trace.policies.length ? ruleTexts(trace, row) : ["no policy"]]));
  const columns = [
    { label: "MSR", key: (row) => row.name ?? "~" + String(row.index).padStart(10, "0"), cell: (row) => h("span", { title: row.meaning }, breakable(row.name ?? "–")) },
    { label: "Index", key: (row) => row.index, cell: (row) => hex(row.index), code: true },
    { label: "Reads", key: (row) => row.reads, cell: (row) => count(row.reads), number: true },
    { label: "Writes", key: (row) => row.writes, cell: (row) => count(row.writes), number: true },
    { label: "Outcome", key: (row) => row.answers[0][1], cell: (row) => row.answers.map((it) => h("div", {}, tag(it[1], answerText(it)))) },
    { label: "First value", key: (row) => value(row.first), cell: (row) => row.first ?? "–", code: true },
    { label: "Last value", key: (row) => value(row.last), cell: (row) => row.last ?? "–", code: true },
    { label: "Decided by", key: (row) => rules.get(row).join(), cell: (row) => lines(rules.get(row)), long: true },
    { label: "First RIP", key: (row) => value(row.rip), cell: (row) => lines([row.rip ?? "–", row.symbol].filter(Boolean)), code: true },
    { label: "First at", key: (row) => row.first_ns, cell: (row) => time(row.first_ns), code: true },
  ];
  const made = table("Each MSR that was touched", columns, trace.msrs, { id: "msrs", rowAttributes: (row) => ({ id: rowId(row) }), sort: 1 });
  const text = (row) => [row.name, row.meaning, hex(row.index), row.first, row.last, answersText(row), row.rip, row.symbol, ...rules.get(row)].join(" ");
  const by = (who) => (row) => row.answers.some((answer) => answerer(answer[1]) === who);
  const choices = [["All MSRs", () => true], ...Object.entries(ANSWERERS).map(([who, { word }]) => [word, by(who)]), ["written", (row) => row.writes > 0], ["without a name", (row) => !row.name]];
  const search = searchable(trace.msrs, "MSR", made, text, choices);
  reveal = (row) => {
    if (!document.getElementById(rowId(row))) search.reset();
  };
  return section("msrs-heading", "MSRs", search.element);
}

// ---- Anomalies, policies, comparison

function anomalies(trace) {
  const item = (it) => h("li", {}, link(trace.msrs[it.msr]), `: ${it.text}`);
  return section("anomalies-heading", "Worth a look", trace.anomalies.length ? null : h("p", {}, "Nothing odd was found."),
    trace.anomalies.map((it) => h("details", { open: it.items.length <= 12 },
      h("summary", {}, h("b", {}, it.title), `: ${some(it.items.length + it.more, "MSR")}`),
      h("p", { class: "dim" }, it.meaning), h("ul", {}, it.items.map(item)),
      it.more ? h("p", { class: "dim" }, `${count(it.more)} more are in the table.`) : null)));
}

function policies(trace) {
  if (!trace.policies.length) return null;
  return section("policies-heading", "Policies", trace.policies.map((it) => h("details", {},
    h("summary", { class: "code" }, it.name), it.is_used ? null : h("p", { class: "note" }, "This policy has mistakes, and was not used for this page."),
    h("pre", { tabindex: 0 }, it.text), it.is_cut ? h("p", { class: "dim" }, "The rest has no room here.") : null)));
}

function comparison([a, b]) {
  const sides = [a, b].map((trace) => new Map(trace.msrs.map((row) => [row.index, row])));
  const rows = [...new Set([a, b].flatMap((trace) => trace.msrs.map((row) => row.index)))].map((index) => {
    const both = sides.map((side) => side.get(index) ?? null);
    return { index, name: (both[0] ?? both[1]).name, both, kinds: differences(both) };
  });
  const side = (place, label) => ({ label, key: (row) => (row.both[place] ? row.both[place].reads + row.both[place].writes : -1),
    cell: (row) => (row.both[place] ? row.both[place].answers.map((it) => h("div", {}, tag(it[1], answerText(it)))) : "not touched") });
  const columns = [
    { label: "MSR", key: (row) => row.name ?? "~" + row.index, cell: (row) => breakable(row.name ?? "–") },
    { label: "Index", key: (row) => row.index, cell: (row) => hex(row.index), code: true },
    { label: "Differs in", key: (row) => row.kinds.join(), cell: (row) => row.kinds.join(", ") || "nothing" },
    side(0, "A"), side(1, "B"),
    ...["A", "B"].map((label, place) => ({ label: `Last value in ${label}`, key: (row) => value(row.both[place]?.last ?? null), cell: (row) => row.both[place]?.last ?? "–", code: true })),
  ];
  const made = table("What the traces have of each MSR", columns, rows, { id: "comparison", sort: 1 });
  const text = (row) => [row.name, hex(row.index), row.kinds.join(" "), ...row.both.map((it) => (it ? answersText(it) : ""))].join(" ");
  const kind = (...kinds) => (row) => row.kinds.some((it) => kinds.includes(it));
  const choices = [["Touched in one only, or other outcomes", kind("only in A", "only in B", "outcome")], ["Any difference", (row) => row.kinds.length > 0],
    ["Other last value", kind("last value")], ["All MSRs", () => true]];
  const only = (which) => rows.filter((row) => row.kinds.includes(which)).length;
  return section("comparison-heading", "Comparison", h("p", {}, "A is ", h("code", {}, a.name), ", B is ", h("code", {}, b.name), "."),
    h("p", {}, `${some(only("only in A"), "MSR")} only in A, ${count(only("only in B"))} only in B, ${count(only("outcome"))} with another outcome, ${count(rows.filter((row) => !row.kinds.length).length)} alike.`),
    searchable(rows, "MSR", made, text, choices).element);
}

function differences([a, b]) {
  if (!a || !b) return [a ? "only in A" : "only in B"];
  const ways = (row) => row.answers.map((it) => it.slice(0, 3).join()).sort().join();
  const found = [["outcome", ways(a) !== ways(b)], ["count", a.reads !== b.reads || a.writes !== b.writes], ["last value", a.last !== b.last]];
  return found.filter(([, differs]) => differs).map(([kind]) => kind);
}

// ---- The whole page

function section(id, title, ...children) {
  return h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

function show(place) {
  const trace = data.traces[place];
  shownTrace.replaceChildren(...[overview, anomalies, timeline, map, msrTable, policies].map((part) => part(trace)).filter(Boolean));
  for (const [at, button] of choice.entries()) button.setAttribute("aria-pressed", at === place);
}

const names = data.traces.map((trace) => trace.name);
const guests = data.traces.map((trace) => trace.facts.find(([label]) => label === "Guest")?.[1] ?? trace.name);
document.title = `MSR accesses: ${names.join(" and ")}`;
document.getElementById("top").append(h("h1", {}, `MSR accesses of ${[...new Set(guests)].join(" and ")}`));
const shownTrace = h("div");
const choice = names.length < 2 ? [] : names.map((name, place) => h("button", { type: "button", onclick: () => show(place) }, `${"AB"[place]}: ${name}`));
const page = document.getElementById("page");
if (choice.length) page.append(comparison(data.traces), h("div", { class: "bar choice", role: "group", "aria-label": "Which trace is shown below" }, choice));
page.append(shownTrace);
show(0);
document.getElementById("end").append(h("p", {}, `Made by ${data.program} report. Nothing on this page is fetched from anywhere.`));
