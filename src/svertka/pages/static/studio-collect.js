// Collect: a grid of which only the visible part exists, selection, dragging between classes, and files that are dropped,
// pasted or chosen.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { make, count } = self.build;
  const { studio, htmx } = self;
  const GAP = 4; // CSS pixels between pictures
  const SPARE_ROWS = 3; // above and below the visible ones
  const SENDING = 3; // files at a time
  const LOAD_EVERY = 80; // milliseconds; a picture that is scrolled past sooner is not asked for
  const IGNORED = /(^|\/)(\.|__MACOSX\/|Thumbs\.db|desktop\.ini)/i;
  const id = (name) => document.getElementById(name);
  const [grid, files, folder] = [id("grid"), id("files"), id("folder")];
  const main = document.querySelector("main");
  let label = null; // the class that is shown
  let rows = []; // of it: [name, stamp, kind of mark, reason]
  let selected = new Set(); // names
  let focused = 0; // index of the picture that Tab reaches
  let anchor = 0; // where a selection with Shift begins
  let cells = new Map(); // index → element
  let loading = 0; // timer

  const links = () => [...document.querySelectorAll("#classes a[data-label]")];
  const labels = () => links().map((link) => link.dataset.label);
  const path = (name) => `${label}/${name}`;
  const address = (row, side = 192) => studio.query("thumbnail", { path: path(row[0]), v: row[1], side });

  // --- the shown class, which is part of the address ---
  async function follow() {
    const known = labels();
    const wanted = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
    const next = known.includes(wanted) ? wanted : known[0] ?? null;
    if (next !== label) { selected.clear(); focused = anchor = 0; }
    label = next;
    id("class-name").textContent = label ?? "No classes yet";
    document.querySelector(".for-class").hidden = label === null;
    id("rename").hidden = true;
    id("rename-open").setAttribute("aria-expanded", "false");
    markCurrent();
    await load();
  }
  function markCurrent() {
    for (const link of links()) link.toggleAttribute("aria-current", link.dataset.label === label);
    for (const link of links()) if (link.hasAttribute("aria-current")) link.setAttribute("aria-current", "true");
    const others = labels().filter((one) => one !== label);
    id("move-to").replaceChildren(make("option", { value: "" }, "another class"), ...others.map((one) => make("option", { value: one }, one)));
  }
  async function load() {
    const shown = label;
    let answer = { images: [], reading: false };
    try { if (shown !== null) answer = await studio.ask(studio.query("images", { label: shown })); } catch (error) { studio.say(`${error.message}.`); }
    if (shown !== label) return;
    rows = answer.images;
    const names = new Set(rows.map(([name]) => name));
    selected = new Set([...selected].filter((name) => names.has(name)));
    focused = Math.max(0, Math.min(focused, rows.length - 1));
    const marked = rows.filter((row) => row[2]).length;
    id("class-count").textContent = label === null ? "" : count(rows.length, "picture") + (marked ? `, ${marked} marked` : "") + (answer.reading ? ", reading the files …" : "");
    id("empty").hidden = rows.length > 0;
    const hadFocus = grid.contains(document.activeElement);
    for (const [k, cell] of cells) discard(k, cell);
    draw();
    if (hadFocus) (cells.get(focused) ?? grid).focus({ preventScroll: true });
    showSelection();
    if (answer.reading) setTimeout(() => { if (label === shown) load(); }, 1500);
  }

  // --- the grid ---
  const layout = () => {
    const width = grid.clientWidth;
    const columns = Math.max(2, Math.floor((width + GAP) / ((innerWidth < 700 ? 104 : 132) + GAP)));
    return { columns, side: (width + GAP) / columns - GAP };
  };
  function draw() {
    const { columns, side } = layout();
    const step = side + GAP;
    grid.style.height = `${Math.max(0, Math.ceil(rows.length / columns) * step - GAP)}px`;
    const top = -grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / step) - SPARE_ROWS) * columns;
    const last = Math.min(rows.length, (Math.ceil((top + innerHeight) / step) + SPARE_ROWS) * columns);
    const wanted = new Set();
    for (let k = first; k < last; k += 1) wanted.add(k);
    if (rows.length) wanted.add(focused); // which keeps the focus
    for (const [k, cell] of cells) if (!wanted.has(k)) discard(k, cell);
    const fresh = [];
    for (const k of wanted) {
      let cell = cells.get(k);
      if (!cell) { cell = makeCell(k); cells.set(k, cell); fresh.push(cell); }
      const [x, y] = [(k % columns) * step, Math.floor(k / columns) * step];
      Object.assign(cell.style, { width: `${side}px`, height: `${side}px`, transform: `translate(${x}px, ${y}px)` });
    }
    grid.append(...fresh);
    if (fresh.length && !loading) loading = setTimeout(loadImages, LOAD_EVERY);
  }
  function discard(k, cell) {
    cell.querySelector("img")?.removeAttribute("src"); // or it would still be loaded
    cell.remove();
    cells.delete(k);
  }
  function loadImages() {
    loading = 0;
    for (const [k, cell] of cells) {
      const image = cell.querySelector("img:not([src])");
      if (image) image.src = address(rows[k]);
    }
  }
  function makeCell(k) {
    const row = rows[k];
    const [name, , kind, reason] = row;
    const marks = { bad: "cannot be read", copy: "copy", doubt: "doubtful" };
    const image = make("img", { alt: "", draggable: false, decoding: "async", onerror: () => image.replaceWith(make("span", { class: "broken" }, "cannot be read")) });
    return make("div", {
      class: "cell", role: "option", id: `cell-${k}`, "data-at": k, title: reason ? `${name}: ${reason}` : name, draggable: "true",
      "aria-selected": String(selected.has(name)), "aria-setsize": rows.length, "aria-posinset": k + 1, tabindex: k === focused ? 0 : -1,
    }, image, self.build.unseen(reason ? `${name}, ${reason}` : name), kind && kind !== "bad" ? make("span", { class: "mark", "aria-hidden": "true" }, marks[kind]) : null);
  }
  function go(k, { select = false } = {}) {
    if (!rows.length) return;
    const target = Math.max(0, Math.min(rows.length - 1, k));
    cells.get(focused)?.setAttribute("tabindex", -1);
    focused = target;
    const { columns, side } = layout();
    const top = grid.getBoundingClientRect().top + Math.floor(target / columns) * (side + GAP);
    if (top < 120) scrollBy(0, top - 120);
    else if (top + side > innerHeight - 16) scrollBy(0, top + side - innerHeight + 16);
    draw();
    const cell = cells.get(target);
    cell.setAttribute("tabindex", 0);
    cell.focus({ preventScroll: true });
    if (select) selectRange(anchor, target); else anchor = target;
  }
  function selectRange(one, other) {
    selected = new Set(rows.slice(Math.min(one, other), Math.max(one, other) + 1).map(([name]) => name));
    showSelection();
  }
  function toggle(k) {
    const name = rows[k][0];
    if (!selected.delete(name)) selected.add(name);
    anchor = k;
    showSelection();
  }
  function showSelection() {
    for (const [k, cell] of cells) cell.setAttribute("aria-selected", String(selected.has(rows[k][0])));
    id("selection").hidden = selected.size === 0;
    document.querySelector("#selection output").textContent = `${selected.size} selected`;
  }
  const chosen = () => (selected.size ? [...selected] : rows.length ? [rows[focused][0]] : []).map(path);
  const change = (address, values) => htmx.ajax("POST", address, { values, source: "#classes", target: "#classes" });
  const move = (paths, to) => { if (paths.length && to !== label) { selected.clear(); change("move", { path: paths, label: to }); } };
  const remove = (paths) => { if (paths.length) { selected.clear(); change("delete", { path: paths }); } };
  function enlarge(k) {
    const dialog = id("large");
    const [name, , , reason] = rows[k];
    Object.assign(dialog.querySelector("img"), { src: address(rows[k], 1024), alt: name });
    dialog.querySelector("bdi").textContent = reason ? `${path(name)}: ${reason}` : path(name);
    dialog.showModal();
  }

  const at = (event) => { const cell = event.target.closest?.(".cell"); return cell ? Number(cell.dataset.at) : -1; };
  grid.addEventListener("click", (event) => {
    const k = at(event);
    if (k < 0) return;
    if (event.shiftKey) { selectRange(anchor, k); focused = k; } else { toggle(k); go(k); }
  });
  grid.addEventListener("dblclick", (event) => { const k = at(event); if (k >= 0) { selected.clear(); showSelection(); enlarge(k); } });
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "a" && !event.altKey) { event.preventDefault(); selectRange(0, rows.length - 1); }
      return;
    }
    const { columns, side } = layout();
    const page = columns * Math.max(1, Math.floor(innerHeight / (side + GAP)) - 1);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -rows.length, End: rows.length };
    const digit = links().find((link) => link.dataset.digit === event.key);
    if (event.key in steps) go(focused + steps[event.key], { select: event.shiftKey });
    else if (event.key === " ") toggle(focused);
    else if (event.key === "Enter") enlarge(focused);
    else if (event.key === "Delete" || event.key === "Backspace") remove(chosen());
    else if (event.key === "Escape") { selected.clear(); showSelection(); } else if (digit) move(chosen(), digit.dataset.label);
    else return;
    event.preventDefault();
  });
  addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe(grid);
  id("move-to").addEventListener("change", (event) => { if (event.target.value) move(chosen(), event.target.value); });
  id("delete").addEventListener("click", () => remove(chosen()));
  id("select-none").addEventListener("click", () => { selected.clear(); showSelection(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.target.matches("input")) { event.preventDefault(); id("undo")?.click(); }
  });

  // --- dragging pictures to a class ---
  const INSIDE = "application/x-svertka-pictures";
  grid.addEventListener("dragstart", (event) => {
    const k = at(event);
    if (k < 0) return;
    if (!selected.has(rows[k][0])) { selected = new Set([rows[k][0]]); showSelection(); }
    event.dataTransfer.setData(INSIDE, JSON.stringify(chosen()));
    event.dataTransfer.effectAllowed = "move";
  });
  const targetLabel = (event) => event.target.closest?.("#classes a[data-label]");
  const unmark = () => { for (const link of links()) link.classList.remove("over"); main.classList.remove("over"); };
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    unmark();
    const link = targetLabel(event);
    if (link) link.classList.add("over");
    else if (!event.dataTransfer.types.includes(INSIDE)) main.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) unmark(); });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const link = targetLabel(event);
    unmark();
    const inside = event.dataTransfer.getData(INSIDE);
    if (inside) { if (link) move(JSON.parse(inside), link.dataset.label); return; }
    send(await listDropped(event.dataTransfer), link?.dataset.label);
  });

  // --- adding files ---
  // Files with the path that they have in what was dropped: "photos/cat/1.jpg".
  async function listDropped(transfer) {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.length) return [...transfer.files].map((file) => [file, file.name]);
    const found = [];
    async function walk(entry, above) {
      const place = above ? `${above}/${entry.name}` : entry.name;
      if (entry.isFile) {
        found.push([await new Promise((resolve, reject) => entry.file(resolve, reject)), place]);
        return;
      }
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) return;
        for (const one of some) await walk(one, place);
      }
    }
    for (const entry of entries) await walk(entry, "");
    return found;
  }
  const classOf = (place, given) => given ?? place.split("/").at(-2) ?? label;

  async function send(list, given) {
    const wanted = list.filter(([, place]) => !IGNORED.test(place));
    if (!wanted.length) return;
    if (wanted.some(([file, place]) => !isZip(file) && classOf(place, given) === null)) {
      studio.say("Name a class first, or drop a folder: its name becomes the class.");
      id("new-class").focus();
      return;
    }
    const [bar, note] = [id("sent"), document.querySelector("#sending output")];
    const [added, refused, queue] = [[], [], [...wanted]];
    let done = 0;
    let left = 0; // files that were not added, besides those in `refused`
    id("sending").hidden = false;
    async function work() {
      for (let one = queue.shift(); one; one = queue.shift()) {
        const [file, place] = one;
        try {
          if (isZip(file)) {
            const answer = await sendZip(file, given ?? label ?? "images", (some) => { note.textContent = `${count(some, "picture")} of ${file.name}`; });
            added.push(...answer.paths);
            refused.push(...(answer.error ? [`${file.name}: ${answer.error}`] : []), ...answer.notes);
            left += answer.left_out - answer.notes.length;
          } else {
            const answer = await studio.ask(studio.query("add", { label: classOf(place, given), name: file.name }), {
              method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
            });
            if (answer.path) added.push(answer.path); else refused.push(`${file.name}: ${answer.note}`);
          }
        } catch (error) {
          refused.push(`${file.name}: ${error.message}`);
        }
        done += 1;
        bar.value = done / wanted.length;
        note.textContent = `${done} of ${wanted.length}`;
      }
    }
    await Promise.all(Array.from({ length: SENDING }, work));
    id("sending").hidden = true;
    showRefused(refused, left);
    if (added.length) await change("added", { path: added });
    else if (refused.length) studio.say("No picture was added.");
  }
  const isZip = (file) => file.name.toLowerCase().endsWith(".zip") || file.type === "application/zip";
  async function sendZip(file, to, tell) {
    const { zip } = await studio.ask(studio.query("add-zip", { label: to }), { method: "POST", body: file });
    for (;;) {
      const answer = await studio.ask(studio.query("zip-progress", { zip }));
      if (answer.done) return answer;
      tell(answer.count);
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
  }
  function showRefused(reasons, others) {
    const box = id("refused");
    box.hidden = !reasons.length;
    box.querySelector("summary").textContent = `${count(reasons.length + others, "file")} not added`;
    box.querySelector("ul").replaceChildren(...reasons.map((one) => make("li", {}, one)));
  }
  studio.sendFiles = (some) => send(some.map((file) => [file, file.name]), label ?? undefined);

  files.addEventListener("change", () => { send([...files.files].map((file) => [file, file.name])); files.value = ""; });
  folder.addEventListener("change", () => { send([...folder.files].map((file) => [file, file.webkitRelativePath || file.name])); folder.value = ""; });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) send([...event.clipboardData.files].map((file) => [file, file.name])); });

  // --- classes ---
  id("rename-open").addEventListener("click", (event) => {
    const form = id("rename");
    form.hidden = !form.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!form.hidden));
    form.elements.label.value = label;
    form.elements.to.value = label;
    if (!form.hidden) form.elements.to.select();
  });
  id("delete-class").addEventListener("click", () => {
    if (confirm(`Delete the class ${label} with ${count(rows.length, "picture")}? It can be undone.`)) change("delete-class", { label });
  });
  document.addEventListener("chosen", (event) => {
    const next = event.detail.value ?? "";
    if (location.hash === `#/${encodeURIComponent(next)}`) follow(); else location.hash = `#/${encodeURIComponent(next)}`;
  });
  document.addEventListener("htmx:afterSwap", (event) => { if (event.target.id === "classes") follow(); });
  // What is typed there outlives the list, which is replaced after each change.
  document.addEventListener("htmx:beforeSwap", (event) => { if (event.detail.requestConfig.path === "add-class" && event.detail.shouldSwap) id("new-class").value = ""; });
  addEventListener("hashchange", follow);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) htmx.trigger(document.body, "stale"); });
  follow();
});
