// Convolution: the computation, then the diagrams.
"use strict";

const Convolution = {
  span: (kernel, dilation) => dilation * (kernel - 1) + 1,

  outputSize({ size, kernel, stride, padding, dilation }) {
    return Math.floor((size + 2 * padding - Convolution.span(kernel, dilation)) / stride) + 1;
  },

  // The row or column of the input that a position, which may lie in the padding, reads; -1: a zero.
  source(position, { size, mode }) {
    if (position >= 0 && position < size) return position;
    if (mode !== "reflect") return -1;
    return position < 0 ? -position : 2 * (size - 1) - position;
  },

  // What the window at an output reads, one entry for each weight; y and x may lie in the padding, row and column not.
  taps(i, j, setting, weights) {
    const found = [];
    for (let u = 0; u < setting.kernel; u += 1) {
      for (let v = 0; v < setting.kernel; v += 1) {
        const y = i * setting.stride + u * setting.dilation - setting.padding;
        const x = j * setting.stride + v * setting.dilation - setting.padding;
        const [row, column] = [Convolution.source(y, setting), Convolution.source(x, setting)];
        found.push({ u, v, y, x, row, column, padded: row < 0 || column < 0, weight: weights[u][v] });
      }
    }
    return found;
  },

  forward(image, weights, setting) {
    const size = Convolution.outputSize(setting);
    return Array.from({ length: size }, (_, i) => Array.from({ length: size }, (__, j) =>
      Convolution.taps(i, j, setting, weights).reduce((sum, tap) => sum + (tap.padded ? 0 : tap.weight * image[tap.row][tap.column]), 0)));
  },

  // A row for each output and a column for each pixel. Mirrored padding adds weights that read the same pixel.
  matrix(weights, setting) {
    const size = Convolution.outputSize(setting);
    return Array.from({ length: size * size }, (_, output) => {
      const row = new Array(setting.size ** 2).fill(0);
      for (const tap of Convolution.taps(Math.floor(output / size), output % size, setting, weights)) {
        if (!tap.padded) row[tap.row * setting.size + tap.column] += tap.weight;
      }
      return row;
    });
  },

  // Why the kernel does not fit, or null.
  refusal(setting) {
    const { size, kernel, padding, dilation } = setting;
    const span = Convolution.span(kernel, dilation);
    if (span <= size + 2 * padding) return null;
    return `A kernel of ${kernel} with dilation ${dilation} spans ${span} pixels, more than the ${size + 2 * padding} of an input of ${size} `
      + `with padding ${padding}. Use a larger input, a smaller kernel or a smaller dilation.`;
  },
};

const Kernels = {
  make: (size, at) => Array.from({ length: size }, (_, u) => Array.from({ length: size }, (__, v) => at(u, v, (size - 1) / 2))),
  edge: (size) => Kernels.make(size, (u, v, middle) => (size === 1 ? 1 : Math.sign(v - middle))),
  level: (size) => Kernels.make(size, (u, v, middle) => (size === 1 ? 1 : Math.sign(u - middle))),
  blur: (size) => Kernels.make(size, () => 1),
  copy: (size) => Kernels.make(size, (u, v, middle) => Number(u === Math.floor(middle) && v === Math.floor(middle))),
  outline: (size) => Kernels.make(size, (u, v, middle) => (u === Math.floor(middle) && v === Math.floor(middle) ? size * size - 1 : -1)),
};

const Images = {
  make: (size, at) => Array.from({ length: size }, (_, y) => Array.from({ length: size }, (__, x) => at(y, x))),
  seven: (size) => Images.make(size, (y, x) => {
    const top = Math.floor(size / 7);
    const stroke = size - 1 - top - Math.max(0, Math.floor((y - top) / 2));
    return (y === top && x >= top && x <= size - 1 - top) || (y >= top && y < size - top && x === stroke) ? 9 : 0;
  }),
  step: (size) => Images.make(size, (y, x) => (x < size / 2 ? 8 : 2)),
  ramp: (size) => Images.make(size, (y, x) => Math.min(9, x)),
  dot: (size) => Images.make(size, (y, x) => (y === Math.floor(size / 2) && x === Math.floor(size / 2) ? 9 : 0)),
  noise: (size) => { const next = Lesson.random(7); return Images.make(size, () => Math.floor(next() * 10)); },
};

(() => {
  const { CELL, arrowStep, clamp, drawing, element, factor, find, frame, largest, number, tint } = Lesson;
  const state = {
    size: 7, kernel: 3, stride: 1, padding: 1, dilation: 1, mode: "zeros", preset: "edge", image: "seven", drag: "move",
  };
  let image = Images.seven(state.size);
  let weights = Kernels.edge(state.kernel);
  let [row, column] = [2, 3]; // the chosen output
  let brush = 9;

  const grids = {
    input: Lesson.grid(find("input"), { label: "Input: move the window", choose: pointAtInput, move: (down, right) => select(row + down, column + right), type: typePixel }),
    output: Lesson.grid(find("output"), { label: "Output: choose a value", choose: select }),
    row: Lesson.grid(find("row"), { label: "A row of the matrix in the shape of the input", cellSize: 34 }),
    column: Lesson.grid(find("column"), { label: "A column of the matrix in the shape of the output", cellSize: 34 }),
  };
  const kernelFields = Lesson.fields(find("kernel"), {
    label: "Weight",
    change(u, v, value) { weights[u][v] = value; state.preset = "own"; draw(); controls.refresh(); },
  });
  const matrix = matrixFigure(find("matrix"));

  function select(i, j) {
    const size = Convolution.outputSize(state);
    [row, column] = [clamp(i, 0, Math.max(0, size - 1)), clamp(j, 0, Math.max(0, size - 1))];
    draw();
  }

  // The output whose window has its middle nearest to a pixel
  function nearest(pixel) {
    return Math.round((pixel + state.padding - (Convolution.span(state.kernel, state.dilation) - 1) / 2) / state.stride);
  }

  function pointAtInput(y, x, kind) {
    const inside = y >= 0 && x >= 0 && y < state.size && x < state.size;
    if (state.drag === "paint") {
      if (!inside || kind === "pointermove" && !painting) return;
      if (kind === "pointerdown") brush = image[y][x] > 0 ? 0 : 9;
      paint(y, x, brush);
    } else if (kind === "pointerdown" || painting) {
      select(nearest(y), nearest(x));
    }
  }
  let painting = false;
  find("input").addEventListener("pointerdown", () => { painting = true; }, true);
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { painting = false; });

  // The pixel in the middle of the window, clamped to the image
  const middle = (output) => clamp(
    output * state.stride - state.padding + Math.floor((state.kernel - 1) / 2) * state.dilation, 0, state.size - 1);

  function typePixel(key) {
    if (!/^[0-9]$/.test(key)) return false;
    paint(middle(row), middle(column), Number(key));
    return true;
  }

  function paint(y, x, value) {
    if (image[y][x] === value) return;
    image[y][x] = value;
    state.image = "own";
    draw();
    controls.refresh();
  }

  function resized(before, size) {
    return Images.make(size, (y, x) => before[y]?.[x] ?? 0);
  }

  function update(name) {
    if (name === null || name === "size" || name === "image") image = state.image === "own" ? resized(image, state.size) : Images[state.image](state.size);
    if (name === null || name === "kernel" || name === "preset") {
      weights = state.preset === "own" ? Kernels.make(state.kernel, (u, v) => weights[u]?.[v] ?? 0) : Kernels[state.preset](state.kernel);
    }
    const size = Convolution.outputSize(state);
    [row, column] = [clamp(row, 0, Math.max(0, size - 1)), clamp(column, 0, Math.max(0, size - 1))];
    draw();
  }

  // Drawing

  let pointed = null; // the index of the product under the pointer

  function draw() {
    const refusal = Convolution.refusal(state);
    find("refusal").hidden = !refusal;
    find("refusal").textContent = refusal ?? "";
    const size = refusal ? 0 : Convolution.outputSize(state);
    const taps = refusal ? [] : Convolution.taps(row, column, state, weights);
    drawInput(taps, refusal);
    const marked = pointed === null ? null : taps[pointed];
    kernelFields.draw(weights, (u, v) => marked && marked.u === u && marked.v === v);
    const result = refusal ? [] : Convolution.forward(image, weights, state);
    drawOutput(result, size);
    find("input-size").textContent = `${state.size}×${state.size}`;
    find("kernel-size").textContent = `${state.kernel}×${state.kernel}`;
    find("output-size").textContent = size ? `${size}×${size}` : "";
    find("dense-count").textContent = (state.size ** 2 * size ** 2).toLocaleString("en");
    find("weight-count").textContent = state.kernel ** 2;
    drawFormula(taps, result);
    drawStrip(size);
    for (const id of ["matrix", "row", "column"]) find(id).hidden = Boolean(refusal);
    if (!refusal) drawMatrix(size, result);
  }

  function drawInput(taps, refusal) {
    const { padding } = state;
    const side = state.size + 2 * padding;
    const span = Convolution.span(state.kernel, state.dilation);
    const over = [];
    if (!refusal) {
      const [top, left] = [row * state.stride, column * state.stride];
      over.push(frame(top, left, span, span, "outline", 0));
      taps.forEach((tap, index) => {
        const chosen = index === pointed;
        if (state.dilation > 1 || chosen) over.push(frame(tap.y + padding, tap.x + padding, 1, 1, chosen ? "source" : "outline", 3));
        over.push(drawing("text", {
          x: (tap.x + padding + 1) * CELL - 4, y: (tap.y + padding + 1) * CELL - 4, "text-anchor": "end", "font-size": 11,
        }, `×${number(tap.weight)}`));
      });
    }
    grids.input.draw({
      rows: side, columns: side, first: -padding, over,
      cells(y, x) {
        const [from, to] = [Convolution.source(y, state), Convolution.source(x, state)];
        const outside = y < 0 || x < 0 || y >= state.size || x >= state.size;
        const value = from < 0 || to < 0 ? 0 : image[from][to];
        return { outside, text: number(value), fill: tint(value, 9) };
      },
      says: refusal ?? `window at row ${row}, column ${column} of the output`,
    });
    if (!refusal) grids.input.svg.setAttribute("aria-valuemax", Convolution.outputSize(state) ** 2 - 1);
    grids.input.svg.setAttribute("aria-valuenow", refusal ? 0 : row * Convolution.outputSize(state) + column);
  }

  function drawOutput(result, size) {
    const most = largest(result);
    if (!size) { grids.output.svg.replaceChildren(); return; }
    grids.output.draw({
      rows: size, columns: size, chosen: [row, column],
      cells: (i, j) => ({ text: number(result[i][j]), fill: tint(result[i][j], most) }),
      says: `row ${row}, column ${column}: ${number(result[row][column])}`,
    });
  }

  function drawFormula(taps, result) {
    const holder = find("formula");
    if (!taps.length) { holder.replaceChildren(); return; }
    const most = Math.max(9, ...taps.map((tap) => (tap.padded ? 0 : Math.abs(tap.weight * image[tap.row][tap.column]))));
    const terms = taps.map((tap, index) => {
      const value = tap.padded ? 0 : image[tap.row][tap.column];
      const term = element("span", { class: `term${tap.padded ? " none" : ""}${index === pointed ? " chosen" : ""}` }, `${factor(tap.weight)}·${factor(value)}`);
      if (!tap.padded) term.style.backgroundColor = tint(tap.weight * value, most);
      term.addEventListener("pointerenter", () => { if (pointed !== index) { pointed = index; draw(); } });
      return term;
    });
    holder.replaceChildren(
      element("b", {}, `y(${row}, ${column}) = `),
      ...terms.flatMap((term, index) => (index ? [" + ", term] : [term])),
      element("b", {}, ` = ${number(result[row][column])}`),
    );
  }
  find("formula").addEventListener("pointerleave", () => { pointed = null; draw(); });

  function drawStrip(size) {
    const { kernel, stride, padding, dilation } = state;
    const side = state.size + 2 * padding;
    const span = Convolution.span(kernel, dilation);
    const read = new Set();
    const nodes = [];
    for (let position = 0; position < size; position += 1) {
      const y = 62 + position * 20;
      const taps = Array.from({ length: kernel }, (_, u) => position * stride + u * dilation);
      taps.forEach((tap) => read.add(tap));
      const chosen = position === column;
      nodes.push(drawing("line", { x1: (taps[0] + 0.5) * CELL, x2: (taps.at(-1) + 0.5) * CELL, y1: y, y2: y, stroke: `var(${chosen ? "--accent" : "--hair"})`, "stroke-width": 2 }));
      for (const tap of taps) nodes.push(drawing("circle", { cx: (tap + 0.5) * CELL, cy: y, r: 6, style: `fill: var(${chosen ? "--accent" : "--quiet"})` }));
      nodes.push(drawing("text", { x: side * CELL + 12, y: y + 5, "font-size": 14, class: chosen ? "mark strong" : "quiet" }, `output ${position}`));
    }
    for (let x = 0; x < side; x += 1) {
      const inside = x >= padding && x < padding + state.size;
      nodes.push(drawing("rect", {
        x: x * CELL + 2, y: 2, width: CELL - 4, height: CELL - 4,
        ...(inside ? { style: `fill: ${read.has(x) ? tint(5, 9) : "var(--wash)"}` } : { class: "outside" }),
      }));
      nodes.push(drawing("text", { x: (x + 0.5) * CELL, y: 26, "text-anchor": "middle", "font-size": 14, class: inside ? "" : "quiet" }, inside ? String(x - padding) : "p"));
    }
    const height = 62 + Math.max(1, size) * 20;
    const unread = Array.from({ length: side }, (_, x) => x).filter((x) => !read.has(x) && x >= padding && x < padding + state.size).length;
    const says = size
      ? `${size} positions of a window that spans ${span} pixels. ${unread ? `${unread} of the ${state.size} pixels ${unread === 1 ? "is" : "are"} never read (gray).` : "Every pixel is read."}`
      : Convolution.refusal(state);
    find("strip").replaceChildren(drawing("svg", {
      viewBox: `0 0 ${side * CELL + 90} ${height}`, width: side * 44 + 90, role: "img", "aria-label": says,
    }, nodes));
    find("axis-says").textContent = `${says} Cells marked p are padding. Each line of dots is one position of the window.`;
    find("size-formula").textContent = `⌊(${state.size} + 2·${padding} − ${dilation}·(${kernel} − 1) − 1) / ${stride} + 1⌋ = `
      + (size ? `⌊${number((state.size + 2 * padding - span) / stride + 1)}⌋ = ${size}` : "less than 1: the window does not fit");
  }

  // The matrix, with the two vectors beside it
  function matrixFigure(holder) {
    const svg = drawing("svg", { class: "grid", tabindex: 0, role: "slider", "aria-label": "Rows of the matrix", "aria-valuemin": 0 });
    holder.replaceChildren(svg);
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", (event) => {
      const size = Convolution.outputSize(state);
      const step = arrowStep(event);
      if (!step) return;
      const output = clamp(row * size + column + step[0] + step[1], 0, size * size - 1);
      select(Math.floor(output / size), output % size);
    });
    function point(event) {
      const box = svg.getBoundingClientRect();
      const size = Convolution.outputSize(state);
      const output = clamp(Math.floor(((event.clientY - box.top) / box.height) * Number(svg.dataset.tall)), 0, size * size - 1);
      if (output !== row * size + column) select(Math.floor(output / size), output % size);
    }
    return svg;
  }

  function drawMatrix(size, result) {
    const entries = Convolution.matrix(weights, state);
    const [rows, columns] = [size * size, state.size ** 2];
    const chosen = row * size + column;
    const unit = 10;
    const gap = 2;
    const most = largest(weights);
    const [brightest, strongest] = [9, largest(result)];
    const written = columns <= 16;
    const nodes = [];
    const cell = (x, y, value, bound) => {
      nodes.push(drawing("rect", { x: x * unit, y: y * unit, width: unit, height: unit, class: written ? "lattice" : undefined, style: `fill: ${tint(value, bound, written ? 55 : 90)}`, "stroke-width": 0.3 }));
      if (written) nodes.push(drawing("text", { x: (x + 0.5) * unit, y: (y + 0.66) * unit, "font-size": 4.5, "text-anchor": "middle", class: value ? "" : "quiet" }, number(value)));
    };
    // y = A x: the column of results, the matrix, the column of pixels
    entries.forEach((values, output) => cell(0, output, result[Math.floor(output / size)][output % size], strongest));
    nodes.push(drawing("rect", { x: (1 + gap) * unit, y: 0, width: columns * unit, height: rows * unit, class: "hair" }));
    entries.forEach((values, output) => values.forEach((value, pixel) => {
      if (value || written) cell(1 + gap + pixel, output, value, most);
    }));
    const last = 1 + 2 * gap + columns;
    const scale = written ? 1 : rows / columns;
    for (let pixel = 0; pixel < columns; pixel += 1) {
      const value = image[Math.floor(pixel / state.size)][pixel % state.size];
      if (written) cell(last, pixel, value, brightest);
      else nodes.push(drawing("rect", { x: last * unit, y: pixel * unit * scale, width: unit, height: unit * scale, style: `fill: ${tint(value, brightest, 90)}` }));
    }
    const tall = Math.max(rows, written ? columns : rows);
    for (const [sign, x] of [["=", 1 + gap / 2], ["·", 1 + 1.5 * gap + columns]]) {
      nodes.push(drawing("text", { x: x * unit, y: Math.min(rows, 4) * 0.5 * unit + 3, "font-size": 10, "text-anchor": "middle" }, sign));
    }
    nodes.push(drawing("rect", { x: 0, y: chosen * unit, width: unit, height: unit, class: "outline", style: "stroke-width: 1" }));
    nodes.push(drawing("rect", { x: (1 + gap) * unit, y: chosen * unit, width: columns * unit, height: unit, class: "outline", style: "stroke-width: 1" }));
    matrix.replaceChildren(...nodes);
    matrix.setAttribute("viewBox", `-2 -2 ${(last + 1) * unit + 4} ${tall * unit + 4}`);
    matrix.setAttribute("width", Math.min(920, (last + 1) * (written ? 40 : 12)));
    matrix.dataset.tall = tall;
    matrix.setAttribute("aria-valuemax", rows - 1);
    matrix.setAttribute("aria-valuenow", chosen);
    matrix.setAttribute("aria-valuetext", `row ${chosen} of ${rows}: ${entries[chosen].filter(Boolean).length} weights, for output ${row}, ${column}`);

    const pixel = middle(row) * state.size + middle(column);
    find("row-title").textContent = `Row ${chosen}, in the shape of the input`;
    grids.row.draw({
      rows: state.size, columns: state.size,
      cells(y, x) { const value = entries[chosen][y * state.size + x]; return { text: number(value), fill: tint(value, most), kind: value ? "" : "quiet" }; },
      says: `The kernel at output ${row}, ${column}, and zeros elsewhere`,
    });
    find("column-title").textContent = `Column ${pixel} (pixel ${middle(row)}, ${middle(column)}), in the shape of the output`;
    grids.column.draw({
      rows: size, columns: size,
      cells(i, j) { const value = entries[i * size + j][pixel]; return { text: number(value), fill: tint(value, most), kind: value ? "" : "quiet" }; },
      says: "The weights by which one pixel enters the outputs: the kernel, turned by 180 degrees",
    });
    const zeros = entries.flat().filter((value) => value === 0).length;
    find("zero-share").textContent = `${number((100 * zeros) / (rows * columns), 1)} %`;
    find("entry-count").textContent = (rows * columns).toLocaleString("en");
  }

  const controls = Lesson.bind(state, update);
  for (const [id, setting] of Object.entries({
    slide: { size: 3, kernel: 2, stride: 1, padding: 0, dilation: 1, mode: "zeros" },
    same: { size: 7, kernel: 3, stride: 1, padding: 1, dilation: 1, mode: "zeros" },
    strided: { size: 7, kernel: 3, stride: 2, padding: 1, dilation: 1, mode: "zeros" },
  })) {
    find(id).addEventListener("click", () => {
      Object.assign(state, setting);
      if (id === "slide") { weights = [[1, 2], [3, 4]]; state.preset = "own"; image = Images.make(3, (y, x) => 3 * y + x + 1); state.image = "own"; }
      else { state.preset = "edge"; state.image = "seven"; }
      update(null);
      controls.refresh();
    });
  }
  Lesson.player(find("sweep"), () => {
    const size = Convolution.outputSize(state);
    if (Convolution.refusal(state)) return false;
    const next = (row * size + column + 1) % (size * size);
    select(Math.floor(next / size), next % size);
    return true;
  }, 350);
})();
