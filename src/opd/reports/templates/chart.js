const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes, parent) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (parent) parent.append(node);
  return node;
};
const MARGIN = { left: 54, right: 10, top: 8, bottom: 34 };
const HEIGHT = 190;
const niceStep = (span, count) => {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
};
const ticks = (low, high, count) => {
  if (!(high > low)) return [low];
  const step = niceStep(high - low, count), out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
};
const firstAtLeast = (xs, x) => {
  let low = 0, high = xs.length;
  while (low < high) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid + 1; else high = mid; }
  return low;
};
// Charts are drawn when they are near the screen and have a width; nothing asks the page for one.
const onScreen = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  target.chart.visible = isIntersecting;
  target.chart.refresh();
}), { rootMargin: "200px" });
const sized = new ResizeObserver((entries) => entries.forEach(({ target, contentRect }) => {
  const chart = target.closest("figure").chart, width = Math.max(200, Math.round(contentRect.width));
  if (contentRect.width && chart.width !== width) { chart.width = width; chart.dirty = true; chart.refresh(); }
}));
addEventListener("beforeprint", () => document.querySelectorAll("figure.chart").forEach((figure) => figure.chart.width && figure.chart.redraw()));
// A line chart whose lines grow: hover or arrows read a step, dragging zooms, Escape shows all.
class Chart {
  constructor(spec) {
    this.lines = new Map();
    this.range = null;
    this.at = null;
    this.root = make("figure", undefined, "chart");
    const caption = make("figcaption");
    this.legend = make("ul", undefined, "legend");
    caption.append(make("b", spec.title), this.legend);
    const plot = make("div", undefined, "plot");
    this.svg = draw("svg", { role: "img", tabindex: 0, "aria-label": `${spec.title}: arrow keys read a step` }, plot);
    this.readout = make("p", undefined, "readout");
    this.root.append(caption, plot, this.readout);
    if (spec.note) this.root.append(make("p", spec.note, "note"));
    this.svg.addEventListener("pointermove", (e) => this.move(e));
    this.svg.addEventListener("pointerleave", () => { if (!this.drag) { this.at = null; this.read(); } });
    this.svg.addEventListener("pointerdown", (e) => { this.svg.setPointerCapture(e.pointerId); this.drag = { from: this.stepAt(e), to: null }; });
    this.svg.addEventListener("pointerup", () => this.release());
    this.svg.addEventListener("dblclick", () => this.zoom(null));
    this.svg.addEventListener("keydown", (e) => this.key(e));
    this.root.chart = this;
    this.visible = false;
    this.update(spec);
    onScreen.observe(this.root);
    sized.observe(this.svg);
  }
  update(spec, from = 0) {
    if (this.spec && spec.level !== this.spec.level) this.dirty = true;
    this.spec = spec;
    spec.lines.forEach((line, i) => {
      const old = this.lines.get(line.name);
      if (!old || spec.whole || from === 0) {
        if (old && JSON.stringify([old.x, old.y, old.low, old.high]) === JSON.stringify([line.x, line.y, line.low, line.high])) return;
        this.lines.set(line.name, { ...line, style: i + 1 });
        this.frame = null;
        this.dirty = true;
        return;
      }
      const keep = firstAtLeast(old.x, from);
      if (old.x.length - keep === line.x.length && line.y.every((y, k) => y === old.y[keep + k])) return;
      old.x.length = keep; old.y.length = keep;
      for (let k = 0; k < line.x.length; k++) { old.x.push(line.x[k]); old.y.push(line.y[k]); }
      this.dirty = true;
    });
    const entries = spec.lines.map((l, i) => [`line-${i + 1}`, l.label]);
    if (spec.level !== undefined && spec.level !== null) entries.push(["level", "teacher"]);
    if (spec.band) entries.push(["healthy", `${spec.band[0]} to ${spec.band[1]}: published range`]);
    const legend = entries.map(([style, label]) => { const li = make("li"); li.append(make("i", undefined, `key ${style}`), label); return li; });
    if (this.legend.children.length !== (entries.length > 1 || spec.whole ? legend.length : 0))
      this.legend.replaceChildren(...(entries.length > 1 || spec.whole ? legend : []));
    this.refresh();
  }
  end() { onScreen.unobserve(this.root); sized.unobserve(this.svg); }
  refresh() { if (this.dirty && this.visible && this.width) this.redraw(); }
  mark(steps) {
    if (String(steps) === String(this.marks)) return;
    this.marks = steps;
    this.dirty = true;
    this.refresh();
  }
  text(value) {
    const size = Math.abs(value);
    if (this.spec.percent) return `${(100 * value).toFixed(size !== 0 && size < 0.001 ? 3 : 1)}%`.replace("-", "\u2212");
    const shown = size !== 0 && (size < 0.001 || size >= 1e7) ? value.toExponential(2)
      : size >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(4)));
    return shown.replace("-", "\u2212");
  }
  // Range of steps that is shown: as zoomed, or all, to the next round number so that it rarely moves.
  steps_shown(all) {
    if (this.range) return this.range;
    const first = Math.min(...all.map((l) => l.x[0] ?? 0)), last = Math.max(...all.map((l) => l.x[l.x.length - 1] ?? 1));
    if (!(last > first)) return [first, first + 1];
    const unit = Math.max(1, niceStep(last - first, 40));
    return [first, Math.ceil(last / unit) * unit];
  }
  // Range of values that is shown: rounded outwards, for the same reason.
  values_shown(all, x0, x1) {
    let low = Infinity, high = -Infinity;
    const see = (v) => { if (v < low) low = v; if (v > high) high = v; };
    for (const l of all) {
      const a = firstAtLeast(l.x, x0), b = Math.min(l.x.length, firstAtLeast(l.x, x1) + 1);
      for (let i = a; i < b; i++) { see(l.y[i]); if (l.low) { see(l.low[i]); see(l.high[i]); } }
    }
    const level = this.spec.level ?? null;
    if (level !== null) see(level);
    if (!(low <= high)) [low, high] = [0, 1];
    const margin = 0.06 * (high - low) || 0.06 * Math.abs(high) || 1;
    low -= margin; high += margin;
    const unit = niceStep(high - low, 40);
    [low, high] = [Math.floor(low / unit) * unit, Math.ceil(high / unit) * unit];
    if (this.spec.percent) [low, high] = [Math.max(-0.02, low), Math.min(1.02, high)];
    return high > low ? [low, high] : [low, low + 0.1];
  }
  redraw() {
    this.dirty = false;
    const all = [...this.lines.values()];
    const [x0, x1] = this.steps_shown(all), [low, high] = this.values_shown(all, x0, x1);
    const frame = JSON.stringify([this.width, x0, x1, low, high, all.map((l) => l.name), this.marks, this.spec.band, this.spec.level]);
    if (frame !== this.frame) {
      this.frame = frame;
      const px = (x) => MARGIN.left + ((x - x0) / (x1 - x0)) * (this.width - MARGIN.left - MARGIN.right);
      const py = (y) => HEIGHT - MARGIN.bottom - ((y - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
      Object.assign(this, { x0, x1, px, py });
      this.axes(low, high);
    }
    for (const l of all) this.line(l);
    this.read();
  }
  // Everything but the lines; they get a group each.
  axes(low, high) {
    const { x0, x1, px, py } = this, parts = document.createDocumentFragment();
    const bottom = HEIGHT - MARGIN.bottom, right = this.width - MARGIN.right, level = this.spec.level ?? null;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    if (this.spec.band) {
      const [a, b] = this.spec.band.map((v) => Math.min(bottom, Math.max(MARGIN.top, py(v))));
      if (a > b) draw("rect", { class: "band", x: MARGIN.left, y: b, width: right - MARGIN.left, height: a - b }, parts);
    }
    const digits = Math.max(0, -Math.floor(Math.log10(100 * niceStep(high - low, 4)) + 1e-9));
    for (const y of ticks(low, high, 4)) {
      draw("line", { class: "grid", x1: MARGIN.left, x2: right, y1: py(y), y2: py(y) }, parts);
      draw("text", { x: MARGIN.left - 5, y: py(y) + 4, "text-anchor": "end" }, parts).textContent = this.spec.percent ? `${(100 * y).toFixed(digits)}%` : this.text(y);
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(this.width / 80)))) {
      if (x !== Math.round(x)) continue;
      draw("line", { class: "grid", x1: px(x), x2: px(x), y1: MARGIN.top, y2: bottom }, parts);
      draw("text", { x: px(x), y: bottom + 14, "text-anchor": "middle" }, parts).textContent = x.toLocaleString("en");
    }
    draw("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }, parts);
    draw("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, parts).textContent = "step";
    draw("text", { x: MARGIN.left, y: HEIGHT - 4 }, parts).textContent = this.spec.unit;
    for (const x of this.marks ?? []) if (x >= x0 && x <= x1) draw("line", { class: "mark", x1: px(x), x2: px(x), y1: MARGIN.top, y2: bottom }, parts);
    if (level !== null) draw("line", { class: "level", x1: MARGIN.left, x2: right, y1: py(level), y2: py(level) }, parts);
    for (const l of this.lines.values()) { l.group = draw("g", {}, parts); l.path = null; }
    this.cross = draw("line", { class: "cross", y1: MARGIN.top, y2: bottom, visibility: "hidden" }, parts);
    this.box = draw("rect", { class: "zoom", y: MARGIN.top, height: bottom - MARGIN.top, width: 0, x: 0 }, parts);
    this.svg.replaceChildren(parts);
  }
  line(l) {
    const { px, py } = this, from = Math.max(0, firstAtLeast(l.x, this.x0) - 1), to = Math.min(l.x.length, firstAtLeast(l.x, this.x1) + 1);
    const point = (x, y) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
    const out = [], room = Math.round(this.width);
    if (to - from <= 2 * room) for (let i = from; i < to; i++) out.push(point(l.x[i], l.y[i]));
    else {  // lowest and highest value of every column of pixels
      const size = (to - from) / room;
      for (let c = 0; c < room; c++) {
        const a = from + Math.floor(c * size), b = Math.min(to, from + Math.floor((c + 1) * size));
        let lo = a, hi = a;
        for (let i = a; i < b; i++) { if (l.y[i] < l.y[lo]) lo = i; if (l.y[i] > l.y[hi]) hi = i; }
        for (const i of lo < hi ? [lo, hi] : [hi, lo]) out.push(point(l.x[i], l.y[i]));
      }
    }
    if (l.low) this.intervals(l, from, to, point);
    if (!out.length) return;
    l.path ??= draw("path", { class: `l${l.style}` }, l.group);
    l.path.setAttribute("d", "M" + out.join("L") + (out.length === 1 ? "h0.1" : ""));
  }
  // Band, error bars and dots of a line with few points: drawn anew.
  intervals(l, from, to, point) {
    const { px, py } = this, parts = document.createDocumentFragment(), up = [], down = [];
    for (let i = from; i < to; i++) { up.push(point(l.x[i], l.high[i])); down.unshift(point(l.x[i], l.low[i])); }
    if (up.length > 1) draw("path", { class: `interval l${l.style}`, d: `M${[...up, ...down].join("L")}Z` }, parts);
    for (let i = from; i < to; i++) {
      draw("path", { class: `l${l.style}`, d: `M${point(l.x[i], l.low[i])}L${point(l.x[i], l.high[i])}` }, parts);
      draw("circle", { class: `l${l.style}`, cx: px(l.x[i]), cy: py(l.y[i]), r: 2.6 }, parts);
    }
    l.group.replaceChildren(parts);
    l.path = null;
  }
  steps() { return [...this.lines.values()].reduce((a, b) => (b.x.length > a.length ? b.x : a), []); }
  stepAt(event) {
    const box = this.svg.getBoundingClientRect(), inner = this.width - MARGIN.left - MARGIN.right;
    const x = ((event.clientX - box.left) * this.width) / box.width;
    return this.x0 + Math.min(1, Math.max(0, (x - MARGIN.left) / inner)) * (this.x1 - this.x0);
  }
  nearest(x) {
    const xs = this.steps(), i = firstAtLeast(xs, x);
    return i > 0 && (i === xs.length || x - xs[i - 1] < xs[i] - x) ? i - 1 : i;
  }
  move(event) {
    const x = this.stepAt(event), xs = this.steps();
    this.at = xs.length ? xs[this.nearest(x)] : null;
    if (this.drag) {
      this.drag.to = x;
      const [a, b] = [this.drag.from, x].map(this.px).sort((p, q) => p - q);
      this.box.setAttribute("x", a); this.box.setAttribute("width", b - a);
    }
    this.read();
  }
  release() {
    const d = this.drag;
    this.drag = null;
    if (d && d.to !== null && Math.abs(this.px(d.from) - this.px(d.to)) > 6) this.zoom([Math.min(d.from, d.to), Math.max(d.from, d.to)]);
    else this.box.setAttribute("width", 0);
  }
  zoom(range) { this.range = range; this.redraw(); }
  key(event) {
    const xs = this.steps(), step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") { this.at = null; this.zoom(null); }
    if (!step || !xs.length) return;
    event.preventDefault();
    const i = this.at === null ? xs.length - 1 : Math.min(xs.length - 1, Math.max(0, this.nearest(this.at) + step));
    this.at = xs[i];
    this.read();
  }
  read() {
    if (!this.cross) return;  // not drawn yet
    this.cross.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    const all = [...this.lines.values()], at = this.at;
    const value = (l) => {
      const i = at === null ? l.x.length - 1 : firstAtLeast(l.x, at);
      if (i < 0 || (at !== null && l.x[i] !== at)) return null;
      const interval = l.low ? ` (${this.text(l.low[i])} to ${this.text(l.high[i])})` : "";
      return `${all.length > 1 ? l.label + " " : ""}${this.text(l.y[i])}${interval}`;
    };
    const texts = all.map(value).filter(Boolean);
    if (this.spec.level !== undefined && this.spec.level !== null) texts.push(`teacher ${this.text(this.spec.level)}`);
    const last = Math.max(...all.map((l) => l.x[l.x.length - 1] ?? 0));
    if (at !== null) { this.cross.setAttribute("x1", this.px(at)); this.cross.setAttribute("x2", this.px(at)); }
    const text = `step ${(at ?? last).toLocaleString("en")}: ${texts.join(", ")}`;
    this.readout.replaceChildren(text);
    if (this.range) {
      const all = make("button", "show all steps");
      all.type = "button";
      all.addEventListener("click", () => this.zoom(null));
      this.readout.append(all);
    }
  }
}
