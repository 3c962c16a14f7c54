// Navigation in the atlas: views by address, keyboard, search.
"use strict";
(() => {
  const atlas = self.atlas ??= {};
  const { make } = atlas;
  let view = { keys: {} };
  const scrolled = new Map();
  let here = null;
  let turn = 0;

  const layerNamed = (name) => {
    const layer = atlas.facts.layers.find((one) => one.name === name);
    if (!layer) throw new Error(`There is no layer ${name} in this atlas`);
    return layer;
  };
  const within = (text, end, what) => {
    const number = Number(text);
    if (!Number.isInteger(number) || number < 0 || number >= end) throw new Error(`There is no ${what} ${text}; use 0 to ${end - 1}`);
    return number;
  };
  const VIEWS = {
    layer: (name) => atlas.layerView(layerNamed(name)),
    unit: (name, number) => atlas.unitView(layerNamed(name), within(number, layerNamed(name).units, "unit")),
    pictures: () => atlas.picturesView(),
    picture: (number) => atlas.pictureView(within(number, atlas.facts.pictures.count, "picture")),
  };

  async function go() {
    const mine = ++turn;
    const [kind, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    if (here !== null) scrolled.set(here, scrollY);
    const network = document.getElementById("network");
    const stage = document.getElementById("stage");
    let next;
    try {
      next = kind && VIEWS[kind] ? await VIEWS[kind](...rest) : { title: null, keys: {}, content: null };
    } catch (error) {
      next = { title: "Not found", keys: {}, up: "#/", content: [make("h1", { tabindex: -1 }, `${error.message}.`)] };
    }
    if (mine !== turn) return; // a later navigation has replaced this one
    const came = here;
    here = location.hash;
    view = next;
    network.hidden = next.content !== null;
    stage.replaceChildren(...(next.content ?? []).filter(Boolean));
    document.title = `${next.title ? `${next.title} – ` : ""}${atlas.facts.name} – svertka`;
    const layer = kind === "layer" || kind === "unit" ? rest[0] : null;
    for (const link of document.querySelectorAll(".rail a, .nav-links a")) {
      const current = link.hash === here || (layer && link.hash === atlas.address("layer", layer)) || (kind === "picture" && link.hash === "#/pictures");
      link.toggleAttribute("aria-current", false);
      if (current) link.setAttribute("aria-current", link.hash === here ? "page" : "true");
    }
    document.querySelector(".rail [aria-current]")?.scrollIntoView({ block: "nearest" });
    drawer(false);
    scrollTo(0, scrolled.get(here) ?? 0);
    // Going back to a grid focuses the card that was opened; any other view focuses its heading.
    const from = [...stage.querySelectorAll("a.card")].find((card) => card.hash === came);
    if (came !== null) (from ?? stage.querySelector("h1") ?? network.querySelector("h1")).focus({ preventScroll: true });
  }

  // On narrow screens the navigation is shown above the view when it is asked for.
  function drawer(open) {
    document.body.classList.toggle("open", open);
    document.getElementById("drawer").setAttribute("aria-expanded", String(open));
  }

  // Up and down move to the nearest card in the next row.
  function neighbor(card, key) {
    const cards = [...card.closest(".units, .pictures").querySelectorAll("a.card")];
    const at = cards.indexOf(card);
    if (key === "ArrowLeft" || key === "ArrowRight") return cards[at + (key === "ArrowLeft" ? -1 : 1)];
    const { top, left } = card.getBoundingClientRect();
    const rows = cards.map((one) => [one, one.getBoundingClientRect()])
      .filter(([, box]) => (key === "ArrowUp" ? box.top < top - 1 : box.top > top + 1));
    const near = key === "ArrowUp" ? Math.max(...rows.map(([, box]) => box.top)) : Math.min(...rows.map(([, box]) => box.top));
    return rows.filter(([, box]) => Math.abs(box.top - near) < 1).sort((a, b) => Math.abs(a[1].left - left) - Math.abs(b[1].left - left))[0]?.[0];
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, target } = event;
    if (key === "Escape") {
      if (target.matches("input") && target.value) {
        target.value = "";
        target.dispatchEvent(new Event("input"));
      } else if (target.matches("input")) target.blur();
      else if (document.body.classList.contains("open")) drawer(false);
      else if (view.up) location.hash = view.up;
      return;
    }
    if (target.matches("input, select")) {
      if (target === view.search && (key === "ArrowDown" || key === "Enter")) {
        document.querySelector("#stage a.card")?.focus();
        event.preventDefault();
      }
      return;
    }
    if (key === "/") {
      (view.search ?? document.getElementById("find")).focus();
      event.preventDefault();
      return;
    }
    if (key.startsWith("Arrow")) {
      const card = target.closest?.("a.card");
      const list = target.closest?.(".rail, .layer-list");
      if (list) {
        const links = [...list.querySelectorAll("a")];
        const next = links[links.indexOf(target) + { ArrowUp: -1, ArrowDown: 1 }[key]];
        if (next) { next.focus(); event.preventDefault(); }
        return;
      }
      if (card) {
        const next = neighbor(card, key);
        if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
        event.preventDefault();
        return;
      }
      const grid = document.querySelector("#stage .controls ~ .units, #stage .pictures, #network:not([hidden]) .layer-list");
      if (grid && key === "ArrowDown" && target.matches("h1, body")) {
        grid.querySelector("a")?.focus();
        event.preventDefault();
        return;
      }
    }
    const act = view.keys[key];
    if (act) { act(); event.preventDefault(); }
  }

  // "conv4 12" finds a unit, "conv" all layers with that text in their names.
  function find(input, results) {
    const words = input.value.trim().toLowerCase();
    const [, stem, number] = /^(.*?)[\s#/]+(\d+)$/.exec(words) ?? [null, words, null];
    const layers = words ? atlas.facts.layers.filter((layer) => layer.name.toLowerCase().includes(stem)) : [];
    const found = layers.filter((layer) => number === null || Number(number) < layer.units).slice(0, 8).map((layer) =>
      make("li", {}, make("a", { href: number === null ? atlas.address("layer", layer.name) : atlas.address("unit", layer.name, Number(number)) },
        atlas.named(layer.name, { focusable: false }), number === null ? "" : ` ${Number(number)}`)));
    results.replaceChildren(...(words && !found.length ? [make("li", { class: "quiet" }, "no match")] : found));
  }

  document.addEventListener("DOMContentLoaded", () => {
    const facts = document.getElementById("facts");
    if (!facts) return;
    atlas.facts = JSON.parse(facts.textContent);
    const input = document.getElementById("find");
    const results = document.getElementById("found");
    input.addEventListener("input", () => find(input, results));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const first = results.querySelector("a");
      if (first) { location.hash = first.hash; input.value = ""; results.replaceChildren(); input.blur(); }
    });
    results.addEventListener("click", () => { input.value = ""; results.replaceChildren(); });
    document.getElementById("drawer").addEventListener("click", () => drawer(!document.body.classList.contains("open")));
    document.addEventListener("keydown", pressed);
    addEventListener("hashchange", go);
    history.scrollRestoration = "manual";
    go();
  });
})();
