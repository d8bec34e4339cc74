// Map: pictures of an index in the plane, coloured by their nearest candidate text. Another
// instruction gives other vectors, and the points go to their new places.

import {
  $, address, element, listIndexes, onKey, pictureUrl, post, readState,
} from "./common.js";

const COLOURS = 12;
const PLAY_S = 3.5;
const START = {
  index: null,
  instructions: [null, "what is on the left?", "what is on the right?"], // null: the picture alone
  chosen: 0,
  texts: ["a dog", "a cat", "a bicycle", "a tree", "a lemon", "a kite", "a fish", "a teddy bear"],
  sample: 100,
  layout: "pca",
  only: null, // the text whose pictures alone stand out
};
const PLACES = ["index", "instruction", "texts", "sample", "layout"];
const state = { ...START, ...readState() };
const answers = new Map(); // body of a request -> its answer, under way or there
const points = new Map(); // id of a picture -> its button
let current = null; // the answer that is drawn
let asked = 0;
let timer = null;
let playing = null;

const remember = () => history.replaceState(null, "", address(state));
const texts = () => state.texts.map((words) => words.trim()).filter(Boolean).slice(0, COLOURS);
const named = (instruction) => (instruction === null ? "The picture alone" : `“${instruction}”`);

// -- the form ---------------------------------------------------------------------------------

function drawInstructions() {
  const rows = state.instructions.map((words, place) => {
    const id = `instruction-${place}`;
    const radio = element("input", { type: "radio", name: "instruction", id, onchange: () => choose(place) });
    radio.checked = place === state.chosen;
    const parts = [radio, element("label", { for: id }, words ?? "The picture alone")];
    if (words !== null) {
      const remove = () => {
        state.instructions.splice(place, 1);
        state.chosen = Math.min(state.chosen, state.instructions.length - 1);
        drawInstructions();
        show();
      };
      const label = `Take out ${words}`;
      parts.push(element("button", { type: "button", "aria-label": label, onclick: remove }, "×"));
    }
    return element("div", { class: "row choice" }, ...parts);
  });
  $("instructions").replaceChildren(...rows);
}

function choose(place) {
  state.chosen = place;
  const radio = $(`instruction-${place}`);
  if (radio) radio.checked = true;
  show();
}

function add() {
  const words = $("new").value.trim();
  if (!words) {
    complain({ place: "instruction", message: "Write an instruction first." });
    return;
  }
  $("new").value = "";
  state.instructions.push(words);
  state.chosen = state.instructions.length - 1;
  drawInstructions();
  show();
}

function complain(error) {
  const place = PLACES.find((name) => error.place.split(/[.[]/)[0] === name);
  (place ? $(`error-${place}`) : $("error")).textContent = error.message;
}

function forgive() {
  for (const line of document.querySelectorAll(".error")) line.textContent = "";
}

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else {
    const step = () => choose((state.chosen + 1) % state.instructions.length);
    playing = setInterval(() => current && !$("stage").classList.contains("busy") && step(), PLAY_S * 1000);
    step();
  }
  $("play").setAttribute("aria-pressed", String(Boolean(playing)));
  $("play").textContent = playing ? "Pause" : "Play: one after the other";
}

// -- asking -----------------------------------------------------------------------------------

function request(instruction) {
  const body = { index: state.index, texts: texts(), sample: Number(state.sample), layout: state.layout };
  if (instruction !== null) body.instruction = instruction;
  const key = JSON.stringify(body);
  if (!answers.has(key)) {
    const answer = post("v1/map", body);
    answer.catch(() => answers.delete(key));
    answers.set(key, answer);
  }
  return answers.get(key);
}

async function show() {
  remember();
  forgive();
  const number = ++asked;
  if (!texts().length) {
    complain({ place: "texts", message: "Write at least one candidate text." });
    return;
  }
  if (state.texts.filter((words) => words.trim()).length > COLOURS) {
    complain({ place: "texts", message: `The first ${COLOURS} texts have a colour; the others are left out.` });
  }
  const instruction = state.instructions[state.chosen];
  $("stage").classList.add("busy");
  $("title").textContent = named(instruction);
  $("status").textContent = `Looking at ${state.sample} pictures …`;
  try {
    const answer = await request(instruction);
    if (number !== asked) return;
    draw(answer);
    // The other instructions are asked for beforehand, so that a change is seen at once.
    for (const other of state.instructions) {
      if (number !== asked) return;
      await request(other).catch(() => {});
    }
  } catch (error) {
    if (number !== asked) return;
    $("status").textContent = "";
    complain(error);
  } finally {
    if (number === asked) $("stage").classList.remove("busy");
  }
}

// -- drawing ----------------------------------------------------------------------------------

function draw(answer) {
  $("stage").classList.remove("busy");
  const isFirst = current === null;
  current = answer;
  const ids = new Set(answer.data.map((point) => point.id));
  for (const [id, button] of points) {
    if (!ids.has(id)) {
      button.remove();
      points.delete(id);
    }
  }
  for (const point of answer.data) {
    const button = points.get(point.id) ?? newPoint(point);
    button.className = `point c${point.text}`;
    button.style.setProperty("--sure", String(0.35 + 0.65 * point.share));
    button.setAttribute(
      "aria-label",
      `${point.name}: nearest to ${answer.texts[point.text]}, cosine ${point.score.toFixed(2)}`,
    );
  }
  if (![...points.values()].some((button) => button.tabIndex === 0)) {
    const first = points.values().next().value;
    if (first) first.tabIndex = 0;
  }
  drawLegend();
  place(isFirst);
  const counts = counted().map((count, text) => `${count} ${answer.texts[text]}`);
  const part = answer.variance === null ? "" : ` The plane shows ${Math.round(answer.variance * 100)} % of the variance.`;
  const gone = answer.unreadable ? ` ${answer.unreadable} are gone or damaged.` : "";
  $("status").textContent =
    `${answer.data.length} of ${answer.images} pictures. Nearest text: ${counts.join(", ")}.${part}${gone}`;
}

function newPoint(point) {
  const button = element("button", {
    type: "button",
    tabindex: -1,
    title: point.name,
    onclick: () => open(point.id),
    onfocus: () => hold(button),
  });
  button.dataset.id = point.id;
  // Each leaves a little later than the one before, so that the eye can follow.
  button.style.setProperty("--wait", `${(parseInt(point.id.slice(0, 4), 16) / 65536) * 0.35}s`);
  points.set(point.id, button);
  $("stage").append(button);
  pictureUrl(state.index, point.id, 96).then(
    (url) => (button.style.backgroundImage = `url("${url}")`),
    () => {},
  );
  return button;
}

function counted() {
  const counts = current.texts.map(() => 0);
  for (const point of current.data) counts[point.text] += 1;
  return counts;
}

function drawLegend() {
  const rows = counted().map((count, text) => {
    const words = current.texts[text];
    const button = element(
      "button",
      {
        type: "button",
        class: `c${text}`,
        "aria-pressed": String(state.only === words),
        onclick: () => {
          state.only = state.only === words ? null : words;
          remember();
          drawLegend();
          place();
          $("legend").children[text].firstChild.focus();
        },
      },
      element("span", { class: "swatch" }),
      `${words} `,
      element("span", { class: "score" }, String(count)),
    );
    return element("li", {}, button);
  });
  $("legend").replaceChildren(...rows);
}

// Puts every point where the answer has it; without the way there when `still`.
function place(still = false) {
  if (!current) return;
  const stage = $("stage");
  const { clientWidth: width, clientHeight: height } = stage;
  const crowd = Math.sqrt((width * height) / current.data.length);
  const size = Math.max(14, Math.min(64, crowd * 0.5));
  stage.style.setProperty("--size", `${size}px`);
  stage.classList.toggle("still", still);
  const across = (x) => width / 2 + x * (width / 2 - size * 0.8);
  const down = (y) => height / 2 - y * (height / 2 - size * 0.8 - 14) + 6;
  const groups = current.texts.map(() => []);
  for (const point of current.data) {
    const button = points.get(point.id);
    const [x, y] = [across(point.x), down(point.y)];
    button.style.transform = `translate(${(x - size / 2).toFixed(1)}px, ${(y - size / 2).toFixed(1)}px)`;
    const other = state.only !== null && current.texts.includes(state.only);
    button.classList.toggle("other", other && current.texts[point.text] !== state.only);
    groups[point.text].push([x, y]);
  }
  drawNames(groups, size);
  if (still) requestAnimationFrame(() => requestAnimationFrame(() => stage.classList.remove("still")));
}

// The name of each text above its pictures.
function drawNames(groups, size) {
  const taken = [];
  groups.forEach((group, text) => {
    let name = $(`name-${text}`);
    if (!name) {
      name = element("span", { id: `name-${text}`, "aria-hidden": "true" });
      $("stage").append(name);
    }
    name.className = `name c${text}`;
    name.textContent = current.texts[text];
    name.hidden = group.length < 2;
    if (name.hidden) return;
    const part = (axis, share) =>
      group.map((one) => one[axis]).sort((a, b) => a - b)[Math.floor(group.length * share)];
    const half = name.offsetWidth / 2;
    const x = Math.min(Math.max(part(0, 0.5), half + 2), $("stage").clientWidth - half - 2);
    let y = part(1, 0.15) - size / 2 - 8;
    // Names that would lie on each other make way downwards.
    while (taken.some(([a, b, wide]) => Math.abs(a - x) < wide + half && Math.abs(b - y) < 22)) y += 11;
    y = Math.min(Math.max(y, 12), $("stage").clientHeight - 12);
    taken.push([x, y, half]);
    name.style.transform = `translate(${(x - half).toFixed(1)}px, ${(y - 11).toFixed(1)}px)`;
  });
  for (let text = groups.length; $(`name-${text}`); text += 1) $(`name-${text}`).hidden = true;
}

// -- by keyboard, and one picture -------------------------------------------------------------

// Of all points one can be reached by Tab: the one that was looked at last.
function hold(button) {
  for (const other of points.values()) other.tabIndex = other === button ? 0 : -1;
}

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function walk(event) {
  const way = WAYS[event.key];
  const from = current?.data.find((point) => point.id === event.target.dataset?.id);
  if (!way || !from) return;
  event.preventDefault();
  let best = null;
  for (const point of current.data) {
    const [x, y] = [point.x - from.x, point.y - from.y];
    const ahead = x * way[0] + y * way[1];
    const aside = Math.abs(x * way[1]) + Math.abs(y * way[0]);
    const cost = ahead + 2 * aside;
    if (ahead > 1e-4 && aside <= 2 * ahead && (!best || cost < best.cost)) best = { cost, point };
  }
  if (best) points.get(best.point.id).focus();
}

function open(id) {
  const { name } = current.data.find((point) => point.id === id);
  $("view-name").textContent = name;
  $("large").alt = name;
  $("large").removeAttribute("src");
  pictureUrl(state.index, id, 1024).then((url) => ($("large").src = url), () => {});
  $("like").href = "search" + address({ index: state.index, like: id });
  $("view-note").replaceChildren();
  state.instructions.forEach(async (instruction) => {
    const line = element("li", {}, `${named(instruction)}: …`);
    $("view-note").append(line);
    try {
      const answer = await request(instruction);
      const point = answer.data.find((one) => one.id === id);
      line.textContent = `${named(instruction)}: nearest to ${answer.texts[point.text]} (${point.score.toFixed(2)})`;
    } catch {
      line.remove();
    }
  });
  $("view").showModal();
}

// -- start ------------------------------------------------------------------------------------

function again() {
  current = null;
  for (const button of points.values()) button.remove();
  points.clear();
  show();
}

async function load() {
  forgive();
  try {
    await listIndexes($("index"), state.index);
    state.index = $("index").value;
    show();
  } catch (error) {
    complain(error.place ? error : { message: error.message, place: "index" });
  }
}

function start() {
  $("texts").value = state.texts.join("\n");
  $("sample").value = String(state.sample);
  $("layout").value = state.layout;
  drawInstructions();
  onKey(load);
  $("form").addEventListener("submit", (event) => event.preventDefault());
  $("texts").addEventListener("input", (event) => {
    state.texts = event.target.value.split("\n");
    clearTimeout(timer);
    timer = setTimeout(show, 500);
  });
  for (const name of ["sample", "layout"]) {
    $(name).addEventListener("change", (event) => {
      state[name] = name === "sample" ? Number(event.target.value) : event.target.value;
      show();
    });
  }
  $("index").addEventListener("change", (event) => {
    state.index = event.target.value;
    again();
  });
  $("add").addEventListener("click", add);
  $("new").addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      add();
    }
  });
  $("play").addEventListener("click", play);
  $("stage").addEventListener("keydown", walk);
  $("close").addEventListener("click", () => $("view").close());
  new ResizeObserver(() => place(true)).observe($("stage"));
  load();
}

start();
