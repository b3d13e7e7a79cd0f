"use strict";
// Draws what /state answers. All text is set as text: SQL and keys come from clients.

const OUTCOMES = ["match", "order_only", "ignored", "noise", "transient", "indeterminate", "divergence"];
// Places of the curves, as SHARES in snapshot.rs.
const SHARES = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];
const EVERY_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
const percent = (x) => {
  if (x === null || x === undefined) return "–";
  const p = x * 100;
  return (p === 0 || p >= 1 ? String(Math.round(p * 100) / 100) : p.toPrecision(2)) + " %";
};
const ms = (x) => {
  if (x === null || x === undefined) return "–";
  return (Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 1 ? x.toFixed(1) : x.toFixed(3)) + " ms";
};
const signed = (x) => (x > 0 ? "+" : "") + ms(x);
const time = (unix) => new Date(unix * 1000).toLocaleTimeString();
const day = (unix) => new Date(unix * 1000).toLocaleString();
const some = (counts) => Object.entries(counts).filter(([, n]) => n > 0).map(([name, n]) => `${name} ${count(n)}`).join(", ");

function facts(list) {
  return h("dl", { class: "facts" }, list.map(([name, value, figure, kind]) =>
    h("div", {}, h("dt", {}, name), h("dd", { ...(figure ? { "data-figure": figure } : {}), class: kind || "" }, value))));
}
function table(columns, rows) {
  const kind = (i) => (columns[i].endsWith("#") ? { class: "n" } : {});
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((c, i) => h("th", kind(i), c.replace("#", ""))))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", kind(i), cell)))))));
}
const code = (text) => h("code", {}, text);
const empty = (text) => h("p", { class: "empty" }, text);
const sided = (side) => h("span", { class: side }, side);

// Lines over x; a gap in the values is a gap in the line. The scale of y is logarithmic.
function chart(title, lines, xs, label) {
  const [width, height, left, bottom, top] = [420, 190, 62, 22, 8];
  const values = lines.flatMap((l) => l.values).filter((v) => v > 0);
  if (xs.length < 2 || values.length === 0) return h("div", {}, h("h3", {}, title), empty("not enough yet: a point every 10 s"));
  const low = Math.log10(Math.min(...values)) - 0.05, high = Math.max(Math.log10(Math.max(...values)) + 0.05, low + 0.3);
  const x = (v) => left + (v - xs[0]) / (xs[xs.length - 1] - xs[0]) * (width - left - 14);
  const y = (v) => top + (high - Math.log10(v)) / (high - low) * (height - top - bottom);
  const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const marks = [0, 1, 2, 3].map((i) => 10 ** (low + (high - low) * i / 3));
  for (const mark of marks) {
    drawing.append(s("line", { class: "grid", x1: left, x2: width - 14, y1: y(mark), y2: y(mark) }),
      s("text", { x: left - 5, y: y(mark) + 4, "text-anchor": "end" }, ms(mark)));
  }
  for (const [at, anchor] of [[0, "start"], [xs.length >> 1, "middle"], [xs.length - 1, "end"]])
    drawing.append(s("text", { x: x(xs[at]), y: height - 6, "text-anchor": anchor }, label(xs[at])));
  for (const line of lines) {
    let path = "", pen = false;
    line.values.forEach((v, i) => {
      if (v > 0) path += `${pen ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(v).toFixed(1)}`;
      // A lone value is a dot.
      if (v > 0 && !pen && !(line.values[i + 1] > 0)) path += "h2";
      pen = v > 0;
    });
    drawing.append(s("path", { d: path, class: `${line.side}${line.dashed ? " dashed" : ""}` }, s("title", {}, line.name)));
  }
  const legend = h("p", { class: "soft" }, lines.map((l) => h("span", { class: l.side }, `${l.dashed ? "┄" : "━"} ${l.name}  `)));
  return h("div", {}, h("h3", {}, title), drawing, legend);
}

function overTime(history) {
  const of = (key) => history.map((p) => p[key] ?? NaN);
  return chart("Latency over the last hour, both sides of the same reads", [
    { name: "source p50", side: "source", values: of("source_ms_p50") },
    { name: "target p50", side: "target", values: of("target_ms_p50") },
    { name: "source p99", side: "source", dashed: true, values: of("source_ms_p99") },
    { name: "target p99", side: "target", dashed: true, values: of("target_ms_p99") },
  ], history.map((p) => p.at), time);
}
function distribution(latency) {
  const curve = (side) => latency[side].curve || [];
  return chart("Distribution: a share of the reads takes at most", ["source", "target"].map((side) => (
    { name: side, side, values: curve(side) })), curve("source").length ? SHARES : [], (share) => Math.round(share * 100) + " %");
}

function repository(r) {
  const f = r.stats, name = r.name, of = (key) => `${name}/${key}`;
  const state = facts([
    ["reads on the target", percent(r.reads_target), of("reads_target")],
    ["writes on the target", percent(r.writes_target), of("writes_target")],
    ["lead now", sided(r.lead), of("lead")],
    ["mirror", r.mirror, of("mirror")],
    ["statements (source / target)", `${count(r.queries.source)} / ${count(r.queries.target)}`],
    ["errors (source / target)", `${count(r.errors.source)} / ${count(r.errors.target)}`],
    ...(r.writes.compared > 0 ? [["mirrored writes compared", count(r.writes.compared), of("writes_compared")],
      ["rows not as expected there", count(r.writes.differed), of("writes_differed"), r.writes.differed > 0 ? "bad" : ""]] : []),
  ]);
  const moving = r.lead_wanted ? h("p", { class: "warn" }, `the lead moves to ${r.lead_wanted}${r.lead_waits_for ? ": " + r.lead_waits_for : ""}`) : null;
  const parts = [h("h2", {}, name), h("p", { class: "soft" }, r.tables.join(", ")), state, moving];
  if (f.compared === 0) {
    parts.push(empty(name === "default" ? "tables of no repository live on the source alone: nothing to compare"
      : r.shadow === 0 ? `no shadow reads yet: set shadow = 0.05 for repository ${name}`
      : r.coverage.sampled > 0 ? "shadow reads were drawn, none is compared yet: see what was dropped"
      : r.coverage.eligible > 0 ? "no read was drawn yet" : "no read that may be executed twice was seen yet"));
    if (some(r.coverage.skipped)) parts.push(h("p", { class: "soft" }, "not executed twice: " + some(r.coverage.skipped)));
    return h("section", { id: "repository-" + name }, parts);
  }
  parts.push(h("h3", {}, "Shadow reads"), facts([
    ["share", percent(r.shadow)],
    ["may be executed twice", count(r.coverage.eligible), of("eligible")],
    ["drawn", count(r.coverage.sampled), of("sampled")],
    ["compared", count(f.compared), of("compared")],
    ["divergence rate", percent(f.rate), of("rate"), f.outcomes.divergence > 0 ? "bad" : "good"],
    ["95 % sure: at most", percent(f.rate_upper), of("rate_upper")],
  ]), facts(OUTCOMES.map((o) => [o.replace("_", " "), count(f.outcomes[o] || 0), of(o), o === "divergence" && f.outcomes[o] > 0 ? "bad" : ""])));
  const notes = [["divergences: ", f.classes], ["nobody can say: ", f.indeterminate], ["not executed twice: ", r.coverage.skipped]];
  for (const [words, counts] of notes) if (some(counts)) parts.push(h("p", { class: "soft" }, words + some(counts)));
  parts.push(table(["", "p50#", "p95#", "p99#", "errors by class"], [
    ...["source", "target"].map((side) => [sided(side), ...["p50", "p95", "p99"].map((q) =>
      h("span", { "data-figure": of(`${side}_${q}`) }, ms(f.latency_ms[side][q]))), some(f.errors[side]) || "none"]),
    ["target − source, same read", ...["p50", "p95", "p99"].map((q) => signed(f.delta_ms[q])), ""],
  ]), h("div", { class: "charts" }, overTime(r.history), distribution(f.latency_ms)));
  const applications = Object.entries(r.applications);
  parts.push(h("h3", {}, "By application_name"), table(
    ["application", "compared#", "divergences#", "at most#", "source p50#", "target p50#", "source p99#", "target p99#", "errors (source / target)"],
    applications.map(([application, a]) => [application || "(none)", count(a.compared), count(a.outcomes.divergence), percent(a.rate_upper),
      ms(a.latency_ms.source.p50), ms(a.latency_ms.target.p50), ms(a.latency_ms.source.p99), ms(a.latency_ms.target.p99),
      `${some(a.errors.source) || "none"} / ${some(a.errors.target) || "none"}`])));
  return h("section", { id: "repository-" + name }, parts);
}

function journals(state) {
  const rows = state.journals.map((j) => [sided(j.backend), count(j.rows), count(j.dirty), j.oldest_seconds === null ? "–" : j.oldest_seconds.toFixed(1) + " s",
    count(j.held), `${j.repairer || "–"}${j.reason ? ": " + j.reason : ""}`]);
  const doubt = state.in_doubt.transactions ? h("p", { class: state.in_doubt.stuck ? "bad" : "soft" },
    `${count(state.in_doubt.transactions)} prepared transactions, ${count(state.in_doubt.stuck)} need an operator`) : null;
  return h("section", {}, h("h2", {}, "Mirroring: journals"), rows.length
    ? table(["on", "rows#", "not shipped by their own transaction#", "oldest#", "held#", "repairer"], rows)
    : empty("no repository is mirrored: set mirror = \"journaled\" for one"), doubt);
}
function drops(state) {
  return h("section", {}, h("h2", {}, "Shadow reads that were dropped"), h("p", {}, `waiting now: ${count(state.queue)}`),
    some(state.dropped) ? h("p", { class: "warn", "data-figure": "dropped" }, some(state.dropped)) : empty("none"));
}
function queries(title, rows, none) {
  return h("section", {}, h("h2", {}, title), rows.length ? table(
    ["query", "repository", "compared#", "divergences#", "at most#", "source p50#", "target p50#", "target − source p50#", "p99#"],
    rows.map((q) => [code(q.sql), q.repository, count(q.stats.compared), count(q.stats.outcomes.divergence), percent(q.stats.rate_upper),
      ms(q.stats.latency_ms.source.p50), ms(q.stats.latency_ms.target.p50), signed(q.stats.delta_ms.p50), signed(q.stats.delta_ms.p99)])) : empty(none));
}
function divergences(rows) {
  return h("section", { id: "divergences" }, h("h2", {}, "Divergences, the newest first"), rows.length ? table(
    ["what", "column", "key", "times#", "first and last seen", "answered", "query"],
    rows.map((d) => [d.class.replace("_", " "), d.column || "", d.key || "", count(d.count), `${day(d.first)} – ${day(d.last)}`,
      d.answered === null && d.other === null ? h("span", { class: "soft" }, "values are not kept (shadow.values)")
        : h("span", {}, sided(d.answering), `: ${d.answered ?? "–"}; the other side: ${d.other ?? "–"}`),
      h("details", { "data-key": [d.repository, d.fingerprint, d.class, d.column, d.key, d.answering].join("|") },
        h("summary", {}, code(d.sql)), h("p", { class: "soft" }, "ask both sides, constants filled in:"), code(d.reproduce))])) : empty("none found"));
}

function draw(state) {
  const main = document.getElementById("main");
  const open = new Set([...main.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  const none = state.repositories.every((r) => r.name === "default");
  const fresh = [
    none ? h("section", {}, empty("no repository yet: add [[repository]] with name and tables to proxy.toml")) : null,
    ...state.repositories.filter((r) => r.name !== "default").map(repository),
    divergences(state.divergences),
    queries("Queries that diverge", state.divergent, "none found"),
    queries("Queries at which the target is slower", state.slower, "none: the target's median is not above the source's anywhere"),
    journals(state), drops(state),
    ...state.repositories.filter((r) => r.name === "default").map(repository),
  ].filter((part) => part !== null);
  const scrolled = [...main.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
  main.replaceChildren(...fresh);
  main.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = scrolled[i] || 0; });
  for (const details of main.querySelectorAll("details")) details.open = open.has(details.dataset.key);
}

function headline(words, kind) {
  const status = document.getElementById("status");
  status.replaceChildren(...words);
  status.className = kind;
}
function says(state) {
  const side = (name) => `${name} ${state.backends[name] || "unknown"}${state.paused[name] ? ", paused" : ""}`;
  return `${state.version} · ${side("source")} · ${side("target")} · configuration ${state.config.slice(0, 12)}${state.draining ? " · draining" : ""}`;
}
const trouble = (state) => (state.draining || ["source", "target"].some((side) => state.paused[side] || state.backends[side] === "down") ? "bad" : "soft");

let last = null;
async function look() {
  try {
    const answer = await fetch("state", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    last = await answer.json();
    // Who selects text to copy it keeps it.
    if (String(document.getSelection()) === "" || !document.getElementById("main").hasChildNodes()) draw(last);
    operate(last);
    headline([`${says(last)} · live, ${time(last.now)}`], trouble(last));
  } catch (error) {
    const since = last ? `these numbers are of ${day(last.now)}` : "nothing is known yet";
    headline([`crossfade does not answer (${error.message}): ${since}; asking again`], "bad");
  }
}
async function live() {
  if (!document.hidden) await look();
  setTimeout(live, EVERY_MS);
}
