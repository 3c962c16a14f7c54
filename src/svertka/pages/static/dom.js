// Helpers for pages whose scripts create their content: elements, number formats, bar charts.
"use strict";
(() => {
  const build = self.build = {};
  const SPACE = "\u00a0";

  // Children are elements or text, never HTML: class names may contain markup.
  build.make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  };
  build.svg = (tag, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  // A name that does not affect the direction of the text around it; a long one keeps both ends, as in truncated_name.py.
  // `focusable`: whether Tab reaches a name that was cut; false inside links and buttons.
  const NAME_WIDTH = 64; // columns
  const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u;
  build.shorten = (text, width) => {
    const letters = [...text];
    const widths = letters.map((letter) => (WIDE.test(letter) ? 2 : 1));
    if (widths.reduce((sum, one) => sum + one, 0) <= width) return text;
    const fit = (list, room) => { let [taken, used] = [0, 0]; while (used + list[taken] <= room) used += list[taken++]; return taken; };
    const head = Math.floor((width - 1) * 2 / 5);
    return `${letters.slice(0, fit(widths, head)).join("")}…${letters.slice(letters.length - fit(widths.toReversed(), width - 1 - head)).join("")}`;
  };
  build.named = (text, { focusable = true, width = NAME_WIDTH } = {}) => {
    const short = build.shorten(text, width);
    if (short === text) return build.make("bdi", {}, text);
    return build.make("span", { class: "cut", title: text, tabindex: focusable ? 0 : false },
      build.make("bdi", { "aria-hidden": "true" }, short), build.make("bdi", { class: "full-name" }, text));
  };
  // Text for screen readers alone. Beside the visible text it completes the accessible name, as an aria-label would not.
  build.unseen = (text) => build.make("span", { class: "unseen" }, text);

  // Caption of a unit that a picture activates; `share` is of the unit's largest activation, null where that is unknown.
  build.partCaption = (layer, unit, share, value) => build.make("span", { class: "caption" }, build.unseen("Unit "),
    build.make("b", {}, String(unit)), build.unseen(` of ${layer}: `), share === null ? value.toPrecision(3) : `${Math.round(100 * share)}${SPACE}%`,
    build.unseen(share === null ? "" : " of its largest activation"));

  build.percent = (share) => `${(100 * share).toFixed(1)}${SPACE}%`;
  build.count = (value, noun) => `${value.toLocaleString("en")}${SPACE}${noun}${value === 1 ? "" : "s"}`;
  build.number = (value) => {
    const size = Math.abs(value);
    if (value === 0 || (size >= 1e-3 && size < 1e5)) return String(Number(value.toPrecision(3)));
    const [mantissa, exponent] = value.toExponential(2).split("e");
    const power = String(Number(exponent)).replace(/[-\d]/g, (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
    return `${Number(mantissa)}·10${power}`;
  };
  build.address = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;

  // A bar chart of rows [name, share, base share or undefined]; `full` is the share of a full bar.
  build.bars = (rows, label, full = 1) => build.make("ul", { class: "bars", "aria-label": label }, rows.map(([name, share, base]) => {
    const bar = build.svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      build.svg("rect", { class: "bar-ground", width: 100, height: 8 }),
      build.svg("rect", { class: "bar-share", width: 100 * Math.min(1, share / full), height: 8 }));
    if (base !== undefined) {
      const x = 100 * Math.min(1, base / full);
      bar.append(build.svg("line", { class: "bar-base", x1: x, x2: x, y1: 0, y2: 8 }));
    }
    const said = base === undefined ? "" : `, ${build.percent(base)} of all pictures`;
    return build.make("li", {}, build.make("span", { class: "called" }, build.named(name)), bar,
      build.make("span", { class: "figure" }, build.percent(share), build.unseen(said)));
  }));
})();
