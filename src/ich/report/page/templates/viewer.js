"use strict";
/* The study viewer. `studyViewer(root, data)` controls the elements of viewer.html.j2 below `root` and resolves when the
 * first study is shown. `data` is made by report/sections/viewer.py.
 * The root's data-study, data-slice (from 0), data-level and data-width hold the state. The event `show`, a CustomEvent
 * {detail: {study, index}}, opens a slice.
 */
window.studyViewer = (() => {
  const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // matplotlib's inferno
  const HEAT_SIDE = 128; // pixels of the interpolated Grad-CAM
  const SHIFT = 128; // as in images.py
  const WHEEL = 40; // scrolled pixels per slice; one notch of a wheel is one slice
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /* The values of all slices minus the lowest value. images.py stacks the high bytes of a slice on its low bytes. */
  async function decoded(images, side) {
    const count = side * side, values = new Uint16Array(images.length * count);
    await Promise.all(images.map(async (text, k) => {
      const file = new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))]);
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      const context = surface(side, 2 * side);
      context.drawImage(bitmap, 0, 0);
      const { data } = context.getImageData(0, 0, side, 2 * side);
      for (let i = 0; i < count; i++) values[k * count + i] = ((data[4 * i] << 8) | data[4 * (count + i)]) - SHIFT;
    }));
    return values;
  }

  /* The pixel of each stored value: black at level - width / 2 and below, as in ich.data.windowing. */
  function windowTable(low, high, level, width) {
    const table = new Uint32Array(high - low + 1);
    for (let i = 0; i < table.length; i++) {
      const grey = clamp(Math.round(((low + i - level) / width + 0.5) * 255), 0, 255);
      table[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    return table;
  }

  /* Inferno with transparent low values: the pixel of each of 0..255. */
  const HEAT_TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (HEAT.length - 1), k = Math.min(Math.floor(at), HEAT.length - 2);
    const [red, green, blue] = HEAT[k].map((from, c) => Math.round(from + (HEAT[k + 1][c] - from) * (at - k)));
    const alpha = Math.round(165 * Math.min(1, i / 96));
    return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });

  /* Draw a map [h, w] into a square context, interpolated linearly between the centres of its cells. */
  function drawHeat(context, cells, height, width) {
    const side = HEAT_SIDE, image = context.createImageData(side, side), pixels = new Uint32Array(image.data.buffer);
    const steps = (count) => Array.from({ length: side }, (_, i) => {
      const at = clamp(((i + 0.5) / side) * count - 0.5, 0, count - 1), from = Math.floor(at);
      return [from, Math.min(from + 1, count - 1), at - from];
    });
    const columns = steps(width);
    steps(height).forEach(([up, down, y], row) => columns.forEach(([left, right, x], column) => {
      const value = (r, c) => cells[r * width + c];
      const upper = value(up, left) * (1 - x) + value(up, right) * x;
      const lower = value(down, left) * (1 - x) + value(down, right) * x;
      pixels[row * side + column] = HEAT_TABLE[Math.round(upper * (1 - y) + lower * y)];
    }));
    context.putImageData(image, 0, 0);
  }

  function made(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function surface(width, height = width) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    return canvas.getContext("2d", { willReadFrequently: true });
  }

  class Viewer {
    constructor(root, data) {
      Object.assign(this, { root, data, study: null, at: 0, across: 0, turned: 0, opening: 0, table: null });
      this.part = (selector) => root.querySelector(selector);
      this.canvas = this.part("#viewer-canvas");
      this.context = this.canvas.getContext("2d");
      this.heat = surface(HEAT_SIDE);
      this.fill();
      this.listen();
      this.listenToPointers();
      new ResizeObserver(() => this.measure()).observe(this.canvas); // nowhere else: reading the size forces a layout
    }

    /* ---- for all studies */

    fill() {
      const { classes, presets, studies, thresholds, unit } = this.data;
      for (const group of new Set(studies.map((study) => study.group))) {
        const options = studies.filter((study) => study.group === group);
        const shown = options.map(({ id, reasons }) => made("option", { value: id, textContent: `${id}: ${reasons[0]}` }));
        this.part("#viewer-study").append(made("optgroup", { label: group }, ...shown));
      }
      this.part("#viewer-study").value = studies[0].id;
      presets.forEach(({ id, name, level, width }, i) => {
        const button = made("button", { type: "button", className: "button", textContent: name });
        Object.assign(button.dataset, { preset: id });
        button.title = `level ${level}, width ${width} ${unit}, key ${i + 1}`;
        button.addEventListener("click", () => this.setWindow(level, width));
        this.part(".viewer-presets").append(button);
      });
      this.part(".viewer-unit").textContent = unit;
      this.part("#viewer-cam-class").append(...classes.map((name, c) => made("option", { value: c, textContent: name })));
      this.part(".viewer-cams").hidden = !studies.some((study) => study.cam);
      this.part(".viewer-names").append(made("span"), ...classes.map((name) => made("span", { textContent: name })));
      this.part(".viewer-along").style.setProperty("--classes", classes.length);
      this.cells = classes.map((name, c) => {
        const cells = ["number", "number", ""].map((className) => made("td", { className }));
        cells[1].textContent = thresholds[c].toFixed(3);
        this.part(".viewer-slice tbody").append(made("tr", {}, made("th", { scope: "row", textContent: name }), ...cells));
        return cells;
      });
    }

    /* ---- a study */

    async open(id, at) {
      const study = this.data.studies.find((one) => one.id === id), opening = ++this.opening;
      this.part("#viewer-study").value = id;
      this.part(".viewer-loading").textContent = "loading";
      const pixels = await decoded(study.pixels, study.side);
      if (opening !== this.opening) return; // another study was selected in the meantime
      this.part(".viewer-loading").textContent = "";
      const sum = pixels.reduce((total, value) => total + value, 0);
      this.part(".viewer-inexact").hidden = sum === study.sum; // browsers may add noise to canvas data
      Object.assign(this, { study, pixels, side: study.side });
      this.raster = surface(this.side);
      this.image = this.raster.createImageData(this.side, this.side);
      this.shades = new Uint32Array(this.image.data.buffer);
      this.describe();
      this.fillStrip();
      this.root.dataset.study = id;
      if (!this.table) this.reset();
      this.go(at ?? study.start);
    }

    describe() {
      const { study } = this, { split, folds, patient, reasons, source, images, millimetres } = study;
      const where = split === "test" ? "test set, without labels" : `predicted out of fold, fold ${folds.join(", ")}`;
      this.part("#viewer-about").textContent = `${reasons.join("; ")}. Patient ${patient}, ${where}; ${source}.`;
      Object.assign(this.part("#viewer-slice"), { max: images.length, value: 1 });
      this.part(".viewer-scale").hidden = !millimetres;
      this.part(".viewer-scale").style.width = `${5000 / millimetres}%`;
      this.part(".viewer-scale").textContent = "5 cm";
      this.part("#viewer-cam").disabled = !study.cam;
      if (!study.cam) this.part("#viewer-cam").checked = false;
    }

    fillStrip() {
      const { study, data: { classes, thresholds } } = this, count = study.images.length, strip = this.part("#viewer-strip");
      const every = [1, 2, 5, 10, 20, 50, 100].find((step) => count / step <= 12) ?? 500;
      this.rows = study.probabilities.map((probabilities, i) => {
        const number = made("span", { textContent: i + 1, className: (i + 1) % every === 0 || i === 0 ? "tick" : "" });
        const row = made("div", {}, number, ...probabilities.map((p, c) => {
          const label = study.labels[i][c];
          const cell = made("i", { title: `slice ${i + 1}, ${this.describeClass(i, c)}` });
          cell.classList.toggle("unknown", p === null);
          cell.classList.toggle("over", p !== null && p >= thresholds[c]);
          cell.classList.toggle("bleed", label === 1);
          if (p !== null) cell.style.setProperty("--p", p);
          return cell;
        }));
        row.dataset.slice = i;
        return row;
      });
      strip.replaceChildren(...this.rows);
      strip.classList.toggle("dense", count > 80);
      strip.setAttribute("aria-label", `Probabilities of ${classes.join(", ")} along the ${count} slices, first slice on top`);
    }

    describeClass(i, c) {
      const p = this.study.probabilities[i][c], label = this.study.labels[i][c];
      return `${this.data.classes[c]} ${p === null ? "no prediction" : p.toFixed(2)}${label === null ? "" : ` (label ${label})`}`;
    }

    /* ---- slice and window */

    go(at) {
      const { study, data: { thresholds, classes } } = this;
      this.rows[this.at]?.classList.remove("here");
      this.at = clamp(at, 0, study.images.length - 1);
      this.rows[this.at].classList.add("here");
      const millimetres = study.positions[this.at], p = study.probabilities[this.at];
      const place = `slice ${this.at + 1} of ${study.images.length}`;
      const position = millimetres === null ? [] : [`${millimetres.toFixed(1)} mm`];
      const over = classes.filter((_, c) => p[c] !== null && p[c] >= thresholds[c]);
      const named = classes.map((_, c) => c).filter((c) => study.labels[this.at][c] === 1 || over.includes(classes[c]));
      const largest = Math.max(0, p.indexOf(Math.max(...p))); // the first class if there is no prediction
      const text = [place, ...position, ...(named.length ? named : [largest]).map((c) => this.describeClass(this.at, c))].join(", ");
      this.part("#viewer-text").textContent = over.length ? text : `${text}; no class reaches its threshold`;
      this.part(".viewer-corner.slice").textContent = [`${this.at + 1} / ${study.images.length}`, ...position].join("\n");
      this.part("#viewer-slice").value = this.at + 1;
      this.part("#viewer-slice").setAttribute("aria-valuetext", text);
      this.root.dataset.slice = this.at;
      this.part(".viewer-slice caption").textContent = `Slice ${study.images[this.at]}`;
      this.fillTable();
      this.draw();
    }

    fillTable() {
      const { study, data: { thresholds } } = this;
      this.cells.forEach(([probability, , written], c) => {
        const p = study.probabilities[this.at][c], label = study.labels[this.at][c];
        const positive = p !== null && p >= thresholds[c], right = positive === (label === 1);
        probability.textContent = p === null ? "none" : p.toFixed(4);
        const outcome = label === 1 ? (positive ? "true positive" : "false negative") : positive ? "false positive" : "true negative";
        written.textContent = label === null || p === null ? "no label" : outcome;
        written.parentElement.classList.toggle("wrong", label !== null && !right);
        written.parentElement.classList.toggle("positive", positive);
      });
    }

    setWindow(level, width) {
      const { low, high, presets } = this.data;
      this.level = clamp(level, low, high);
      this.width = clamp(width, 1, high - low + 1);
      this.table = windowTable(low, high, this.level, this.width);
      Object.assign(this.root.dataset, { level: this.level, width: this.width });
      Object.assign(this.part("#viewer-level"), { value: this.level, min: low, max: high });
      Object.assign(this.part("#viewer-width"), { value: this.width, max: high - low + 1 });
      this.part(".viewer-corner.window").textContent = `WL ${this.level} WW ${this.width}`;
      for (const { id, level: l, width: w } of presets) {
        const pressed = l === this.level && w === this.width;
        this.part(`[data-preset="${id}"]`).setAttribute("aria-pressed", pressed);
      }
      this.draw();
    }

    reset() {
      const { level, width } = this.data.presets[0];
      this.setWindow(level, width);
    }

    measure() {
      const across = Math.round(this.canvas.clientWidth * devicePixelRatio);
      if (!across || across === this.across) return;
      this.across = this.canvas.width = this.canvas.height = across;
      this.draw();
    }

    draw() {
      const { context, across, side, at } = this;
      if (!this.study || !across) return;
      const { table, shades, pixels } = this, start = at * side * side;
      for (let i = 0; i < shades.length; i++) shades[i] = table[pixels[start + i]];
      this.raster.putImageData(this.image, 0, 0);
      context.imageSmoothingQuality = "high";
      context.drawImage(this.raster.canvas, 0, 0, across, across);
      if (!this.part("#viewer-cam").checked) return;
      const { height, width, cells } = this.study.cam;
      drawHeat(this.heat, cells[at][this.part("#viewer-cam-class").value], height, width);
      context.drawImage(this.heat.canvas, 0, 0, across, across);
    }

    /* ---- events */

    listen() {
      const on = (selector, event, act) => this.part(selector).addEventListener(event, act);
      on("#viewer-study", "change", (event) => this.open(event.target.value));
      on("#viewer-slice", "input", (event) => this.go(event.target.valueAsNumber - 1));
      for (const name of ["level", "width"]) {
        on(`#viewer-${name}`, "change", () => {
          const [level, width] = ["level", "width"].map((key) => this.part(`#viewer-${key}`).valueAsNumber);
          this.setWindow(Number.isFinite(level) ? level : this.level, Number.isFinite(width) ? width : this.width);
        });
      }
      on("#viewer-cam", "change", () => this.draw());
      on("#viewer-cam-class", "change", () => {
        this.part("#viewer-cam").checked = Boolean(this.study.cam);
        this.draw();
      });
      on("#viewer-touch", "click", ({ currentTarget: button }) => {
        button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      });
      on("#viewer-canvas", "keydown", (event) => this.key(event));
      on("#viewer-canvas", "dblclick", () => this.reset());
      this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      this.root.addEventListener("show", ({ detail: { study, index } }) => {
        const there = study === this.study?.id && study === this.part("#viewer-study").value; // and no other is loading
        if (there) this.go(index);
        else this.open(study, index);
      });
    }

    key(event) {
      if (!this.study || event.ctrlKey || event.metaKey || event.altKey) return;
      const last = this.study.images.length - 1;
      const places = { ArrowUp: this.at - 1, ArrowDown: this.at + 1, PageUp: this.at - 5, PageDown: this.at + 5, Home: 0, End: last };
      const preset = this.data.presets[Number(event.key) - 1];
      if (event.key in places) this.go(places[event.key]);
      else if (preset) this.setWindow(preset.level, preset.width);
      else return;
      event.preventDefault();
    }

    /* At the first and the last slice the wheel scrolls the page after a pause. */
    wheel(event) {
      if (!this.study || event.ctrlKey) return;
      const down = event.deltaY * [1, 16, 400][event.deltaMode], rested = event.timeStamp - this.wheeled > 500;
      const end = down < 0 ? 0 : this.study.images.length - 1;
      if (this.at === end && (rested || this.wheeled === undefined)) return;
      event.preventDefault();
      this.wheeled = event.timeStamp;
      this.turned = Math.abs(down) >= WHEEL ? Math.sign(down) * WHEEL : this.turned + down;
      const slices = Math.trunc(this.turned / WHEEL);
      this.turned -= slices * WHEEL;
      if (slices) this.go(this.at + slices);
    }

    listenToPointers() {
      const { canvas } = this, strip = this.part("#viewer-strip");
      let drag = null;
      canvas.addEventListener("pointerdown", (event) => {
        if (!this.study || event.button || !event.isPrimary) return;
        const windowing = event.pointerType === "mouse" || this.part("#viewer-touch").getAttribute("aria-pressed") === "true";
        drag = { x: event.clientX, y: event.clientY, windowing, level: this.level, width: this.width, at: this.at };
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!drag) this.under(event);
        else if (event.isPrimary) this.drag(drag, event.clientX - drag.x, event.clientY - drag.y);
      });
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { drag = null; });
      canvas.addEventListener("pointerleave", () => { this.part(".viewer-corner.under").textContent = ""; });
      const point = (event) => {
        const row = document.elementFromPoint(event.clientX, event.clientY)?.closest("#viewer-strip [data-slice]");
        if (row) this.go(Number(row.dataset.slice));
      };
      strip.addEventListener("click", point);
      strip.addEventListener("pointermove", (event) => { if (event.buttons === 1 && event.pointerType === "mouse") point(event); });
    }

    drag(from, x, y) {
      if (from.windowing) {
        const step = Math.max(0.25, from.width / 200); // wide windows change faster
        const rounded = (value) => (from.width < 20 ? Math.round(value * 2) / 2 : Math.round(value));
        this.setWindow(rounded(from.level + y * step), rounded(from.width + x * step));
      } else {
        this.go(from.at + Math.round(y / clamp(this.canvas.clientHeight / this.study.images.length, 6, 24)));
      }
    }

    /* Show the value at the mouse. */
    under({ offsetX, offsetY, pointerType }) {
      if (!this.study || pointerType !== "mouse") return;
      const [column, row] = [offsetX, offsetY].map((at) => clamp(Math.floor((at / this.canvas.clientWidth) * this.side), 0, this.side - 1));
      const value = this.pixels[(this.at * this.side + row) * this.side + column] + this.data.low;
      this.part(".viewer-corner.under").textContent = `${value} ${this.data.unit}`;
    }
  }

  return (root, data) => {
    if (!data.studies.length) return root.replaceChildren("No study to show.");
    const viewer = root.viewer = new Viewer(root, data);
    return viewer.open(data.studies[0].id);
  };
})();
