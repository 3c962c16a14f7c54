// Try: live answers for what the camera sees.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { build, studio } = self;
  const drop = document.getElementById("drop");
  if (!drop) return;
  const AT_ONCE = 2; // requests: the next picture is prepared while one is answered
  const RATES = 20; // answers of which the rate is shown
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const choice = document.getElementById("run");
  const canvas = document.createElement("canvas");
  let panel = null;
  let running = 0;

  const button = build.make("button", { type: "button", id: "live-open", onclick: open }, "Use the camera");
  document.querySelector(".asked").append(button);

  async function open() {
    if (panel) { close(); return; }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    } catch {
      studio.say("The camera cannot be used. Allow it in the browser; from another machine, it needs https.");
      return;
    }
    drop.before(document.getElementById("live").content.cloneNode(true));
    panel = document.getElementById("live-panel");
    panel.querySelector("video").srcObject = stream;
    await panel.querySelector("video").play();
    document.getElementById("live-close").addEventListener("click", close);
    document.getElementById("live-explain").addEventListener("click", explain);
    button.textContent = "Close the camera";
    running += 1;
    const times = [];
    for (let k = 0; k < AT_ONCE; k += 1) follow(running, times);
  }
  function close() {
    running += 1;
    panel.querySelector("video").srcObject.getTracks().forEach((track) => track.stop());
    panel.remove();
    panel = null;
    button.textContent = "Use the camera";
    button.focus();
  }
  // The central square of the picture, in the size that the network sees.
  function capture(side) {
    const video = panel.querySelector("video");
    const square = Math.min(video.videoWidth, video.videoHeight);
    const pixels = Math.min(side, square);
    Object.assign(canvas, { width: pixels, height: pixels });
    canvas.getContext("2d").drawImage(video, (video.videoWidth - square) / 2, (video.videoHeight - square) / 2, square, square, 0, 0, pixels, pixels);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  }
  async function follow(turn, times) {
    while (turn === running) {
      if (document.hidden) { await new Promise((resolve) => setTimeout(resolve, 500)); continue; }
      try {
        const { key, size } = facts.runs[choice.selectedIndex];
        const body = await capture(size);
        const [answer] = await studio.ask(studio.query("predict", { run: key, top: 5 }), { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
        if (turn === running) show(answer, times);
      } catch (error) {
        if (turn === running) panel.querySelector(".verdict").textContent = `${error.message}.`;
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }
  function show({ labels, number, unknown }, times) {
    times.push(performance.now());
    if (times.length > RATES) times.shift();
    const rate = times.length > 1 ? (1000 * (times.length - 1)) / (times.at(-1) - times[0]) : 0;
    const best = labels[0] ?? number;
    panel.querySelector(".verdict").replaceChildren(...(unknown ? ["unknown, closest to "] : []), build.named(best.name), number ? ` ${build.number(number.value)}` : ` with ${build.percent(best.probability)}`);
    if (!number) panel.querySelector(".chart").replaceChildren(build.bars(labels.map(({ name, probability }) => [name, probability]), "The most probable classes"));
    panel.querySelector(".rate").textContent = `${rate.toFixed(0)} answers a second`;
    panel.dataset.answers = Number(panel.dataset.answers ?? 0) + 1;
  }
  async function explain() {
    const video = panel.querySelector("video");
    const blob = await capture(Math.min(video.videoWidth, video.videoHeight));
    const transfer = new DataTransfer();
    transfer.items.add(new File([blob], "camera.jpg", { type: "image/jpeg" }));
    const input = drop.querySelector("input");
    input.files = transfer.files;
    input.dispatchEvent(new Event("change"));
  }
});
