"use strict";

const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const pen = canvas.getContext("2d");
const words = {
  opening: "opening the source", running: "live", lost: "source lost, trying again",
  stalled: "source hangs, trying again", ended: "ended", failed: "failed",
};
let socket = null;
let values = null;
let frozen = false;
let pause = 500;
let drawn = false;
let waiting = false;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const percent = (share) => (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
const ms = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(1));
const kib = (bytes) => (bytes < 1048576 ? (bytes / 1024).toFixed(0) + " KiB" : (bytes / 1048576).toFixed(1) + " MiB");

function setState(state, text) {
  $("state").className = "state " + state;
  $("state").textContent = frozen && state === "running" ? "frozen" : words[state] || state;
  const quiet = state === "running" || state === "ended" || (state === "opening" && drawn);
  $("notice").hidden = quiet;
  $("notice").textContent = quiet ? "" : text || words[state] || state;
}

function showAnswers(models) {
  const place = $("answers");
  while (place.children.length > models.length) place.lastChild.remove();
  models.forEach((model, index) => {
    let card = place.children[index];
    if (!card) {
      card = element("article", undefined, index ? "model b" : "model");
      const title = element("h2");
      const name = element("span");
      name.append(element("i"), element("span"));
      title.append(name, element("small"));
      card.append(title);
      place.append(card);
    }
    const title = card.firstChild;
    title.firstChild.lastChild.textContent = model.name;
    title.lastChild.textContent = model.target;
    while (card.children.length - 1 > model.top.length) card.lastChild.remove();
    model.top.forEach((entry, rank) => {
      let bar = card.children[rank + 1];
      if (!bar) {
        bar = element("div", undefined, "bar");
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        rect.setAttribute("height", "6");
        svg.append(rect);
        bar.append(element("span"), element("span"), svg);
        card.append(bar);
      }
      bar.children[0].textContent = entry.label;
      bar.children[1].textContent = percent(entry.share);
      bar.querySelector("rect").setAttribute("width", (100 * entry.share).toFixed(1) + "%");
    });
  });
}

function showTiles(data) {
  const system = data.system;
  const tiles = [
    ["Frames a second", data.fps.toFixed(1), ""],
    ["Latency", ms(data.ms.latency), "ms"],
    ["Capture", ms(data.ms.capture), "ms"],
    ["Preprocess", ms(data.ms.preprocess), "ms"],
    ["Inference", ms(data.ms.inference), "ms"],
    ["Post", ms(data.ms.post), "ms"],
    ["CPU", system.cpu_percent.toFixed(0), "%"],
    ["Memory", system.memory_mib.toFixed(0), "MiB"],
    ["Temperature", system.temperature_c === null ? "–" : system.temperature_c.toFixed(0), system.temperature_c === null ? "" : "°C"],
    ["Frames", data.frames.toLocaleString("en"), ""],
    ["Passed over", data.counts.dropped.toLocaleString("en"), ""],
    ["Damaged", data.counts.damaged.toLocaleString("en"), ""],
  ];
  const list = $("tiles");
  tiles.forEach(([name, value, unit], index) => {
    let tile = list.children[index];
    if (!tile) {
      tile = element("div");
      const number = element("dd");
      number.append(document.createTextNode(""), element("small"));
      tile.append(element("dt", name), number);
      list.append(tile);
    }
    tile.lastChild.firstChild.data = value;
    tile.lastChild.lastChild.textContent = unit;
  });
}

function showComparison(data) {
  const rows = data.compare;
  $("compare").hidden = rows.length < 2;
  if (rows.length < 2) return;
  $("compare").classList.toggle("unknown", data.known === 0);
  const body = $("rows");
  const least = (key) => Math.min(...rows.map((row) => (row[key] === null ? Infinity : row[key])));
  const best = { inference_ms: least("inference_ms"), bytes: least("bytes"), private_bytes: least("private_bytes") };
  rows.forEach((row, index) => {
    let line = body.children[index];
    if (!line) {
      line = element("tr");
      for (let i = 0; i < 6; i += 1) line.append(element("td"));
      line.children[0].append(document.createTextNode(""), element("small"));
      line.children[5].className = "known";
      body.append(line);
    }
    const cells = line.children;
    cells[0].firstChild.data = row.name + " ";
    cells[0].lastChild.textContent = row.target;
    cells[1].textContent = ms(row.inference_ms) + " ms";
    cells[2].textContent = kib(row.bytes);
    cells[3].textContent = row.private_bytes === null ? "–" : kib(row.private_bytes);
    cells[4].textContent = index ? percent(row.agreement) : "–";
    cells[5].textContent = row.top1 === null ? "–" : percent(row.top1);
    cells[1].classList.toggle("less", row.inference_ms === best.inference_ms);
    cells[2].classList.toggle("less", row.bytes === best.bytes);
    cells[3].classList.toggle("less", row.private_bytes === best.private_bytes);
  });
  $("note").textContent =
    `${data.frames.toLocaleString("en")} frames` +
    (data.known ? `, the class of ${data.known.toLocaleString("en")} of them known` : "") +
    ". Inference is the median of the last frames; memory is what loading and one inference added.";
}

function showValues(data) {
  values = data;
  setState(data.state.state, data.state.text);
  $("source").textContent = data.state.state === "running" ? data.state.text : "";
  showTiles(data);
  showComparison(data);
  if (!data.models) return;
  showAnswers(data.models);
  const top = data.models[0].top[0];
  $("best").textContent = top ? top.label + "  " + percent(top.share) : "";
  $("truth").textContent = [data.truth && "is: " + data.truth, data.name].filter(Boolean).join(" · ");
}

async function showPicture(blob) {
  const bitmap = await createImageBitmap(blob);
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.classList.toggle("small", bitmap.width < 200);
  }
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  drawn = true;
  $("snapshot").disabled = false;
  document.documentElement.dataset.frame = String(values.frame);
}

function ask() {
  if (waiting || frozen || !socket || socket.readyState !== WebSocket.OPEN) return;
  waiting = true;
  socket.send("next");
}

function connect() {
  socket = new WebSocket((location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/live");
  socket.binaryType = "blob";
  let pending = null;
  waiting = false;
  socket.onopen = () => { pause = 500; ask(); };
  socket.onmessage = async (event) => {
    if (typeof event.data === "string") {
      pending = JSON.parse(event.data);
      if (pending.picture) return;
      waiting = false;
      if (!frozen) showValues(pending);
      ask();
      return;
    }
    // The next one is on its way while this one is drawn.
    const now = pending;
    waiting = false;
    ask();
    if (frozen) return;
    showValues(now);
    try { await showPicture(event.data); } catch (error) { /* A picture that this browser cannot decode. */ }
  };
  socket.onclose = (event) => {
    setState("lost", event.code === 1013 ? "Too many browsers look already." : "The demo does not answer. Is it still running?");
    $("state").textContent = "not connected";
    setTimeout(connect, pause);
    pause = Math.min(2 * pause, 5000);
  };
}

$("freeze").onclick = () => {
  frozen = !frozen;
  $("freeze").setAttribute("aria-pressed", String(frozen));
  $("freeze").textContent = frozen ? "Resume" : "Freeze";
  if (values) setState(values.state.state, values.state.text);
  ask();
};

$("snapshot").onclick = () => {
  // What is seen, with the answers below it.
  const scale = canvas.width < 320 ? Math.ceil(320 / canvas.width) : 1;
  const size = Math.max(Math.round((canvas.width * scale) / 36), 13);
  const lines = values.models.map((model) =>
    model.name + " (" + model.target + "): " +
    model.top.slice(0, 3).map((entry) => entry.label + " " + percent(entry.share)).join(", "));
  const sheet = document.createElement("canvas");
  sheet.width = canvas.width * scale;
  sheet.height = canvas.height * scale + Math.round(size * (1.5 * lines.length + 0.9));
  const ink = sheet.getContext("2d");
  ink.fillStyle = "#0d1014";
  ink.fillRect(0, 0, sheet.width, sheet.height);
  ink.imageSmoothingEnabled = scale === 1;
  ink.drawImage(canvas, 0, 0, canvas.width * scale, canvas.height * scale);
  ink.fillStyle = "#e8ecf1";
  ink.font = size + "px sans-serif";
  lines.forEach((line, index) => ink.fillText(line, size * 0.6, canvas.height * scale + size * 1.5 * (index + 1), sheet.width - 1.2 * size));
  sheet.toBlob((blob) => {
    const link = element("a");
    link.href = URL.createObjectURL(blob);
    link.download = "csr-demo-" + values.frame + ".png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
};

connect();
