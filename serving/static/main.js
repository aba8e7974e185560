// The page: what is chosen, who plays, which tick is shown, which keys do what.

import { ask, lines, linkOf, playersOf } from "./api.js";
import { KEYS, legal, makeDesk, news, show, summary } from "./desk.js";
import { $, el, words } from "./dom.js";

const HAND = "by hand";
let catalogue;
let desks = [];
let at = 0;
let timer = null;
let busy = false;
let shownHash = null;
let thinking = null; // what ends it

const unfinished = () => !desks.length || desks.some((desk) => !desk.episode);
const hand = () => desks.find((desk) => desk.session && !desk.episode);
const length = () => Math.max(0, ...desks.map((desk) => desk.ticks.length - 1));
const say = (text, bad = false) => Object.assign($("status"), { textContent: text, className: bad ? "bad" : "" });

async function doing(what, work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  if (what) say(what);
  try {
    await work();
  } catch (error) {
    stop();
    say(error.message, true);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

// --- episodes --------------------------------------------------------------------------------------------------------

const COMPILING = " The first time compiles, which can take a minute or two.";

function chosen() {
  const asked = Object.fromEntries(["scenario", "rules", "reward", "personality"].map((name) => [name, $(name).value]));
  const seed = $("seed").value.trim();
  if (seed && !/^\d{1,10}$/.test(seed)) throw new Error(`the seed ${seed.slice(0, 20)} is no whole number from 0 to 4294967295`);
  return seed ? { ...asked, seed: Number(seed) } : asked;
}

function networkOf(name) {
  const found = catalogue.networks[name] ?? Object.values(catalogue.networks).find((x) => x.path === name);
  if (!found) throw new Error(`there is no network ${name} here; start jaxsim-soc console with --network FILE`);
  return found;
}

function place(...made) {
  stop();
  leave();
  desks = made;
  $("desks").replaceChildren(...desks.map((desk) => desk.node));
  $("desks").classList.toggle("two", desks.length > 1);
  $("transport").hidden = false;
}

function leave() {
  for (const { session } of desks) if (session) fetch(`sessions/${session}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

// A desk learns the whole of its episode.
function told(desk, episode) {
  Object.assign(desk, { episode, ticks: episode.ticks });
  desk.acting.hidden = true;
  return desk;
}

const isModel = (who) => catalogue.models.includes(who);
const watched = async (who, asked) => told(makeDesk(who, networkOf(asked.scenario)), await ask("POST", "watch", { ...asked, policy: who }));
const replayed = async (who, { texts, choices, ...record }) => told(makeDesk(who, networkOf(record.scenario), { texts, choices }), await ask("POST", "episodes", record));

// A model plays, and is watched while it thinks; beside desks that are there already.
async function lived(who, asked, ...before) {
  const desk = makeDesk(who, networkOf(asked.scenario), { texts: [], choices: [] });
  place(...before, desk);
  thinking = new AbortController();
  $("halt").hidden = false;
  try {
    for await (const line of lines("live", { ...asked, policy: who }, thinking.signal)) {
      if (line.error) throw new Error(line.error);
      if (line.episode) return told(desk, line.episode);
      const { words, choices, seconds, ...tick } = line;
      const follows = at >= length();
      if (tick.tick) {
        desk.texts.push(words);
        desk.choices.push(choices);
      }
      desk.ticks.push(tick);
      go(follows ? length() : at);
      say(`${who} thinks about tick ${tick.tick + 1} of ${desk.horizon}${seconds > 0.05 ? `; the last took ${seconds.toFixed(1)} s` : ""}.`);
    }
    throw new Error("the server has stopped; start jaxsim-soc console again");
  } catch (error) {
    throw error.name === "AbortError" ? new Error(`Stopped at tick ${desk.ticks.length - 1} of ${desk.horizon}.`) : error;
  } finally {
    thinking = null;
    $("halt").hidden = true;
    render();
  }
}

const halt = () => thinking?.abort();

function begin() {
  return doing("Begun.", async () => {
    const [asked, who, beside] = [chosen(), $("who").value, $("beside").value];
    if (who === HAND) {
      const answer = await ask("POST", "play", asked);
      const desk = makeDesk(HAND, networkOf(asked.scenario), { session: answer.session, legal: legal(answer.answers), asked, beside });
      desk.ticks = [{ tick: 0, view: answer.observation, text: answer.text }];
      desk.target = [...desk.legal.keys()][0];
      place(desk);
      actions(desk);
      go(0);
      say("Tick 0. Choose a target with the arrow keys, an action by its letter.");
    } else {
      say(`${who} plays.${COMPILING}`);
      const first = await (isModel(who) ? lived : watched)(who, asked);
      place(...(beside ? [first, await besides(beside, first)] : [first]));
      over(0);
    }
    desks[0].title.focus();
  });
}

// Another player in the episode of a desk.
const besides = (who, desk) => (isModel(who) ? lived(who, desk.episode.record, desk) : watched(who, desk.episode.record));

function over(tick) {
  shownHash = linkOf(desks.map((desk) => ({ who: desk.who, record: desk.episode.record })));
  history.replaceState(null, "", shownHash);
  $("whole").hidden = false;
  go(tick);
  const ends = desks.map((desk) => `${desk.who}: return ${desk.episode.return.toFixed(2)}, end: ${desk.episode.end}`);
  say(`The episode is whole. ${ends.join(". ")}. Seed ${desks[0].episode.record.seed}.`);
}

async function act(desk, verb, target) {
  const answer = await ask("POST", `sessions/${desk.session}/step`, target ? { action: verb, target } : { action: verb });
  desk.ticks.push({ tick: desk.ticks.length, view: answer.observation, text: answer.text, reward: answer.reward, action: [verb, target].filter(Boolean).join(" ") });
  go(length());
  say(summary(desk, at));
  if (!answer.done) return false;
  say(`The episode is over: return ${answer.outcome.episode_return.toFixed(2)}.${COMPILING}`);
  told(desk, await ask("POST", "episodes", await ask("GET", `sessions/${desk.session}/record`)));
  leave();
  delete desk.session;
  if (desk.beside) place(desk, await besides(desk.beside, desk));
  over(length());
  desk.title.focus();
  return true;
}

function play(verb) {
  const desk = hand();
  if (!desk || busy) return;
  const target = verb === "MONITOR" ? undefined : desk.target;
  if (target && !desk.legal.get(target).includes(verb)) say(`${words(verb)} is no action on ${target}.`, true);
  else doing("", () => act(desk, verb, target));
}

const wait = () => hand() && doing("", async () => {
  const desk = hand();
  while (!(await act(desk, "MONITOR")) && !news(desk.ticks.at(-1)));
});

function actions(desk) {
  const label = (verb) => (verb === "MONITOR" ? "monitor" : words(verb).replace(/ (asset|identity)$/, ""));
  const button = (verb) => el("button", { type: "button", "data-verb": verb, "aria-keyshortcuts": KEYS[verb], onclick: () => play(verb) }, `${label(verb)} `, el("kbd", {}, KEYS[verb]));
  const verbs = Object.keys(KEYS).filter((verb) => verb === "MONITOR" || [...desk.legal.values()].some((some) => some.includes(verb)));
  const select = el("select", { onchange: () => choose(select.value) }, [...desk.legal.keys()].map((id) => el("option", {}, id)));
  desk.select = select;
  desk.box.actions.replaceChildren(
    el("label", {}, "Target ", select),
    el("div", { class: "buttons verbs" }, verbs.map(button), el("button", { type: "button", "aria-keyshortcuts": "w", onclick: wait }, "monitor until something happens ", el("kbd", {}, "w"))));
}

function choose(id) {
  const desk = hand();
  if (!desk?.legal.has(id)) return;
  desk.target = id;
  render();
}

// --- time ------------------------------------------------------------------------------------------------------------

function render() {
  const desk = hand();
  if (desk) {
    desk.select.value = desk.target;
    for (const button of desk.box.actions.querySelectorAll("[data-verb]")) {
      button.disabled = button.dataset.verb !== "MONITOR" && !desk.legal.get(desk.target).includes(button.dataset.verb);
    }
  }
  $("whole").hidden = unfinished();
  Object.assign($("scrub"), { max: length(), value: at });
  $("scrub").setAttribute("aria-valuetext", `tick ${at} of ${length()}`);
  $("clock").textContent = `Tick ${at} of ${length()}`;
  for (const each of desks) show(each, at, go, choose);
}

function go(tick) {
  at = Math.max(0, Math.min(tick, length()));
  render();
}

// Goes there because somebody asked to, and says what is there.
function step(tick) {
  stop();
  go(tick);
  if (desks.length) say(desks.map((desk) => (desks.length > 1 ? `${desk.who}: ` : "") + summary(desk, at)).join(". "));
}

function stop() {
  clearInterval(timer);
  timer = null;
  $("run").textContent = "Run";
}

function run() {
  if (timer || !desks.length) {
    stop();
    return;
  }
  if (at >= length()) go(0);
  $("run").textContent = "Pause";
  timer = setInterval(() => (at < length() ? go(at + 1) : stop()), 1000 / Number($("speed").value));
}

function faster(by) {
  const select = $("speed");
  select.selectedIndex = Math.max(0, Math.min(select.options.length - 1, select.selectedIndex + by));
  say(`${select.value} ticks a second`);
  if (!timer) return;
  stop();
  run();
}

// --- in and out ------------------------------------------------------------------------------------------------------

function download(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const plain = (who) => who.split(/[/\\]/).at(-1).replace(/[^\w.]+/g, "-");
const fileName = (record, end) => `${record.scenario.split(/[/\\]/).at(-1).replace(/[^\w.-]/g, "-")}-${record.seed}-${record.episode}${end}`;

const saved = () => desks.forEach(({ who, texts, choices, episode: { record } }, i) =>
  download(new Blob([`${JSON.stringify(texts ? { ...record, model: who, texts, choices } : record, null, 2)}\n`], { type: "application/json" }), fileName(record, i ? `-${plain(who)}.json` : ".json")));

const exported = () => doing(`Exporting.${COMPILING}`, async () => {
  for (const { who, episode: { record } } of desks) download(await ask("POST", "export", record), fileName(record, `-${plain(who)}.zip`));
  say("Exported: alerts, actions and what was true, as export-soc writes them.");
});

async function copied() {
  if (unfinished()) return;
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. It replays this episode on any machine that runs jaxsim-soc console.");
  } catch {
    say("The link is the address of this page; copy it from there.");
  }
}

const opened = (file) => doing(`Replaying ${file.name}.${COMPILING}`, async () => {
  let record;
  try {
    record = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no JSON file; give a replay record`);
  }
  place(await replayed(record.policy ?? record.model ?? "record", record));
  over(0);
});

const linked = () => location.hash.length > 1 && location.hash !== shownHash && doing(`Replaying the link.${COMPILING}`, async () => {
  const made = [];
  for (const { who, record } of playersOf(location.hash)) made.push(await replayed(who, record));
  if (!made.length) throw new Error("the link is damaged: it has no actions");
  place(...made);
  over(0);
});

// --- the page --------------------------------------------------------------------------------------------------------

function theme(next) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = next ?? ((document.documentElement.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = now;
  try {
    localStorage.setItem("theme", now);
  } catch {
    // A browser that keeps nothing forgets it.
  }
}

function target(by) {
  const desk = hand();
  if (!desk) return;
  const ids = [...desk.legal.keys()];
  choose(ids[(ids.indexOf(desk.target) + by + ids.length) % ids.length]);
  say(`Target: ${desk.target}. ${desk.legal.get(desk.target).map(words).join(", ")}.`);
}

const SHORT = {
  " ": run, ArrowLeft: () => step(at - 1), ArrowRight: () => step(at + 1), Home: () => step(0), End: () => step(length()),
  "-": () => faster(-1), "+": () => faster(1), ArrowUp: () => target(-1), ArrowDown: () => target(1), w: wait,
  Escape: halt, n: () => $("scenario").focus(), l: copied, t: () => theme(), "?": () => $("keys").showModal(),
  ...Object.fromEntries(Object.entries(KEYS).map(([verb, key]) => [key, () => play(verb)])),
};

function pressed(event) {
  const { key, target: on } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open || !Object.hasOwn(SHORT, key)) return;
  if (on.matches("select, input, textarea") && !(on.type === "range" && !key.startsWith("Arrow") && key.length === 1)) return;
  if (key === " " && on.matches("button, summary")) return;
  if (key.startsWith("Arrow") && (key === "ArrowUp" || key === "ArrowDown") && !hand()) return;  // scrolls
  event.preventDefault();
  SHORT[key]();
}

function options(id, names, value) {
  $(id).replaceChildren(...names.map((x) => el("option", { value: x.value ?? x }, x.said ?? x)));
  if (value !== undefined) $(id).value = value;
}

async function start() {
  catalogue = await ask("GET", "catalogue");
  const { defaults } = catalogue;
  const policies = [...catalogue.policies, ...catalogue.models];
  options("scenario", Object.keys(catalogue.networks), defaults.scenario);
  options("rules", catalogue.rules, defaults.rules);
  options("reward", catalogue.rewards, defaults.reward);
  options("personality", catalogue.personalities, defaults.personality);
  options("who", [HAND, ...policies]);
  options("beside", [{ value: "", said: "nobody" }, ...policies]);
  $("setup").addEventListener("submit", (event) => {
    event.preventDefault();
    begin();
  });
  const click = { help: () => $("keys").showModal(), theme: () => theme(), first: () => step(0), back: () => step(at - 1), run, halt, on: () => step(at + 1), last: () => step(length()), link: copied, record: saved, export: exported };
  for (const [id, does] of Object.entries(click)) $(id).addEventListener("click", () => does());
  $("scrub").addEventListener("input", () => step(Number($("scrub").value)));
  $("speed").addEventListener("change", () => faster(0));
  $("open").addEventListener("change", ({ target: { files } }) => files[0] && opened(files[0]));
  document.addEventListener("keydown", pressed);
  addEventListener("resize", () => desks.length && render());
  addEventListener("hashchange", linked);
  addEventListener("pagehide", leave);
  document.body.dataset.ready = "";
  if (location.hash.length > 1) await linked();
  else say("Choose, and begin.");
}

try {
  const kept = localStorage.getItem("theme");
  if (kept === "dark" || kept === "light") theme(kept);
} catch {
  // As above.
}
start().catch((error) => say(error.message, true));
