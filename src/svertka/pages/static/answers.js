// Parts of the pages that name what is in pictures: how pictures get in, and the classes of an answer.
"use strict";
(() => {
  const { make, named, bars, percent } = self.build;

  // Call `take` with the files that are chosen, dropped anywhere or pasted.
  self.build.takeFiles = (drop, take) => {
    drop.querySelector("input").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
    document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  };

  // The most probable class in words, as children of an element.
  self.build.bestClass = ({ name, probability }, unknown) => [...(unknown ? ["unknown, closest to "] : []), named(name), ` with ${percent(probability)}.`];
  // What is said of an unknown picture, else nothing.
  self.build.unknownNote = (unknown) => (unknown
    ? [make("p", { class: "wrong" }, "This picture is unlike those that the network was trained on: it may show none of the classes.")] : []);

  // Bars of labels {name, probability} whose names are buttons: {list, press}, called `title`. `choose` gets the name that is clicked.
  self.build.classBars = (labels, title, choose) => {
    const list = bars(labels.map(({ name, probability }) => [name, probability]), title);
    const buttons = [...list.querySelectorAll(".called")].map((cell, k) => {
      const { name } = labels[k];
      const button = make("button", { type: "button", onclick: () => choose(name) }, named(name, { focusable: false }));
      cell.replaceChildren(button);
      return button;
    });
    const press = (name) => buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(labels[k].name === name)));
    return { list, press };
  };
})();
