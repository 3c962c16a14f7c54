// What the interactive pages share: elements, numbers, colors, grids of numbers, controls, and the color scheme.
"use strict";
const Lesson = (() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // Elements

  function build(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }
  const element = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
  const drawing = (name, attributes = {}, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  const find = (id) => document.getElementById(id);

  // Numbers and colors

  // A number as it is printed: up to `digits` decimals, no trailing zeros, a true minus sign.
  function number(value, digits = 2) {
    const rounded = Number(value.toFixed(digits));
    return String(rounded === 0 ? 0 : rounded).replace("-", "−");
  }
  const factor = (value, digits) => (value < 0 ? `(${number(value, digits)})` : number(value, digits));
  const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

  // The color of a signed number: blue above zero, orange below, and the ground at zero. It stays so pale that text on it is readable.
  function tint(value, largest, most = 55) {
    const share = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0;
    return `color-mix(in srgb, var(${value < 0 ? "--negative" : "--positive"}) ${(most * share).toFixed(1)}%, var(--ground))`;
  }
  const largest = (rows) => Math.max(0, ...rows.flat(2).map(Math.abs));

  // Reproducible random numbers in [0, 1): Mulberry32.
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  }

  // The step of an arrow key, [down, right], or undefined. Neither arrow keys nor Space scroll the page.
  function arrowStep(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step || event.key === " ") event.preventDefault();
    return step;
  }

  // Grids

  const CELL = 40;

  // A grid of numbers in which one cell is chosen by pointer, by touch or by arrow keys.
  //
  // choose(row, column, event): called when a cell is pointed at; without it, the grid is a still picture.
  // move(down, right): called for arrow keys, if they do not choose the next cell.
  // type(key): called for digits, + and −; returns whether it used the key.
  function grid(holder, { label, choose, move, type, cellSize = 40 }) {
    const svg = drawing("svg", { class: choose ? "grid" : "grid still" });
    holder.replaceChildren(svg);
    let shape = { rows: 1, columns: 1, first: 0 };
    let at = [0, 0];
    if (choose) {
      build(svg, { tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 0 }, []);
      const follow = (event) => {
        const box = svg.getBoundingClientRect();
        const row = clamp(Math.floor(((event.clientY - box.top) / box.height) * shape.rows), 0, shape.rows - 1);
        const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * shape.columns), 0, shape.columns - 1);
        choose(row - shape.first, column - shape.first, event.type);
      };
      svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); follow(event); });
      svg.addEventListener("pointermove", (event) => { if (event.buttons || event.pointerType === "mouse") follow(event); });
      svg.addEventListener("keydown", (event) => {
        const step = arrowStep(event);
        if (step && move) move(...step);
        else if (step) choose(at[0] + step[0], at[1] + step[1], "keydown");
        else if (!(event.ctrlKey || event.metaKey || event.altKey) && type?.(event.key)) event.preventDefault();
      });
    } else {
      build(svg, { role: "img", "aria-label": label }, []);
    }

    // cells(row, column): {value, text, fill, small, outside}; first: index of the first row and column, 0 or below;
    // chosen: [row, column]; over: further drawings, in units of cells; says: the text for screen readers.
    function draw({ rows, columns, cells, first = 0, chosen, over = [], says = "", lastRow = rows, lastColumn = columns }) {
      shape = { rows, columns, first: -first };
      const nodes = [];
      for (let row = first; row < rows + first; row += 1) {
        for (let column = first; column < columns + first; column += 1) {
          const cell = cells(row, column);
          const [x, y] = [(column - first) * CELL, (row - first) * CELL];
          if (cell.outside) nodes.push(drawing("rect", { x: x + 2, y: y + 2, width: CELL - 4, height: CELL - 4, class: "outside" }));
          else nodes.push(drawing("rect", { x, y, width: CELL, height: CELL, class: "lattice", style: `fill: ${cell.fill}` }));
          const text = cell.text ?? "";
          const size = text.length > 5 ? 11 : text.length > 3 ? 13 : 16;
          if (text) {
            nodes.push(drawing("text", {
              x: x + CELL / 2, y: y + CELL / 2 + size * 0.35, "text-anchor": "middle", "font-size": size, class: cell.outside ? "quiet" : cell.kind,
            }, text));
          }
          if (cell.small) nodes.push(drawing("text", { x: x + CELL - 4, y: y + CELL - 4, "text-anchor": "end", "font-size": 10, class: "mark" }, cell.small));
        }
      }
      if (chosen) {
        at = chosen;
        const [row, column] = chosen;
        nodes.push(frame(row - first, column - first, 1, 1));
        svg.setAttribute("aria-valuemax", Math.max(0, lastRow * lastColumn - 1));
        svg.setAttribute("aria-valuenow", Math.max(0, row * lastColumn + column));
      }
      if (says) svg.setAttribute(choose ? "aria-valuetext" : "aria-label", says);
      build(svg, { viewBox: `-2 -2 ${columns * CELL + 4} ${rows * CELL + 4}`, width: columns * cellSize, height: rows * cellSize }, []);
      svg.replaceChildren(...nodes, ...over);
    }
    return { svg, draw };
  }

  // The outline of a block of cells, in units of cells.
  const frame = (row, column, height, width, kind = "outline", inset = 1.5) => drawing("rect", {
    x: column * CELL + inset, y: row * CELL + inset, width: width * CELL - 2 * inset, height: height * CELL - 2 * inset, class: kind,
  });

  // A square of number fields. Each changes by typing, by arrow keys, or by dragging up and down.
  function fields(holder, { label, change, step = 1 }) {
    let inputs = [];
    function draw(values, marked = () => false, bound = largest(values)) {
      const count = values.length * values[0].length;
      if (inputs.length !== count || Number(holder.dataset.columns) !== values[0].length) {
        holder.classList.add("kernel");
        holder.dataset.columns = values[0].length;
        holder.style.gridTemplateColumns = `repeat(${values[0].length}, max-content)`;
        inputs = Array.from({ length: count }, (_, index) => field(Math.floor(index / values[0].length), index % values[0].length));
        holder.replaceChildren(...inputs);
      }
      inputs.forEach((input, index) => {
        const [row, column] = [Math.floor(index / values[0].length), index % values[0].length];
        if (document.activeElement !== input || Number(input.value) !== values[row][column]) input.value = values[row][column];
        input.style.backgroundColor = tint(values[row][column], bound);
        input.classList.toggle("chosen", Boolean(marked(row, column)));
      });
    }
    function field(row, column) {
      const input = element("input", { type: "number", step, "aria-label": `${label}, row ${row}, column ${column}` });
      const set = (value) => { if (Number.isFinite(value)) change(row, column, clamp(Math.round(value / step) * step, -99, 99)); };
      input.addEventListener("input", () => { if (input.value !== "") set(Number(input.value)); });
      let start = null;
      input.addEventListener("pointerdown", (event) => { start = { y: event.clientY, value: Number(input.value), id: event.pointerId }; });
      input.addEventListener("pointermove", (event) => {
        if (!start || !event.buttons) return;
        const steps = Math.round((start.y - event.clientY) / 8);
        if (!steps && !input.hasPointerCapture(start.id)) return;
        input.setPointerCapture(start.id);
        set(start.value + steps * step);
      });
      for (const name of ["pointerup", "pointercancel"]) input.addEventListener(name, () => { start = null; });
      return input;
    }
    return { draw };
  }

  // Controls

  // Tie every input with data-bind="name" to state[name], and show values in output[data-show="name"].
  // The address keeps what was set, so that a link leads to the same picture.
  function bind(state, update) {
    const inputs = [...document.querySelectorAll("[data-bind]")];
    const address = new URLSearchParams(location.hash.slice(1));
    const write = (input, value) => {
      if (input.type === "checkbox") input.checked = Boolean(value);
      else if (input.localName === "button") input.setAttribute("aria-pressed", String(input.value === String(value)));
      else input.value = value;
    };
    const read = (input) => (input.type === "checkbox" ? input.checked : input.type === "range" ? Number(input.value) : input.value);
    const isNumber = (name) => typeof state[name] === "number";
    function refresh() {
      for (const input of inputs) write(input, state[input.dataset.bind]);
      for (const shown of document.querySelectorAll("[data-show]")) {
        if (shown.dataset.show in state) shown.textContent = state[shown.dataset.show];
      }
    }
    function set(name, value) {
      state[name] = isNumber(name) ? Number(value) : value;
      const changed = new URLSearchParams(location.hash.slice(1));
      changed.set(name, state[name]);
      try { history.replaceState(null, "", `#${changed}`); } catch { /* a page in a sandbox keeps no address */ }
      update(name);
      refresh();
    }
    for (const input of inputs) {
      const name = input.dataset.bind;
      if (input.localName === "button") input.addEventListener("click", () => set(name, input.value));
      else input.addEventListener("input", () => set(name, read(input)));
      if (!address.has(name)) continue;
      if (input.localName === "button") { if (input.value === address.get(name)) state[name] = isNumber(name) ? Number(input.value) : input.value; continue; }
      if (input.type === "checkbox") { state[name] = address.get(name) === "true"; continue; }
      const before = input.value;
      input.value = address.get(name);
      if (input.value === "") input.value = before;
      else state[name] = read(input);
    }
    update(null);
    refresh();
    return { refresh, set };
  }

  // A button that calls step() until it returns false, or until it is pressed again.
  function player(button, step, milliseconds) {
    const idle = button.textContent;
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = idle; };
    button.addEventListener("click", () => {
      if (timer) { stop(); return; }
      button.textContent = "Stop";
      timer = setInterval(() => { if (step() === false) stop(); }, milliseconds);
    });
    return { stop };
  }

  // Color scheme: the system's until another is chosen. Browsers may refuse storage to a page opened from disk.
  const scheme = {
    read() { try { return localStorage.getItem("svertka-scheme"); } catch { return null; } },
    write(name) { try { localStorage.setItem("svertka-scheme", name); } catch { /* the choice lasts as long as the page */ } },
  };
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  if (["light", "dark"].includes(scheme.read())) root.dataset.scheme = scheme.read();
  document.addEventListener("DOMContentLoaded", () => {
    const button = find("scheme");
    const isDark = () => (root.dataset.scheme || (systemDark.matches ? "dark" : "light")) === "dark";
    const label = () => { button.textContent = isDark() ? "Light colors" : "Dark colors"; };
    button.addEventListener("click", () => {
      root.dataset.scheme = isDark() ? "light" : "dark";
      scheme.write(root.dataset.scheme);
      label();
      document.dispatchEvent(new Event("schemechange"));
    });
    systemDark.addEventListener("change", () => { label(); document.dispatchEvent(new Event("schemechange")); });
    label();
  });

  return { CELL, arrowStep, bind, clamp, drawing, element, factor, fields, find, frame, grid, largest, number, player, random, tint };
})();
