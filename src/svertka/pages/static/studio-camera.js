// The camera on the page Collect: pictures are taken while a button is held.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const { studio, build } = self;
  const EVERY = 200; // milliseconds between two pictures
  const [panel, open, shoot] = ["camera", "camera-open", "shoot"].map((name) => document.getElementById(name));
  const video = panel.querySelector("video");
  const output = panel.querySelector("output");
  const canvas = document.createElement("canvas");
  let taken = [];
  let timer = 0;

  async function start() {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    } catch {
      studio.say("The camera cannot be used. Allow it in the browser; from another machine, it needs https.");
      return;
    }
    panel.hidden = false;
    open.setAttribute("aria-expanded", "true");
    await video.play();
    shoot.focus();
  }
  function stop() {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    panel.hidden = true;
    open.setAttribute("aria-expanded", "false");
    open.focus();
  }
  function take() {
    Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const name = `camera-${new Date().toISOString().replace(/\D/g, "").slice(0, 17)}.jpg`;
    canvas.toBlob((blob) => {
      taken.push(new File([blob], name, { type: "image/jpeg" }));
      output.textContent = build.count(taken.length, "picture");
    }, "image/jpeg", 0.92);
  }
  function press() {
    if (timer || !video.videoWidth) return;
    shoot.setAttribute("aria-pressed", "true");
    take();
    timer = setInterval(take, EVERY);
  }
  function release() {
    if (!timer) return;
    clearInterval(timer);
    timer = 0;
    shoot.setAttribute("aria-pressed", "false");
    setTimeout(() => { const some = taken; taken = []; output.textContent = ""; studio.sendFiles(some); }, EVERY);
  }
  open.addEventListener("click", () => { if (panel.hidden) start(); else stop(); });
  document.getElementById("camera-close").addEventListener("click", stop);
  shoot.addEventListener("pointerdown", press);
  addEventListener("pointerup", release);
  shoot.addEventListener("keydown", (event) => { if (event.key === " " && !event.repeat) press(); });
  shoot.addEventListener("keyup", (event) => { if (event.key === " ") release(); });
  shoot.addEventListener("blur", release);
});
