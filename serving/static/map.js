// The network as a map: segments and roles as boxes, entities in them, and, where it is told, the attacker's path.

import { percent, svg, words } from "./dom.js";

const [HIGH, GAP, HEAD, PAD] = [34, 7, 24, 8];
// Of each mark: its letter and what it says. The first is the truth's.
export const MARKS = {
  compromised: ["!", "compromised (truth)"],
  confirmed: ["✓", "confirmed by forensics"],
  isolated: ["I", "isolated"],
  revoked: ["R", "revoked"],
  egress_blocked: ["E", "egress blocked"],
  patched: ["P", "patched"],
};

export function marksOf(tick) {
  const of = { compromised: tick.truth?.compromised ?? [], ...tick.view.controls };
  return Object.keys(MARKS).map((mark) => [mark, new Set(of[mark] ?? [])]);
}

function groups(network) {
  const found = new Map();
  const put = (name, entity) => found.set(name, [...(found.get(name) ?? []), entity]);
  for (const x of network.assets) put(words(x.segment), { id: x.id, about: words(x.kind), worth: x.criticality });
  for (const x of network.identities) put(`${words(x.role)}, identities`, { id: x.id, about: "identity", worth: x.privilege });
  return found;
}

function places(network, width) {
  const columns = Math.max(1, Math.floor(width / 190));
  const wide = (width - (columns - 1) * 14) / columns;
  const bottoms = Array(columns).fill(0);
  const boxes = [];
  const at = new Map();
  for (const [name, entities] of groups(network)) {
    const column = bottoms.indexOf(Math.min(...bottoms));
    const [x, y] = [column * (wide + 14), bottoms[column]];
    const high = HEAD + entities.length * (HIGH + GAP) + PAD - GAP;
    boxes.push({ name, x, y, wide, high });
    entities.forEach((entity, i) => at.set(entity.id, { ...entity, x: x + PAD, y: y + HEAD + i * (HIGH + GAP), wide: wide - 2 * PAD }));
    bottoms[column] += high + 14;
  }
  return { boxes, at, high: Math.max(...bottoms) - 12 };
}

function chip(place, tick, marks, chosen, choose) {
  const mine = marks.filter(([, ids]) => ids.has(place.id)).map(([mark]) => mark);
  const alerts = tick.view.alerts.filter((a) => a.asset === place.id || a.identity === place.id).length;
  const result = tick.view.forensics.find((f) => f.target === place.id);
  const said = [`${place.id}: ${place.about}, worth ${percent(place.worth)}`, ...mine.map((m) => MARKS[m][1])];
  if (alerts) said.push(`alerts in view: ${alerts}`);
  if (result) said.push(`last verdict ${result.verdict}, ${percent(result.confidence)} sure`);
  const room = place.wide - 16 - 17 * mine.length - (alerts ? 22 : 0);
  const letters = Math.max(4, Math.floor(room / 6.7));
  const name = place.id.length > letters ? `${place.id.slice(0, letters - 1)}…` : place.id;
  const right = place.x + place.wide - 5;
  const classes = ["chip", ...mine, alerts && "alerted", chosen && "chosen"].filter(Boolean).join(" ");
  return svg("g", { class: classes, onclick: () => choose?.(place.id) },
    svg("title", {}, said.join("; ")),
    svg("rect", { x: place.x, y: place.y, width: place.wide, height: HIGH, rx: 5 }),
    svg("rect", { class: "worth", x: place.x + 8, y: place.y + HIGH - 7, width: Math.max(2, (place.wide - 16) * place.worth), height: 3, rx: 1.5 }),
    svg("text", { x: place.x + 8, y: place.y + 18 }, name),
    mine.map((mark, i) => svg("g", { class: `badge ${mark}` },
      svg("rect", { x: right - 16 - 17 * i, y: place.y + 5, width: 15, height: 16, rx: 3 }),
      svg("text", { x: right - 8.5 - 17 * i, y: place.y + 17, "text-anchor": "middle" }, MARKS[mark][0]))),
    alerts ? svg("g", { class: "badge alert" },
      svg("circle", { cx: right - 9 - 17 * mine.length, cy: place.y + 13, r: 8 }),
      svg("text", { x: right - 9 - 17 * mine.length, y: place.y + 17, "text-anchor": "middle" }, String(alerts))) : null);
}

// Lines from the targets of what a stage needed to its own, for stages that were begun.
function path(episode, tick, at) {
  const now = new Map(episode.stages.map((stage, k) => [stage.id, { ...stage, status: tick.truth.stages[k] }]));
  const lines = [];
  for (const stage of now.values()) {
    const to = at.get(stage.targets[0]);
    if (stage.status === "idle" || !to) continue;
    for (const need of stage.needs.map((id) => now.get(id))) {
      const from = need && need.status === "succeeded" ? at.get(need.targets[0]) : null;
      if (!from || from === to) continue;
      const [ax, ay, bx, by] = [from.x, from.y + HIGH / 2, to.x, to.y + HIGH / 2];
      const far = ax === bx ? 26 : 60;
      const [a, b] = bx > ax ? [ax + from.wide, bx] : ax > bx ? [ax, bx + to.wide] : [ax, bx];
      const [p, q] = bx > ax ? [a + far, b - far] : [a - far, bx < ax ? b + far : b - far];
      lines.push(svg("path", { class: `way ${stage.status.replace(" ", "-")}`, d: `M${a} ${ay}C${p} ${ay} ${q} ${by} ${b} ${by}`, "marker-end": "url(#arrow)" },
        svg("title", {}, `${need.id} → ${stage.id}: ${stage.status}`)));
    }
  }
  return lines;
}

export function map(desk, tick, width, chosen, choose) {
  const { boxes, at, high } = places(desk.network, width - 16);
  const marks = marksOf(tick);
  const said = marks.filter(([, ids]) => ids.size).map(([mark, ids]) => `${MARKS[mark][1]}: ${[...ids].join(", ")}`);
  return svg("svg", { class: "map", viewBox: `-14 0 ${width} ${high}`, width, height: high, role: "img",
    "aria-label": `Network at tick ${tick.tick}. ${said.join(". ") || "Nothing is marked"}.` },
    svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" },
      svg("path", { d: "M0 0L8 4L0 8z" }))),
    boxes.map((b) => svg("g", { class: "segment" },
      svg("rect", { x: b.x, y: b.y + 1, width: b.wide, height: b.high - 2, rx: 8 }),
      svg("text", { x: b.x + PAD, y: b.y + 16 }, b.name))),
    [...at.values()].map((place) => chip(place, tick, marks, place.id === chosen, choose)),
    tick.truth ? path(desk.episode, tick, at) : null);
}
