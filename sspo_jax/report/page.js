"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const COLOURS = ["#1f77b4", "#d8632b", "#2f9e62", "#a64ca6", "#b8860b", "#17a2b8", "#d6336c", "#6c757d"];
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash", "longdashdot"];
const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
function table(heads, rows, numbers = []) {
  const cell = (tag, value, place) => element(tag, { class: numbers.includes(place) ? "number" : null }, value);
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head, place) => cell("th", head, place)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((value, place) => cell("td", value, place))))));
}
const percent = (value, digits = 1) => (100 * value).toFixed(digits) + " %";
const short = (value) => value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? value.toFixed(0)
  : Math.abs(value) >= 1e-3 || value === 0 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
const swatch = (number) => element("span", { class: "swatch", style: `background:${COLOURS[number]}` });

// ---- pages

function open(page) {
  document.querySelectorAll("nav button").forEach((tab) => tab.setAttribute("aria-selected", tab.dataset.page === page));
  document.querySelectorAll(".page").forEach((section) => { section.hidden = section.id !== "page-" + page; });
  scrollTo(0, 0);
  if (page === "problems") problems();
  if (page === "clauses") inspector();
}
document.querySelectorAll("nav button").forEach((tab) => tab.addEventListener("click", () => { location.hash = tab.dataset.page; }));
addEventListener("hashchange", () => open(["clauses", "problems"].find((page) => location.hash === "#" + page) || "run"));

// ---- the run

function answers() {
  for (const [place, first] of RUNS[0].findings.entries()) {
    const card = element("div", { class: "answer" }, element("h3", {}, first.question));
    RUNS.forEach((run, number) => {
      const found = run.findings[place];
      if (RUNS.length > 1) card.append(element("p", { class: "run" }, swatch(number), run.name));
      card.append(element("p", {}, found.verdict ? element("b", {}, found.verdict) : null, found.answer));
      if (found.clause && RUNS.length < 3) {
        card.append(element("blockquote", {}, found.clause));
        const go = () => { chosen.run = number; Object.assign(chosen, { step: found.place.step, epoch: found.place.epoch, jump: found.place }); location.hash = "clauses"; };
        card.append(element("button", { onclick: go }, "show it in the clause inspector"));
      }
    });
    $("answers").append(card);
  }
  RUNS.forEach((run) => run.warnings.forEach((warning) => $("warnings").append(element("p", { class: "warning" },
    "⚠ ", RUNS.length > 1 ? run.name + ": " : "", warning.step ? `step ${warning.step}: ` : "", warning.text))));
}
function scores() {
  const interval = (value) => value ? `${percent(value.value)} [${percent(value.low)}, ${percent(value.high)}]` : "–";
  const rows = RUNS.flatMap((run, number) => run.scores.map((score) => [
    element("span", {}, RUNS.length > 1 ? swatch(number) : "", RUNS.length > 1 ? run.name : score.set), ...(RUNS.length > 1 ? [score.set] : []),
    score.kind, interval(score.first), interval(score.last), String(score.steps[1])]));
  if (!rows.length) return;
  const heads = [...(RUNS.length > 1 ? ["run", "set"] : ["set"]), "score", "before", "last, with 95 % interval", "step"];
  $("scores").append(element("h2", {}, "Held-out scores"), table(heads, rows));
  if (!DATA.differences.length) {
    if (RUNS.length > 1) $("differences").append(element("p", { class: "dim" }, "No differences: these runs have no held-out set with the same problems in their last evaluations."));
    return;
  }
  $("differences").append(element("h2", {}, `Differences from ${RUNS[0].name}, last evaluations, paired bootstrap`), table(
    ["run", "set", "score", RUNS[0].name, "this run", "difference, points", "95 % interval", "p"],
    DATA.differences.map((row) => [row.run, row.set, row.kind, percent(row.before), percent(row.after),
      (100 * row.difference).toFixed(1), `${(100 * row.low).toFixed(1)} to ${(100 * row.high).toFixed(1)}`, short(row.p)]), [3, 4, 5, 6, 7]));
}
function about() {
  const names = RUNS[0].about.map(([name]) => name);
  $("about").lastElementChild.append(table(["", ...RUNS.map((run) => run.name)], names.map((name) => [name,
    ...RUNS.map((run) => (run.about.find((fact) => fact[0] === name) || ["", "–"])[1])])));
}
function roofline() {
  RUNS.forEach((run, number) => {
    const found = run.roofline;
    if (!found) return;
    const steps = found.steps, count = steps.length, per = (value, unit) => value === undefined ? "–" : short(value / unit / count);
    const compiled = found.compile_seconds > 0.05 ? ` ${short(found.compile_seconds)} s of it went into compiling programs: profile later steps.` : "";
    $("roofline").append(element("h2", {}, RUNS.length > 1 ? swatch(number) : "", `${RUNS.length > 1 ? run.name + ": " : ""}Share of the roofline, ${count === 1 ? "step" : "steps"} ${count === 1 ? steps[0] : `${steps[0]} to ${steps[count - 1]}`}`),
      element("p", { class: "dim" }, `${found.device}. The bound is what the arithmetic or the memory traffic of the real tokens takes at these rates, whichever is longer.${compiled}`),
      table(["stage", "seconds a step", "TFLOP a step", "GB a step", "bound, seconds", "limited by", "share reached"], found.stages.map((row) => [row.stage.replace("_", " "),
        short(row.seconds / count), per(row.flops, 1e12), per(row.bytes, 1e9), per(row.bound_seconds, 1), row.bound_by || "the host", row.share === undefined ? "–" : percent(row.share)]), [1, 2, 3, 4, 6]));
  });
}
function smoothed(values, weight) {
  let mean = null;
  return values.map((value) => value === null || value === undefined ? null : (mean = mean === null ? value : weight * mean + (1 - weight) * value));
}
function axisOf(run) {
  if ($("axis").value === "step") return run.steps;
  const start = run.times.find((time) => time !== null);
  return run.times.map((time) => time === null || time === undefined ? null : (time - start) / 3600);
}
function layoutOf(chart, more = {}) {
  const ink = css("--dim"), grid = css("--grid");
  const axis = { gridcolor: grid, linecolor: css("--line"), zeroline: false, automargin: true };
  return {
    margin: { l: 54, r: 12, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 11, family: "system-ui, 'DejaVu Sans', sans-serif" }, hovermode: "x unified",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 11.5 } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } }, showlegend: true,
    xaxis: { ...axis, title: { text: $("axis").value, standoff: 6 } },
    yaxis: { ...axis, title: { text: chart.unit, standoff: 8 }, tickformat: chart.share && !chart.isLog ? ".2~%" : null,
      type: chart.isLog ? "log" : "linear", exponentformat: "power", dtick: chart.isLog ? 1 : null,
      rangemode: chart.share && !chart.isLog ? "tozero" : "normal" },
    ...more,
  };
}
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

function draw(chart, plot) {
  const weight = Number($("smoothing").value), traces = [];
  const isLone = RUNS.length === 1;
  RUNS.forEach((run, number) => {
    const x = axisOf(run);
    chart.lines.forEach((line, place) => {
      const values = run.series[line.name];
      if (!values || !values.some((value) => value !== null)) return;
      const colour = COLOURS[(isLone ? place : number) % COLOURS.length];
      const name = isLone ? line.label : chart.lines.length > 1 ? `${run.name}: ${line.label}` : run.name;
      const isSparse = values.filter((value) => value !== null).length < values.length / 2 || values.length < 3;
      const keep = values.map((value, index) => [x[index], value]).filter(([at, value]) => value !== null && at !== null);
      const shown = (list) => ({ x: keep.map(([at]) => at), y: list });
      const raw = keep.map(([, value]) => value), format = chart.share ? ":.2%" : ":.4~g";
      const style = { color: colour, width: 1.8, dash: isLone ? "solid" : DASHES[place % DASHES.length] };
      const hovertemplate = `%{y${format}}<extra>${name}</extra>`;
      if (chart.kind === "stack") {
        traces.push({ ...shown(raw), name, stackgroup: String(number), line: { ...style, width: 0.5 }, hovertemplate });
        return;
      }
      const bounds = run.intervals[line.name], byStep = new Map((bounds || []).map(([step, low, high]) => [step, [low, high]]));
      const ends = run.steps.filter((step, index) => values[index] !== null && x[index] !== null).map((step, index) => byStep.get(step) || [raw[index], raw[index]]);
      const error_y = bounds ? { type: "data", symmetric: false, array: ends.map(([, high], index) => high - raw[index]),
        arrayminus: ends.map(([low], index) => raw[index] - low), thickness: 1.2, width: 3, color: colour } : undefined;
      if (weight > 0 && !isSparse) traces.push({ ...shown(raw), line: { ...style, width: 1 }, opacity: 0.25, hoverinfo: "skip", showlegend: false, mode: "lines" });
      traces.push({ ...shown(isSparse ? raw : smoothed(raw, weight)), name, line: style, error_y, hovertemplate,
        mode: isSparse ? "lines+markers" : "lines", marker: { size: 6, color: colour } });
    });
  });
  const shapes = [];
  if ($("marks").checked && $("axis").value === "step") {
    RUNS.forEach((run) => run.events.forEach((event) => shapes.push({ type: "line", xref: "x", yref: "paper", x0: event.step, x1: event.step, y0: 0, y1: 1,
      line: { width: event.kind === "evaluated" ? 1 : 1.6, dash: "dot", color: { evaluated: css("--line"), best: css("--good"), skipped: css("--bad"), restarted: css("--accent") }[event.kind] } })));
  }
  const count = traces.filter((trace) => trace.showlegend !== false).length;
  return Plotly.react(plot, traces, layoutOf(chart, { shapes, showlegend: count > 1, margin: { l: 54, r: 12, t: count > 1 ? 30 + 17 * Math.max(0, Math.ceil(count / 4) - 1) : 8, b: 36 } }), CONFIG);
}
const drawn = new Map();
function charts() {
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting || drawn.has(entry.target)) return;
    const chart = DATA.charts[Number(entry.target.dataset.chart)];
    drawn.set(entry.target, chart);
    draw(chart, entry.target);
  }), { rootMargin: "400px" });
  let section = null, grid = null;
  DATA.charts.forEach((chart, number) => {
    chart.isLog = chart.log;
    if (chart.section !== section) {
      section = chart.section;
      grid = element("div", { class: "charts" });
      $("charts").append(element("h2", {}, section), grid);
    }
    const plot = element("div", { class: "plot", "data-chart": number });
    const log = element("input", { type: "checkbox", onchange: (event) => { chart.isLog = event.target.checked; draw(chart, plot); } });
    log.checked = chart.isLog;
    const texts = Object.entries(chart.about).map(([name, metric]) => element("p", {}, element("code", {}, name), " ", metric.meaning,
      metric.healthy ? ` Healthy: ${metric.healthy}.` : "", metric.otherwise ? ` Otherwise: ${metric.otherwise}.` : ""));
    grid.append(element("div", { class: "chart" },
      element("div", { class: "head" }, element("h3", {}, chart.title), element("label", {}, log, " log")),
      chart.note ? element("div", { class: "note" }, chart.note) : null, plot,
      texts.length ? element("details", { class: "what" }, element("summary", {}, "what this is, and what is healthy"), ...texts) : null));
    seen.observe(plot);
  });
  const again = () => drawn.forEach((chart, plot) => draw(chart, plot));
  $("smoothing").addEventListener("input", (event) => { event.target.nextElementSibling.value = event.target.value; again(); });
  $("axis").addEventListener("change", again);
  $("marks").addEventListener("change", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  const legend = [["evaluated", "--dim"], ["best", "--good"], ["skipped", "--bad"], ["restarted", "--accent"]]
    .filter(([kind]) => RUNS.some((run) => run.events.some((event) => event.kind === kind)));
  for (const [kind, colour] of legend) {
    const what = RUNS.flatMap((run) => run.events.filter((event) => event.kind === kind).map((event) => event.text));
    $("controls").append(element("span", { title: what.join("\n"), style: `color:var(${colour})` }, "┊ " + { evaluated: "evaluation", best: "best policy", skipped: "updates left out", restarted: "restart" }[kind]));
  }
}

// ---- the clause inspector

const C = { start: 0, end: 1, log: 2, entropy: 3, g: 4, l: 5, low: 6, high: 7, side: 8, clipped: 9, grpo: 10, gspo: 11, sspo: 12 };
const chosen = { run: RUNS.findIndex((run) => run.tokens.length) < 0 ? 0 : RUNS.findIndex((run) => run.tokens.length), step: null, epoch: 0, jump: null };
let isReady = false, kept = null;

function inspector() {
  if (!RUNS.some((run) => run.tokens.length)) {
    $("page-clauses").replaceChildren(...RUNS.map((run) => element("p", { class: "lead" }, RUNS.length > 1 ? run.name + ": " : "", run.findings[2].answer)));
    return;
  }
  if (!isReady) {
    isReady = true;
    $("which").hidden = RUNS.length < 2;
    RUNS.forEach((run, number) => { if (run.tokens.length) $("clause-run").append(element("option", { value: number }, run.name)); });
    $("clause-run").addEventListener("change", (event) => { chosen.run = Number(event.target.value); chosen.step = null; inspector(); });
    $("step").addEventListener("change", (event) => { chosen.step = Number(event.target.value); inspector(); });
    $("epoch").addEventListener("change", (event) => { chosen.epoch = Number(event.target.value); inspector(); });
    for (const id of ["colour", "show", "reward", "order"]) $(id).addEventListener("change", responses);
    $("search").addEventListener("input", responses);
  }
  if (chosen.jump) for (const [id, value] of [["show", "all"], ["reward", ""], ["search", ""]]) $(id).value = value;
  const run = RUNS[chosen.run];
  $("clause-run").value = chosen.run;
  if (!run.tokens.some((log) => log.step === chosen.step)) chosen.step = firstStep(run);
  $("step").replaceChildren(...run.tokens.map((log) => element("option", { value: log.step }, String(log.step))));
  $("step").value = chosen.step;
  const log = logOf(), epochs = log.responses.length ? log.responses[0].updates.length : 1;
  chosen.epoch = Math.min(chosen.epoch, epochs - 1);
  $("epochs").hidden = epochs < 2;
  $("epoch").replaceChildren(...Array.from({ length: epochs }, (_, number) => element("option", { value: number }, String(number + 1))));
  $("epoch").value = chosen.epoch;
  const rewards = [...new Set(log.responses.map((one) => one.reward))].sort((a, b) => a - b), before = $("reward").value;
  $("reward").replaceChildren(element("option", { value: "" }, "any"), ...(rewards.length < 12 ? rewards.map((value) => element("option", { value }, short(value)))
    : [element("option", { value: "below" }, "below the mean"), element("option", { value: "above" }, "above the mean")]));
  $("reward").value = [...$("reward").options].some((option) => option.value === before) ? before : "";
  responses();
  if (chosen.jump) {
    const target = document.querySelector(`[data-response="${chosen.jump.response}"][data-start="${chosen.jump.start}"]`);
    chosen.jump = null;
    if (target) { target.click(); target.scrollIntoView({ block: "center" }); }
  }
}
// That of the clause which was clipped most, else the last.
function firstStep(run) {
  const place = run.findings.map((found) => found.place).find(Boolean);
  const log = run.tokens.find((one) => place && one.step === place.step) || run.tokens[run.tokens.length - 1];
  return log.step;
}
const logOf = () => RUNS[chosen.run].tokens.find((log) => log.step === chosen.step);
const clausesOf = (response) => response.clauses[chosen.epoch];

function shownResponses(log) {
  const words = $("search").value.toLowerCase(), reward = $("reward").value, show = $("show").value;
  const mean = log.responses.reduce((sum, one) => sum + one.reward, 0) / Math.max(1, log.responses.length);
  const fits = {
    all: () => true, clipped: (clause) => clause[C.side], low: (clause) => clause[C.side] === "low", high: (clause) => clause[C.side] === "high",
    gspo: (clause) => clause[C.side] && !clause[C.gspo], grpo: (clause) => clause[C.side] && !clause[C.grpo],
  }[show];
  const found = log.responses.map((response, place) => ({ response, place })).filter(({ response }) =>
    (!words || (response.id + " " + response.problem).toLowerCase().includes(words))
    && (reward === "" || (reward === "below" ? response.reward < mean : reward === "above" ? response.reward >= mean : response.reward === Number(reward)))
    && (show === "all" || clausesOf(response).some(fits)));
  const key = {
    rollout: ({ place }) => place, ratio: ({ response }) => -Math.max(...clausesOf(response).map((clause) => Math.abs(clause[C.log]))),
    clipped: ({ response }) => -clausesOf(response).reduce((sum, clause) => sum + clause[C.clipped], 0) / response.pieces.length,
    length: ({ response }) => -response.pieces.length,
  }[$("order").value];
  return found.sort((a, b) => key(a) - key(b));
}
function mix(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1), first = Math.min(Math.floor(at), stops.length - 2), part = at - first;
  return `rgba(${stops[first].map((value, channel) => channel < 3 ? Math.round(value + part * (stops[first + 1][channel] - value)) : (value + part * (stops[first + 1][channel] - value)).toFixed(3)).join(",")})`;
}
const DIVERGING = [[33, 102, 172, 0.62], [103, 169, 207, 0.38], [160, 160, 160, 0.06], [239, 138, 98, 0.4], [178, 24, 43, 0.6]];
const RISING = [[68, 140, 90, 0.05], [53, 150, 120, 0.3], [30, 110, 130, 0.6]];
function scaleOf(log) {
  const by = $("colour").value;
  const value = { ratio: (clause) => clause[C.log], entropy: (clause) => clause[C.entropy], advantage: (clause, response) => response.advantage,
    bounds: (clause) => clause[C.high] === null ? null : clause[C.high] - clause[C.low], none: () => null }[by];
  const values = log.responses.flatMap((response) => clausesOf(response).map((clause) => value(clause, response))).filter((one) => one !== null);
  const isDiverging = by === "ratio" || by === "advantage";
  const sizes = values.map((one) => isDiverging ? Math.abs(one) : one).sort((a, b) => a - b);
  const most = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.97 * sizes.length))] || sizes[sizes.length - 1] || 1 : 1;
  const low = isDiverging ? -most : Math.min(...sizes, most), stops = isDiverging ? DIVERGING : RISING;
  return { by, stops, low, high: most, isDiverging, colour: (clause, response) => { const one = value(clause, response); return one === null ? "transparent" : mix(stops, most === low ? 0.5 : (one - low) / (most - low)); } };
}
function tally(log, found) {
  const clauses = found.flatMap(({ response }) => clausesOf(response)), clipped = clauses.filter((clause) => clause[C.side]);
  const count = (test) => clipped.filter(test).length;
  const shares = clipped.length ? `GSPO would have kept ${count((clause) => !clause[C.gspo])} of them, GRPO every token of ${count((clause) => !clause[C.grpo])}.` : "";
  $("tally").replaceChildren(`${found.length} of ${log.responses.length} responses of step ${log.step}${log.left_out ? ` (${log.left_out} more in the file)` : ""}, ${clauses.length} clauses, `,
    element("b", {}, `${clipped.length} clipped by this run's ${log.objective}`), ` (${count((clause) => clause[C.side] === "high")} high ▲, ${count((clause) => clause[C.side] === "low")} low ▼). ${shares}`);
}
function responses() {
  const log = logOf(), found = shownResponses(log), scale = scaleOf(log);
  tally(log, found);
  const label = { ratio: "log s_k, nats", entropy: "H_k, nats", advantage: "advantage", bounds: "high − low", none: "" }[scale.by];
  $("scale").replaceChildren(...(scale.by === "none" ? [] : [element("span", {}, label), element("span", {}, short(scale.low)),
    element("span", { class: "ramp", style: `background:linear-gradient(90deg,${scale.stops.map((_, place) => mix(scale.stops, place / (scale.stops.length - 1))).join(",")})` }), element("span", {}, short(scale.high))]),
    element("span", {}, element("b", { class: "mark high" }, "▲"), "clipped at the upper bound, "), element("span", {}, element("b", { class: "mark low" }, "▼"), "at the lower"));
  kept = null; // its element is gone
  $("responses").replaceChildren(...found.map(({ response }) => card(log, response, scale)));
  if (!found.length) $("responses").append(element("p", { class: "dim" }, "No response fits these filters."));
}
function card(log, response, scale) {
  const clauses = clausesOf(response), clipped = clauses.reduce((sum, clause) => sum + clause[C.clipped], 0);
  const most = clauses.reduce((far, clause) => Math.abs(clause[C.log]) > Math.abs(far) ? clause[C.log] : far, 0);
  const text = element("div", { class: "text" });
  clauses.forEach((clause, number) => {
    const span = element("span", { class: `clause ${clause[C.side]}`, tabindex: 0, "data-response": response.number, "data-start": clause[C.start], style: `background:${scale.colour(clause, response)}`,
      onmouseenter: () => { if (!kept) detail(log, response, number); }, onfocus: () => { if (!kept) detail(log, response, number); },
      onclick: (event) => { if (kept) kept.classList.remove("kept"); kept = kept === event.currentTarget ? null : event.currentTarget; if (kept) kept.classList.add("kept"); detail(log, response, number); },
      onkeydown: (event) => { if (event.key === "Enter") event.currentTarget.click(); } },
    response.pieces.slice(clause[C.start], clause[C.end]).join(""));
    if (clause[C.side]) span.append(element("b", { class: `mark ${clause[C.side]}` }, { high: "▲", low: "▼", dual: "◆" }[clause[C.side]]));
    text.append(span);
  });
  return element("article", { class: "response" },
    element("div", { class: "meta" }, element("span", { class: `chip ${response.status}` }, response.status), ...[`reward ${short(response.reward)}`, `advantage ${response.advantage > 0 ? "+" : ""}${short(response.advantage)}`,
      `update ${response.updates[chosen.epoch]}`, `${response.pieces.length} tokens, ${percent(clipped / response.pieces.length, 0)} clipped`,
      `furthest ratio ${short(Math.exp(most))}`, `gold ${response.gold}`, `sample ${response.sample}`].map((text) => element("span", {}, text)),
      element("button", { class: "link", onclick: () => { $("search").value = response.id; responses(); }, title: "only this problem" }, response.id)),
    element("div", { class: "problem" }, response.problem), text);
}
function detail(log, response, number) {
  const clause = clausesOf(response)[number], [start, end] = clause, epoch = chosen.epoch;
  const logs = response.pieces.map((_, place) => response.new[epoch][place] - response.old[place]);
  const whole = logs.reduce((sum, one) => sum + one, 0) / logs.length;
  const own = new Map(response.clipped[epoch]), grpo = new Map(response.grpo[epoch]);
  const side = { low: "clipped at the lower bound ▼", high: "clipped at the upper bound ▲", dual: "clipped by the dual clip ◆", "": "kept" };
  const isToken = clause[C.clipped] && clause[C.clipped] < end - start;
  const mark = (code) => code === -1 ? "▼" : code === 1 ? "▲" : code === 2 ? "◆" : "";
  $("detail").replaceChildren(
    element("h3", {}, `clause ${number + 1} of ${clausesOf(response).length}`), element("pre", {}, response.pieces.slice(start, end).join("")),
    table(["", ""], [
      ["log s_k, and s_k", `${short(clause[C.log])}, ${short(Math.exp(clause[C.log]))}`],
      ["H_k (mean of the rollout)", `${short(clause[C.entropy])} (${short(log.mean_entropy)})`], ["g_k, l_k", `${short(clause[C.g])}, ${short(clause[C.l])}`],
      ["bounds, low to high", clause[C.high] === null ? "none" : `${short(clause[C.low])} to ${short(clause[C.high])}`], ["advantage", short(response.advantage)],
      ["update of the step", String(response.updates[epoch])]]),
    element("h3", {}, "what would have happened to it"),
    element("div", { class: "verdicts" }, table(["objective", "ratio", "verdict"], [
      [`this run, ${log.objective}`, "", isToken ? `${clause[C.clipped]} of ${end - start} tokens clipped` : side[clause[C.side]]],
      ["SSPO, 0.2 g_k", short(Math.exp(clause[C.log])), clause[C.sspo] ? "clipped" : "kept"],
      ["GRPO, 0.8 to 1.2", "per token", `${clause[C.grpo]} of ${end - start} tokens clipped`],
      ["GSPO, 1 − 3e-4 to 1 + 4e-4", short(Math.exp(whole)), clause[C.gspo] ? "clipped, with the whole response" : "kept, with the whole response"]])),
    element("h3", {}, "tokens"),
    table(["token", "old", "new", "ratio", "H", "", "GRPO"], response.pieces.slice(start, end).map((piece, offset) => {
      const place = start + offset;
      return [element("code", {}, piece.replace(/\n/g, "⏎").replace(/ /g, "·") || "␀"), short(response.old[place]), short(response.new[epoch][place]), short(Math.exp(logs[place])), short(response.entropy[place]), mark(own.get(place)), mark(grpo.get(place))];
    }), [1, 2, 3, 4]),
    element("p", { class: "dim" }, "log-probs and entropy in nats; ▲ ▼ clipped high, low"));
}

// ---- problems

let hasProblems = false;
function problems() {
  if (hasProblems) return;
  hasProblems = true;
  RUNS.forEach((run, number) => {
    const own = run.problems, page = $("page-problems");
    if (RUNS.length > 1) page.append(element("h2", {}, swatch(number), run.name));
    if (!own.steps.length) { page.append(element("p", { class: "dim" }, own.none)); return; }
    const plot = element("div", { class: "plot" });
    page.append(element("div", { class: "card" }, element("h2", {}, "Problems of each step, by how their group did"),
      element("p", { class: "dim" }, `${own.seen} problems seen; at their last visit ${own.never_now} were never solved and ${own.always_now} always. Only those solved in part have a gradient.`), plot));
    const names = { never: ["never solved", "#b3432b"], partly: ["solved in part", "#1f77b4"], always: ["always solved", "#2a8a57"] };
    Plotly.newPlot(plot, Object.entries(names).map(([key, [name, color]]) => ({ x: own.steps, y: own.shares[key], name, type: "bar", marker: { color }, hovertemplate: `%{y:.1%}<extra>${name}</extra>` })),
      { ...layoutOf({ unit: "share of problems", share: true }), barmode: "stack", bargap: 0.08, margin: { l: 54, r: 12, t: 30, b: 36 }, xaxis: { ...layoutOf({ unit: "" }).xaxis, title: { text: "step", standoff: 6 } } }, CONFIG);
    if (own.held_out.length) {
      page.append(element("div", { class: "card wide" }, element("h2", {}, "Held-out problems, greedy"), table(["set", "problems", "evaluated after", "always solved", "never", "gained", "lost"],
        own.held_out.map((set) => [set.set, String(set.problems), set.steps.join(", "), String(set.always), String(set.never), String(set.gained), set.lost.length ? `${set.lost.length}: ${set.lost.slice(0, 12).join(", ")}` : "0"]), [1, 3, 4, 5])));
    }
    const list = element("div", { class: "wide" }), search = element("input", { type: "search", placeholder: "id or words" });
    const rows = () => {
      const words = search.value.toLowerCase();
      list.replaceChildren(table(["problem", "gold", "last rate", "visits (step: rate)", "text"], own.problems.filter((one) => (one.id + " " + one.problem).toLowerCase().includes(words)).slice(0, 100)
        .map((one) => [one.id, one.gold, percent(one.visits[one.visits.length - 1][1], 0), one.visits.map(([step, rate]) => `${step}: ${percent(rate, 0)}`).join("  "), one.problem]), [2]));
    };
    search.addEventListener("input", rows);
    page.append(element("div", { class: "card" }, element("h2", {}, "Problems, least solved first"), search, list));
    rows();
    const text = (row) => element("details", { class: "text" }, element("summary", {}, element("span", { class: `chip ${row.status}` }, row.status), ` · ${row.step ? `step ${row.step} · ` : ""}${row.id} · ${row.tokens} tokens · ${row.finish} · answer ${row.extracted ?? "none"} · gold ${row.gold}`),
      element("p", { class: "dim" }, row.reason || ""), element("pre", {}, row.problem), element("pre", {}, row.response));
    page.append(element("div", { class: "card" }, element("h2", {}, `The longest responses of step ${own.last_step}`), ...own.longest.map(text)));
    page.append(element("div", { class: "card" }, element("h2", {}, "What the checker could not read, latest first"), ...(own.unread.length ? own.unread.map(text) : [element("p", { class: "dim" }, "Nothing.")])));
  });
}

answers(); scores(); roofline(); about(); charts();
if (location.hash.length > 1) dispatchEvent(new HashChangeEvent("hashchange"));
