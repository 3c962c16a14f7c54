// Page of svertka check: choose a class for each picture by mouse or keyboard; decisions last in the browser and are saved as CSV.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { make, count } = self.build;
  const { names, csv, key } = JSON.parse(document.getElementById("facts").textContent);
  const cards = [...document.querySelectorAll(".card")].filter((card) => card.dataset.path);
  const all = new Map(); // path -> cards that show it
  for (const card of cards) all.set(card.dataset.path, [...(all.get(card.dataset.path) || []), card]);
  const said = document.getElementById("said");
  const labelOf = (path) => Number(all.get(path)[0].dataset.label);

  // Browsers may refuse storage to a page opened from disk; then decisions last as long as the page.
  const stored = {
    read() { try { return JSON.parse(localStorage.getItem(key)) || []; } catch { return []; } },
    write(decisions) { try { localStorage.setItem(key, JSON.stringify(decisions)); } catch { /* see above */ } },
  };
  // Pairs of path and class, in the order in which they were decided. What is stored may be of an earlier check.
  const decisions = stored.read().filter((one) => Array.isArray(one) && all.has(one[0]) && one[1] in names);
  const chosen = () => new Map(decisions);

  const buttonsOf = (card) => [...card.querySelectorAll(".choices button")];
  const offered = (card) => buttonsOf(card).map((button) => Number(button.dataset.class));
  function listenTo(card) {
    card.tabIndex = -1;
    for (const button of buttonsOf(card)) button.addEventListener("click", () => decide(card, Number(button.dataset.class)));
    const list = card.querySelector(".choices select");
    if (list) fillWhenNeeded(card, list);
    card.addEventListener("focusin", () => setCurrent(card));
  }
  // A thousand options for each picture would slow the page down; they are added when they are needed.
  function fillWhenNeeded(card, list) {
    const fill = () => {
      if (list.options.length === 1) list.append(...names.map((name, index) => make("option", { value: index }, name)));
    };
    list.addEventListener("focus", fill);
    list.addEventListener("pointerdown", fill);
    list.addEventListener("change", () => { if (list.value) decide(card, Number(list.value)); });
  }

  let current = null;
  function setCurrent(card) {
    if (current) current.tabIndex = -1;
    current = card;
    current.tabIndex = 0;
  }
  function go(place) {
    const card = cards[Math.max(0, Math.min(cards.length - 1, place))];
    setCurrent(card);
    card.focus();
  }
  // The picture above or below: the nearest one in the next row.
  function vertical(direction) {
    const box = current.getBoundingClientRect();
    const rows = cards.map((card) => [card, card.getBoundingClientRect()])
      .filter(([, other]) => (direction > 0 ? other.top > box.top + 1 : other.top < box.top - 1));
    if (!rows.length) return cards.indexOf(current);
    const top = direction > 0 ? Math.min(...rows.map(([, other]) => other.top)) : Math.max(...rows.map(([, other]) => other.top));
    const [nearest] = rows.filter(([, other]) => Math.abs(other.top - top) < 1)
      .sort(([, a], [, b]) => Math.abs(a.left - box.left) - Math.abs(b.left - box.left))[0];
    return cards.indexOf(nearest);
  }

  function decide(card, index) {
    decisions.push([card.dataset.path, index]);
    stored.write(decisions);
    show();
    const label = labelOf(card.dataset.path);
    said.textContent = index === label ? `${names[index]} confirmed` : `${names[label]} corrected to ${names[index]}`;
    const done = chosen();
    const after = cards.slice(cards.indexOf(card) + 1).find((one) => !done.has(one.dataset.path));
    if (after) go(cards.indexOf(after)); else card.focus();
  }
  function undo() {
    const last = decisions.pop();
    stored.write(decisions);
    show();
    said.textContent = last ? "undone" : "nothing to undo";
    if (last) go(cards.indexOf(all.get(last[0])[0]));
  }
  function show() {
    const done = chosen();
    for (const [path, shown] of all) for (const card of shown) {
      card.classList.toggle("decided", done.has(path));
      for (const button of buttonsOf(card)) {
        button.setAttribute("aria-pressed", String(done.get(path) === Number(button.dataset.class)));
      }
      const list = card.querySelector(".choices select");
      if (list && list.options.length > 1) list.value = done.has(path) ? done.get(path) : "";
    }
    const corrected = [...done].filter(([path, index]) => index !== labelOf(path)).length;
    document.getElementById("progress").textContent =
      `${done.size.toLocaleString("en")} of ${count(all.size, "picture")} decided, ${corrected.toLocaleString("en")} corrected`;
    document.getElementById("undo").disabled = !decisions.length;
    document.getElementById("save").disabled = !done.size;
  }
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function save() {
    const rows = [...chosen()].map(([path, index]) => [path, csv[labelOf(path)], csv[index]].map(cell).join(","));
    const file = new Blob([["path,label,corrected", ...rows, ""].join("\r\n")], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(file), download: "fixes.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    said.textContent = `${count(rows.length, "row")} saved`;
  }

  if (!cards.length) return;
  cards.forEach(listenTo);
  document.getElementById("undo").addEventListener("click", undo);
  document.getElementById("save").addEventListener("click", save);
  setCurrent(cards[0]);
  show();
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z") || event.target.matches("select, input")) return;
    const onCard = event.target === current;
    const place = cards.indexOf(current);
    const moves = { ArrowLeft: () => place - 1, ArrowRight: () => place + 1, ArrowUp: () => vertical(-1), ArrowDown: () => vertical(1) };
    const within = event.target === document.body || event.target.closest(".card");
    if (event.key in moves && within) go(moves[event.key]());
    else if (/^[1-9]$/.test(event.key) && within && offered(current)[event.key - 1] !== undefined) decide(current, offered(current)[event.key - 1]);
    else if (event.key === "Enter" && onCard && current.dataset.suggested >= 0) decide(current, Number(current.dataset.suggested));
    else if (event.key === " " && onCard) decide(current, Number(current.dataset.label));
    else if ((event.key === "u" && !event.ctrlKey) || (event.ctrlKey && event.key === "z")) undo();
    else if (event.key === "s" && !event.ctrlKey && !document.getElementById("save").disabled) save();
    else return;
    event.preventDefault();
  });
});
