// A recording -> the spoken digit. The features are computed inside the network's file.
const LIMIT = 20; // seconds of a recording that are used
const RECORDED = 2; // seconds

async function classifySound(samples) {
  const { session, classes } = await network("sound");
  drawWave(samples);
  const found = await inTurn(() =>
    session.run({ samples: new ort.Tensor("float32", samples, [1, samples.length]) }),
  );
  showClasses("sound", classes, found.logits.data);
  return Array.from(found.logits.data);
}

// Returns the samples of an encoded recording at the network's rate, mean of its channels.
async function decodeSound(bytes) {
  const { rate } = (await facts).sound;
  const context = new OfflineAudioContext(1, 1, rate);
  const decoded = await context.decodeAudioData(bytes);
  const length = Math.min(decoded.length, LIMIT * rate);
  const samples = new Float32Array(length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    const own = decoded.getChannelData(channel);
    for (let i = 0; i < length; i++) samples[i] += own[i] / decoded.numberOfChannels;
  }
  return samples;
}

// Returns the part between the first and the last loud stretch: the recordings of the training have no silence.
function trim(samples, rate) {
  const step = Math.round(rate / 50);
  const power = Array.from({ length: Math.floor(samples.length / step) }, (_, i) =>
    samples.subarray(i * step, (i + 1) * step).reduce((sum, x) => sum + x * x, 0),
  );
  const loud = power.map((each) => each > Math.max(...power) / 300);
  const [first, end] = [loud.indexOf(true), loud.lastIndexOf(true) + 1];
  return samples.slice(Math.max(0, first - 1) * step, (end + 1) * step);
}

function drawWave(samples) {
  const canvas = at("wave"),
    ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const draw = canvas.getContext("2d");
  draw.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  const largest = samples.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-6);
  for (let x = 0; x < canvas.width; x++) {
    const [start, end] = [x, x + 1].map((i) => Math.floor((i * samples.length) / canvas.width));
    const peak = samples.slice(start, Math.max(end, start + 1)).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const height = Math.max(ratio, (0.9 * canvas.height * peak) / largest);
    draw.fillRect(x, (canvas.height - height) / 2, 1, height);
  }
}

async function openSound(file) {
  let samples;
  try {
    samples = await decodeSound(await file.arrayBuffer());
  } catch {
    at("soundResult").textContent = `${file.name} is not a recording that this browser can read.`;
    return;
  }
  await classifySound(samples);
}
at("soundFile").onchange = (event) => openSound(event.target.files[0]);

at("record").onclick = async () => {
  const button = at("record");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    at("soundResult").textContent =
      "The browser gave no microphone: allow it for this page, which must come from https or localhost, or choose a file.";
    return;
  }
  button.disabled = true;
  at("soundResult").textContent = "Listening …";
  const recorder = new MediaRecorder(stream);
  const chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const stopped = new Promise((done) => (recorder.onstop = done));
  recorder.start();
  setTimeout(() => recorder.stop(), 1000 * RECORDED);
  await stopped;
  for (const track of stream.getTracks()) track.stop();
  button.disabled = false;
  const samples = await decodeSound(await new Blob(chunks).arrayBuffer());
  await classifySound(trim(samples, (await facts).sound.rate));
};

Object.assign(window.demo, { classifySound: (samples) => classifySound(Float32Array.from(samples)) });
