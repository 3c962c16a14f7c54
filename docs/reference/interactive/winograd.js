// Winograd's algorithm: the computation, then the diagrams.
"use strict";

const Winograd = {
  // F(2, 3) as Lavin & Gray write it
  B: [[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]],
  G: [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
  A: [[1, 0], [1, 1], [1, -1], [0, -1]],

  multiply: (a, b) => a.map((row) => b[0].map((_, column) => row.reduce((sum, value, k) => sum + value * b[k][column], 0))),
  transpose: (a) => a[0].map((_, column) => a.map((row) => row[column])),
  // Lᵀ · x · L
  around: (l, x) => Winograd.multiply(Winograd.multiply(Winograd.transpose(l), x), l),

  direct(tile, kernel) {
    const side = tile.length - kernel.length + 1;
    return Array.from({ length: side }, (_, i) => Array.from({ length: side }, (__, j) =>
      kernel.flatMap((row, u) => row.map((weight, v) => weight * tile[i + u][j + v])).reduce((sum, product) => sum + product, 0)));
  },

  // All intermediate results of F(2×2, 3×3)
  tile(d, g) {
    const V = Winograd.around(Winograd.B, d);
    const U = Winograd.around(Winograd.transpose(Winograd.G), g);
    const M = U.map((row, i) => row.map((value, j) => value * V[i][j]));
    return { V, U, M, Y: Winograd.around(Winograd.A, M) };
  },

  // F(outputs, taps) from finite points and ∞, as matrices with a row for each product (Toom 1963, Cook 1966)
  transforms(outputs, taps, points) {
    const roots = (list) => list.reduce((one, root) => [0, ...one].map((high, k) => high - root * (one[k] ?? 0)), [1]);
    const powers = (point, count) => Array.from({ length: count }, (_, k) => point ** k);
    const leading = (count) => Array.from({ length: count }, (_, k) => Number(k === count - 1));
    const others = (point) => points.filter((other) => other !== point);
    const divisor = (point) => others(point).reduce((product, other) => product * (point - other), 1);
    return {
      data: [...points.map((point) => [...roots(others(point)), 0]), roots(points)],
      kernel: [...points.map((point) => powers(point, taps).map((power) => power / divisor(point))), leading(taps)],
      inverse: [...points.map((point) => powers(point, outputs)), leading(outputs)],
    };
  },

  // The root mean square of the float32 error of a tile method, relative to that of the outputs
  roundingError(method, tiles, seed = 1) {
    const next = Lesson.random(seed);
    const normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
    const single = Math.fround;
    const product = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((sum, value, k) => single(sum + single(value * b[k][j])), 0)));
    const flip = Winograd.transpose;
    const rounded = (rows) => rows.map((row) => row.map(single));
    const square = (side) => Array.from({ length: side }, () => Array.from({ length: side }, () => single(normal())));
    const [data, kernel, inverse] = [method.data, method.kernel, method.inverse].map(rounded);
    let [errors, results] = [0, 0];
    for (let count = 0; count < tiles; count += 1) {
      const [d, g] = [square(data.length), square(3)];
      const V = product(product(data, d), flip(data));
      const U = product(product(kernel, g), flip(kernel));
      const M = U.map((row, i) => row.map((value, j) => single(value * V[i][j])));
      const Y = product(product(flip(inverse), M), inverse);
      const exact = Winograd.direct(d, g);
      Y.forEach((row, i) => row.forEach((value, j) => { errors += (value - exact[i][j]) ** 2; results += exact[i][j] ** 2; }));
    }
    return Math.sqrt(errors / results);
  },

  // Multiplications for `side`×`side` outputs in tiles of `outputs`×`outputs`
  cost(side, outputs) {
    const tiles = Math.ceil(side / outputs) ** 2;
    return { tiles, multiplications: tiles * (outputs + 2) ** 2 };
  },
};

(() => {
  const { drawing, element, factor, fields, find, frame, grid, largest, number, tint, clamp, CELL } = Lesson;
  const state = { done: 0, side: 14 };
  let pixels = [[4, 1, 3, 2]];
  let taps = [[2, 1, -1]];
  let d = [[1, 0, 2, 1], [3, 1, 0, 2], [0, 2, 4, 1], [1, 3, 0, 2]];
  let g = [[1, 0, -1], [2, 1, 0], [0, 1, 2]];
  let chosen = ["v", 1, 2];

  // On a row

  const rowPixels = fields(find("row-pixels"), { label: "Pixel", change(row, column, value) { pixels[row][column] = value; drawRow(); } });
  const rowWeights = fields(find("row-weights"), { label: "Weight", change(row, column, value) { taps[row][column] = value; drawRow(); } });

  const line = (...children) => element("div", {}, ...children);
  const product = (a, b) => {
    const span = element("span", { class: "term" }, `${a}·${b}`);
    span.style.borderColor = "var(--quiet)";
    return span;
  };
  const sum = (first, sign, second) => `(${number(first)} ${sign} ${factor(second)})`;

  function drawRow() {
    rowPixels.draw(pixels);
    rowWeights.draw(taps);
    const [d0, d1, d2, d3] = pixels[0];
    const [g0, g1, g2] = taps[0];
    const outputs = [d0 * g0 + d1 * g1 + d2 * g2, d1 * g0 + d2 * g1 + d3 * g2];
    const m = [(d0 - d2) * g0, ((d1 + d2) * (g0 + g1 + g2)) / 2, ((d2 - d1) * (g0 - g1 + g2)) / 2, (d1 - d3) * g2];
    find("row-direct").replaceChildren(
      ...[0, 1].map((k) => line(`y${"₀₁"[k]} = `,
        ...[0, 1, 2].flatMap((j) => [j ? " + " : "", product(factor(pixels[0][k + j]), factor(taps[0][j]))]), ` = ${number(outputs[k])}`)),
    );
    const half = (value) => factor(value / 2, 1);
    find("row-winograd").replaceChildren(
      line("m₁ = (d₀ − d₂)·g₀ = ", product(sum(d0, "−", d2), factor(g0)), ` = ${number(m[0])}`),
      line("m₂ = (d₁ + d₂)·(g₀ + g₁ + g₂)/2 = ", product(sum(d1, "+", d2), half(g0 + g1 + g2)), ` = ${number(m[1])}`),
      line("m₃ = (d₂ − d₁)·(g₀ − g₁ + g₂)/2 = ", product(sum(d2, "−", d1), half(g0 - g1 + g2)), ` = ${number(m[2])}`),
      line("m₄ = (d₁ − d₃)·g₂ = ", product(sum(d1, "−", d3), factor(g2)), ` = ${number(m[3])}`),
      line(`y₀ = m₁ + m₂ + m₃ = ${number(m[0])} + ${factor(m[1])} + ${factor(m[2])} = `, element("b", { id: "row-y0" }, number(m[0] + m[1] + m[2]))),
      line(`y₁ = m₂ − m₃ − m₄ = ${number(m[1])} − ${factor(m[2])} − ${factor(m[3])} = `, element("b", { id: "row-y1" }, number(m[1] - m[2] - m[3]))),
    );
  }

  // On a tile

  const change = (values) => (row, column, value) => { values()[row][column] = value; drawTile(); };
  const tileFields = fields(find("tile"), { label: "Pixel", change: change(() => d) });
  const kernelFields = fields(find("kernel"), { label: "Weight", change: change(() => g) });
  const still = (id, label) => grid(find(id), { label });
  const directOutput = still("direct-output", "Outputs, directly");
  const products = still("products", "The 16 products");
  const winogradOutput = still("winograd-output", "Outputs by Winograd's algorithm");

  function drawTile() {
    const { U, V, M, Y } = Winograd.tile(d, g);
    const exact = Winograd.direct(d, g);
    const { done } = state;
    // Directly: output after output, weight after weight
    const partial = [[0, 0], [0, 0]];
    let now = null;
    const squares = [];
    for (let step = 0; step < 36; step += 1) {
      const [output, weight] = [Math.floor(step / 9), step % 9];
      const [i, j, u, v] = [Math.floor(output / 2), output % 2, Math.floor(weight / 3), weight % 3];
      const value = d[i + u][j + v] * g[u][v];
      if (step < done) partial[i][j] += value;
      if (step === done - 1) now = { i, j, u, v, value };
      squares.push({ output, u, v, value, isDone: step < done, isNow: step === done - 1 });
    }
    const most = Math.max(1, ...squares.map((one) => Math.abs(one.value)));
    find("direct-products").replaceChildren(drawing("svg", {
      viewBox: "-2 -2 540 124", width: 540, role: "img", "aria-label": `${done} of 36 products done: four outputs of nine products each`,
    }, squares.flatMap(({ output, u, v, value, isDone, isNow }) => {
      const [x, y] = [output * 138 + v * 40, u * 40];
      return [
        drawing("rect", { x: x + 1, y: y + 1, width: 38, height: 38, ...(isDone ? { style: `fill: ${tint(value, most)}` } : { class: "outside" }) }),
        ...(isDone ? [drawing("text", { x: x + 20, y: y + 26, "text-anchor": "middle", "font-size": 15 }, number(value))] : []),
        ...(isNow ? [drawing("rect", { x: x + 1, y: y + 1, width: 38, height: 38, class: "outline" })] : []),
      ];
    })));
    const isWinogradNow = done >= 1 && done <= 16;
    const at = [Math.floor((done - 1) / 4), (done - 1) % 4];
    tileFields.draw(d, (row, column) => now && row === now.i + now.u && column === now.j + now.v);
    kernelFields.draw(g, (row, column) => now && row === now.u && column === now.v);
    find("direct-now").textContent = now
      ? `d(${now.i + now.u}, ${now.j + now.v})·g(${now.u}, ${now.v}) = ${factor(d[now.i + now.u][now.j + now.v])}·${factor(g[now.u][now.v])} = ${number(now.value)}, added to output (${now.i}, ${now.j})`
      : "Nothing is multiplied yet.";
    const bound = Math.max(1, largest(exact));
    directOutput.draw({
      rows: 2, columns: 2,
      cells: (i, j) => (done > (2 * i + j) * 9 ? { text: number(partial[i][j]), fill: tint(partial[i][j], bound), kind: done >= (2 * i + j + 1) * 9 ? "strong" : "quiet" } : { outside: true }),
    });
    const peak = Math.max(1, largest(M));
    products.draw({
      rows: 4, columns: 4,
      cells: (i, j) => (done > 4 * i + j ? { text: number(M[i][j]), fill: tint(M[i][j], peak) } : { outside: true }),
      over: isWinogradNow ? [frame(...at, 1, 1)] : [],
    });
    winogradOutput.draw({
      rows: 2, columns: 2,
      cells: (i, j) => (done >= 16 ? { text: number(Y[i][j]), fill: tint(Y[i][j], bound), kind: "strong" } : { outside: true }),
    });
    find("winograd-now").textContent = isWinogradNow
      ? `U(${at})·V(${at}) = ${factor(U[at[0]][at[1]])}·${factor(V[at[0]][at[1]])} = ${number(M[at[0]][at[1]])}`.replaceAll(",", ", ")
      : done ? "Done: sums and differences of the 16 products are the four outputs." : "Nothing is multiplied yet.";
    find("direct-count").textContent = done;
    find("winograd-count").textContent = Math.min(16, done);
    find("race-says").textContent = done < 16 ? "Each dashed cell is a multiplication that is still to be done."
      : done < 36 ? `Winograd has all four outputs after 16 multiplications. Directly, ${Math.floor(done / 9)} of 4 are complete.`
        : "Both have the same four numbers: after 36 multiplications, and after 16.";
    drawFlow({ d, g, U, V, M, Y });
  }

  Lesson.player(find("count"), () => {
    controls.set("done", state.done >= 36 ? 0 : state.done + 1);
    return state.done < 36;
  }, 300);
  let seed = 1;
  find("shuffle").addEventListener("click", () => {
    const next = Lesson.random(seed += 1);
    const square = (side, least, most) => Array.from({ length: side }, () => Array.from({ length: side }, () => least + Math.floor(next() * (most - least + 1))));
    [d, g] = [square(4, 0, 5), square(3, -2, 2)];
    drawTile();
  });

  // Inside

  // What each cell is made of: [grid, row, column, coefficient]
  const sources = {
    d: () => [], g: () => [],
    v: (i, j) => around("d", Winograd.B, 4, i, j),
    u: (i, j) => around("g", Winograd.transpose(Winograd.G), 3, i, j),
    m: (i, j) => [["u", i, j, 1], ["v", i, j, 1]],
    y: (i, j) => around("m", Winograd.A, 4, i, j),
  };
  function around(name, l, side, i, j) {
    const found = [];
    for (let a = 0; a < side; a += 1) for (let b = 0; b < side; b += 1) {
      const coefficient = l[a][i] * l[b][j];
      if (coefficient) found.push([name, a, b, coefficient]);
    }
    return found;
  }
  const NAMES = { d: "Tile d", g: "Kernel g", v: "Transformed tile V", u: "Transformed kernel U", m: "Products M", y: "Outputs Y" };
  const flows = Object.fromEntries(Object.keys(NAMES).map((name) => [name, grid(find(`flow-${name}`), {
    label: `${NAMES[name]}: choose a cell`,
    choose(row, column) {
      const side = { d: 4, g: 3, v: 4, u: 4, m: 4, y: 2 }[name];
      chosen = [name, clamp(row, 0, side - 1), clamp(column, 0, side - 1)];
      drawTile();
    },
  })]));

  function drawFlow({ d: tile, g: kernel, U, V, M, Y }) {
    const values = { d: tile, g: kernel, u: U, v: V, m: M, y: Y };
    const [name, row, column] = chosen;
    const parts = sources[name](row, column);
    for (const [key, rows] of Object.entries(values)) {
      const most = Math.max(1, largest(rows));
      flows[key].draw({
        rows: rows.length, columns: rows.length,
        chosen: key === name ? [row, column] : undefined,
        over: parts.filter(([from]) => from === key).map(([, a, b]) => frame(a, b, 1, 1, "source", 3)),
        cells: (i, j) => ({ text: number(rows[i][j]), fill: tint(rows[i][j], most) }),
        says: key === name ? `row ${row}, column ${column}: ${number(rows[row][column])}` : `${rows.length} by ${rows.length} numbers`,
      });
    }
    const value = (from, a, b) => values[from][a][b];
    const weight = (coefficient) => (Math.abs(coefficient) === 1 ? "" : `${number(Math.abs(coefficient))}·`);
    const text = name === "m"
      ? `U(${row}, ${column})·V(${row}, ${column}) = ${factor(value("u", row, column))}·${factor(value("v", row, column))}`
      : parts.map(([from, a, b, coefficient], index) =>
        `${coefficient < 0 ? (index ? " − " : "−") : index ? " + " : ""}${weight(coefficient)}${factor(value(from, a, b))}`).join("");
    const label = `${name.toUpperCase()}(${row}, ${column})`;
    find("flow-formula").replaceChildren(
      ...(parts.length ? [element("b", {}, `${label} = `), text, element("b", {}, ` = ${number(value(name, row, column))}`)]
        : [element("b", {}, `${label.toLowerCase()} = ${number(value(name, row, column))}`), `: ${name === "d" ? "a pixel of the tile" : "a weight of the kernel"}`]),
    );
  }

  // What it costs

  function drawMatrices() {
    for (const [title, rows] of [["Bᵀ", Winograd.transpose(Winograd.B)], ["G", Winograd.G], ["Aᵀ", Winograd.transpose(Winograd.A)]]) {
      const holder = element("div");
      find("matrices").append(element("div", {}, element("h3", {}, title), holder));
      const shown = grid(holder, { label: title, cellSize: 36 });
      shown.draw({ rows: rows.length, columns: rows[0].length, cells: (i, j) => ({ text: number(rows[i][j]), fill: tint(rows[i][j], 1), kind: rows[i][j] ? "" : "quiet" }) });
    }
  }

  function drawCosts() {
    const direct = 9 * state.side ** 2;
    find("tile-rows").replaceChildren(...[0, 2, 4, 6].map((outputs) => {
      const { tiles, multiplications } = outputs ? Winograd.cost(state.side, outputs) : { tiles: 0, multiplications: direct };
      return element("tr", {},
        element("th", { scope: "row" }, outputs ? `F(${outputs}×${outputs}, 3×3)` : "directly"),
        element("td", {}, outputs ? tiles.toLocaleString("en") : "–"),
        element("td", {}, multiplications.toLocaleString("en")),
        element("td", {}, `${(direct / multiplications).toFixed(2)}×`));
    }));
  }

  function drawErrors() {
    const methods = [
      ["F(2×2, 3×3)", "0, ±1, ∞", 2, [0, 1, -1]],
      ["F(4×4, 3×3)", "0, ±5/8, ±3/2, ∞", 4, [0, 0.625, -0.625, 1.5, -1.5]],
      ["F(4×4, 3×3)", "0, ±1, ±2, ∞", 4, [0, 1, -1, 2, -2]],
      ["F(6×6, 3×3)", "0, ±1/2, ±1, ±2, ∞", 6, [0, 0.5, -0.5, 1, -1, 2, -2]],
    ].map(([name, points, outputs, list]) => ({ name, points, error: Winograd.roundingError(Winograd.transforms(outputs, 3, list), 400) }));
    find("error-rows").replaceChildren(...methods.map(({ name, points, error }) => element("tr", {},
      element("th", { scope: "row" }, name), element("td", {}, points),
      element("td", {}, `${(error * 1e7).toFixed(1)}·10⁻⁷`),
      element("td", {}, (error / methods[0].error).toFixed(1)))));
  }

  drawMatrices();
  drawErrors();
  drawRow();
  const controls = Lesson.bind(state, () => { drawTile(); drawCosts(); });
})();
