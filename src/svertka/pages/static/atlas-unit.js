// Unit view: patches and projections, histogram of activations, preferred classes, similar units.
"use strict";
(() => {
  const atlas = self.atlas ??= {};
  const { make, svg } = atlas;
  const LARGE = 112;
  const WHOLE = 288;
  const HEIGHT = 128;

  atlas.unitView = async (layer, unit) => {
    const [data, pictures] = await Promise.all([atlas.load(layer.data), atlas.load("pictures")]);
    const order = atlas.inChosenOrder(layer, data);
    const at = order.indexOf(unit);
    const step = (by) => { const next = order[at + by]; if (next !== undefined) location.hash = atlas.address("unit", layer.name, next); };
    const neighbor = (by, text, label) => (order[at + by] === undefined ? make("span", { class: "quiet" }, text)
      : make("a", { href: atlas.address("unit", layer.name, order[at + by]), "aria-label": `${label} unit, ${order[at + by]}` }, text));
    const similar = data.similar[unit].filter((other) => other >= 0 && other < layer.units);
    const cards = similar.map((other) => atlas.card(layer, data, other));
    cards.forEach((card) => card.fill());
    return {
      title: `${layer.name} ${unit}`,
      up: atlas.address("layer", layer.name),
      keys: { ArrowLeft: () => step(-1), ArrowRight: () => step(1) },
      content: [
        make("p", { class: "trail" }, make("a", { href: atlas.address("layer", layer.name) }, atlas.named(layer.name, { focusable: false })),
          make("span", {}, neighbor(-1, "← previous", "Previous"), " ", neighbor(1, "next →", "Next"))),
        make("h1", { tabindex: -1 }, ...sentence(layer, data, unit)),
        ...(layer.dead.includes(unit) ? [make("p", { class: "how" }, "Its output is never above zero and is the same for all pictures of the data set.")] : [
          atlas.how(`Each pair shows a patch and its projection: the pixels that activate the unit, on gray${layer.note ? `. ${layer.note.replace(/\.$/, "")}` : ""}`, atlas.PAPER, "Zeiler & Fergus 2014, §2.1"),
          pairs(layer, data, unit, pictures)]),
        make("div", { class: "facts" },
          data.histogram[unit].some(Boolean) ? make("section", {}, make("h2", {}, "Activations"), histogram(data, unit)) : null,
          data.classes[unit].length ? make("section", {}, make("h2", {}, "Preferred classes"), preferences(data, unit)) : null),
        similar.length ? make("section", {}, make("h2", {}, "Similar units"),
          make("p", { class: "how" }, "The units whose activations over all pictures correlate most with its own."),
          make("div", { class: "units", style: { "--side": `${layer.tile.shown}px` }, "data-shown": "patches" }, cards)) : null,
      ],
    };
  };

  function sentence(layer, data, unit) {
    if (layer.dead.includes(unit)) return [`Unit ${unit} of `, atlas.named(layer.name), ": dead."];
    const preferred = atlas.preferredClasses(data, unit).flatMap((name, k) => [k ? " and " : ", prefers ", atlas.named(atlas.facts.classes[name])]);
    return [`Unit ${unit} of `, atlas.named(layer.name), `: active in ${atlas.percent(data.active[unit])} of the pictures`, ...preferred, "."];
  }

  function pairs(layer, data, unit, pictures) {
    const { window, crisp } = layer.tile;
    const side = crisp ? window * Math.max(1, Math.floor(LARGE / window)) : LARGE;
    const strongest = data.pictures[unit].filter((picture) => picture >= 0);
    const stage = make("div", { class: "stage" });
    const caption = make("figcaption", { class: "caption" });
    const shown = strongest.map((picture, k) => {
      const box = atlas.box(layer, data.rows[unit][k], data.columns[unit][k]);
      const [name, label] = pictures.names[picture];
      const value = atlas.number(data.values[unit][k]);
      const of = label === null ? "" : `, ${atlas.facts.classes[label]}`;
      // Crisp tiles hold every pixel; whole pictures may be compressed.
      const patch = crisp ? atlas.piece(layer, unit, k, "patches", side) : atlas.crop(picture, box, window, side);
      const pair = make("a", { class: "pair", href: atlas.address("picture", picture), "aria-label":
        `Patch ${k + 1}: activation ${value}, in ${name}${of}, rows ${box[0]} to ${box[2] - 1}, columns ${box[1]} to ${box[3] - 1}` },
      patch, atlas.piece(layer, unit, k, "projections", side));
      const show = () => {
        for (const other of shown) other.classList.toggle("chosen", other === pair);
        const whole = atlas.whole(picture, atlas.fitToWindow(WHOLE));
        whole.frame(box);
        stage.replaceChildren(whole);
        caption.replaceChildren(make("b", {}, `${k + 1}`), ` · activation ${value}`, make("br"), atlas.named(name),
          ...(label === null ? [] : [make("br"), make("span", { class: "quiet" }, atlas.named(atlas.facts.classes[label]))]));
      };
      pair.addEventListener("pointerenter", show);
      pair.addEventListener("focus", show);
      pair.show = show;
      return pair;
    });
    shown[0].show();
    return make("div", { class: "unit-patches" },
      make("div", { class: "pairs", style: { "--side": `${side}px` } }, shown), make("figure", { class: "source" }, stage, caption));
  }

  // Histogram of the unit's activation in each picture, with ticks at the nine patches and a logarithmic count axis.
  function histogram(data, unit) {
    // The bins are the layer's; only the range of this unit is drawn.
    const every = data.histogram[unit];
    const first = Math.max(0, every.findIndex(Boolean));
    const counts = every.slice(first, every.findLastIndex(Boolean) + 1);
    const edges = data.edges.slice(first, first + counts.length + 1);
    const most = Math.max(1, ...counts);
    const height = (count) => (count ? HEIGHT * (0.5 + Math.log10(count)) / (0.5 + Math.log10(most)) : 0);
    const width = 100 / counts.length;
    const low = edges[0], high = edges[edges.length - 1];
    const bars = counts.map((count, k) => svg("rect", {
      x: `${k * width}%`, width: `${Math.max(0.4, width - 0.4)}%`, y: HEIGHT - height(count), height: height(count) }));
    const marks = data.values[unit].filter((value) => value > 0).map((value) => {
      const bin = Math.max(0, Math.min(counts.length - 1, edges.findIndex((edge) => edge > value) - 1));
      const inside = edges[bin + 1] > edges[bin] ? (value - edges[bin]) / (edges[bin + 1] - edges[bin]) : 0.5;
      const x = `${Math.min(100, Math.max(0, (bin + Math.min(1, Math.max(0, inside))) * width))}%`;
      return svg("line", { class: "mark", x1: x, x2: x, y1: HEIGHT + 4, y2: HEIGHT + 16 });
    });
    const pictures = counts.reduce((sum, count) => sum + count, 0);
    const label = `Histogram of ${pictures} pictures by the unit's activation, from ${atlas.number(low)} to ${atlas.number(high)}`;
    const text = (x, anchor, words) => svg("text", { x, y: HEIGHT + 36, "text-anchor": anchor }, words);
    return make("div", {}, make("p", { class: "how" }, "Number of pictures by the unit's activation, on logarithmic axes. Ticks: the nine patches."),
      svg("svg", { class: "histogram", height: HEIGHT + 40, role: "img", "aria-label": label },
        svg("line", { class: "hair", x1: 0, x2: "100%", y1: HEIGHT, y2: HEIGHT }), ...bars, ...marks,
        text("0", "start", atlas.number(low)), text("100%", "end", atlas.number(high)),
        svg("text", { x: 0, y: -8, class: "most" }, `up to ${atlas.count(most, "picture")}`)));
  }

  function preferences(data, unit) {
    const rows = data.classes[unit].map(([name, share]) => [atlas.facts.classes[name], share, atlas.facts.class_counts[name] / atlas.facts.looked_at]);
    return make("div", {}, make("p", { class: "how" }, "Each class's share of the unit's total activation. Tick: its share of all pictures."),
      atlas.bars(rows, "Preferred classes", Math.max(...rows.flatMap(([, share, base]) => [share, base]))));
  }
})();
