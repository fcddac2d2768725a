// What all parts of the page share: the data, small helpers, colours that follow the theme, pictures from data URIs.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** An element with properties and children; `text` children are text, never markup. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && key !== "style") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => window.innerWidth < 640;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** 0.0123, 4.56, 78.9, 123: as the tables have it. */
function digits(value, like = value) {
  const size = Math.abs(like);
  return value.toFixed(size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0);
}

/** 950, 12,300, 1.23 M. */
function large(value) {
  if (value >= 1e9) return `${(value / 1e9).toPrecision(3)} G`;
  return value >= 1e6 ? `${(value / 1e6).toPrecision(3)} M` : Math.round(value).toLocaleString("en-US");
}

function duration(seconds) {
  const short = (value) => Number(value.toPrecision(3));
  if (seconds < 1e-3) return `${short(seconds * 1e6)} µs`;
  if (seconds < 1) return `${short(seconds * 1e3)} ms`;
  if (seconds < 90) return `${short(seconds)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// Theme: the system's unless the reader chose one; every drawing is told when it changes.

const themed = [];
const system = window.matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
try {
  theme = localStorage.getItem("report-theme") || "auto";
} catch {
  /* kept nowhere: fine */
}

const dark = () => theme === "dark" || (theme === "auto" && system.matches);
const colour = (series) => (dark() ? series.dark : series.light);

function applyTheme() {
  document.documentElement.toggleAttribute("data-dark", dark());
  for (const draw of themed) draw();
}

for (const input of $("theme").querySelectorAll("input")) {
  input.checked = input.value === theme;
  input.addEventListener("change", () => {
    theme = input.value;
    try {
      localStorage.setItem("report-theme", theme);
    } catch {
      /* kept nowhere: fine */
    }
    applyTheme();
  });
}
system.addEventListener("change", applyTheme);
document.documentElement.toggleAttribute("data-dark", dark());

// The mark of a series, as the curve draws it.

const MARKS = {
  square: "-4,-4 4,-4 4,4 -4,4",
  "triangle-up": "0,-5 5,4 -5,4",
  "triangle-down": "0,5 5,-4 -5,-4",
  diamond: "0,-6 5,0 0,6 -5,0",
  "triangle-left": "-5,0 4,-5 4,5",
  "triangle-right": "5,0 -4,-5 -4,5",
  pentagon: "0,-5 5,-1 3,5 -3,5 -5,-1",
  hexagon: "-3,-5 3,-5 5,0 3,5 -3,5 -5,0",
  cross: "-2,-5 2,-5 2,-2 5,-2 5,2 2,2 2,5 -2,5 -2,2 -5,2 -5,-2 -2,-2",
  x: "-5,-3 -3,-5 0,-2 3,-5 5,-3 2,0 5,3 3,5 0,2 -3,5 -5,3 -2,0",
};
const SVG_DASHES = { solid: "", dash: "7 5", dashdot: "7 3 2 3", dot: "2 3" };

function swatch(series) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const svg = make("svg", { class: "swatch", viewBox: "-17 -7 34 14", "aria-hidden": "true" });
  const dash = SVG_DASHES[series.dash] ?? series.dash.replaceAll("px", "").replaceAll(",", " ");
  svg.append(make("line", { x1: -17, x2: 17, y1: 0, y2: 0, "stroke-width": 2, "stroke-dasharray": dash }));
  svg.append(series.marker === "circle" ? make("circle", { r: 4.5 }) : make("polygon", { points: MARKS[series.marker] }));
  const paint = () => {
    svg.setAttribute("stroke", colour(series));
    svg.setAttribute("fill", colour(series));
  };
  themed.push(paint);
  paint();
  svg.lastChild.setAttribute("stroke", "none");
  return svg;
}

// Pictures.

const decoded = new Map();
/** The decoded picture of a data URI, each decoded once. */
function picture(uri) {
  if (!decoded.has(uri)) {
    const image = new Image();
    image.src = uri;
    decoded.set(
      uri,
      image.decode().then(() => image),
    );
  }
  return decoded.get(uri);
}

/** Copies a rectangle of `image` to the canvas's context, pixels kept square. */
function copy(context, image, sx, sy, width, height, x, y, scale) {
  context.imageSmoothingEnabled = false;
  context.drawImage(image, sx, sy, width, height, x, y, width * scale, height * scale);
}

// Plots.

const PLOT_CONFIG = () => ({
  displaylogo: false,
  displayModeBar: narrow() ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // the default ones include a link to plotly.com
});

/** Layout in the page's colours and type. */
function layout(extra) {
  const axis = {
    gridcolor: css("--grid"),
    linecolor: css("--line"),
    zeroline: false,
    ticks: "outside",
    tickcolor: css("--line"),
    automargin: true,
  };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest",
    showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13, color: css("--ink") },
    margin: narrow() ? { l: 46, r: 8, t: 8, b: 44 } : { l: 64, r: 16, t: 34, b: 54 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    dragmode: narrow() ? false : "zoom",
    hoverlabel: {
      align: "left",
      bgcolor: css("--panel"),
      bordercolor: css("--soft"),
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: narrow() ? 10.5 : 12.5 },
    },
    ...rest,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
  };
}

/** 1, 2 and 5 times powers of ten between two positive values; powers alone where that is many. */
function decades(low, high) {
  const ticks = [];
  const steps = Math.log10(high / low) > (narrow() ? 2.2 : 3.5) ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const step of steps) ticks.push(Number(`${step}e${power}`));
  }
  return ticks;
}

/** #RRGGBB with an opacity. */
const faded = (hex, share) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${share})`;
const escapeText = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
let resizing;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => themed.forEach((draw) => draw()), 120);
});
