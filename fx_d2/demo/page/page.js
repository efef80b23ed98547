// The page: sends one image and shows the response. Threshold and checkboxes act locally; only another image or other
// heads run the model again. Names from the model and the file are inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const NOTICE = document.querySelector(".notice").textContent;
const FILL = 0.18;

let model;            // GET /model
let file = null;      // the dropped file
let found = null;     // POST /predict
let film = null;      // its image
let asking = null;    // AbortController of the pending request
const off = new Set();  // "dataset/class" that are hidden

const element = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);
const shown = () => found.document.heads[$("dataset").value];
const about = () => model.datasets.find((row) => row.name === $("dataset").value);
const isOn = (name) => !off.has(`${$("dataset").value}/${name}`);
const boxes = () => (shown().boxes ?? []).filter((box) => box.score >= Number($("threshold").value));
const shapes = () => found.shapes[$("dataset").value] ?? {};

function say(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

async function ask() {
  if (!file) return;
  if (file.size > model.max_bytes) {
    say("", `${file.name} has ${megabytes(file.size)}; the server accepts at most ${megabytes(model.max_bytes)}.`);
    return;
  }
  const query = new URLSearchParams({ name: file.name });
  for (const choice of $("choices").querySelectorAll("input:checked")) query.append("dataset", choice.value);
  if (!query.has("dataset")) {
    $("heads").open = true;
    say("", "No heads selected: choose at least one dataset.");
    return;
  }
  asking?.abort();
  const mine = (asking = new AbortController());
  document.querySelector("main").setAttribute("aria-busy", "true");
  say(`Running the model on ${file.name} …`);
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await fetch(`/predict?${query}`, { method: "POST", body: file, headers, signal: mine.signal });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    const image = new Image();
    image.src = `data:image/png;base64,${content.film}`;
    await image.decode();
    if (mine !== asking) return;
    [found, film] = [content, image];
    showResult();
  } catch (error) {
    if (mine !== asking) return;
    [found, film] = [null, null];
    $("stage").hidden = $("result").hidden = true;
    say("", error instanceof TypeError ? "No response from the server, or it refused the file: is it still running?" : error.message);
  } finally {
    if (mine === asking) document.querySelector("main").removeAttribute("aria-busy");
  }
}

function showResult() {
  const { height, width, file_name, heads } = found.document;
  const before = $("dataset").value;
  const titles = Object.fromEntries(model.datasets.map((row) => [row.name, row.title]));
  $("dataset").replaceChildren(...Object.keys(heads).map((name) => element("option", titles[name], { value: name })));
  if (before in heads) $("dataset").value = before;
  $("stage").hidden = $("result").hidden = false;
  say(`${file_name}: ${width} × ${height} pixels`);
  showDataset();
}

function showDataset() {
  const head = shown();
  const points = head.operating_points ?? {};
  $("labels").hidden = !head.labels;
  $("kind").textContent = about().softmax ? "(exactly one class)" : "";
  $("labels").tBodies[0].replaceChildren(...Object.entries(head.labels ?? {}).map(([name, p]) => labelRow(name, p, points[name])));
  $("points").textContent = Object.keys(points).length
    ? "White line: operating point, chosen on the validation split. ▲: the probability reaches it."
    : "";
  $("marks").hidden = !head.boxes && !head.masks;
  $("threshold-row").hidden = !head.boxes;
  showMarks();
}

function labelRow(name, probability, point) {
  const row = element("tr", "", { className: point?.above ? "above" : "" });
  const bar = element("div", "", { className: "bar" });
  bar.append(element("i"));
  bar.firstChild.style.width = `${100 * probability}%`;
  if (point) {
    bar.append(element("b"));
    bar.lastChild.style.left = `${100 * point.threshold}%`;
    bar.title = `operating point ${point.threshold.toFixed(2)}`;
  }
  const cell = element("td");
  cell.append(bar);
  const value = element("td", `${point?.above ? "▲ " : ""}${probability.toFixed(2)}`);
  if (point?.above) value.append(element("span", " reaches its operating point", { className: "quiet" }));
  row.append(element("th", name, { scope: "row" }), cell, value);
  return row;
}

function showMarks() {
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  const counts = new Map();
  for (const box of boxes()) counts.set(box.class, (counts.get(box.class) ?? 0) + 1);
  const rows = [];
  for (const [name, color] of Object.entries(about().colors)) {
    const share = shapes()[name]?.share;
    if (!counts.has(name) && share === undefined) continue;
    const label = element("label");
    const box = element("input", "", { type: "checkbox", checked: isOn(name) });
    box.addEventListener("change", () => {
      off[box.checked ? "delete" : "add"](`${$("dataset").value}/${name}`);
      redraw();
    });
    const swatch = element("span", "", { className: "swatch" });
    swatch.style.background = color;
    const number = counts.get(name) ?? 0;
    const texts = [number ? `${number} box${number > 1 ? "es" : ""}` : "", share === undefined ? "" : `mask ${(100 * share).toFixed(1)} %`];
    label.append(box, swatch, element("span", name), element("span", texts.filter(Boolean).join(", "), { className: "count" }));
    const item = element("li");
    item.append(label);
    rows.push(item);
  }
  $("classes").replaceChildren(...(rows.length ? rows : [element("li", "None found.")]));
  redraw();
}

function redraw() {
  if (!film) return;
  const room = Math.max(280, window.innerHeight - 200);
  const scale = Math.min($("stage").clientWidth / film.naturalWidth, room / film.naturalHeight);
  const [width, height] = [film.naturalWidth * scale, film.naturalHeight * scale];
  const canvas = $("canvas"), sharp = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  canvas.style.width = `${width}px`;
  paint(canvas.getContext("2d"), canvas.width, canvas.height, sharp);
  const seen = [...new Set(boxes().map((box) => box.class).concat(Object.keys(shapes())))].filter(isOn);
  const marks = $("overlay").checked && seen.length ? `with ${seen.join(", ")} marked` : "without marks";
  canvas.setAttribute("aria-label", `X-ray ${found.document.file_name}, ${marks}`);
}

// Draw the image with masks, boxes and names; `unit` is one screen pixel in canvas pixels.
function paint(context, width, height, unit) {
  context.imageSmoothingQuality = "high";
  context.drawImage(film, 0, 0, width, height);
  if (!$("overlay").checked) return;
  const scale = width / film.naturalWidth, colors = about().colors;
  context.lineWidth = 2 * unit;
  const outlines = Object.entries(shapes()).filter(([name]) => isOn(name)).map(([name, { path }]) => {
    const outline = new Path2D();
    outline.addPath(new Path2D(path), new DOMMatrix([scale, 0, 0, scale, 0, 0]));
    context.fillStyle = colors[name];
    context.globalAlpha = FILL;
    context.fill(outline, "evenodd");
    return [name, outline];
  });
  context.globalAlpha = 1;
  for (const [name, outline] of outlines) {
    context.strokeStyle = colors[name];
    context.stroke(outline);
  }
  const drawn = boxes().filter((box) => isOn(box.class));
  for (const { class: name, box } of drawn.toReversed()) {
    const [x0, y0, x1, y1] = box.map((value) => value * scale);
    context.strokeStyle = colors[name];
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  const taken = [];
  for (const { class: name, score, box } of drawn) {
    placeLabel(context, `${name} ${score.toFixed(2)}`, colors[name], box.map((value) => value * scale), width, height, unit, taken);
  }
}

// Draw a name at its box, inside the image, without overlapping other names if possible.
function placeLabel(context, text, color, [x0, y0, x1, y1], width, height, unit, taken) {
  context.font = `${14 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const w = context.measureText(text).width + 8 * unit, h = 19 * unit;
  const places = [[x0, y0 - h], [x1 - w, y0 - h], [x0, y1], [x1 - w, y1]];
  for (let i = 0; i < 12; i++) places.push([x0, y0 + i * h]);
  const inside = places
    .map(([x, y]) => [Math.min(Math.max(x, 0), Math.max(width - w, 0)), y])
    .filter(([, y]) => y >= 0 && y + h <= height);
  const free = inside.find(([x, y]) => taken.every((other) => x + w <= other[0] || other[0] + other[2] <= x || y + h <= other[1] || other[1] + h <= y));
  const [x, y] = free ?? inside[0] ?? [0, 0];
  taken.push([x, y, w]);
  context.fillStyle = "rgba(0, 0, 0, 0.65)";
  context.fillRect(x, y, w, h);
  context.fillStyle = color;
  context.fillText(text, x + 4 * unit, y + h / 2);
}

function save(blob, suffix) {
  const link = element("a", "", { href: URL.createObjectURL(blob), download: `${found.document.file_name}.${suffix}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// Save the current view at a higher resolution, with a caption.
function savePicture() {
  const longer = Math.max(film.naturalWidth, film.naturalHeight);
  const scale = Math.min(Math.max(longer, 1200), 2400) / longer;
  const width = Math.round(film.naturalWidth * scale), height = Math.round(film.naturalHeight * scale);
  const unit = Math.max(width, height) / 900, foot = Math.round(30 * unit);
  const canvas = element("canvas", "", { width, height: height + foot });
  const context = canvas.getContext("2d");
  paint(context, width, height, unit);
  context.fillStyle = "#000";
  context.fillRect(0, height, width, foot);
  context.fillStyle = "#fff";
  context.font = `${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const words = [NOTICE, about().title, model.which, ...drawnIn(), found.document.file_name];
  context.fillText(words.join("   "), 8 * unit, height + foot / 2, width - 16 * unit);
  canvas.toBlob((blob) => save(blob, `${$("dataset").value}.png`), "image/png");
}

// Which findings are drawn: hidden ones must not be mistaken for not found.
function drawnIn() {
  if (!shown().boxes && !shown().masks) return [];
  if (!$("overlay").checked) return ["no boxes, no masks"];
  const without = Object.keys(about().colors).filter((name) => !isOn(name));
  const from = shown().boxes ? [`boxes from ${$("threshold-value").textContent}`] : [];
  return [...from, ...(without.length ? [`without ${without.join(", ")}`] : [])];
}

function take(files) {
  if (!files.length) return;  // dropped text or a link
  [file] = files;
  $("again").disabled = false;
  ask();
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB`;

async function start() {
  model = await (await fetch("/model")).json();
  $("which").textContent = model.which;
  $("limits").textContent = `PNG, JPEG or DICOM, up to ${megabytes(model.max_bytes)}. It is kept in memory only.`;
  Object.assign($("threshold"), { min: model.lowest_score, value: model.score_thresh });
  $("choices").replaceChildren(...model.datasets.map(({ name, title }) => {
    const label = element("label");
    label.append(element("input", "", { type: "checkbox", value: name, checked: true }), title);
    return label;
  }));
  $("file").addEventListener("change", () => { take($("file").files); $("file").value = ""; });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  const check = (value) => $("choices").querySelectorAll("input").forEach((box) => { box.checked = value; });
  $("all").addEventListener("click", () => check(true));
  $("none").addEventListener("click", () => check(false));
  $("again").addEventListener("click", ask);
  $("dataset").addEventListener("change", showDataset);
  $("threshold").addEventListener("input", showMarks);
  $("overlay").addEventListener("change", redraw);
  $("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(found.document)], { type: "application/json" }), "json"));
  $("save-picture").addEventListener("click", savePicture);
  window.addEventListener("resize", redraw);
}

start().catch(() => say("", "No response from the server: is it still running?"));
