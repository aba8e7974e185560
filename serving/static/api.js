// What is asked of the server, and episodes as links.

export async function ask(method, path, data) {
  const sent = data && { body: JSON.stringify(data), headers: { "Content-Type": "application/json" } };
  let answer;
  try {
    answer = await fetch(path, { method, ...sent });
  } catch {
    throw new Error("the server does not answer; start jaxsim-soc console again");
  }
  if (answer.ok && answer.headers.get("Content-Type") === "application/zip") return answer.blob();
  const text = await answer.text();
  const told = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(told?.error ?? `status ${answer.status}`);
  return told;
}

// The lines of JSON that an answer consists of, each once it is there; `signal` ends it.
export async function* lines(path, data, signal) {
  const sent = { method: "POST", body: JSON.stringify(data), headers: { "Content-Type": "application/json" }, signal };
  const lost = (error) => (error.name === "AbortError" ? error : new Error("the server does not answer; start jaxsim-soc console again"));
  const answer = await fetch(path, sent).catch((error) => { throw lost(error); });
  if (!answer.ok) throw new Error((await answer.json()).error ?? `status ${answer.status}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => { throw lost(error); });
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

const MOST = 10_000; // actions of a link; no server would take more

// Actions with runs of the same one written once: MONITOR*12;INVESTIGATE web-01
export function packed(actions) {
  const runs = [];
  for (const action of actions) {
    if (runs.at(-1)?.[0] === action) runs.at(-1)[1] += 1;
    else runs.push([action, 1]);
  }
  return runs.map(([action, many]) => (many > 1 ? `${action}*${many}` : action)).join(";");
}

export function unpacked(text) {
  const runs = text.split(";").map((run) => run.split("*"));
  const wrong = runs.find(([, many = "1"]) => !/^[1-9]\d{0,3}$/.test(many));
  if (wrong) throw new Error(`the link is damaged: ${wrong.join("*").slice(0, 60)}`);
  const length = runs.reduce((total, [, many = 1]) => total + Number(many), 0);
  if (length > MOST) throw new Error(`the link has ${length} actions; an episode has at most ${MOST}`);
  return runs.flatMap(([action, many = 1]) => Array(Number(many)).fill(action));
}

const GAME = ["version", "scenario", "rules", "personality"];

// One or two players' records of the same episode as a fragment, which no server is sent, and back.
export function linkOf(players) {
  const { record } = players[0];
  const parts = new URLSearchParams(GAME.map((name) => [name, record[name]]));
  parts.set("reward", typeof record.reward === "string" ? record.reward : JSON.stringify(record.reward));
  parts.set("seed", record.seed);
  parts.set("episode", record.episode);
  for (const { who, record } of players) {
    parts.append("who", who);
    parts.append("actions", packed(record.actions));
  }
  return `#${parts}`;
}

export function playersOf(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const game = Object.fromEntries([...GAME, "reward", "seed", "episode"].map((name) => [name, parts.get(name)]));
  const missing = Object.keys(game).find((name) => game[name] === null);
  if (missing) throw new Error(`the link is damaged: it has no ${missing}`);
  if (game.reward.startsWith("{")) game.reward = JSON.parse(game.reward);
  for (const name of ["seed", "episode"]) game[name] = Number(game[name]);
  const who = parts.getAll("who");
  return parts.getAll("actions").slice(0, 2).map((actions, i) => {
    return { who: who[i] ?? "record", record: { ...game, actions: unpacked(actions) } };
  });
}
