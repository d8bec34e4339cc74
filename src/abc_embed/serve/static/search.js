// Search: words, a picture, or both -> a grid of pictures that grows as one scrolls.
// What is looked for is in the address (a picture of the user's own in the session).

import {
  $, acceptPictures, address, asDataUrl, element, listIndexes, onKey, pictureUrl, post, readState,
} from "./common.js";

const STEP = 40;
const MOST = 1000;
const START = {
  index: null, text: "", instruction: "", weight: 0.5, ask: "", budget: 10, filter: "",
  like: null, // the id of a picture of the index that is looked for
  own: false, // a picture of the user's own is looked for
};
const PLACES = ["index", "text", "image", "instruction", "weights", "filter", "ask", "budget"];
let state = { ...START, ...readState() };
let indexes = [];
let shown = []; // hits in the order of the grid
let asked = 0; // number of the newest search; older answers are dropped
let complete = true;

const own = () => (state.own ? sessionStorage.getItem("search-picture") : null);
const hasPicture = () => Boolean(state.like || own());

// -- the form ---------------------------------------------------------------------------------

function fill() {
  for (const name of ["text", "instruction", "ask", "filter"]) $(name).value = state[name];
  $("weight").value = state.weight;
  $("budget").value = state.budget;
  if (state.index) $("index").value = state.index;
  if (state.ask || state.filter) $("more").open = true;
  drawForm();
}

function drawForm() {
  const index = indexes.find((one) => one.id === state.index);
  $("with-picture").hidden = $("without").hidden = $("picture").hidden = !hasPicture();
  $("with-both").hidden = !hasPicture() || !$("text").value.trim();
  $("hint").textContent = hasPicture() ? "Another one" : "Drop, paste or choose";
  const budget = Number($("budget").value);
  const looks = index ? Math.ceil((index.images * budget) / 100).toLocaleString("en") : "…";
  $("budget").setAttribute("aria-valuetext", `${budget} percent of the pictures`);
  $("ask-hint").textContent =
    `Looks again at the ${looks} most promising pictures (${budget} %), each with this instruction.`;
  $("filter-hint").textContent = index ? `Columns: ${index.columns.join(", ")}` : "";
  if (state.like) pictureUrl(state.index, state.like, 256).then((url) => ($("picture").src = url));
  else if (own()) $("picture").src = own();
  else $("picture").removeAttribute("src");
}

function read() {
  for (const name of ["text", "instruction", "ask", "filter"]) state[name] = $(name).value.trim();
  state.index = $("index").value || state.index; // none until the indexes are listed
  state.weight = Number($("weight").value);
  state.budget = Number($("budget").value);
}

function complain(error) {
  const place = PLACES.find((name) => error.place.split(/[.[]/)[0] === name);
  const field = place === "weights" ? "weight" : place;
  if (place === "ask" || place === "filter" || place === "budget") $("more").open = true;
  const line = place ? $(`error-${place}`) : $("error");
  line.textContent = error.message;
  const control = place && place !== "image" ? $(field) : null;
  if (control?.checkVisibility()) control.setAttribute("aria-invalid", "true");
}

function forgive() {
  for (const line of document.querySelectorAll(".error")) line.textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

// Looks for something else: one more step in the browser's history.
function go(changes = {}) {
  state = { ...state, ...changes };
  if (location.hash !== address(state)) history.pushState(null, "", address(state));
  fill();
  search();
}

// -- searching --------------------------------------------------------------------------------

function body(count) {
  const made = { index: state.index, k: count, all: true };
  if (state.text) made.text = state.text;
  if (hasPicture()) {
    made.image = state.like ? { index: state.index, id: state.like } : own();
    if (state.instruction) made.instruction = state.instruction;
    if (state.text) made.weights = { text: 1 - state.weight, image: state.weight };
  }
  if (state.filter) made.filter = state.filter;
  if (state.ask) Object.assign(made, { ask: state.ask, budget: state.budget / 100 });
  return made;
}

async function search(more = false) {
  const number = ++asked;
  forgive();
  if (!more) {
    shown = [];
    $("grid").replaceChildren();
  }
  $("next").hidden = true;
  complete = true;
  if (!state.text && !hasPicture()) {
    $("status").textContent = "";
    return;
  }
  if (!indexes.length) return; // `load` looks for it as soon as there is something to look in
  $("status").textContent = state.ask ? "Looking at the pictures again …" : "Searching …";
  // An answer to `ask` is asked for once and whole: looking again costs.
  const count = state.ask ? MOST : Math.min(MOST, shown.length + STEP);
  try {
    const answer = await post("v1/search", body(count));
    if (number === asked) draw(answer, count);
  } catch (error) {
    if (number !== asked) return;
    $("status").textContent = "";
    complain(error);
  }
}

function draw(answer, count) {
  const known = new Set(shown.map((hit) => hit.id));
  for (const hit of answer.data) {
    if (known.has(hit.id)) continue;
    if (hit.is_answer === false && shown.every((one) => one.is_answer !== false)) {
      const words = shown.length ? "Below here, probably nothing fits" : "Probably nothing fits; the closest are";
      $("grid").append(element("li", { class: "line" }, words));
    }
    shown.push(hit);
    $("grid").append(card(hit, shown.length - 1));
  }
  complete = answer.data.length < count || count >= MOST;
  $("next").hidden = complete;
  $("status").textContent = summary(answer);
}

function summary(answer) {
  if (answer.kind === "ask") {
    const share = answer.share === null ? "" : `, about ${Math.round(answer.share * 100)} % of the direct answer`;
    const gone = answer.unreadable ? `; ${answer.unreadable} are gone or damaged` : "";
    return `Looked at ${answer.passes} of ${answer.images} pictures again${share}${gone}.`;
  }
  if (!shown.length) return "No picture passes the filter.";
  const answers = shown.filter((hit) => hit.is_answer !== false).length;
  if (!answers) return "Nothing matches.";
  return complete || answers < shown.length
    ? `${answers} ${answers === 1 ? "picture fits" : "pictures fit"}.`
    : `${answers} pictures so far.`;
}

function card(hit, place) {
  const picture = element("img", { alt: "", loading: "lazy", width: 256, height: 256 });
  const near = hit.is_answer === false ? ", probably does not fit" : "";
  const made = element(
    "li",
    { class: hit.is_answer === false ? "doubtful" : "" },
    element(
      "button",
      {
        type: "button",
        "aria-label": `${place + 1}: ${hit.name}, cosine ${hit.score.toFixed(2)}${near}`,
        onclick: () => open(hit),
      },
      picture,
      element("span", { class: "score" }, hit.score.toFixed(2)),
    ),
  );
  picture.addEventListener("error", () => made.classList.add("gone"));
  pictureUrl(state.index, hit.id, 256).then((url) => (picture.src = url), () => made.classList.add("gone"));
  return made;
}

// -- one picture ------------------------------------------------------------------------------

let viewed = null;

// What the evidence is for: plain words, since a sum of words has no single vector on the server.
const evidenceText = () => (state.text && !state.text.includes('"') ? state.text : "");

function open(hit) {
  viewed = hit;
  $("view-name").textContent = hit.name;
  $("large").alt = hit.name;
  $("large").removeAttribute("src");
  pictureUrl(state.index, hit.id, 1024).then((url) => ($("large").src = url), () => {});
  $("under-words").value = "";
  $("explain").hidden = !evidenceText();
  $("explain").textContent = `Evidence for “${evidenceText()}”`;
  hideEvidence();
  $("view").showModal();
}

function hideEvidence() {
  $("heat").hidden = true;
  $("explain").setAttribute("aria-pressed", "false");
  $("view-note").textContent = `cosine ${viewed.score.toFixed(3)}`;
}

async function explain() {
  if ($("explain").getAttribute("aria-pressed") === "true") return hideEvidence();
  const hit = viewed;
  $("explain").setAttribute("aria-pressed", "true");
  $("view-note").textContent = "Looking …";
  const wanted = { image: { index: state.index, id: hit.id }, text: evidenceText(), png: true };
  if (state.ask) wanted.instruction = state.ask;
  try {
    const answer = await post("v1/explain", wanted);
    if (viewed !== hit || $("explain").getAttribute("aria-pressed") !== "true") return;
    $("heat").src = answer.png;
    $("heat").hidden = false;
    $("view-note").textContent = `Red: what spoke for “${wanted.text}”. Blue: what spoke against it.`;
  } catch (error) {
    if (viewed === hit) $("view-note").textContent = error.message;
  }
}

// -- start ------------------------------------------------------------------------------------

async function take(blob) {
  const url = await asDataUrl(blob);
  try {
    sessionStorage.setItem("search-picture", url);
  } catch {
    complain({ place: "image", message: "This picture is too large to be kept here; choose a smaller one." });
    return;
  }
  read();
  go({ own: true, like: null });
}

async function load() {
  forgive();
  try {
    indexes = await listIndexes($("index"), state.index);
    state.index = $("index").value;
    drawForm(); // not `fill`: what was typed meanwhile stays
    search();
  } catch (error) {
    complain(error.place ? error : { ...error, message: error.message, place: "index" });
  }
}

function start() {
  onKey(load);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    read();
    go();
    if (!state.text && !hasPicture()) {
      complain({ place: "text", message: "Write some words, or choose a picture." });
      $("text").focus();
    }
  });
  for (const name of ["text", "budget"]) $(name).addEventListener("input", drawForm);
  $("index").addEventListener("change", () => {
    read();
    go({ like: null });
  });
  acceptPictures($("drop"), $("file"), take, (message) => complain({ place: "image", message }));
  $("without").addEventListener("click", () => {
    sessionStorage.removeItem("search-picture");
    read();
    go({ own: false, like: null, instruction: "" });
    $("drop").focus();
  });
  $("next").addEventListener("click", () => search(true));
  new IntersectionObserver(
    (seen) => seen.some((one) => one.isIntersecting) && !complete && search(true),
    { rootMargin: "600px" },
  ).observe($("next"));
  $("close").addEventListener("click", () => $("view").close());
  $("view").addEventListener("close", () => (viewed = null));
  $("explain").addEventListener("click", explain);
  $("like").addEventListener("click", () => {
    const { id } = viewed;
    $("view").close();
    go({ like: id, own: false, text: "", instruction: "", ask: "" });
  });
  $("under").addEventListener("submit", (event) => {
    event.preventDefault();
    const { id } = viewed;
    $("view").close();
    go({ like: id, own: false, text: "", ask: "", instruction: $("under-words").value.trim() });
  });
  addEventListener("popstate", () => {
    state = { ...START, ...readState() };
    state.index ??= indexes[0]?.id ?? null;
    fill();
    search();
  });
  fill();
  load();
}

start();
