// Ask a photo: a picture, instructions and candidate texts -> bars, and evidence over the picture.
// The state is in the address (a picture of the user's own in the session), so nothing is lost on reload.

import { $, acceptPictures, address, asDataUrl, element, onKey, post, readState } from "./common.js";

const START = {
  instructions: ["what is on the left?", "what is on the right?"],
  texts: ["a dog", "a cat", "a bicycle", "a tree"],
  example: null,
};
const state = { ...START, ...readState() };
let image = null; // a data: URL
let asked = 0; // number of the newest question; older answers are dropped

function remember() {
  history.replaceState(null, "", address(state));
}

function drawInstructions() {
  const rows = state.instructions.map((words, index) => {
    const input = element("input", {
      value: words,
      "aria-label": `Instruction ${index + 1}`,
      oninput: (event) => {
        state.instructions[index] = event.target.value;
        soon();
      },
    });
    const remove = element(
      "button",
      {
        type: "button",
        "aria-label": `Take out instruction ${index + 1}`,
        onclick: () => {
          state.instructions.splice(index, 1);
          drawInstructions();
          soon();
        },
      },
      "×",
    );
    return element("div", { class: "row" }, input, remove);
  });
  $("instructions").replaceChildren(...rows);
}

let timer;
function soon() {
  clearTimeout(timer);
  timer = setTimeout(ask, 250);
}

async function ask() {
  remember();
  const instructions = state.instructions.map((words) => words.trim()).filter(Boolean);
  const texts = state.texts.map((words) => words.trim()).filter(Boolean);
  const number = ++asked;
  $("error").textContent = "";
  if (!image) return;
  if (!texts.length) {
    $("error").textContent = "Write at least one candidate text.";
    return;
  }
  const body = { image, texts };
  if (instructions.length) body.instructions = instructions;
  try {
    const answer = await post("v1/rank", body);
    if (number === asked) draw(answer.data);
  } catch (error) {
    if (number === asked) $("error").textContent = error.message;
  }
}

function draw(rankings) {
  const highest = Math.max(0.01, ...rankings.flatMap((one) => one.ranking.map((hit) => hit.score)));
  const cards = rankings.map(({ instruction, ranking }) => {
    const bars = ranking.map((hit) => {
      const show = () => evidence(instruction, hit.text);
      const meter = element("meter", { min: 0, max: highest, value: Math.max(0, hit.score) });
      meter.setAttribute("aria-label", `cosine of ${hit.text}`);
      return element(
        "li",
        {},
        element(
          "button",
          { type: "button", onpointerenter: show, onfocus: show, onpointerleave: hide, onblur: hide },
          element("span", {}, hit.text),
          element("span", { class: "score" }, hit.score.toFixed(3)),
          meter,
        ),
      );
    });
    return element("article", {}, element("h2", {}, instruction ?? "The picture alone"), element("ol", {}, ...bars));
  });
  $("results").replaceChildren(...cards);
}

const maps = new Map();
let pointed = null;

async function evidence(instruction, text) {
  const key = JSON.stringify([image.length, image.slice(-64), instruction, text]);
  pointed = key;
  if (!maps.has(key)) {
    const body = { image, text, png: true };
    if (instruction) body.instruction = instruction;
    maps.set(key, post("v1/explain", body));
  }
  try {
    const answer = await maps.get(key);
    if (pointed !== key) return;
    $("heat").src = answer.png;
    $("heat").hidden = false;
    $("evidence").textContent = `Red: what spoke for “${text}”. Blue: what spoke against it.`;
  } catch (error) {
    maps.delete(key);
    if (pointed === key) $("evidence").textContent = error.message;
  }
}

function hide() {
  pointed = null;
  $("heat").hidden = true;
  $("evidence").textContent = "";
}

function show(url) {
  image = url;
  hide();
  $("photo").src = url;
  $("hint").textContent = "Drop, paste or choose another picture";
  ask();
}

async function take(blob) {
  state.example = null;
  const url = await asDataUrl(blob);
  try {
    sessionStorage.setItem("picture", url);
  } catch {
    sessionStorage.removeItem("picture"); // too large to be kept over a reload
  }
  show(url);
}

async function choose(name) {
  state.example = name;
  const answer = await fetch("examples/" + encodeURIComponent(name));
  show(await asDataUrl(await answer.blob()));
}

async function start() {
  $("texts").value = state.texts.join("\n");
  $("texts").addEventListener("input", (event) => {
    state.texts = event.target.value.split("\n");
    soon();
  });
  $("add").addEventListener("click", () => {
    state.instructions.push("");
    drawInstructions();
    $("instructions").lastElementChild.firstElementChild.focus();
  });
  $("form").addEventListener("submit", (event) => event.preventDefault());
  onKey(ask);
  acceptPictures($("drop"), $("file"), take, (sentence) => ($("error").textContent = sentence));
  drawInstructions();
  const examples = await (await fetch("examples")).json();
  $("examples").replaceChildren(
    ...examples.map((name) =>
      element(
        "button",
        { type: "button", "aria-label": `Example ${name}`, onclick: () => choose(name) },
        element("img", { src: "examples/" + encodeURIComponent(name), alt: "" }),
      ),
    ),
  );
  const kept = sessionStorage.getItem("picture");
  if (!state.example && kept) show(kept);
  else if (examples.length) choose(state.example ?? examples[0]);
}

start();
