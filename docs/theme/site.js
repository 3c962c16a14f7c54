// What the theme's scripts leave out for keyboards and screen readers, once they have run.
"use strict";

addEventListener("load", () => {
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .highlight-ipynb")) {
    if (one.scrollWidth > one.clientWidth) one.tabIndex = 0; // wide tables and code scroll with the arrow keys, too
  }
  document.querySelectorAll(".md-code__nav").forEach((one, index) => one.setAttribute("aria-label", `Code ${index + 1}`));
});
