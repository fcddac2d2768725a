// Samples at fixed noise: a slider over the numbers of steps, a switch over the methods.

(() => {
  const COLUMNS = 4,
    STRIP = 8;
  if (!DATA.strips.length) {
    $("samples-note").textContent = "The curves file kept no samples (keep_samples: 0), or its folder of samples is not there.";
    $("samples-body").hidden = true;
    return;
  }
  const counts = [...new Set(DATA.strips.map((strip) => strip.steps))].sort((a, b) => a - b);
  const shown = [...new Set(DATA.strips.map((strip) => strip.series))];
  const find = (series, steps) => DATA.strips.find((strip) => strip.series === series && strip.steps === steps);
  const slider = $("steps");
  let chosen = shown[0],
    drawing = 0;
  if (new Set(shown.map((index) => DATA.series[index].seed)).size > 1) {
    $("samples-note").textContent = "The seeds differ, so the noise is the same only among methods of one seed.";
  }

  const lines = shown.map((index) => {
    const series = DATA.series[index];
    const radio = el("input", { type: "radio", name: "sample-method", value: index, checked: index === chosen });
    const small = el("small"),
      place = el("div");
    radio.addEventListener("change", () => {
      chosen = index;
      draw();
    });
    $("strips").append(el("label", {}, radio, el("span", { className: "who" }, series.name, small), place));
    return { index, series, small, place };
  });

  /** The first images of a strip in `columns` columns on the canvas. */
  async function paint(canvas, strip, columns, count, width) {
    const image = await picture(strip.image);
    const side = strip.height,
      total = Math.min(count, Math.floor(strip.width / side));
    columns = Math.min(columns, total);
    const gap = Math.max(1, Math.round(side / 12)),
      rows = Math.ceil(total / columns);
    const scale = Math.max(1, Math.ceil(width / (columns * (side + gap))));
    canvas.width = (columns * (side + gap) - gap) * scale;
    canvas.height = (rows * (side + gap) - gap) * scale;
    const context = canvas.getContext("2d");
    for (let i = 0; i < total; i++) {
      const x = (i % columns) * (side + gap) * scale,
        y = Math.floor(i / columns) * (side + gap) * scale;
      copy(context, image, i * side, 0, side, side, x, y, scale);
    }
  }

  async function draw() {
    const mine = ++drawing,
      steps = counts[Number(slider.value)];
    $("steps-now").textContent = plural(steps, "step");
    slider.setAttribute("aria-valuetext", plural(steps, "step"));
    for (const { index, small, place } of lines) {
      const strip = find(index, steps);
      const row = pointOf(index, steps);
      small.textContent = strip ? `NFE ${strip.nfe}${row ? `, ${row.words}` : ""}` : "";
      if (!strip) {
        const has = DATA.strips.filter((s) => s.series === index).map((s) => s.steps);
        place.replaceChildren(
          el(
            "span",
            { className: "absent" },
            `not measured; has ${has.length > 4 ? `${Math.min(...has)} to ${Math.max(...has)}` : has.join(", ")}`,
          ),
        );
        continue;
      }
      const canvas = place.querySelector("canvas") ?? el("canvas", { role: "img" });
      canvas.setAttribute("aria-label", `${DATA.series[index].name}, ${plural(steps, "step")}: ${STRIP} samples`);
      if (!canvas.parentNode) place.replaceChildren(canvas);
      paint(canvas, strip, STRIP, STRIP, 420);
    }
    const strip = find(chosen, steps),
      grid = $("grid"),
      name = DATA.series[chosen].name;
    if (strip) {
      await paint(grid, strip, COLUMNS, COLUMNS * COLUMNS, 480);
      if (mine !== drawing) return;
      const row = pointOf(chosen, steps);
      $("grid-words").textContent =
        `${capital(name)}, ${plural(steps, "step")}, NFE ${strip.nfe}${row ? `: ${row.words}` : ""}`;
    } else {
      grid.width = grid.height = 480;
      const context = grid.getContext("2d");
      context.fillStyle = css("--soft");
      context.font = "22px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText(`not measured at ${plural(steps, "step")}`, 240, 240);
      $("grid-words").textContent = `${capital(name)} was not measured at ${plural(steps, "step")}.`;
    }
    grid.setAttribute("aria-label", $("grid-words").textContent);
  }

  /** The distance that belongs to these samples, under the protocol chosen above. */
  function pointOf(series, steps) {
    const group = chosenGroup();
    const point = group.points.find((p) => p.series === series && DATA.rows[p.row].steps === steps);
    return point ? { words: `${group.measures.fid} ${digits(DATA.rows[point.row].fid)}` } : null;
  }

  slider.max = counts.length - 1;
  slider.value = Math.max(0, counts.indexOf(4));
  counts.forEach((count) => $("steps-ticks").append(el("span", {}, String(count))));
  slider.addEventListener("input", draw);
  $("group").addEventListener("change", draw);
  themed.push(draw);
  draw();
})();
