// Page of an exported classifier: pictures and the camera are classified by a worker, which has the network.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { make, named, bars, count, percent, takeFiles, classBars, bestClass, unknownNote } = self.build;
  const SIDE = 224; // CSS pixels of a picture
  const VEIL = 0.85; // opacity of the heat map where it is 0
  const [state, ask, drop, answers] = ["state", "ask", "drop", "answers"].map((id) => document.getElementById(id));
  const textOf = (id) => document.getElementById(id).textContent;
  const facts = JSON.parse(textOf("facts"));

  const waiting = new Map(); // by number of the request: what continues with its answer
  let requests = 0;
  let worker = null;
  function request(kind, given, transferred = []) {
    return new Promise((resolve, reject) => {
      requests += 1;
      waiting.set(requests, ({ error, ...answer }) => (error ? reject(error) : resolve(answer)));
      worker.postMessage({ id: requests, kind, ...given }, transferred);
    });
  }

  async function start() {
    try {
      worker = new Worker(URL.createObjectURL(new Blob([facts.worker], { type: "text/javascript" })));
      worker.addEventListener("message", ({ data }) => { waiting.get(data.id)(data); waiting.delete(data.id); });
      const failed = new Promise((_, reject) => { worker.addEventListener("error", reject); });
      await Promise.race([failed, request("start", { settings: facts.settings, program: textOf("program"), network: textOf("network") })]);
      ask.hidden = false;
      state.textContent = "Ready.";
    } catch (error) {
      state.textContent = error.name === "PixelsChanged"
        ? "This browser changes the pixels that a page reads, to protect against fingerprinting, so that answers would be wrong. Allow this page to read them, or use another browser."
        : `This browser cannot run the network (${error.message || error.name || error.type}). It needs a browser of 2023 or later: Chrome or Edge 110, Firefox 113, Safari 16.4.`;
    }
  }

  const { kind, thresholds } = facts.task;
  const LISTED = kind === "multi-label" ? "The most probable labels" : "The most probable classes";

  // An answer: its labels {name, probability, isPredicted, map}, the most probable first, each with its heat map
  // {width, height, shares} or null; whether the image is unknown; and the number instead, if that is predicted.
  function readAnswer({ found }) {
    const { data } = found.probabilities || found.numbers;
    if (!data.every(Number.isFinite)) throw new Error("The network gives no number for this picture");
    const isPredicted = (label) => kind === "multi-label" && data[label] >= thresholds[label];
    const order = [...data.keys()].sort((a, b) => data[b] - data[a] || a - b);
    const best = order.filter((label, place) => place < facts.shown || isPredicted(label));
    const known = facts.hasMaps ? [...found.classes.data].map(Number) : [];
    const labels = best.map((label) => {
      const name = facts.names[label];
      const at = known.indexOf(label);
      return { name, probability: data[label], isPredicted: isPredicted(label), threshold: thresholds?.[label], map: at < 0 ? null : readMap(found.maps, at) };
    });
    return { labels, unknown: Boolean(found.unknown?.data[0]), number: kind === "regression" ? data[0] : null };
  }
  // An answer in words, as children of an element.
  function describe({ labels, unknown, number }) {
    if (number !== null) return [named(facts.names[0]), ` ${Number(number.toPrecision(4))}.`];
    if (kind !== "multi-label") return bestClass(labels[0], unknown);
    const chosen = labels.filter((label) => label.isPredicted);
    return chosen.length ? [...chosen.flatMap(({ name }, k) => [...(k ? [", "] : []), named(name)]), "."] : ["none of the labels."];
  }
  const listOf = (labels) => bars(labels.map(({ name, probability }) => [name, probability]), LISTED);
  const describeThresholds = (labels) => (kind === "multi-label"
    ? [make("p", { class: "quiet" }, "Said from a probability of: ", ...labels.flatMap(({ name, threshold }, k) => [...(k ? [", "] : []), named(name), ` ${percent(threshold)}`]), ".")] : []);
  function readMap({ data, dims: [, , height, width] }, at) {
    const values = data.subarray(at * height * width, (at + 1) * height * width);
    const largest = Math.max(1e-12, ...values);
    return { width, height, shares: Array.from(values, (value) => Math.max(0, value) / largest) };
  }

  function describeError({ name, message }) {
    if (name === "RangeError") return "It has too many pixels.";
    if (name === "InvalidStateError" || name === "EncodingError") return "This browser cannot read it as a picture.";
    return `It cannot be classified: ${message}.`;
  }

  // Draw a heat map as a gray veil: clear at its maximum. The browser interpolates between its positions.
  function drawMap(canvas, { width, height, shares }) {
    Object.assign(canvas, { width, height });
    const veil = new ImageData(width, height);
    shares.forEach((share, k) => veil.data.set([128, 128, 128, Math.round(255 * VEIL * (1 - share))], 4 * k));
    canvas.getContext("2d").putImageData(veil, 0, 0);
  }

  let pending = 0;
  let done = 0;
  function showProgress() {
    state.textContent = pending ? `Classifying ${count(pending, "picture")} \u2026` : `${count(done, "picture")} classified.`;
  }

  async function addPicture(image, name, before) {
    const title = make("h2", {}, named(name), " \u2026");
    const item = make("li", {}, make("div", { class: "picture-view" }, make("div", { class: "verdict" }, title)));
    answers.insertBefore(item, before);
    pending += 1;
    showProgress();
    try {
      const answer = await request("classify", { image }, image instanceof Blob ? [] : [image]);
      item.replaceChildren(answerView(name, answer, readAnswer(answer)));
    } catch (error) {
      title.replaceChildren(named(name));
      title.after(make("p", { class: "wrong" }, describeError(error)));
    }
    pending -= 1;
    done += 1;
    showProgress();
  }

  function answerView(name, { square, seconds }, answer) {
    const { labels, unknown, number } = answer;
    const { size } = facts.settings;
    const best = labels[0];
    const picture = make("canvas", { width: size, height: size, role: "img", "aria-label": `What the network sees of ${name}`, class: facts.isPixelated ? "crisp" : "" });
    picture.getContext("2d").putImageData(new ImageData(square, size, size), 0, 0);
    const veil = make("canvas", { hidden: true, "aria-hidden": "true" });
    const side = facts.isPixelated ? size * Math.max(1, Math.floor(SIDE / size)) : SIDE;
    const stage = make("div", { class: "stage", style: { "--side": `${side}px` } }, picture, veil);
    const explained = make("figcaption", { class: "quiet explained" });
    const { list, press } = number !== null ? { list: "", press() {} }
      : classBars(labels, LISTED, (chosen) => show(labels.find((label) => label.name === chosen), true));
    const controls = make("div", { class: "switch", role: "group", "aria-label": "Overlay" }, ["Picture", "Where it looked"].map((text, k) =>
      make("button", { type: "button", onclick: () => show(current, k === 1) }, text)));
    let current = best;
    function show(label, where) {
      current = label;
      press(label.name);
      veil.hidden = !(where && label.map);
      if (!veil.hidden) drawMap(veil, label.map);
      [...controls.children].forEach((button, k) => button.setAttribute("aria-pressed", String((k === 1) === where)));
      explained.textContent = !where ? "The picture as the network sees it."
        : label.map ? `Grad-CAM (Selvaraju et al. 2017): clear where the last feature maps support ${label.name}; gray where they do not.`
        : facts.hasMaps ? `There are heat maps of the ${facts.shown} most probable labels only.`
        : "There is no heat map: it needs a network whose scores are weighted averages of its last feature maps.";
    }
    show(best, false);
    return make("div", { class: "picture-view" },
      make("figure", {}, stage, controls, explained),
      make("div", { class: "verdict" }, make("h2", {}, named(name), ": ", ...describe(answer)), ...unknownNote(unknown), list,
        ...describeThresholds(labels),
        make("p", { class: "quiet" }, `Classified in ${Math.max(1, Math.round(1000 * seconds))}\u00a0ms.`)));
  }

  const camera = document.getElementById("camera");
  const video = camera.querySelector("video");
  const cameraSwitch = document.getElementById("camera-switch");
  const [liveAnswer, liveBars, rate] = ["live-answer", "live-bars", "rate"].map((id) => document.getElementById(id));
  const liveMap = document.querySelector("#live-map input");
  const liveVeil = make("canvas", { hidden: true, "aria-hidden": "true" });

  async function watch() {
    const times = [];
    while (video.srcObject) {
      const frame = await createImageBitmap(video);
      const answer = readAnswer(await request("classify", { image: frame }, [frame]));
      const best = answer.labels[0];
      liveAnswer.replaceChildren(...describe(answer));
      if (answer.number === null) liveBars.replaceChildren(listOf(answer.labels));
      liveVeil.hidden = !(liveMap.checked && best.map);
      if (!liveVeil.hidden) drawMap(liveVeil, best.map);
      times.push(performance.now());
      if (times.length > 10) times.shift();
      if (times.length > 1) rate.textContent = `${(1000 * (times.length - 1) / (times.at(-1) - times[0])).toFixed(1)} answers a second`;
      await new Promise(requestAnimationFrame); // none while the page is hidden
    }
  }
  async function openCamera() {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    } catch (error) {
      state.textContent = error.name === "NotAllowedError" ? "The browser does not allow this page to use the camera."
        : "This browser gives the page no camera.";
      return;
    }
    camera.hidden = false;
    cameraSwitch.textContent = "Stop the camera";
    cameraSwitch.setAttribute("aria-expanded", "true");
    await video.play();
    watch().catch((error) => { closeCamera(); state.textContent = describeError(error); });
  }
  function closeCamera() {
    video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    camera.hidden = true;
    cameraSwitch.textContent = "Use the camera";
    cameraSwitch.setAttribute("aria-expanded", "false");
  }
  video.style.setProperty("object-fit", { crop: "cover", pad: "contain", squeeze: "fill" }[facts.settings.fit]);
  video.after(liveVeil);
  document.getElementById("live-map").hidden = !facts.hasMaps;
  cameraSwitch.addEventListener("click", () => (video.srcObject ? closeCamera() : openCamera()));
  document.getElementById("keep").addEventListener("click", async () => {
    addPicture(await createImageBitmap(video), `Camera, ${new Date().toLocaleTimeString()}`, answers.firstChild);
  });
  takeFiles(drop, (files) => {
    const before = answers.firstChild;
    if (!ask.hidden) files.forEach((file) => addPicture(file, file.name, before));
  });
  start();
});
