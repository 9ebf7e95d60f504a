// A drawing or a picture -> the digit, and the exact map of any query.
const drawing = at("drawing");
const pen = drawing.getContext("2d", { willReadFrequently: true });
let layers = []; // of the last picture

function emptyDrawing() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, drawing.width, drawing.height);
}

// Returns grey levels from 0 to 1 of the ink, as the training set has them: the digit fills the height,
// and a pixel is the mean of its area. Null without ink.
function shrink(size) {
  const side = drawing.width,
    rgba = pen.getImageData(0, 0, side, side).data;
  const ink = Float32Array.from({ length: side * side }, (_, i) => rgba[4 * i] / 255);
  let [top, left, bottom, right] = [side, side, -1, -1];
  ink.forEach((value, i) => {
    if (value < 0.3) return;
    const [row, column] = [Math.floor(i / side), i % side];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
  });
  if (bottom < 0) return null;
  const length = Math.max(bottom - top, right - left) + 1,
    cell = length / size;
  const [y, x] = [(top + bottom + 1 - length) / 2, (left + right + 1 - length) / 2];
  return Float32Array.from({ length: size * size }, (_, i) => {
    const [row, column] = [Math.floor(i / size), i % size];
    let [sum, count] = [0, 0];
    for (let v = Math.floor(y + row * cell); v < y + (row + 1) * cell; v++) {
      for (let u = Math.floor(x + column * cell); u < x + (column + 1) * cell; u++) {
        sum += v >= 0 && u >= 0 && v < side && u < side ? ink[v * side + u] : 0;
        count++;
      }
    }
    return sum / count;
  });
}

// Classifies grey levels from 0 to 1, row by row.
async function classifyPicture(levels) {
  const { session, classes, size, mean, std, layers: known } = await network("picture");
  const values = levels.map((level) => (level - mean) / std);
  const found = await inTurn(() =>
    session.run({ images: new ort.Tensor("float32", values, [1, 1, size, size]) }),
  );
  layers = known.map((raw) => {
    const layer = new Layer(raw);
    layer.arrays = {
      q: found[`${raw.name}/q`].data,
      keys: found[`${raw.name}/keys`].data,
      table: raw.table.values,
    };
    return layer;
  });
  showClasses("picture", classes, found.logits.data);
  const canvas = at("seen");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  // Between dark and light grey, on which both colours of the map can be seen.
  levels.forEach((level, i) => image.data.set([...Array(3).fill(64 + 165 * level), 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (!at("layer").children.length) buildMenus();
  showMap();
  return Array.from(found.logits.data);
}

function buildMenus() {
  const option = (value, textContent) => make("option", { value, textContent });
  at("layer").replaceChildren(
    ...layers.map((layer, i) => option(i, `${layer.raw.name} (${layer.grid.join(" × ")})`)),
  );
  state.layer = 0;
  at("head").replaceChildren(...Array.from({ length: layers[0].heads }, (_, head) => option(head, head)));
  state.query ??= [0.5, 0.5];
}

// The end of the colour scale: 98 % of the weights of all queries of a layer and head are below it.
function endOfScale(layer) {
  const sizes = [];
  for (let query = 0; query < layer.queries; query++)
    sizes.push(...layer.weights(query, state.head, "sum").map(Math.abs));
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || 1e-30;
}

function showMap() {
  if (!layers.length) return;
  const layer = layers[state.layer],
    query = layer.query(state.query),
    scale = endOfScale(layer);
  paint(at("map"), layer.weights(query, state.head, state.part), layer.context, scale);
  const [row, column] = coordinates(query, layer.grid);
  const [rows, columns] = layer.grid;
  Object.assign(at("cell").style, {
    left: `${(100 * column) / columns}%`,
    top: `${(100 * row) / rows}%`,
    width: `${100 / columns}%`,
    height: `${100 / rows}%`,
  });
  at("cell").hidden = false;
  at("low").textContent = number(-scale);
  at("high").textContent = number(scale);
  at("bar").style.background =
    `linear-gradient(to right, rgb(${colours.minus.join(" ")}), transparent 50%, rgb(${colours.plus.join(" ")}))`;
}

let waiting = false;
async function drawn() {
  if (waiting) return;
  waiting = true;
  await new Promise((done) => setTimeout(done, 60));
  waiting = false;
  const { size } = (await facts).picture;
  const levels = shrink(size);
  if (levels) await classifyPicture(levels);
}

let from = null;
function placeOf(event) {
  const box = drawing.getBoundingClientRect();
  const scale = drawing.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}
drawing.addEventListener("pointerdown", (event) => {
  drawing.setPointerCapture(event.pointerId);
  from = placeOf(event);
});
drawing.addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = placeOf(event);
  Object.assign(pen, { lineWidth: 44, lineCap: "round", strokeStyle: "#fff" });
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
  from = to;
  drawn();
});
for (const name of ["pointerup", "pointercancel"]) drawing.addEventListener(name, () => (from = null));

async function openPicture(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    at("pictureResult").textContent = `${file.name} is not a picture that this browser can read.`;
    return;
  }
  emptyDrawing();
  const scale = drawing.width / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  pen.drawImage(picture, (drawing.width - width) / 2, (drawing.height - height) / 2, width, height);
  // Grey levels over their whole range, with light ink: the border shows whether the paper is light.
  const area = [(drawing.width - width) / 2, (drawing.height - height) / 2, width, height].map(Math.round);
  const image = pen.getImageData(...area),
    pixels = image.data;
  const grey = Array.from({ length: pixels.length / 4 }, (_, i) =>
    0.299 * pixels[4 * i] + 0.587 * pixels[4 * i + 1] + 0.114 * pixels[4 * i + 2]);
  const [low, high] = grey.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [255, 0]);
  const light = grey[0] + grey.at(-1) > low + high;
  grey.forEach((value, i) => {
    const level = (255 * (value - low)) / Math.max(1, high - low);
    pixels.set(Array(3).fill(light ? 255 - level : level), 4 * i);
  });
  pen.putImageData(image, area[0], area[1]);
  await drawn();
}
at("pictureFile").onchange = (event) => openPicture(event.target.files[0]);
drawing.addEventListener("dragover", (event) => event.preventDefault());
drawing.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) openPicture(event.dataTransfer.files[0]);
});

at("clear").onclick = () => {
  emptyDrawing();
  layers = [];
  at("cell").hidden = true;
  for (const id of ["map", "seen"]) at(id).getContext("2d").clearRect(0, 0, at(id).width, at(id).height);
  at("pictureClasses").replaceChildren();
  at("pictureResult").textContent = "Nothing drawn yet.";
};
for (const id of ["layer", "head", "part"])
  at(id).onchange = (event) => {
    state[id] = id === "part" ? event.target.value : Number(event.target.value);
    showMap();
  };

function pointed(event) {
  const box = stage.getBoundingClientRect();
  state.query = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  showMap();
}
stage.addEventListener("pointermove", pointed);
stage.addEventListener("click", pointed);
stage.addEventListener("keydown", (event) => {
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!move || !layers.length) return;
  event.preventDefault();
  const grid = layers[state.layer].grid;
  const place = coordinates(layers[state.layer].query(state.query), grid);
  state.query = place.map(
    (i, axis) => (Math.min(grid[axis] - 1, Math.max(0, i + move[axis])) + 0.5) / grid[axis],
  );
  showMap();
});

if (matchMedia("(hover: none)").matches) at("pointing").textContent = "Tap";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (readColours(), showMap()));
readColours();
emptyDrawing();
Object.assign(window.demo, {
  classifyPicture: (levels) => classifyPicture(Float32Array.from(levels)),
  map: (layer, ...rest) => Array.from(layers[layer].weights(...rest)),
});
