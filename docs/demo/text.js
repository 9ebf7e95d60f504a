// A prompt -> text, one character at a time, by the exported step and its state.
const CHARACTERS = 400;
const TYPES = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array };
let writing = false;

function initialState(known) {
  return Object.fromEntries(
    Object.entries(known.state).map(([name, { shape, dtype, initial }]) => {
      const sizes = [1, ...shape.slice(1)];
      const value = dtype === "int64" ? BigInt(initial) : Number(initial);
      return [name, new ort.Tensor(dtype, new TYPES[dtype](product(sizes)).fill(value), sizes)];
    }),
  );
}

function drawCharacter(logits, temperature) {
  if (temperature === 0) return argmax(logits);
  let rest = Math.random();
  const probabilities = softmax(logits, temperature);
  const found = probabilities.findIndex((probability) => (rest -= probability) < 0);
  return found < 0 ? argmax(logits) : found;
}

// Yields the characters that follow a prompt.
async function* continuation(prompt, temperature) {
  const { session, ...known } = await network("text");
  let memory = initialState(known),
    logits;
  const step = async (token) => {
    const feed = { tokens: new ort.Tensor("int64", BigInt64Array.of(BigInt(token)), [1]), ...memory };
    const found = await inTurn(() => session.run(feed));
    memory = Object.fromEntries(Object.keys(memory).map((name) => [name, found[`next.${name}`]]));
    logits = found.logits.data;
  };
  for (const character of prompt) await step(known.vocabulary.indexOf(character));
  while (true) {
    const token = drawCharacter(logits, temperature);
    yield known.vocabulary[token];
    await step(token);
  }
}

async function write() {
  if (writing) {
    writing = false;
    return;
  }
  const { vocabulary } = (await facts).text;
  const all = [...at("prompt").value].slice(-2000);
  const prompt = all.filter((character) => vocabulary.includes(character)).join("") || "\n";
  const left = all.length - [...prompt].length;
  writing = true;
  at("write").textContent = "Stop";
  at("text").replaceChildren(make("b", { textContent: prompt }));
  const started = performance.now();
  let count = 0;
  try {
    for await (const character of continuation(prompt, Number(at("bold").value))) {
      at("text").append(character);
      count++;
      // The browser draws what is there.
      if (count % 4 === 0) await new Promise(requestAnimationFrame);
      const rate = (1000 * count) / (performance.now() - started);
      at("speed").textContent =
        `${count} characters, ${Math.round(rate)} per second.` +
        (left > 0 ? ` ${left} characters of the beginning are unknown to the network, and left out.` : "");
      if (!writing || count >= CHARACTERS) break;
    }
  } finally {
    writing = false;
    at("write").textContent = "Write";
  }
}
at("write").onclick = write;
facts.then(({ text }) => {
  const bytes = Object.values(text.state).reduce(
    (sum, { shape, dtype }) => sum + product(shape.slice(1)) * TYPES[dtype].BYTES_PER_ELEMENT, 0);
  at("stateSize").textContent = Math.round(bytes / 1000);
}, () => fail("The file facts.json is missing or damaged: build the page again."));

Object.assign(window.demo, {
  async write(prompt, length) {
    let text = "";
    for await (const character of continuation(prompt, 0)) {
      text += character;
      if ([...text].length >= length) return text;
    }
  },
});
