// What the pages share: elements, requests with a key, state in the address, pictures.

export const $ = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// -- state in the address ---------------------------------------------------------------------

export function readState() {
  try {
    const value = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
    return value && typeof value === "object" ? value : {};
  } catch {
    return {};
  }
}

export const address = (state) => "#" + encodeURIComponent(JSON.stringify(state));

// -- requests ---------------------------------------------------------------------------------

let whenKeyChanges = () => {};

export function onKey(callback) {
  whenKeyChanges = callback;
  $("key").addEventListener("change", (event) => {
    sessionStorage.setItem("key", event.target.value);
    whenKeyChanges();
  });
}

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: "Bearer " + key } : {};
}

export class Refusal extends Error {
  constructor(message, place) {
    super(message);
    this.place = place ?? ""; // the field of the request that is wrong
  }
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer; is it still running?");
  }
  if (answer.status === 401) {
    document.querySelectorAll(".key").forEach((part) => (part.hidden = false));
  }
  if (answer.ok) return answer;
  const value = await answer.json().catch(() => null);
  throw new Refusal(value?.error?.message ?? "The server does not answer.", value?.error?.param);
}

export async function get(path) {
  return (await ask(path, {})).json();
}

export async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
}

// -- pictures ---------------------------------------------------------------------------------

const kept = new Map();
const MOST_KEPT = 2000;
let running = 0;
const waiting = [];

// The address of a picture of an index, for an <img>. With a key it is fetched, few at a time.
export function pictureUrl(index, id, side) {
  const path = `v1/indexes/${encodeURIComponent(index)}/images/${id}?side=${side}`;
  if (!sessionStorage.getItem("key")) return Promise.resolve(path);
  if (!kept.has(path)) {
    const loaded = turn(async () => URL.createObjectURL(await (await ask(path, {})).blob()));
    loaded.catch(() => kept.delete(path));
    kept.set(path, loaded);
    if (kept.size > MOST_KEPT) {
      const [oldest, url] = kept.entries().next().value;
      kept.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
  return kept.get(path);
}

async function turn(work) {
  if (running >= 6) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    return await work();
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

export const asDataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

// A place to drop, paste or choose a picture; `take` gets the file, `refuse` a sentence.
export function acceptPictures(drop, file, take, refuse) {
  const check = (blob) => {
    if (blob?.type.startsWith("image/")) take(blob);
    else refuse("That is no picture; choose a PNG, JPEG or WebP file.");
  };
  file.addEventListener("change", (event) => check(event.target.files[0]));
  drop.addEventListener("click", () => file.click());
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      file.click();
    }
  });
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", over);
      if (name === "drop") check(event.dataTransfer.files[0]);
    });
  }
  addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files][0];
    if (pasted) check(pasted);
  });
}

// -- indexes ----------------------------------------------------------------------------------

// Fills a <select> with the indexes of the server; returns them.
export async function listIndexes(select, chosen) {
  const { data } = await get("v1/indexes");
  select.replaceChildren(
    ...data.map((one) =>
      element("option", { value: one.id }, `${one.id} (${one.images.toLocaleString("en")} images)`),
    ),
  );
  if (data.some((one) => one.id === chosen)) select.value = chosen;
  if (!data.length) {
    throw new Refusal("This server has no index. Start it with: abc-embed serve --index INDEX");
  }
  return data;
}
