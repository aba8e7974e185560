// A player's desk: map, timeline, what is seen, what was true, what was paid, what was done.

import { el, exactly, percent, points, words } from "./dom.js";
import { MARKS, map } from "./map.js";
import { timeline } from "./timeline.js";

// Verb -> its key; the order in which they are offered.
export const KEYS = { MONITOR: "m", INVESTIGATE: "i", ISOLATE_ASSET: "o", BLOCK_EGRESS: "b", PATCH_ASSET: "p", REVOKE_IDENTITY: "v", RESTORE: "e" };

// What the JSON schema of the answers allows: the verbs of each target.
export function legal(schema) {
  const found = new Map();
  for (const { properties } of schema.anyOf) {
    for (const target of properties.target?.enum ?? []) found.set(target, [...(found.get(target) ?? []), ...properties.action.enum]);
  }
  return found;
}

export function makeDesk(who, network, parts) {
  const panel = (name, ...inside) => el("section", { class: `panel ${name.split(" ")[0]}` }, el("h3", {}, name), ...inside);
  const slot = () => el("div", { class: "slot" });
  const box = { map: slot(), timeline: slot(), actions: slot(), choices: slot(), seen: slot(), truth: slot(), rewards: slot(), log: slot(), text: el("pre", { tabindex: 0 }) };
  const title = el("h2", { tabindex: -1 }, who);
  const score = el("p", { class: "score" });
  const desk = { who, network, horizon: network.horizon, ticks: [], episode: null, title, score, box, ...parts };
  desk.truth = panel("truth", box.truth);
  desk.acting = panel("actions", box.actions);
  desk.acting.hidden = !desk.session;
  desk.choosing = panel("choices of the model", box.choices);
  desk.node = el("section", { class: "desk", "aria-label": who },
    el("div", { class: "head" }, title, score),
    el("div", { class: "left" }, desk.acting, desk.choosing, panel("timeline", box.timeline), panel("network", box.map, legend()), panel("done", box.log)),
    el("div", { class: "right" }, panel("what is seen", box.seen), desk.truth, panel("rewards", box.rewards),
      el("details", { class: "panel" }, el("summary", {}, "as a model reads it"), box.text)));
  return desk;
}

function legend() {
  const each = Object.entries(MARKS).map(([mark, [letter, said]]) => el("li", {}, el("span", { class: `key ${mark}`, "aria-hidden": "true" }, letter), said));
  return el("ul", { class: "legend" }, each, el("li", {}, el("span", { class: "key alert", "aria-hidden": "true" }, "2"), "alerts in view"));
}

function table(head, rows, caption) {
  return el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head.map((x) => el("th", { scope: "col" }, x)))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map((x) => el("td", {}, x))))));
}

const age = (ticks) => (ticks === 0 ? "now" : String(ticks));

function seen({ view }) {
  const alerts = view.alerts.map((a) => [words(a.signal), [a.asset, a.identity].filter(Boolean).join(" + ") || "nobody", percent(a.severity), age(a.ticks_ago)]);
  const results = view.forensics.map((f) => [f.target, f.verdict, percent(f.confidence), age(f.ticks_ago)]);
  return [
    alerts.length ? table(["signal", "names", "severity", "ticks ago"], alerts, "Alerts") : el("p", { class: "faint" }, "No alerts."),
    results.length ? table(["target", "verdict", "sure", "ticks ago"], results, "Forensics") : el("p", { class: "faint" }, "Nothing was investigated."),
    view.attacker_personality ? el("p", {}, `Attacker: ${view.attacker_personality}`) : null,
  ];
}

function truth({ episode }, { truth }) {
  const stages = episode.stages.map((stage, k) => {
    const status = truth.stages[k];
    return el("li", { class: status.replace(" ", "-") }, el("b", {}, stage.id), ` ${stage.technique} ${stage.tactic}, ${stage.targets.join(" + ")}: `, el("em", {}, status));
  });
  return [
    el("p", {}, `${episode.attack ? `There is an attack; attacker: ${episode.personality}.` : "There is no attack in this episode."} In the end: ${episode.end}.`),
    el("ol", { class: "stages" }, stages),
  ];
}

function rewards(ticks, now) {
  const done = ticks.slice(1, now + 1);
  const sum = (of) => done.reduce((total, t) => total + of(t), 0);
  const last = ticks[now];
  const channels = Object.keys(ticks.at(-1).channels ?? {});
  const rows = channels.map((name) => [words(name), points(last.channels?.[name] ?? 0), points(sum((t) => t.channels[name]))]);
  rows.push(["all", points(last.reward ?? 0), points(sum((t) => t.reward))]);
  return table(["channel", "this tick", "so far"], rows, channels.length ? "Points" : "Points (by channel once it is over)");
}

// What a model found likely at a tick, before it acted; while it thinks, at the last tick at which it was asked.
function choices(desk, now) {
  const last = desk.choices.findLastIndex(Boolean);
  if (!desk.episode && now === desk.ticks.length - 1 && last >= 0 && last < now) return [el("p", { class: "faint" }, `It thinks. At tick ${last}:`), ...choices(desk, last)];
  const told = desk.choices[now];
  if (!told) return [el("p", { class: "faint" }, desk.texts[now] != null ? "Its probabilities are not known: it is behind a server." : now < desk.texts.length ? "It was not asked: nothing is new. It waits." : desk.episode ? "The episode is over." : "It thinks.")];
  const [many, rest] = told.others;
  const chosen = desk.ticks[now + 1]?.action;
  const row = (name, share, mark) => el("tr", mark ? { class: "chosen" } : {}, el("th", { scope: "row" }, name, mark ? " (chosen)" : ""), el("td", {}, exactly(share)), el("td", {}, el("meter", { value: share, "aria-hidden": "true" })));
  const rows = told.likely.map(([name, share]) => row(words(name.split(" ")[0]) + (name.includes(" ") ? ` ${name.split(" ")[1]}` : ""), share, name === chosen));
  if (many) rows.push(row(`${many} others`, rest, false));
  return [
    el("table", {}, el("caption", {}, "Probability among the legal actions"), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "action"), el("th", { scope: "col" }, "probability"), el("td"))), el("tbody", {}, rows)),
    el("p", { class: "faint" }, `By itself it would say some legal action with probability ${exactly(told.legal)}.`),
  ];
}

function log(desk, now, go) {
  const rows = [];
  for (const t of desk.ticks.slice(1)) {
    const said = desk.texts?.[t.tick - 1] ?? t.refusal;
    const before = rows.at(-1);
    if (before && !said && !before.said && before.action === t.action && t.action === "MONITOR") Object.assign(before, { to: t.tick, paid: before.paid + t.reward });
    else rows.push({ from: t.tick, to: t.tick, action: t.action, paid: t.reward, said });
  }
  const item = (row) => {
    const when = row.from === row.to ? `${row.from}` : `${row.from}–${row.to}`;
    const current = row.from <= now && now <= row.to;
    return el("li", {}, el("button", { type: "button", class: "plain", "aria-current": current ? "step" : null, onclick: () => go(row.to) },
      el("span", { class: "when" }, when), ` ${row.action.split(" ")[0].toLowerCase().replaceAll("_", " ")} ${row.action.split(" ")[1] ?? ""} `, el("span", { class: "paid" }, points(row.paid))),
      row.said ? el("blockquote", {}, row.said) : null);
  };
  return rows.length ? el("ol", { class: "log" }, rows.map(item)) : el("p", { class: "faint" }, "Nothing yet.");
}

export function show(desk, at, go, choose) {
  const now = Math.min(at, desk.ticks.length - 1);
  const tick = desk.ticks[now];
  const so_far = desk.ticks.slice(1, now + 1).reduce((total, t) => total + t.reward, 0);
  const over = desk.episode && now === desk.ticks.length - 1;
  desk.score.textContent = `tick ${now} of ${desk.horizon}, return ${points(so_far)}${over ? `, end: ${desk.episode.end}` : ""}`;
  const width = (slot) => Math.max(280, Math.floor(slot.clientWidth));
  desk.box.map.replaceChildren(map(desk, tick, width(desk.box.map), desk.target, choose));
  desk.box.timeline.replaceChildren(timeline(desk, now, width(desk.box.timeline), go));
  desk.box.seen.replaceChildren(...seen(tick).filter(Boolean));
  desk.choosing.hidden = !desk.choices;
  if (desk.choices) desk.box.choices.replaceChildren(...choices(desk, now));
  desk.truth.hidden = !tick.truth;
  desk.box.truth.replaceChildren(...(tick.truth ? truth(desk, tick) : []));
  desk.box.rewards.replaceChildren(rewards(desk.ticks, now));
  const kept = desk.box.log.firstChild?.scrollTop;
  const held = desk.box.log.contains(document.activeElement);
  desk.box.log.replaceChildren(log(desk, now, go));
  const current = desk.box.log.querySelector("[aria-current]");
  if (kept) desk.box.log.firstChild.scrollTop = kept;
  if (current) desk.box.log.firstChild.scrollTop = current.offsetTop - desk.box.log.firstChild.offsetTop - 60;
  if (held) current?.focus();
  desk.box.text.textContent = tick.text;
}

export const news = (tick) => tick.view.alerts.some((a) => a.ticks_ago === 0) || tick.view.forensics.some((f) => f.ticks_ago === 0);

export function summary(desk, at) {
  const tick = desk.ticks[Math.min(at, desk.ticks.length - 1)];
  const fresh = tick.view.alerts.filter((a) => a.ticks_ago === 0).map((a) => `alert ${words(a.signal)} on ${[a.asset, a.identity].filter(Boolean).join(" and ") || "nobody"}, severity ${percent(a.severity)}`);
  const found = tick.view.forensics.filter((f) => f.ticks_ago === 0).map((f) => `${f.target} ${f.verdict}, ${percent(f.confidence)} sure`);
  return [`Tick ${tick.tick}`, tick.action && words(tick.action.split(" ")[0]) + (tick.action.split(" ")[1] ? ` ${tick.action.split(" ")[1]}` : ""), tick.reward != null && `reward ${points(tick.reward)}`, ...fresh, ...found].filter(Boolean).join(". ");
}
