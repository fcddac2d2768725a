// The curve, its controls, the best at each budget, and all points as a table.

const STEP_TICKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2048, 4096];
const X_AXES = {
  nfe: "network evaluations per image (counted)",
  steps: "steps",
  seconds_per_image: "seconds per image",
  train_evals: "evaluations in training, teacher apart",
};
const visible = new Set(DATA.series.keys());
const chosenGroup = () => DATA.groups[Number($("group").value)];

function yWords(group, key) {
  const first = DATA.rows[group.points[0].row];
  return ["fid", "fid_infinity", "kid"].includes(key)
    ? `${group.measures[key]}, ${first.extractor} features`
    : group.measures[key];
}

// An average by its half-life; rows of earlier versions know the configured one alone, which is a cap.
function weights(row) {
  if (typeof row.ema_half_life === "number") return `half-life ${Math.round(row.ema_half_life)} images`;
  return /^half-life/.test(row.ema ?? "") ? `${row.ema} (cap)` : row.ema;
}

const membersOf = (row) => (row.members ?? []).map((index) => DATA.rows[index]);

/** "0: 3.21, 1: 3.40": what each training seed of a mean has. */
function seedValues(row, key) {
  const known = membersOf(row).filter((one) => one[key] != null);
  return known.map((one) => `${one.train_seed}: ${digits(one[key], row[key] ?? one[key])}`).join(", ");
}

const hasSeeds = (group) => group.points.some((point) => DATA.rows[point.row].members?.length > 1);

/** A thin line for each training seed behind the mean of a series. */
function seedTraces(series, mine, group, key, xKey, height) {
  const seeds = [...new Set(mine.flatMap((row) => membersOf(row).map((one) => one.train_seed)))];
  return seeds.map((seed) => {
    const own = mine.flatMap(membersOf).filter((one) => one.train_seed === seed && one[key] != null && one[xKey] > 0);
    const name = `${escapeText(series.name)}, training seed ${seed}`;
    return {
      type: "scatter",
      mode: "lines+markers",
      name,
      x: own.map((one) => one[xKey]),
      y: own.map((one) => height(one[key])),
      text: own.map((one) => hoverText(one, group, key)),
      hovertemplate: `<b>${name}</b><br>%{text}<extra></extra>`,
      line: { color: faded(colour(series), 0.45), width: 0.8 },
      marker: { symbol: series.marker, size: 4, color: faded(colour(series), 0.45) },
    };
  });
}

function hoverText(row, group, key) {
  const error = key === "fid" && row.fid_std !== null ? ` ± ${digits(row.fid_std, row.fid)} (${row.fid_error})` : "";
  const lines = [`${escapeText(group.measures[key])} <b>${digits(row[key])}</b>${escapeText(error)}`];
  if (row.sampler !== null) {
    const within = row.guidance_interval ? ` in [${row.guidance_interval.join(", ")}]` : "";
    const guidance = row.guidance_scale === 1 ? "" : `, guidance ${row.guidance_scale}${within}`;
    lines.push(`${plural(row.steps, "step")}, ${plural(row.nfe, "evaluation")} (NFE)${guidance}`);
  }
  if (row.members?.length > 1) lines.push(`training seeds ${seedValues(row, key)}`);
  lines.push(`n = ${row.n}${row.seed === null ? "" : `, seed ${row.seed}`}`);
  lines.push(`extractor ${row.extractor} (${row.extractor_sha256.slice(0, 8)})`);
  lines.push(`reference ${row.reference} (${row.reference_sha256.slice(0, 8)})`);
  if (row.sampler !== null) {
    lines.push(`weights: ${weights(row)}`, `grid ${row.grid}, threshold ${row.threshold}`);
    if (row.seconds_per_image !== null) lines.push(`${duration(row.seconds_per_image)} per image`, `on ${row.device}`);
    if (row.train_evals !== null) lines.push(`training: ${large(row.train_evals)} evaluations`);
  }
  if (row.commit) lines.push(`commit ${row.commit.replace(/^([0-9a-f]{8})[0-9a-f]*/, "$1")}`);
  const [first, ...rest] = lines;
  return [first, ...rest.map(escapeText)].join("<br>");
}

function drawCurve() {
  const group = chosenGroup(),
    key = $("y").value,
    xKey = $("x").value;
  const usable = (row) => row[key] != null && row[xKey] != null && row[xKey] > 0;
  const rows = group.points.map((point) => DATA.rows[point.row]);
  const floors = group.floors.map((index) => DATA.rows[index]).filter((row) => row[key] != null);
  // An FD that rounding made 0 or less is drawn at the foot of a logarithmic axis; a kernel distance may well be negative.
  const positive = key === "fid" || [...rows, ...floors].every((row) => row[key] == null || row[key] > 0);
  $("log").disabled = !positive;
  const log = positive && $("log").checked;
  const height = (value) => (log ? Math.max(value, 1e-3) : value);
  const traces = [],
    ys = [],
    xs = rows.filter(usable).map((row) => row[xKey]);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  DATA.series.forEach((series, index) => {
    const mine = group.points
      .filter((point) => point.series === index)
      .map((point) => DATA.rows[point.row])
      .filter(usable);
    if (!mine.length || !visible.has(index)) return;
    const y = mine.map((row) => height(row[key])),
      std = mine.map((row) => (key === "fid" && row.fid_std) || 0);
    const below = std.map((value, i) => (log ? Math.min(value, 0.9 * y[i]) : value));
    ys.push(
      ...y,
      ...y.map((value, i) => value + std[i]),
      ...y.map((value, i) => value - Math.min(below[i], 0.5 * Math.abs(value))),
    );
    const thin = seedTraces(series, mine, group, key, xKey, height);
    ys.push(...thin.flatMap((trace) => trace.y));
    traces.push(...thin, {
      type: "scatter",
      mode: "lines+markers",
      name: escapeText(series.name),
      x: mine.map((row) => row[xKey]),
      y,
      text: mine.map((row) => hoverText(row, group, key)),
      hovertemplate: `<b>${escapeText(series.name)}</b><br>%{text}<extra></extra>`,
      line: { color: colour(series), dash: series.dash, width: xKey === "train_evals" ? 0.7 : 2 },
      marker: {
        symbol: series.marker,
        size: narrow() ? 7 : 9,
        color: colour(series),
        line: { color: css("--panel"), width: 1 },
      },
      error_y: {
        type: "data",
        symmetric: false,
        array: std,
        arrayminus: below,
        visible: key === "fid",
        thickness: 1,
        width: 2,
        color: faded(colour(series), 0.5),
      },
    });
  });
  const span = xs.length ? [low / 1.3, high * 1.35] : [1, 10];
  const annotations = [];
  const best = Math.min(...ys);
  for (const row of floors) {
    const y = height(row[key]);
    const far = log && y < best / 5; // its line would take half of the picture: told in words, as in the printed one
    if (!far) ys.push(y);
    const words = `${row.method}: ${row.run}${row.n === rows[0].n ? "" : `, n = ${row.n}`}`;
    traces.unshift({
      type: "scatter",
      mode: "lines",
      name: escapeText(words),
      x: span,
      y: [y, y],
      line: { color: css("--ink"), dash: row.codec ? "dot" : "dash", width: 1.2 },
      text: [hoverText(row, group, key), hoverText(row, group, key)],
      hovertemplate:
        `<b>real images${row.codec ? ", reconstructed," : ""} against real images</b>` +
        "<br>%{text}<extra></extra>",
    });
    annotations.push({
      text: escapeText(far ? `${words}: ${digits(row[key])}, below this picture` : words),
      xref: "paper",
      x: xKey === "train_evals" ? 0 : 1,
      yref: far ? "paper" : "y",
      y: far ? 0 : log ? Math.log10(y) : y,
      xanchor: xKey === "train_evals" ? "left" : "right",
      yanchor: "bottom",
      showarrow: false,
      font: { size: narrow() ? 10.5 : 12, color: css("--soft") },
    });
  }
  const share = key === "precision" || key === "recall";
  const bottom = Math.min(...ys),
    top = Math.max(...ys),
    air = log ? 1.25 : 0.06 * (top - bottom || 1);
  const range = !ys.length
    ? [0, 1]
    : share && !log
      ? [-0.03, 1.03]
      : log
        ? [Math.log10(bottom / air), Math.log10(top * air)]
        : [bottom - air, top + air];
  const counts = xKey === "nfe" || xKey === "steps";
  const xTicks = counts ? STEP_TICKS.filter((t, i) => !narrow() || i % 2 === 0) : decades(...span);
  const xFormat = xKey === "train_evals" ? large : (v) => (counts ? v : duration(v));
  Plotly.react(
    $("plot"),
    traces,
    layout({
      xaxis: {
        type: "log",
        title: { text: X_AXES[xKey], standoff: 8 },
        range: span.map(Math.log10),
        tickvals: xTicks,
        ticktext: xTicks.map((v) => String(xFormat(v))),
      },
      yaxis: {
        type: log ? "log" : "linear",
        title: { text: escapeText(yWords(group, key)), standoff: 6 },
        range,
        ...(log
          ? { tickvals: decades(10 ** range[0], 10 ** range[1]), ticktext: decades(10 ** range[0], 10 ** range[1]).map(String) }
          : {}),
      },
      annotations,
    }),
    PLOT_CONFIG(),
  );
  const missing = rows.filter((row) => !usable(row)).length;
  const devices = new Set(rows.map((row) => row.device).filter(Boolean));
  $("left-out").textContent = [
    hasSeeds(group) ? "Thick lines are means over training seeds with their standard errors, thin ones the seeds." : "",
    missing ? `${plural(missing, "point")} cannot be shown on these axes: the value was not recorded.` : "",
    xKey === "seconds_per_image" && devices.size > 1
      ? `Times of different devices do not compare: ${[...devices].join("; ")}.`
      : "",
  ]
    .join(" ")
    .trim();
  $("plot").setAttribute("aria-label", `${yWords(group, key)} against ${X_AXES[xKey]}; the values are in the table below`);
}

/** The best distance within some numbers of evaluations, and whose it is. */
function drawBest() {
  const group = chosenGroup(),
    box = $("best");
  let last = null;
  box.replaceChildren();
  const largest = Math.max(...group.points.map((point) => DATA.rows[point.row].nfe));
  const budgets = [1, 2, 4, 8, 16].filter((budget, i, all) => i === 0 || all[i - 1] < largest);
  if (largest > 16) budgets.push(Infinity);
  for (const budget of budgets) {
    const within = group.points.filter((point) => DATA.rows[point.row].nfe <= budget);
    if (!within.length) continue;
    const best = within.reduce((a, b) => (DATA.rows[b.row].fid < DATA.rows[a.row].fid ? b : a));
    if (best.row === last) continue; // a larger budget that nobody uses
    last = best.row;
    const row = DATA.rows[best.row],
      series = DATA.series[best.series];
    const words = budget === Infinity ? "without limit" : budget === 1 ? "1 evaluation" : `up to ${budget} evaluations`;
    const value = el("div", { className: "value" }, digits(row.fid));
    if (row.fid_std !== null) value.append(el("small", {}, ` ± ${digits(row.fid_std, row.fid)}`));
    const at = row.nfe === budget ? "" : `, at ${row.nfe}`;
    box.append(
      el(
        "div",
        { style: `--c: ${colour(series)}` },
        el("div", { className: "of" }, words),
        value,
        el("div", { className: "by" }, series.name + at),
      ),
    );
  }
}

function drawMeaning() {
  const group = chosenGroup(),
    row = DATA.rows[group.points[0].row],
    name = group.measures.fid;
  const ours = row.metric !== "FID";
  const features = ours
    ? `in the features of a small classifier, ${row.extractor}`
    : `in Inception features (${row.extractor})`;
  const limit = ours
    ? "It compares with itself only; it is not FID."
    : row.n < 50000
      ? "It compares at this number of samples only."
      : "";
  const floor = group.floors.map((index) => DATA.rows[index]).find((row) => !row.codec) ?? null;
  const error = floor && floor.fid_std !== null ? ` ± ${digits(floor.fid_std, floor.fid)}` : "";
  const ground = floor
    ? ` ${capital(plural(floor.n, "real image"))} (${floor.run}) measure ${digits(floor.fid)}${error}: ` +
      "below that, and within the error bars, an order says nothing."
    : "";
  $("meaning").textContent =
    `The lowest ${name} within a budget of network evaluations. ${name} is the Fréchet distance ` +
    `of ${row.n.toLocaleString("en-US")} samples to ${row.reference}, ${features}; lower is better. ${limit}${ground}`;
}

function drawTable() {
  const group = chosenGroup(),
    several = hasSeeds(group);
  const columns = [
    ["series", null],
    ["steps", (r) => r.steps],
    ["NFE", (r) => r.nfe],
    [group.measures.fid, (r) => digits(r.fid)],
    ["±", (r) => (r.fid_std === null ? "" : digits(r.fid_std, r.fid))],
    ...(several
      ? [
          ["± is", (r) => r.fid_error ?? ""],
          ["training seeds", (r) => (r.members ? seedValues(r, "fid") : r.train_seed ?? "")],
        ]
      : []),
    ["kernel distance", (r) => (r.kid === null ? "" : digits(r.kid))],
    ["precision", (r) => (r.precision === null ? "" : r.precision.toFixed(3))],
    ["recall", (r) => (r.recall === null ? "" : r.recall.toFixed(3))],
    ["time an image", (r) => (r.seconds_per_image === null ? "" : duration(r.seconds_per_image))],
    ["training evaluations", (r) => (r.train_evals === null ? "" : large(r.train_evals))],
    ["weights", (r) => weights(r) ?? ""],
    ["seed", (r) => r.seed ?? ""],
  ];
  const line = (name, row) => el("tr", {}, ...columns.map(([, read]) => el("td", {}, read ? String(read(row) ?? "") : name)));
  const head = el("thead", {}, el("tr", {}, ...columns.map(([name]) => el("th", { scope: "col" }, name))));
  const body = el(
    "tbody",
    {},
    ...group.points.map((p) => line(DATA.series[p.series].name, DATA.rows[p.row])),
    ...group.floors.map((index) => line(`${DATA.rows[index].method}: ${DATA.rows[index].run} (n = ${DATA.rows[index].n})`, DATA.rows[index])),
  );
  $("table").replaceChildren(el("table", {}, head, body));
}

function drawMethods() {
  const present = new Set(chosenGroup().points.map((point) => point.series));
  for (const label of $("method-list").children) label.hidden = !present.has(Number(label.firstChild.value));
}

DATA.groups.forEach((group, i) => $("group").append(el("option", { value: i }, group.words)));
$("group-label").hidden = DATA.groups.length === 1;
const fillMeasures = () => {
  const measures = chosenGroup().measures,
    was = $("y").value;
  const long = { fid: "Fréchet distance", fid_infinity: "Fréchet distance without its bias from n", kid: "kernel distance" };
  const words = (key) => (long[key] ? `${long[key]} (${measures[key]})` : measures[key]);
  $("y").replaceChildren(...Object.keys(measures).map((key) => el("option", { value: key }, words(key))));
  $("y").value = was in measures ? was : "fid";
};
for (const [value, words] of Object.entries(X_AXES)) $("x").append(el("option", { value }, words));
DATA.series.forEach((series, index) => {
  const box = el("input", { type: "checkbox", value: index, checked: true });
  box.addEventListener("change", () => {
    if (box.checked) visible.add(index);
    else visible.delete(index);
    drawCurve();
  });
  $("method-list").append(el("label", {}, box, swatch(series), el("span", {}, series.name)));
});
for (const [id, on] of [
  ["all", true],
  ["none", false],
]) {
  $(id).addEventListener("click", () => {
    for (const box of $("method-list").querySelectorAll("input")) {
      box.checked = on;
      if (on) visible.add(Number(box.value));
      else visible.delete(Number(box.value));
    }
    drawCurve();
  });
}
function drawGroup() {
  fillMeasures();
  drawMeaning();
  drawTable();
  drawMethods();
  drawBest();
  drawCurve();
}
$("group").addEventListener("change", drawGroup);
for (const id of ["y", "x", "log"]) $(id).addEventListener("change", drawCurve);
themed.push(drawBest, drawCurve);
drawGroup();
