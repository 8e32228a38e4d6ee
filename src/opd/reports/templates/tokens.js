"use strict";
(() => {
  const source = document.getElementById("token-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const percent = (p) => (p >= 0.0001 ? (100 * p).toFixed(p < 0.1 ? 2 : 1) + "%" : "<0.01%");
  const text = (id) => data.texts[id].replace(/ /g, "\u2423").replace(/\n/g, "\u23ce");
  const nats = (x) => `${x > 0 ? "+" : ""}${x.toFixed(2)} nats`.replace("-", "\u2212");
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
  const show = (row) => {
    panel.replaceChildren();
    const advantage = row.a === null ? "advantage unknown" : `advantage ${nats(row.a)}`;
    panel.append(make("p", `Token ${row.i + 1}: ${text(row.t)}  ${advantage}`));
    panel.append(make("p", `Probability under the student: ${percent(row.p)}; the student's entropy at this position: ${row.h.toFixed(2)} nats.`, "note"));
    const table = make("table");
    const head = table.insertRow();
    const teacher = row.r === undefined ? "teacher" : "teacher, on the student's top k alone";
    head.append(make("th", "student"), make("th", row.q ? teacher : "teacher: top k not kept"));
    for (let i = 0; i < Math.max(row.s.length, (row.q || []).length); i++)
      table.insertRow().append(cell(row.s[i], row.t, "--n1"), cell((row.q || [])[i], row.t, "--p1"));
    panel.append(table);
    if (row.m !== undefined)
      panel.append(make("p", `The student's top k holds ${percent(row.m)} of the teacher's probability.`, row.m < data.low ? "low" : "note"));
    if (row.m !== undefined && row.l !== undefined)
      panel.append(make("p", row.l === null ? "The token is not in the student's top k." : `Renormalised on the student's top k, the advantage is ${nats(row.l)}.`, "note"));
    if (row.r !== undefined)
      panel.append(make("p", `Both renormalised on the student's top k, which holds ${percent(row.r)} of the student's probability; how much of the teacher's was not kept.`, "note"));
  };
  const panel = document.querySelector(".panel");
  const spans = [...document.querySelectorAll(".rollout .t")];
  const rows = data.rollouts.flat();
  let current = 0;
  const select = (i, focus) => {
    spans[current].classList.remove("on");
    spans[current].tabIndex = -1;
    current = Math.max(0, Math.min(spans.length - 1, i));
    spans[current].classList.add("on");
    spans[current].tabIndex = 0;
    if (focus) spans[current].focus();
    show(rows[current]);
  };
  const first = data.rollouts[0];
  let lowest = 0;
  first.forEach((row, i) => { if ((row.a ?? 0) < (first[lowest].a ?? 0)) lowest = i; });
  panel.hidden = false;
  select(lowest, false);
  const indexOf = (event) => spans.indexOf(event.target.closest?.(".t"));
  for (const kind of ["mouseover", "click", "focusin"])
    document.addEventListener(kind, (event) => {
      const i = indexOf(event);
      if (i >= 0 && i !== current) select(i, false);
    });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && indexOf(event) >= 0) { event.preventDefault(); select(current + step, true); }
  });
})();
