// Elements of the atlas views: data loaded from scripts, tiles from sprite sheets, image crops.
"use strict";
(() => {
  const atlas = Object.assign(self.atlas ??= {}, self.build);

  // Browsers refuse fetch() on pages opened from disk; instead, data files are scripts that assign to atlasData.
  const promised = new Map();
  atlas.load = (name) => {
    if (!promised.has(name)) {
      promised.set(name, new Promise((resolve, reject) => {
        const script = atlas.make("script", { src: `data/${name}.js` });
        script.addEventListener("load", () => { resolve(self.atlasData[name]); script.remove(); });
        script.addEventListener("error", () => {
          promised.delete(name);
          reject(new Error(`data/${name}.js is missing; copy the whole folder of the atlas, not only index.html`));
        });
        document.head.append(script);
      }));
    }
    return promised.get(name);
  };

  // The receptive field of a position: [top, left, bottom, right], the last two excluded.
  atlas.box = (layer, row, column) => {
    const [top, bottom] = layer.rows[Math.min(row, layer.rows.length - 1)];
    const [left, right] = layer.columns[Math.min(column, layer.columns.length - 1)];
    return [top, left, bottom + 1, right + 1];
  };

  const sheetOf = (unit) => Math.floor(unit / atlas.facts.sheet_rows);

  // The nine tiles of a unit from the layer's sprite sheet of `kind`, `side` CSS pixels each.
  atlas.mosaic = (layer, unit, kind, side) => {
    const rows = Math.min(atlas.facts.sheet_rows, layer.units - sheetOf(unit) * atlas.facts.sheet_rows);
    const tiles = layer.dead.includes(unit) ? [] : Array.from({ length: 9 }, () => atlas.make("i"));
    return atlas.make("span", {
      class: `mosaic ${kind} ${layer.tile.crisp ? "crisp" : "smooth"}`,
      style: {
        "--sheet": `url("${layer.folder}/${kind}-${sheetOf(unit)}.webp")`, "--side": `${side}px`,
        "--rows": rows, "--row": unit % atlas.facts.sheet_rows,
      },
    }, ...tiles);
  };
  // A single tile.
  atlas.piece = (layer, unit, place, kind, side) => {
    const one = atlas.mosaic(layer, unit, kind, side);
    one.className += " piece";
    one.replaceChildren(atlas.make("i", { style: { "--column": place } }));
    return one;
  };

  // A crop of a picture, scaled to `side`; the part of a receptive field beyond the border stays empty.
  atlas.crop = (picture, box, window, side, crisp = atlas.facts.pictures.crisp) => {
    const { size, columns } = atlas.facts.pictures;
    const scale = side / window;
    const [top, left, bottom, right] = box;
    const place = picture % (columns * columns);
    const x = (place % columns) * size + left;
    const y = Math.floor(place / columns) * size + top;
    const part = atlas.make("i", { style: {
      top: `${top === 0 ? (window - (bottom - top)) * scale : 0}px`,
      left: `${left === 0 ? (window - (right - left)) * scale : 0}px`,
      width: `${(right - left) * scale}px`, height: `${(bottom - top) * scale}px`,
      "background-image": `url("pictures/${Math.floor(picture / (columns * columns))}.webp")`,
      "background-size": `${columns * size * scale}px auto`,
      "background-position": `${-x * scale}px ${-y * scale}px`,
    } });
    return atlas.make("span", {
      class: `crop ${crisp ? "crisp" : "smooth"}`, style: { width: `${side}px`, height: `${side}px` },
    }, part);
  };
  // `side`, or the width of the window if that is less.
  atlas.fitToWindow = (side) => Math.min(side, document.documentElement.clientWidth - 32);
  // The whole picture, about `side` CSS pixels wide; `frame(box)` marks a part of it, `frame(null)` removes the mark.
  atlas.whole = (picture, side) => {
    const { size, crisp } = atlas.facts.pictures;
    const scale = crisp ? Math.max(1, Math.floor(side / size)) : side / size;
    const element = atlas.crop(picture, [0, 0, size, size], size, size * scale);
    const frame = atlas.make("b", { class: "frame-line", hidden: true });
    element.classList.add("whole");
    element.append(frame);
    element.frame = (box) => {
      frame.hidden = !box;
      if (!box) return;
      const [top, left, bottom, right] = box.map((pixel) => `${pixel * scale}px`);
      Object.assign(frame.style, {
        top, left, width: `calc(${right} - ${left})`, height: `calc(${bottom} - ${top})`,
      });
    };
    return element;
  };

  atlas.how = (text, link, title) => atlas.make("p", { class: "how" }, `${text} (`,
    atlas.make("a", { href: link }, title), ").");
  atlas.PAPER = "https://arxiv.org/abs/1311.2901";
})();
