"use strict";
/* The behaviour of the page: theme, charts, tabs, tables, printing.
 *
 * The charts of charts.py hold no colours. They are set here from report.css for the scheme in force:
 *   trace  meta: {color: 1..8}      a hue (--c1..--c8); a trace without meta takes the next one (layout.colorway)
 *          meta: {color: "muted"}   grey: reference lines
 *          meta: {color: "strong"}  the colour of the text: the tuned threshold, the blend
 *          meta: {scale: "sequential"} colorscale of a heat map, or of markers with numbers as `color`
 *     The colour applies to line, marker and error bars.
 * Colour never carries information alone: traces also differ in dash, symbol or text. No scattergl: it needs eval, which
 * the content policy blocks. Legend, margins, fonts, grid and hover box come from here; `layout` gives axis titles,
 * ranges and height (default 360).
 */

const root = document.documentElement;
const figures = JSON.parse(document.getElementById("charts-data").textContent);
const NARROW = 420; // width of a plot, in pixels, below which the legend is smaller
const CONFIG = { displaylogo: false, displayModeBar: false };
const SCALES = { sequential: ["seq0", "seq1", "seq2"], ramp: ["ramp0", "ramp1", "ramp2"] };

// ---- colours: the CSS variables under the scheme in force

const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;

function css(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** The CSS variable of a colour in `meta`. */
function variable(color) {
  return typeof color === "number" ? `c${((color - 1) % 8) + 1}` : color.replace(/^(muted|strong)$/, "c-$1");
}

const colorscale = (kind) => SCALES[kind].map((name, k, all) => [k / (all.length - 1), css(name)]);

function painted(source) {
  const trace = structuredClone(source);
  const { color, scale } = trace.meta ?? {};
  if (scale && "z" in trace) trace.colorscale = colorscale(scale);
  if (scale && trace.marker) trace.marker.colorscale = colorscale(scale === "sequential" ? "ramp" : scale);
  if (color === undefined) return trace;
  const paint = css(variable(color));
  if (!scale) trace.marker = { ...trace.marker, color: paint };
  trace.line = { ...trace.line, color: paint };
  for (const bars of ["error_x", "error_y"]) if (trace[bars]) trace[bars].color = paint;
  return trace;
}

function laid(source, { clientWidth: width, clientHeight: height }) {
  const layout = { ...structuredClone(source), width, height };
  layout.template = template();
  if (width < NARROW) Object.assign(layout.template.layout.legend, { font: { size: 11 }, itemwidth: 30 });
  layout.uirevision = "kept"; // zoom and hidden traces survive a change of theme
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // swipes scroll the page
  return layout;
}

function template() {
  const quiet = css("quiet");
  const axis = {
    automargin: true, autotickangles: [0, -45, -90], gridcolor: css("grid"), linecolor: css("line"), tickcolor: css("line"), zeroline: false,
    tickfont: { size: 12, color: quiet }, title: { standoff: 10, font: { size: 12.5, color: quiet } },
  };
  const bar = { outlinewidth: 0, thickness: 12, tickfont: { size: 12, color: quiet }, title: { font: { size: 12.5, color: quiet } } };
  const clear = "rgba(0,0,0,0)";
  return {
    layout: {
      colorway: [1, 2, 3, 4, 5, 6, 7, 8].map((k) => css(`c${k}`)),
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("ink") },
      paper_bgcolor: clear, plot_bgcolor: clear, margin: { l: 44, r: 12, t: 8, b: 40 }, hovermode: "closest",
      hoverlabel: { bgcolor: css("surface"), bordercolor: css("edge"), font: { color: css("ink"), size: 13 }, align: "left" },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: clear, font: { size: 12.5 } },
      xaxis: axis, yaxis: axis,
    },
    data: {
      heatmap: [{ colorbar: bar, colorscale: colorscale("sequential"), xgap: 2, ygap: 2, textfont: { color: css("ink") } }],
      scatter: [{ marker: { colorbar: bar, line: { color: css("surface") } } }],
    },
  };
}

// ---- charts: visible ones are drawn at once, the others when they are shown or printed

const chart = (id) => document.getElementById(`chart-${id}`);
const hidden = (element) => element.closest("[hidden], details:not([open])") !== null;

/** Draw or update a chart with the current colours and size. */
async function draw(id) {
  const { data, layout } = figures[id];
  const place = chart(id).querySelector(".plot");
  await Plotly.react(place, data.map(painted), laid(layout, place), CONFIG);
  chart(id).dataset.drawn = "true";
}

/** The visible charts in an element. */
const within = (element) => Object.keys(figures).filter((id) => element.contains(chart(id)) && !hidden(chart(id)));

/** Draw the charts of an element that has become visible or changed its style. */
const show = (element) => within(element).forEach(draw);

/** Redraw when the width of the window changes. Its height changes whenever a phone hides its bars. */
function fit() {
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    if (innerWidth === width) return;
    waiting = setTimeout(() => {
      width = innerWidth;
      show(document.body);
    }, 150);
  });
}

async function drawAll() {
  for (const id of within(document.body)) {
    await draw(id);
    await new Promise((resume) => setTimeout(resume)); // keeps the page responsive
  }
}

// ---- theme

function theme() {
  const button = document.getElementById("theme");
  const next = { auto: "light", light: "dark", dark: "auto" };
  const recolour = () => show(document.body);
  button.addEventListener("click", () => {
    const chosen = next[root.dataset.theme ?? "auto"];
    if (chosen === "auto") delete root.dataset.theme;
    else root.dataset.theme = chosen;
    button.textContent = `Theme: ${chosen}`;
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
}

// ---- tabs, by the WAI-ARIA practices

function tabs(list) {
  const all = [...list.querySelectorAll('[role="tab"]')];
  const choose = (chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    show(document.getElementById(chosen.getAttribute("aria-controls")));
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) choose(tab);
  });
  list.addEventListener("keydown", (event) => {
    const at = all.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = all[(to + all.length) % all.length];
    choose(tab);
    tab.focus();
  });
}

// ---- the rest of the page

/** Mark the section in view in the navigation, and scroll it into view there. */
function follow(nav) {
  const links = new Map([...nav.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
  const list = nav.querySelector("ul");
  const mark = (link) => {
    nav.querySelector("[aria-current]")?.removeAttribute("aria-current");
    link.setAttribute("aria-current", "location");
    const box = link.getBoundingClientRect(), frame = list.getBoundingClientRect();
    list.scrollBy({ left: box.left - frame.left - (frame.width - box.width) / 2, top: box.top - frame.top - (frame.height - box.height) / 2 });
  };
  const seen = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => mark(links.get(e.target.id))),
    { rootMargin: "-25% 0px -74% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
}

/** Overflowing tables and code can be focused, so that the keyboard scrolls them. */
function scrollers() {
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll(".table, .code").forEach((element) => sizes.observe(element));
}

function toViewer({ target }) {
  const button = target.closest("button.show");
  if (!button) return;
  const viewer = document.getElementById("viewer");
  const { study, index } = button.dataset;
  viewer.dispatchEvent(new CustomEvent("show", { detail: { study, index: Number(index) } }));
  viewer.scrollIntoView();
  document.getElementById("viewer-canvas").focus({ preventScroll: true });
}

/** Open, draw and lay out everything for print, and restore the page afterwards. */
function paper() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
    root.dataset.printing = "";
    Object.keys(figures).forEach(draw);
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    delete root.dataset.printing;
    show(document.body);
  });
}

(async () => {
  theme();
  fit();
  document.querySelectorAll('[role="tablist"]').forEach(tabs);
  follow(document.querySelector("nav"));
  scrollers();
  paper();
  document.addEventListener("toggle", ({ target }) => target.open && show(target), true);
  document.addEventListener("click", toViewer);
  const data = document.getElementById("viewer-data");
  if (data) await window.studyViewer(document.getElementById("viewer"), JSON.parse(data.textContent));
  await drawAll();
  document.body.dataset.ready = "true";
})();
