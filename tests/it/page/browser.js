// Drives headless Chromium over its pipe. A line of standard input is a JSON array, its answer a line of JSON:
// ["go", url], ["eval", expression], ["view", width, height, "dark" | "light"], ["shot", file].
"use strict";
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const readline = require("node:readline");

const profile = process.argv[2];
const browser = spawn(process.env.CHROMIUM || "chromium", [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
  "--disable-background-networking", `--user-data-dir=${profile}`, "--remote-debugging-pipe", "about:blank",
], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
browser.on("error", (error) => { console.error(String(error)); process.exit(1); });
browser.on("exit", () => process.exit(0));
process.on("exit", () => browser.kill("SIGKILL"));

let number = 0, rest = Buffer.alloc(0);
const waiting = new Map(), events = new Map();
browser.stdio[4].on("data", (bytes) => {
  rest = Buffer.concat([rest, bytes]);
  for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
    const message = JSON.parse(rest.subarray(0, end));
    if (message.id) {
      waiting.get(message.id)?.(message);
      waiting.delete(message.id);
    } else {
      events.get(message.method)?.();
    }
  }
});
let session;
function call(method, params = {}) {
  const id = ++number;
  browser.stdio[3].write(JSON.stringify({ id, method, params, sessionId: session }) + "\0");
  return new Promise((resolve, reject) => waiting.set(id, (m) => (m.error ? reject(new Error(m.error.message)) : resolve(m.result))));
}
const commands = {
  async go(url) {
    const loaded = new Promise((resolve) => events.set("Page.loadEventFired", resolve));
    await call("Page.navigate", { url });
    await loaded;
  },
  async eval(expression) {
    const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description || exceptionDetails.text);
    return result.value;
  },
  async view(width, height, scheme) {
    await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  },
  async shot(file) {
    const { data } = await call("Page.captureScreenshot", { format: "png", captureBeyondViewport: false });
    fs.writeFileSync(file, Buffer.from(data, "base64"));
  },
};
(async () => {
  const { targetInfos } = await call("Target.getTargets");
  const page = targetInfos.find((t) => t.type === "page") || await call("Target.createTarget", { url: "about:blank" });
  session = (await call("Target.attachToTarget", { targetId: page.targetId, flatten: true })).sessionId;
  await call("Page.enable");
  await call("Page.addScriptToEvaluateOnNewDocument", {
    source: "window.violations = []; addEventListener('securitypolicyviolation', (e) => window.violations.push(e.violatedDirective)); addEventListener('error', (e) => window.violations.push(e.message));",
  });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...rest] = JSON.parse(line);
    const answer = await commands[command](...rest).then((ok) => ({ ok: ok ?? null }), (error) => ({ error: error.message }));
    console.log(JSON.stringify(answer));
  }
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
