// Losses by noise level, the price of training, configs, and where the numbers come from.

(() => {
  const names = Object.keys(DATA.losses);
  const seriesOf = (run) => DATA.series.find((series) => series.run === run);

  function mix(a, b, share) {
    const read = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    const [x, y] = [read(a), read(b)];
    return `rgb(${x.map((v, i) => Math.round(v + (y[i] - v) * share)).join(",")})`;
  }

  function drawLoss() {
    const run = $("loss-run").value,
      loss = DATA.losses[run];
    const view = document.querySelector("input[name=loss-view]:checked").value;
    const levels = loss.moments[0].loss.length;
    const centre = (k) => (k + 0.5) / levels;
    const shade = (share) => mix(css("--line"), css("--accent"), 0.25 + 0.75 * share);
    const last = (count) => Math.max(1, count - 1);
    let lines;
    if (view === "level") {
      lines = loss.moments.map((moment, k) => ({
        name: escapeText(moment.name),
        x: moment.loss.map((_, i) => centre(i)),
        y: moment.loss,
        mode: "lines+markers",
        connectgaps: true,
        line: { color: shade(k / last(loss.moments.length)), width: 1.6 + k / last(loss.moments.length) },
        hovertemplate: `t about %{x:.2f}: loss %{y:.3g}<extra>${escapeText(moment.name)}</extra>`,
      }));
    } else {
      const between = (k) => `t ${(k / levels).toFixed(2)} to ${((k + 1) / levels).toFixed(2)}`;
      lines = Array.from({ length: levels }, (_, k) => ({
        name: between(k),
        x: loss.images,
        y: loss.levels.map((line) => line[k]),
        mode: "lines",
        line: { color: shade(k / last(levels)), width: 1.5 },
        hovertemplate: `%{x:,} images: loss %{y:.3g}<extra>${between(k)}</extra>`,
      }));
    }
    const values = lines.flatMap((line) => line.y).filter((v) => v !== null && v > 0);
    const span = [Math.min(...values) / 1.2, Math.max(...values) * 1.2];
    const ticks = decades(...span);
    Plotly.react(
      $("loss-plot"),
      lines.map((line) => ({ type: "scatter", ...line })),
      layout({
        showlegend: true,
        legend: narrow()
          ? { orientation: "h", y: -0.28, font: { size: 10.5 } }
          : { title: { text: view === "level" ? "after" : "noise level" } },
        xaxis:
          view === "level"
            ? { title: { text: "t (0 = data, 1 = noise)", standoff: 6 }, range: [0, 1], dtick: narrow() ? 0.25 : 0.125 }
            : { title: { text: "images seen", standoff: 6 }, nticks: narrow() ? 4 : 8, rangemode: "tozero" },
        yaxis: {
          type: "log",
          title: { text: "training loss", standoff: 6 },
          range: span.map(Math.log10),
          tickvals: ticks,
          ticktext: ticks.map((v) => (v < 1e-3 ? v.toExponential(0) : String(v))),
        },
      }),
      PLOT_CONFIG(),
    );
    $("loss-plot").setAttribute("aria-label", `training loss of ${run} by noise level`);
  }

  if (names.length) {
    for (const name of names) $("loss-run").append(el("option", { value: name }, name));
    $("loss-run").addEventListener("change", drawLoss);
    $("loss-view").addEventListener("change", drawLoss);
    themed.push(drawLoss);
    drawLoss();
  } else {
    $("losses-note").textContent =
      "Not in this report: the runs' metrics.jsonl were not found. Give the folder of the runs with --runs.";
    $("losses-body").hidden = true;
  }

  const most = Math.max(...DATA.prices.map((one) => one.train_evals + one.inherited_evals));
  function drawPrices() {
    $("price-list").replaceChildren(
      ...DATA.prices.map((one) => {
        const series = seriesOf(one.run),
          total = one.train_evals + one.inherited_evals;
        const label = series ? series.label : one.method;
        const width = (value) => `width: ${((100 * value) / most).toFixed(2)}%`;
        const bars = [el("i", { style: `${width(one.train_evals)}; --c: ${series ? colour(series) : css("--soft")}` })];
        if (one.inherited_evals) bars.push(el("i", { className: "inherited", style: width(one.inherited_evals) }));
        const from = one.chain.length
          ? `learned from ${one.chain.join(", which learned from ")}`
          : "learned from the data alone";
        const inherited = one.inherited_evals ? ` + ${large(one.inherited_evals)} = ${large(total)}` : "";
        const unknown = one.complete ? "" : " (and what its teacher cost, which is not known here)";
        const each = one.train_images
          ? `; ${large(one.train_images)} images, ${(one.train_evals / one.train_images).toPrecision(2)} evaluations each`
          : "";
        const time = one.train_seconds ? `; ${duration(one.train_seconds)}` : "";
        return el(
          "li",
          {},
          el("div", {}, el("strong", {}, capital(label)), el("small", {}, `${one.run}: ${from}`)),
          el(
            "div",
            {},
            el("div", { className: "stack", "aria-hidden": "true" }, ...bars),
            el("div", { className: "sum" }, `${large(one.train_evals)}${inherited} evaluations${unknown}${each}${time}`),
          ),
        );
      }),
    );
    if (!DATA.prices.length) $("price-list").replaceChildren(el("li", {}, "The rows record no training cost."));
  }
  themed.push(drawPrices);
  drawPrices();

  for (const { name, text } of DATA.configs) {
    $("config-list").append(el("details", {}, el("summary", {}, name), el("pre", { tabIndex: 0, ariaLabel: name }, text)));
  }
  if (!DATA.configs.length)
    $("config-list").append(
      el(
        "p",
        { className: "note" },
        "Not in this report: the runs' config.yaml were not found. Give the folder of the runs with --runs.",
      ),
    );

  const distinct = (key, cut = 12) =>
    [...new Set(DATA.rows.map((row) => row[key]).filter(Boolean))].map((v) => v.slice(0, cut)).join(", ");
  const facts = [
    `${DATA.source.file}: ${plural(DATA.rows.filter((row) => !row.members).length, "row")}, sha256 ${DATA.source.sha256.slice(0, 16)}`,
    `commit ${distinct("commit")}`,
    `sampled on ${distinct("device", 80)}`,
    "written by python -m scripts.report",
  ];
  $("origin").append(el("p", {}, `${facts.join("; ")}.`));
})();
