// Worker of an exported classifier, appended to ONNX Runtime, which it finds as `ort`: from an image to probabilities.
let settings = null;
let session = null;

async function unpack(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let k = 0; k < bytes.length; k += 1) bytes[k] = letters.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(given) {
  settings = given.settings;
  if (!(await readsPixels())) throw Object.assign(new Error("the pixels are changed"), { name: "PixelsChanged" });
  const [program, network] = await Promise.all([unpack(given.program), unpack(given.network)]);
  Object.assign(ort.env.wasm, { wasmBinary: program, numThreads: 1 }); // a page from disk has no SharedArrayBuffer
  session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"], logSeverityLevel: 3 });
}

// The used region of an image as RGBA bytes, upright, on white, as svertka decodes it: {data, width, height}.
async function decode(image) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = image instanceof Blob ? await createImageBitmap(image, options) : image;
  const { width, height } = bitmap;
  if (width * height > settings.pixelLimit) throw new RangeError("too large");
  const side = Math.min(width, height);
  const used = settings.fit === "crop" ? { width: side, height: side } : { width, height };
  const context = new OffscreenCanvas(used.width, used.height).getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, used.width, used.height);
  context.drawImage(bitmap, -Math.floor((width - used.width) / 2), -Math.floor((height - used.height) / 2));
  bitmap.close();
  return context.getImageData(0, 0, used.width, used.height);
}

// Whether pixels are read as they are: browsers that protect against fingerprinting add noise to them.
async function readsPixels() {
  const side = 64;
  const values = Uint8ClampedArray.from({ length: 4 * side * side }, (_, k) => (k % 4 === 3 ? 255 : (7919 * k) >> 5 & 255));
  const { data } = await decode(await createImageBitmap(new ImageData(values, side, side)));
  return data.every((value, k) => value === values[k]);
}

const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(1 - x, 0) },
  bicubic: { reach: 2, weight: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0) },
};

// The antialiasing filter of PyTorch's resize on bytes: for each output position the first input position and the
// weights, as integers in units of 2^-bits. The same steps as in ATen/native/cpu/UpSampleKernel.cpp give the same bytes.
function makeResizeFilter(input, output) {
  const { reach, weight } = FILTERS[settings.interpolation];
  const scale = input / output;
  const shrink = Math.max(scale, 1);
  const rows = Array.from({ length: output }, (_, at) => {
    const center = scale * (at + 0.5);
    const first = Math.max(Math.trunc(center - reach * shrink + 0.5), 0);
    const count = Math.min(Math.trunc(center + reach * shrink + 0.5), input) - first;
    const weights = Array.from({ length: count }, (_, k) => weight(Math.abs((k + first - center + 0.5) / shrink)));
    const total = weights.reduce((sum, one) => sum + one, 0);
    return { first, weights: weights.map((one) => one / total) };
  });
  const largest = rows.reduce((most, row) => Math.max(most, ...row.weights), 0);
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits += 1;
  for (const row of rows) row.weights = Int32Array.from(row.weights, (one) => Math.trunc(one * 2 ** bits + (one < 0 ? -0.5 : 0.5)));
  return { rows, bits };
}

// Resize `lines` lines of RGBA bytes along one axis; `line` and `step` are distances in bytes, {from, to}.
function resizeAxis(data, lines, input, output, line, step) {
  const { rows, bits } = makeResizeFilter(input, output);
  const result = new Uint8ClampedArray(4 * lines * output);
  const half = 2 ** (bits - 1);
  for (let k = 0; k < lines; k += 1) {
    for (let at = 0; at < output; at += 1) {
      const { first, weights } = rows[at];
      let [red, green, blue] = [half, half, half];
      for (let tap = 0, place = k * line.from + first * step.from; tap < weights.length; tap += 1, place += step.from) {
        red += weights[tap] * data[place];
        green += weights[tap] * data[place + 1];
        blue += weights[tap] * data[place + 2];
      }
      const to = k * line.to + at * step.to;
      result[to] = red >> bits;
      result[to + 1] = green >> bits;
      result[to + 2] = blue >> bits;
    }
  }
  return result;
}

function resize({ data, width, height }, toWidth, toHeight) {
  const wide = width === toWidth ? data
    : resizeAxis(data, height, width, toWidth, { from: 4 * width, to: 4 * toWidth }, { from: 4, to: 4 });
  if (height === toHeight) return wide;
  return resizeAxis(wide, toWidth, height, toHeight, { from: 4, to: 4 }, { from: 4 * toWidth, to: 4 * toWidth });
}

// What the network sees: a square of `size` pixels, (size, size, 4) bytes; what the image does not cover is black.
function makeSquare(image) {
  const { size, resize: side, fit } = settings;
  const longer = Math.max(image.width, image.height);
  const scaled = (length) => (fit === "pad" ? Math.max(Math.floor((2 * length * side + longer) / (2 * longer)), 1) : side);
  const [width, height] = [scaled(image.width), scaled(image.height)];
  const data = resize(image, width, height);
  const square = new Uint8ClampedArray(4 * size * size);
  // Centered in the square of `side` first, then in that of `size`, so that odd differences round as in svertka.
  const [left, top] = [width, height].map((length) => Math.floor((side - length) / 2)
    + (side > size ? -Math.floor((side - size) / 2) : Math.floor((size - side) / 2)));
  for (let row = 0; row < size; row += 1) {
    for (let column = 0; column < size; column += 1) {
      const [y, x] = [row - top, column - left];
      const to = 4 * (row * size + column);
      if (y >= 0 && y < height && x >= 0 && x < width) for (let k = 0; k < 3; k += 1) square[to + k] = data[4 * (y * width + x) + k];
      if (settings.mean.length === 1) {
        square.fill((19595 * square[to] + 38470 * square[to + 1] + 7471 * square[to + 2] + 32768) >> 16, to, to + 3);
      }
      square[to + 3] = 255;
    }
  }
  return square;
}

async function classify(image) {
  const began = performance.now();
  const square = makeSquare(await decode(image));
  const { size, mean, scale } = settings;
  const values = new Float32Array(mean.length * size * size);
  for (let k = 0, to = 0; k < mean.length; k += 1) {
    for (let place = k; place < square.length; place += 4, to += 1) values[to] = Math.fround(square[place] - mean[k]) * scale[k];
  }
  const input = new ort.Tensor("float32", values, [1, mean.length, size, size]);
  const outputs = await session.run({ images: input });
  const found = Object.fromEntries(Object.entries(outputs).map(([name, { data, dims }]) => [name, { data, dims }]));
  return { square, found, seconds: (performance.now() - began) / 1000 };
}

async function answer({ id, kind, ...given }) {
  try {
    postMessage({ id, ...(kind === "start" ? await start(given) : await classify(given.image)) });
  } catch (error) {
    postMessage({ id, error: { name: error.name, message: error.message } });
  }
}

let last = Promise.resolve(); // one image after another: all at once would need the memory of all
addEventListener("message", ({ data }) => { last = last.then(() => answer(data)); });
