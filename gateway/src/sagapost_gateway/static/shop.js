const TOKENS = {
  pm_card_ok: ["Accepted", "The card is charged, the receipt follows."],
  pm_card_declined: ["Declined", "The bank says no: the order is cancelled and nothing is charged."],
  pm_card_insufficient_funds: ["No funds", "Declined for want of money: cancelled, nothing charged."],
  pm_flaky: ["Flaky", "The provider fails twice and then charges once."],
  pm_slow: ["Slow", "The provider takes six seconds."],
  pm_hang: ["Hangs", "The provider never answers; the outcome has to be found out."],
  pm_late: ["Late", "The provider charges, but answers after our deadline."],
  pm_error_after_charge: ["Error after charge", "The provider charges and then answers 500."],
  pm_poison: ["Garbled", "The provider's answer cannot be read."],
};
const ICONS = ["laptop stand:stand", "laptop", "mouse", "keyboard", "dock", "monitor", "headphones", "webcam", "lamp", "ssd", "cable", "sticker"];
const STEPS = { order: "Order stored", payment: "Payment", email: "Receipt by e-mail", cancellation: "Cancellation by e-mail" };
// What a customer reads; the words of the system stay inside it.
const STATES = {
  created: "waiting for the payment", paid: "paid", notified: "complete", compensating: "being cancelled", compensated: "cancelled",
  notify_failed: "paid, receipt delayed", compensation_failed: "being cancelled",
};
const EVENTS = {
  OrderCreated: "Order placed", PaymentProcessed: "Payment received", PaymentFailed: "Payment declined", PaymentVoided: "Nothing charged",
  PaymentRefunded: "Money sent back", RefundFailed: "Refund delayed", EmailSent: "E-mail sent", EmailFailed: "E-mail delayed",
  CancelRequested: "You cancelled the order", ReceiptAsked: "Cancellation applied", Deadline: "Asked again", OperatorRetry: "Tried again by our staff",
  OperatorCompensate: "Cancelled by our staff", OperatorWaiveNotify: "Completed by our staff", OperatorMarkRefunded: "Refunded by our staff",
};
const MAILS = { receipt: "Receipt", cancellation: "Cancellation e-mail" };
const REASONS = {
  cancelled: "You cancelled this order.", declined: "The payment was declined.", expired: "The payment did not arrive in time.",
  timeout: "The payment did not arrive in time.", provider_reversal: "The payment was taken back.", receipt_failed: "Your receipt could not be delivered.",
};
const RESULTS = { pending: "not yet", running: "under way", failed: "did not go through", refunded: "sent back to you", skipped: "not sent" };
const POLL_MS = 300, PARKED = ["notify_failed", "compensation_failed"], CANCELLABLE = ["created", "paid", "notified", "notify_failed"];

const cart = new Map(JSON.parse(sessionStorage.getItem("cart") || "[]"));
let catalogue = new Map();
let key = "";
let following = 0;
let started = 0;
let watched = null;

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function iconOf(product) {
  const found = ICONS.find((entry) => product.name.toLowerCase().includes(entry.split(":")[0]));
  return found ? found.split(":").pop() : "box";
}

// Money is a decimal string on the wire; sums are made in whole cents so that no float ever holds one.
const cents = (text) => BigInt(text.replace(".", ""));
const decimal = (amount) => `${amount / 100n}.${String(amount % 100n).padStart(2, "0")}`;
const shown = (text, currency = "USD") => new Intl.NumberFormat("en-US", { style: "currency", currency }).format(text);
const lines = () => [...cart].filter(([id]) => catalogue.has(id)).map(([id, quantity]) => ({ product: catalogue.get(id), quantity }));
const total = () => decimal(lines().reduce((sum, line) => sum + cents(line.product.price) * BigInt(line.quantity), 0n));
const span = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const words = (text) => text.replaceAll("_", " ");
const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false });

function newKey() {
  // randomUUID only exists on https and localhost
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function show(view) {
  document.body.dataset.view = view;
  for (const name of ["cart", "checkout", "journey"]) $(`${name}-view`).hidden = name !== view;
  $("bar").hidden = view !== "cart" || cart.size === 0;
  $("side").scrollTop = 0;
}

function place(pointer) {
  const index = /^\/items\/(\d+)/.exec(pointer);
  if (index) return lines()[Number(index[1])]?.product.name || "Cart";
  return { "/user_email": "E-mail", "/payment_method": "Payment method" }[pointer] || pointer || "Request";
}

// What a customer may read of a fault of this field; the words of the API are for programs.
const FIELDS = { "/user_email": ["email", "Please enter an e-mail address like name@example.com."] };

function setFault(id, text) {
  const field = $(id), fault = $(`${id}-fault`);
  if (text) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
  fault.textContent = text;
  fault.hidden = !text;
}

// Shows the faults that belong to a field beside it, and puts the cursor there; false when there is another one.
function showFaults(problem) {
  const faults = (problem.errors || []).map((fault) => FIELDS[fault.pointer]);
  if (!faults.length || faults.includes(undefined)) return false;
  for (const [id, text] of faults) setFault(id, text);
  $(faults[0][0]).focus();
  return true;
}

function working(is) {
  $("pay").disabled = is;
  $("pay").setAttribute("aria-busy", String(is));
  $("checkout-view").setAttribute("aria-busy", String(is));
  if (is) [$("pay").textContent, $("said").textContent] = ["Placing your order…", "Placing your order."];
}

function tell(box, problem) {
  const faults = (problem.errors || []).map((fault) => el("li", {}, `${place(fault.pointer)}: ${words(fault.code)}`));
  const trace = problem.trace_id ? [el("p", { class: "mono muted" }, `trace ${problem.trace_id}`)] : [];
  const title = problem.type === "/problems/validation-failed" ? "Something in the order is not right" : problem.title;
  box.replaceChildren(el("strong", {}, title), faults.length ? "" : problem.detail || "", el("ul", {}, ...faults), ...trace);
  box.hidden = false;
}

async function problemOf(response) {
  const type = response.headers.get("Content-Type") || "";
  if (type.startsWith("application/problem+json")) return response.json();
  return { title: `The answer was ${response.status}`, detail: "It says nothing more." };
}

const unreachable = { title: "No answer", detail: "The connection broke. Trying again sends the same request with the same key." };

function placeholder() {
  return el("li", { class: "product card waiting", "aria-hidden": "true" },
    el("div", { class: "tile" }), el("div", { class: "text" }, el("span"), el("span")), el("div", { class: "buy" }, el("span")));
}

function noProducts(problem) {
  const box = $("catalogue-problem");
  tell(box, problem);
  box.append(el("button", { class: "button plain", type: "button", onclick: loadProducts }, "Try again"));
  if (!catalogue.size) $("products").replaceChildren();
  $("products").setAttribute("aria-busy", "false");
}

async function loadProducts() {
  const box = $("catalogue-problem");
  $("products").setAttribute("aria-busy", "true");
  if (!catalogue.size) $("products").replaceChildren(...Array.from({ length: 6 }, placeholder));
  try {
    const response = await fetch("/api/products");
    if (!response.ok) return noProducts(await problemOf(response));
    catalogue = new Map((await response.json()).map((product) => [product.id, product]));
    box.hidden = true;
  } catch {
    return noProducts({ title: "The catalogue cannot be loaded", detail: "The connection broke." });
  }
  $("products").setAttribute("aria-busy", "false");
  $("products").replaceChildren(...[...catalogue.values()].map(card));
  drawCart();
}

function card(product) {
  return el("li", { class: `product card tint-${product.id % 4}` },
    el("div", { class: "tile" }, icon(iconOf(product))),
    el("div", { class: "text" }, el("h3", {}, product.name), el("p", {}, product.description)),
    el("div", { class: "buy" },
      el("span", { class: "price" }, shown(product.price, product.currency)),
      el("button", { class: "button plain add", type: "button", "aria-label": `Add ${product.name}`, onclick: () => change(product.id, 1) }, "Add")));
}

function change(id, by) {
  const quantity = Math.min((cart.get(id) || 0) + by, 100);
  if (quantity > 0) cart.set(id, quantity);
  else cart.delete(id);
  sessionStorage.setItem("cart", JSON.stringify([...cart]));
  if ($("cart-view").hidden) following += 1;
  show("cart");
  drawCart();
  $("said").textContent = `${catalogue.get(id).name}: ${quantity} in the cart, ${shown(total())} in total`;
}

function drawCart() {
  const drawn = lines().map(({ product, quantity }) => el("li", { class: "line" },
    el("span", {}, product.name),
    el("span", { class: "price" }, shown(decimal(cents(product.price) * BigInt(quantity)), product.currency)),
    el("span", { class: "muted small" }, `${shown(product.price, product.currency)} each`),
    el("span", { class: "stepper" },
      el("button", { type: "button", "aria-label": `One ${product.name} less`, onclick: () => change(product.id, -1) }, "−"),
      el("output", {}, String(quantity)),
      el("button", { type: "button", "aria-label": `One ${product.name} more`, onclick: () => change(product.id, 1) }, "+"))));
  $("cart-lines").replaceChildren(...drawn);
  $("cart-empty").hidden = drawn.length > 0;
  $("cart-foot").hidden = drawn.length === 0;
  $("bar").hidden = drawn.length === 0 || $("cart-view").hidden;
  for (const id of ["cart-total", "checkout-total", "bar-total"]) $(id).textContent = shown(total());
  $("checkout-count").textContent = lines().length === 1 ? "1 product" : `${lines().length} products`;
}

function openCheckout() {
  key = newKey();
  $("key").textContent = key;
  $("checkout-problem").hidden = true;
  setFault("email", "");
  $("pay").textContent = "Buy now";
  show("checkout");
  $("side").scrollIntoView({ block: "nearest" });
  $("email").focus({ preventScroll: true });
}

function order() {
  const items = lines().map(({ product, quantity }) => ({ product_id: product.id, quantity, price: product.price }));
  const body = { user_id: 1, user_email: $("email").value.trim(), items };
  const token = document.querySelector("#tokens input:checked");
  return token ? { ...body, payment_method: token.value } : body;
}

async function buy(event) {
  event.preventDefault();
  const box = $("checkout-problem");
  box.hidden = true;
  $("email").value = $("email").value.trim();
  setFault("email", "");
  if (!$("email").checkValidity()) {
    showFaults({ errors: [{ pointer: "/user_email" }] });
    return;
  }
  working(true);
  const begun = performance.now();
  try {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
    const response = await fetch("/api/checkout", { method: "POST", headers, body: JSON.stringify(order()) });
    if (response.status === 202) {
      const placed = await response.json();
      return begin(placed, performance.now() - begun, begun, response.headers.get("Idempotent-Replayed") === "true");
    }
    const problem = await problemOf(response);
    if (showFaults(problem)) {
      $("pay").textContent = "Buy now";
      return;
    }
    tell(box, problem);
    if (problem.type === "/problems/price-changed" || problem.type === "/problems/unknown-product") await loadProducts();
  } catch {
    tell(box, unreachable);
  } finally {
    working(false);
  }
  $("pay").textContent = "Try again";
  box.scrollIntoView({ block: "nearest" });
}

function begin(placed, tookMs, begun, replayed) {
  cart.clear();
  sessionStorage.setItem("cart", "[]");
  drawCart();
  history.replaceState(null, "", `#saga=${placed.saga_id}`);
  $("answer-ms").textContent = span(tookMs);
  $("answer-note").textContent = replayed ? "to answer, with the first answer again" : "until the order was safe";
  $("answer").hidden = false;
  started = begun;
  follow(placed.saga_id);
}

async function follow(sagaId) {
  const mine = ++following;
  if (watched?.saga_id !== sagaId) clearJourney();
  show("journey");
  $("side").scrollIntoView({ block: "nearest" });
  const news = listen(sagaId);
  const seen = { tag: null, saga: null, over: false };
  while (mine === following && !seen.over) {
    if (news.due(seen.saga)) await look(sagaId, seen, () => mine === following);
    if (seen.saga && !seen.saga.done) drawRunning(seen.saga);
    if (!seen.over) await news.next();
  }
  news.close();
}

// What is new is heard over the stream of events; while that is not open, it is asked for, a parked order less often.
function listen(sagaId) {
  const source = new EventSource(`/api/sagas/${sagaId}/events`);
  let fresh = true, asked = 0, wake = () => {};
  for (const name of ["transition", "end"]) source.addEventListener(name, () => { fresh = true; wake(); });
  source.addEventListener("end", () => source.close());
  return {
    due(saga) {
      const pause = saga && PARKED.includes(saga.state) ? 10 * POLL_MS : POLL_MS;
      const due = fresh || (source.readyState !== EventSource.OPEN && performance.now() - asked >= pause);
      if (due) [fresh, asked] = [false, performance.now()];
      return due;
    },
    next: () => new Promise((resolve) => { wake = resolve; setTimeout(resolve, POLL_MS); }),
    close: () => source.close(),
  };
}

async function look(sagaId, seen, wanted) {
  try {
    const response = await fetch(`/api/sagas/${sagaId}`, { headers: seen.tag ? { "If-None-Match": seen.tag } : {} });
    const answer = response.ok ? await response.json() : response.status === 304 ? null : await problemOf(response);
    if (!wanted()) return;
    if (response.ok) {
      seen.tag = response.headers.get("ETag");
      drawSaga((seen.saga = answer));
    } else if (answer) verdict("warn", `${answer.title}. ${answer.detail}`);
    seen.over = response.status === 404 || Boolean(seen.saga?.done);
  } catch {
    seen.tag = null; // so that the next answer is drawn over this
    if (wanted()) verdict("warn", "The connection is gone; still trying.");
  }
}

async function cancel() {
  const { order_id: orderId, saga_id: sagaId } = watched;
  $("cancel").disabled = true;
  $("side").focus({ preventScroll: true }); // the button may go
  try {
    const response = await fetch(`/api/orders/${orderId}/cancel`, { method: "POST" });
    if (watched?.saga_id !== sagaId || $("journey-view").hidden) return;
    if (response.ok) return follow(sagaId);
    const problem = await problemOf(response);
    verdict("warn", `${problem.title}. ${problem.detail}`);
    $("cancel").hidden = response.status === 409;
  } catch {
    verdict("warn", "The connection broke. Whether the order is cancelled is not known; trying again does no harm.");
  }
  $("cancel").disabled = false;
}

function clearJourney() {
  $("order-title").textContent = "Your order";
  $("state").textContent = "";
  $("verdict").hidden = true;
  $("cancel").hidden = true;
  for (const id of ["steps", "history", "facts"]) $(id).replaceChildren();
}

function lookOf(step) {
  if (step.state === "done" || step.state === "refunded") return "done";
  if (step.state === "failed") return "failed";
  return step.state === "running" ? "running" : "pending";
}

function stepRow(step) {
  const state = lookOf(step);
  const mark = { done: "check", failed: "cross" }[state] || step.name;
  const notes = [step.state === "done" ? null : RESULTS[step.state] || words(step.state), step.attempts > 1 ? `${step.attempts} attempts` : null, step.at ? clock(step.at) : null];
  return el("li", { class: state, "data-step": step.name },
    el("span", { class: "dot" }, icon(mark)),
    el("span", { class: "name" }, STEPS[step.name] || step.name),
    el("span", { class: "ms" }, step.ms === undefined || step.ms === null ? "" : span(step.ms)),
    el("span", { class: "note" }, notes.filter(Boolean).join(" · ")));
}

function eventRow(row) {
  const mail = row.event === "EmailSent" || row.event === "EmailFailed" ? MAILS[row.mail] : null;
  const name = mail ? `${mail} ${row.event === "EmailSent" ? "sent" : "delayed"}` : EVENTS[row.event] || row.event;
  const cells = [row.outcome === "ignored" ? `${name}, nothing changed` : name, STATES[row.to] || words(row.to), clock(row.at)];
  return el("tr", {}, ...cells.map((text) => el("td", {}, text)));
}

function money(saga) {
  if (cents(saga.captured) === 0n) return "Nothing was charged.";
  return saga.captured === saga.refunded ? `${shown(saga.refunded, saga.currency)} went back to you.` : "";
}

function drawSaga(saga) {
  watched = saga;
  const asked = saga.history.some((row) => row.event === "CancelRequested" && row.outcome === "applied");
  $("cancel").hidden = asked || !CANCELLABLE.includes(saga.state);
  $("cancel").disabled = false;
  $("order-title").textContent = `Order ${saga.order_id}`;
  $("state").textContent = asked && CANCELLABLE.includes(saga.state) ? STATES.compensating : STATES[saga.state] || words(saga.state);
  $("state").className = `pill ${{ notified: "ok", paid: "ok", created: "" }[saga.state] ?? "warn"}`;
  $("steps").replaceChildren(...saga.steps.map(stepRow));
  $("history").replaceChildren(...saga.history.map(eventRow));
  const facts = { Trace: saga.trace_id, Saga: saga.saga_id, Captured: shown(saga.captured, saga.currency), Refunded: shown(saga.refunded, saga.currency) };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "mono" }, value || "–")]));
  $("verdict").hidden = true;
  if (saga.state === "notified") verdict("ok", "Paid, and the receipt is in the mail.");
  else if (saga.state === "compensated") verdict(saga.reason === "cancelled" ? "ok" : "warn", `${REASONS[saga.reason] || "This order was cancelled."} ${money(saga)}`);
  else if (saga.state === "notify_failed") verdict("warn", "Your order is paid. We could not deliver the receipt yet; we keep trying, and our staff knows.");
  else if (saga.state === "compensation_failed") verdict("bad", "The cancellation takes longer than usual. Our staff sees to it; you need not do anything.");
  else if (saga.attention) verdict("warn", "Our staff looks at this order; you need not do anything.");
  $("said").textContent = `Order ${saga.order_id}: ${saga.steps.map((step) => `${STEPS[step.name] || step.name} ${RESULTS[step.state] || words(step.state)}`).join(", ")}`;
}

function drawRunning(saga) {
  const step = saga.steps.find((candidate) => lookOf(candidate) === "running");
  const cell = step && document.querySelector(`[data-step="${step.name}"] .ms`);
  if (!cell || step.ms) return;
  const known = saga.steps.reduce((sum, candidate) => sum + (candidate.ms || 0), 0);
  if (started) cell.textContent = span(Math.max(performance.now() - started - known, 0));
}

function verdict(kind, text) {
  $("verdict").className = `verdict ${kind}`;
  $("verdict").textContent = text;
  $("verdict").hidden = false;
}

function setUp() {
  const { env, mailbox } = document.body.dataset;
  for (const link of [$("mailbox"), $("mailbox-top")]) {
    link.hidden = !mailbox;
    if (mailbox) link.href = mailbox;
  }
  if (env === "development") {
    $("payment").hidden = false;
    $("tokens").append(...Object.entries(TOKENS).map(([token, [name, hint]]) => el("label", {},
      el("input", { type: "radio", name: "token", value: token, onchange: () => { $("token-hint").textContent = `${hint} (${token})`; } }), name)));
    document.querySelector("#tokens input").click();
  }
  $("open-checkout").addEventListener("click", openCheckout);
  $("bar-open").addEventListener("click", openCheckout);
  $("back").addEventListener("click", () => show("cart"));
  $("email").addEventListener("input", () => setFault("email", ""));
  $("checkout-view").addEventListener("submit", buy);
  $("cancel").addEventListener("click", cancel);
  $("again").addEventListener("click", () => {
    following += 1;
    history.replaceState(null, "", location.pathname);
    show("cart");
    $("title").scrollIntoView({ block: "nearest" });
  });
  const saga = new URLSearchParams(location.hash.slice(1)).get("saga");
  if (saga) {
    $("answer").hidden = true;
    follow(saga);
  }
  loadProducts();
}

setUp();
