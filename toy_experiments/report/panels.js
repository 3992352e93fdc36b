
"use strict";
// The report's panels, drawn from numbers inside the page. For tests and for the
// console, `window.panels.score`, `.density` and `.field` each have
//   values()     the controls' present values: {row, level, scale, omega, show}
//   set({...})   move controls, as a reader would, and redraw
//   drawn        what is drawn: arrays of numbers by name, in units of the axes

(() => {
  const SVG = "http://www.w3.org/2000/svg"; // a name, nothing is fetched

  // ---- the page around the panels

  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const large = button.closest("figure").classList.toggle("large");
      button.setAttribute("aria-pressed", String(large));
      button.textContent = large ? "fit to page" : "full size";
    });
  }

  // Folded tables are open on paper, and as they were before afterwards.
  let opened = [];
  const unfold = () => {
    const folded = [...document.querySelectorAll("details:not([open])")];
    for (const element of folded) element.open = true;
    opened = opened.concat(folded);
  };
  const fold = () => {
    for (const element of opened) element.open = false;
    opened = [];
  };
  window.addEventListener("beforeprint", unfold);
  window.addEventListener("afterprint", fold);
  const paper = window.matchMedia("print");
  paper.addEventListener("change", () => (paper.matches ? unfold() : fold()));

  const store = document.getElementById("panel-data");
  if (!store) return;
  const data = JSON.parse(store.textContent);

  // ---- numbers

  // Little-endian float32, which is the order of every machine that has a browser.
  const decode = (text) =>
    new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  for (const field of [data.line, data.plane]) {
    field.points = decode(field.points);
    for (const parts of Object.values(field.parts))
      for (const name of Object.keys(parts)) parts[name] = decode(parts[name]);
  }
  const outputs = data.outputs;
  outputs.bins = decode(outputs.bins);
  outputs.truth = decode(outputs.truth);
  for (const row of Object.keys(outputs.rows)) outputs.rows[row] = decode(outputs.rows[row]);

  // Sigma times the guided score, (D - x) / sigma, at one noise level.
  function guidedField(field, row, level, scale, omega) {
    const { uncond, cond, weak } = field.parts[row];
    const size = field.points.length;
    const first = level * size;
    return Array.from({ length: size }, (_, i) => {
      const u = uncond[first + i];
      const c = cond[first + i];
      const w = weak[first + i];
      const guided = u + scale * (c - u) + omega * (c - w);
      return (guided - field.points[i]) / field.sigmas[level];
    });
  }

  // Where a value stands among ascending nodes: index of the lower one, and share.
  function between(nodes, value) {
    let i = 0;
    while (i < nodes.length - 2 && value >= nodes[i + 1]) i += 1;
    const share = (value - nodes[i]) / (nodes[i + 1] - nodes[i]);
    return [i, Math.min(Math.max(share, 0), 1)];
  }

  function outputQuantiles(row, scale, omega) {
    const table = outputs.rows[row];
    const size = outputs.truth.length;
    const count = outputs.omegas.length;
    const [i, a] = between(outputs.scales, scale);
    const [j, b] = between(outputs.omegas, omega);
    const at = (p, q, k) => table[(p * count + q) * size + k];
    return Array.from({ length: size }, (_, k) => {
      const low = (1 - b) * at(i, j, k) + b * at(i, j + 1, k);
      const high = (1 - b) * at(i + 1, j, k) + b * at(i + 1, j + 1, k);
      return (1 - a) * low + a * high;
    });
  }

  // Density over bins, from a distribution function linear between the quantiles, which
  // beyond the first and the last goes on as between their neighbours.
  function binnedDensity(quantiles, bins) {
    const n = quantiles.length;
    const first = 1.5 * quantiles[0] - 0.5 * quantiles[1];
    const last = 1.5 * quantiles[n - 1] - 0.5 * quantiles[n - 2];
    const nodes = [first, ...quantiles, last];
    const level = (k) => Math.min(Math.max(k - 0.5, 0), n) / n; // 0, 1/2, 3/2, ..., n
    let k = 0;
    const below = Array.from(bins, (x) => {
      if (x <= first) return 0;
      if (x >= last) return 1;
      while (nodes[k + 1] < x) k += 1;
      const share = (x - nodes[k]) / (nodes[k + 1] - nodes[k]);
      return level(k) + share * (level(k + 1) - level(k));
    });
    return below.slice(1).map((value, i) => (value - below[i]) / (bins[i + 1] - bins[i]));
  }

  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const spread = (values) => {
    const centre = mean(values);
    return Math.sqrt(mean(values.map((v) => (v - centre) ** 2)));
  };
  const distance = (a, b) => Math.sqrt(mean(a.map((v, i) => (v - b[i]) ** 2)));

  // Root mean square of a difference of fields over the noised class, on the grid.
  function departure(field, dim, level, guided, truth) {
    const variance = data.std ** 2 + field.sigmas[level] ** 2;
    const mode = data.modes[dim];
    let total = 0;
    let weights = 0;
    for (let i = 0; i < field.points.length; i += dim) {
      let far = 0;
      let gap = 0;
      for (let k = 0; k < dim; k += 1) {
        far += (field.points[i + k] - mode[k]) ** 2;
        gap += (guided[i + k] - truth[i + k]) ** 2;
      }
      const weight = Math.exp((-0.5 * far) / variance);
      total += weight * gap;
      weights += weight;
    }
    return Math.sqrt(total / weights);
  }

  // ---- drawing

  // The next round number: axes keep still while a slider moves a little.
  function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
    return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((n) => n * power >= value * 0.999999);
  }

  function ticks(low, high, count) {
    const power = 10 ** Math.floor(Math.log10((high - low) / count));
    const step = power * [1, 2, 5, 10].find((n) => (high - low) / (n * power) <= count);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
      values.push(Number((i * step).toPrecision(10)));
    return values;
  }

  const minus = (text) => String(text).replace(/-(?=\d)/g, "−");

  function make(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  class Plot {
    constructor(place, { x, y, xLabel, yLabel, square, title }) {
      // At the width at which it stands, so that type keeps its size on a phone.
      const width = Math.max(260, Math.min(place.clientWidth, square ? 560 : 1000));
      const [left, right, top, bottom] = [58, 12, 8, 44];
      this.width = width - left - right;
      this.height = square ? this.width : Math.min(340, Math.max(200, this.width * 0.55));
      const height = this.height + top + bottom;
      const box = `0 0 ${width} ${height}`;
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", box);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", title);
      svg.style.maxWidth = `${width}px`;
      this.x = (v) => ((v - x[0]) / (x[1] - x[0])) * this.width;
      this.y = (v) => (1 - (v - y[0]) / (y[1] - y[0])) * this.height;
      const group = make(svg, "g", { transform: `translate(${left} ${top})` });
      for (const v of ticks(x[0], x[1], this.width / 55)) {
        const at = this.x(v);
        make(group, "line", { class: "frame", x1: at, x2: at, y1: this.height, y2: this.height + 5 });
        make(group, "text", { x: at, y: this.height + 19, "text-anchor": "middle" }, minus(v));
      }
      for (const v of ticks(y[0], y[1], this.height / (square ? 55 : 40))) {
        const at = this.y(v);
        make(group, "line", { class: "frame", x1: -5, x2: 0, y1: at, y2: at });
        make(group, "text", { x: -9, y: at + 4, "text-anchor": "end" }, minus(v));
      }
      make(group, "text", { x: this.width / 2, y: this.height + 38, "text-anchor": "middle" }, xLabel);
      const turn = `translate(-44 ${this.height / 2}) rotate(-90)`;
      make(group, "text", { transform: turn, "text-anchor": "middle" }, yLabel);
      // An inner picture clips what leaves the axes.
      const clip = { width: this.width, height: this.height, overflow: "hidden" };
      this.inside = make(group, "svg", clip);
      if (!square && y[0] < 0) {
        const at = this.y(0);
        make(this.inside, "line", { class: "zero", x1: 0, x2: this.width, y1: at, y2: at });
      }
      const frame = square
        ? `M0,0H${this.width}V${this.height}H0Z`
        : `M0,0V${this.height}H${this.width}`;
      make(group, "path", { class: "frame", d: frame });
      place.replaceChildren(svg);
    }

    path(kind, d) {
      make(this.inside, "path", { class: kind, d });
    }

    spot(x, y) {
      return `${this.x(x).toFixed(2)},${this.y(y).toFixed(2)}`;
    }

    line(kind, xs, ys) {
      this.path(`curve ${kind}`, `M${ys.map((v, i) => this.spot(xs[i], v)).join("L")}`);
    }

    steps(kind, bins, heights) {
      const corners = heights.flatMap((v, i) => [this.spot(bins[i], v), this.spot(bins[i + 1], v)]);
      const ends = [this.spot(bins[0], 0), this.spot(bins[bins.length - 1], 0)];
      this.path(kind, `M${ends[0]}L${corners.join("L")}L${ends[1]}`);
    }

    // Arrows at points, the longest as long as the points are apart. The length is by
    // the square root: direction stays readable where a field is weak.
    arrows(kind, points, field, longest, apart) {
      const reach = (apart / (points[2] - points[0])) * (this.x(points[2]) - this.x(points[0]));
      const size = Math.round(Math.sqrt(points.length / 2));
      const step = Math.round(apart / (points[2] - points[0]));
      const parts = [];
      for (let p = 0; p < size; p += step)
        for (let q = 0; q < size; q += step) {
          const i = 2 * (p * size + q);
          const length = Math.hypot(field[i], field[i + 1]);
          const drawn = 0.95 * reach * Math.sqrt(length / longest);
          if (!(drawn > 0.3)) continue;
          const [u, v] = [(field[i] / length) * drawn, (-field[i + 1] / length) * drawn];
          const [x, y] = [this.x(points[i]), this.y(points[i + 1])];
          const to = (a, b) => `${(x + a).toFixed(1)},${(y + b).toFixed(1)}`;
          const [s, t] = [0.3, 0.18];
          parts.push(
            `M${to(0, 0)}L${to(u, v)}M${to(u - s * u - t * v, v - s * v + t * u)}` +
              `L${to(u, v)}L${to(u - s * u + t * v, v - s * v - t * u)}`,
          );
        }
      this.path(`arrows ${kind}`, parts.join(""));
    }
  }

  // ---- panels

  class Panel {
    constructor(name, draw) {
      this.root = document.getElementById(`panel-${name}`);
      this.place = this.root.querySelector(".plot");
      this.controls = [...this.root.querySelectorAll("[data-control]")];
      this.draw = draw;
      this.drawn = {};
      for (const control of this.controls)
        control.addEventListener("input", () => this.update());
      let width = this.place.clientWidth;
      new ResizeObserver(() => {
        // On paper the picture is scaled as it is.
        if (this.place.clientWidth === width || paper.matches) return;
        width = this.place.clientWidth;
        this.update();
      }).observe(this.place);
      this.update();
    }

    values() {
      const read = (c) => (c.type === "range" ? Number(c.value) : c.value);
      return Object.fromEntries(this.controls.map((c) => [c.dataset.control, read(c)]));
    }

    set(values) {
      for (const control of this.controls)
        if (control.dataset.control in values) control.value = values[control.dataset.control];
      this.update();
    }

    update() {
      const values = this.values();
      const { drawn, reading, shown } = this.draw(values, this.place);
      this.drawn = drawn;
      this.root.querySelector(".reading").textContent = minus(reading);
      for (const control of this.controls) {
        const output = document.getElementById(`${control.id}-value`);
        if (!output) continue;
        const name = control.dataset.control;
        output.textContent = shown[name] ?? String(values[name]);
        control.setAttribute("aria-valuetext", output.textContent);
      }
    }
  }

  const sigmaText = (field, level) => Number(field.sigmas[level].toPrecision(2)).toString();

  function drawScore({ row, level, scale, omega }, place) {
    const field = data.line;
    const x = Array.from(field.points);
    const drawn = {
      x,
      truth: guidedField(field, "exact", level, 1, 0),
      unguided: guidedField(field, row, level, 1, 0),
      cfg: guidedField(field, row, level, scale, 0),
      s2: guidedField(field, row, level, scale, omega),
    };
    const all = [drawn.truth, drawn.unguided, drawn.cfg, drawn.s2].flat();
    const plot = new Plot(place, {
      x: [x[0], x[x.length - 1]],
      y: [-roundUp(Math.max(...all.map((v) => -v), 0.01)), roundUp(Math.max(...all, 0.01))],
      xLabel: "x",
      yLabel: "σ × score",
      title: `Sigma times the guided score against x, ${data.titles[row]}`,
    });
    for (const name of ["truth", "unguided", "cfg", "s2"]) plot.line(name, x, drawn[name]);
    const gap = (name) => departure(field, 1, level, drawn[name], drawn.truth).toFixed(3);
    return {
      drawn,
      shown: { level: sigmaText(field, level) },
      reading:
        "Root mean square departure from the truth over the noised class, within the " +
        `axis: no guidance ${gap("unguided")}, CFG ${gap("cfg")}, S² ${gap("s2")}.`,
    };
  }

  function drawDensity({ row, scale, omega }, place) {
    const bins = Array.from(outputs.bins);
    const truthQuantiles = Array.from(outputs.truth);
    const quantiles = {
      cfg: outputQuantiles(row, scale, outputs.omegas[0]),
      s2: outputQuantiles(row, scale, omega),
    };
    const drawn = {
      bins,
      truth: binnedDensity(truthQuantiles, bins),
      cfg: binnedDensity(quantiles.cfg, bins),
      s2: binnedDensity(quantiles.s2, bins),
    };
    const top = Math.max(...drawn.truth, ...drawn.cfg, ...drawn.s2);
    const plot = new Plot(place, {
      x: [bins[0], bins[bins.length - 1]],
      y: [0, roundUp(1.02 * top)],
      xLabel: "x",
      yLabel: "density",
      title: `Density of the sampler's output against x, ${data.titles[row]}`,
    });
    plot.steps("area", bins, drawn.truth);
    plot.steps("curve cfg", bins, drawn.cfg);
    plot.steps("curve s2", bins, drawn.s2);
    const numbers = (name) => {
      const values = quantiles[name];
      const far = values.filter((v) => v < bins[0] || v > bins[bins.length - 1]).length;
      const outside = far ? `, ${((100 * far) / values.length).toFixed(1)} % off the axis` : "";
      return (
        `mean ${mean(values).toFixed(2)}, standard deviation ${spread(values).toFixed(2)}, ` +
        `W2 to the truth ${distance(values, truthQuantiles).toFixed(3)}${outside}`
      );
    };
    return {
      drawn,
      shown: {},
      reading: `CFG: ${numbers("cfg")}. S²: ${numbers("s2")}.`,
    };
  }

  function drawField({ row, level, scale, omega, show }, place) {
    const field = data.plane;
    const points = field.points;
    const truth = guidedField(field, "exact", level, 1, 0);
    const cfg = guidedField(field, row, level, scale, 0);
    const s2 = guidedField(field, row, level, scale, omega);
    const arrows = show === "score" ? s2 : s2.map((v, i) => v - truth[i]);
    const ends = [points[0], points[points.length - 1]];
    const plot = new Plot(place, {
      x: ends,
      y: ends,
      xLabel: "x₁",
      yLabel: "x₂",
      square: true,
      title: `Arrows of sigma times the guided score in the plane, ${data.titles[row]}`,
    });
    const unit = plot.width / (ends[1] - ends[0]);
    const sigma = field.sigmas[level];
    for (const k of [1, 2, 3])
      make(plot.inside, "circle", {
        class: "circle",
        cx: plot.x(data.modes[2][0]),
        cy: plot.y(data.modes[2][1]),
        r: k * unit * Math.sqrt(data.std ** 2 + sigma ** 2),
      });
    const length = (f) => {
      let most = 1e-9;
      for (let i = 0; i < f.length; i += 2) most = Math.max(most, Math.hypot(f[i], f[i + 1]));
      return most;
    };
    const longest = roundUp(show === "score" ? Math.max(length(truth), length(s2)) : length(s2.map((v, i) => v - truth[i])));
    // Every second arrow where all would touch.
    const spacing = points[2] - points[0];
    const apart = spacing * unit < 16 ? 2 * spacing : spacing;
    if (show === "score") plot.arrows("truth", points, truth, longest, apart);
    plot.arrows("s2", points, arrows, longest, apart);
    const gap = (f) => departure(field, 2, level, f, truth).toFixed(3);
    return {
      drawn: { points: Array.from(points), truth, cfg, s2, arrows },
      shown: { level: sigmaText(field, level) },
      reading:
        `An arrow as long as the arrows are apart: ${Number(longest.toPrecision(3))}. Root ` +
        "mean square departure from the truth over the noised class, within the axes: " +
        `CFG ${gap(cfg)}, S² ${gap(s2)}.`,
    };
  }

  window.panels = {
    score: new Panel("score", drawScore),
    density: new Panel("density", drawDensity),
    field: new Panel("field", drawField),
  };
})();
