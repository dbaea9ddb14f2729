"use strict";

// --- tables: the buttons of the header sort the rows up, down, and back

for (const table of document.querySelectorAll("table[data-table]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((other) => (other.ariaSort = other === head ? next : "none"));
      body.append(...(next === "none" ? original : sorted(original, column, next === "descending" ? -1 : 1)));
    });
  });
}

/** Return the rows in the order of a column; cells without a number come last in a column of numbers. */
function sorted(rows, column, sign) {
  const keys = new Map(rows.map((row) => [row, row.cells[column]]));
  const numbers = rows.some((row) => keys.get(row).dataset.key !== undefined);
  return [...rows].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (!numbers) return sign * a.textContent.localeCompare(b.textContent);
    const [x, y] = [a.dataset.key, b.dataset.key];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (x - y);
  });
}

// --- charts: curves above, differences to the reference below, and their values at one number of labelled images

const MARKS = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.5-3.5h7v7h-7z", "M0-4.5L4.3 3.2H-4.3z", "M0-4.8L4.8 0L0 4.8L-4.8 0z",
  "M0 4.5L4.3-3.2H-4.3z",
];
const BANDS = 6; // visible curves whose bands can be told apart

function svg(parent, name, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent?.append(node);
  return node;
}

function html(parent, name, attributes = {}, text = null) {
  const node = Object.assign(document.createElement(name), attributes);
  if (text !== null) node.textContent = text;
  parent?.append(node);
  return node;
}

const style = (number) => `curve c${number % 7} d${Math.floor(number / 7) % 3}`;

/** Return round numbers that cover a range. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found.map((value) => [value, value.toFixed(Math.max(0, -Math.floor(Math.log10(step))))]);
}

class Chart {
  constructor(box, data) {
    Object.assign(this, { data, hidden: new Set(), focused: null, now: data.budgets.length - 1 });
    this.numbers = new Map(data.curves.map((curve, number) => [curve, number]));
    this.drawn = data.curves.filter((curve) => curve.points.length);
    this.second = this.drawn.some((curve) => curve.differences.length);
    this.plot = html(box, "div");
    this.readout(html(box, "div", { className: "readout" }));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  /** Make the legend, which also shows the values. */
  readout(box) {
    const label = html(box, "label");
    this.where = html(label, "span");
    this.slider = html(label, "input", { type: "range", min: 0, max: this.data.budgets.length - 1, value: this.now });
    this.slider.addEventListener("input", () => this.move(+this.slider.value));
    const wide = html(box, "div", { className: "wide" });
    const table = html(wide, "table");
    const head = html(html(table, "thead"), "tr");
    const columns = ["method", `${this.data.metric} (%)`];
    if (this.second) columns.push(`minus ${this.data.reference} [95 %, no test]`);
    for (const name of columns) html(head, "th", { scope: "col" }, name);
    const body = html(table, "tbody");
    this.rows = this.drawn.map((curve) => {
      const row = html(body, "tr");
      const button = html(html(row, "th", { scope: "row" }), "button", { type: "button", ariaPressed: "true" });
      button.title = "hide or show this curve";
      const number = this.numbers.get(curve);
      const swatch = svg(button, "svg", { width: 26, height: 12, viewBox: "-13 -6 26 12", class: style(number), "aria-hidden": "true" });
      svg(swatch, "path", { d: "M-13 0H13", class: "line" });
      svg(swatch, "path", { d: MARKS[number % 5], class: "mark" });
      html(button, "bdi", {}, curve.method);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(curve)) this.hidden.add(curve);
        button.ariaPressed = String(!this.hidden.has(curve));
        this.draw();
      });
      for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => this.focus(curve));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => this.focus(null));
      return columns.slice(1).map(() => html(row, "td"));
    });
    for (const { name, text } of this.data.full) {
      const row = html(body, "tr");
      const box = html(html(row, "th", { scope: "row" }), "span", { className: "key" });
      const swatch = svg(box, "svg", { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" });
      svg(swatch, "path", { d: "M-13 0H13", class: "full" });
      html(box, "bdi", {}, name);
      for (const [index] of columns.slice(1).entries()) html(row, "td", {}, index ? "\u2013" : text);
    }
    this.move(this.now);
  }

  /** Show the values at a number of labelled images. */
  move(index) {
    this.now = index;
    const labelled = this.data.budgets[index];
    this.slider.value = index;
    this.slider.ariaValueText = `${labelled} labelled images`;
    this.where.textContent = `at ${labelled} labelled images`;
    this.drawn.forEach((curve, number) => {
      const [value, difference] = this.rows[number];
      const at = (points) => points.find((point) => point.labelled === labelled);
      const [here, gap] = [at(curve.points), at(curve.differences)];
      value.textContent = here ? here.text : "\u2013";
      if (difference) difference.textContent = gap ? gap.text : "\u2013";
    });
    this.line?.setAttribute("transform", `translate(${this.x(labelled)} 0)`);
  }

  /** Fade all curves but one; null: none. */
  focus(curve) {
    this.focused = curve && !this.hidden.has(curve) ? curve : null;
    for (const [one, groups] of this.groups)
      for (const group of groups) group.classList.toggle("faded", this.focused !== null && one !== this.focused);
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const [left, right, top, upper, gap, lower] = [44, 14, 24, width < 500 ? 220 : 300, 42, this.second ? (this.drawn.length > BANDS ? 320 : 210) : 0];
    const height = top + upper + (this.second ? gap + lower : 0) + (this.data.pool ? 59 : 44);
    const { budgets, pool } = this.data;
    const [first, last] = [budgets[0], budgets.at(-1)];
    const margin = this.second ? Math.max(12, (0.4 * (width - left - right)) / budgets.length) : 12;
    const [start, end] = [left + margin, width - right - margin];
    this.x = (labelled) => (first === last ? (start + end) / 2 : start + ((labelled - first) / (last - first)) * (end - start));
    const visible = this.drawn.filter((curve) => !this.hidden.has(curve));
    this.groups = new Map(visible.map((curve) => [curve, []]));
    const root = svg(null, "svg", { class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg(root, "title", {}, this.data.title);
    svg(root, "desc", {}, `${this.drawn.length} curves of means over seeds. The table that follows has their values.`);
    const panels = [[top, top + upper, "points", `${this.data.metric} (%), mean\u00b1std`]];
    if (this.second) {
      const name = `difference to ${this.data.reference}`.slice(0, width / 13);
      panels.push([top + upper + gap, top + upper + gap + lower, "differences", `${name}, points, 95 % t-interval (no test)`]);
    }
    for (const [high, low, kind, name] of panels) this.panel(root, visible, high, low, kind, name, left, width - right);
    const bottom = panels.at(-1)[1];
    let taken = -Infinity;
    for (const labelled of budgets) {
      const share = pool ? `${Number(((100 * labelled) / pool).toPrecision(3))} %` : "";
      const half = 4 * Math.max(String(labelled).length, share.length) + 3;
      if (this.x(labelled) - half < taken) continue;
      svg(root, "text", { x: this.x(labelled), y: bottom + 17, "text-anchor": "middle" }, labelled);
      if (share) svg(root, "text", { x: this.x(labelled), y: bottom + 32, "text-anchor": "middle" }, share);
      taken = this.x(labelled) + half;
    }
    const axis = pool ? `labelled images (% of ${pool} training images)` : "labelled images";
    svg(root, "text", { x: (start + end) / 2, y: height - 8, "text-anchor": "middle" }, axis);
    this.line = svg(root, "line", { y1: top, y2: bottom, class: "now" });
    for (const event of ["pointermove", "pointerdown"])
      root.addEventListener(event, ({ offsetX }) => {
        const distance = (labelled) => Math.abs(this.x(labelled) - offsetX);
        const nearest = budgets.reduce((best, labelled) => (distance(labelled) < distance(best) ? labelled : best));
        if (budgets.indexOf(nearest) !== this.now) this.move(budgets.indexOf(nearest));
      });
    this.plot.replaceChildren(root);
    this.move(this.now);
    this.focus(this.focused);
  }

  panel(root, visible, high, low, kind, name, left, right) {
    const apart = kind === "differences"; // methods stand next to each other, so that intervals can be read
    const shown = visible.filter((curve) => curve[kind].length);
    const banded = shown.length <= BANDS;
    const points = shown.flatMap((curve) => curve[kind]);
    const full = apart ? [] : this.data.full; // with all training images, whatever the number of labelled ones
    const means = points.map((point) => point.mean).concat(apart ? [0] : full.map(({ mean }) => mean));
    const most = Math.max(...means.map(Math.abs), 0.1);
    const reach = points.flatMap((p) => (apart ? [p.low ?? p.mean, p.high ?? p.mean] : banded ? [p.mean - p.std, p.mean + p.std] : []));
    const limited = apart ? reach.map((value) => Math.max(-4 * most, Math.min(4 * most, value))) : reach; // two seeds reach far
    const all = means.concat(limited);
    const [least, greatest] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
    const margin = 0.04 * (greatest - least || 1);
    const [from, to] = [least - margin, greatest + margin];
    const y = (value) => low - ((Math.max(from, Math.min(to, value)) - from) / (to - from)) * (low - high);
    svg(root, "text", { x: 0, y: high - 10, class: "name" }, name);
    for (const [value, text] of ticks(from, to, 5)) {
      svg(root, "line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" });
      svg(root, "text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, text.replace("-", "\u2212"));
    }
    if (apart) svg(root, "line", { x1: left, x2: right, y1: y(0), y2: y(0), class: "zero" });
    for (const { mean } of full) svg(root, "path", { d: `M${left} ${y(mean)}H${right}`, class: "full" });
    const steps = this.data.budgets.slice(1).map((labelled, index) => this.x(labelled) - this.x(this.data.budgets[index]));
    const room = apart ? 0.7 * Math.min(...steps, 90) : 0;
    shown.forEach((curve, index) => {
      const number = this.numbers.get(curve);
      const group = svg(root, "g", { class: style(number) });
      this.groups.get(curve).push(group);
      const shift = room * ((index + 0.5) / shown.length - 0.5);
      const at = (point) => this.x(point.labelled) + shift;
      const path = (list) => list.map(([x, value], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y(value).toFixed(1)}`).join("");
      if (!apart) {
        const spread = curve.points.filter((point) => point.std !== null);
        if (banded && spread.length > 1) {
          const edge = (sign) => spread.map((point) => [at(point), point.mean + sign * point.std]);
          svg(group, "path", { d: `${path([...edge(1), ...edge(-1).reverse()])}Z`, class: "band" });
        }
        svg(group, "path", { d: path(curve.points.map((point) => [at(point), point.mean])), class: "line" });
      }
      for (const point of curve[kind]) {
        if (apart && point.low !== null)
          svg(group, "line", { x1: at(point), x2: at(point), y1: y(point.low), y2: y(point.high) });
        svg(group, "path", { d: MARKS[number % 5], class: "mark", transform: `translate(${at(point)} ${y(point.mean)})` });
      }
    });
  }
}

for (const box of document.querySelectorAll(".chart"))
  new Chart(box, JSON.parse(document.getElementById(box.dataset.curves).textContent));
