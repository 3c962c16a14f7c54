// Receptive fields: the computation, then the diagrams.
"use strict";

const ReceptiveField = {
  // The first and last pixel that a position sees along one axis, also outside the image.
  interval(network, index, position) {
    const { grid } = network.layers[index];
    if (!grid) return [0, network.size - 1];
    const [start, jump, extent] = grid;
    return [start + position * jump, start + position * jump + extent - 1];
  },

  // The window of a layer over one of its inputs, in positions of that input. It follows from the two grids.
  window(network, index, input) {
    const { grid, inputs } = network.layers[index];
    const before = input < 0 ? { grid: [0, 1, 1], side: network.size } : network.layers[input];
    if (!grid) return { span: before.side, stride: 1, padding: 0 };
    if (inputs.length > 1) return { span: 1, stride: 1, padding: 0 };
    return {
      span: (grid[2] - before.grid[2]) / before.grid[1] + 1,
      stride: grid[1] / before.grid[1],
      padding: (before.grid[0] - grid[0]) / before.grid[1],
    };
  },

  side: (network, index) => (index < 0 ? network.size : network.layers[index].side),

  // For every layer, and for the image at index −1: the first and last position that an activation depends on, or null.
  cone(network, index, position) {
    const needed = new Map([[index, [position, position]]]);
    for (let layer = index; layer >= 0; layer -= 1) {
      const range = needed.get(layer);
      if (!range) continue;
      for (const input of network.layers[layer].inputs) {
        const { span, stride, padding } = ReceptiveField.window(network, layer, input);
        const last = ReceptiveField.side(network, input) - 1;
        const first = Math.max(0, range[0] * stride - padding);
        const end = Math.min(last, range[1] * stride - padding + span - 1);
        const known = needed.get(input);
        needed.set(input, known ? [Math.min(known[0], first), Math.max(known[1], end)] : [first, end]);
      }
    }
    return needed;
  },

  // How much each pixel counts along one axis if every window takes the mean of what it spans.
  profile(network, index, position) {
    const weights = new Map([[index, new Float64Array(ReceptiveField.side(network, index)).fill(0)]]);
    weights.get(index)[position] = 1;
    for (let layer = index; layer >= 0; layer -= 1) {
      const own = weights.get(layer);
      if (!own) continue;
      for (const input of network.layers[layer].inputs) {
        const { span, stride, padding } = ReceptiveField.window(network, layer, input);
        const side = ReceptiveField.side(network, input);
        if (!weights.has(input)) weights.set(input, new Float64Array(side));
        const below = weights.get(input);
        own.forEach((weight, at) => {
          if (!weight) return;
          for (let tap = 0; tap < span; tap += 1) {
            const place = at * stride - padding + tap;
            if (place >= 0 && place < side) below[place] += weight / span;
          }
        });
      }
    }
    return weights.get(-1);
  },
};

(() => {
  const { arrowStep, bind, clamp, drawing, element, find, number } = Lesson;
  const { networks, photograph } = RECEPTIVE_FIELD_DATA;
  const state = { network: "vgg16", layer: 12 };
  let [row, column] = [0, 0]; // the position in the chosen layer
  let network = networks[state.network];
  for (const [name, { title }] of Object.entries(networks)) find("network").append(element("option", { value: name }, title));

  const layer = () => network.layers[state.layer];
  const middle = (index, position) => { const [first, last] = ReceptiveField.interval(network, index, position); return (first + last + 1) / 2; };
  // The position of a layer whose field has its middle nearest to a pixel
  function nearest(index, pixel) {
    const { grid, side } = network.layers[index];
    return grid ? clamp(Math.round((pixel - grid[0] - grid[2] / 2) / grid[1]), 0, side - 1) : 0;
  }

  // Where the chosen activation looks, (y, x) as shares of the image: kept when the layer or the network changes
  let gaze = [0.42, 0.22];

  function choose(newRow, newColumn) {
    row = clamp(newRow, 0, layer().side - 1);
    column = clamp(newColumn, 0, layer().side - 1);
    gaze = [middle(state.layer, row) / network.size, middle(state.layer, column) / network.size];
    draw();
  }

  function chooseLayer(index, pixel) {
    if (pixel !== undefined) gaze[1] = pixel / network.size;
    controls.set("layer", clamp(index, 0, network.layers.length - 1));
  }

  function update(name) {
    const depth = state.layer / network.layers.length;
    network = networks[state.network];
    state.layer = clamp(name === "network" ? Math.floor(depth * network.layers.length) : state.layer, 0, network.layers.length - 1);
    [row, column] = gaze.map((share) => nearest(state.layer, share * network.size));
    find("layer").max = network.layers.length - 1;
    draw();
  }

  // Drawing

  function surface(holder, label, point, key) {
    const svg = drawing("svg", { class: "grid", tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 0, width: "100%" });
    find(holder).replaceChildren(svg);
    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      point((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, event);
    };
    svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); follow(event); });
    svg.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
    svg.addEventListener("keydown", (event) => {
      const step = arrowStep(event);
      if (!step) return;
      key(...step);
    });
    return svg;
  }
  const move = (down, right) => choose(row + down, column + right);
  const MARGIN = 0.3; // of the image, around it
  const image = surface("photograph", "Image: choose what the activation looks at", (x, y) => {
    const pixel = (share) => (share * (1 + 2 * MARGIN) - MARGIN) * network.size;
    choose(nearest(state.layer, pixel(y)), nearest(state.layer, pixel(x)));
  }, move);
  const map = surface("map", "Feature map: choose an activation", (x, y) => choose(Math.floor(y * layer().side), Math.floor(x * layer().side)), move);

  function say(svg, text) {
    const { side } = layer();
    svg.setAttribute("aria-valuemax", side * side - 1);
    svg.setAttribute("aria-valuenow", row * side + column);
    svg.setAttribute("aria-valuetext", text);
  }

  function draw() {
    const { size } = network;
    const [top, bottom] = ReceptiveField.interval(network, state.layer, row);
    const [left, right] = ReceptiveField.interval(network, state.layer, column);
    const [width, height] = [right - left + 1, bottom - top + 1];
    const inside = [clamp(right, 0, size - 1) - clamp(left, 0, size - 1) + 1, clamp(bottom, 0, size - 1) - clamp(top, 0, size - 1) + 1];
    const { name, side, channels, grid } = layer();
    find("layer-name").textContent = `${name}, ${state.layer + 1} of ${network.layers.length}`;
    find("image-size").textContent = `${size}×${size}`;
    find("map-size").textContent = `${name}: ${channels} channels of ${side}×${side}`;

    const margin = MARGIN * size;
    const edge = size / 224;
    image.setAttribute("viewBox", `${-margin} ${-margin} ${size + 2 * margin} ${size + 2 * margin}`);
    image.replaceChildren(
      drawing("rect", { x: -margin, y: -margin, width: size + 2 * margin, height: size + 2 * margin, style: "fill: var(--wash)" }),
      drawing("image", { href: photograph, x: 0, y: 0, width: size, height: size, preserveAspectRatio: "none" }),
      drawing("path", {
        d: `M0 0H${size}V${size}H0Z M${left} ${top}V${bottom + 1}H${right + 1}V${top}Z`, "fill-rule": "evenodd", style: "fill: var(--ground)", opacity: 0.55,
        "clip-path": "none",
      }),
      drawing("rect", { x: left, y: top, width, height, class: "outline", style: `stroke-width: ${3 * edge}` }),
      drawing("circle", { cx: middle(state.layer, column), cy: middle(state.layer, row), r: 3.5 * edge, style: "fill: var(--accent); stroke: var(--ground)" }),
    );
    const says = `${name}(${row}, ${column}) sees rows ${number(top)} to ${number(bottom)} and columns ${number(left)} to ${number(right)}: ${width}×${height} pixels`;
    say(image, says);

    const unit = 100 / side;
    const lines = [];
    if (side <= 60) {
      for (let line = 1; line < side; line += 1) {
        lines.push(drawing("path", { d: `M${line * unit} 0V100M0 ${line * unit}H100`, class: "hair", "stroke-width": 0.4 }));
      }
    }
    const mark = Math.max(unit, 1.5);
    map.setAttribute("viewBox", "-1 -1 102 102");
    map.replaceChildren(
      drawing("rect", { x: 0, y: 0, width: 100, height: 100, style: "fill: var(--wash)" }), ...lines,
      drawing("rect", { x: column * unit + (unit - mark) / 2, y: row * unit + (unit - mark) / 2, width: mark, height: mark, style: "fill: var(--accent)" }),
    );
    say(map, says);

    const share = (inside[0] * inside[1]) / (size * size);
    find("says").replaceChildren(
      element("b", {}, `${name}(${row}, ${column})`), ` sees ${grid ? "" : "all "}`, element("b", {}, `${width}×${height} pixels`),
      `: rows ${number(top)} to ${number(bottom)}, columns ${number(left)} to ${number(right)}. `,
      width * height === inside[0] * inside[1] ? `That is ${(100 * share).toFixed(1)} % of the image.`
        : `Of these, ${inside[0]}×${inside[1]} lie inside the image, ${(100 * share).toFixed(1)} % of it; the rest is padding.`,
    );
    drawCone();
    drawTable();
    drawGrowth();
    drawProfile();
  }

  // Down through the layers: columns of the image on the horizontal axis
  const LABELS = 148;
  const ROW = 22;
  let plotWidth = 600;
  const cone = surface("cone", "Layers and positions: up and down change the layer, left and right the position", (x, y) => {
    const count = network.layers.length;
    const index = count - 1 - Math.floor((y * coneHeight() - 4) / ROW);
    const pixel = ((x * (plotWidth + LABELS) - LABELS) / plotWidth) * network.size;
    if (index < 0 || index >= count) return;
    if (index === state.layer) choose(row, nearest(index, pixel));
    else chooseLayer(index, pixel < 0 ? undefined : pixel);
  }, (down, right) => (down ? chooseLayer(state.layer - down) : choose(row, column + right)));
  const coneHeight = () => network.layers.length * ROW + 40;

  function drawCone() {
    const count = network.layers.length;
    const needed = ReceptiveField.cone(network, state.layer, column);
    const x = (pixel) => LABELS + (clamp(pixel, 0, network.size) / network.size) * plotWidth;
    const y = (index) => (index < 0 ? count * ROW + 14 : (count - 1 - index) * ROW + 4 + ROW / 2);
    // Where a range of positions lies above the pixels: from the left edge of the first to the right edge of the last.
    const reach = (index, [first, last]) => {
      if (index < 0) return [x(first), x(last + 1)];
      const { grid } = network.layers[index];
      if (!grid) return [x(0), x(network.size)];
      return [x(middle(index, first) - grid[1] / 2), x(middle(index, last) + grid[1] / 2)];
    };
    const nodes = [];
    for (const [index, range] of needed) {
      if (index < 0) continue;
      const [a, b] = index === state.layer && !layer().grid ? [x(network.size / 2) - 4, x(network.size / 2) + 4] : reach(index, range);
      for (const input of network.layers[index].inputs) {
        const [c, d] = reach(input, needed.get(input));
        nodes.push(drawing("path", { d: `M${a} ${y(index)}L${b} ${y(index)}L${d} ${y(input)}L${c} ${y(input)}Z`, style: "fill: var(--accent)", opacity: 0.13 }));
      }
    }
    network.layers.forEach(({ name, side, grid }, index) => {
      const isChosen = index === state.layer;
      const range = needed.get(index);
      const [from, to] = grid ? reach(index, [0, side - 1]) : [x(network.size / 2) - 4, x(network.size / 2) + 4];
      nodes.push(drawing("line", { x1: from, x2: to, y1: y(index), y2: y(index), stroke: "var(--hair)", "stroke-width": 5 }));
      if (range) {
        const [a, b] = grid ? reach(index, range) : [from, to];
        nodes.push(drawing("line", { x1: a, x2: Math.max(b, a + 3), y1: y(index), y2: y(index), stroke: "var(--accent)", "stroke-width": isChosen ? 11 : 5 }));
      }
      nodes.push(drawing("text", { x: LABELS - 12, y: y(index) + 4.5, "text-anchor": "end", "font-size": 13, class: isChosen ? "mark strong" : range ? "" : "quiet" }, name));
    });
    nodes.push(drawing("rect", { x: LABELS, y: y(-1) - 3, width: plotWidth, height: 8, style: "fill: var(--hair)" }));
    const [a, b] = reach(-1, needed.get(-1));
    nodes.push(drawing("rect", { x: a, y: y(-1) - 3, width: b - a, height: 8, style: "fill: var(--accent)" }));
    nodes.push(drawing("text", { x: LABELS - 12, y: y(-1) + 5, "text-anchor": "end", "font-size": 13 }, "pixels"));
    cone.setAttribute("viewBox", `0 0 ${LABELS + plotWidth} ${coneHeight()}`);
    cone.replaceChildren(...nodes);
    const [first, last] = needed.get(-1);
    cone.setAttribute("aria-valuemax", count - 1);
    cone.setAttribute("aria-valuenow", state.layer);
    cone.setAttribute("aria-valuetext", `${layer().name}, position ${column}: pixels ${first} to ${last}`);
  }

  let listed = null; // the network in the table, which keeps its buttons, and with them the focus, while layers are chosen
  function drawTable() {
    const body = find("layers").tBodies[0];
    if (listed !== network) {
      listed = network;
      body.replaceChildren(...network.layers.map((one, index) => {
        const { span, stride } = ReceptiveField.window(network, index, one.inputs[0]);
        const isJoin = one.inputs.length > 1;
        const link = element("button", { type: "button", style: "border: 0; padding: 0; min-height: 24px; min-width: 24px; text-align: left; background: none", "aria-pressed": undefined }, one.name);
        link.addEventListener("click", () => chooseLayer(index));
        const cells = isJoin ? ["joins", ""] : [one.grid ? `${span}×${span}` : "all", one.grid ? stride : ""];
        return element("tr", {}, element("th", { scope: "row" }, link),
          ...[...cells, `${one.side}×${one.side}`, one.grid ? one.grid[1] : "", one.grid ? `${one.grid[2]}×${one.grid[2]}` : "the whole image"].map((text) => element("td", {}, String(text))));
      }));
    }
    [...body.rows].forEach((line, index) => {
      line.style.background = index === state.layer ? "var(--wash)" : "";
      line.querySelector("button").style.fontWeight = index === state.layer ? 600 : "";
    });
  }

  function drawGrowth() {
    const { name, grid, inputs } = layer();
    const holder = find("growth");
    if (!grid) { holder.textContent = `${name}: every unit sees the whole image.`; return; }
    if (inputs.length > 1) {
      holder.textContent = `${name}: the largest of its ${inputs.length} branches, ${inputs.map((input) => network.layers[input].grid[2]).join(", ")}: ${grid[2]} pixels.`;
      return;
    }
    const input = inputs[0];
    const old = input < 0 ? [0, 1, 1] : network.layers[input].grid;
    const { span } = ReceptiveField.window(network, state.layer, input);
    holder.replaceChildren(`${name}: `, element("b", {}, `${old[2]} + (${span} − 1) · ${old[1]} = ${grid[2]} pixels`));
  }

  function drawProfile() {
    const weights = ReceptiveField.profile(network, state.layer, column);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const most = Math.max(...weights);
    const [left, right] = ReceptiveField.interval(network, state.layer, column).map((pixel) => clamp(pixel, 0, network.size - 1));
    const [width, height] = [plotWidth + LABELS, 160];
    const x = (pixel) => (pixel / network.size) * width;
    const points = [...weights].flatMap((weight, pixel) => [`${x(pixel).toFixed(1)} ${(height - (weight / most) * (height - 10)).toFixed(1)}`, `${x(pixel + 1).toFixed(1)} ${(height - (weight / most) * (height - 10)).toFixed(1)}`]);
    const [from, to] = centralRange(weights, total, 0.5);
    const says = `Half of the weight is in ${to - from + 1} of the ${right - left + 1} columns that ${layer().name}(${row}, ${column}) sees inside the image.`;
    find("profile").replaceChildren(drawing("svg", { viewBox: `0 0 ${width} ${height + 12}`, width, role: "img", "aria-label": says },
      drawing("rect", { x: x(left), y: 0, width: x(right + 1) - x(left), height, style: "fill: var(--wash)" }),
      drawing("rect", { x: x(from), y: 0, width: x(to + 1) - x(from), height, style: "fill: var(--hair)", opacity: 0.6 }),
      drawing("path", { d: `M0 ${height}L${points.join("L")}L${width} ${height}Z`, style: "fill: var(--accent)", opacity: 0.85 }),
      drawing("rect", { x: 0, y: height, width, height: 6, style: "fill: var(--hair)" })));
    find("profile-says").textContent = `${says} The light band is the receptive field, the darker one holds half of the weight, and the bar below is the image.`;
  }

  // The narrowest range of pixels that holds a share of the weight
  function centralRange(weights, total, share) {
    let [best, sum, first] = [[0, weights.length - 1], 0, 0];
    weights.forEach((weight, last) => {
      sum += weight;
      while (sum - weights[first] >= share * total - 1e-12) { sum -= weights[first]; first += 1; }
      if (sum >= share * total - 1e-12 && last - first < best[1] - best[0]) best = [first, last];
    });
    return best;
  }

  new ResizeObserver(([{ contentRect }]) => {
    const width = Math.max(160, Math.round(contentRect.width) - LABELS);
    if (width !== plotWidth) { plotWidth = width; draw(); }
  }).observe(find("cone"));
  const controls = bind(state, update);
})();
