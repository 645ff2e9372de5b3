const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const nameOf = (ref) => ref.split("/").pop();
const code = (text) => el("code", {}, text);
const prose = (text) => text.split("`").map((part, index) => (index % 2 ? code(part) : part));

function block(text, label) {
  const button = el("button", { class: "button plain copy", type: "button", onclick: () => copy(text, button) }, "Copy");
  return el("div", { class: "block" }, el("div", {}, label, button), el("pre", { tabindex: "0" }, text));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    $("said").textContent = "Copied";
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// A type in words; names of schemas become links.
function typeOf(schema) {
  if (schema.$ref) return [el("a", { href: `#schema-${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if (schema.anyOf) return schema.anyOf.flatMap((one, index) => (index ? [" or ", ...typeOf(one)] : typeOf(one)));
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items || {})];
  if (schema.enum) return [schema.enum.join(" · ")];
  return [schema.format ? `${schema.type}, ${schema.format}` : schema.type || "anything"];
}

function limits(schema) {
  const parts = [];
  if (schema.minimum !== undefined || schema.maximum !== undefined) parts.push(`${schema.minimum ?? "…"} to ${schema.maximum === 2 ** 63 ? "2^63-1" : schema.maximum ?? "…"}`);
  if (schema.minItems !== undefined || schema.maxItems !== undefined) parts.push(`${schema.minItems ?? 0} to ${schema.maxItems ?? "…"} entries`);
  if (schema.maxLength !== undefined) parts.push(`at most ${schema.maxLength} characters`);
  if (schema.default !== undefined && schema.default !== null) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join("; ");
}

function described(schema, text) {
  return [...typeOf(schema), ...[limits(schema), text ?? schema.description].filter(Boolean).map((part) => el("div", { class: "muted" }, ...prose(part)))];
}

function row(name, required, cells) {
  return el("tr", {}, el("td", {}, code(name), required ? el("span", { class: "need", title: "required" }, " required") : ""), el("td", {}, ...cells));
}

function fields(schema) {
  const required = schema.required || [];
  const rows = Object.entries(schema.properties || {}).map(([name, property]) => row(name, required.includes(name), described(property)));
  return el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Field"), el("th", { scope: "col" }, "Type"))), el("tbody", {}, ...rows));
}

function curl(method, path, operation) {
  const filled = (operation.parameters || []).filter((one) => one.in === "path").reduce((text, one) => text.replace(`{${one.name}}`, one.example), path);
  const streamed = Object.values(operation.responses).some((one) => one.content?.["text/event-stream"]);
  const parts = [`curl ${streamed ? "-N " : ""}${method === "get" ? "" : `-X ${method.toUpperCase()} `}${location.origin}${filled}`];
  for (const one of operation.parameters || []) if (one.in === "header" && one.required) parts.push(`-H '${one.name}: ${one.example}'`);
  const content = operation.requestBody?.content["application/json"];
  if (content) parts.push('-H "Content-Type: application/json"', `-d '${pretty(content.example)}'`);
  return parts.join(" \\\n  ");
}

function parameters(operation) {
  if (!operation.parameters) return [];
  const rows = operation.parameters.map((one) => row(one.name, one.required, [`${one.in}, `, ...described(one.schema, one.description)]));
  return [el("h3", {}, "Parameters"), el("table", {}, el("tbody", {}, ...rows))];
}

function body(operation, document) {
  const schema = operation.requestBody?.content["application/json"].schema;
  if (!schema) return [];
  return [el("h3", {}, "Body, ", ...typeOf(schema)), fields(document.components.schemas[nameOf(schema.$ref)])];
}

function answer(status, response) {
  const [[type, content] = []] = Object.entries(response.content || {});
  const shown = content?.examples ? Object.entries(content.examples).flatMap(([name, example]) => [block(pretty(example.value), name)]) : [];
  if (content?.example) shown.push(block(pretty(content.example), type === "application/json" ? "JSON" : type));
  const headers = Object.entries(response.headers || {}).map(([name, header]) => row(name, false, prose(header.description)));
  const kind = status < "400" ? "ok" : status < "500" ? "warn" : "bad";
  return el("details", {},
    el("summary", {}, el("span", { class: `pill ${kind}` }, status), response.description),
    el("div", {},
      ...(content ? [el("p", { class: "small muted" }, `${type}: `, ...typeOf(content.schema))] : []),
      ...(headers.length ? [el("h3", {}, "Headers"), el("table", {}, el("tbody", {}, ...headers))] : []),
      ...(shown.length ? [el("h3", {}, "Example"), ...shown] : [])));
}

function operationCard(method, path, operation, document) {
  const answers = Object.entries(operation.responses).map(([status, response]) => answer(status, response));
  answers[0].open = true;
  return el("section", { class: "operation card", id: operation.operationId, "aria-labelledby": `${operation.operationId}-title` },
    el("h2", { id: `${operation.operationId}-title` }, operation.summary),
    el("div", { class: "signature" }, el("span", { class: `method ${method}` }, method.toUpperCase()), code(path)),
    el("p", {}, ...prose(operation.description)),
    el("div", { class: "pair" },
      el("div", {}, el("h3", {}, "Try it"), block(curl(method, path, operation), "curl"), ...parameters(operation), ...body(operation, document)),
      el("div", {}, el("h3", {}, "Answers"), ...answers)));
}

function draw(document) {
  $("version").textContent = document.info.version;
  $("about").textContent = `${document.info.summary} ${document.info.description}`;
  let tag = "";
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (operation.tags[0] !== tag) $("contents").append(el("p", {}, (tag = operation.tags[0])));
      $("contents").append(el("a", { href: `#${operation.operationId}` }, operation.summary));
      $("operations").append(operationCard(method, path, operation, document));
    }
  }
  $("schemas-title").hidden = false;
  for (const [name, schema] of Object.entries(document.components.schemas)) {
    $("schemas").append(el("section", { class: "schema card", id: `schema-${name}` }, el("h3", {}, name), el("p", { class: "muted small" }, ...prose(schema.description || "")), fields(schema)));
  }
  if (location.hash) window.document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

fetch("/schema/openapi.json").then((response) => response.json()).then(draw).catch(() => {
  $("trouble").textContent = "The OpenAPI document cannot be loaded. Reload the page in a moment.";
  $("trouble").hidden = false;
});
