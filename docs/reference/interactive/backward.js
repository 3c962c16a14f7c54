// Gradients of pooling and convolution, and the transposed convolution: the computation, then the diagrams.
"use strict";

const Backward = {
  zeros: (rows, columns = rows) => Array.from({ length: rows }, () => new Array(columns).fill(0)),
  each(rows, columns, visit) { for (let i = 0; i < rows; i += 1) for (let j = 0; j < columns; j += 1) visit(i, j); },

  poolSize: (size, window, stride) => Math.floor((size - window) / stride) + 1,

  // The pixels to which the gradient of an output goes, with the share of each
  poolShares(x, i, j, { kind, window, stride }) {
    const found = [];
    Backward.each(window, window, (u, v) => found.push({ row: i * stride + u, column: j * stride + v }));
    if (kind === "average") return found.map((one) => ({ ...one, share: 1 / found.length }));
    // The first of equal maxima
    const best = found.reduce((most, one) => (x[one.row][one.column] > x[most.row][most.column] ? one : most));
    return [{ ...best, share: 1 }];
  },

  pool(x, setting) {
    const size = Backward.poolSize(x.length, setting.window, setting.stride);
    const y = Backward.zeros(size);
    Backward.each(size, size, (i, j) => {
      if (setting.kind === "max") { const [best] = Backward.poolShares(x, i, j, setting); y[i][j] = x[best.row][best.column]; return; }
      for (const { row, column, share } of Backward.poolShares(x, i, j, setting)) y[i][j] += share * x[row][column];
    });
    return y;
  },

  poolGradient(x, gradient, setting) {
    const back = Backward.zeros(x.length);
    Backward.each(gradient.length, gradient.length, (i, j) => {
      for (const { row, column, share } of Backward.poolShares(x, i, j, setting)) back[row][column] += share * gradient[i][j];
    });
    return back;
  },

  convSize: (size, kernel, { stride, padding, dilation }) => Math.floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1,

  // Every use of a weight: output (i, j), weight (u, v), pixel (row, column) inside the image
  uses(size, kernel, setting) {
    const { stride, padding, dilation } = setting;
    const outputs = Backward.convSize(size, kernel, setting);
    const found = [];
    Backward.each(outputs, outputs, (i, j) => Backward.each(kernel, kernel, (u, v) => {
      const [row, column] = [i * stride - padding + u * dilation, j * stride - padding + v * dilation];
      if (row >= 0 && column >= 0 && row < size && column < size) found.push({ i, j, u, v, row, column });
    }));
    return found;
  },

  inputGradient(gradient, weights, size, setting) {
    const back = Backward.zeros(size);
    for (const { i, j, u, v, row, column } of Backward.uses(size, weights.length, setting)) back[row][column] += weights[u][v] * gradient[i][j];
    return back;
  },

  weightGradient(x, gradient, kernel, setting) {
    const back = Backward.zeros(kernel);
    for (const { i, j, u, v, row, column } of Backward.uses(x.length, kernel, setting)) back[u][v] += x[row][column] * gradient[i][j];
    return back;
  },

  transposedSize: (size, kernel, stride, padding) => (size - 1) * stride - 2 * padding + kernel,

  // The transposed convolution is the input gradient of a convolution
  transposed(x, weights, stride, padding) {
    const size = Backward.transposedSize(x.length, weights.length, stride, padding);
    return Backward.inputGradient(x, weights, size, { stride, padding, dilation: 1 });
  },
};

(() => {
  const { bind, clamp, element, factor, fields, find, frame, grid, largest, number, tint } = Lesson;
  const state = {
    kind: "max", window: 2, poolStride: 2,
    view: "scatter", stride: 1, padding: 1, dilation: 1,
    upKernel: 3, upStride: 2, upPadding: 0, upValues: "ones",
  };
  const integers = (rows, seed, least, most) => {
    const next = Lesson.random(seed);
    return Array.from({ length: rows }, () => Array.from({ length: rows }, () => least + Math.floor(next() * (most - least + 1))));
  };
  const PIXELS = 6;
  let poolInput = integers(PIXELS, 3, 0, 9);
  let poolGradient = integers(PIXELS, 14, -2, 4); // of which the upper left part is used
  const KERNEL = 3;
  let weights = [[1, 0, -1], [2, 0, -2], [1, 0, -1]];
  let pixels = integers(5, 5, 0, 5);
  let gradient = integers(7, 21, -2, 3);
  let [poolAt, convAt, pixelAt, weightAt, upAt] = [[1, 1], [2, 2], [2, 2], [0, 0], [1, 1]];
  const sumOf = (rows) => rows.flat().reduce((sum, value) => sum + value, 0);
  const part = (rows, size) => rows.slice(0, size).map((row) => row.slice(0, size));
  const cell = (rows, bound = largest(rows)) => (i, j) => ({ text: number(rows[i][j]), fill: tint(rows[i][j], bound), kind: rows[i][j] ? "" : "quiet" });
  const within = (size, [i, j]) => [clamp(i, 0, size - 1), clamp(j, 0, size - 1)];
  const chooser = (id, label, choose) => grid(find(id), { label, choose: (i, j) => { choose([i, j]); draw(); } });
  const still = (id, label) => grid(find(id), { label });
  const changer = (rows) => (i, j, value) => { rows()[i][j] = value; draw(); };

  const shown = {
    poolInput: fields(find("pool-input"), { label: "Pixel", change: changer(() => poolInput) }),
    poolOutput: chooser("pool-output", "Output: choose a value", (at) => { poolAt = at; }),
    poolBack: still("pool-back", "Gradient of the input"),
    poolGradient: fields(find("pool-gradient"), { label: "Gradient of output", change: changer(() => poolGradient) }),
    convBack: chooser("conv-back", "Gradient of the input: choose a pixel", (at) => { pixelAt = at; state.view = "gather"; controls.refresh(); }),
    convGradient: chooser("conv-gradient", "Gradient of the output: choose a value", (at) => { convAt = at; state.view = "scatter"; controls.refresh(); }),
    convKernel: fields(find("conv-kernel"), { label: "Weight", change: changer(() => weights) }),
    weightInput: fields(find("weight-input"), { label: "Pixel", change: changer(() => pixels) }),
    weightOutput: still("weight-output", "Gradient of the output"),
    weightGradient: chooser("weight-gradient", "Gradient of the kernel: choose a weight", (at) => { weightAt = at; }),
    upInput: chooser("up-input", "Input: choose a value", (at) => { upAt = at; }),
    upKernel: still("up-kernel", "Kernel"),
    upOutput: still("up-output", "Output"),
  };

  function drawPool() {
    const setting = { kind: state.kind, window: state.window, stride: state.poolStride };
    const size = Backward.poolSize(PIXELS, setting.window, setting.stride);
    const y = Backward.pool(poolInput, setting);
    const incoming = part(poolGradient, size);
    const back = Backward.poolGradient(poolInput, incoming, setting);
    poolAt = within(size, poolAt);
    const [i, j] = poolAt;
    const shares = Backward.poolShares(poolInput, i, j, setting);
    const winners = new Set();
    Backward.each(size, size, (a, b) => Backward.poolShares(poolInput, a, b, setting).forEach(({ row, column }) => winners.add(`${row},${column}`)));
    const top = i * setting.stride;
    const left = j * setting.stride;
    shown.poolInput.draw(poolInput, (row, column) => row >= top && row < top + setting.window && column >= left && column < left + setting.window, 9);
    shown.poolOutput.draw({ rows: size, columns: size, chosen: poolAt, cells: cell(y, 9), says: `row ${i}, column ${j}: ${number(y[i][j])}` });
    shown.poolBack.draw({
      rows: PIXELS, columns: PIXELS, cells: cell(back),
      over: [frame(top, left, setting.window, setting.window), ...shares.map(({ row, column }) => frame(row, column, 1, 1, "source", 4))],
      says: `Gradient of the input; ${winners.size} of ${PIXELS * PIXELS} pixels get some`,
    });
    shown.poolGradient.draw(incoming, (a, b) => a === i && b === j);
    const place = `y(${i}, ${j})`;
    find("pool-says").replaceChildren(...(state.kind === "max"
      ? [element("b", {}, `${place} = ${number(y[i][j])}`), ` is the pixel (${shares[0].row}, ${shares[0].column}), which gets the whole gradient, `, element("b", {}, number(incoming[i][j])), `. ${PIXELS * PIXELS - winners.size} of the ${PIXELS * PIXELS} pixels won nowhere and get nothing.`]
      : [element("b", {}, `${place} = ${number(y[i][j])}`), ` is the mean of ${setting.window ** 2} pixels; each gets ${factor(incoming[i][j])} / ${setting.window ** 2} = `, element("b", {}, number(incoming[i][j] / setting.window ** 2)), " from it."]));
    find("pool-sum").textContent = number(sumOf(incoming));
    find("pool-back-sum").textContent = number(sumOf(back));
  }

  function drawConv() {
    const setting = { stride: state.stride, padding: state.padding, dilation: state.dilation };
    const side = pixels.length;
    const size = Backward.convSize(side, KERNEL, setting);
    const incoming = part(gradient, size);
    const back = Backward.inputGradient(incoming, weights, side, setting);
    convAt = within(size, convAt);
    pixelAt = within(side, pixelAt);
    const scatters = state.view === "scatter";
    const used = Backward.uses(side, KERNEL, setting).filter(scatters
      ? (use) => use.i === convAt[0] && use.j === convAt[1] : (use) => use.row === pixelAt[0] && use.column === pixelAt[1]);
    const mark = (rows) => rows.map(([row, column]) => frame(row, column, 1, 1, "source", 4));
    shown.convBack.draw({
      rows: side, columns: side, chosen: pixelAt, cells: cell(back),
      over: scatters ? mark(used.map((use) => [use.row, use.column])) : [],
      says: `row ${pixelAt[0]}, column ${pixelAt[1]}: ${number(back[pixelAt[0]][pixelAt[1]])}`,
    });
    shown.convGradient.draw({
      rows: size, columns: size, chosen: convAt, cells: cell(incoming),
      over: scatters ? [] : mark(used.map((use) => [use.i, use.j])),
      says: `row ${convAt[0]}, column ${convAt[1]}: ${number(incoming[convAt[0]][convAt[1]])}`,
    });
    shown.convKernel.draw(weights, (u, v) => used.some((use) => use.u === u && use.v === v));
    const says = find("conv-says");
    if (scatters) {
      const [i, j] = convAt;
      says.replaceChildren(element("b", {}, `The gradient of y(${i}, ${j}) is ${number(incoming[i][j])}.`),
        ` It adds ${factor(incoming[i][j])} · w to the ${used.length} pixels under its window: `,
        used.map((use) => number(weights[use.u][use.v] * incoming[i][j])).join(", "), ".");
    } else {
      const [row, column] = pixelAt;
      const terms = used.flatMap((use, index) => [index ? " + " : "", element("span", { class: "term", title: `weight (${use.u}, ${use.v}), output (${use.i}, ${use.j})` }, `${factor(weights[use.u][use.v])}·${factor(incoming[use.i][use.j])}`)]);
      says.replaceChildren(element("b", {}, `The gradient of x(${row}, ${column}) = `), ...(terms.length ? terms : ["nothing: no window reads this pixel"]), element("b", {}, ` = ${number(back[row][column])}`));
    }
    find("conv-caption").textContent = scatters
      ? "The framed pixels are those that the chosen output was computed from. Choose another output, or a pixel to see what it gathers."
      : "The framed outputs are those that read the chosen pixel, each through another weight. Choose another pixel, or an output to see what it scatters.";
    const ofWeights = Backward.weightGradient(pixels, incoming, KERNEL, setting);
    const [u, v] = weightAt = within(KERNEL, weightAt);
    const partners = Backward.uses(side, KERNEL, setting).filter((use) => use.u === u && use.v === v);
    shown.weightInput.draw(pixels, (row, column) => partners.some((use) => use.row === row && use.column === column));
    shown.weightOutput.draw({ rows: size, columns: size, cells: cell(incoming), over: mark(partners.map((use) => [use.i, use.j])) });
    shown.weightGradient.draw({ rows: KERNEL, columns: KERNEL, chosen: weightAt, cells: cell(ofWeights), says: `weight ${u}, ${v}: ${number(ofWeights[u][v])}` });
    find("weight-says").replaceChildren(element("b", {}, `The gradient of w(${u}, ${v}) = `),
      ...(partners.length ? partners.flatMap((use, index) => [index ? " + " : "", element("span", { class: "term" }, `${factor(pixels[use.row][use.column])}·${factor(incoming[use.i][use.j])}`)])
        : ["nothing: it is multiplied by padding only"]),
      element("b", {}, ` = ${number(ofWeights[u][v])}`));
  }

  const UP = 4;
  function drawUp() {
    const { upKernel: kernel, upStride: stride, upPadding: padding } = state;
    const ones = state.upValues === "ones";
    const x = ones ? integers(UP, 1, 1, 1) : integers(UP, 2, 0, 4);
    const w = ones ? integers(kernel, 1, 1, 1) : integers(kernel, 9, -1, 2);
    const size = Backward.transposedSize(UP, kernel, stride, padding);
    upAt = within(UP, upAt);
    find("up-refusal").hidden = size >= 1;
    find("up-refusal").textContent = size >= 1 ? "" : `The output would have ${number(size)} pixels: the padding cuts off more than there is. Use less padding.`;
    const [i, j] = upAt;
    shown.upInput.draw({ rows: UP, columns: UP, chosen: upAt, cells: cell(x), says: `row ${i}, column ${j}: ${number(x[i][j])}` });
    shown.upKernel.draw({ rows: kernel, columns: kernel, cells: cell(w) });
    find("up-input-size").textContent = `${UP}×${UP}`;
    find("up-output-size").textContent = size >= 1 ? `${size}×${size}` : "";
    if (size < 1) { shown.upOutput.svg.replaceChildren(); find("up-says").textContent = ""; return; }
    const y = Backward.transposed(x, w, stride, padding);
    const [top, left] = [i * stride - padding, j * stride - padding];
    const [bottom, right] = [Math.min(size, top + kernel), Math.min(size, left + kernel)];
    const isInside = bottom > Math.max(0, top) && right > Math.max(0, left);
    shown.upOutput.draw({
      rows: size, columns: size, cells: cell(y),
      over: isInside ? [frame(Math.max(0, top), Math.max(0, left), bottom - Math.max(0, top), right - Math.max(0, left))] : [],
      says: `Output, ${size} by ${size}`,
    });
    find("up-says").textContent = `(${UP} − 1)·${stride} − 2·${padding} + (${kernel} − 1) + 1 = ${size}`;
    find("up-caption").textContent = `The frame is the stamp of input (${i}, ${j}). Choose another input. Padding cuts off ${padding} ${padding === 1 ? "row and column" : "rows and columns"} on every side.`;
    // How many stamps cover the pixels that are far from the border
    const counts = Backward.transposed(integers(9, 1, 1, 1), integers(kernel, 1, 1, 1), stride, 0);
    const from = kernel + stride;
    const inner = new Set(counts.slice(from, -from).flatMap((row) => row.slice(from, -from)));
    const list = [...inner].sort((a, b) => a - b);
    find("up-counts").textContent = list.length === 1 ? `all ${list[0]}` : list.join(", ");
  }

  function draw() {
    drawPool();
    drawConv();
    drawUp();
  }
  let seed = 30;
  find("pool-shuffle").addEventListener("click", () => { poolInput = integers(PIXELS, seed += 1, 0, 9); poolGradient = integers(PIXELS, seed + 100, -3, 3); draw(); });
  find("conv-shuffle").addEventListener("click", () => { weights = integers(KERNEL, seed += 1, -2, 2); pixels = integers(5, seed + 50, 0, 5); gradient = integers(7, seed + 100, -2, 3); draw(); });
  const controls = bind(state, draw);
})();
