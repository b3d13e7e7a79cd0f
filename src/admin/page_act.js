
// Actions, for who knows admin.token. It is kept in this tab, and sent in a header: never in an address.
const TOKEN = "crossfade admin.token";
const acting = { busy: false, said: "", kind: "soft", sure: "" };

async function act(body, token = sessionStorage.getItem(TOKEN)) {
  Object.assign(acting, { busy: true, said: "asking…", kind: "soft", sure: "" });
  operate(last);
  let right = false;
  try {
    const answer = await fetch("act", { method: "POST", cache: "no-store", body: JSON.stringify(body),
      headers: { "content-type": "application/json", authorization: `Bearer ${token}` } });
    const { done, error } = await answer.json();
    right = answer.ok || (answer.status !== 401 && answer.status !== 403);
    Object.assign(acting, { said: done ?? error, kind: answer.ok ? "good" : "bad" });
    if (!right) sessionStorage.removeItem(TOKEN);
  } catch (error) {
    Object.assign(acting, { said: `no answer (${error.message}): look at what holds before you ask again`, kind: "bad" });
  }
  acting.busy = false;
  await look();
  operate(last, true);
  return right;
}

// What stops traffic or loses something is asked for twice.
function button(words, body, twice) {
  const key = JSON.stringify(body), sure = acting.sure === key;
  const made = h("button", { type: "button", "data-act": key, ...(acting.busy ? { disabled: "" } : {}), class: sure ? "bad" : "" }, sure ? `really: ${words}?` : words);
  made.addEventListener("click", () => {
    if (!twice || sure) return act(body);
    acting.sure = key;
    operate(last, true);
  });
  return made;
}
function unlock() {
  const input = h("input", { type: "password", id: "token", autocomplete: "off", "aria-label": "admin.token", placeholder: "admin.token" });
  const form = h("form", {}, input, " ", h("button", {}, "unlock actions"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = input.value.trim();
    if (await act({ action: "nothing" }, token)) sessionStorage.setItem(TOKEN, token);
    operate(last, true);
  });
  return form;
}
function actions(state) {
  const pauses = ["source", "target", "both"].map((side) => {
    const paused = side === "both" ? state.paused.source && state.paused.target : state.paused[side];
    const name = side === "both" ? "both backends" : `the ${side}`;
    return paused ? button(`resume ${name}`, { action: "resume", side }) : button(`pause ${name}`, { action: "pause", side }, true);
  });
  const forgets = state.repositories.filter((r) => r.stats.compared > 0)
    .map((r) => button(`forget the evidence of ${r.name}`, { action: "forget", repository: r.name }, true));
  const lock = h("button", { type: "button" }, "lock");
  lock.addEventListener("click", () => { sessionStorage.removeItem(TOKEN); Object.assign(acting, { said: "", sure: "" }); operate(last, true); });
  return h("p", { class: "actions" }, button("reload the configuration", { action: "reload" }), pauses, forgets, lock);
}

// Drawn again only when something is another: what is being typed stays.
let operated = "";
function operate(state, again) {
  const section = document.getElementById("operate");
  const known = sessionStorage.getItem(TOKEN) !== null;
  const shown = JSON.stringify([state.actions, known, acting, state.paused, state.repositories.map((r) => [r.name, r.stats.compared > 0])]);
  if (!again && shown === operated) return;
  operated = shown;
  section.hidden = !state.actions;
  if (!state.actions) return;
  section.replaceChildren(h("h2", {}, "Actions"), known ? actions(state) : unlock(),
    h("p", { id: "acted", role: "status", class: acting.kind }, acting.said));
}
