"use strict";
// What the panels show at the positions of their controls. Each function of `draw` gets
// the Bokeh models of a panel by name, and as `data` the arrays that it draws from.

const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
const clip = (v) => Math.min(Math.max(v, 0), 1);
const largest = (arrays) => Math.max(...arrays.map((a) => Math.max(...a)), 0.01);
const say = (panel, text) => {
  document.getElementById(`${panel}-reading`).textContent = text.replace(/-(?=\d)/g, "−");
};

// The next round number: axes keep still while a slider moves a little.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((n) => n * power >= value * 0.999999);
}

// Sigma times the guided score, (D - x) / sigma, at one noise level.
function guidedField({ parts, points, sigmas }, row, level, scale, omega) {
  const [uncond, cond, weak] = parts[row][level];
  return Array.from(points, (x, i) => {
    const guidance = scale * (cond[i] - uncond[i]) + omega * (cond[i] - weak[i]);
    return (uncond[i] + guidance - x) / sigmas[level];
  });
}

// Root mean square of a difference of fields over the noised class, on the grid.
function departure({ points, sigmas, mode, std }, level, field, truth) {
  const variance = std ** 2 + sigmas[level] ** 2;
  const dim = mode.length;
  let [total, weights] = [0, 0];
  for (let i = 0; i < points.length; i += dim) {
    let [far, gap] = [0, 0];
    for (let k = 0; k < dim; k += 1) {
      far += (points[i + k] - mode[k]) ** 2;
      gap += (field[i + k] - truth[i + k]) ** 2;
    }
    const weight = Math.exp((-0.5 * far) / variance);
    total += weight * gap;
    weights += weight;
  }
  return Math.sqrt(total / weights).toFixed(3);
}

// Quantiles of an output, linear in both scales between those computed.
function outputQuantiles({ scales, omegas, outputs }, row, scale, omega) {
  const between = (nodes, value) => {
    const above = nodes.findIndex((node, i) => i > 0 && value <= node);
    const i = (above < 0 ? nodes.length - 1 : above) - 1;
    return [i, clip((value - nodes[i]) / (nodes[i + 1] - nodes[i]))];
  };
  const [i, a] = between(scales, scale);
  const [j, b] = between(omegas, omega);
  const [p, q] = [outputs[row][i], outputs[row][i + 1]];
  const mix = (low, high, fraction) => (1 - fraction) * low + fraction * high;
  return Array.from(p[j], (_, k) =>
    mix(mix(p[j][k], p[j + 1][k], b), mix(q[j][k], q[j + 1][k], b), a));
}

// Density over bins, from a distribution function linear between the quantiles and, in
// the outer half steps, beyond them.
function binnedDensity(quantiles, bins) {
  const n = quantiles.length;
  const end = (a, b) => 1.5 * quantiles[a] - 0.5 * quantiles[b];
  const nodes = [end(0, 1), ...quantiles, end(n - 1, n - 2)];
  const level = (k) => Math.min(Math.max(k - 0.5, 0), n) / n; // 0, 1/2, 3/2, ..., n
  const below = Array.from(bins, (x) => {
    if (x <= nodes[0]) return 0;
    const k = nodes.findIndex((node) => node >= x) - 1;
    if (k < 0) return 1;
    const fraction = (x - nodes[k]) / (nodes[k + 1] - nodes[k]);
    return level(k) + fraction * (level(k + 1) - level(k));
  });
  return below.slice(1).map((v, i) => (v - below[i]) / (bins[i + 1] - bins[i]));
}

// Arrows at points, the longest `reach` long. The length is by the square root, so that
// the direction stays readable where a field is weak.
function arrows(points, field, longest, reach, every) {
  const size = Math.round(Math.sqrt(points.length / 2));
  const [xs, ys] = [[], []];
  for (let p = 0; p < size; p += every)
    for (let q = 0; q < size; q += every) {
      const i = 2 * (p * size + q);
      const length = Math.hypot(field[i], field[i + 1]);
      const drawn = reach * Math.sqrt(length / longest);
      const [u, v] = [field[i], field[i + 1]].map((w) => (w / (length || 1)) * drawn);
      const [x, y] = [points[i], points[i + 1]];
      const [a, b] = [0.7, 0.18]; // the barbs' ends, along the arrow and across
      xs.push([x, x + u, x + a * u - b * v, x + u, x + a * u + b * v]);
      ys.push([y, y + v, y + a * v + b * u, y + v, y + a * v - b * u]);
    }
  return { xs, ys };
}

const draw = {
  score({ row, level, scale, omega, figure, source, data }) {
    const at = (r, s, w) => guidedField(data, r, level.value, s, w);
    const curves = {
      truth: at("exact", 1, 0),
      unguided: at(row.value, 1, 0),
      cfg: at(row.value, scale.value, 0),
      s2: at(row.value, scale.value, omega.value),
    };
    source.data = { x: data.points, ...curves };
    const all = Object.values(curves);
    figure.y_range.end = roundUp(largest(all));
    figure.y_range.start = -roundUp(largest(all.map((f) => f.map((v) => -v))));
    const gap = (name) => departure(data, level.value, curves[name], curves.truth);
    say("score", "Root mean square departure from the truth over the noised class, " +
      `within the axis: no guidance ${gap("unguided")}, CFG ${gap("cfg")}, S² ${gap("s2")}.`);
  },

  density({ row, scale, omega, figure, source, data }) {
    const { bins, truth, omegas } = data;
    const [low, high] = [bins[0], bins[bins.length - 1]];
    const cfg = outputQuantiles(data, row.value, scale.value, omegas[0]);
    const s2 = outputQuantiles(data, row.value, scale.value, omega.value);
    const curves = Object.fromEntries(
      Object.entries({ truth, cfg, s2 }).map(([k, q]) => [k, binnedDensity(q, bins)]));
    source.data = { ...source.data, ...curves };
    figure.y_range.end = roundUp(1.02 * largest(Object.values(curves)));
    const numbers = (values) => {
      const centre = mean(values);
      const std = Math.sqrt(mean(values.map((v) => (v - centre) ** 2)));
      const w2 = Math.sqrt(mean(values.map((v, i) => (v - truth[i]) ** 2)));
      const off = mean(values.map((v) => (v < low || v > high ? 100 : 0)));
      return `mean ${centre.toFixed(2)}, standard deviation ${std.toFixed(2)}, W2 to the ` +
        `truth ${w2.toFixed(3)}${off ? `, ${off.toFixed(1)} % off the axis` : ""}`;
    };
    say("density", `CFG: ${numbers(cfg)}. S²: ${numbers(s2)}.`);
  },

  field({ row, show, level, scale, omega, sources, data }) {
    const { points, sigmas, std } = data;
    const at = (r, s, w) => guidedField(data, r, level.value, s, w);
    const truth = at("exact", 1, 0);
    const cfg = at(row.value, scale.value, 0);
    const s2 = at(row.value, scale.value, omega.value);
    const isDeparture = show.value === "departure";
    const drawn = isDeparture ? s2.map((v, i) => v - truth[i]) : s2;
    const lengths = (f) => f.map((v, i) => (i % 2 ? Math.hypot(f[i - 1], v) : 0));
    const longest = roundUp(largest((isDeparture ? [drawn] : [truth, drawn]).map(lengths)));
    const every = window.innerWidth < 600 ? 2 : 1; // all would touch on a phone
    const reach = 0.95 * every * (points[2] - points[0]);
    const none = { xs: [], ys: [] };
    sources.truth.data = isDeparture ? none : arrows(points, truth, longest, reach, every);
    sources.s2.data = arrows(points, drawn, longest, reach, every);
    const spread = Math.hypot(std, sigmas[level.value]);
    sources.circles.data = { ...sources.circles.data, r: [1, 2, 3].map((k) => k * spread) };
    const gap = (f) => departure(data, level.value, f, truth);
    say("field", `An arrow as long as the arrows are apart: ${longest.toPrecision(2)}. ` +
      "Root mean square departure from the truth over the noised class, within the axes: " +
      `CFG ${gap(cfg)}, S² ${gap(s2)}.`);
  },
};
