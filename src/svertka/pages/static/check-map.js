// The map on the page of svertka check: shows the picture of a point that the pointer or the arrow keys reach.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const map = document.getElementById("points");
  if (!map) return;
  const drawing = map.querySelector("svg");
  const shown = document.getElementById("shown-point");
  const thumbnail = shown.querySelector("svg");
  const caption = shown.querySelector("figcaption");
  const link = document.getElementById("to-card");
  const { side, columns } = thumbnail.dataset;
  const points = [...drawing.querySelectorAll("circle")].map((circle, number) => ({
    circle, number, x: Number(circle.getAttribute("cx")), y: Number(circle.getAttribute("cy")),
  }));
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.index, card]));
  let current = null;

  function show(point) {
    if (point === current) return;
    if (current) current.circle.classList.remove("current");
    current = point;
    point.circle.classList.add("current");
    point.circle.parentNode.append(point.circle); // so that no other point covers it
    const left = (point.number % columns) * side, top = Math.floor(point.number / columns) * side;
    thumbnail.setAttribute("viewBox", `${left} ${top} ${side} ${side}`);
    caption.textContent = point.circle.querySelector("title").textContent;
    link.hidden = !cards.has(point.circle.dataset.index);
    shown.hidden = false;
  }
  const goToCard = () => {
    const card = current && cards.get(current.circle.dataset.index);
    if (card) card.focus();
  };
  function nearest(x, y) {
    const distance = (point) => (point.x - x) ** 2 + (point.y - y) ** 2;
    return points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
  }
  // The closest point in a direction: what lies aside counts double.
  function towards(dx, dy) {
    const ahead = points.map((point) => [point, (point.x - current.x) * dx + (point.y - current.y) * dy])
      .filter(([point, along]) => point !== current && along > 0)
      .map(([point, along]) => [point, along + 2 * Math.abs((point.x - current.x) * dy + (point.y - current.y) * dx)]);
    return ahead.length ? ahead.reduce((best, one) => (one[1] < best[1] ? one : best))[0] : current;
  }

  drawing.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    show(nearest(place.x, place.y));
  });
  drawing.addEventListener("click", goToCard);
  link.addEventListener("click", goToCard);
  map.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.altKey || event.metaKey || event.ctrlKey) return;
    if (event.key in steps) show(current ? towards(...steps[event.key]) : points[0]);
    else if (event.key === "Enter" && current) goToCard();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  for (const button of document.querySelectorAll("#legend button")) {
    button.addEventListener("click", () => {
      const isChosen = button.getAttribute("aria-pressed") === "true";
      for (const other of document.querySelectorAll("#legend button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!isChosen));
      for (const { circle } of points) circle.classList.toggle("dim", !isChosen && circle.dataset.label !== button.dataset.label);
    });
  }
});
