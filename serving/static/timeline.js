// An episode from left to right: the attacker's stages (where told), alerts, actions, rewards; a click goes to a tick.

import { points, svg, words } from "./dom.js";

const LETTERS = { INVESTIGATE: "i", ISOLATE_ASSET: "o", BLOCK_EGRESS: "b", PATCH_ASSET: "p", REVOKE_IDENTITY: "v", RESTORE: "e", INVALID: "x" };
const ROW = 15;

function stretches(statuses) {
  const found = [];
  statuses.forEach((status, t) => {
    if (found.at(-1)?.status === status) found.at(-1).to = t;
    else found.push({ status, from: t, to: t });
  });
  return found.filter((x) => x.status !== "idle");
}

export function timeline(desk, now, width, go) {
  const { ticks, horizon, episode } = desk;
  const left = width < 500 ? 88 : 150;
  const step = (width - left - 8) / Math.max(1, horizon);
  const x = (t) => left + t * step;
  const parts = [];
  let y = 2;
  const label = (text, more = "") => parts.push(svg("text", { class: `label ${more}`, x: left - 6, y: y + 11, "text-anchor": "end" }, text.length > left / 7 ? `${text.slice(0, left / 7 - 1)}…` : text));
  for (const [k, stage] of (episode?.stages ?? []).entries()) {
    label(stage.id, "truth");
    parts.push(svg("line", { class: "rail", x1: left, x2: x(horizon), y1: y + 7, y2: y + 7 }));
    for (const s of stretches(ticks.map((t) => t.truth.stages[k]))) {
      parts.push(svg("rect", { class: `bar ${s.status.replace(" ", "-")}`, x: x(s.from), y: y + 2, width: Math.max(2, x(Math.min(s.to + 1, horizon)) - x(s.from)), height: ROW - 5, rx: 2 },
        svg("title", {}, `${stage.id} ${s.status}, ticks ${s.from} to ${s.to}`)));
    }
    y += ROW;
  }
  label("alerts");
  for (const t of ticks) {
    const many = t.view.alerts.filter((a) => a.ticks_ago === 0).length;
    if (t.tick && many) parts.push(svg("circle", { class: "dot", cx: x(t.tick), cy: y + 7, r: 2 + Math.min(3, many) }, svg("title", {}, `tick ${t.tick}: ${many} alerts`)));
  }
  y += ROW;
  label("actions");
  for (const t of ticks) {
    const letter = t.action && LETTERS[t.action.split(" ")[0]];
    if (letter) parts.push(svg("text", { class: "act", x: x(t.tick), y: y + 11, "text-anchor": "middle" }, letter, svg("title", {}, `tick ${t.tick}: ${t.action}`)));
  }
  y += ROW + 2;
  label("reward");
  const size = (t) => Math.sqrt(Math.abs(t.reward ?? 0)); // so that what is small is seen beside the last tick
  const most = Math.max(0.5, ...ticks.map(size));
  const middle = y + 16;
  parts.push(svg("line", { class: "rail", x1: left, x2: x(horizon), y1: middle, y2: middle }));
  for (const t of ticks) {
    const high = (14 * size(t)) / most;
    if (high < 0.2) continue;
    parts.push(svg("rect", { class: t.reward > 0 ? "gain" : "cost", x: x(t.tick) - Math.max(1, step / 3), y: t.reward > 0 ? middle - high : middle, width: Math.max(2, (2 * step) / 3), height: Math.max(1, high) },
      svg("title", {}, `tick ${t.tick}: ${points(t.reward)}`)));
  }
  y += 36;
  for (let t = 0; t <= horizon; t += 10) parts.push(svg("text", { class: "label", x: x(t), y: y + 9, "text-anchor": "middle" }, String(t)));
  parts.push(svg("line", { class: "now", x1: x(now), x2: x(now), y1: 0, y2: y }));
  const told = ticks.filter((t) => t.action && t.action !== "MONITOR").map((t) => `tick ${t.tick} ${words(t.action)}`);
  const box = svg("svg", { class: "timeline", viewBox: `0 0 ${width} ${y + 14}`, width, height: y + 14, role: "img",
    "aria-label": `Timeline to tick ${ticks.length - 1} of ${horizon}. Actions: ${told.join("; ") || "only waiting"}.`,
    onclick: (event) => {
      const at = ((event.clientX - box.getBoundingClientRect().left) * width) / box.getBoundingClientRect().width;
      if (at >= left - 4) go(Math.round((at - left) / step));
    } }, parts);
  return box;
}
