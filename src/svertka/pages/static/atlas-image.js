// Image views: the grid of all pictures; one picture with its predictions, overlays and the units that it activates.
"use strict";
(() => {
  const atlas = self.atlas ??= {};
  const { make } = atlas;
  const THUMBNAIL = 96;
  const WHOLE = 384;
  const PART = 64;
  // Kept as long as the page is open.
  let filter = "";
  let overlay = "picture";

  const wrong = (pictures, picture) => {
    const [, label, guess] = pictures.names[picture];
    return label !== null && atlas.facts.knows && guess !== atlas.facts.class_numbers[label];
  };
  // Of a number, the text of the number itself.
  const guessed = (guess) => (typeof guess === "string" ? guess : atlas.facts.predicted[guess]);
  const isNumber = () => atlas.facts.kind === "regression";
  const truth = (label) => (label === null ? null : atlas.facts.classes[label]);

  atlas.picturesView = async () => {
    const pictures = await atlas.load("pictures");
    const grid = make("div", { class: "pictures", role: "list", "aria-label": "Pictures" });
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting || target.firstChild.hasChildNodes()) continue;
        target.firstChild.append(atlas.whole(Number(target.dataset.picture), THUMBNAIL));
      }
    }, { rootMargin: "400px" });
    // Pictures with overlays first.
    const featured = new Set(atlas.facts.featured);
    const order = pictures.names.map((_, k) => k).sort((a, b) => featured.has(b) - featured.has(a) || a - b);
    const cards = order.map((picture) => {
      const [name, label, guess] = pictures.names[picture];
      const said = `predicted ${guessed(guess)}`;
      const card = make("a", { class: "card", href: atlas.address("picture", picture), "data-picture": picture },
        make("span", { class: "thumbnail" }), make("span", { class: "caption" },
          make("span", {}, atlas.named(truth(label) ?? name, { focusable: false })),
          make("span", { class: "quiet" }, ...(wrong(pictures, picture) || !atlas.facts.knows ? [atlas.named(said, { focusable: false })] : [atlas.unseen(said), "\u00a0"])),
          label === null ? null : atlas.unseen(name)));
      observer.observe(card);
      return [`${name} ${truth(label) ?? ""} ${said}`.toLowerCase(), make("div", { role: "listitem" }, card)];
    });
    const output = make("output", { class: "quiet" });
    const search = make("input", { type: "search", placeholder: "name or class", value: filter, autocomplete: "off",
      spellcheck: "false", "aria-label": "Filter the pictures by name or class" });
    const arrange = () => {
      filter = search.value;
      const words = filter.trim().toLowerCase();
      const fitting = cards.filter(([text]) => text.includes(words));
      grid.replaceChildren(...fitting.map(([, item]) => item));
      output.textContent = words ? `${fitting.length} of ${atlas.count(cards.length, "picture")}` : "";
    };
    search.addEventListener("input", arrange);
    arrange();
    const { looked_at: all } = atlas.facts;
    return {
      title: "Pictures", search, keys: {}, up: "#/",
      content: [
        make("h1", { tabindex: -1 }, `${atlas.count(all, "picture")} in the data set; ${cards.length.toLocaleString("en")} of them are among the strongest of a unit.`),
        make("p", { class: "how" }, featured.size === cards.length ? "Open a picture to see its predictions, the evidence for them, and the units that it activates."
          : `Open a picture to see its predictions and the units that it activates; the first ${featured.size} also have saliency maps.`),
        make("div", { class: "controls" }, search, output), grid,
      ],
    };
  };

  atlas.pictureView = async (picture) => {
    const [pictures, some] = await Promise.all([atlas.load("pictures"), atlas.load(`pictures-${Math.floor(picture / atlas.facts.pictures.chunk)}`)]);
    const { best, strongest, scales } = some[picture % atlas.facts.pictures.chunk];
    const [name, label, first] = pictures.names[picture];
    const step = (by) => { if (pictures.names[picture + by]) location.hash = atlas.address("picture", picture + by); };
    const whole = atlas.whole(picture, atlas.fitToWindow(WHOLE));
    const stage = make("div", { class: "stage" }, whole);
    const explained = make("figcaption", { class: "quiet explained" });
    const kinds = scales ? Object.keys(MAPS).filter((kind) => kind !== "occlusion" || "occlusion" in scales) : [];
    const buttons = kinds.map((kind) => make("button", { type: "button", "data-kind": kind, onclick: () => show(kind) }, MAPS[kind].name));
    const show = (kind) => {
      overlay = kind;
      const here = kinds.includes(kind) ? kind : "picture";
      whole.querySelector(".overlay")?.remove();
      if (here !== "picture") {
        whole.insertBefore(make("img", { class: `overlay ${atlas.facts.pictures.crisp && here === "saliency" ? "crisp" : "smooth"}`,
          src: `overlays/${picture}-${here}.webp`, alt: MAPS[here].name }), whole.lastChild);
      }
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.kind === here));
      explained.textContent = MAPS[here].said(atlas.facts.predicted[best[0][0]], scales);
    };
    show(overlay);
    const cycle = () => { if (kinds.length) show(kinds[(kinds.indexOf(overlay) + 1) % kinds.length]); };
    const guesses = best.map(([k, probability]) => [atlas.facts.predicted[k], probability]);
    return {
      title: name, up: "#/pictures",
      keys: { ArrowLeft: () => step(-1), ArrowRight: () => step(1), p: cycle },
      content: [
        make("p", { class: "trail" }, make("a", { href: "#/pictures" }, "Pictures"),
          make("span", {}, neighbor(pictures, picture, -1, "← previous"), " ", neighbor(pictures, picture, 1, "next →"))),
        make("h1", { tabindex: -1 }, ...sentence(name, label, first, best)),
        make("div", { class: "picture-view" },
          make("figure", { class: "source" }, stage,
            kinds.length ? make("div", { class: "switch", role: "group", "aria-label": "Overlay" }, buttons) : null, explained),
          make("section", {}, make("h2", {}, "Predictions"), isNumber() ? make("p", {}, atlas.named(guesses[0][0]), `: ${first}`)
            : atlas.bars(guesses, atlas.facts.kind === "multi-label" ? "The most probable labels" : "The most probable classes"))),
        make("section", {}, make("h2", {}, "Units that it activates"),
          atlas.how("For each layer: the units closest to their own largest activation, with the percentage of it and the patch that activates them", atlas.PAPER, "Zeiler & Fergus 2014, §4"),
          make("div", { class: "layers" }, atlas.facts.layers.map((layer, k) => row(layer, strongest[k], picture, whole)))),
      ],
    };
  };

  const MAPS = {
    picture: { name: "Picture", said: () => "The picture as the network sees it." },
    saliency: { name: "Saliency", said: (guess) => atlas.facts.relu ?
      `Guided backpropagation (Springenberg et al. 2014): the pixels that raise the score of ${guess}; gray has no influence.`
      : `Gradient: the pixels that change the score of ${guess}; gray has no influence. The network has no ReLU, so guided backpropagation has nothing to rectify.` },
    occlusion: { name: "Occlusion", said: (guess, { occlusion }) => occlusion ?
      `Occlusion (Zeiler & Fergus 2014, §4.2): clear where covering the picture lowers the probability of ${guess} most, by up to ${atlas.percent(occlusion)}; gray where it does not.`
      : `Occlusion (Zeiler & Fergus 2014, §4.2): no covered part lowers the probability of ${guess}.` },
    "grad-cam": { name: "Grad-CAM", said: (guess) => `Grad-CAM (Selvaraju et al. 2017): clear where the last feature maps support ${guess}; gray where they do not.` },
  };

  function neighbor(pictures, picture, by, text) {
    return pictures.names[picture + by]
      ? make("a", { href: atlas.address("picture", picture + by), "aria-label": `${by < 0 ? "Previous" : "Next"} picture` }, text)
      : make("span", { class: "quiet" }, text);
  }

  function sentence(name, label, first, best) {
    const [guess, probability] = best[0];
    const of = label === null ? [] : [": ", atlas.named(truth(label))];
    if (isNumber()) return [atlas.named(name), ...of, `, predicted ${first}.`];
    return [atlas.named(name), ...of, ", predicted ", atlas.named(atlas.facts.predicted[guess]), ` with ${atlas.percent(probability)}.`];
  }

  function row(layer, strongest, picture, whole) {
    const parts = strongest.map(([unit, share, place, column]) => {
      const box = atlas.box(layer, place, column);
      const link = make("a", { class: "part", href: atlas.address("unit", layer.name, unit) },
        atlas.crop(picture, box, layer.tile.window, PART, layer.tile.crisp), atlas.partCaption(layer.name, unit, share));
      const frame = () => whole.frame(box);
      link.addEventListener("pointerenter", frame);
      link.addEventListener("focus", frame);
      link.addEventListener("pointerleave", () => whole.frame(null));
      link.addEventListener("blur", () => whole.frame(null));
      return link;
    });
    return make("div", { class: "layer-row" }, make("a", { class: "name", href: atlas.address("layer", layer.name), }, atlas.named(layer.name, { focusable: false })),
      make("div", { class: "parts" }, parts.length ? parts : make("span", { class: "quiet" }, "nothing")));
  }
})();
