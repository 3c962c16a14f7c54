// Layer view: a grid with a card for each unit, sorted and filtered.
"use strict";
(() => {
  const atlas = self.atlas ??= {};
  const { make } = atlas;
  const KINDS = { patches: "Patches", projections: "Projections", both: "Both", filters: "Filters" };
  const ORDERS = { number: "number", class: "preferred class", sparsity: "sparsity", similarity: "similarity" };
  const scale = (low, high) => make("span", { class: "scale" }, `${low} `, make("i"), ` ${high}`);
  const LEGENDS = {
    patches: () => ["The nine patches that activate the unit most, from different pictures, the strongest first."],
    projections: () => ["The pixels of each patch that activate the unit (deconvolution): ", scale("−", "+"), ", gray is 0."],
    both: () => ["Each patch beside the pixels in it that activate the unit (deconvolution): ", scale("−", "+"), ", gray is 0."],
    filters: () => ["The unit's weights: ", scale("−", "+"), ", gray is 0."],
  };
  // Kept as long as the page is open, so that a grid looks the same when one comes back.
  const chosen = { shown: "patches", order: "number", filter: {} };

  // Up to two preferred classes: those whose share of the unit's activation clearly exceeds their share of all pictures.
  const MIN_EXCESS = 0.02;
  atlas.preferredClasses = (data, unit) => {
    return data.classes[unit].filter(([name, share]) => share - atlas.facts.class_counts[name] / atlas.facts.looked_at >= MIN_EXCESS)
      .slice(0, 2).map(([name]) => name);
  };

  atlas.describeUnit = (layer, data, unit) => {
    if (layer.dead.includes(unit)) return `Unit ${unit}, dead: never above zero and the same for all pictures`;
    const preferred = atlas.preferredClasses(data, unit).map((name) => atlas.facts.classes[name]);
    return `Unit ${unit}, active in ${atlas.percent(data.active[unit])} of the pictures` +
      (preferred.length ? `; prefers ${preferred.join(", ")}` : "");
  };

  // A link to a unit; `fill` adds its tiles once it is near the visible area.
  atlas.card = (layer, data, unit) => {
    const side = layer.tile.shown;
    const dead = layer.dead.includes(unit);
    const [first, second] = dead ? [] : atlas.preferredClasses(data, unit).map((name) => atlas.facts.classes[name]);
    const card = make("a", {
      class: "card", href: atlas.address("unit", layer.name, unit), "data-unit": unit,
    }, make("span", { class: "mosaics" }, dead ? make("span", { class: "dead" }, "dead") : null),
    make("span", { class: "caption" },
      make("span", {}, atlas.unseen("Unit "), make("b", {}, String(unit)),
        ...(dead ? [] : [` · ${atlas.percent(data.active[unit])}`, atlas.unseen(" of the pictures activate it")])),
      make("span", { class: "quiet", title: [first, second].filter(Boolean).join(", ") },
        ...(first === undefined ? ["\u00a0"] : ["prefers ", atlas.named(first, { focusable: false }), ...(second === undefined ? [] : [", ", atlas.named(second, { focusable: false })])]))));
    card.fill = () => {
      if (dead || card.filled) return;
      card.filled = true;
      const kinds = ["patches", "projections", ...(layer.filters ? ["filters"] : [])];
      card.firstChild.append(...kinds.map((kind) => (kind === "filters" ? filter(layer, unit) : atlas.mosaic(layer, unit, kind, side))));
    };
    return card;
  };

  function filter(layer, unit) {
    const side = 3 * layer.tile.shown + 2;
    return make("span", { class: "mosaic filters crisp", style: {
      "--sheet": `url("${layer.folder}/filters.webp")`, "--side": `${side}px`, "--units": layer.units, "--row": unit,
    } }, make("i"));
  }

  const lazily = () => new IntersectionObserver((entries, observer) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { target.fill(); observer.unobserve(target); }
  }, { rootMargin: "600px" });

  function inOrder(layer, data, order) {
    const units = Array.from({ length: layer.units }, (_, unit) => unit);
    const last = (unit) => (layer.dead.includes(unit) ? 1 : 0);
    const by = (value) => units.sort((a, b) => last(a) - last(b) || value(a) - value(b) || a - b);
    if (order === "sparsity") return by((unit) => data.active[unit]);
    if (order === "class") {
      return by((unit) => (atlas.preferredClasses(data, unit)[0] ?? Infinity) - (data.classes[unit][0]?.[1] ?? 0));
    }
    if (order === "similarity") {
      const place = new Map(data.order.map((unit, k) => [unit, k]));
      return by((unit) => place.get(unit) ?? Infinity);
    }
    return units;
  }
  atlas.inChosenOrder = (layer, data) => inOrder(layer, data, chosen.order);

  atlas.layerView = async (layer) => {
    const data = await atlas.load(layer.data);
    const grid = make("div", {
      class: "units", role: "list", "aria-label": `Units of ${layer.name}`, style: { "--side": `${layer.tile.shown}px` },
    });
    const cards = new Map(inOrder(layer, data, "number").map((unit) => [unit, atlas.card(layer, data, unit)]));
    const lists = new Map([...cards].map(([unit, card]) => [unit, make("div", { role: "listitem" }, card)]));
    const observer = lazily();
    cards.forEach((card) => observer.observe(card));
    addEventListener("beforeprint", () => { if (grid.isConnected) cards.forEach((card) => card.fill()); });
    const output = make("output", { class: "quiet" });
    const search = make("input", {
      type: "search", placeholder: "number, class or dead", "aria-label": "Filter the units by number, class or dead",
      value: chosen.filter[layer.name] ?? "", autocomplete: "off", spellcheck: "false",
    });
    const arrange = () => {
      const words = search.value.trim().toLowerCase();
      chosen.filter[layer.name] = search.value;
      const fits = (unit) => !words || (/^\d+$/.test(words) ? String(unit).startsWith(words)
        : atlas.describeUnit(layer, data, unit).toLowerCase().includes(words));
      const units = inOrder(layer, data, chosen.order).filter(fits);
      grid.replaceChildren(...units.map((unit) => lists.get(unit)));
      output.textContent = units.length === layer.units ? "" : `${units.length} of ${atlas.count(layer.units, "unit")}`;
    };
    search.addEventListener("input", arrange);
    const order = make("select", { "aria-label": "Order of the units" }, Object.entries(ORDERS).map(([value, text]) =>
      make("option", { value, selected: value === chosen.order }, `by ${text}`)));
    order.addEventListener("change", () => { chosen.order = order.value; arrange(); });

    const kinds = Object.keys(KINDS).filter((kind) => kind !== "filters" || layer.filters);
    const buttons = kinds.map((kind) => make("button", { type: "button", "data-kind": kind, onclick: () => show(kind) }, KINDS[kind]));
    // The same height for all kinds, so that switching between them does not move the grid.
    const legend = make("p", { class: "legend quiet" });
    const show = (kind) => {
      chosen.shown = kind;
      grid.dataset.shown = kinds.includes(kind) ? kind : "patches";
      legend.replaceChildren(...LEGENDS[grid.dataset.shown]());
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.kind === grid.dataset.shown));
    };
    show(chosen.shown);
    arrange();
    return {
      title: layer.name,
      search,
      keys: {
        p: () => show(grid.dataset.shown === "patches" ? "projections" : "patches"),
        b: () => show(grid.dataset.shown === "both" ? "patches" : "both"),
        f: () => { if (layer.filters) show(grid.dataset.shown === "filters" ? "patches" : "filters"); },
      },
      up: "#/",
      content: [
        make("h1", { tabindex: -1 }, ...sentence(layer)),
        atlas.how("Each card shows a unit: its number, the share of pictures that activate it, and its preferred classes",
          atlas.PAPER, "Zeiler & Fergus 2014, §4"),
        make("div", { class: "controls" }, make("div", { class: "switch", role: "group", "aria-label": "What the cards show" }, buttons),
          order, search, output),
        legend,
        layer.note ? make("p", { class: "quiet note" }, layer.note) : null,
        grid,
      ],
    };
  };

  function sentence(layer) {
    const dead = layer.dead.length ? `, ${layer.dead.length} dead` : "";
    const sees = layer.sees.endsWith("pixels") ? `${layer.sees} of a picture` : layer.sees;
    const shown = layer.units < layer.all ? ` (of ${layer.all.toLocaleString("en")})` : "";
    return ["Layer ", atlas.named(layer.name), ` of `, atlas.named(atlas.facts.name),
      `: ${atlas.count(layer.units, "unit")}${shown}${dead}. Each sees ${sees}.`];
  }
})();
