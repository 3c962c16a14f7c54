// Train: the progress of a training, as the server sends it.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { htmx, showReadouts } = self;
  const panel = document.getElementById("training");
  if (!panel || !["preparing", "training"].includes(panel.dataset.state)) return;
  const source = new EventSource(`progress?${new URLSearchParams({ run: panel.dataset.run })}`);
  let waiting = null; // HTML that comes while somebody reads values out of the curves

  const isRead = () => panel.querySelector(".curves.reading") !== null;
  function show(html) {
    const focused = panel.contains(document.activeElement) && document.activeElement.matches("button");
    const notes = panel.querySelector("details")?.open;
    panel.innerHTML = html;
    htmx.process(panel);
    showReadouts(panel);
    if (notes && panel.querySelector("details")) panel.querySelector("details").open = true;
    if (focused) panel.querySelector("button")?.focus();
  }
  source.addEventListener("progress", (event) => { if (isRead()) waiting = event.data; else show(event.data); });
  for (const kind of ["pointerout", "focusout"]) {
    panel.addEventListener(kind, () => setTimeout(() => { if (waiting && !isRead()) { show(waiting); waiting = null; } }));
  }
  source.addEventListener("end", () => {
    source.close();
    document.getElementById("busy")?.remove();
    htmx.ajax("GET", "runs", "#runs");
  });
});
