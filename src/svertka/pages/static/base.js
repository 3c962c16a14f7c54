// Color scheme, value readout in curves and matrices, sortable tables. Without scripts, pages show the same pictures and numbers.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // Browsers may refuse storage to a page opened from disk; then the choice lasts as long as the page.
  const storedScheme = {
    read() { try { return localStorage.getItem("svertka-scheme"); } catch { return null; } },
    write(scheme) { try { localStorage.setItem("svertka-scheme", scheme); } catch { /* see above */ } },
  };
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = storedScheme.read();
  if (chosen === "light" || chosen === "dark") root.dataset.scheme = chosen;

  function schemeSwitch(button) {
    const isDark = () => (root.dataset.scheme || (systemDark.matches ? "dark" : "light")) === "dark";
    const label = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colors`);
    };
    button.addEventListener("click", () => {
      root.dataset.scheme = isDark() ? "light" : "dark";
      storedScheme.write(root.dataset.scheme);
      label();
    });
    systemDark.addEventListener("change", label);
    label();
  }

  // Let a figure show one of `length` values at a time, chosen by pointer (`nearest(event)`) or arrow keys.
  function addReadout(figure, length, rest, label, nearest, show) {
    if (!length) return;
    let at = rest;
    const go = (index) => {
      at = Math.max(0, Math.min(length - 1, index));
      const text = show(at);
      figure.setAttribute("aria-valuenow", at);
      figure.setAttribute("aria-valuetext", text);
    };
    figure.tabIndex = 0;
    figure.setAttribute("role", "slider");
    figure.setAttribute("aria-label", label);
    figure.setAttribute("aria-valuemin", 0);
    figure.setAttribute("aria-valuemax", length - 1);
    const leave = () => { go(rest); figure.classList.remove("reading"); };
    const enter = (index) => { go(index); figure.classList.add("reading"); };
    const follow = (event) => { const index = nearest(event); if (index >= 0) enter(index); };
    figure.addEventListener("pointermove", follow);
    figure.addEventListener("pointerdown", follow);
    figure.addEventListener("pointerleave", leave);
    figure.addEventListener("blur", leave);
    figure.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(length / 10));
      const target = {
        ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
        PageDown: at - page, PageUp: at + page, Home: 0, End: length - 1,
      }[event.key];
      if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      enter(target);
    });
    go(rest);
  }

  function curves(figure) {
    const { places, names, texts, rest } = JSON.parse(figure.dataset.readings);
    const outputs = [...figure.querySelectorAll("output")];
    const cursors = [...figure.querySelectorAll("line.cursor")];
    const titles = [...figure.querySelectorAll("h3")].map((title) => title.textContent);
    const plot = figure.querySelector("svg");
    addReadout(figure, places.length, rest, "Curves; use the arrow keys to read values", (event) => {
      const box = plot.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width;
      let best = 0;
      places.forEach((x, k) => { if (Math.abs(x - place) < Math.abs(places[best] - place)) best = k; });
      return best;
    }, (at) => {
      outputs.forEach((output, k) => { output.textContent = (k ? "" : `${names[at]} · `) + texts[at][k]; });
      for (const cursor of cursors) for (const end of ["x1", "x2"]) cursor.setAttribute(end, `${100 * places[at]}%`);
      return `${names[at]}. ${titles.map((title, k) => `${title}: ${texts[at][k]}`).join(". ")}`;
    });
  }

  function matrix(figure) {
    const { names, images, cells } = JSON.parse(figure.dataset.matrix);
    const [svg, cursor] = ["svg", ".cursor"].map((part) => figure.querySelector(part));
    const output = figure.parentElement.querySelector("output");
    const at = new Map(cells.map(([row, column], k) => [row * names.length + column, k]));
    addReadout(figure, cells.length, 0, "Confusion matrix; use the arrow keys to read its cells, the darkest first", (event) => {
      const box = svg.getBoundingClientRect();
      const [column, row] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
        .map((share) => Math.floor(share * names.length));
      return at.get(row * names.length + column) ?? -1;
    }, (index) => {
      const [row, column, count] = cells[index];
      cursor.setAttribute("x", column);
      cursor.setAttribute("y", row);
      output.textContent = `${names[row]} predicted as ${names[column]}: ${count} of ${images[row]}`;
      return output.textContent;
    });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const order = new Intl.Collator(undefined, { numeric: true });
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") !== "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value;
        const compare = (a, b) => (isFinite(a) && isFinite(b) ? a - b : order.compare(a, b));
        const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (falling ? -1 : 1));
        body.append(...rows);
      });
    });
  }

  // Say where a table is wider than the page; phones hide scroll bars.
  const widths = new ResizeObserver((entries) => {
    for (const { target } of entries) target.parentElement.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
  });

  // What a page jumps to gets the focus; views have addresses of their own, which the jump must not change.
  function skip(link) {
    link.addEventListener("click", (event) => {
      const main = document.getElementById("main");
      event.preventDefault();
      main.tabIndex = -1;
      main.focus();
    });
  }

  // The section that is read is marked in the contents, and its link is scrolled into sight.
  function contents(nav) {
    const links = [...nav.querySelectorAll("a")];
    const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
    const list = nav.querySelector(".scroll");
    let current = null;
    const mark = () => {
      const at = sections.findLastIndex((section) => section.getBoundingClientRect().top < innerHeight / 3);
      if (links[at] === current) return;
      current?.removeAttribute("aria-current");
      current = links[at];
      current?.setAttribute("aria-current", "true");
      list.scrollTo({ left: current ? current.offsetLeft - list.offsetLeft - 24 : 0 });
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }

  async function copy(button) {
    const text = [...button.closest("details").querySelectorAll("li")].map((item) => item.querySelector("bdi:last-of-type").textContent).join("\n");
    try {
      await navigator.clipboard.writeText(text);
    } catch { // pages from disk may not have it
      const area = document.createElement("textarea");
      area.value = text;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
  }
  function unfold(button) {
    document.getElementById(button.getAttribute("aria-controls")).classList.add("whole-table");
    button.remove();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".copy, .unfold");
    if (button) (button.matches(".copy") ? copy : unfold)(button);
  });

  // A picture that cannot be loaded becomes a frame with its description; one without a description is not missed.
  document.addEventListener("error", ({ target }) => {
    if (!(target instanceof HTMLImageElement)) return;
    if (!target.alt) { target.hidden = true; return; }
    const frame = document.createElement("span");
    frame.className = "unreadable";
    frame.role = "img";
    frame.ariaLabel = target.alt;
    for (const side of ["width", "height"]) if (target.getAttribute(side)) frame.style.setProperty(side, `${target[side]}px`);
    if (target.width >= 96) frame.textContent = "cannot be shown";
    target.replaceWith(frame);
  }, true);

  self.showReadouts = (place) => {
    place.querySelectorAll(".curves").forEach(curves);
    place.querySelectorAll(".matrix").forEach(matrix);
  };

  document.addEventListener("DOMContentLoaded", () => {
    schemeSwitch(document.getElementById("scheme"));
    skip(document.querySelector(".skip"));
    document.querySelectorAll(".contents").forEach(contents);
    self.showReadouts(document);
    document.querySelectorAll("table.sortable").forEach(sortable);
    document.querySelectorAll(".scrollable > .scroll").forEach((table) => widths.observe(table));
  });
})();
