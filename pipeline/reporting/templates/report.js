(function () {
  "use strict";

  const page = JSON.parse(document.getElementById("page-data").textContent);

  // Colours are the page's CSS variables, so that plots follow light, dark and print by themselves.
  const ink = "var(--ink)", soft = "var(--ink-soft)", line = "var(--line)";
  const theme = {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    mark: { color: ink },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelPadding: 6, titlePadding: 8,
    },
    rule: { strokeCap: "round" },
    style: {
      gap: { fill: ink, fillOpacity: 0.1, stroke: ink, strokeOpacity: 0.75, strokeWidth: 1, strokeDash: [3, 2] },
      diagonal: { stroke: ink, strokeWidth: 1.4, strokeDash: [5, 4], opacity: 0.55 },
    },
  };
  const options = { actions: false, renderer: "svg", ast: true, config: theme, tooltip: { theme: "custom" } };

  function draw() {
    const boxes = Array.from(document.querySelectorAll("[data-plot]"));
    return Promise.all(boxes.map((box) =>
      window.vegaEmbed(box, page.plots[box.dataset.plot], options).then((result) => ({ box, view: result.view }))));
  }

  function legend(drawn) {
    const views = drawn.filter((one) => one.box.classList.contains("curve")).map((one) => one.view);
    const buttons = Array.from(document.querySelectorAll(".legend button"));
    const shown = () => buttons.filter((button) => button.getAttribute("aria-pressed") === "true")
      .map((button) => page.runs[Number(button.dataset.run)]);
    buttons.forEach((button) => button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      views.forEach((view) => view.signal("shown", shown()).runAsync());
    }));
  }

  function halves(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / 2 }, (_, index) => half(view.getUint16(2 * index, true)));
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  function softmax(logits, T) {
    const weights = logits.map((logit) => Math.exp(logit / T));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return weights.map((weight) => weight / sum);
  }

  function share(value) {
    const number = 100 * value;
    if (number >= 9.95) return number.toFixed(0);
    return number >= 0.05 ? number.toFixed(1) : "0";
  }

  function fill(bar, value) {
    bar.style.setProperty("--p", value.toFixed(4));
    bar.firstElementChild.textContent = share(value);
    bar.classList.toggle("none", share(value) === "0");
  }

  function gallery() {
    return Array.from(page.samples.length ? document.querySelectorAll(".sample") : [], (box, index) => ({
      logits: halves(page.samples[index].logits),
      shown: page.samples[index].shown,
      bars: Array.from(box.querySelectorAll("td.live .bar")),
      heading: box.querySelector(".live-T"),
    }));
  }

  function showSample(sample, T) {
    const probs = softmax(sample.logits, T), shown = sample.shown.map((index) => probs[index]);
    const rest = Math.max(0, 1 - shown.reduce((total, value) => total + value, 0));
    sample.heading.textContent = String(T);
    sample.bars.forEach((bar, index) => fill(bar, index < shown.length ? shown[index] : rest));
  }

  function bars(counts, highest) {
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    return counts.map((count, index) => ({
      low: highest * index / counts.length, high: highest * (index + 1) / counts.length, share: count / total,
    }));
  }

  function histograms(drawn) {
    return drawn.filter((one) => one.box.classList.contains("moved")).map((one) => {
      const entropy = one.box.dataset.plot === "targets-entropy";
      return (at) => one.view
        .data("bars", entropy ? bars(at.entropy_rows, page.highest) : bars(at.top1_rows, 1))
        .data("mean", [{ low: entropy ? at.entropy : at.top1 }])
        .runAsync();
    });
  }

  function temperature() {
    const slider = document.getElementById("temperature");
    if (!slider) return () => undefined;
    const samples = gallery(), say = (id, text) => { document.getElementById(id).textContent = text; };
    let plots = [];
    // A browser may give a reloaded page the position it had before.
    slider.value = slider.dataset.start;
    function update() {
      const at = page.targets[Number(slider.value)], T = String(at.temperature);
      say("temperature-value", "T = " + T);
      slider.setAttribute("aria-valuetext", "T = " + T);
      say("live-temperature", T);
      say("live-entropy", at.entropy.toFixed(3));
      say("live-top1", (100 * at.top1).toFixed(1));
      samples.forEach((sample) => showSample(sample, at.temperature));
      return Promise.all(plots.map((plot) => plot(at)));
    }
    slider.addEventListener("input", update);
    update();
    return (drawn) => { plots = histograms(drawn); };
  }

  if (document.getElementById("temperature")) document.documentElement.classList.add("live");
  const follow = temperature();
  draw().then((drawn) => { legend(drawn); follow(drawn); }).then(() => document.documentElement.classList.add("drawn"))
    .catch((error) => console.error(error));
})();
