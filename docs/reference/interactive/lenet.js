// LeNet-5: the network, then the page.
"use strict";

const LeNet = {
  bytes: (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)),

  // IEEE 754 half precision to numbers
  halves(text) {
    const view = new DataView(LeNet.bytes(text).buffer);
    return Float64Array.from({ length: view.byteLength / 2 }, (_, k) => {
      const bits = view.getUint16(2 * k, true);
      const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
      return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
    });
  },

  squash: (sum) => 1.7159 * Math.tanh((2 / 3) * sum),

  load(data) {
    const weights = Object.fromEntries(Object.entries(data.weights).map(([name, { data: text }]) => [name, LeNet.halves(text)]));
    const codes = data.codes.map((code) => Float64Array.from(code, (sign) => (sign === "+" ? 1 : -1)));
    return { weights, codes, connections: data.connections, mean: data.mean, std: data.std };
  },

  // 28×28 values of 0 to 255, as the network gets them: 32×32, normalized
  prepare(pixels, { mean, std }) {
    const input = new Float64Array(32 * 32).fill((0 - mean) / std);
    for (let y = 0; y < 28; y += 1) {
      for (let x = 0; x < 28; x += 1) input[(y + 2) * 32 + x + 2] = (pixels[y * 28 + x] / 255 - mean) / std;
    }
    return input;
  },

  // Σ kernel · window, over one map; `offset`: where the kernel begins in `weights`
  window(map, side, y, x, weights, offset, kernel = 5) {
    let sum = 0;
    for (let u = 0; u < kernel; u += 1) {
      for (let v = 0; v < kernel; v += 1) sum += weights[offset + u * kernel + v] * map[(y + u) * side + x + v];
    }
    return sum;
  },

  map: (side, at) => Float64Array.from({ length: side * side }, (_, k) => LeNet.squash(at(Math.floor(k / side), k % side))),

  convolve: (maps, side, weights, bias, sources) => sources.map(({ from, kernels }, k) => LeNet.map(side - 4, (y, x) =>
    from.reduce((sum, source, j) => sum + LeNet.window(maps[source], side, y, x, weights, kernels[j] * 25), bias[k]))),

  subsample: (maps, side, coefficient, bias) => maps.map((map, k) => LeNet.map(side / 2, (y, x) => coefficient[k]
    * (map[2 * y * side + 2 * x] + map[2 * y * side + 2 * x + 1] + map[(2 * y + 1) * side + 2 * x] + map[(2 * y + 1) * side + 2 * x + 1]) + bias[k])),

  // The maps that each map of C1, C3 and C5 reads, and the places of its kernels in the weights
  sources(layer, { connections }) {
    if (layer === "c1") return Array.from({ length: 6 }, (_, k) => ({ from: [0], kernels: [k] }));
    if (layer === "c5") return Array.from({ length: 120 }, (_, k) => ({ from: Array.from({ length: 16 }, (__, c) => c), kernels: Array.from({ length: 16 }, (__, c) => 16 * k + c) }));
    let next = 0;
    return connections.map((from) => ({ from, kernels: from.map(() => next++) }));
  },

  // Every layer's values, after its nonlinearity, and the scores
  forward(network, input) {
    const w = network.weights;
    const layer = (name, maps, side) => LeNet.convolve(maps, side, w[`${name}.weight`], w[`${name}.bias`], LeNet.sources(name, network));
    const c1 = layer("c1", [input], 32);
    const s2 = LeNet.subsample(c1, 28, w["s2.coefficient"], w["s2.bias"]);
    const c3 = layer("c3", s2, 14);
    const s4 = LeNet.subsample(c3, 10, w["s4.coefficient"], w["s4.bias"]);
    const c5 = layer("c5", s4, 5);
    const features = c5.map(([value]) => value);
    const f6 = Array.from({ length: 84 }, (_, k) =>
      LeNet.squash(features.reduce((sum, value, j) => sum + value * w["f6.weight"][120 * k + j], w["f6.bias"][k])));
    const scores = network.codes.map((code) => -f6.reduce((sum, value, k) => sum + (value - code[k]) ** 2, 0));
    return { input: [input], c1, s2, c3, s4, c5, f6: [f6], scores };
  },

  softmax(scores) {
    const most = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - most));
    const total = powers.reduce((sum, power) => sum + power, 0);
    return powers.map((power) => power / total);
  },
};

(() => {
  const { arrowStep, bind, clamp, element, factor, find, grid, largest, number, tint } = Lesson;
  const network = LeNet.load(LENET_DATA);
  const state = { centered: true };
  let values = null; // of every layer
  let chosen = { layer: "c3", map: 3, y: 4, x: 5 };

  const LAYERS = [
    { name: "c1", title: "C1: convolution, 6 maps of 28×28", side: 28, columns: 28, scale: 4, text: "Six 5×5 kernels look at the input everywhere. 156 weights; they find edges and strokes in several directions." },
    { name: "s2", title: "S2: subsampling, 6 maps of 14×14", side: 14, columns: 14, scale: 8, text: "Sums of 2×2 values, times one weight, plus one bias for each map: 12 weights. Exact places begin to matter less." },
    { name: "c3", title: "C3: convolution, 16 maps of 10×10", side: 10, columns: 10, scale: 8, text: "Each map reads only some of the six maps of S2, so that the maps must differ. 1,516 weights." },
    { name: "s4", title: "S4: subsampling, 16 maps of 5×5", side: 5, columns: 5, scale: 16, text: "As in S2. 32 weights." },
    { name: "c5", title: "C5: 120 units", side: 1, columns: 20, scale: 16, text: "Each unit reads all of S4: 48,120 weights, four fifths of the network." },
    { name: "f6", title: "F6: 84 units", side: 1, columns: 28, scale: 16, text: "Each unit reads all of C5: 10,164 weights." },
  ];
  const layerOf = (name) => LAYERS.find((one) => one.name === name);
  const BEFORE = { c1: "input", s2: "c1", c3: "s2", s4: "c3", c5: "s4", f6: "c5" };
  const SIDES = { input: 32, c1: 28, s2: 14, c3: 10, s4: 5, c5: 1, f6: 1 };

  // The window of a unit in the layer before: first row, first column, size
  function windowOf({ layer, y, x }) {
    if (layer === "c1" || layer === "c3") return [y, x, 5];
    if (layer === "s2" || layer === "s4") return [2 * y, 2 * x, 2];
    return [0, 0, SIDES[BEFORE[layer]]];
  }
  function fieldOf({ layer, y, x }) {
    const { jump, extent } = { c1: { jump: 1, extent: 5 }, s2: { jump: 2, extent: 6 }, c3: { jump: 2, extent: 14 }, s4: { jump: 4, extent: 16 } }[layer] ?? { jump: 0, extent: 32 };
    return [y * jump, x * jump, extent];
  }
  function sourcesOf({ layer, map }) {
    if (layer === "s2" || layer === "s4") return [map];
    if (layer === "f6") return Array.from({ length: 120 }, (_, k) => k);
    return LeNet.sources(layer, network)[map].from;
  }

  // Colors as numbers, for canvases: those of the page's scheme
  let palette = null;
  function readPalette() {
    const probe = element("span");
    document.body.append(probe);
    palette = Object.fromEntries(["ground", "ink", "positive", "negative", "accent"].map((name) => {
      probe.style.color = `var(--${name})`;
      return [name, getComputedStyle(probe).color.match(/[\d.]+/g).map(Number)];
    }));
    probe.remove();
  }
  const blend = (from, to, share) => `rgb(${from.map((value, k) => Math.round(value + (to[k] - value) * share)).join(",")})`;
  const signed = (most) => (value) => blend(palette.ground, value < 0 ? palette.negative : palette.positive, Math.min(1, Math.abs(value) / most));
  const peak = (maps) => maps.reduce((most, map) => map.reduce((one, value) => Math.max(one, Math.abs(value)), most), 1e-9);
  const gray = (value) => blend(palette.ground, palette.ink, clamp((value - (0 - network.mean) / network.std) / (1 / network.std), 0, 1));

  function paint(canvas, cells, columns, scale, color, frames = []) {
    const rows = Math.ceil(cells.length / columns);
    if (canvas.width !== columns * scale || canvas.height !== rows * scale) { canvas.width = columns * scale; canvas.height = rows * scale; }
    const context = canvas.getContext("2d");
    cells.forEach((value, k) => {
      context.fillStyle = color(value);
      context.fillRect((k % columns) * scale, Math.floor(k / columns) * scale, scale, scale);
    });
    for (const { at: [y, x, size], wide } of frames) {
      context.lineWidth = wide ? 3 : 2;
      context.strokeStyle = wide ? blend(palette.accent, palette.accent, 0) : blend(palette.ink, palette.ink, 0);
      context.strokeRect(x * scale + 1, y * scale + 1, size * scale - 2, size * scale - 2);
    }
  }

  // Drawing a digit

  const pad = find("pad");
  const sheet = element("canvas", { width: 280, height: 280 }); // what is drawn, white on black
  const pen = sheet.getContext("2d", { willReadFrequently: true });
  let sample = null; // the pixels of a test image, if one is shown
  let isEmpty = true;
  let place = { x: 140, y: 80, down: false, shown: false };

  function clear() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, 280, 280);
    sample = null;
    isEmpty = true;
    place.down = false;
  }
  function stroke(from, to) {
    Object.assign(pen, { lineCap: "round", lineJoin: "round", lineWidth: 24, strokeStyle: "#fff" });
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    isEmpty = false;
  }
  const spot = (event) => {
    const box = pad.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * 280, y: ((event.clientY - box.top) / box.height) * 280 };
  };
  let last = null;
  pad.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    if (sample) clear();
    pad.setPointerCapture(event.pointerId);
    place.shown = false;
    last = spot(event);
    stroke(last, last);
    run();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) { const to = spot(one); stroke(last, to); last = to; }
    run();
  });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { last = null; });
  pad.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [0, -10], ArrowDown: [0, 10], ArrowLeft: [-10, 0], ArrowRight: [10, 0] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !(step || [" ", "Backspace"].includes(event.key))) return;
    event.preventDefault();
    if (event.key === "Backspace") clear();
    else if (sample) clear();
    place.shown = true;
    if (event.key === " ") { place.down = !place.down; if (place.down) stroke(place, place); }
    if (step) {
      const to = { x: clamp(place.x + step[0], 10, 270), y: clamp(place.y + step[1], 10, 270) };
      if (place.down) stroke(place, to);
      Object.assign(place, to);
    }
    run();
  });
  find("clear").addEventListener("click", () => { clear(); run(); });

  // The drawing as 28×28 values of 0 to 255: as it is, or scaled to 20×20 and centered by its mass, as MNIST's digits were
  function pixels() {
    if (sample) return sample;
    const small = element("canvas", { width: 28, height: 28 }).getContext("2d", { willReadFrequently: true });
    small.fillStyle = "#000";
    small.fillRect(0, 0, 28, 28);
    small.imageSmoothingQuality = "high";
    const read = () => Array.from({ length: 784 }, (_, k) => image.data[4 * k]);
    let image = null;
    if (!state.centered || isEmpty) {
      small.drawImage(sheet, 0, 0, 28, 28);
      image = small.getImageData(0, 0, 28, 28);
      return read();
    }
    const { data } = pen.getImageData(0, 0, 280, 280);
    let [left, right, top, bottom, mass, sumX, sumY] = [280, -1, 280, -1, 0, 0, 0];
    for (let y = 0; y < 280; y += 1) for (let x = 0; x < 280; x += 1) {
      const ink = data[4 * (280 * y + x)];
      if (ink < 32) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
      [mass, sumX, sumY] = [mass + ink, sumX + ink * (x + 0.5), sumY + ink * (y + 0.5)];
    }
    const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
    small.drawImage(sheet, 14 - (sumX / mass) * scale, 14 - (sumY / mass) * scale, 280 * scale, 280 * scale);
    image = small.getImageData(0, 0, 28, 28);
    return read();
  }

  function showPad() {
    const context = pad.getContext("2d");
    context.clearRect(0, 0, 280, 280);
    if (sample) {
      sample.forEach((value, k) => { context.fillStyle = `rgb(${palette.ink.join(" ")} / ${value / 255})`; context.fillRect((k % 28) * 10, Math.floor(k / 28) * 10, 10, 10); });
    } else {
      const image = pen.getImageData(0, 0, 280, 280);
      for (let k = 0; k < image.data.length; k += 4) {
        image.data[k + 3] = image.data[k];
        [image.data[k], image.data[k + 1], image.data[k + 2]] = palette.ink;
      }
      context.putImageData(image, 0, 0);
    }
    if (place.shown) {
      context.strokeStyle = `rgb(${palette.accent.join(" ")})`;
      context.lineWidth = place.down ? 6 : 2;
      context.beginPath();
      context.arc(place.x, place.y, 10, 0, 7);
      context.stroke();
    }
    find("hint").hidden = !isEmpty || Boolean(sample);
    find("hint").style.display = find("hint").hidden ? "none" : "";
  }

  function show(digit) {
    clear();
    sample = Array.from(LeNet.bytes(digit.pixels));
    isEmpty = false;
    run();
  }

  function run() {
    values = LeNet.forward(network, LeNet.prepare(pixels(), network));
    draw();
  }

  // Showing the layers

  const canvases = {};
  for (const { name, title, text, side, columns } of LAYERS) {
    const count = { c1: 6, s2: 6, c3: 16, s4: 16, c5: 1, f6: 1 }[name];
    canvases[name] = Array.from({ length: count }, () => element("canvas"));
    const maps = element("div", { class: "maps", id: name, tabindex: 0, role: "slider", "aria-label": `Units of ${name.toUpperCase()}`, "aria-valuemin": 0 }, ...canvases[name]);
    canvases[name].forEach((canvas, map) => {
      const point = (event) => {
        const box = canvas.getBoundingClientRect();
        const x = Math.floor(((event.clientX - box.left - 1) / (box.width - 2)) * columns);
        const rows = side === 1 ? Math.ceil(unitCount(name) / columns) : side;
        const y = Math.floor(((event.clientY - box.top - 1) / (box.height - 2)) * rows);
        choose(side === 1 ? { layer: name, map: clamp(y * columns + x, 0, unitCount(name) - 1), y: 0, x: 0 }
          : { layer: name, map, y: clamp(y, 0, side - 1), x: clamp(x, 0, side - 1) });
      };
      canvas.addEventListener("pointermove", (event) => { if (event.buttons || event.pointerType === "mouse") point(event); });
      canvas.addEventListener("pointerdown", point);
    });
    maps.addEventListener("keydown", (event) => {
      const step = arrowStep(event);
      if (!step) return;
      const from = chosen.layer === name ? chosen : { layer: name, map: 0, y: 0, x: 0 };
      if (side === 1) { choose({ ...from, map: clamp(from.map + step[0] * columns + step[1], 0, unitCount(name) - 1) }); return; }
      let [map, y, x] = [from.map, from.y + step[0], from.x + step[1]];
      if (x >= side && map + 1 < canvases[name].length) [map, x] = [map + 1, 0];
      if (x < 0 && map > 0) [map, x] = [map - 1, side - 1];
      choose({ layer: name, map, y: clamp(y, 0, side - 1), x: clamp(x, 0, side - 1) });
    });
    find("rows").append(element("div", { class: "layer" }, element("h3", {}, title), element("p", {}, text), maps));
  }
  function unitCount(name) { return name === "c5" ? 120 : 84; }

  function choose(unit) {
    if (unit.layer === chosen.layer && unit.map === chosen.map && unit.y === chosen.y && unit.x === chosen.x) return;
    chosen = unit;
    draw();
  }

  const nameOf = ({ layer, map, y, x }) => (SIDES[layer] === 1 ? `${layer.toUpperCase()} unit ${map}` : `${layer.toUpperCase()} map ${map}, row ${y}, column ${x}`);
  const valueOf = ({ layer, map, y, x }) => (layer === "f6" ? values.f6[0][map] : values[layer][map][y * SIDES[layer] + x]);

  function draw() {
    showPad();
    const isDense = chosen.layer === "c5" || chosen.layer === "f6";
    const sources = new Set(sourcesOf(chosen));
    paint(find("input"), values.input[0], 32, 8, gray, [{ at: fieldOf(chosen), wide: true }]);
    for (const { name, side, columns, scale } of LAYERS) {
      const dense = side === 1;
      const maps = name === "c5" ? [values.c5.map(([value]) => value)] : values[name];
      const color = signed(peak(maps));
      canvases[name].forEach((canvas, map) => {
        const frames = [];
        if (name === chosen.layer && dense) frames.push({ at: [Math.floor(chosen.map / columns), chosen.map % columns, 1], wide: true });
        else if (name === chosen.layer && map === chosen.map) frames.push({ at: [chosen.y, chosen.x, 1], wide: true });
        else if (name === BEFORE[chosen.layer] && !dense && sources.has(map)) frames.push({ at: windowOf(chosen) });
        paint(canvas, maps[map], dense ? columns : side, scale, color, frames);
      });
      const holder = canvases[name][0].parentElement;
      const isHere = name === chosen.layer;
      holder.setAttribute("aria-valuemax", dense ? unitCount(name) - 1 : canvases[name].length * side * side - 1);
      holder.setAttribute("aria-valuenow", isHere ? (dense ? chosen.map : (chosen.map * side + chosen.y) * side + chosen.x) : 0);
      holder.setAttribute("aria-valuetext", isHere ? `${nameOf(chosen)}: ${number(valueOf(chosen))}` : "no unit of this layer is chosen");
    }
    drawAnswer();
    drawUnit(isDense, [...sources]);
  }

  function drawAnswer() {
    const { scores } = values;
    const shares = LeNet.softmax(scores);
    const best = scores.indexOf(Math.max(...scores));
    find("answer").textContent = isEmpty && !sample ? "–" : best;
    find("bars").replaceChildren(...shares.flatMap((share, digit) => {
      const kind = digit === best && !isEmpty ? " best" : "";
      const bar = element("div", { class: "bar" });
      bar.style.width = `${isEmpty ? 0 : 100 * share}%`;
      return [element("span", { class: kind }, digit), element("div", {}, bar), element("span", { class: `value${kind}` }, isEmpty ? "" : `${(100 * share).toFixed(1)} %`)];
    }));
    paint(find("bitmap"), values.f6[0], 7, 16, signed(peak(values.f6)));
    if (!find("codes").childElementCount) {
      find("codes").append(...network.codes.map((code, digit) => element("div", {}, element("canvas", { "aria-hidden": "true" }), element("div", {}, `${digit}: `, element("span")))));
    }
    [...find("codes").children].forEach((holder, digit) => {
      paint(holder.querySelector("canvas"), network.codes[digit], 7, 6, signed(1));
      holder.querySelector("span").textContent = number(-scores[digit], 1);
      holder.classList.toggle("best", digit === best);
    });
  }

  function drawUnit(isDense, sources) {
    const value = valueOf(chosen);
    const sum = 1.5 * Math.atanh(value / 1.7159);
    const [top, left, extent] = fieldOf(chosen);
    find("unit-says").replaceChildren(element("b", {}, nameOf(chosen)), ` is ${number(value, 3)}. It sees ${extent}×${extent} pixels of the input, from row ${top}, column ${left}.`);
    find("unit-title").textContent = `${nameOf(chosen)}, in the layer ${BEFORE[chosen.layer].toUpperCase()} before it`;
    const formula = find("unit-formula");
    const end = [` = ${number(sum, 3)}; 1.7159 · tanh(2/3 · ${factor(sum, 3)}) = `, element("b", {}, number(value, 3))];
    const before = BEFORE[chosen.layer];
    const [y, x, size] = windowOf(chosen);
    const side = SIDES[before];
    const weights = network.weights;
    if (isDense) {
      find("windows").replaceChildren();
      const bias = weights[`${chosen.layer}.bias`][chosen.map];
      const count = chosen.layer === "c5" ? "16 · 25 = 400" : "120";
      formula.replaceChildren(`a = ${count} products, their sum ${number(sum - bias, 3)}, plus the bias ${number(bias, 3)}`, ...end);
      return;
    }
    const isSum = chosen.layer === "s2" || chosen.layer === "s4";
    const kernels = isSum ? [] : LeNet.sources(chosen.layer, network)[chosen.map].kernels;
    const parts = [];
    find("windows").replaceChildren(...sources.map((source, k) => {
      const window = Array.from({ length: size }, (_, u) => Array.from({ length: size }, (__, v) => values[before][source][(y + u) * side + x + v]));
      const kernel = isSum ? null : Array.from({ length: 5 }, (_, u) => Array.from({ length: 5 }, (__, v) => weights[`${chosen.layer}.weight`][kernels[k] * 25 + u * 5 + v]));
      const part = isSum ? window.flat().reduce((total, one) => total + one, 0) : LeNet.window(values[before][source], side, y, x, weights[`${chosen.layer}.weight`], kernels[k] * 25);
      parts.push(part);
      const draw = (rows, label) => {
        const holder = element("div");
        const shown = grid(holder, { label, cellSize: 28 });
        const most = largest(rows);
        shown.draw({ rows: rows.length, columns: rows.length, cells: (i, j) => ({ text: number(rows[i][j]), fill: tint(rows[i][j], most) }) });
        return holder;
      };
      return element("div", {},
        element("div", {}, `${before === "input" ? "input" : `${before.toUpperCase()} map ${source}`}${kernel ? " and kernel" : ""}`),
        element("div", { class: "pair" }, draw(window, "window"), kernel ? "·" : null, kernel ? draw(kernel, "kernel") : null),
        element("div", {}, `sum: ${number(part, 3)}`));
    }));
    const bias = weights[`${chosen.layer}.bias`][chosen.map];
    if (isSum) {
      const coefficient = weights[`${chosen.layer}.coefficient`][chosen.map];
      formula.replaceChildren(`a = ${factor(coefficient, 3)} · ${factor(parts[0], 3)} + ${factor(bias, 3)}`, ...end);
    } else {
      formula.replaceChildren(`a = ${parts.map((part) => factor(part, 3)).join(" + ")} + ${factor(bias, 3)}`, ...end);
    }
  }

  // Test images

  function drawSamples() {
    const button = (digit, label) => {
      const canvas = element("canvas", { "aria-hidden": "true" });
      paint(canvas, LeNet.bytes(digit.pixels), 28, 2, (value) => blend(palette.ground, palette.ink, value / 255));
      const made = element("button", { type: "button", "aria-label": label }, canvas);
      made.addEventListener("click", () => show(digit));
      return made;
    };
    find("samples").replaceChildren(...LENET_DATA.digits.slice(0, 10).map((digit) => button(digit, `Test image ${digit.number}: ${digit.label}`)));
    find("misread").replaceChildren(...LENET_DATA.digits.slice(10).map((digit) => button(digit, `Test image ${digit.number}: ${digit.label}, misread`)));
  }

  find("wrong").textContent = LENET_DATA.wrong;
  find("count").textContent = LENET_DATA.images.toLocaleString("en");
  readPalette();
  drawSamples();
  clear();
  show(LENET_DATA.digits[7]);
  document.addEventListener("schemechange", () => { readPalette(); drawSamples(); draw(); });
  bind(state, (name) => { if (name) run(); });
})();
