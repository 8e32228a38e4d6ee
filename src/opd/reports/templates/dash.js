(() => {
  const INTERVAL = 2000;
  const get = (id) => document.getElementById(id);
  const fields = () => new URLSearchParams(location.hash.slice(1));
  const percent = (v) => (v === null ? "\u2013" : `${(100 * v).toFixed(1)}%`);
  const duration = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
  const ask = async (path, method = "GET") => {
    const answer = await fetch(path, { method, headers: { "X-Opd-Token": fields().get("token") ?? "" } });
    if (answer.status === 401) throw new Error("The token in the address is wrong: copy the whole address that opd dash printed.");
    if (!answer.ok) throw new Error("This run is gone.");
    return answer.json();
  };
  let run = null;  // what the page has of the selected run
  const charts = new Map();
  const rowOf = new Map();
  const list = (runs) => {
    const ul = get("runs"), names = new Set(runs.map((r) => r.id));
    for (const [id, row] of rowOf) if (!names.has(id)) { row.remove(); rowOf.delete(id); }
    runs.forEach((r, i) => {
      let li = rowOf.get(r.id);
      if (!li) {
        li = make("li");
        const button = make("button");
        button.type = "button";
        button.append(make("span"), make("small"), make("small"));
        button.addEventListener("click", () => select(r.id));
        li.append(button);
        rowOf.set(r.id, li);
      }
      if (ul.children[i] !== li) ul.insertBefore(li, ul.children[i] ?? null);
      const button = li.firstChild, [name, state, accuracy] = button.children;
      const alarms = r.alarms ? `, ${r.alarms} ${r.alarms === 1 ? "alarm" : "alarms"}` : "";
      const texts = [r.name, `${r.state}, step ${r.done.toLocaleString("en")} of ${r.planned.toLocaleString("en")}${alarms}`,
        r.set ? `${r.set}: ${percent(r.before)} \u2192 ${percent(r.latest)}, teacher ${percent(r.teacher)}` : "not evaluated"];
      [name, state, accuracy].forEach((node, k) => { if (node.textContent !== texts[k]) node.textContent = texts[k]; });
      button.setAttribute("aria-current", String(r.id === fields().get("run")));
    });
    get("status").textContent = runs.length ? "" : "no runs yet";
    if (!fields().get("run") && runs.length) select(runs[0].id);
  };
  const select = (id) => {
    const next = fields();
    next.set("run", id);
    history.replaceState(null, "", `#${next}`);
    for (const [name, li] of rowOf) li.firstChild.setAttribute("aria-current", String(name === id));
    run = null;
    charts.forEach((chart) => chart.end());
    charts.clear();
    get("charts").replaceChildren();
    get("message").textContent = "";
    for (const id of ["rollouts", "settings"]) if (get(id).open) fill(id);
    poll();
  };
  const set = (id, text) => { if (get(id).textContent !== text) get(id).textContent = text; };
  const show = (data) => {
    const from = run && run.epoch === data.epoch ? data.from : 0;
    run = data;
    get("run").hidden = false;
    set("name", data.name);
    header(data);
    data.charts.forEach((spec, i) => {
      let chart = charts.get(spec.key);
      if (chart) { chart.mark(data.marks); chart.update(spec, from); return; }
      chart = new Chart(spec);
      charts.set(spec.key, chart);
      chart.mark(data.marks);
      get("charts").insertBefore(chart.root, get("charts").children[i] ?? null);
    });
    alarms(data.alarm_rows, data.alarms);
  };
  let alarmRows = [];  // that the page shows
  const alarms = (rows, count) => {
    const left = rows.length < count ? `, the newest ${rows.length}` : "", body = get("alarms").querySelector("tbody");
    const title = `Alarms: ${count}${left}`, summary = get("alarms").querySelector("summary");
    if (summary.textContent !== title) summary.textContent = title;
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    const grown = rows.length >= alarmRows.length && same(rows.slice(0, alarmRows.length), alarmRows);
    if (!grown) { body.replaceChildren(); alarmRows = []; }
    for (const cells of rows.slice(alarmRows.length)) {
      const row = body.insertRow();
      cells.forEach((text) => row.insertCell().append(String(text)));
    }
    alarmRows = rows;
  };
  const header = (data) => {
    get("bar").max = data.planned || 1;
    get("bar").value = data.done;
    const left = data.state !== "running" || (data.left ?? null) === null ? "" : `, about ${duration(data.left)} left`;
    set("steps", `${data.state}, step ${data.done.toLocaleString("en")} of ${data.planned.toLocaleString("en")}${left}${data.phase ? `, ${data.phase}` : ""}`);
    get("stop").disabled = data.state !== "running";
    get("continue").disabled = data.state !== "stopped";
  };
  const fill = async (id) => {
    const name = fields().get("run");
    if (!name) return;
    const data = await ask(`/api/${id}/${encodeURIComponent(name)}`);
    if (id === "settings") {
      const rows = data.map(([key, value]) => { const tr = make("tr"); tr.append(make("td", key), make("td", value)); return tr; });
      get("settings").querySelector("tbody").replaceChildren(...rows);
      return;
    }
    get("rollouts").querySelector("summary").textContent = data.step === null ? "Newest rollouts" : `Newest rollouts: step ${data.step}`;
    const samples = data.rollouts.map((r) => {
      const box = make("div", undefined, "sample");
      box.append(make("div", r.question, "said"), make("p", `${r.tokens} ${r.tokens === 1 ? "token" : "tokens"}${r.answer ? `, ground truth ${r.answer}` : ""}`, "note"), make("pre", r.text + (r.left_out ? `\n[${r.left_out} characters left out]` : "")));
      return box;
    });
    get("rollouts").querySelector("div").replaceChildren(...samples);
  };
  for (const id of ["rollouts", "settings"]) get(id).addEventListener("toggle", () => { if (get(id).open) fill(id).catch(fail); });
  const act = (kind) => async () => {
    try { set("message", (await ask(`/api/${kind}/${encodeURIComponent(fields().get("run"))}`, "POST")).message); } catch (error) { fail(error); }
  };
  get("stop").addEventListener("click", act("stop"));
  get("continue").addEventListener("click", act("continue"));
  const fail = (error) => set("status", error instanceof TypeError ? "opd dash does not answer: it was ended, or this machine sleeps." : error.message);
  const poll = async () => {
    const name = fields().get("run");
    if (!name) return;
    const query = run ? `?have=${run.done}&version=${run.version}&epoch=${run.epoch}` : "";
    const data = await ask(`/api/run/${encodeURIComponent(name)}${query}`);
    if (name !== fields().get("run")) return;
    const start = performance.now();
    if (data.unchanged) { if (run && run.state !== data.state) header(Object.assign(run, { state: data.state })); } else show(data);
    performance.measure("opd-update", { start, end: performance.now() });
  };
  const tick = async () => {
    try {
      list(await ask("/api/runs"));
      await poll();
    } catch (error) { fail(error); }
    setTimeout(tick, INTERVAL);
  };
  addEventListener("hashchange", () => { run = null; poll().catch(fail); });
  tick();
})();
