// Pages about one run: another one is chosen in a list.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  for (const choice of document.querySelectorAll("select[data-follow]")) {
    choice.addEventListener("change", () => { location.href = `${choice.dataset.follow}?${new URLSearchParams({ run: choice.value })}`; });
  }
});
