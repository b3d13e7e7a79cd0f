
const kept = document.getElementById("state").textContent.trim();
if (kept) {
  const state = JSON.parse(kept);
  document.title = "crossfade report";
  draw(state);
  headline([`report of ${day(state.now)} · ${says(state)}`], trouble(state));
} else {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  live();
}
