// Drawing of the stage, the legend, the heads and the sentence about the map that is shown.
let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["plus", "minus"])
    colours[name] = style.getPropertyValue(`--${name}`).trim().split(" ").map(Number);
}

// Colour and opacity of a weight: transparent at zero, opaque at the ends of the scale.
function colourOf(value, scale) {
  const t = Math.max(-1, Math.min(1, value / scale));
  return [...(t < 0 ? colours.minus : colours.plus), Math.abs(t) * state.opacity];
}

function paint(canvas, values, grid, scale) {
  const [height, width] = grid.length === 1 ? [1, grid[0]] : grid.slice(-2);
  const first = grid.length === 3 ? state.slice * height * width : 0;
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [red, green, blue, alpha] = colourOf(values[first + i], scale);
    image.data.set([red, green, blue, Math.round(255 * alpha)], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function make(tag, options = {}, parent = null) {
  const element = Object.assign(document.createElement(tag), options);
  if (parent) parent.append(element);
  return element;
}

const stage = at("stage");
const parts = {}; // of the stage
function buildStage() {
  if (kind === "text") {
    stage.className = "text";
    parts.tokens = data.tokens.map((token, index) => {
      const span = make("span", { textContent: token === "\n" ? "" : token }, stage);
      if (token === "\n") {
        make("span", { className: "mark", textContent: "↵" }, span);
        span.append("\n");
      }
      span.dataset.index = index;
      return span;
    });
    buildChart();
    return;
  }
  const [height, width] = kind === "line" ? [3, 10] : layer().grid.slice(-2);
  const [w, h] =
    kind === "line" && !data.size ? [10, 1] : data.size && kind !== "line" ? data.size : [width, height];
  stage.style.aspectRatio = `${w} / ${h}`;
  if (kind !== "line") stage.style.maxWidth = `min(100%, calc(72vh * ${w / h}))`;
  if (data.pictures.length) {
    parts.picture = make("img", { alt: "", draggable: false, src: data.pictures[0] }, stage);
    // Grey levels v become factor * v + offset.
    const [factor, offset] = data.tone,
      contrast = 1 - 2 * offset;
    parts.picture.style.filter = `grayscale(1) brightness(${factor / contrast}) contrast(${contrast})`;
    if (Math.max(...data.size) <= 128 && kind !== "line") parts.picture.classList.add("small");
  }
  parts.map = make("canvas", { className: "map", id: "map" }, stage);
  for (const [, [left, top, right, bottom]] of data.marks) {
    const box = make("div", { className: "box" }, stage);
    Object.assign(box.style, {
      left: `${(100 * left) / data.size[0]}%`,
      top: `${(100 * top) / data.size[1]}%`,
      width: `${(100 * (right - left)) / data.size[0]}%`,
      height: `${(100 * (bottom - top)) / data.size[1]}%`,
    });
  }
  parts.cell = make("div", { className: "cell" }, stage);
  if (kind === "line") buildChart();
}

function buildChart() {
  parts.chart = make("canvas", { id: "chart" });
  stage.after(parts.chart);
}

function drawStage(values, scale) {
  const grid = fixed() ? fixed().values.shape : layer().context,
    chosen = query();
  if (kind === "text") {
    parts.tokens.forEach((span, index) => {
      const [red, green, blue, alpha] = colourOf(values[index] ?? 0, scale);
      span.style.background = `rgb(${red} ${green} ${blue} / ${alpha})`;
      span.classList.toggle("query", !fixed() && index === chosen);
      span.classList.toggle("later", !fixed() && layer().raw.causal && index > chosen);
    });
    drawChart(values, scale, chosen);
    return;
  }
  paint(parts.map, values, grid, scale);
  const place = coordinates(chosen, layer().grid),
    cells = layer().grid;
  const [row, column] = kind === "line" ? [0, place[0]] : place.slice(-2);
  const [rows, columns] = kind === "line" ? [1, cells[0]] : cells.slice(-2);
  Object.assign(parts.cell.style, {
    left: `${(100 * column) / columns}%`,
    top: `${(100 * row) / rows}%`,
    width: `${100 / columns}%`,
    height: `${100 / rows}%`,
  });
  parts.cell.hidden = Boolean(fixed()) || (kind === "volume" && place[0] !== sliceOf(layer().grid[0]));
  if (kind === "volume" && data.pictures.length) {
    parts.picture.src = data.pictures[sliceOf(data.pictures.length)];
  }
  if (kind === "line") drawChart(values, scale, chosen);
}

// The shown slice, which is one of the context's, among a number of slices.
function sliceOf(count) {
  return Math.min(count - 1, Math.floor(((state.slice + 0.5) * count) / layer().context[0]));
}

function drawChart(values, scale, chosen) {
  const canvas = parts.chart,
    ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight],
    foot = 20;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const draw = canvas.getContext("2d"),
    style = getComputedStyle(document.documentElement);
  draw.scale(ratio, ratio);
  const middle = (height - foot) / 2,
    bar = width / values.length;
  values.forEach((value, index) => {
    const size = Math.max(-1, Math.min(1, value / scale)) * (middle - 4);
    draw.fillStyle = `rgb(${(value < 0 ? colours.minus : colours.plus).join(" ")})`;
    draw.fillRect(
      index * bar,
      middle - Math.max(size, 0),
      Math.max(bar - (bar > 4 ? 1 : 0), 0.5),
      Math.abs(size),
    );
  });
  draw.fillStyle = style.getPropertyValue("--quiet");
  draw.fillRect(0, middle, width, 1);
  if (!fixed()) {
    const x = ((chosen + 0.5) / layer().grid[0]) * width;
    draw.fillStyle = style.getPropertyValue("--ink");
    draw.fillRect(x - 0.75, 0, 1.5, height - foot);
  }
  draw.fillStyle = style.getPropertyValue("--quiet");
  draw.font = "12px system-ui, sans-serif";
  for (let tick = 0; tick <= 4; tick++) {
    draw.textAlign = tick === 0 ? "left" : tick === 4 ? "right" : "center";
    const label = data.seconds
      ? `${((data.seconds * tick) / 4).toFixed(2)} s`
      : Math.round(((values.length - 1) * tick) / 4);
    draw.fillText(label, (width * tick) / 4, height - 5);
  }
}

const number = (value) => (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toPrecision(2);
function placeName(index, grid) {
  const place = coordinates(index, grid);
  if (kind === "text") return `“${data.tokens[index] === "\n" ? "↵" : data.tokens[index]}” (${index})`;
  if (kind === "line") {
    return data.seconds ? `${(((index + 0.5) / grid[0]) * data.seconds).toFixed(2)} s` : `position ${index}`;
  }
  return (kind === "volume" ? `slice ${place[0]}, ` : "") + `row ${place.at(-2)}, column ${place.at(-1)}`;
}

function drawText(values, scale) {
  at("low").textContent = number(-scale);
  at("high").textContent = number(scale);
  const [plus, minus] = [colours.plus.join(" "), colours.minus.join(" ")];
  const halves = [
    `rgb(${minus} / ${state.opacity}), rgb(${minus} / 0) 50%`,
    `rgb(${plus} / 0) 50%, rgb(${plus} / ${state.opacity})`,
  ];
  at("bar").style.background = `linear-gradient(to right, ${halves.join(", ")}), var(--stage)`;
  const clipped = `at most ${100 * data.clipped} % of the weights are beyond the ends, and are drawn like them.`;
  at("clipping").textContent = fixed()
    ? "The ends are the largest value. This is an approximation, not the exact map of a layer."
    : state.own || state.weighted
      ? "The ends are the largest weight of this query."
      : `One scale for all queries of this layer, head and part: ${clipped}`;
  const grid = fixed() ? fixed().values.shape : layer().context;
  let [most, least] = [0, 0];
  values.forEach((value, index) => {
    if (value > values[most]) most = index;
    if (value < values[least]) least = index;
  });
  const lines = [];
  if (!fixed()) {
    const sizes = layer().grid.join(" × ");
    lines.push(
      `Query: ${placeName(query(), layer().grid)}, of ${sizes}${state.pinned ? " (kept; Escape lets go)" : ""}.`,
    );
  }
  if (values[most] > 0) lines.push(`Most positive: ${number(values[most])} at ${placeName(most, grid)}.`);
  if (values[least] < 0) lines.push(`Most negative: ${number(values[least])} at ${placeName(least, grid)}.`);
  if (state.pinned && state.pointer && !fixed()) {
    const place = grid.map((size, axis) =>
      Math.min(size - 1, Math.max(0, Math.floor(state.pointer[axis] * size))),
    );
    const index = indexOf(place, grid);
    lines.push(`Under the pointer: ${number(values[index])} at ${placeName(index, grid)}.`);
  }
  at("readout").textContent = lines.join(" ");
}

function drawHeads() {
  const buttons = [...at("heads").children];
  buttons.forEach((button, head) => {
    button.setAttribute("aria-pressed", String(head === state.head));
    const values = current(head);
    paint(button.firstChild, values, layer().context, scaleOf(values, head));
  });
  const share = layer().array("share");
  [...at("shares").children].forEach((row, head) => {
    const fraction = share[head * layer().queries + query()];
    row.children[1].firstChild.style.width = `${100 * fraction}%`;
    row.children[2].textContent = `${Math.round(100 * fraction)} %`;
  });
}
