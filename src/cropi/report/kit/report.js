// Draws the page's charts: figures come from the JSON block, colours from the style sheet, so that
// light and dark mode need no second copy. Nothing is loaded from anywhere.
"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const chosen = {};
  const drawn = new Set();

  const style = () => getComputedStyle(document.documentElement);
  const named = (name) => style().getPropertyValue(name).trim();
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  function colour(token) {
    const ramp = /^ramp\(([\d.]+)\)$/.exec(token);
    if (ramp) {
      const [from, to] = [channels(named("--ramp0")), channels(named("--ramp1"))];
      return `rgb(${from.map((v, i) => Math.round(v + (to[i] - v) * ramp[1])).join(",")})`;
    }
    const match = /^var\((--[\w-]+)\)(?:@([\d.]+))?$/.exec(token);
    if (!match) return token;
    return match[2] ? `rgba(${channels(named(match[1])).join(",")},${match[2]})` : named(match[1]);
  }

  function resolved(value) {
    if (typeof value === "string") return colour(value);
    if (Array.isArray(value)) return value.map(resolved);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v)]));
  }

  function merged(base, over) {
    const out = { ...base };
    for (const [key, value] of Object.entries(over)) {
      const nested = value && typeof value === "object" && !Array.isArray(value) && out[key];
      out[key] = nested ? merged(out[key], value) : value;
    }
    return out;
  }

  function ground(narrow) {
    const axis = {
      gridcolor: named("--grid"), linecolor: named("--line"), zerolinecolor: named("--grid"),
      title: { font: { size: 13, color: named("--muted") } }, tickfont: { color: named("--muted") },
      automargin: true, fixedrange: true,
    };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: named("--text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, autosize: true,
      margin: { l: 48, r: 12, t: 10, b: 40 }, xaxis: axis, yaxis: axis,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: narrow ? 11 : 12.5 } },
      hoverlabel: { bgcolor: named("--card"), bordercolor: named("--line"), font: { color: named("--text") } },
    };
  }

  function figureOf(spec) {
    const key = spec.controls.map((c) => chosen[c]).join("|");
    return spec.variants[key];
  }

  function draw(place) {
    const spec = specs[place.id];
    const figure = figureOf(spec);
    if (!figure) {
      place.textContent = "Not in this run.";
      return;
    }
    const layout = merged(ground(place.clientWidth < 480), resolved(figure.layout));
    for (const axis of ["xaxis", "yaxis"]) {
      const title = layout[axis].title;
      if (typeof title === "string") layout[axis].title = { text: title, font: { size: 13, color: named("--muted") } };
    }
    layout.height = figure.layout.height || spec.height;
    place.style.minHeight = `${layout.height}px`;
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    Plotly.react(place, resolved(figure.data), layout, { displayModeBar: false, responsive: true });
    drawn.add(place.id);
  }

  // Charts behind a closed click are drawn when it opens: they have no size before.
  const visible = (place) => !place.closest("details:not([open])");
  const drawAll = () => document.querySelectorAll(".chart").forEach((p) => visible(p) && draw(p));

  function choose(control, value) {
    chosen[control] = value;
    document.querySelectorAll(`.switch[data-control="${control}"] button`).forEach((b) => {
      b.setAttribute("aria-pressed", String(b.dataset.value === value));
    });
    for (const [id, spec] of Object.entries(specs)) {
      if (drawn.has(id) && spec.controls.includes(control)) draw(document.getElementById(id));
    }
  }

  function listen() {
    document.querySelectorAll(".switch").forEach((group) => {
      const buttons = group.querySelectorAll("button");
      chosen[group.dataset.control] = buttons[0]?.dataset.value;
      buttons.forEach((b) => b.addEventListener("click", () => choose(group.dataset.control, b.dataset.value)));
    });
    document.querySelectorAll("select[data-control]").forEach((list) => {
      chosen[list.dataset.control] = list.value;
      list.addEventListener("change", () => choose(list.dataset.control, list.value));
    });
    document.querySelectorAll("details").forEach((d) => {
      d.addEventListener("toggle", () => d.open && d.querySelectorAll(".chart").forEach((p) => drawn.has(p.id) || draw(p)));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }

  async function unpackPlotly() {
    const packed = document.getElementById("plotly").textContent;
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  listen();
  unpackPlotly().then(drawAll).catch((error) => {
    document.querySelectorAll(".chart").forEach((p) => {
      p.textContent = `This browser cannot draw the charts (${error.message}); the tables hold the numbers.`;
    });
  });
})();
