// Upload page: send pictures to the server and show predictions, a Grad-CAM overlay and the most active units.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { make, named, percent, address, partCaption, takeFiles, classBars, bestClass, unknownNote } = self.build;
  const SIDE = 320; // CSS pixels of a picture
  const SHOWN = 10; // labels, besides those that are predicted
  const PATCH = 72; // CSS pixels of a unit's patch
  const MAX_REQUESTS = 2; // concurrent requests; further ones wait in the browser
  const drop = document.getElementById("drop");
  if (!drop) return; // the studio has no run yet
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const choice = document.getElementById("run");
  const answers = document.getElementById("answers");
  let current = null; // the picture that keyboard shortcuts apply to

  const run = () => facts.runs[choice ? choice.selectedIndex : 0];

  // The chosen run is part of the address, so that bookmarks and the back button work.
  function follow() {
    if (!choice) return;
    const key = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
    const at = facts.runs.findIndex((one) => one.key === key);
    choice.selectedIndex = Math.max(0, at);
    showRun();
  }
  function showRun() {
    const { key, sentence, report, atlas } = run();
    document.getElementById("sentence").textContent = sentence;
    if (choice) document.getElementById("query").textContent = `?run=${encodeURIComponent(key)}`;
    for (const [id, to] of [["report", report], ["atlas", atlas]]) {
      const link = document.getElementById(id);
      link.hidden = !to;
      if (to) link.href = to;
    }
  }

  const waiting = [];
  let running = 0;
  async function ask(path, query, body) {
    if (running >= MAX_REQUESTS) await new Promise((resolve) => waiting.push(resolve));
    running += 1;
    try {
      for (let turn = 0; ; turn += 1) {
        const response = await fetch(`${path}?${new URLSearchParams(query)}`, {
          method: "POST", body, headers: { "Content-Type": "application/octet-stream" },
        });
        if (response.status === 503 && turn < 5) {
          const seconds = Number(response.headers.get("Retry-After")) || 1;
          await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
          continue;
        }
        const value = await response.json();
        if (!response.ok) throw new Error(value.error);
        return value;
      }
    } catch (error) {
      throw error instanceof TypeError ? new Error("the server does not answer") : error;
    } finally {
      running -= 1;
      waiting.shift()?.();
    }
  }

  function addPicture(file) {
    const source = run();
    const address = URL.createObjectURL(file);
    // The browser may not read what the server reads.
    const preview = make("img", { src: address, alt: "", onerror: () => preview.remove() });
    const picture = make("span", { class: "crop whole", style: { width: "100%", "aspect-ratio": "1" } }, preview);
    const title = make("h2", {}, named(file.name), ` \u2026`);
    const verdict = make("section");
    const controls = make("div", { class: "switch", role: "group", "aria-label": "Overlay" });
    const explained = make("figcaption", { class: "quiet explained" });
    const units = make("details", { hidden: true });
    const figure = make("figure", {}, make("div", { class: "stage" }, picture), controls, explained);
    const item = make("li", {}, title, make("div", { class: "picture-view" }, figure, verdict), units);
    answers.prepend(item);
    predict();

    async function predict() {
      try {
        const [{ labels, number, unknown }] = await ask("predict", { run: source.key, top: 5 }, file);
        if (number) {
          title.replaceChildren(named(file.name), ": ", named(number.name), ` ${Number(number.value.toPrecision(6))}.`);
          item.select = () => {};
          await explain(number.name);
          return;
        }
        const best = labels[0];
        labels.splice(0, labels.length, ...labels.filter((one, k) => k < SHOWN || one.predicted));
        if ("predicted" in best) title.replaceChildren(named(file.name), ": ", ...listed(labels.filter((one) => one.predicted)), ".");
        else title.replaceChildren(named(file.name), ": ", ...bestClass(best, unknown));
        const { list, press } = classBars(labels, "predicted" in best ? "The labels" : "The most probable classes", explain);
        verdict.replaceChildren(...unknownNote(unknown), list);
        item.select = press;
        await explain(best.name);
      } catch (error) {
        title.replaceChildren(named(file.name));
        figure.hidden = !preview.naturalWidth;
        verdict.replaceChildren(make("p", { class: "wrong" }, `${error.message}.`));
      }
    }

    // Labels with their probabilities, separated by commas.
    function listed(labels) {
      if (!labels.length) return ["no label"];
      return labels.flatMap(({ name, probability }, k) => [...(k ? [", "] : []), named(name), ` with ${percent(probability)}`]);
    }

    async function explain(label) {
      const seen = await ask("explain", { run: source.key, label }, file);
      item.select(label);
      const scale = seen.pixelated ? Math.max(1, Math.floor(figure.clientWidth / seen.size)) : Math.min(SIDE, figure.clientWidth) / seen.size;
      const side = `${seen.size * scale}px`;
      const overlay = seen.heatmap && make("img", { class: "overlay", src: seen.heatmap, alt: "", hidden: true });
      const frame = make("b", { class: "frame-line", hidden: true });
      const image = make("img", { src: seen.image, alt: `What the network sees of ${file.name}` });
      picture.className = `crop whole ${seen.pixelated ? "crisp" : "smooth"}`;
      Object.assign(picture.style, { width: side, height: side, aspectRatio: "auto" });
      picture.replaceChildren(...[image, overlay, frame].filter(Boolean));
      URL.revokeObjectURL(address);
      const focus = (box) => {
        frame.hidden = !box;
        if (!box) return;
        const [top, left, bottom, right] = box.map((pixel) => `${pixel * scale}px`);
        Object.assign(frame.style, { top, left, width: `calc(${right} - ${left})`, height: `calc(${bottom} - ${top})` });
      };
      item.show = (where) => {
        if (overlay) overlay.hidden = !where;
        [...controls.children].forEach((button, k) => button.setAttribute("aria-pressed", String((k === 1) === where)));
        explained.textContent = !overlay ? "The picture as the network sees it. This network has no feature maps for a Grad-CAM overlay."
          : where ? `Grad-CAM (Selvaraju et al. 2017): clear where the last feature maps support ${label}; gray where they do not.`
          : "The picture as the network sees it.";
      };
      item.toggle = () => item.show(overlay ? overlay.hidden : false);
      controls.replaceChildren(...(overlay ? ["Picture", "Where it looked"] : []).map((text, k) =>
        make("button", { type: "button", onclick: () => { current = item; item.show(k === 1); } }, text)));
      item.show(false);
      current = item;
      if (!seen.units.length) return;
      units.hidden = false;
      units.replaceChildren(make("summary", {}, "Most active units"),
        make("p", { class: "how" }, source.atlas ? "For each layer: the units closest to their own largest activation, with the percentage of it and the patch that activates them. Each links to its page in the atlas."
          : "For each layer: the units with the largest activations and the patches that activate them. To see what each unit responds to, run svertka look."),
        ...rows(seen, source, focus));
    }
  }

  function rows(seen, source, focus) {
    const layers = new Map();
    for (const one of seen.units) layers.set(one.layer, [...(layers.get(one.layer) ?? []), one]);
    return [...layers].map(([layer, fired]) => make("div", { class: "layer-row" },
      make("span", { class: "name" }, named(layer)),
      make("div", { class: "parts" }, fired.map((one) => {
        const part = make(source.atlas ? "a" : "span", {
          class: "part", href: source.atlas ? `${source.atlas}${address("unit", layer, one.unit)}` : false,
          target: source.atlas ? "_blank" : false, rel: source.atlas ? "noopener" : false,
          role: source.atlas ? false : "group", tabindex: source.atlas ? false : 0,
        }, piece(seen, one.box), partCaption(layer, one.unit, one.share, one.value));
        for (const [event, box] of [["pointerenter", one.box], ["focus", one.box], ["pointerleave", null], ["blur", null]]) {
          part.addEventListener(event, () => focus(box));
        }
        return part;
      }))));
  }

  // A crop of the picture, scaled to the square.
  function piece(seen, [top, left, bottom, right]) {
    const scale = PATCH / Math.max(bottom - top, right - left);
    return make("span", { class: `crop small ${seen.pixelated || scale > 2 ? "crisp" : "smooth"}` }, make("i", { style: {
      width: `${(right - left) * scale}px`, height: `${(bottom - top) * scale}px`,
      "background-image": `url("${seen.image}")`, "background-size": `${seen.size * scale}px auto`,
      "background-position": `${-left * scale}px ${-top * scale}px`,
    } }));
  }

  takeFiles(drop, (files) => files.forEach(addPicture));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "h" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    current?.toggle();
  });
  // Behind a proxy the server does not know its public address.
  document.getElementById("address").textContent = new URL(".", location.href).href.replace(/\/$/, "");
  choice?.addEventListener("change", () => { location.hash = `#/${encodeURIComponent(run().key)}`; });
  addEventListener("hashchange", follow);
  follow();
  showRun();
});
