// The state of the page, what depends on the layer alone, and the reactions to pointer and keyboard.
const data = JSON.parse(document.getElementById("data").textContent);
const layers = data.layers.map((raw) => new Layer(raw));
const rank = layers[0].grid.length;
const kind = data.tokens ? "text" : ["", "line", "image", "volume"][rank];
const state = {
  layer: layers.length - 1,
  approximation: -1,
  head: 0,
  part: "sum",
  column: 0,
  slice: 0,
  opacity: 0.85,
  own: false,
  weighted: false,
  fractions: data.start,
  pinned: false,
  pointer: null,
};
const layer = () => layers[state.layer];
const query = () => layer().query(state.fractions);
const fixed = () => (state.approximation < 0 ? null : data.approximations[state.approximation]);

function current(head = state.head) {
  if (fixed()) return decode(fixed().values);
  return layer().weights(query(), head, state.part, state.column, state.weighted);
}

function scaleOf(values, head) {
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  return fixed() || state.own || state.weighted ? largest : layer().raw.scales[state.part][head];
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const values = current(),
      scale = scaleOf(values, state.head);
    drawStage(values, scale);
    drawText(values, scale);
    if (!fixed()) drawHeads();
  });
}

// ---- what depends on the layer alone

function options(select, names, chosen) {
  select.replaceChildren(
    ...names.map((name, value) => make("option", { textContent: name, value, selected: value === chosen })),
  );
}

function buildLayer() {
  const approximate = fixed(),
    raw = layer().raw;
  state.head = Math.min(state.head, layer().heads - 1);
  state.column = Math.min(state.column, layer().columns - 1);
  options(
    at("head"),
    Array.from({ length: layer().heads }, (_, head) => `${head} (of ${layer().heads})`),
    state.head,
  );
  options(
    at("column"),
    Array.from({ length: layer().columns }, (_, u) => `${u} (of ${layer().columns})`),
    state.column,
  );
  at("perHead").hidden = Boolean(approximate);
  at("columnField").hidden = layer().columns === 1;
  for (const id of ["head", "column", "own", "weighted"]) at(id).disabled = Boolean(approximate);
  const present = { sum: true, content: raw.keys, position: raw.table };
  if (!present[state.part]) state.part = "sum";
  for (const input of document.getElementsByName("part")) {
    input.disabled = Boolean(approximate) || !present[input.value];
    input.checked = input.value === state.part;
  }
  if (kind === "volume") {
    at("slice").max = layer().context[0] - 1;
    state.slice = Math.floor(state.fractions[0] * layer().context[0]);
    at("slice").value = state.slice;
  }
  at("heads").replaceChildren(
    ...Array.from({ length: layer().heads }, (_, head) => {
      const button = make("button", { type: "button", title: `Head ${head}` });
      const canvas = make("canvas", {}, button);
      canvas.style.aspectRatio =
        rank === 1 ? "5 / 2" : `${layer().context.at(-1)} / ${layer().context.at(-2)}`;
      button.append(String(head));
      button.onclick = () => choose("head", head);
      return button;
    }),
  );
  at("shares").replaceChildren(
    ...Array.from({ length: layer().heads }, (_, head) => {
      const row = make("div", { className: "share" });
      make("span", { textContent: head }, row);
      make("i", {}, make("div", {}, row));
      make("span", {}, row);
      return row;
    }),
  );
  buildReach(approximate ? null : raw.reach);
  buildContent(approximate ? null : raw);
  buildAbout(raw);
  redraw();
}

function buildReach(reach) {
  at("reachBox").hidden = !reach;
  if (!reach) return;
  const { distances, magnitudes, radius } = reach,
    [width, height, foot] = [360, 130, 34];
  const last = distances.at(-1) + 1,
    bar = width / last,
    most = Math.max(...magnitudes, 1e-30);
  const bars = distances.map((distance, index) => {
    const size = (magnitudes[index] / most) * (height - foot - 14);
    const place = `x="${distance * bar + 0.5}" y="${height - foot - size}"`;
    return `<rect ${place} width="${Math.max(bar - 1, 0.6)}" height="${size}" fill="var(--accent)"/>`;
  });
  const x = Math.min((radius + 0.5) * bar, width - 1);
  at("reach").innerHTML =
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Mean |E| against the distance">
    ${bars.join("")}<line x1="0" x2="${width}" y1="${height - foot}" y2="${height - foot}" stroke="var(--line)"/>
    <line x1="${x}" x2="${x}" y1="4" y2="${height - foot}" stroke="var(--ink)" stroke-dasharray="4 3"/>
    <text x="0" y="${height - 18}">0</text>
    <text x="${width}" y="${height - 18}" text-anchor="end">${distances.at(-1)}</text>
    <text x="${width / 2}" y="${height - 3}" text-anchor="middle">distance from the query, in positions</text></svg>`;
  at("reachText").textContent =
    "Mean |E| of the position table at each distance, all heads together. 90 % of it is within " +
    `${radius.toFixed(1)} positions (dashed line).`;
}

function buildContent(raw) {
  const columns = raw && (raw.columns ?? raw.keys);
  at("contentBox").hidden = !columns;
  if (!columns) return;
  const values = raw.columns ? layer().array("columns") : layer().array("keys");
  const total = values.length / layer().elements,
    shown = Math.min(total, 32),
    perSet = layer().depth * layer().columns;
  const softmax = raw.normalize === "softmax";
  at("contentText").textContent =
    (raw.causal
      ? "The keys as the last position sees them. "
      : "These pictures are the same for all queries. ") +
    (softmax
      ? "Each sums to 1 over the input; below it, the number of positions over which it spreads (2 to its entropy). "
      : "") +
    "A query adds them up with its own k numbers." +
    (total > shown ? ` The first ${shown} of ${total}.` : "");
  at("content").replaceChildren(
    ...Array.from({ length: shown }, (_, column) => {
      const picture = Float64Array.from({ length: layer().elements }, (_, m) => {
        if (raw.columns) return values[column * layer().elements + m];
        return values[(Math.floor(column / perSet) * layer().elements + m) * perSet + (column % perSet)];
      });
      const figure = make("figure"),
        canvas = make("canvas", {}, figure),
        entropy = raw.entropy[column];
      canvas.style.aspectRatio =
        rank === 1 ? "5 / 2" : `${layer().context.at(-1)} / ${layer().context.at(-2)}`;
      const largest = picture.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
      paint(canvas, picture, layer().context, largest);
      if (softmax && entropy !== null) figure.append((2 ** entropy).toFixed(entropy < 3.4 ? 1 : 0));
      return figure;
    }),
  );
}

function buildAbout(raw) {
  const paragraphs = fixed()
    ? [
        `“${fixed().method}” follows the output “${fixed().target}” through all layers by an approximation: ` +
          "other methods give other pictures. The maps of single layers in the menu are exact.",
      ]
    : [
        "The output of this layer at the query is the sum of the values at all positions, each times the weight " +
          "drawn here. Orange adds a value, blue subtracts it. Weights do not sum to 1.",
        "A = Σₖ qₖ (k̄ₖ + Eₖ): content compares the query with the keys, position with the table of relative " +
          "offsets; the map is their sum.",
        "The sum of the weights times the values was compared with the layer’s output for all " +
          `${layer().queries.toLocaleString("en")} queries: the largest difference is ` +
          `${raw.error.toExponential(1)} of the largest output` +
          (raw.bias ? ", with a constant that the layer adds at every position." : "."),
        "The map shows what this layer adds, not why the network decides: earlier layers have already mixed " +
          "positions, and later layers use the result in their own way.",
      ];
  at("about").replaceChildren(...paragraphs.map((textContent) => make("p", { textContent })));
}

// ---- choosing

function choose(name, value) {
  state[name] = value;
  if (name === "head") at("head").value = value;
  redraw();
}

function fractionsAt(event) {
  if (kind === "text" && event.currentTarget === stage) {
    const index = event.target.closest?.("[data-index]")?.dataset.index;
    return index === undefined ? null : [(Number(index) + 0.5) / data.tokens.length];
  }
  const box = event.currentTarget.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  if (rank === 1) return [x];
  return kind === "image" ? [y, x] : [(state.slice + 0.5) / layer().context[0], y, x];
}

function pointed(event) {
  const fractions = fractionsAt(event);
  if (!fractions) return;
  state.pointer = fractions;
  if (!state.pinned && event.pointerType !== "touch") state.fractions = fractions;
  redraw();
}

function clicked(event) {
  const fractions = fractionsAt(event);
  if (!fractions) return;
  const same = layer().query(fractions) === query();
  state.pinned = !(state.pinned && same);
  state.fractions = fractions;
  redraw();
}

function pressed(event) {
  if (event.key === "Escape") state.pinned = false;
  const moves = {
    ArrowUp: [-2, -1],
    ArrowDown: [-2, 1],
    ArrowLeft: [-1, -1],
    ArrowRight: [-1, 1],
    PageUp: [-3, -1],
    PageDown: [-3, 1],
  };
  const move = moves[event.key];
  if (move && move[0] + rank >= 0) {
    const grid = layer().grid,
      axis = rank + move[0],
      place = coordinates(query(), grid);
    place[axis] = Math.min(grid[axis] - 1, Math.max(0, place[axis] + move[1]));
    state.fractions = place.map((i, j) => (i + 0.5) / grid[j]);
    state.pinned = true;
    if (kind === "volume") showSlice(Math.floor(state.fractions[0] * layer().context[0]));
  } else if (event.key !== "Escape") return;
  event.preventDefault();
  redraw();
}

function showSlice(slice) {
  state.slice = slice;
  at("slice").value = slice;
}

function build() {
  readColours();
  at("title").textContent = data.title;
  const exact = `exact maps, reconstruction error ${data.error.toExponential(1)}`;
  at("model").textContent = [data.model, exact].filter(Boolean).join(" · ");
  for (const [label, probability] of data.labels) {
    const item = make("li", { textContent: label }, at("labels"));
    make("b", { textContent: `${(100 * probability).toFixed(1)} %` }, item);
  }
  const words = layers.map((each) => each.raw.name.split("."));
  const shared =
    layers.length === 1
      ? 0
      : words[0].findIndex((word, i) => words.some((each) => each[i] !== word || each.length === i + 1));
  const names = layers.map(
    (each, i) => `${words[i].slice(Math.max(0, shared)).join(".")} (${each.grid.join(" × ")})`,
  );
  const others = data.approximations.map(
    (each) => `approximate, all layers: ${each.method} of ${each.target}`,
  );
  options(at("layer"), [...names, ...others], state.layer);
  const thing = { text: "text", line: "recording", image: "picture", volume: "slice" }[kind];
  const touch = matchMedia("(hover: none)").matches;
  at("hint").textContent =
    `${touch ? "Tap" : "Point at"} a position of the ${thing}, the query: the colours are the weights of all ` +
    `positions in the layer’s output there.${touch ? "" : " A click keeps it; arrow keys move it."}`;
  at("sliceField").hidden = kind !== "volume";
  at("colourField").hidden = !data.pictures.length;
  at("objectField").hidden = !data.marks.length;
  options(
    at("object"),
    data.marks.map(([label, , score], index) => `${index + 1}: ${label} ${Math.round(100 * score)} %`),
    0,
  );
  buildStage();
  for (const target of [stage, parts.chart].filter(Boolean)) {
    target.addEventListener("pointermove", pointed);
    target.addEventListener("click", clicked);
  }
  stage.addEventListener("pointerleave", () => ((state.pointer = null), redraw()));
  stage.addEventListener("keydown", pressed);
  at("layer").onchange = (event) => {
    const value = Number(event.target.value);
    state.approximation = value < layers.length ? -1 : value - layers.length;
    if (value < layers.length) state.layer = value;
    buildLayer();
  };
  at("head").onchange = (event) => choose("head", Number(event.target.value));
  at("column").onchange = (event) => choose("column", Number(event.target.value));
  for (const input of document.getElementsByName("part")) input.onchange = () => choose("part", input.value);
  at("opacity").oninput = (event) => choose("opacity", event.target.value / 100);
  at("slice").oninput = (event) => choose("slice", Number(event.target.value));
  at("own").onchange = (event) => choose("own", event.target.checked);
  at("weighted").onchange = (event) => choose("weighted", event.target.checked);
  at("colour").onchange = (event) => stage.classList.toggle("colour", event.target.checked);
  at("object").onchange = (event) => {
    const [left, top, right, bottom] = data.marks[Number(event.target.value)][1];
    state.fractions = [(top + bottom) / 2 / data.size[1], (left + right) / 2 / data.size[0]];
    state.pinned = true;
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (readColours(), buildLayer()));
  addEventListener("resize", redraw);
  at("page").hidden = false;
  buildLayer();
}

build();
// For scripts and tests: the state, the weights that are drawn, and those of any query.
window.explanation = {
  state,
  layers,
  current,
  query,
  weights: (index, ...rest) => Array.from(layers[index].weights(...rest)),
};
