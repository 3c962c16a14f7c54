// What all pages of the studio share: requests, sentences about what happened, errors.
"use strict";
(() => {
  const htmx = self.htmx;
  // Without a settle delay: until then the browser itself would submit a new form, and load another page.
  Object.assign(htmx.config, { defaultSettleDelay: 0, includeIndicatorStyles: false, allowEval: false, allowScriptTags: false, historyEnabled: false, refreshOnHistoryMiss: true });
  const SHOWN = 6000; // milliseconds
  const studio = self.studio = {};
  let timer = 0;

  studio.say = (sentence) => {
    const place = document.getElementById("said");
    place.textContent = sentence.replaceAll("image", "picture");
    clearTimeout(timer);
    timer = setTimeout(() => { place.textContent = ""; }, SHOWN);
  };

  // The answer of the server as JSON; an error is an Error with its sentence.
  studio.ask = async (address, options = {}) => {
    for (let turn = 0; ; turn += 1) {
      let response;
      try { response = await fetch(address, options); } catch { throw new Error("the server does not answer"); }
      if (response.status === 503 && turn < 5) {
        await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
        continue;
      }
      const value = await response.json();
      if (!response.ok) throw new Error(value.error);
      return value;
    }
  };
  studio.query = (address, fields) => `${address}?${new URLSearchParams(fields)}`;

  const sentence = (text) => { try { return JSON.parse(text).error; } catch { return "the server does not answer"; } };
  document.addEventListener("said", (event) => studio.say(event.detail.value ?? event.detail));
  document.addEventListener("htmx:responseError", (event) => {
    studio.say(`${sentence(event.detail.xhr.responseText)}.`);
    // What was to be asked for while the form was sent.
    if (event.detail.requestConfig.verb === "post") setTimeout(() => htmx.trigger(document.body, "stale"));
  });
  document.addEventListener("htmx:sendError", () => studio.say("The server does not answer."));

  // A button that was replaced while it was pressed: the browser clicks neither the old one nor the new one.
  let pressed = null;
  document.addEventListener("pointerdown", (event) => { pressed = event.target.closest?.("button"); });
  document.addEventListener("pointerup", (event) => {
    const button = document.elementFromPoint(event.clientX, event.clientY)?.closest("button");
    if (pressed && button && !pressed.isConnected && button.textContent === pressed.textContent) button.click();
    pressed = null;
  });
})();
