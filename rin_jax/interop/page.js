// Samples of a RIN in the browser: DDIM and guidance around denoiser.onnx, which ONNX Runtime runs.
//
// An array of examples is a Float32Array or Uint8Array [B, ...shape]. The values of x0 are in
// [-bound, bound]. Times, schedule and update rule are those of the model card.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";

const NO_LABEL = -1;
const HEAT = [255, 40, 0]; // the colour of a patch that is read most
const SEAM = 3; // pixels between the frames that are given and those that are predicted
const element = (id) => document.getElementById(id);
const size = (shape) => shape.reduce((product, n) => product * n, 1);

/** Fills the form, loads the network and draws the first samples.
 *
 * What it returns is for programs: `ready` is a promise; `sample` is `sampleWith` below,
 * `noise` is that of the form, and `state` is what it has drawn. */
export function start(model, gammaOf) {
  const given = decoded(model.frames); // of all clips that come with the model
  const state = { run: 0, steps: [], labels: [], frames: null, given, first: null };
  fillForm(model);

  const loaded = load();
  const sample = async (settings) => {
    const session = await loaded;
    return sampleWith(session, model, gammaOf, settings);
  };

  async function sampleForm() {
    const run = ++state.run; // the loop of an earlier run ends at its next step
    const [number, seed, steps] = ["number", "seed", "steps"].map((id) => element(id).valueAsNumber);
    const xt = noise(seed, number, size(model.shape));
    Object.assign(state, { steps: [], ...conditions(model, given, number) });
    element("step").max = steps;
    await loaded;
    const began = performance.now();
    await sample({
      noise: xt, labels: state.labels, frames: state.frames, steps,
      guidance: element("guidance").valueAsNumber,
      watch: async (x0, reads) => {
        if (run !== state.run) return false;
        state.steps.push({ x0, reads });
        element("step").value = state.steps.length;
        show(model, state, state.steps.length - 1);
        const now = performance.now(); // since the visitor opened the page
        const each = (now - began) / state.steps.length;
        state.first ??= now;
        say(`Step ${state.steps.length} of ${steps}, ${each.toFixed(1)} ms a step ` +
          `(first picture ${(state.first / 1000).toFixed(1)} s after the page was opened)`);
        await new Promise((resolve) => setTimeout(resolve)); // the browser draws
        return run === state.run;
      },
    });
  }

  const guarded = (work) => work().catch((error) => say(`Failed: ${error.message}`));
  element("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(sampleForm);
  });
  element("step").addEventListener("input", () => {
    const index = element("step").valueAsNumber - 1;
    if (index < state.steps.length) show(model, state, index);
  });
  const ready = guarded(sampleForm);
  return { ready, sample, noise, state };
}

/** The network; weights and runtime are files of this folder, and one thread runs it. */
async function load() {
  ort.env.wasm.numThreads = 1; // several need headers that a plain file server does not send
  const wasm = new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url);
  ort.env.wasm.wasmPaths = { wasm: wasm.href };
  const weights = "denoiser.onnx.data";
  return ort.InferenceSession.create("denoiser.onnx", {
    executionProviders: ["wasm"], externalData: [{ path: weights, data: weights }],
  });
}

/** x0 / bound of the last step, from `noise` with a label (-1: no class) for each example.
 *
 * `frames` are the pixels that are given to a network of videos. watch(x0, reads [B, blocks, grid])
 * sees each step; sampling ends where it returns false. */
async function sampleWith(session, model, gammaOf, { noise, labels, frames, steps, guidance, watch }) {
  const batch = noise.length / size(model.shape);
  const bound = model.inputScale;
  const scaled = frames && Float32Array.from(frames, (pixel) => (pixel / 127.5 - 1) * bound);
  const nobody = new Int32Array(batch).fill(NO_LABEL);
  const nothing = scaled && new Float32Array(scaled.length);
  const [low, high] = model.guidanceInterval;

  async function denoise(xt, gamma, label, seen, latents) {
    const tensor = (values, shape) => new ort.Tensor("float32", values, [batch, ...shape]);
    const inputs = { ...latents, xt: tensor(xt, model.shape) };
    inputs.gamma = tensor(new Float32Array(batch).fill(gamma), []);
    if (model.classes) inputs.labels = new ort.Tensor("int32", label, [batch]);
    if (seen) inputs.frames = tensor(seen, model.givenShape);
    const { prediction, reads, ...carried } = await session.run(inputs);
    const names = Object.keys(carried);
    return {
      prediction: prediction.data, reads,
      latents: Object.fromEntries(names.map((name) => [`previous_${name}`, carried[name]])),
    };
  }

  const zeros = ({ name, shape: [, ...shape] }) => {
    const values = new Float32Array(batch * size(shape));
    return [name, new ort.Tensor("float32", values, [batch, ...shape])];
  };
  const carrying = session.inputMetadata.filter(({ name }) => name.startsWith("previous_"));
  let latents = Object.fromEntries(carrying.map(zeros));
  let others = latents; // of the pass without a condition, where it has its own
  let xt = Float32Array.from(noise);
  let x0;
  for (let i = 0; i < steps; i++) {
    const [gamma, next] = [i, i + 1].map((j) =>
      Math.fround(gammaOf(Math.fround(1 - Math.fround(j / steps)))));
    const first = await denoise(xt, gamma, labels, scaled, latents);
    let prediction = first.prediction;
    const w = low <= gamma && gamma <= high ? guidance : 0;
    if (w) {
      const shared = model.guidanceLatents === "shared";
      const second = await denoise(xt, gamma, nobody, nothing, shared ? latents : others);
      prediction = prediction.map((value, k) => (1 + w) * value - w * second.prediction[k]);
      others = second.latents;
    }
    latents = first.latents;
    const [signal, left] = [Math.sqrt(gamma), Math.sqrt(1 - gamma)];
    const estimate = {
      eps: (x, p) => (x - left * p) / signal, x0: (x, p) => p, v: (x, p) => signal * x - left * p,
    }[model.predictionType];
    x0 = xt.map((x, k) => Math.min(Math.max(estimate(x, prediction[k]), -bound), bound));
    const divisor = Math.sqrt(Math.max(1 - gamma, 1e-9));
    xt = xt.map((x, k) =>
      Math.sqrt(next) * x0[k] + (Math.sqrt(1 - next) * (x - signal * x0[k])) / divisor);
    if (watch && (await watch(x0, first.reads)) === false) break;
  }
  return x0.map((value) => value / bound);
}

/** Standard normal noise [number, length]: example i of a seed is the same for any number.
 *
 * Mulberry32, a generator with 32 bits of state, starts at seed xor (i + 1) 0x9E3779B9; Box and
 * Muller's method makes a normal number from two of its numbers. */
function noise(seed, number, length) {
  const values = new Float32Array(number * length);
  for (let i = 0; i < number; i++) {
    const uniform = mulberry32(seed ^ Math.imul(i + 1, 0x9e3779b9));
    for (let k = 0; k < length; k++) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      values[i * length + k] = radius * Math.cos(2 * Math.PI * uniform());
    }
  }
  return values;
}

/** Numbers in [0, 1), a multiple of 2^-32 each. */
function mulberry32(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes of base64 text, or null. */
function decoded(text) {
  return text && Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function fillForm(model) {
  const options = [["", "each in turn"], ...model.names.entries(), [NO_LABEL, "none"]];
  element("class").append(...options.map(([value, text]) => new Option(text, value)));
  element("class-field").hidden = !model.classes;
  element("guidance-field").hidden = !model.classes && !model.frames;
}

/** {labels, frames} of samples: the chosen class or each in turn, and the clips in turn. */
function conditions(model, given, number) {
  const chosen = element("class").value;
  const label = (i) => (chosen === "" ? i % model.classes : Number(chosen));
  const labels = Int32Array.from({ length: number }, (_, i) => (model.classes ? label(i) : NO_LABEL));
  if (!given) return { labels, frames: null };
  const length = size(model.givenShape);
  const turn = (i) => i % (given.length / length);
  const frames = new Uint8Array(number * length);
  for (let i = 0; i < number; i++) {
    frames.set(given.subarray(turn(i) * length, (turn(i) + 1) * length), i * length);
  }
  return { labels, frames };
}

function say(text) {
  element("status").textContent = text;
}

/** Draws a step: for each sample a canvas with its frames and, below, the reads of each block. */
function show(model, state, index) {
  const { x0, reads } = state.steps[index];
  const place = element("samples");
  while (place.children.length > state.labels.length) place.lastChild.remove();
  while (place.children.length < state.labels.length) {
    const figure = document.createElement("figure");
    figure.append(document.createElement("canvas"), document.createElement("figcaption"));
    place.append(figure);
  }
  state.labels.forEach((label, b) => {
    const [canvas, caption] = place.children[b].children;
    caption.textContent = label === NO_LABEL ? "" : model.names[label];
    drawSample(canvas, model, b, x0, reads, state.frames);
  });
}

function drawSample(canvas, model, b, x0, reads, frames) {
  const [height, width, channels] = model.shape.slice(-3);
  const length = model.shape.length > 3 ? model.shape[0] : 1;
  const given = frames ? model.givenShape[0] : 0;
  const [, blocks, ...grid] = reads.dims;
  const [rows, columns] = grid.slice(-2);
  const gridFrames = grid.length > 2 ? grid[0] : 1;
  const patch = model.patchFrames;
  const before = Math.floor((gridFrames * patch - length) / 2); // frames that the first patch lacks
  const cell = size(grid);
  canvas.width = (given + length) * (width + 1) - 1 + (given ? SEAM : 0);
  canvas.height = (1 + blocks) * (height + 1) - 1;
  const scale = Math.max(1, Math.round((length > 1 ? 48 : 80) / width));
  canvas.style.width = `${canvas.width * scale}px`;
  const context = canvas.getContext("2d");
  const left = (frame) => frame * (width + 1) + (frame >= given && given ? SEAM : 0);

  function draw(values, offset, pixel, frame, block) {
    const picture = context.createImageData(width, height);
    const shares = block === null ? null : reads.data.subarray(
      (b * blocks + block) * cell, (b * blocks + block + 1) * cell);
    const most = shares && Math.max(...shares);
    const first = Math.floor((frame - given + before) / patch) * rows * columns;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = offset + (y * width + x) * channels;
        let colour = [0, 1, 2].map((c) => pixel(values[at + (channels > 1 ? c : 0)]));
        if (shares) {
          const patchRow = Math.floor((y * rows) / height);
          const share = shares[first + patchRow * columns + Math.floor((x * columns) / width)];
          const grey = (colour[0] + colour[1] + colour[2]) / 3;
          colour = HEAT.map((hot) => grey + 0.8 * (share / most) * (hot - grey));
        }
        picture.data.set([...colour, 255], 4 * (y * width + x));
      }
    }
    const row = block === null ? 0 : block + 1;
    context.putImageData(picture, left(frame), row * (height + 1));
  }

  const image = height * width * channels;
  for (let frame = 0; frame < given; frame++) {
    draw(frames, (b * given + frame) * image, (value) => value, frame, null);
  }
  const pixel = (value) => Math.round((value / model.inputScale + 1) * 127.5); // canvases clip
  for (let frame = 0; frame < length; frame++) {
    const offset = (b * length + frame) * image;
    for (const block of [null, ...Array(blocks).keys()]) {
      draw(x0, offset, pixel, given + frame, block);
    }
  }
}
