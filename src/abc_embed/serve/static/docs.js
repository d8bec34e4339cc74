// The paths of openapi.json, one card each; nothing is loaded from elsewhere.

const schema = await (await fetch("openapi.json")).json();
const cards = Object.entries(schema.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => {
    const card = document.createElement("article");
    const title = document.createElement("h2");
    title.textContent = `${method.toUpperCase()} ${path}`;
    const summary = document.createElement("p");
    summary.textContent = operation.summary ?? "";
    const example = document.createElement("pre");
    example.textContent = JSON.stringify(
      operation.requestBody?.content["application/json"].example ?? {}, null, 2);
    card.append(title, summary);
    if (operation.requestBody) card.append(example);
    return card;
  }),
);
document.getElementById("paths").replaceChildren(...cards);
