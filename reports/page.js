"use strict";
// Draws the plots that lie in the page as JSON, in the colours of the style sheet, and sorts tables.

const NARROW = 640; // pixels of a plot's width
const LONG_LABEL = 38; // characters
const dark = window.matchMedia("(prefers-color-scheme: dark)");

/** A copy of `value` where every `color` that names a style variable ("--memory") has its value. */
function coloured(value, style) {
  if (Array.isArray(value)) return value.map((item) => coloured(item, style));
  if (value === null || typeof value !== "object") return value;
  const pairs = Object.entries(value).map(([key, item]) =>
    key === "color" ? [key, style.getPropertyValue(item).trim()] : [key, coloured(item, style)]);
  return Object.fromEntries(pairs);
}

/** `label` in two lines if it is longer than `most`, broken at the space next to its middle. */
function folded(label, most) {
  if (label.length <= most) return label;
  const middle = label.length / 2;
  const spaces = [...label.matchAll(/ /g)].map((match) => match.index);
  const at = spaces.sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle))[0];
  return at === undefined ? label : `${label.slice(0, at)}<br>${label.slice(at + 1)}`;
}

/** `layout` in the page's colours, arranged for `width` pixels and a legend of `curves` entries. */
function themed(layout, style, width, curves) {
  const line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: true };
  const narrow = width < NARROW;
  const legend = narrow || layout.barmode
    ? { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom", traceorder: "normal" }
    : { orientation: "v", x: 1.02, y: 1 };
  const ticktext = layout.yaxis.ticktext.map((label) => folded(label, narrow ? 12 : LONG_LABEL));
  // A legend of many curves would take the plot's own room.
  const room = narrow && !layout.barmode ? 17 * curves : 0;
  return {
    ...layout,
    height: layout.height + room,
    xaxis: { automargin: true, ...axis, ...layout.xaxis },
    yaxis: { automargin: true, ...axis, ...layout.yaxis, ticktext },
    font: { family: "inherit", size: narrow ? 10 : 12, color: style.getPropertyValue("--text").trim() },
    hoverlabel: {
      align: "left",
      bgcolor: style.getPropertyValue("--card").trim(),
      bordercolor: line,
      font: { color: style.getPropertyValue("--text").trim(), size: 12 },
    },
    legend,
    showlegend: true,
    margin: { l: 8, r: 16, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
  };
}

function draw(source) {
  const canvas = document.getElementById(source.dataset.plot);
  if (!canvas.offsetParent) return; // inside a closed <details>: drawn when it opens
  const style = getComputedStyle(document.documentElement);
  const figure = coloured(JSON.parse(source.textContent), style);
  for (const trace of figure.data) trace.name = folded(trace.name, LONG_LABEL);
  const layout = themed(figure.layout, style, canvas.clientWidth, figure.data.length);
  const axis = pressedAxis(canvas.id);
  if (axis === "seconds") useSeconds(figure.data, layout);
  Plotly.react(canvas, figure.data, layout, { displayModeBar: false, responsive: true });
}

function pressedAxis(id) {
  const pressed = document.querySelector(`[data-for="${id}"] [aria-pressed="true"]`);
  return pressed ? pressed.dataset.axis : null;
}

function useSeconds(data, layout) {
  for (const trace of data) trace.x = trace.meta.seconds;
  layout.xaxis.title = { text: "seconds spent compiling and measuring" };
}

function drawAll() {
  document.querySelectorAll("script[data-plot]").forEach(draw);
}

function makeSwitch(element) {
  element.addEventListener("click", ({ target }) => {
    if (!target.dataset.axis) return;
    for (const button of element.children) button.setAttribute("aria-pressed", String(button === target));
    draw(document.querySelector(`script[data-plot="${element.dataset.for}"]`));
  });
}

/** Numbers by size, texts by alphabet, cells without a value last in either direction. */
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference);
}

function makeSortable(table) {
  const headers = [...table.querySelectorAll("th")];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") === "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const key = (row) => row.cells[column].dataset.sort;
      rows.sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1));
      table.tBodies[0].append(...rows);
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".switch").forEach(makeSwitch);
document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", drawAll));
dark.addEventListener("change", drawAll);
drawAll();
