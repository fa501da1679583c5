// A sketch is a list of strokes over an uploaded picture, if there is one. Whatever changes it asks
// for a new search, which begins when the hand rests. Undo goes back to what was there before a
// stroke, an example, an upload or Clear.

const REST = 250; // milliseconds
const TOP = 20;
const STEP = 16; // of the keyboard's pen, in pixels of the canvas
const LARGEST = 10 * 2 ** 20; // bytes that the server takes
const SENT = 256; // side of what is sent, at which training stores sketches too

const KEPT = 500; // photos
const images = new Map(); // by path

const canvas = document.querySelector("#sketch");
const pen = canvas.getContext("2d");
const status = document.querySelector("#status");
const photos = document.querySelector("#photos");
const width = document.querySelector("#width");

let strokes = [];
let picture = null; // an uploaded one: {file, image}
let past = []; // what Undo goes back to: {strokes, picture}
let line = null; // the stroke that is being drawn
let pointer = null; // what draws it, so that a second finger does not join in
let keyboard = null; // where the keyboard's pen is: {x, y, down}
let timer = 0;
let request = null;

function paint(pen) {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) pen.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "black";
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.lineWidth = stroke.width;
    pen.beginPath();
    pen.moveTo(...stroke.points[0]);
    for (const [x, y] of stroke.points) pen.lineTo(x + 0.01, y); // a dot has a length too
    pen.stroke();
  }
}

function redraw() {
  paint(pen);
  mark();
}

function mark() {
  if (!keyboard || document.activeElement !== canvas) return;
  pen.fillStyle = keyboard.down ? "black" : "grey";
  pen.fillRect(keyboard.x - 3, keyboard.y - 3, 6, 6);
}

function replace(withStrokes, withPicture) {
  past.push({ strokes, picture });
  strokes = withStrokes;
  picture = withPicture;
  lift();
  changed();
}

function undo() {
  if (past.length) ({ strokes, picture } = past.pop());
  lift();
  changed();
}

function lift() {
  line = pointer = null;
  if (keyboard) keyboard.down = false;
}

function begin(x, y) {
  const stroke = { width: Number(width.value), points: [[x, y]] };
  replace([...strokes, stroke], picture);
  line = stroke;
}

function changed() {
  redraw();
  clearTimeout(timer);
  timer = setTimeout(search, REST);
}

function say(text) {
  status.textContent = text;
}

// What is wrong stands alone: photos of an earlier search would seem to be found by this one.
function complain(text) {
  photos.replaceChildren();
  say(text);
}

function empty() {
  return strokes.length === 0 && !picture;
}

async function search() {
  request?.abort();
  if (empty()) {
    complain("The canvas is empty: draw something, or take an example.");
    return;
  }
  request = new AbortController();
  const { signal } = request;
  const codes = document.querySelector("input[name=codes]:checked").value;
  try {
    const answer = await fetch(`search?top=${TOP}&codes=${codes}`, {
      method: "POST",
      body: await sketch(),
      signal,
    });
    if (answer.status === 429) {
      if (signal.aborted) return;
      say("Many people are searching; trying again.");
      clearTimeout(timer);
      timer = setTimeout(search, 1000 * Number(answer.headers.get("Retry-After") ?? 1));
      return;
    }
    const found = await answer.json();
    if (answer.ok) show(found);
    else complain(found.error);
  } catch {
    if (!signal.aborted) complain("The server does not answer.");
  }
}

// An untouched upload goes as it is, so that the server sees what the file holds.
function sketch() {
  if (picture && strokes.length === 0) return picture.file;
  const small = new OffscreenCanvas(SENT, SENT);
  const pen = small.getContext("2d");
  pen.scale(SENT / canvas.width, SENT / canvas.height);
  paint(pen);
  return small.convertToBlob({ type: "image/png" });
}

function show(found) {
  const count = found.photos.length;
  say(count === 1 ? "The nearest photo." : `The ${count} nearest photos.`);
  photos.replaceChildren(
    ...found.photos.map((photo) => {
      const item = document.createElement("li");
      const figure = document.createElement("figure");
      const image = imageOf(photo);
      const caption = document.createElement("figcaption");
      const score = document.createElement("span");
      image.onerror = () => {
        images.delete(photo.path);
        score.textContent = "This photo is gone.";
      };
      score.textContent =
        found.codes === "real"
          ? `cosine ${photo.score.toFixed(2)}`
          : `${photo.score} of ${found.bits} bits differ`;
      caption.append(photo.class, score);
      figure.append(image, caption);
      item.append(figure);
      return item;
    }),
  );
}

// What was shown before is not asked for again.
function imageOf(photo) {
  let image = images.get(photo.path);
  if (!image) {
    image = document.createElement("img");
    image.alt = photo.path;
    image.src = `photos/${photo.photo}`;
    images.set(photo.path, image);
    if (images.size > KEPT) images.delete(images.keys().next().value);
  }
  return image;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || pointer !== null) return;
  begin(...place(event));
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
});

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  for (const passed of event.getCoalescedEvents?.() ?? [event]) line.points.push(place(passed));
  changed();
});

canvas.addEventListener("lostpointercapture", (event) => {
  if (event.pointerId === pointer) lift();
});

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  keyboard ??= { x: canvas.width / 2, y: canvas.height / 2, down: false };
  if (event.key === " ") {
    const down = !keyboard.down;
    if (down) begin(keyboard.x, keyboard.y);
    else lift();
    keyboard.down = down;
  } else if (event.key in MOVES) {
    const [right, below] = MOVES[event.key];
    keyboard.x = Math.min(Math.max(keyboard.x + right * STEP, 0), canvas.width);
    keyboard.y = Math.min(Math.max(keyboard.y + below * STEP, 0), canvas.height);
    if (keyboard.down) {
      line.points.push([keyboard.x, keyboard.y]);
      changed();
    }
  } else return;
  event.preventDefault();
  redraw();
  const [left, top] = [keyboard.x / canvas.width, keyboard.y / canvas.height];
  say(
    `The pen is ${keyboard.down ? "down" : "up"}, ${Math.round(100 * left)}% from the left and ` +
      `${Math.round(100 * top)}% from the top.`,
  );
});

canvas.addEventListener("blur", () => {
  if (keyboard?.down) lift();
  redraw();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  undo();
});

document.querySelector("#undo").addEventListener("click", undo);

document.querySelector("#clear").addEventListener("click", () => {
  if (!empty()) replace([], null);
});

document.querySelectorAll("input[name=codes]").forEach((choice) => {
  choice.addEventListener("change", changed);
});

document.querySelector("#upload").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  clearTimeout(timer);
  request?.abort();
  if (file.size > LARGEST) {
    complain(`${file.name} is larger than ${LARGEST / 2 ** 20} MB.`);
    return;
  }
  try {
    replace([], { file, image: await createImageBitmap(file) });
  } catch {
    complain(`${file.name} is no picture that a browser can show.`);
  }
});

const answer = await fetch("examples.json");
for (const { name, lines } of await answer.json()) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.addEventListener("click", () => {
    const scale = canvas.width / 100;
    const drawn = lines.map((line) => ({
      width: Number(width.value),
      points: line.map(([x, y]) => [x * scale, y * scale]),
    }));
    replace(drawn, null);
  });
  document.querySelector("#examples").append(button);
}

redraw();
const health = await (await fetch("healthz")).json();
if (empty()) say(`Draw something: ${health.photos} photos are waiting.`);
