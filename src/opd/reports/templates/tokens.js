(async () => {
  const source = document.getElementById("token-data");
  if (!source) return;
  const data = await unpack(source);
  const percent = (p) => (p >= 0.0001 ? (100 * p).toFixed(p < 0.1 ? 2 : 1) + "%" : "<0.01%");
  const text = (id) => data.texts[id].replace(/ /g, "\u2423").replace(/\n/g, "\u23ce");
  const nats = (x) => `${x > 0 ? "+" : ""}${x.toFixed(2)} nats`.replace("-", "\u2212");
  const panel = document.querySelector(".panel");
  const rowOf = new Map();
  let spans = [];
  let current = null;
  let pinned = false;
  const cell = (pair, sampled, colour) => {
    const td = make("td");
    if (!pair) return td;
    const line = make("span", undefined, pair[0] === sampled ? "sampled" : "");
    const width = (100 * pair[1]).toFixed(1) + "%";
    line.style.background = `linear-gradient(90deg, var(${colour}) ${width}, transparent ${width})`;
    line.append(make("code", text(pair[0])), make("span", percent(pair[1])));
    td.append(line);
    return td;
  };
  const tops = (row) => {
    if (!row.s) return make("p", "The top tokens of this position are in the folder rollouts/ of the run.", "note");
    const table = make("table");
    const head = table.insertRow();
    const teacher = row.r === undefined ? "teacher" : "teacher, on the student's top k alone";
    head.append(make("th", "student"), make("th", row.q ? teacher : "teacher: top k not kept"));
    for (let i = 0; i < Math.max(row.s.length, (row.q || []).length); i++)
      table.insertRow().append(cell(row.s[i], row.t, "--n1"), cell((row.q || [])[i], row.t, "--p1"));
    return table;
  };
  const show = (row) => {
    panel.hidden = false;
    const close = make("button", pinned ? "unpin" : "close", "close");
    close.type = "button";
    close.addEventListener("click", () => { const was = pinned; pin(false); if (!was) panel.hidden = true; });
    const advantage = row.a === null ? "advantage unknown" : `advantage ${nats(row.a)}`;
    const entropy = row.h === undefined ? "" : `; the student's entropy at this position: ${row.h.toFixed(2)} nats`;
    panel.replaceChildren(close, make("p", `Token ${row.i + 1}: ${text(row.t)} \u00b7 ${advantage}`),
      make("p", `Probability under the student: ${percent(row.p)}${entropy}.`, "note"), tops(row));
    const mass = row.m ?? undefined;
    if (mass !== undefined)
      panel.append(make("p", `The student's top k holds ${percent(mass)} of the teacher's probability.`, mass < data.low ? "low" : "note"));
    if (mass !== undefined && row.l !== undefined)
      panel.append(make("p", row.l === null ? "The token is not in the student's top k." : `Renormalised on the student's top k, the advantage is ${nats(row.l)}.`, "note"));
    if (row.r !== undefined)
      panel.append(make("p", `Both renormalised on the student's top k, which holds ${percent(row.r)} of the student's probability; how much of the teacher's was not kept.`, "note"));
  };
  // On a narrow screen the panel lies over the lower part of the text.
  const uncover = (span) => {
    const token = span.getBoundingClientRect(), cover = panel.getBoundingClientRect();
    if (token.bottom > cover.top && token.top < cover.bottom && token.left < cover.right && token.right > cover.left)
      scrollBy(0, token.bottom - cover.top + 12);
  };
  const select = (span, focus) => {
    if (!span) return;
    if (current) {
      current.classList.remove("on", "pin");
      current.tabIndex = -1;
      current.removeAttribute("aria-selected");
    }
    current = span;
    span.classList.add("on");
    span.classList.toggle("pin", pinned);
    span.tabIndex = 0;
    span.setAttribute("aria-selected", "true");
    if (focus) span.focus();
    show(rowOf.get(span));
    if (focus) uncover(span);
  };
  const pin = (on) => { pinned = on; select(current, false); };
  const adopt = (list, rows) => {  // the spans of one run of tokens become options of a list
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-orientation", "horizontal");
    list.setAttribute("aria-label", list.closest(".rollout").querySelector("h3").firstChild.textContent.trim() + ": tokens");
    list.querySelectorAll(".t").forEach((span, i) => {
      span.setAttribute("role", "option");
      span.tabIndex = -1;
      rowOf.set(span, rows[i]);
    });
  };
  const shade = (a) => {
    if (a === null) return "out";
    const size = data.edges.filter((edge) => Math.abs(a) >= edge).length;
    return size ? (a > 0 ? "p" : "n") + size : "z";
  };
  const unfold = (button, folded, start) => {
    const list = make("p", undefined, "tokens");
    const rows = folded.map(([t, a, p, m], k) => ({ i: start + k, t, a, p, m: m ?? undefined }));
    for (const row of rows) {
      const span = make("span", data.texts[row.t].replace(/\n/g, "\u23ce\n"), `t ${shade(row.a)}${row.m < data.low ? " low" : ""}`);
      span.title = row.a === null ? "outside the student's top k" : nats(row.a);
      list.append(span, make("wbr"));
    }
    button.replaceWith(list);
    adopt(list, rows);
    collect();
    select(list.querySelector(".t"), true);
  };
  const collect = () => { spans = [...document.querySelectorAll(".rollout .t")]; };
  document.querySelectorAll(".rollout").forEach((article, r) => {
    const lists = [...article.querySelectorAll(".tokens")];
    let first = 0;
    for (const list of lists) {
      const count = list.querySelectorAll(".t").length;
      adopt(list, data.rollouts[r].slice(first, first + count));
      first += count;
    }
    const button = article.querySelector(".more");
    if (button) {
      const start = lists[0].querySelectorAll(".t").length;
      button.addEventListener("click", () => unfold(button, data.folded[r], start));
    }
  });
  collect();
  const first = data.rollouts[0];
  let lowest = 0;
  first.forEach((row, i) => { if ((row.a ?? 0) < (first[lowest].a ?? 0)) lowest = i; });
  select(spans[lowest], false);
  const tokenOf = (event) => event.target.closest?.(".rollout .t");
  document.addEventListener("mouseover", (event) => {
    const span = tokenOf(event);
    if (span && span !== current && !pinned) select(span, false);
  });
  document.addEventListener("focusin", (event) => {
    const span = tokenOf(event);
    if (span && span !== current) select(span, false);
  });
  document.addEventListener("click", (event) => {
    const span = tokenOf(event);
    if (!span) return;
    pinned = !(pinned && span === current);
    select(span, true);
  });
  // The token nearest to the same place one line above or below.
  const vertical = (down) => {
    const box = current.getBoundingClientRect();
    let best = null, distance = Infinity;
    const at = spans.indexOf(current);
    for (let i = at + (down ? 1 : -1), line = null; spans[i]; i += down ? 1 : -1) {
      const other = spans[i].getBoundingClientRect();
      if (Math.abs(other.top - box.top) < 4) continue;
      line ??= other.top;
      if (Math.abs(other.top - line) > 4) break;
      const d = Math.abs(other.left - box.left);
      if (d < distance) [best, distance] = [spans[i], d];
    }
    return best;
  };
  document.addEventListener("keydown", (event) => {
    if (!tokenOf(event)) return;
    const at = spans.indexOf(current);
    const inList = [...current.closest(".tokens").querySelectorAll(".t")];
    const next = {
      ArrowRight: () => spans[at + 1], ArrowLeft: () => spans[at - 1],
      ArrowDown: () => vertical(true), ArrowUp: () => vertical(false),
      Home: () => inList[0], End: () => inList[inList.length - 1],
    }[event.key];
    if (next) { event.preventDefault(); select(next() ?? null, true); }
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(!pinned); }
    if (event.key === "Escape") pin(false);
  });
})();
