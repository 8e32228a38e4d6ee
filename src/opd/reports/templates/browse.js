(() => {
  const FIRST = 10; // rows: the sections below stay in reach
  const PAGE = 40;
  const LONG = 150;
  const mark = (ok) => (ok === null ? "" : ok ? "\u2713 " : "\u2717 ");
  const word = (ok) => (ok === null ? "" : ok ? "correct" : "wrong");
  const snippet = (text) => (text.length <= LONG ? text : "\u2026" + text.slice(-LONG));
  const turn = (role, text) => {
    const div = make("div", undefined, "turn");
    div.append(make("span", role, "who"), make("div", text, "said"));
    return div;
  };
  const fold = (title, nodes) => {
    const box = make("details");
    box.append(make("summary", title), ...nodes);
    return box;
  };
  const wholePrompt = (p) => {
    const box = make("div", undefined, "prompt");
    if (p.e.length) box.append(fold("earlier: " + p.e.map((t) => t[0]).join(", "), p.e.map((t) => turn(...t))));
    if (p.b) box.append(fold(`its first ${p.b.length.toLocaleString("en")} characters`, [make("div", p.b, "said")]));
    box.append(turn(p.r, p.q), ...p.s.map((t) => turn(t[0] + " begins", t[1])));
    return box;
  };
  const setUp = async (root) => {
    const data = await unpack(root.querySelector("script"));
    const id = (row) => `${data.name}-${row.n}`;
    const state = { tag: "", sort: data.sorts[0][0], words: "", shown: FIRST };
    const haystack = data.rows.map((row) => {
      const p = data.prompts[row.p];
      return [row.l, p.q, p.a, ...row.t.map((t) => (t ? t[0] : ""))].join("\n").toLowerCase();
    });
    const tools = make("div", undefined, "tools");
    const list = make("ul", undefined, "rows");
    const status = make("p", undefined, "note");
    status.setAttribute("role", "status");
    const more = make("button", "", "more");
    more.type = "button";
    const filters = make("div", undefined, "filters");
    filters.setAttribute("role", "group");
    filters.setAttribute("aria-label", "Show");
    const buttons = [["", "all"], ...data.filters].map(([tag, label]) => {
      const count = data.rows.filter((r) => !tag || r.g.includes(tag)).length;
      const button = make("button", `${label} ${count.toLocaleString("en")}`, tag && `tag-${tag}`);
      button.type = "button";
      button.disabled = count === 0;
      button.addEventListener("click", () => { state.tag = tag; state.shown = FIRST; render(); });
      button.dataset.tag = tag;
      return button;
    });
    filters.append(...buttons);
    const search = make("input");
    search.type = "search";
    search.placeholder = "search prompts and answers";
    search.setAttribute("aria-label", "Search prompts and answers");
    search.addEventListener("input", () => { state.words = search.value.toLowerCase(); state.shown = FIRST; render(); });
    const sort = make("select");
    sort.setAttribute("aria-label", "Order");
    for (const [key, label] of data.sorts) {
      const option = make("option", label);
      option.value = key;
      sort.append(option);
    }
    sort.addEventListener("change", () => { state.sort = sort.value; render(); });
    tools.append(filters, search, sort);
    const chosen = () => {
      const kept = data.rows.filter((row, i) =>
        (!state.tag || row.g.includes(state.tag)) && (!state.words || haystack[i].includes(state.words)));
      if (!state.sort) return kept;
      const down = state.sort[0] === "-", key = state.sort.replace("-", "");
      const value = (row) => row.v[key] ?? (down ? -Infinity : Infinity);
      return kept.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)) || 0);
    };
    const open = new Set();
    const body = (row) => {
      const p = data.prompts[row.p];
      const box = make("div", undefined, "whole");
      box.append(wholePrompt(p));
      if (p.a) {
        const truth = make("p", "ground truth: ", "truth");
        truth.append(make("code", p.a));
        box.append(truth);
      }
      const texts = make("div", undefined, "pair");
      row.t.forEach((t, i) => {
        if (!t) return;
        const cell = make("div");
        cell.append(make("span", `${data.columns[i]}: ${[word(t[1]), t[2]].filter(Boolean).join(", ")}`, "who"), make("pre", t[0]));
        texts.append(cell);
      });
      const link = make("a", "link to this row");
      link.href = `#${id(row)}`;
      box.append(texts, link);
      return box;
    };
    const item = (row) => {
      const p = data.prompts[row.p];
      const li = make("li");
      li.id = id(row);
      const head = make("button", undefined, "head");
      head.type = "button";
      const question = make("span", undefined, "question");
      question.append(make("span", snippet(p.q) || row.l), make("small", row.l + (p.a ? ` \u00b7 truth: ${snippet(p.a)}` : "")));
      head.append(question);
      row.t.forEach((t, i) => {
        const cell = make("span", undefined, "cell" + (t && t[1] !== null ? (t[1] ? " right" : " wrong") : ""));
        const label = make("small", data.columns[i] + (t && t[1] !== null ? `: ${mark(t[1])}${word(t[1])}` : t && t[2] ? `: ${t[2]}` : ""));
        cell.append(label, make("span", t ? snippet(t[0]) || "(empty)" : "\u2013"));
        head.append(cell);
      });
      const toggle = (on) => {
        head.setAttribute("aria-expanded", String(on));
        li.querySelector(".whole")?.remove();
        if (on) li.append(body(row));
        open[on ? "add" : "delete"](row.n);
      };
      head.addEventListener("click", () => toggle(head.getAttribute("aria-expanded") !== "true"));
      li.append(head);
      toggle(open.has(row.n));
      return li;
    };
    const render = () => {
      const rows = chosen();
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.tag === state.tag)));
      const shown = rows.slice(0, state.shown);
      list.replaceChildren(...shown.map(item));
      status.textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${rows.length === 1 ? "row" : "rows"}`;
      more.hidden = shown.length === rows.length;
      more.textContent = `show ${Math.min(PAGE, rows.length - shown.length)} more`;
    };
    more.addEventListener("click", () => {
      const next = state.shown;
      state.shown += PAGE;
      render();
      list.children[next]?.querySelector("button").focus();
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (!step || !event.target.matches(".head")) return;
      const next = event.target.closest("li")[step];
      if (next) { event.preventDefault(); next.querySelector(".head").focus(); }
    });
    const visit = () => {
      const name = decodeURIComponent(location.hash.slice(1));
      const row = data.rows.find((r) => id(r) === name);
      if (!row) return;
      Object.assign(state, { tag: "", words: "" });
      search.value = "";
      open.add(row.n);
      state.shown = Math.max(FIRST, chosen().indexOf(row) + 1);
      render();
      const node = document.getElementById(name);
      node.scrollIntoView({ block: "start" });
      node.querySelector(".head").focus({ preventScroll: true });
    };
    root.append(tools, status, list, more);
    render();
    visit();
    addEventListener("hashchange", visit);
  };
  document.querySelectorAll(".browse").forEach(setUp);
})();
