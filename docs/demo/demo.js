// Loading of the networks, and what the three parts of the page share.
// drawing.js reads the state's opacity and slice, and the kind of the input.
const state = { layer: 0, head: 0, part: "sum", opacity: 0.85, slice: 0, query: null };
const kind = "image";

ort.env.wasm.numThreads = 1; // More threads need headers that static hosts do not send.
ort.env.wasm.wasmPaths = new URL("runtime/", document.baseURI).href;
ort.env.logLevel = "fatal";

function fail(sentence) {
  at("failure").textContent = sentence;
  at("failure").hidden = false;
}

const facts = fetch("facts.json").then((response) => {
  if (!response.ok) throw new Error(`facts.json: ${response.status}`);
  return response.json();
});

// Returns the facts and the session of a network; a sentence appears where it cannot be loaded.
const networks = {};
function network(name) {
  return (networks[name] ??= load(name));
}

async function load(name) {
  const status = at({ picture: "pictureResult", sound: "soundResult", text: "speed" }[name]);
  status.textContent = "Loading the network …";
  let known;
  try {
    known = (await facts)[name];
    const bytes = await (await fetch(known.file)).arrayBuffer();
    if (bytes.byteLength !== known.bytes || (await digest(bytes)) !== known.sha256)
      throw new Error("checksum");
    return { ...known, session: await ort.InferenceSession.create(bytes) };
  } catch (error) {
    status.textContent = "";
    fail(
      typeof WebAssembly === "undefined"
        ? "This browser has no WebAssembly, which the networks need."
        : `The file ${known?.file ?? "facts.json"} is missing or damaged (${error.message}): build the page again.`,
    );
    throw error;
  }
}

// Browsers have digests on https and on this machine alone; elsewhere the size is what is compared.
async function digest(bytes) {
  if (!globalThis.crypto?.subtle) return undefined;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function softmax(logits, temperature = 1) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

// Shows the class and the probabilities of all classes.
function showClasses(name, classes, logits) {
  const probabilities = softmax(logits);
  const best = argmax(probabilities);
  at(`${name}Result`).textContent = `${classes[best]}, with ${(100 * probabilities[best]).toFixed(1)} %`;
  const rows = classes.map((label, i) => {
    const row = make("li");
    make("span", { textContent: label }, row);
    make("i", {}, make("span", {}, row)).style.width = `${100 * probabilities[i]}%`;
    make("span", { textContent: `${(100 * probabilities[i]).toFixed(1)} %` }, row);
    return row;
  });
  at(`${name}Classes`).replaceChildren(...rows);
}

// One call of a network at a time: a session refuses a second one.
let last = Promise.resolve();
function inTurn(work) {
  last = last.then(work, work);
  return last;
}

at("page").hidden = false;
window.demo = { state };
