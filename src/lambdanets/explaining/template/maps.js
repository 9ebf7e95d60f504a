"use strict";
// Computes A[h, n, m] = sum over k of q[h, n, k] (kbar[m, k] + E[n, m, k]) for one query n.
// Shapes: q [h, n, k]; keys [g, m, k, u]; logNorm [g, n, k, u]; table [*offsets, k, u]; lengths [m, u];
// share [h, n].
const at = (id) => document.getElementById(id);
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

function decode(array) {
  const bytes = Uint8Array.from(atob(array.f16 ?? array.f32), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  if (array.f32 !== undefined) {
    return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const bits = view.getUint16(2 * i, true),
      exponent = (bits >> 10) & 31,
      fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24;
    return (bits >> 15 ? -size : size) * array.scale;
  });
}

function coordinates(index, grid) {
  const found = [];
  for (const size of [...grid].reverse()) {
    found.unshift(index % size);
    index = Math.floor(index / size);
  }
  return found;
}
const indexOf = (place, grid) => place.reduce((index, i, axis) => index * grid[axis] + i, 0);

class Layer {
  constructor(raw) {
    this.raw = raw;
    this.grid = raw.grid;
    this.context = raw.context;
    [this.heads, this.queries, this.depth] = raw.q.shape;
    this.elements = product(raw.context);
    this.columns = raw.lengths.shape[1];
    this.arrays = {};
  }

  array(name) {
    return (this.arrays[name] ??= decode(this.raw[name]));
  }

  // The query at fractions of the input.
  query(fractions) {
    const place = this.grid.map((size, axis) =>
      Math.min(size - 1, Math.max(0, Math.floor(fractions[axis] * size))),
    );
    return indexOf(place, this.grid);
  }

  weights(query, head, part, column = 0, weighted = false) {
    const out = new Float64Array(this.elements);
    const start = (head * this.queries + query) * this.depth;
    const q = this.array("q").subarray(start, start + this.depth);
    if (part !== "position" && this.raw.keys) this.addContent(out, q, query, head, column);
    if (part !== "content" && this.raw.table) this.addPosition(out, q, query, column);
    const lengths = weighted ? this.array("lengths") : null;
    for (let m = 0; m < out.length; m++) {
      if (this.raw.mask && !this.raw.mask[m]) out[m] = 0;
      if (lengths) out[m] *= lengths[m * this.columns + column];
    }
    return out;
  }

  addContent(out, q, query, head, column) {
    const keys = this.array("keys"),
      sets = this.raw.keys.shape[0];
    const set = Math.floor((head * sets) / this.heads),
      { depth, columns } = this;
    const norm = this.raw.logNorm ? this.array("logNorm") : null;
    const decay = this.raw.decay ? this.array("decay") : null;
    const last = this.raw.causal ? query + 1 : out.length;
    for (let m = 0; m < last; m++) {
      let sum = 0;
      for (let k = 0; k < depth; k++) {
        let key = keys[((set * this.elements + m) * depth + k) * columns + column];
        if (norm) {
          let exponent = -norm[((set * this.queries + query) * depth + k) * columns + column];
          if (decay) exponent -= (query - m) * decay[k * columns + column];
          key = this.raw.normalize === "softmax" ? Math.exp(key + exponent) : key * Math.exp(exponent);
        }
        sum += q[k] * key;
      }
      out[m] += sum;
    }
  }

  addPosition(out, q, query, column) {
    const table = this.array("table"),
      { depth, columns } = this;
    const shape = this.raw.table.shape.slice(0, -2);
    const filter = new Float64Array(product(shape)).map((_, entry) => {
      let sum = 0;
      for (let k = 0; k < depth; k++) sum += q[k] * table[(entry * depth + k) * columns + column];
      return sum;
    });
    // As three axes, so that one loop serves all grids.
    const pad = (sizes, value) => [...Array(3 - sizes.length).fill(value), ...sizes];
    const size = pad(this.context, 1),
      from = pad(coordinates(query, this.grid), 0);
    const length = pad(shape, 1),
      centre = pad(this.raw.centre, 0),
      step = pad(this.raw.step, 1);
    const entries = (axis) =>
      Array.from({ length: size[axis] }, (_, to) => {
        const entry = (to - from[axis]) / step[axis] + centre[axis];
        const beyond = this.raw.causal && to > from[axis];
        return Number.isInteger(entry) && entry >= 0 && entry < length[axis] && !beyond ? entry : -1;
      });
    const [planes, rows, cells] = [entries(0), entries(1), entries(2)];
    let m = 0;
    for (const plane of planes) {
      for (const row of rows) {
        for (const cell of cells) {
          if (plane >= 0 && row >= 0 && cell >= 0)
            out[m] += filter[(plane * length[1] + row) * length[2] + cell];
          m++;
        }
      }
    }
  }
}
